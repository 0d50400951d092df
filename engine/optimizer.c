/*
 * Host side of the optimizers: each step's scalars. DeepSpeed's Python and torch.optim compute them in
 * double, rounded to fp32 once; DeepSpeed's C++ in fp32.
 */
#include "engine/optimizer.h"

#include <math.h>
#include <string.h>
#include <zerobit/memory.h>

#include "core/plan_optimizer.h"
#include "engine/tensor.h"

enum { SEGMENT_WORDS = 2 * ZB_SUM_SQUARES_WORDS };

/* --- state --- */

static zb_optimizer_kind kind_of(const zb_plan *plan)
{
    return plan->groups[0].kind;
}

/* One array serves all groups: SGD's is there when any of them has momentum. */
static int has_exp_avg(const zb_plan *plan)
{
    int momentum = 0;
    for (int g = 0; g < plan->group_count; g++) momentum |= plan->groups[g].momentum != 0.0;
    return kind_of(plan) == ZB_OPTIMIZER_SGD ? momentum : kind_of(plan) != ZB_OPTIMIZER_ADAGRAD;
}

static int has_exp_avg_sq(const zb_plan *plan)
{
    return kind_of(plan) != ZB_OPTIMIZER_SGD && kind_of(plan) != ZB_OPTIMIZER_LION;
}

int zb_optimizer_takes_norms(const zb_plan *plan)
{
    return kind_of(plan) == ZB_OPTIMIZER_LAMB;
}

int zb_optimizer_adds_norms(const zb_plan *plan)
{
    return zb_optimizer_takes_norms(plan) && plan->tensors == ZB_TENSORS_PARAMETERS;
}

uint64_t zb_optimizer_bytes(const zb_plan *plan, uint64_t numel)
{
    int masters = plan->param_dtype != ZB_FP32;
    int arrays = has_exp_avg(plan) + has_exp_avg_sq(plan) + masters;
    return sizeof(float) * numel * (uint64_t)arrays;
}

uint64_t zb_optimizer_workspace_bytes(const zb_plan *plan, uint64_t segment_count)
{
    return zb_optimizer_takes_norms(plan) ? segment_count * SEGMENT_WORDS * sizeof(int64_t) : 0;
}

static zb_status create_array(zb_optimizer *o, zb_device *device, float **array)
{
    void *memory;
    ZB_TRY(zb_device_alloc(device, ZB_MEM_OPTIMIZER, o->numel * sizeof(float), &memory));
    *array = memory;
    return ZB_OK;
}

static zb_status create_sums(zb_optimizer *o, zb_device *device, size_t segment_count)
{
    void *memory;
    o->word_count = segment_count * SEGMENT_WORDS;
    ZB_TRY(zb_device_alloc(device, ZB_MEM_WORKSPACE, o->word_count * sizeof(int64_t), &memory));
    o->accumulators = memory;
    o->sums = zb_alloc_array(o->word_count, sizeof *o->sums);
    return o->sums != NULL ? ZB_OK : ZB_NO_MEMORY;
}

/* From the rounded weights, not from the initial values: as DeepSpeed, which casts the model first. */
static zb_status create_masters(zb_optimizer *o, zb_stream *stream, const zb_shard *shard)
{
    ZB_TRY(create_array(o, stream->device, &o->master));
    o->owns_master = 1;
    for (int i = 0; i < shard->segment_count; i++) {
        const zb_segment *s = &shard->segments[i];
        ZB_TRY(zb_store(stream, o->master + s->shard_offset, ZB_FP32, s->param, o->param_dtype, s->numel));
    }
    return ZB_OK;
}

zb_status zb_optimizer_create(const zb_plan *plan, zb_stream *stream, const zb_shard *shard,
                              zb_optimizer_exchange exchange, zb_optimizer *optimizer)
{
    zb_optimizer *o = optimizer;
    *o = (zb_optimizer){ .kind = kind_of(plan),
                         .param_dtype = plan->param_dtype,
                         .grad_dtype = plan->grad_dtype,
                         .numel = shard->numel,
                         .exchange = exchange };
    if (has_exp_avg(plan)) ZB_TRY(create_array(o, stream->device, &o->exp_avg));
    if (has_exp_avg_sq(plan)) ZB_TRY(create_array(o, stream->device, &o->exp_avg_sq));
    if (zb_optimizer_takes_norms(plan)) ZB_TRY(create_sums(o, stream->device, (size_t)shard->segment_count));
    return plan->param_dtype == ZB_FP32 ? ZB_OK : create_masters(o, stream, shard);
}

