/* From one floating type to another, rounding once. */
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/operations.h"

ZB_DEVICE void convert(double x, double *to)
{
    *to = x;
}
ZB_DEVICE void convert(double x, float *to)
{
    *to = (float)x;
}
template <typename To> ZB_DEVICE void convert(double x, To *to)
{
    zb_narrow(zb_odd_from_double(x), to);
}
template <typename From> ZB_DEVICE void convert(From x, double *to)
{
    *to = (double)zb_widen(x);
}
template <typename From, typename To> ZB_DEVICE void convert(From x, To *to)
{
    zb_narrow(zb_widen(x), to);
}

template <typename To, typename From> struct conversion {
    enum { WIDTH = zb_width<To, From>(), UNROLL = 4 };
    To *to;
    const From *from;
    template <int N> using values = zb_pack<From, N>;
    template <int N> __device__ values<N> load(size_t i) const { return zb_load_pack<N>(from + i); }
    template <int N> __device__ void finish(size_t i, const values<N> &v) const
    {
        zb_pack<To, N> out;
#pragma unroll
        for (int k = 0; k < N; k++) convert(v.at[k], &out.at[k]);
        zb_store_pack(to + i, out);
    }
};

static int is_floating(zb_dtype dtype)
{
    return zb_is_tensor_dtype(dtype) || dtype == ZB_FP64;
}

template <typename Call> static zb_status with_floating_type(zb_dtype dtype, const Call &call)
{
    return dtype == ZB_FP64 ? call(double()) : zb_with_tensor_type(dtype, call);
}

zb_status zb_cuda_op_cast(cudaStream_t stream, const zb_cast_args *args)
{
    const zb_dtype to = args->to_dtype, from = args->from_dtype;
    if (!is_floating(to) || !is_floating(from))
        return zb_fail(ZB_UNSUPPORTED, "cast from %s to %s; want two of fp32, fp16, bf16, fp64",
                       zb_dtype_name(from), zb_dtype_name(to));
    if (args->numel == 0) return ZB_OK;
    if (to == from) return zb_cuda_copy(stream, args->to, args->from, args->numel * zb_dtype_bytes(to));
    return with_floating_type(to, [&](auto to_type) {
        return with_floating_type(from, [&](auto from_type) {
            using To = decltype(to_type);
            using From = decltype(from_type);
            const zb_array arrays[] = { { args->to, sizeof(To) }, { args->from, sizeof(From) } };
            const conversion<To, From> operation = { static_cast<To *>(args->to),
                                                     static_cast<const From *>(args->from) };
            return zb_each(ZB_CUDA_PLACE("cast"), stream, operation, args->numel, arrays);
        });
    });
}
