/*
 * Unscaling, clipping and the optimizers' formulas, element by element. Scalars are computed in fp64 and
 * rounded to fp32 once, but for those of DeepSpeed's C++ sources, which are fp32 throughout.
 */
#include "ref/oracle.h"

#include <math.h>

float zb_ref_grad_scale(double norm, double clip_norm, double loss_scale)
{
    double divisor = loss_scale;
    if (clip_norm > 0.0 && isfinite(norm)) {
        const double excess = (norm + 1e-6) / clip_norm;
        if (excess > 1.0) divisor = excess * loss_scale;
    }
    return (float)(1.0 / divisor);
}

/* Tensors of one step share the powers; other betas, or a step left out, make them anew. */
static void take_powers(zb_ref_optimizer *o, float beta1, float beta2)
{
    const int same = beta1 == o->power_of1 && beta2 == o->power_of2;
    if (same && o->step == o->power_step) return;
    if (same && o->step == o->power_step + 1) {
        o->power1 = o->power1 * beta1;
        o->power2 = o->power2 * beta2;
    } else {
        o->power1 = (float)pow((double)beta1, (double)o->step);
        o->power2 = (float)pow((double)beta2, (double)o->step);
    }
    o->power_of1 = beta1;
    o->power_of2 = beta2;
    o->power_step = o->step;
}

void zb_ref_optimizer_take(zb_ref_optimizer *o, const zb_optimizer_config *now)
{
    o->now = *now;
    take_powers(o, (float)now->beta1, (float)now->beta2);
}

void zb_ref_optimizer_begin(zb_ref_optimizer *o, const zb_optimizer_config *now)
{
    o->step++;
    zb_ref_optimizer_take(o, now);
}

/* --- Adam and AdamW --- */

/* 1 - beta^step of the beta that the formula uses: the one rounded to fp32. */
static float bias_correction(const zb_ref_optimizer *o, float beta)
{
    return o->now.bias_correction ? (float)(1.0 - pow((double)beta, (double)o->step)) : 1.0f;
}

static void update_adam(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p,
                        const float *grad, float *m, float *v)
{
    const zb_optimizer_config *now = &o->now;
    const float lr = (float)now->lr, beta1 = (float)now->beta1, beta2 = (float)now->beta2;
    const float one_minus_beta1 = 1.0f - beta1, one_minus_beta2 = 1.0f - beta2;
    const float eps = (float)now->eps, weight_decay = (float)now->weight_decay;
    const float correction1 = bias_correction(o, beta1);
    const float correction2 = bias_correction(o, beta2);
    const int decoupled = now->decay_mode == ZB_DECAY_DECOUPLED;

    for (size_t i = 0; i < numel; i++) {
        float g = grad[i] * grad_scale;
        if (!decoupled) g = g + weight_decay * p[i];
        m[i] = beta1 * m[i] + one_minus_beta1 * g;
        v[i] = beta2 * v[i] + (one_minus_beta2 * g) * g;
        float u = (m[i] / correction1) / (sqrtf(v[i] / correction2) + eps);
        if (decoupled) u = u + weight_decay * p[i];
        p[i] = p[i] - lr * u;
    }
}

/* torch.lerp: from the end that is nearer. */
static float lerp(float from, float to, float weight)
{
    if (weight < 0.5f) return fmaf(weight, to - from, from);
    return fmaf(weight - 1.0f, to - from, to);
}

/* torch.optim.Adam and AdamW on a CPU with AVX2, whose kernels fuse what fmaf stands for here. From 2.1 on
 * the first moment is a lerp. */
static void update_torch_adam(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p,
                              const float *grad, float *m, float *v)
{
    const zb_optimizer_config *now = &o->now;
    const int release = now->arithmetic == ZB_ARITHMETIC_TORCH_1 ? 1 : 2;
    const float beta1 = (float)now->beta1, beta2 = (float)now->beta2;
    const float one_minus_beta1 = (float)(1.0 - now->beta1), one_minus_beta2 = (float)(1.0 - now->beta2);
    const float eps = (float)now->eps, weight_decay = (float)now->weight_decay;
    const float keep = (float)(1.0 - now->lr * now->weight_decay);
    const float step_size = (float)(-(now->lr / (1.0 - pow(now->beta1, (double)o->step))));
    const float root_correction2 = (float)sqrt(1.0 - pow(now->beta2, (double)o->step));
    const int decoupled = now->decay_mode == ZB_DECAY_DECOUPLED;

    for (size_t i = 0; i < numel; i++) {
        float g = grad[i] * grad_scale;
        if (decoupled)
            p[i] = p[i] * keep;
        else if (weight_decay != 0.0f)
            g = fmaf(weight_decay, p[i], g);
        m[i] = release == 1 ? fmaf(one_minus_beta1, g, m[i] * beta1) : lerp(m[i], g, one_minus_beta1);
        v[i] = fmaf(one_minus_beta2 * g, g, v[i] * beta2);
        p[i] = p[i] + (step_size * m[i]) / (sqrtf(v[i]) / root_correction2 + eps);
    }
}

