/* The tiles that products are computed in, for those who choose one and for tests, which try all of them on
 * small matrices. */
#ifndef ZB_KERNELS_CUDA_MATMUL_H
#define ZB_KERNELS_CUDA_MATMUL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum zb_tile_size {
    ZB_TILE_LARGE,  /* 128 x 128, for results that are no smaller than that */
    ZB_TILE_MIDDLE, /*  64 x  64 */
    ZB_TILE_WIDE,   /*  16 x 128 */
    ZB_TILE_SMALL,  /*  16 x  32 */
    ZB_TILE_SIZES
} zb_tile_size;

/** The size for a result of m x n elements: with it, the busiest multiprocessor has least to do. */
zb_tile_size zb_tile_size_for(size_t m, size_t n);

/**
 * For tests: from now on all products of the process are made of this size (convolutions of the middle one,
 * for the large); the bits are the same. matmul gives ZB_INVALID_ARGUMENT where the result is smaller than a
 * large tile. ZB_TILE_SIZES: chosen, as before.
 */
void zb_cuda_set_tile_size(zb_tile_size size);

#ifdef __cplusplus
}
#endif

#endif
