/*
 * The optimizers' common shape: one pass over parameters, gradients and up to two states, of four elements a
 * thread. The types of the gradient and of the rounded parameter are numbers, not templates: all threads
 * branch alike, and the loads that matter are on their way before anyone looks at what they brought.
 */
#ifndef ZB_KERNELS_CUDA_OPTIMIZER_CUH
#define ZB_KERNELS_CUDA_OPTIMIZER_CUH

#include "kernels/cuda/elementwise.cuh"

/* Bits of `count` elements of fp32, fp16 or bf16; those of 16 bits fill the lower half. */
template <int count> struct zb_tensor_pack {
    zb_pack<uint32_t, count> words;
};

template <int count>
ZB_DEVICE zb_tensor_pack<count> zb_load_tensor(zb_dtype dtype, const void *data, size_t i)
{
    zb_tensor_pack<count> pack;
    if (dtype == ZB_FP32) {
        pack.words = zb_load_pack<count>(static_cast<const uint32_t *>(data) + i);
    } else {
        const zb_pack<uint16_t, count> halves = zb_load_pack<count>(static_cast<const uint16_t *>(data) + i);
        memcpy(&pack, &halves, sizeof halves);
    }
    return pack;
}

template <typename T, int count> ZB_DEVICE void zb_widen_pack(const zb_tensor_pack<count> &pack, float *x)
{
    zb_pack<T, count> elements;
    memcpy(&elements, &pack, sizeof elements);
#pragma unroll
    for (int k = 0; k < count; k++) x[k] = zb_widen(elements.at[k]);
}
template <int count>
ZB_DEVICE void zb_widen_tensor(zb_dtype dtype, const zb_tensor_pack<count> &pack, float *x)
{
    if (dtype == ZB_FP32)
        zb_widen_pack<float>(pack, x);
    else if (dtype == ZB_FP16)
        zb_widen_pack<zb_fp16>(pack, x);
    else
        zb_widen_pack<zb_bf16>(pack, x);
}

template <int count, typename T> ZB_DEVICE void zb_narrow_pack(T *to, const float *x)
{
    zb_pack<T, count> pack;
#pragma unroll
    for (int k = 0; k < count; k++) zb_narrow(x[k], &pack.at[k]);
    zb_store_pack(to, pack);
}
template <int count> ZB_DEVICE void zb_store_tensor(zb_dtype dtype, void *data, size_t i, const float *x)
{
    if (dtype == ZB_FP32)
        zb_narrow_pack<count>(static_cast<float *>(data) + i, x);
    else if (dtype == ZB_FP16)
        zb_narrow_pack<count>(static_cast<zb_fp16 *>(data) + i, x);
    else
        zb_narrow_pack<count>(static_cast<zb_bf16 *>(data) + i, x);
}

/* The arrays of an optimizer; `param` and, beyond what STATES says, m and v may be NULL. */
struct zb_update_arrays {
    float *p, *m, *v;
    zb_dtype grad_dtype, param_dtype;
    const void *grad;
    void *param;
    float grad_scale;
};

/*
 * formula(i, g, &p, &m, &v): element i, g its gradient, already scaled. A formula of fewer than two STATES
 * leaves v, or m too, alone.
 */
template <typename Formula, int STATES> struct zb_update {
    enum { WIDTH = 4, UNROLL = STATES == 2 ? 1 : 2 };
    zb_update_arrays arrays;
    Formula formula;
    template <int N> struct values {
        zb_pack<float, N> p, m, v;
        zb_tensor_pack<N> grad;
    };
    template <int N> __device__ values<N> load(size_t i) const
    {
        values<N> l = {};
        l.p = zb_load_pack<N>(arrays.p + i);
        if (STATES > 0) l.m = zb_load_pack<N>(arrays.m + i);
        if (STATES > 1) l.v = zb_load_pack<N>(arrays.v + i);
        l.grad = zb_load_tensor<N>(arrays.grad_dtype, arrays.grad, i);
        return l;
    }
    template <int N> __device__ void finish(size_t i, values<N> l) const
    {
        float g[N], none = 0;
        zb_widen_tensor(arrays.grad_dtype, l.grad, g);
#pragma unroll
        for (int k = 0; k < N; k++)
            formula(i + k, g[k] * arrays.grad_scale, &l.p.at[k], STATES > 0 ? &l.m.at[k] : &none,
                    STATES > 1 ? &l.v.at[k] : &none);
        zb_store_pack(arrays.p + i, l.p);
        if (STATES > 0) zb_store_pack(arrays.m + i, l.m);
        if (STATES > 1) zb_store_pack(arrays.v + i, l.v);
        if (arrays.param != NULL) zb_store_tensor<N>(arrays.param_dtype, arrays.param, i, l.p.at);
    }
};

template <int STATES, typename Formula>
zb_status zb_run_update(zb_cuda_place place, cudaStream_t stream, const zb_update_arrays &a, Formula formula,
                        size_t numel)
{
    const zb_array arrays[] = { { a.p, sizeof(float) },
                                { a.grad, zb_dtype_bytes(a.grad_dtype) },
                                { STATES > 0 ? a.m : NULL, sizeof(float) },
                                { STATES > 1 ? a.v : NULL, sizeof(float) },
                                { a.param, a.param != NULL ? zb_dtype_bytes(a.param_dtype) : 1 } };
    return zb_each(place, stream, zb_update<Formula, STATES>{ a, formula }, numel, arrays);
}

static inline zb_status zb_check_optimizer_dtypes(const char *name, zb_dtype grad, const void *param,
                                                  zb_dtype param_dtype)
{
    if (!zb_is_tensor_dtype(grad))
        return zb_fail(ZB_UNSUPPORTED, "%s with gradients of %s; want fp32, fp16 or bf16", name,
                       zb_dtype_name(grad));
    if (param != NULL && !zb_is_tensor_dtype(param_dtype))
        return zb_fail(ZB_UNSUPPORTED, "%s with parameters of %s; want fp32, fp16 or bf16", name,
                       zb_dtype_name(param_dtype));
    return ZB_OK;
}

#endif