/* DeepSpeedCPUAdam: whole vectors by intrinsics, then a plain loop over the tensor's tail, which its compiler
 * contracts in its own way. Source: csrc/includes/cpu_adam.h, csrc/adam/cpu_adam_impl.cpp. */
static void update_cpu_adam(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p,
                            const float *grad, float *m, float *v)
{
    const zb_optimizer_config *now = &o->now;
    const float lr = (float)now->lr, beta1 = (float)now->beta1, beta2 = (float)now->beta2;
    const float one_minus_beta1 = 1.0f - beta1, one_minus_beta2 = 1.0f - beta2;
    const float eps = (float)now->eps, weight_decay = (float)now->weight_decay;
    const float correction1 = now->bias_correction ? 1.0f - o->power1 : 1.0f;
    const float root_correction2 = now->bias_correction ? 1.0f / sqrtf(1.0f - o->power2) : 1.0f;
    const float step_size = -lr / correction1, decay = -lr * weight_decay;
    const size_t width = now->vector_width > 1 ? (size_t)now->vector_width : 1, tail = numel - numel % width;
    const int decays = weight_decay > 0.0f, decoupled = now->decay_mode == ZB_DECAY_DECOUPLED;

    for (size_t i = 0; i < numel; i++) {
        float g = grad[i] * grad_scale;
        if (decays && !decoupled) g = fmaf(p[i], weight_decay, g);
        if (i < tail) {
            m[i] = fmaf(g, one_minus_beta1, m[i] * beta1);
            v[i] = fmaf(g * g, one_minus_beta2, v[i] * beta2);
        } else {
            m[i] = fmaf(m[i], beta1, g * one_minus_beta1);
            v[i] = fmaf(v[i], beta2, (g * g) * one_minus_beta2);
        }
        const float u = m[i] / fmaf(sqrtf(v[i]), root_correction2, eps);
        if (decays && decoupled) p[i] = fmaf(p[i], decay, p[i]);
        p[i] = fmaf(u, step_size, p[i]);
    }
}

/* --- SGD --- */

static void update_sgd(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p, const float *grad,
                       float *buf)
{
    const zb_optimizer_config *now = &o->now;
    const float lr = (float)now->lr, weight_decay = (float)now->weight_decay;
    const float momentum = (float)now->momentum, one_minus_dampening = (float)(1.0 - now->dampening);

    for (size_t i = 0; i < numel; i++) {
        float g = grad[i] * grad_scale;
        if (weight_decay != 0.0f) g = g + weight_decay * p[i];
        if (momentum != 0.0f) {
            buf[i] = o->step == 1 ? g : momentum * buf[i] + one_minus_dampening * g;
            g = now->nesterov ? g + momentum * buf[i] : buf[i];
        }
        p[i] = p[i] - lr * g;
    }
}

static void update_torch_sgd(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p,
                             const float *grad, float *buf)
{
    const zb_optimizer_config *now = &o->now;
    const float lr = (float)now->lr, weight_decay = (float)now->weight_decay;
    const float momentum = (float)now->momentum, one_minus_dampening = (float)(1.0 - now->dampening);

    for (size_t i = 0; i < numel; i++) {
        float g = grad[i] * grad_scale;
        if (weight_decay != 0.0f) g = fmaf(weight_decay, p[i], g);
        if (momentum != 0.0f) {
            buf[i] = o->step == 1 ? g : fmaf(one_minus_dampening, g, buf[i] * momentum);
            g = now->nesterov ? fmaf(momentum, buf[i], g) : buf[i];
        }
        p[i] = fmaf(-lr, g, p[i]);
    }
}

/* --- Adagrad --- */

static void update_adagrad(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p,
                           const float *grad, float *sum)
{
    const zb_optimizer_config *now = &o->now;
    const float lr = (float)(now->lr / (1.0 + (double)(o->step - 1) * now->lr_decay));
    const float eps = (float)now->eps, weight_decay = (float)now->weight_decay;

    for (size_t i = 0; i < numel; i++) {
        float g = grad[i] * grad_scale;
        switch (now->arithmetic) {
        case ZB_ARITHMETIC_DEEPSPEED_CPU: { /* the decay goes into the sum alone: csrc/adagrad/cpu_adagrad.cpp
                                             */
            const float h = weight_decay > 0.0f ? fmaf(p[i], weight_decay, g) : g;
            sum[i] = fmaf(h, h, sum[i]);
            p[i] = fmaf(g / (sqrtf(sum[i]) + eps), -lr, p[i]);
            break;
        }
        case ZB_ARITHMETIC_TORCH_1:
        case ZB_ARITHMETIC_TORCH_2:
            if (weight_decay != 0.0f) g = fmaf(weight_decay, p[i], g);
            sum[i] = fmaf(g, g, sum[i]);
            p[i] = p[i] + (-lr * g) / (sqrtf(sum[i]) + eps);
            break;
        default:
            if (weight_decay != 0.0f) g = g + weight_decay * p[i];
            sum[i] = sum[i] + g * g;
            p[i] = p[i] - lr * (g / (sqrtf(sum[i]) + eps));
        }
    }
}

/* --- Lion --- */

