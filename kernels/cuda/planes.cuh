/* A thread for each element of many equal planes (rows of logits, channels of images): a few blocks for each
 * plane. */
#ifndef ZB_KERNELS_CUDA_PLANES_CUH
#define ZB_KERNELS_CUDA_PLANES_CUH

#include "kernels/cuda/elementwise.cuh"

struct zb_planes {
    unsigned blocks, threads; /* to launch */
    unsigned each;            /* blocks for each plane */
};

/* Neither number is 0. ZB_UNSUPPORTED where the grid or a plane would be too large. */
static inline zb_status zb_planes_of(const char *operation, size_t planes, size_t elements,
                                     zb_planes *planes_p)
{
    const unsigned few = elements < (size_t)ZB_EACH_THREADS ? (unsigned)elements : (unsigned)ZB_EACH_THREADS;
    const unsigned threads = (few + ZB_WARP - 1) / ZB_WARP * ZB_WARP;
    if (elements > INT32_MAX || planes > INT32_MAX / zb_blocks_for(elements, threads))
        return zb_fail(ZB_UNSUPPORTED, "%s on CUDA over %zu x %zu elements; want at most %d blocks of %u",
                       operation, planes, elements, INT32_MAX, threads);
    const unsigned each = zb_blocks_for(elements, threads);
    *planes_p = zb_planes{ (unsigned)planes * each, threads, each };
    return ZB_OK;
}

/* Where a thread works; beyond the plane's end there is nothing to do. */
struct zb_plane_place {
    size_t plane;
    unsigned element;
};
ZB_DEVICE zb_plane_place zb_plane_place_of(unsigned each)
{
    return zb_plane_place{ blockIdx.x / each, blockIdx.x % each * blockDim.x + threadIdx.x };
}

#endif
