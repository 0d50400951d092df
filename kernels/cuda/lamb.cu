/*
 * LAMB in two passes, as the trust ratio takes the norms of whole tensors: the first moves the moments and
 * sums squares, the second computes the update anew and applies it.
 */
#include "kernels/cuda/operations.h"
#include "kernels/cuda/optimizer.cuh"
#include "kernels/cuda/squares.cuh"

ZB_DEVICE float lamb_update(float p, float m, float v, float eps, float weight_decay, int eps_inside_sqrt)
{
    const float denominator = eps_inside_sqrt ? sqrtf(v + eps) : sqrtf(v) + eps;
    return m / denominator + weight_decay * p;
}

struct lamb_moments {
    enum { WIDTH = 4, UNROLL = 1, SUMS = 2 };
    zb_lamb_moments_args s;
    template <int N> struct values {
        zb_pack<float, N> p, m, v;
        zb_tensor_pack<N> grad;
    };
    template <int N> __device__ values<N> load(size_t i) const
    {
        values<N> l;
        l.p = zb_load_pack<N>(s.p + i);
        l.m = zb_load_pack<N>(s.m + i);
        l.v = zb_load_pack<N>(s.v + i);
        l.grad = zb_load_tensor<N>(s.grad_dtype, s.grad, i);
        return l;
    }
    /* squared: the parameters and their updates */
    template <int N> __device__ void finish(size_t i, values<N> l, float (*squared)[N]) const
    {
        float g[N];
        zb_widen_tensor(s.grad_dtype, l.grad, g);
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float scaled = g[k] * s.grad_scale;
            float *const m = &l.m.at[k], *const v = &l.v.at[k];
            *m = s.beta1 * *m + s.one_minus_beta1 * scaled;
            *v = s.beta2 * *v + (s.one_minus_beta2 * scaled) * scaled;
            squared[0][k] = l.p.at[k];
            squared[1][k] = lamb_update(l.p.at[k], *m, *v, s.eps, s.weight_decay, s.eps_inside_sqrt);
        }
        zb_store_pack(s.m + i, l.m);
        zb_store_pack(s.v + i, l.v);
    }
};

zb_status zb_cuda_op_lamb_moments(cudaStream_t stream, const zb_lamb_moments_args *args)
{
    ZB_TRY(zb_check_optimizer_dtypes("lamb_moments", args->grad_dtype, NULL, ZB_FP32));
    const zb_array arrays[] = { { args->p, sizeof(float) },
                                { args->m, sizeof(float) },
                                { args->v, sizeof(float) },
                                { args->grad, zb_dtype_bytes(args->grad_dtype) } };
    return zb_sum_squares_of(ZB_CUDA_PLACE("lamb_moments"), stream, lamb_moments{ *args }, args->numel,
                             args->accumulators, arrays);
}

struct lamb_apply {
    enum { WIDTH = 4, UNROLL = 1 };
    zb_lamb_apply_args s;
    template <int N> struct values {
        zb_pack<float, N> p, m, v;
    };
    template <int N> __device__ values<N> load(size_t i) const
    {
        return { zb_load_pack<N>(s.p + i), zb_load_pack<N>(s.m + i), zb_load_pack<N>(s.v + i) };
    }
    template <int N> __device__ void finish(size_t i, values<N> l) const
    {
#pragma unroll
        for (int k = 0; k < N; k++) {
            const float u = lamb_update(l.p.at[k], l.m.at[k], l.v.at[k], s.eps, s.weight_decay,
                                        s.eps_inside_sqrt);
            l.p.at[k] = l.p.at[k] - s.factor * u;
        }
        zb_store_pack(s.p + i, l.p);
        if (s.param != NULL) zb_store_tensor<N>(s.param_dtype, s.param, i, l.p.at);
    }
};

zb_status zb_cuda_op_lamb_apply(cudaStream_t stream, const zb_lamb_apply_args *args)
{
    ZB_TRY(zb_check_optimizer_dtypes("lamb_apply", ZB_FP32, args->param, args->param_dtype));
    const zb_array arrays[] = { { args->p, sizeof(float) },
                                { args->m, sizeof(float) },
                                { args->v, sizeof(float) },
                                { args->param,
                                  args->param != NULL ? zb_dtype_bytes(args->param_dtype) : 1 } };
    return zb_each(ZB_CUDA_PLACE("lamb_apply"), stream, lamb_apply{ *args }, args->numel, arrays);
}
