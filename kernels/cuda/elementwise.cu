/* Bytes, and operations of one or two arrays. */
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/operations.h"

zb_status zb_cuda_op_fill_bytes(cudaStream_t stream, const zb_fill_bytes_args *args)
{
    return args->bytes > 0 ? zb_cuda_fill(stream, args->data, args->value, args->bytes) : ZB_OK;
}

zb_status zb_cuda_op_copy(cudaStream_t stream, const zb_copy_args *args)
{
    return args->bytes > 0 ? zb_cuda_copy(stream, args->to, args->from, args->bytes) : ZB_OK;
}

/* --- to[i] = f(a[i], b[i]), where `to` may be one of them; formulas are on fp32 --- */

template <typename To, typename A, typename B, typename Formula> struct binary {
    enum { WIDTH = zb_width<To, A>() < zb_width<B>() ? zb_width<To, A>() : zb_width<B>(), UNROLL = 4 };
    To *to;
    const A *a;
    const B *b;
    Formula formula;
    template <int N> struct values {
        zb_pack<A, N> a;
        zb_pack<B, N> b;
    };
    template <int N> __device__ values<N> load(size_t i) const
    {
        return { zb_load_pack<N>(a + i), zb_load_pack<N>(b + i) };
    }
    template <int N> __device__ void finish(size_t i, const values<N> &v) const
    {
        zb_pack<To, N> out;
#pragma unroll
        for (int k = 0; k < N; k++) zb_narrow(formula(zb_widen(v.a.at[k]), zb_widen(v.b.at[k])), &out.at[k]);
        zb_store_pack(to + i, out);
    }
};

template <typename To, typename A, typename B, typename Formula>
static zb_status run_binary(zb_cuda_place place, cudaStream_t stream, To *to, const A *a, const B *b,
                            Formula formula, size_t numel)
{
    const zb_array arrays[] = { { to, sizeof *to }, { a, sizeof *a }, { b, sizeof *b } };
    return zb_each(place, stream, binary<To, A, B, Formula>{ to, a, b, formula }, numel, arrays);
}

/* x in y's type first, where that has 16 bits. */
template <typename Y> struct sum {
    __device__ float operator()(float y, float x) const { return y + zb_rounded<Y>(x); }
};

zb_status zb_cuda_op_add(cudaStream_t stream, const zb_add_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("add to y", args->y_dtype));
    ZB_TRY(zb_check_tensor_dtype("add of x", args->x_dtype));
    return zb_with_tensor_type(args->y_dtype, [&](auto y_type) {
        return zb_with_tensor_type(args->x_dtype, [&](auto x_type) {
            using Y = decltype(y_type);
            using X = decltype(x_type);
            Y *y = static_cast<Y *>(args->y);
            return run_binary(ZB_CUDA_PLACE("add"), stream, y, y, static_cast<const X *>(args->x), sum<Y>{},
                              args->numel);
        });
    });
}

struct relu_gradient {
    __device__ float operator()(float y, float dy) const { return y <= 0 ? 0.0f : dy; }
};

zb_status zb_cuda_op_relu_backward(cudaStream_t stream, const zb_relu_backward_args *args)
{
    ZB_TRY(zb_check_tensor_dtype("relu_backward", args->dtype));
    return zb_with_tensor_type(args->dtype, [&](auto type) {
        using T = decltype(type);
        return run_binary(ZB_CUDA_PLACE("relu_backward"), stream, static_cast<T *>(args->dx),
                          static_cast<const T *>(args->y), static_cast<const T *>(args->dy), relu_gradient{},
                          args->numel);
    });
}

/* --- to[i] = f(from[i]) --- */

template <typename T, typename Formula> struct unary {
    enum { WIDTH = zb_width<T>(), UNROLL = 4 };
    T *to;
    const T *from;
    Formula formula;
    template <int N> using values = zb_pack<T, N>;
    template <int N> __device__ values<N> load(size_t i) const { return zb_load_pack<N>(from + i); }
    template <int N> __device__ void finish(size_t i, const values<N> &v) const
    {
        zb_pack<T, N> out;
#pragma unroll
        for (int k = 0; k < N; k++) zb_narrow(formula(zb_widen(v.at[k])), &out.at[k]);
        zb_store_pack(to + i, out);
    }
};

template <typename Formula>
static zb_status run_unary(zb_cuda_place place, cudaStream_t stream, zb_dtype dtype, void *to,
                           const void *from, Formula formula, size_t numel)
{
    ZB_TRY(zb_check_tensor_dtype(place.what, dtype));
    return zb_with_tensor_type(dtype, [&](auto type) {
        using T = decltype(type);
        const zb_array arrays[] = { { to, sizeof(T) }, { from, sizeof(T) } };
        return zb_each(place, stream,
                       unary<T, Formula>{ static_cast<T *>(to), static_cast<const T *>(from), formula },
                       numel, arrays);
    });
}

struct product {
    float factor;
    __device__ float operator()(float x) const { return x * factor; }
};
struct quotient {
    float divisor;
    __device__ float operator()(float x) const { return x / divisor; }
};
struct positive_part { /* a NaN is not <= 0 */
    __device__ float operator()(float x) const { return x <= 0 ? 0.0f : x; }
};

zb_status zb_cuda_op_scale(cudaStream_t stream, const zb_scale_args *args)
{
    return run_unary(ZB_CUDA_PLACE("scale"), stream, args->dtype, args->y, args->y, product{ args->factor },
                     args->numel);
}

zb_status zb_cuda_op_divide(cudaStream_t stream, const zb_divide_args *args)
{
    return run_unary(ZB_CUDA_PLACE("divide"), stream, args->dtype, args->y, args->y,
                     quotient{ args->divisor }, args->numel);
}

zb_status zb_cuda_op_relu_forward(cudaStream_t stream, const zb_relu_forward_args *args)
{
    return run_unary(ZB_CUDA_PLACE("relu_forward"), stream, args->dtype, args->y, args->x, positive_part{},
                     args->numel);
}
