/*
 * A recorded run of DeepSpeed 0.19.6, played by the oracle: the recorded gradients go through the plan of the
 * run's stage. Reading order: zb_replay_oracle_create, step, state.
 */
#include <zerobit/replay.h>

#include <math.h>
#include <string.h>
#include <zerobit/memory.h>

#include "ref/oracle.h"

typedef struct replay {
    const zb_replay_run *run; /* borrowed */
    zb_plan plan;
    zb_model model;       /* has parameters only, made from the run's sizes */
    zb_ref_shard *shards; /* [world_size] */
    zb_schedule schedule;
    zb_loss_scaler scaler;
    zb_ref_tensors master, exp_avg, exp_avg_sq;
    zb_ref_tensors gradient; /* of one micro-batch of one rank */
    zb_ref_sums sums;
    int64_t optimizer_steps; /* a hidden first one included */
    int64_t skipped;
    int has_norm; /* of a step that was not skipped */
    double norm;
    /* What `state` hands out. */
    zb_replay_piece *pieces; /* [param_count] */
    double lr;
} replay;

/* --- create, destroy --- */

/* What has not been seen in a recorded run. */
static zb_status check_known(const zb_config *config)
{
    const int stage = config->zero.stage;
    const int other_types = (config->grad_accum_dtype >= 0 &&
                             config->grad_accum_dtype != (int)config->dtype) ||
                            (config->comm_dtype >= 0 && config->comm_dtype != (int)config->dtype);
    if (config->semantics != ZB_SEMANTICS_DEEPSPEED_0_19_6)
        return zb_fail(ZB_INVALID_CONFIG, "%s: zerobit.semantics: is \"standard\", want \"deepspeed-0.19.6\"",
                       config->path);
    if (!config->optimizer_given) return ZB_OK; /* whoever derives the plan says so */
    if (config->optimizer.kind != ZB_OPTIMIZER_ADAM)
        return zb_fail(ZB_UNSUPPORTED, "%s: optimizer.type: is SGD, want Adam or AdamW: not supported yet",
                       config->path);
    if (stage == 0 && config->dtype == ZB_BF16)
        return zb_fail(ZB_UNSUPPORTED, "%s: bf16.enabled: is true, want false at stage 0: not supported yet",
                       config->path);
    if (stage == 0 && config->dtype == ZB_FP16 && config->optimizer.variant == ZB_ADAM_TORCH)
        return zb_fail(
            ZB_UNSUPPORTED,
            "%s: optimizer.params.torch_adam: is true, want false in fp16 at stage 0: not supported "
            "yet",
            config->path);
    if (other_types)
        return zb_fail(
            ZB_UNSUPPORTED,
            "%s: data_types.grad_accum_dtype, communication_data_type: want %s, which the model runs "
            "in: not supported yet",
            config->path, zb_dtype_name(config->dtype));
    return ZB_OK;
}

static zb_status create_model(const zb_replay_run *run, zb_model *model)
{
    model->params = zb_alloc_array((size_t)run->param_count, sizeof *model->params);
    if (model->params == NULL) return ZB_NO_MEMORY;
    model->param_count = run->param_count;
    model->param_numel = run->numel;
    for (int p = 0; p < run->param_count; p++)
        model->params[p] = (zb_param){ .numel = run->param_numel[p], .requires_grad = 1 };
    return ZB_OK;
}

static zb_status create_shards(replay *r)
{
    r->shards = zb_alloc_array((size_t)r->run->world_size, sizeof *r->shards);
    if (r->shards == NULL) return ZB_NO_MEMORY;
    for (int rank = 0; rank < r->run->world_size; rank++)
        ZB_TRY(zb_ref_shard_create(r->run, rank, &r->shards[rank]));
    return ZB_OK;
}

static void update(replay *r, const zb_optimizer_config *optimizer, double lr, float grad_scale)
{
    r->optimizer_steps++;
    zb_ref_update(optimizer, lr, r->optimizer_steps, grad_scale, r->master.numel, r->master.data,
                  r->sums.reduced.data, r->exp_avg.data, r->exp_avg_sq.data);
}

static zb_status fill(replay *r)
{
    const zb_replay_run *run = r->run;
    ZB_TRY(check_known(run->config));
    ZB_TRY(
        zb_plan_derive(run->config, run->config->zero.stage, run->config->dtype, run->world_size, &r->plan));
    ZB_TRY(zb_schedule_init(&r->schedule, &run->config->groups[0].schedule));
    ZB_TRY(zb_loss_scaler_init(&r->scaler, &r->plan.scaler));
    ZB_TRY(create_model(run, &r->model));
    ZB_TRY(create_shards(r));
    r->pieces = zb_alloc_array((size_t)run->param_count, sizeof *r->pieces);
    if (r->pieces == NULL) return ZB_NO_MEMORY;
    zb_ref_tensors *const tensors[] = { &r->master, &r->exp_avg, &r->exp_avg_sq, &r->gradient };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        ZB_TRY(zb_ref_tensors_create(&r->model, tensors[i]));
    ZB_TRY(zb_ref_sums_create(&r->model, run->world_size, &r->sums));

    for (size_t i = 0; i < run->numel; i++)
        r->master.data[i] = zb_ref_round(r->plan.param_dtype, run->init[i]);
    /* The gradients are still zero, and the schedule has not set its first rate yet. */
    if (r->plan.hidden_first_step) update(r, &r->plan.optimizer, r->plan.optimizer.lr, 1.0f);
    return ZB_OK;
}

