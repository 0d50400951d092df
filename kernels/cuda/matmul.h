/* The tiles that products are computed in, for those who choose one and for tests, which try all of them on
 * small matrices. */
#ifndef ZB_KERNELS_CUDA_MATMUL_H
#define ZB_KERNELS_CUDA_MATMUL_H

#include <cuda_runtime_api.h>
#include <zerobit/kernels.h>

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

/** The size for a result of m x n elements. */
zb_tile_size zb_tile_size_for(size_t m, size_t n);

/** matmul in tiles of this size. The bits are the same in all of them. ZB_INVALID_ARGUMENT where the result
 * is smaller than a large tile. */
zb_status zb_cuda_matmul_in(cudaStream_t stream, const zb_matmul_args *args, zb_tile_size size);

#ifdef __cplusplus
}
#endif

#endif