void zb_optimizer_destroy(zb_optimizer *o, zb_device *device)
{
    const size_t bytes = o->numel * sizeof(float);
    zb_device_free(device, ZB_MEM_OPTIMIZER, bytes, o->exp_avg);
    zb_device_free(device, ZB_MEM_OPTIMIZER, bytes, o->exp_avg_sq);
    if (o->owns_master) zb_device_free(device, ZB_MEM_OPTIMIZER, bytes, o->master);
    zb_device_free(device, ZB_MEM_WORKSPACE, o->word_count * sizeof(int64_t), o->accumulators);
    zb_free(o->sums);
    memset(o, 0, sizeof *o);
}

const float *zb_optimizer_master(const zb_optimizer *o, const void *param, size_t shard_offset)
{
    return o->owns_master ? o->master + shard_offset : param;
}

/* --- a step of one segment --- */

/* Its arrays, and the hyper-parameters that hold for it. */
typedef struct part {
    const zb_optimizer_config *now;
    size_t numel;
    float *p, *m, *v;
    const void *grad;
    void *param; /* what the kernel writes beside the master; NULL where they are one */
    float grad_scale;
} part;

static float *at(float *array, size_t offset)
{
    return array != NULL ? array + offset : NULL;
}

static part part_of(const zb_optimizer *o, const zb_segment *s, float grad_scale,
                    const zb_optimizer_config *now)
{
    return (part){ .now = &now[s->group],
                   .numel = s->numel,
                   .p = o->owns_master ? o->master + s->shard_offset : s->param,
                   .m = at(o->exp_avg, s->shard_offset),
                   .v = at(o->exp_avg_sq, s->shard_offset),
                   .grad = s->grad,
                   .param = o->owns_master ? s->param : NULL,
                   .grad_scale = grad_scale };
}

/* 1 - beta^step with the power in double of the fp32-rounded beta. Source: csrc/adam/multi_tensor_adam.cu. */
static float bias_correction(const zb_optimizer *o, const zb_optimizer_config *now, float beta)
{
    return now->bias_correction ? (float)(1.0 - pow((double)beta, (double)o->step_count)) : 1.0f;
}

static void set_plain_adam(const zb_optimizer *o, const zb_optimizer_config *now, zb_adam_args *args)
{
    args->one_minus_beta1 = 1.0f - args->beta1;
    args->one_minus_beta2 = 1.0f - args->beta2;
    args->correction1 = bias_correction(o, now, args->beta1);
    args->correction2 = bias_correction(o, now, args->beta2);
}

/* Python's numbers, each rounded where it meets a tensor. Source: torch/optim/adam.py, adamw.py. */
static void set_torch_adam(const zb_optimizer *o, const zb_optimizer_config *now, zb_adam_args *args)
{
    const double correction1 = 1.0 - pow(now->beta1, (double)o->step_count);
    const double correction2 = 1.0 - pow(now->beta2, (double)o->step_count);
    args->one_minus_beta1 = (float)(1.0 - now->beta1);
    args->one_minus_beta2 = (float)(1.0 - now->beta2);
    args->decay = (float)(1.0 - now->lr * now->weight_decay);
    args->step_size = (float)(-(now->lr / correction1));
    args->root_correction2 = (float)sqrt(correction2);
}

/* Multiplied up while the betas stay; anew when they change. Tensors of one step share the powers. Source:
 * csrc/includes/cpu_adam.h, IncrementStep. */
static void advance_powers(zb_beta_powers *powers, int64_t step, float beta1, float beta2)
{
    const int same = beta1 == powers->beta1 && beta2 == powers->beta2;
    if (same && step == powers->step) return;
    if (same && step == powers->step + 1) {
        powers->power1 *= beta1;
        powers->power2 *= beta2;
    } else {
        powers->power1 = (float)pow((double)beta1, (double)step);
        powers->power2 = (float)pow((double)beta2, (double)step);
    }
    powers->beta1 = beta1;
    powers->beta2 = beta2;
    powers->step = step;
}

static void set_cpu_adam(zb_optimizer *o, const zb_optimizer_config *now, zb_adam_args *args)
{
    advance_powers(&o->powers, o->step_count, args->beta1, args->beta2);
    const float correction1 = now->bias_correction ? 1.0f - o->powers.power1 : 1.0f;
    args->one_minus_beta1 = 1.0f - args->beta1;
    args->one_minus_beta2 = 1.0f - args->beta2;
    args->decay = -args->lr * args->weight_decay;
    args->step_size = -args->lr / correction1;
    args->root_correction2 = now->bias_correction ? 1.0f / sqrtf(1.0f - o->powers.power2) : 1.0f;
    args->vector_width = now->vector_width > 0 ? (size_t)now->vector_width : 1;
}

