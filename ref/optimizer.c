/* Unscaling, clipping and the optimizers' formulas, element by element. Scalars are computed in fp64 and
 * rounded to fp32 once. */
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

/* 1 - beta^step of the beta that the formula uses: the one rounded to fp32. */
static float bias_correction(const zb_optimizer_config *config, float beta, int64_t step)
{
    return config->bias_correction ? (float)(1.0 - pow((double)beta, (double)step)) : 1.0f;
}

static void update_adam(const zb_optimizer_config *config, float lr, int64_t step, float grad_scale,
                        size_t numel, float *p, const float *grad, float *m, float *v)
{
    const float beta1 = (float)config->beta1, beta2 = (float)config->beta2;
    const float one_minus_beta1 = 1.0f - beta1, one_minus_beta2 = 1.0f - beta2;
    const float eps = (float)config->eps, weight_decay = (float)config->weight_decay;
    const float correction1 = bias_correction(config, beta1, step);
    const float correction2 = bias_correction(config, beta2, step);
    const int decoupled = config->decay_mode == ZB_DECAY_DECOUPLED;

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

/* torch.optim.Adam and AdamW of PyTorch 1.13 on a CPU with AVX2, whose kernels fuse what fmaf stands for
 * here. */
static void update_torch_adam(const zb_optimizer_config *config, double lr, int64_t step, float grad_scale,
                              size_t numel, float *p, const float *grad, float *m, float *v)
{
    const float beta1 = (float)config->beta1, beta2 = (float)config->beta2;
    const float one_minus_beta1 = (float)(1.0 - config->beta1),
                one_minus_beta2 = (float)(1.0 - config->beta2);
    const float eps = (float)config->eps, weight_decay = (float)config->weight_decay;
    const float keep = (float)(1.0 - lr * config->weight_decay);
    const float step_size = (float)(-lr / (1.0 - pow(config->beta1, (double)step)));
    const float root_correction2 = (float)sqrt(1.0 - pow(config->beta2, (double)step));
    const int decoupled = config->decay_mode == ZB_DECAY_DECOUPLED;

    for (size_t i = 0; i < numel; i++) {
        float g = grad[i] * grad_scale;
        if (decoupled)
            p[i] = p[i] * keep;
        else if (weight_decay != 0.0f)
            g = fmaf(weight_decay, p[i], g);
        m[i] = fmaf(one_minus_beta1, g, m[i] * beta1);
        v[i] = fmaf(one_minus_beta2 * g, g, v[i] * beta2);
        p[i] = p[i] + (step_size * m[i]) / (sqrtf(v[i]) / root_correction2 + eps);
    }
}

static void update_sgd(const zb_optimizer_config *config, float lr, int64_t step, float grad_scale,
                       size_t numel, float *p, const float *grad, float *buf)
{
    const float weight_decay = (float)config->weight_decay, momentum = (float)config->momentum;
    const float one_minus_dampening = (float)(1.0 - config->dampening);

    for (size_t i = 0; i < numel; i++) {
        float g = grad[i] * grad_scale;
        if (weight_decay != 0.0f) g = g + weight_decay * p[i];
        if (momentum != 0.0f) {
            buf[i] = step == 1 ? g : momentum * buf[i] + one_minus_dampening * g;
            g = config->nesterov ? g + momentum * buf[i] : buf[i];
        }
        p[i] = p[i] - lr * g;
    }
}

void zb_ref_update(const zb_optimizer_config *config, double lr, int64_t step, float grad_scale, size_t numel,
                   float *p, const float *grad, float *exp_avg, float *exp_avg_sq)
{
    if (config->kind == ZB_OPTIMIZER_ADAM && config->variant == ZB_ADAM_TORCH)
        update_torch_adam(config, lr, step, grad_scale, numel, p, grad, exp_avg, exp_avg_sq);
    else if (config->kind == ZB_OPTIMIZER_ADAM)
        update_adam(config, (float)lr, step, grad_scale, numel, p, grad, exp_avg, exp_avg_sq);
    else
        update_sgd(config, (float)lr, step, grad_scale, numel, p, grad, exp_avg);
}
