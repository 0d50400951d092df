/*
 * REDUCE, the contract's one shape for sums that are no chain: 32 lanes, lane l adds x_l, x_{l+32}, ..., then
 * a tree over the lanes. A warp has just these lanes.
 *
 * Additions of +0 may be left out or put in: a lane starts at +0 and never holds -0, and x + 0 is x for every
 * other x.
 */
#ifndef ZB_KERNELS_CUDA_REDUCE_CUH
#define ZB_KERNELS_CUDA_REDUCE_CUH

#include "kernels/cuda/simt.cuh"

/* The sum of all lanes, in lane 0; for all lanes of a warp together. */
ZB_DEVICE float zb_reduce_lanes(float sum)
{
#pragma unroll
    for (int s = ZB_WARP / 2; s > 0; s /= 2) sum = sum + __shfl_down_sync(ZB_ALL_LANES, sum, s);
    return sum;
}

/*
 * REDUCE over value(0) .. value(count - 1), for all threads of a block together; the sum is thread 0's. The
 * other warps fetch values into shared memory, a buffer ahead of the first one, whose lanes add them up: 32
 * chains are all that there is to share out.
 */
template <int threads, typename Value> ZB_DEVICE float zb_reduce_block(size_t count, const Value &value)
{
    constexpr int fetchers = threads - ZB_WARP, each = 8, buffer = fetchers * each;
    ZB_SHARED(float, buffers, [2][buffer]);
    const int thread = (int)threadIdx.x;
    float sum = 0;
    int which = 0;
    for (size_t first = 0; first < count; first += buffer, which ^= 1) {
        if (thread >= ZB_WARP) {
#pragma unroll
            for (int e = 0; e < each; e++) {
                const int at = e * fetchers + thread - ZB_WARP;
                buffers[which][at] = first + at < count ? value(first + at) : 0.0f;
            }
        }
        __syncthreads(); /* this buffer is full, and the one before has been added up */
        if (thread < ZB_WARP) {
            const int rows = (int)(count - first < (size_t)buffer ? (count - first + ZB_WARP - 1) / ZB_WARP
                                                                  : buffer / ZB_WARP);
#pragma unroll 8
            for (int row = 0; row < rows; row++) sum = sum + buffers[which][row * ZB_WARP + thread];
        }
    }
    return thread < ZB_WARP ? zb_reduce_lanes(sum) : 0.0f;
}

#endif
