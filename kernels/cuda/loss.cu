/* Losses: cross entropy over logits, and mean squared error. */
#include "kernels/cuda/operations.h"

#include "kernels/cuda/elementary.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/planes.cuh"
#include "kernels/cuda/reduce.cuh"

/* --- cross entropy: a warp for each row, whose lanes are those of the sum --- */

enum { ROWS_PER_BLOCK = 4, ROW_THREADS = ROWS_PER_BLOCK * ZB_WARP, LOSS_THREADS = 512 };

ZB_DEVICE float larger_or_nan(float a, float b)
{
    return b > a || isnan(b) ? b : a;
}

template <typename T> ZB_DEVICE float row_maximum(const T *x, size_t classes, int lane)
{
    float maximum = -INFINITY;
    for (size_t i = lane; i < classes; i += ZB_WARP) maximum = larger_or_nan(maximum, zb_widen(x[i]));
#pragma unroll
    for (int s = ZB_WARP / 2; s > 0; s /= 2)
        maximum = larger_or_nan(maximum, __shfl_xor_sync(ZB_ALL_LANES, maximum, s));
    return maximum;
}

template <typename T>
__global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy_rows(const T *x, const int32_t *labels, size_t rows, size_t classes, float *log_probs,
                       float *row_loss)
{
    const size_t row = (size_t)blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / ZB_WARP;
    const int lane = (int)threadIdx.x % ZB_WARP;
    if (row >= rows) return; /* the whole warp */
    x += row * classes, log_probs += row * classes;
    const float maximum = row_maximum(x, classes, lane);
    float sum = 0;
    for (size_t i = lane; i < classes; i += ZB_WARP) sum = sum + zb_exp(zb_widen(x[i]) - maximum);
    const float log_sum = zb_log(__shfl_sync(ZB_ALL_LANES, zb_reduce_lanes(sum), 0));
    for (size_t i = lane; i < classes; i += ZB_WARP) log_probs[i] = (zb_widen(x[i]) - maximum) - log_sum;
    if (lane == 0) row_loss[row] = -((zb_widen(x[labels[row]]) - maximum) - log_sum);
}

/* loss = (REDUCE over rows of row_loss) / divisor */
__global__ void __launch_bounds__(LOSS_THREADS)
    mean_of_rows(const float *row_loss, size_t rows, float divisor, float *loss)
{
    const float sum = zb_reduce_block<LOSS_THREADS>(rows, [&](size_t i) { return row_loss[i]; });
    if (threadIdx.x == 0) loss[0] = sum / divisor;
}

zb_status zb_cuda_op_cross_entropy_forward(cudaStream_t stream, const zb_cross_entropy_forward_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("cross_entropy_forward", args->dtype));
    if (args->rows > 0)
        ZB_TRY(zb_with_tensor_type(args->dtype, [&](auto type) {
            typedef decltype(type) T;
            return ZB_CUDA_RUN(cross_entropy_rows<T>, zb_blocks_for(args->rows, ROWS_PER_BLOCK),
                               dim3(ROW_THREADS), 0, stream, static_cast<const T *>(args->x), args->labels,
                               args->rows, args->classes, args->log_probs, args->row_loss);
        }));
    return ZB_CUDA_RUN(mean_of_rows, dim3(1), dim3(LOSS_THREADS), 0, stream, args->row_loss, args->rows,
                       (float)args->rows, args->loss);
}

template <typename T>
__global__ void __launch_bounds__(ZB_EACH_THREADS)
    cross_entropy_gradient(const float *log_probs, const int32_t *labels, size_t classes, unsigned each,
                           float weight, float divisor, T *dx)
{
    const zb_plane_place at = zb_plane_place_of(each);
    if (at.element >= classes) return;
    const size_t i = at.plane * classes + at.element;
    const float hit = at.element == (unsigned)labels[at.plane] ? 1.0f : 0.0f;
    zb_narrow(((zb_exp(log_probs[i]) - hit) * weight) / divisor, &dx[i]);
}

zb_status zb_cuda_op_cross_entropy_backward(cudaStream_t stream, const zb_cross_entropy_backward_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("cross_entropy_backward", args->dtype));
    if (args->rows == 0 || args->classes == 0) return ZB_OK;
    zb_planes rows = {};
    ZB_TRY(zb_planes_of("cross_entropy_backward", args->rows, args->classes, &rows));
    const float weight = args->seed / (float)args->rows;
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        return ZB_CUDA_RUN(cross_entropy_gradient<T>, dim3(rows.blocks), dim3(rows.threads), 0, stream,
                           args->log_probs, args->labels, args->classes, rows.each, weight, args->divisor,
                           static_cast<T *>(args->dx));
    });
}

/* --- mean squared error --- */

template <typename T>
__global__ void __launch_bounds__(LOSS_THREADS)
    mean_square(const T *x, const float *t, size_t numel, float divisor, float *loss)
{
    const float sum = zb_reduce_block<LOSS_THREADS>(numel, [&](size_t i) {
        const float d = zb_widen(x[i]) - t[i];
        return d * d;
    });
    if (threadIdx.x == 0) loss[0] = sum / divisor;
}

zb_status zb_cuda_op_mse_forward(cudaStream_t stream, const zb_mse_forward_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("mse_forward", args->dtype));
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        return ZB_CUDA_RUN(mean_square<T>, dim3(1), dim3(LOSS_THREADS), 0, stream,
                           static_cast<const T *>(args->x), args->t, args->numel, (float)args->numel,
                           args->loss);
    });
}

template <typename T> struct square_gradient {
    enum { WIDTH = 4, UNROLL = 2 };
    const T *x;
    const float *t;
    T *dx;
    float weight, divisor;

    template <int N> struct values {
        zb_pack<T, N> x;
        zb_pack<float, N> t;
    };
    template <int N> __device__ __forceinline__ values<N> load(size_t i) const
    {
        return { zb_load_pack<N>(x + i), zb_load_pack<N>(t + i) };
    }
    template <int N> __device__ __forceinline__ void finish(size_t i, const values<N> &v) const
    {
        zb_pack<T, N> gradient;
#pragma unroll
        for (int e = 0; e < N; e++)
            zb_narrow(((zb_widen(v.x.at[e]) - v.t.at[e]) * weight) / divisor, &gradient.at[e]);
        zb_store_pack<N>(dx + i, gradient);
    }
};

zb_status zb_cuda_op_mse_backward(cudaStream_t stream, const zb_mse_backward_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("mse_backward", args->dtype));
    const float weight = (2 * args->seed) / (float)args->numel;
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        typedef decltype(type) T;
        const zb_array arrays[] = { { args->x, sizeof(T) },
                                    { args->t, sizeof(float) },
                                    { args->dx, sizeof(T) } };
        return zb_each(ZB_CUDA_PLACE("mse_backward"), stream,
                       square_gradient<T>{ static_cast<const T *>(args->x), args->t,
                                           static_cast<T *>(args->dx), weight, args->divisor },
                       args->numel, arrays);
    });
}
