/* Host side of the optimizers: scalars in double as DeepSpeed's Python computes them, rounded once to fp32.
 */
#include "engine/optimizer.h"

#include "engine/tensor.h"

#include <math.h>
#include <string.h>

static int moment_count(const zb_optimizer_config *config)
{
    if (config->kind == ZB_OPTIMIZER_ADAM) return 2;
    return config->momentum != 0.0 ? 1 : 0;
}

uint64_t zb_optimizer_bytes(const zb_plan *plan, uint64_t numel)
{
    int masters = plan->param_dtype != ZB_FP32;
    return sizeof(float) * numel * (uint64_t)(moment_count(&plan->optimizer) + masters);
}

static zb_status create_array(zb_optimizer *o, zb_device *device, float **array)
{
    void *memory;
    ZB_TRY(zb_device_alloc(device, ZB_MEM_OPTIMIZER, o->numel * sizeof(float), &memory));
    *array = memory;
    return ZB_OK;
}

zb_status zb_optimizer_create(const zb_plan *plan, zb_stream *stream, const zb_shard *shard,
                              zb_optimizer *optimizer)
{
    zb_optimizer *o = optimizer;
    *o = (zb_optimizer){ .config = plan->optimizer,
                         .param_dtype = plan->param_dtype,
                         .grad_dtype = plan->grad_dtype,
                         .numel = shard->numel };
    float **moments[2] = { &o->exp_avg, &o->exp_avg_sq };
    for (int i = 0; i < moment_count(&o->config); i++) ZB_TRY(create_array(o, stream->device, moments[i]));
    if (plan->param_dtype == ZB_FP32) return ZB_OK;
    ZB_TRY(create_array(o, stream->device, &o->master));
    o->owns_master = 1;
    /* From the rounded weights, not from the initial values: as DeepSpeed, which casts the model first. */
    for (int i = 0; i < shard->segment_count; i++) {
        const zb_segment *s = &shard->segments[i];
        ZB_TRY(zb_store(stream, o->master + s->shard_offset, ZB_FP32, s->param, plan->param_dtype, s->numel));
    }
    return ZB_OK;
}

void zb_optimizer_destroy(zb_optimizer *o, zb_device *device)
{
    size_t bytes = o->numel * sizeof(float);
    zb_device_free(device, ZB_MEM_OPTIMIZER, bytes, o->exp_avg);
    zb_device_free(device, ZB_MEM_OPTIMIZER, bytes, o->exp_avg_sq);
    if (o->owns_master) zb_device_free(device, ZB_MEM_OPTIMIZER, bytes, o->master);
    memset(o, 0, sizeof *o);
}

/* What the kernel writes beside the master; NULL where they are one. */
static void *rounded_copy(const zb_optimizer *o, const zb_segment *segment)
{
    return o->owns_master ? segment->param : NULL;
}

const float *zb_optimizer_master(const zb_optimizer *o, const void *param, size_t shard_offset)
{
    return o->owns_master ? o->master + shard_offset : param;
}

static float *master_of(const zb_optimizer *o, const zb_segment *segment)
{
    return o->owns_master ? o->master + segment->shard_offset : segment->param;
}

/* 1 - beta^step with the power in double of the fp32-rounded beta. Source: csrc/adam/multi_tensor_adam.cu. */
static float bias_correction(const zb_optimizer_config *config, float beta, int64_t step)
{
    return config->bias_correction ? (float)(1.0 - pow((double)beta, (double)step)) : 1.0f;
}

static zb_status adam_step(zb_optimizer *o, zb_stream *stream, const zb_segment *s, float grad_scale,
                           double lr)
{
    float beta1 = (float)o->config.beta1, beta2 = (float)o->config.beta2;
    return zb_launch_adam(stream, &(zb_adam_args){
                                      .p = master_of(o, s),
                                      .param_dtype = o->param_dtype,
                                      .param = rounded_copy(o, s),
                                      .grad_dtype = o->grad_dtype,
                                      .grad = s->grad,
                                      .m = o->exp_avg + s->shard_offset,
                                      .v = o->exp_avg_sq + s->shard_offset,
                                      .numel = s->numel,
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

static zb_status sgd_step(zb_optimizer *o, zb_stream *stream, const zb_segment *s, float grad_scale,
                          double lr)
{
    return zb_launch_sgd(stream, &(zb_sgd_args){
                                     .p = master_of(o, s),
                                     .param_dtype = o->param_dtype,
                                     .param = rounded_copy(o, s),
                                     .grad_dtype = o->grad_dtype,
                                     .grad = s->grad,
                                     .buf = o->exp_avg != NULL ? o->exp_avg + s->shard_offset : NULL,
                                     .numel = s->numel,
                                     .grad_scale = grad_scale,
                                     .lr = (float)lr,
                                     .weight_decay = (float)o->config.weight_decay,
                                     .momentum = (float)o->config.momentum,
                                     .one_minus_dampening = (float)(1.0 - o->config.dampening),
                                     .nesterov = o->config.nesterov,
                                     .first_step = o->step_count == 1,
                                 });
}

static zb_status step_run(zb_optimizer *o, zb_stream *stream, const zb_segment *s, float grad_scale,
                          double lr)
{
    switch (o->config.kind) {
    case ZB_OPTIMIZER_ADAM:
        return adam_step(o, stream, s, grad_scale, lr);
    case ZB_OPTIMIZER_SGD:
        return sgd_step(o, stream, s, grad_scale, lr);
    }
    return zb_fail(ZB_INTERNAL, "optimizer kind is %d", (int)o->config.kind);
}

zb_status zb_optimizer_step(zb_optimizer *optimizer, zb_stream *stream, const zb_shard *shard,
                            float grad_scale, double lr)
{
    optimizer->step_count++;
    for (int next = 0; next < shard->segment_count;) {
        const zb_segment run = zb_shard_run(shard, &next);
        if (run.numel > 0) ZB_TRY(step_run(optimizer, stream, &run, grad_scale, lr));
    }
    return ZB_OK;
}
