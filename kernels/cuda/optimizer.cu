/* Optimizers. The formulas are those of <zerobit/kernels.h>, term by term. */
#include "kernels/cuda/operations.h"
#include "kernels/cuda/optimizer.cuh"

static zb_status check_arithmetic(const char *name, zb_optimizer_kind kind,
                                  zb_optimizer_arithmetic arithmetic)
{
    if (zb_optimizer_has_arithmetic(kind, arithmetic)) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s in arithmetic %d, which it does not have", name, (int)arithmetic);
}

template <typename Args>
static zb_update_arrays arrays_of(const Args *args, float *first_state, float *second_state)
{
    return { args->p,           first_state, second_state, args->grad_dtype,
             args->param_dtype, args->grad,  args->param,  args->grad_scale };
}

/* --- adam --- */

struct adam_plain {
    zb_adam_args s;
    __device__ void operator()(size_t, float g, float *p, float *m, float *v) const
    {
        if (!s.decoupled) g = g + s.weight_decay * *p;
        *m = s.beta1 * *m + s.one_minus_beta1 * g;
        *v = s.beta2 * *v + (s.one_minus_beta2 * g) * g;
        float u = (*m / s.correction1) / (sqrtf(*v / s.correction2) + s.eps);
        if (s.decoupled) u = u + s.weight_decay * *p;
        *p = *p - s.lr * u;
    }
};

/* PyTorch's lerp takes the end that is nearer, so that it is exact at both. */
ZB_DEVICE float lerp_towards(float from, float to, float weight)
{
    return weight < 0.5f ? fmaf(weight, to - from, from) : fmaf(weight - 1.0f, to - from, to);
}

struct adam_torch {
    zb_adam_args s;
    __device__ void operator()(size_t, float g, float *p, float *m, float *v) const
    {
        if (s.weight_decay != 0) {
            if (s.decoupled)
                *p = *p * s.decay;
            else
                g = fmaf(*p, s.weight_decay, g);
        }
        *m = s.arithmetic == ZB_ARITHMETIC_TORCH_1 ? fmaf(g, s.one_minus_beta1, *m * s.beta1)
                                                   : lerp_towards(*m, g, s.one_minus_beta1);
        *v = fmaf(s.one_minus_beta2 * g, g, *v * s.beta2);
        const float denominator = sqrtf(*v) / s.root_correction2 + s.eps;
        *p = *p + s.step_size * *m / denominator;
    }
};

/* The original treats whole vectors and the rest, from `tail` on, differently. */
struct adam_deepspeed_cpu {
    zb_adam_args s;
    size_t tail;
    __device__ void operator()(size_t i, float g, float *p, float *m, float *v) const
    {
        if (s.weight_decay > 0 && !s.decoupled) g = fmaf(*p, s.weight_decay, g);
        if (i < tail) {
            *m = fmaf(g, s.one_minus_beta1, *m * s.beta1);
            *v = fmaf(g * g, s.one_minus_beta2, *v * s.beta2);
        } else {
            *m = fmaf(*m, s.beta1, g * s.one_minus_beta1);
            *v = fmaf(*v, s.beta2, (g * g) * s.one_minus_beta2);
        }
        const float u = *m / fmaf(sqrtf(*v), s.root_correction2, s.eps);
        if (s.weight_decay > 0 && s.decoupled) *p = fmaf(*p, s.decay, *p);
        *p = fmaf(u, s.step_size, *p);
    }
};

zb_status zb_cuda_op_adam(cudaStream_t stream, const zb_adam_args *args)
{
    ZB_TRY(zb_check_optimizer_dtypes("adam", args->grad_dtype, args->param, args->param_dtype));
    ZB_TRY(check_arithmetic("adam", ZB_OPTIMIZER_ADAM, args->arithmetic));
    const zb_update_arrays arrays = arrays_of(args, args->m, args->v);
    const zb_cuda_place place = ZB_CUDA_PLACE("adam");
    if (args->arithmetic == ZB_ARITHMETIC_PLAIN)
        return zb_run_update<2>(place, stream, arrays, adam_plain{ *args }, args->numel);
    if (args->arithmetic != ZB_ARITHMETIC_DEEPSPEED_CPU)
        return zb_run_update<2>(place, stream, arrays, adam_torch{ *args }, args->numel);
    if (args->vector_width == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "adam as on a CPU with a vector width of 0; want at least 1");
    const size_t tail = args->numel - args->numel % args->vector_width;
    return zb_run_update<2>(place, stream, arrays, adam_deepspeed_cpu{ *args, tail }, args->numel);
}

/* --- sgd --- */

/* a * b + c, in one rounding or two. */
template <bool fused> ZB_DEVICE float multiply_add(float a, float b, float c)
{
    return fused ? fmaf(a, b, c) : a * b + c;
}

template <bool fused> struct sgd {
    zb_sgd_args s;
    __device__ void operator()(size_t, float g, float *p, float *buf, float *) const
    {
        if (s.weight_decay != 0) g = multiply_add<fused>(*p, s.weight_decay, g);
        if (s.momentum != 0) {
            *buf = s.first_step ? g : multiply_add<fused>(g, s.one_minus_dampening, *buf * s.momentum);
            g = s.nesterov ? multiply_add<fused>(*buf, s.momentum, g) : *buf;
        }
        *p = multiply_add<fused>(g, -s.lr, *p); /* p - lr * g has the same two roundings */
    }
};