static zb_status step_adam(zb_optimizer *o, zb_stream *stream, const part *s)
{
    const zb_optimizer_config *now = s->now;
    zb_adam_args args = { .p = s->p,
                          .param_dtype = o->param_dtype,
                          .param = s->param,
                          .grad_dtype = o->grad_dtype,
                          .grad = s->grad,
                          .m = s->m,
                          .v = s->v,
                          .numel = s->numel,
                          .grad_scale = s->grad_scale,
                          .lr = (float)now->lr,
                          .beta1 = (float)now->beta1,
                          .beta2 = (float)now->beta2,
                          .eps = (float)now->eps,
                          .weight_decay = (float)now->weight_decay,
                          .decoupled = now->decay_mode == ZB_DECAY_DECOUPLED,
                          .arithmetic = now->arithmetic };
    if (now->arithmetic == ZB_ARITHMETIC_PLAIN)
        set_plain_adam(o, now, &args);
    else if (now->arithmetic == ZB_ARITHMETIC_DEEPSPEED_CPU)
        set_cpu_adam(o, now, &args);
    else
        set_torch_adam(o, now, &args);
    return zb_launch_adam(stream, &args);
}

static zb_status step_sgd(zb_optimizer *o, zb_stream *stream, const part *s)
{
    const zb_optimizer_config *now = s->now;
    return zb_launch_sgd(stream, &(zb_sgd_args){ .p = s->p,
                                                 .param_dtype = o->param_dtype,
                                                 .param = s->param,
                                                 .grad_dtype = o->grad_dtype,
                                                 .grad = s->grad,
                                                 .buf = s->m,
                                                 .numel = s->numel,
                                                 .grad_scale = s->grad_scale,
                                                 .lr = (float)now->lr,
                                                 .weight_decay = (float)now->weight_decay,
                                                 .momentum = (float)now->momentum,
                                                 .one_minus_dampening = (float)(1.0 - now->dampening),
                                                 .nesterov = now->nesterov,
                                                 .first_step = o->step_count == 1,
                                                 .arithmetic = now->arithmetic });
}

static zb_status step_adagrad(zb_optimizer *o, zb_stream *stream, const part *s)
{
    const zb_optimizer_config *now = s->now;
    const double rate = now->lr / (1.0 + (double)(o->step_count - 1) * now->lr_decay);
    return zb_launch_adagrad(stream, &(zb_adagrad_args){ .p = s->p,
                                                         .param_dtype = o->param_dtype,
                                                         .param = s->param,
                                                         .grad_dtype = o->grad_dtype,
                                                         .grad = s->grad,
                                                         .sum = s->v,
                                                         .numel = s->numel,
                                                         .grad_scale = s->grad_scale,
                                                         .lr = (float)rate,
                                                         .weight_decay = (float)now->weight_decay,
                                                         .eps = (float)now->eps,
                                                         .arithmetic = now->arithmetic });
}

static zb_status step_lion(zb_optimizer *o, zb_stream *stream, const part *s)
{
    const zb_optimizer_config *now = s->now;
    const float lr = (float)now->lr, weight_decay = (float)now->weight_decay;
    const float beta1 = (float)now->beta1, beta2 = (float)now->beta2;
    return zb_launch_lion(stream, &(zb_lion_args){ .p = s->p,
                                                   .param_dtype = o->param_dtype,
                                                   .param = s->param,
                                                   .grad_dtype = o->grad_dtype,
                                                   .grad = s->grad,
                                                   .m = s->m,
                                                   .numel = s->numel,
                                                   .grad_scale = s->grad_scale,
                                                   .lr = lr,
                                                   .weight_decay = weight_decay,
                                                   .decay = 1.0f - lr * weight_decay,
                                                   .beta1 = beta1,
                                                   .beta2 = beta2,
                                                   .one_minus_beta1 = 1.0f - beta1,
                                                   .one_minus_beta2 = 1.0f - beta2,
                                                   .arithmetic = now->arithmetic });
}

/* --- LAMB: all segments at once, so that one exchange serves them --- */

static zb_status lamb_moments(zb_optimizer *o, zb_stream *stream, const part *s, int64_t *accumulators)
{
    const zb_optimizer_config *now = s->now;
    const float beta1 = (float)now->beta1, beta2 = (float)now->beta2;
    return zb_launch_lamb_moments(stream, &(zb_lamb_moments_args){ .p = s->p,
                                                                   .grad_dtype = o->grad_dtype,
                                                                   .grad = s->grad,
                                                                   .m = s->m,
                                                                   .v = s->v,
                                                                   .numel = s->numel,
                                                                   .grad_scale = s->grad_scale,
                                                                   .beta1 = beta1,
                                                                   .beta2 = beta2,
                                                                   .one_minus_beta1 = 1.0f - beta1,
                                                                   .one_minus_beta2 = 1.0f - beta2,
                                                                   .eps = (float)now->eps,
                                                                   .weight_decay = (float)now->weight_decay,
                                                                   .eps_inside_sqrt = now->eps_inside_sqrt,
                                                                   .accumulators = accumulators });
}