static void destroy(void *self)
{
    replay *r = self;
    for (int rank = 0; r->shards != NULL && rank < r->run->world_size; rank++)
        zb_ref_shard_destroy(&r->shards[rank]);
    zb_free(r->shards);
    zb_free(r->pieces);
    zb_free(r->model.params);
    zb_ref_tensors_destroy(&r->master);
    zb_ref_tensors_destroy(&r->exp_avg);
    zb_ref_tensors_destroy(&r->exp_avg_sq);
    zb_ref_tensors_destroy(&r->gradient);
    zb_ref_sums_destroy(&r->sums);
    zb_free(r);
}

/* --- a step --- */

/*
 * The recorded model's loss is the sum over parameters of sum(p * x), in fp32; its gradient by p is x times
 * the gradient of the loss, rounded to the model's type.
 */
static void compute_gradients(replay *r, size_t step)
{
    const zb_plan *plan = &r->plan;
    const float scale = plan->loss_is_scaled ? (float)r->scaler.scale : 1.0f;
    const float seed = scale / (float)plan->accumulation_steps;
    for (int64_t micro = 0; micro < plan->accumulation_steps; micro++) {
        for (int rank = 0; rank < plan->world_size; rank++) {
            const float *x = r->run->grads[step][micro * plan->world_size + rank];
            for (size_t i = 0; i < r->gradient.numel; i++)
                r->gradient.data[i] = zb_ref_round(plan->param_dtype, seed * x[i]);
            zb_ref_sums_add(plan, micro, rank, &r->gradient, &r->sums);
        }
        zb_ref_sums_reduce(plan, micro, &r->sums);
    }
}

static int overflows(const replay *r)
{
    if (r->plan.overflow != ZB_OVERFLOW_SKIP) return 0;
    for (size_t i = 0; i < r->sums.reduced.numel; i++)
        if (!isfinite(r->sums.reduced.data[i])) return 1;
    return 0;
}

static void update_weights(replay *r, double scale_before)
{
    const double next = r->scaler.scale;
    const double norm = zb_ref_deepspeed_norm(&r->plan, &r->model, r->shards, &r->sums.reduced);
    r->norm = zb_ref_deepspeed_reported_norm(&r->plan, norm,
                                             r->plan.report_norm_by_next_scale ? next : scale_before);
    r->has_norm = r->plan.norm != ZB_NORM_PARAMETERS_MEAN; /* there DeepSpeed keeps it to itself */

    zb_optimizer_config optimizer = r->plan.optimizer;
    if (zb_schedule_has_momentum(&r->schedule)) {
        optimizer.beta1 = zb_schedule_beta1(&r->schedule);
        optimizer.beta2 = zb_schedule_beta2(&r->schedule);
    }
    const float grad_scale = zb_ref_deepspeed_grad_scale(&r->plan, norm,
                                                         r->plan.unscale_by_next_scale ? next : scale_before);
    update(r, &optimizer, zb_schedule_lr(&r->schedule), grad_scale);
}

/* ZB_LOSS_SCALE where DeepSpeed gives up. */
static zb_status step(void *self, size_t index)
{
    replay *r = self;
    compute_gradients(r, index);
    const double scale_before = r->scaler.scale;
    const int overflow = overflows(r);
    ZB_TRY(zb_loss_scaler_update(&r->scaler, overflow));
    if (overflow) {
        r->skipped++;
        return ZB_OK;
    }
    update_weights(r, scale_before);
    zb_schedule_step(&r->schedule);
    return ZB_OK;
}

/* --- what a rank holds --- */

static void state(void *self, int rank, zb_replay_state *out)
{
    replay *r = self;
    const zb_ref_shard *shard = &r->shards[rank];
    for (size_t i = 0; i < shard->piece_count; i++) {
        const zb_ref_piece *piece = &shard->pieces[i];
        r->pieces[i] = (zb_replay_piece){ .tensor = piece->tensor,
                                          .at = piece->at,
                                          .param = piece->param,
                                          .first = piece->first,
                                          .numel = piece->numel,
                                          .data = r->master.param[piece->param] + piece->first };
    }
    r->lr = zb_schedule_lr(&r->schedule);
    *out = (zb_replay_state){
        .tensor_numel = shard->tensor_numel,
        .tensor_count = shard->tensor_count,
        .pieces = r->pieces,
        .piece_count = shard->piece_count,
        .has_norm = r->has_norm,
        .norm = r->norm,
        /* Without a wrapper there is no loss scale to ask for. */
        .has_scale = r->run->config->zero.stage > 0 || r->run->config->dtype != ZB_FP32,
        .scale = r->scaler.scale,
        .lr = &r->lr,
        .lr_count = 1,
        .skipped = r->skipped,
    };
}

zb_status zb_replay_oracle_create(const zb_replay_run *run, zb_replay_player *player)
{
    replay *r = zb_alloc(sizeof *r);
    if (r == NULL) return ZB_NO_MEMORY;
    r->run = run;
    const zb_status status = fill(r);
    if (status != ZB_OK) {
        destroy(r);
        return status;
    }
    *player = (zb_replay_player){
        .name = "the oracle", .self = r, .step = step, .state = state, .destroy = destroy
    };
    return ZB_OK;
}
