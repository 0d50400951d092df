/* The operations for AVX2, FMA and F16C. */
#define ZB_LEVEL_AVX2  1
#define ZB_LEVEL_TABLE zb_cpu_level_avx2
#define ZB_LEVEL_NAME  "avx2"
#include "kernels/operations.inc.c"