/* Source: csrc/lamb/fused_lamb_cuda_kernel.cu; the norms and their ratio are in double here. */
static float trust_ratio(const zb_optimizer_config *now, const int64_t *sums)
{
    const double weights = zb_sum_squares_norm(sums);
    const double updates = zb_sum_squares_norm(sums + ZB_SUM_SQUARES_WORDS);
    if (weights == 0.0 || updates == 0.0) return 1.0f;
    double ratio = weights / updates;
    if (ratio > now->max_coeff) ratio = now->max_coeff;
    if (ratio < now->min_coeff) ratio = now->min_coeff;
    return (float)ratio;
}

static zb_status lamb_apply(zb_optimizer *o, zb_stream *stream, const part *s, const int64_t *sums)
{
    const zb_optimizer_config *now = s->now;
    float step_size = (float)now->lr;
    if (now->bias_correction)
        step_size = step_size * sqrtf(bias_correction(o, now, (float)now->beta2)) /
                    bias_correction(o, now, (float)now->beta1);
    return zb_launch_lamb_apply(stream, &(zb_lamb_apply_args){ .p = s->p,
                                                               .m = s->m,
                                                               .v = s->v,
                                                               .param_dtype = o->param_dtype,
                                                               .param = s->param,
                                                               .numel = s->numel,
                                                               .factor = step_size * trust_ratio(now, sums),
                                                               .eps = (float)now->eps,
                                                               .weight_decay = (float)now->weight_decay,
                                                               .eps_inside_sqrt = now->eps_inside_sqrt });
}

static zb_status step_lamb(zb_optimizer *o, zb_stream *stream, const zb_shard *shard, float grad_scale,
                           const zb_optimizer_config *now)
{
    const size_t words = o->word_count;
    ZB_TRY(zb_launch_fill_bytes(
        stream, &(zb_fill_bytes_args){ .data = o->accumulators, .bytes = words * sizeof(int64_t) }));
    for (int i = 0; i < shard->segment_count; i++) {
        const part s = part_of(o, &shard->segments[i], grad_scale, now);
        ZB_TRY(lamb_moments(o, stream, &s, o->accumulators + i * SEGMENT_WORDS));
    }
    if (o->exchange.sum != NULL) ZB_TRY(o->exchange.sum(o->exchange.user, o->accumulators, words));
    ZB_TRY(zb_copy_out(stream, o->sums, o->accumulators, words * sizeof(int64_t)));
    ZB_TRY(zb_stream_wait_idle(stream));
    for (int i = 0; i < shard->segment_count; i++) {
        const part s = part_of(o, &shard->segments[i], grad_scale, now);
        ZB_TRY(lamb_apply(o, stream, &s, o->sums + i * SEGMENT_WORDS));
    }
    return ZB_OK;
}

/* --- a step --- */

static zb_status step_segment(zb_optimizer *o, zb_stream *stream, const part *s)
{
    switch (o->kind) {
    case ZB_OPTIMIZER_ADAM:
        return step_adam(o, stream, s);
    case ZB_OPTIMIZER_SGD:
        return step_sgd(o, stream, s);
    case ZB_OPTIMIZER_ADAGRAD:
        return step_adagrad(o, stream, s);
    case ZB_OPTIMIZER_LION:
        return step_lion(o, stream, s);
    case ZB_OPTIMIZER_LAMB: /* has its own way through the segments */
    case ZB_OPTIMIZER_KIND_COUNT:
        break;
    }
    return zb_fail(ZB_INTERNAL, "optimizer kind is %d", (int)o->kind);
}

zb_status zb_optimizer_step(zb_optimizer *o, zb_stream *stream, const zb_shard *shard, float grad_scale,
                            const zb_optimizer_config *now)
{
    o->step_count++;
    if (o->kind == ZB_OPTIMIZER_LAMB) return step_lamb(o, stream, shard, grad_scale, now);
    for (int next = 0; next < shard->segment_count;) {
        const zb_segment run = zb_optimizer_has_tails(now) ? shard->segments[next++]
                                                           : zb_shard_run(shard, &next);
        const part s = part_of(o, &run, grad_scale, now);
        if (s.numel > 0) ZB_TRY(step_segment(o, stream, &s));
    }
    return ZB_OK;
}
