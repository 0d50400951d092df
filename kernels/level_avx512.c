/* The operations for AVX-512 (F, VL, DQ, BW). */
#define ZB_LEVEL_AVX512 1
#define ZB_LEVEL_TABLE  zb_cpu_level_avx512
#define ZB_LEVEL_NAME   "avx512"
#include "kernels/operations.inc.c"
