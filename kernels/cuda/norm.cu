/* The exact sum of squares, PyTorch's norm, and the search for what is no number. */
#include "kernels/cuda/operations.h"
#include "kernels/cuda/squares.cuh"

/* --- sum_squares --- */

template <typename T> struct elements {
    enum { WIDTH = zb_width<T>(), UNROLL = 4, SUMS = 1 };
    const T *x;
    template <int N> using values = zb_pack<T, N>;
    template <int N> __device__ values<N> load(size_t i) const { return zb_load_pack<N>(x + i); }
    template <int N> __device__ void finish(size_t, const values<N> &v, float (*out)[N]) const
    {
#pragma unroll
        for (int k = 0; k < N; k++) out[0][k] = zb_widen(v.at[k]);
    }
};

zb_status zb_cuda_op_sum_squares(cudaStream_t stream, const zb_sum_squares_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("sum_squares", args->dtype));
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        using T = decltype(type);
        const zb_array arrays[] = { { args->x, sizeof(T) } };
        return zb_sum_squares_of(ZB_CUDA_PLACE("sum_squares"), stream,
                                 elements<T>{ static_cast<const T *>(args->x) }, args->numel,
                                 args->accumulator, arrays);
    });
}

/* --- find_nonfinite --- */

template <typename T> struct nonfinite {
    enum { WIDTH = zb_width<T>(), UNROLL = 4 };
    const T *x;
    uint8_t *flag;
    template <int N> using values = zb_pack<T, N>;
    template <int N> __device__ values<N> load(size_t i) const { return zb_load_pack<N>(x + i); }
    template <int N> __device__ void finish(size_t, const values<N> &v) const
    {
        bool found = false;
#pragma unroll
        for (int k = 0; k < N; k++) found |= (__float_as_uint(zb_widen(v.at[k])) & 0x7f800000) == 0x7f800000;
        if (found) *flag = 1; /* all that write, write the same */
    }
};

zb_status zb_cuda_op_find_nonfinite(cudaStream_t stream, const zb_find_nonfinite_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("find_nonfinite", args->dtype));
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        using T = decltype(type);
        const zb_array arrays[] = { { args->x, sizeof(T) } };
        return zb_each(ZB_CUDA_PLACE("find_nonfinite"), stream,
                       nonfinite<T>{ static_cast<const T *>(args->x), args->flag }, args->numel, arrays);
    });
}

/* --- norm --- */

/*
 * Eight chains in fp32, or four in fp64, each of which one thread has to add: nothing shortens them. The
 * other threads of the one block fetch and square the next tile meanwhile, into shared memory where a chain's
 * squares are neighbours. A row is four numbers longer than it needs to be, so that the chains read from
 * different banks.
 */
enum { NORM_THREADS = 256, NORM_TILE = 2048 };

template <typename Sum> struct norm_lanes; /* as AVX2 has them */
template <> struct norm_lanes<float> {
    enum { COUNT = 8, UNFUSED = 4 };
};
template <> struct norm_lanes<double> {
    enum { COUNT = 4, UNFUSED = 1 };
};

template <typename T, typename Sum, int LANES, int ROW>
ZB_DEVICE void square_tile(const T *x, size_t first, size_t end, Sum (*rows)[ROW])
{
    for (int i = (int)threadIdx.x; i < NORM_TILE && first + i < end; i += NORM_THREADS) {
        const Sum wide = (Sum)zb_widen(x[first + i]);
        rows[i % LANES][i / LANES] = wide * wide;
    }
}

ZB_DEVICE float fused_square(float x, float sum)
{
    return fmaf(x, x, sum);
}
ZB_DEVICE double fused_square(double x, double sum)
{
    return fma(x, x, sum);
}

/* The lanes, ascending, then what is left over: its last few elements, fewer than UNFUSED, by fma. */
template <typename T, typename Sum, int LANES>
ZB_DEVICE double norm_of(const T *x, size_t whole, size_t numel, const Sum *lanes)
{
    const size_t unfused = numel - numel % norm_lanes<Sum>::UNFUSED;
    Sum sum = lanes[0];
    for (int l = 1; l < LANES; l++) sum = sum + lanes[l];
    for (size_t i = whole; i < numel; i++) {
        const Sum rest = (Sum)zb_widen(x[i]);
        sum = i < unfused ? sum + rest * rest : fused_square(rest, sum);
    }
    return (double)sqrt(sum);
}

template <typename T, typename Sum>
__global__ void __launch_bounds__(NORM_THREADS) norm_kernel(const T *x, size_t numel, double *norm)
{
    enum { LANES = norm_lanes<Sum>::COUNT, ROW = NORM_TILE / LANES + 4 };
    ZB_SHARED(Sum, rows, [2][LANES][ROW]);
    ZB_SHARED(Sum, lanes, [LANES]);
    const size_t whole = numel - numel % LANES;
    const unsigned t = threadIdx.x;
    Sum sum = 0;
    square_tile<T, Sum, LANES, ROW>(x, 0, whole, rows[0]);
    int side = 0;
    for (size_t first = 0; first < whole; first += NORM_TILE, side ^= 1) {
        __syncthreads();
        if (t < ZB_WARP) {
            const size_t left = (whole - first) / LANES, most = NORM_TILE / LANES;
            const int count = (int)(left < most ? left : most);
            if (t < LANES) {
#pragma unroll 8
                for (int i = 0; i < count; i++) sum = sum + rows[side][t][i];
            }
        }
        square_tile<T, Sum, LANES, ROW>(x, first + NORM_TILE, whole, rows[side ^ 1]);
    }
    if (t < LANES) lanes[t] = sum;
    __syncthreads();
    if (t == 0) *norm = norm_of<T, Sum, LANES>(x, whole, numel, lanes);
}

zb_status zb_cuda_op_norm(cudaStream_t stream, const zb_norm_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("norm", args->dtype));
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        using T = decltype(type);
        return zb_cuda_run(ZB_CUDA_PLACE("norm"), args->wide ? norm_kernel<T, double> : norm_kernel<T, float>,
                           1, NORM_THREADS, 0, stream, static_cast<const T *>(args->x), args->numel,
                           args->norm);
    });
}