/* What DEEPSPEED_CPU subtracts: lr with the sign of c. Of a NaN the sign says nothing: the result is one. */
static float signed_rate(float lr, float c)
{
    return isnan(c) ? c : copysignf(lr, c);
}

static void update_lion(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p,
                        const float *grad, float *m)
{
    const zb_optimizer_config *now = &o->now;
    const float lr = (float)now->lr, weight_decay = (float)now->weight_decay;
    const float beta1 = (float)now->beta1, beta2 = (float)now->beta2, keep = 1.0f - lr * weight_decay;

    for (size_t i = 0; i < numel; i++) {
        const float g = grad[i] * grad_scale;
        const float c = beta1 * m[i] + (1.0f - beta1) * g;
        if (now->arithmetic ==
            ZB_ARITHMETIC_PLAIN) /* c = 0 counts as negative: csrc/lion/multi_tensor_lion.cu */
            p[i] = p[i] * keep + (c > 0.0f ? -lr : lr);
        else if (weight_decay > 0.0f)
            p[i] = fmaf(p[i], keep, -signed_rate(lr, c));
        else
            p[i] = p[i] - signed_rate(lr, c);
        m[i] = beta2 * m[i] + (1.0f - beta2) * g;
    }
}

/* --- LAMB: over a whole parameter, whose norms make the trust ratio --- */

/* csrc/lamb/fused_lamb_cuda_kernel.cu, in fp32. */
static float lamb_step_size(const zb_ref_optimizer *o)
{
    const float lr = (float)o->now.lr;
    const float correction1 = bias_correction(o, (float)o->now.beta1);
    const float correction2 = bias_correction(o, (float)o->now.beta2);
    return o->now.bias_correction ? lr * sqrtf(correction2) / correction1 : lr;
}

static float trust_ratio(const zb_optimizer_config *now, double weight_norm, double update_norm)
{
    if (weight_norm == 0.0 || update_norm == 0.0) return 1.0f;
    double ratio = weight_norm / update_norm;
    if (ratio > now->max_coeff) ratio = now->max_coeff;
    if (ratio < now->min_coeff) ratio = now->min_coeff;
    return (float)ratio;
}

static float lamb_update(const zb_optimizer_config *now, float p, float m, float v)
{
    const float eps = (float)now->eps;
    const float denominator = now->eps_inside_sqrt ? sqrtf(v + eps) : sqrtf(v) + eps;
    return m / denominator + (float)now->weight_decay * p;
}

static void update_lamb(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p,
                        const float *grad, float *m, float *v)
{
    const zb_optimizer_config *now = &o->now;
    const float beta1 = (float)now->beta1, beta2 = (float)now->beta2;
    const float one_minus_beta1 = 1.0f - beta1, one_minus_beta2 = 1.0f - beta2;
    zb_ref_square_sum weights = { 0 }, updates = { 0 };

    for (size_t i = 0; i < numel; i++) {
        const float g = grad[i] * grad_scale;
        m[i] = beta1 * m[i] + one_minus_beta1 * g;
        v[i] = beta2 * v[i] + (one_minus_beta2 * g) * g;
        zb_ref_square_sum_add(&weights, p[i]);
        zb_ref_square_sum_add(&updates, lamb_update(now, p[i], m[i], v[i]));
    }
    const float ratio = trust_ratio(now, zb_ref_square_sum_root(&weights), zb_ref_square_sum_root(&updates));
    const float factor = lamb_step_size(o) * ratio;
    for (size_t i = 0; i < numel; i++) p[i] = p[i] - factor * lamb_update(now, p[i], m[i], v[i]);
}

/* --- all of them --- */

void zb_ref_update(const zb_ref_optimizer *o, float grad_scale, size_t numel, float *p, const float *grad,
                   float *exp_avg, float *exp_avg_sq)
{
    const zb_optimizer_arithmetic arithmetic = o->now.arithmetic;
    switch (o->now.kind) {
    case ZB_OPTIMIZER_ADAM:
        if (arithmetic == ZB_ARITHMETIC_PLAIN)
            update_adam(o, grad_scale, numel, p, grad, exp_avg, exp_avg_sq);
        else if (arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU)
            update_cpu_adam(o, grad_scale, numel, p, grad, exp_avg, exp_avg_sq);
        else
            update_torch_adam(o, grad_scale, numel, p, grad, exp_avg, exp_avg_sq);
        return;
    case ZB_OPTIMIZER_SGD:
        if (arithmetic == ZB_ARITHMETIC_PLAIN)
            update_sgd(o, grad_scale, numel, p, grad, exp_avg);
        else
            update_torch_sgd(o, grad_scale, numel, p, grad, exp_avg);
        return;
    case ZB_OPTIMIZER_ADAGRAD:
        update_adagrad(o, grad_scale, numel, p, grad, exp_avg_sq);
        return;
    case ZB_OPTIMIZER_LION:
        update_lion(o, grad_scale, numel, p, grad, exp_avg);
        return;
    case ZB_OPTIMIZER_LAMB:
        update_lamb(o, grad_scale, numel, p, grad, exp_avg, exp_avg_sq);
        return;
    case ZB_OPTIMIZER_KIND_COUNT:
        return;
    }
}
