/* What the reductions over ranks take, on the CPU and on a GPU. */
#ifndef ZB_KERNELS_REDUCE_CHECK_H
#define ZB_KERNELS_REDUCE_CHECK_H

#include <zerobit/kernels.h>

#ifdef __cplusplus
extern "C" {
#endif

/** ZB_INVALID_ARGUMENT, ZB_UNSUPPORTED: with the operation, the type and the value found. */
zb_status zb_ordered_reduce_check(const zb_ordered_reduce_args *args);
zb_status zb_tree_reduce_check(const zb_tree_reduce_args *args);

#ifdef __cplusplus
}
#endif
#endif