template <bool fused> static zb_status run_sgd(cudaStream_t stream, const zb_sgd_args *args)
{
    const zb_update_arrays arrays = arrays_of(args, args->buf, NULL);
    if (args->momentum != 0)
        return zb_run_update<1>(ZB_CUDA_PLACE("sgd"), stream, arrays, sgd<fused>{ *args }, args->numel);
    return zb_run_update<0>(ZB_CUDA_PLACE("sgd"), stream, arrays, sgd<fused>{ *args }, args->numel);
}

zb_status zb_cuda_op_sgd(cudaStream_t stream, const zb_sgd_args *args)
{
    ZB_TRY(zb_check_optimizer_dtypes("sgd", args->grad_dtype, args->param, args->param_dtype));
    ZB_TRY(check_arithmetic("sgd", ZB_OPTIMIZER_SGD, args->arithmetic));
    return args->arithmetic == ZB_ARITHMETIC_PLAIN ? run_sgd<false>(stream, args)
                                                   : run_sgd<true>(stream, args);
}

/* --- adagrad --- */

struct adagrad_plain {
    zb_adagrad_args s;
    __device__ void operator()(size_t, float g, float *p, float *sum, float *) const
    {
        if (s.weight_decay != 0) g = g + s.weight_decay * *p;
        *sum = *sum + g * g;
        *p = *p - s.lr * (g / (sqrtf(*sum) + s.eps));
    }
};

struct adagrad_torch {
    zb_adagrad_args s;
    __device__ void operator()(size_t, float g, float *p, float *sum, float *) const
    {
        if (s.weight_decay != 0) g = fmaf(*p, s.weight_decay, g);
        *sum = fmaf(g, g, *sum);
        *p = *p + (-s.lr * g) / (sqrtf(*sum) + s.eps);
    }
};

struct adagrad_deepspeed_cpu {
    zb_adagrad_args s;
    __device__ void operator()(size_t, float g, float *p, float *sum, float *) const
    {
        const float h = s.weight_decay > 0 ? fmaf(*p, s.weight_decay, g) : g;
        *sum = fmaf(h, h, *sum);
        *p = fmaf(g / (sqrtf(*sum) + s.eps), -s.lr, *p);
    }
};

zb_status zb_cuda_op_adagrad(cudaStream_t stream, const zb_adagrad_args *args)
{
    ZB_TRY(zb_check_optimizer_dtypes("adagrad", args->grad_dtype, args->param, args->param_dtype));
    ZB_TRY(check_arithmetic("adagrad", ZB_OPTIMIZER_ADAGRAD, args->arithmetic));
    const zb_update_arrays arrays = arrays_of(args, args->sum, NULL);
    const zb_cuda_place place = ZB_CUDA_PLACE("adagrad");
    if (args->arithmetic == ZB_ARITHMETIC_PLAIN)
        return zb_run_update<1>(place, stream, arrays, adagrad_plain{ *args }, args->numel);
    if (args->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU)
        return zb_run_update<1>(place, stream, arrays, adagrad_deepspeed_cpu{ *args }, args->numel);
    return zb_run_update<1>(place, stream, arrays, adagrad_torch{ *args }, args->numel);
}

/* --- lion --- */

struct lion_plain {
    zb_lion_args s;
    __device__ void operator()(size_t, float g, float *p, float *m, float *) const
    {
        const float c = s.beta1 * *m + s.one_minus_beta1 * g;
        *p = *p * s.decay + (c > 0 ? -s.lr : s.lr);
        *m = s.beta2 * *m + s.one_minus_beta2 * g;
    }
};

struct lion_deepspeed_cpu {
    zb_lion_args s;
    __device__ void operator()(size_t, float g, float *p, float *m, float *) const
    {
        const float c = s.beta1 * *m + s.one_minus_beta1 * g;
        const float u = c != c ? c : copysignf(s.lr, c);
        *p = s.weight_decay > 0 ? fmaf(*p, s.decay, -u) : *p - u;
        *m = s.beta2 * *m + s.one_minus_beta2 * g;
    }
};

zb_status zb_cuda_op_lion(cudaStream_t stream, const zb_lion_args *args)
{
    ZB_TRY(zb_check_optimizer_dtypes("lion", args->grad_dtype, args->param, args->param_dtype));
    ZB_TRY(check_arithmetic("lion", ZB_OPTIMIZER_LION, args->arithmetic));
    const zb_update_arrays arrays = arrays_of(args, args->m, NULL);
    if (args->arithmetic == ZB_ARITHMETIC_PLAIN)
        return zb_run_update<1>(ZB_CUDA_PLACE("lion"), stream, arrays, lion_plain{ *args }, args->numel);
    return zb_run_update<1>(ZB_CUDA_PLACE("lion"), stream, arrays, lion_deepspeed_cpu{ *args }, args->numel);
}
