/*
 * Every operation, for one SIMD level. Included by level_<name>.c, which says ZB_LEVEL_TABLE (the table to
 * define), ZB_LEVEL_NAME and ZB_LEVEL_* for vec.h, and is compiled for that level's instructions. Only the
 * table is visible outside, so that the copies of a function never meet.
 */
#include <math.h>
#include <string.h>

#include "kernels/elementary.h"
#include "kernels/half.h"
#include "kernels/level.h"
#include "kernels/reduce_check.h"
#include "kernels/scratch.h"
#include "kernels/sum_squares.h"
#include "kernels/vec.h"

#include "kernels/tensor.inc.c"

#include "kernels/reduce.inc.c"

#include "kernels/cast.inc.c"
#include "kernels/elementwise.inc.c"
#include "kernels/loss.inc.c"
#include "kernels/matmul.inc.c"
#include "kernels/maxpool2d.inc.c"
#include "kernels/norm.inc.c"
#include "kernels/optimizer.inc.c"
#include "kernels/ordered_reduce.inc.c"
#include "kernels/sum_squares.inc.c"
#include "kernels/tree_reduce.inc.c"

#include "kernels/lamb.inc.c" /* uses the two before it */

#include "kernels/conv2d.inc.c" /* these two use the matrix product */
#include "kernels/linear.inc.c"

const zb_cpu_level ZB_LEVEL_TABLE = { .name = ZB_LEVEL_NAME,
#define ZB_LEVEL_ENTRY(name) .name = op_##name,
                                      ZB_KERNEL_MAP(ZB_LEVEL_ENTRY)
#undef ZB_LEVEL_ENTRY
};
