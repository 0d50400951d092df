/* Host side of the optimizers: scalars in double as DeepSpeed's Python computes them, rounded once to fp32.
 */
#include "engine/optimizer.h"

#include <math.h>
#include <string.h>

int zb_optimizer_state_count(const zb_optimizer_config *config)
{
    if (config->kind == ZB_OPTIMIZER_ADAM) return 2;
    return config->momentum != 0.0 ? 1 : 0;
}

zb_status zb_optimizer_create(const zb_optimizer_config *config, zb_device *device, size_t numel,
                              zb_optimizer *optimizer)
{
    *optimizer = (zb_optimizer){ .config = *config, .numel = numel };
    float **arrays[2] = { &optimizer->exp_avg, &optimizer->exp_avg_sq };
    for (int i = 0; i < zb_optimizer_state_count(config); i++) {
        void *array;
        ZB_TRY(zb_device_alloc(device, ZB_MEM_OPTIMIZER, numel * sizeof(float), &array));
        *arrays[i] = array;
    }
    return ZB_OK;
}

void zb_optimizer_destroy(zb_optimizer *optimizer, zb_device *device)
{
    zb_device_free(device, ZB_MEM_OPTIMIZER, optimizer->numel * sizeof(float), optimizer->exp_avg);
    zb_device_free(device, ZB_MEM_OPTIMIZER, optimizer->numel * sizeof(float), optimizer->exp_avg_sq);
    memset(optimizer, 0, sizeof *optimizer);
}

/* 1 - beta^step with the power in double of the fp32-rounded beta. Source: csrc/adam/multi_tensor_adam.cu. */
static float bias_correction(const zb_optimizer_config *config, float beta, int64_t step)
{
    return config->bias_correction ? (float)(1.0 - pow((double)beta, (double)step)) : 1.0f;
}

static zb_status adam_step(zb_optimizer *o, zb_stream *stream, const zb_shard *shard, float grad_scale,
                           double lr)
{
    float beta1 = (float)o->config.beta1, beta2 = (float)o->config.beta2;
    return zb_launch_adam(stream, &(zb_adam_args){
                                      .p = shard->master,
                                      .grad = shard->grad,
                                      .m = o->exp_avg,
                                      .v = o->exp_avg_sq,
                                      .numel = shard->numel,
                                      .grad_scale = grad_scale,
                                      .lr = (float)lr,
                                      .beta1 = beta1,
                                      .beta2 = beta2,
                                      .one_minus_beta1 = 1.0f - beta1,
                                      .one_minus_beta2 = 1.0f - beta2,
                                      .eps = (float)o->config.eps,
                                      .weight_decay = (float)o->config.weight_decay,
                                      .correction1 = bias_correction(&o->config, beta1, o->step_count),
                                      .correction2 = bias_correction(&o->config, beta2, o->step_count),
                                      .decoupled = o->config.decay_mode == ZB_DECAY_DECOUPLED,
                                  });
}

static zb_status sgd_step(zb_optimizer *o, zb_stream *stream, const zb_shard *shard, float grad_scale,
                          double lr)
{
    return zb_launch_sgd(stream, &(zb_sgd_args){
                                     .p = shard->master,
                                     .grad = shard->grad,
                                     .buf = o->exp_avg,
                                     .numel = shard->numel,
                                     .grad_scale = grad_scale,
                                     .lr = (float)lr,
                                     .weight_decay = (float)o->config.weight_decay,
                                     .momentum = (float)o->config.momentum,
                                     .one_minus_dampening = (float)(1.0 - o->config.dampening),
                                     .nesterov = o->config.nesterov,
                                     .first_step = o->step_count == 1,
                                 });
}

zb_status zb_optimizer_step(zb_optimizer *optimizer, zb_stream *stream, const zb_shard *shard,
                            float grad_scale, double lr)
{
    optimizer->step_count++;
    switch (optimizer->config.kind) {
    case ZB_OPTIMIZER_ADAM:
        return adam_step(optimizer, stream, shard, grad_scale, lr);
    case ZB_OPTIMIZER_SGD:
        return sgd_step(optimizer, stream, shard, grad_scale, lr);
    }
    return zb_fail(ZB_INTERNAL, "optimizer kind is %d", (int)optimizer->config.kind);
}
