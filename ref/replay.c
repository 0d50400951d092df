/*
 * A recorded run of DeepSpeed 0.19.6, replayed: the recorded gradients go through the plan of the run's
 * stage, and after every step each rank's fp32 weights, norm, loss scale, learning rate and skipped steps are
 * compared with what was recorded, to the bit. Reading order: zb_replay_by_oracle, step, compare_entry.
 */
#include <zerobit/replay.h>

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
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
} replay;

/* --- create, destroy --- */

/* The optimizer class that the plan is of. */
static const char *wrapper_of(const zb_config *config)
{
    if (config->zero.stage == 3) return "DeepSpeedZeroOptimizer_Stage3";
    if (config->zero.stage > 0) return "DeepSpeedZeroOptimizer";
    if (config->dtype != ZB_FP32) return "FP16_Optimizer";
    if (config->optimizer.variant == ZB_ADAM_FUSED) return "FusedAdam";
    return config->optimizer.decay_mode == ZB_DECAY_DECOUPLED ? "AdamW" : "Adam";
}

static zb_status check_wrappers(const zb_replay_run *run)
{
    const char *want = wrapper_of(run->config);
    for (int r = 0; r < run->world_size; r++)
        if (strcmp(run->ranks[r].wrapper, want) != 0)
            return zb_fail(ZB_UNSUPPORTED,
                           "run %s: rank %d: wrapper is %s, want %s, whose arithmetic this config means",
                           run->name, r, run->ranks[r].wrapper, want);
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
    ZB_TRY(check_wrappers(run));
    ZB_TRY(zb_plan_derive_deepspeed(run->config, run->world_size, &r->plan));
    ZB_TRY(zb_schedule_init(&r->schedule, &run->config->schedule));
    ZB_TRY(zb_loss_scaler_init(&r->scaler, &r->plan.scaler));
    ZB_TRY(create_model(run, &r->model));
    ZB_TRY(create_shards(r));
    zb_ref_tensors *const tensors[] = { &r->master, &r->exp_avg, &r->exp_avg_sq, &r->gradient };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        ZB_TRY(zb_ref_tensors_create(&r->model, tensors[i]));
    ZB_TRY(zb_ref_sums_create(&r->model, run->world_size, &r->sums));

    for (size_t i = 0; i < run->numel; i++)
        r->master.data[i] = zb_ref_round(r->plan.param_dtype, run->init[i]);
    /* The gradients are still zero, and the schedule has not set its first rate yet. */
    if (r->plan.quirks.hidden_first_step) update(r, &r->plan.optimizer, r->plan.optimizer.lr, 1.0f);
    return ZB_OK;
}

static void destroy(replay *r)
{
    for (int rank = 0; r->shards != NULL && rank < r->run->world_size; rank++)
        zb_ref_shard_destroy(&r->shards[rank]);
    zb_free(r->shards);
    zb_free(r->model.params);
    zb_ref_tensors_destroy(&r->master);
    zb_ref_tensors_destroy(&r->exp_avg);
    zb_ref_tensors_destroy(&r->exp_avg_sq);
    zb_ref_tensors_destroy(&r->gradient);
    zb_ref_sums_destroy(&r->sums);
}

/* --- a step --- */

/*
 * The recorded model's loss is the sum over parameters of sum(p * x), in fp32; its gradient by p is x times
 * the gradient of the loss, rounded to the model's type.
 */
static void compute_gradients(replay *r, size_t step)
{
    const zb_plan *plan = &r->plan;
    const float scale = r->plan.quirks.loss_unscaled ? 1.0f : (float)r->scaler.scale;
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
    if (!r->plan.skip_on_overflow) return 0;
    for (size_t i = 0; i < r->sums.reduced.numel; i++)
        if (!isfinite(r->sums.reduced.data[i])) return 1;
    return 0;
}

static void update_weights(replay *r, double scale_before)
{
    const double next = r->scaler.scale;
    const double norm = zb_ref_deepspeed_norm(&r->plan, &r->model, r->shards, &r->sums.reduced);
    r->norm = zb_ref_deepspeed_reported_norm(&r->plan, norm,
                                             r->plan.quirks.norm_by_next_scale ? next : scale_before);
    r->has_norm = r->plan.norm != ZB_NORM_PARAMETERS_FP32; /* there DeepSpeed keeps it to itself */

    zb_optimizer_config optimizer = r->plan.optimizer;
    if (zb_schedule_has_momentum(&r->schedule)) {
        optimizer.beta1 = zb_schedule_beta1(&r->schedule);
        optimizer.beta2 = zb_schedule_beta2(&r->schedule);
    }
    const float grad_scale = zb_ref_deepspeed_grad_scale(
        &r->plan, norm, r->plan.quirks.unscaled_by_next_scale ? next : scale_before);
    update(r, &optimizer, zb_schedule_lr(&r->schedule), grad_scale);
}

/* ZB_LOSS_SCALE where DeepSpeed gives up. */
static zb_status step(replay *r, size_t index)
{
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

/* --- comparing --- */

/* Where a comparison is, and what has come of it. */
typedef struct place {
    int64_t step; /* -1: after initialize */
    int rank;
    zb_replay_result *result;
} place;

/* Returns whether to stop. */
static int differs(const place *at, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int differs(const place *at, const char *format, ...)
{
    zb_replay_result *result = at->result;
    const size_t room = sizeof result->text;
    int used = at->step < 0 ? snprintf(result->text, room, "after initialize, rank %d, ", at->rank)
                            : snprintf(result->text, room, "step %" PRId64 ", rank %d, ", at->step, at->rank);
    va_list args;
    va_start(args, format);
    vsnprintf(result->text + used, room - (size_t)used, format, args);
    va_end(args);
    result->different = 1;
    return 1;
}

static int same_double(double a, double b)
{
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static int same_float(float a, float b)
{
    return (isnan(a) && isnan(b)) || bits_of(a) == bits_of(b);
}

/* A quantity that DeepSpeed may leave out: null. */
static int compare_optional(const place *at, const char *what, int has_recorded, double recorded, int has_own,
                            double own)
{
    at->result->values_compared++;
    if (!has_recorded != !has_own)
        return differs(at, "%s: %s recorded, %s by the oracle", what, has_recorded ? "a number" : "null",
                       has_own ? "a number" : "null");
    if (has_own && !same_double(recorded, own))
        return differs(at, "%s: %a recorded, %a by the oracle", what, recorded, own);
    return 0;
}

static int compare_scalars(const replay *r, const place *at, const zb_replay_entry *entry)
{
    /* Without a wrapper there is no loss scale to ask for. */
    const int has_scale = r->run->config->zero.stage > 0 || r->run->config->dtype != ZB_FP32;
    at->result->values_compared++;
    if (entry->skipped != r->skipped)
        return differs(at, "skipped steps: %" PRId64 " recorded, %" PRId64 " by the oracle", entry->skipped,
                       r->skipped);
    return compare_optional(at, "gradient norm", entry->has_norm, entry->norm, r->has_norm, r->norm) ||
           compare_optional(at, "loss scale", entry->has_scale, entry->scale, has_scale, r->scaler.scale) ||
           compare_optional(at, "learning rate", 1, entry->lr, 1, zb_schedule_lr(&r->schedule));
}

/* Padding is compared by its length only: at stage 3 it is whatever memory held. */
static int compare_masters(const replay *r, const place *at, const zb_replay_entry *entry)
{
    const zb_ref_shard *shard = &r->shards[at->rank];
    if (entry->master_count != shard->tensor_count)
        return differs(at, "fp32 tensors: %zu recorded, %zu by the oracle", entry->master_count,
                       shard->tensor_count);
    for (size_t t = 0; t < shard->tensor_count; t++)
        if (entry->masters[t].numel != shard->tensor_numel[t])
            return differs(at, "elements of fp32 tensor %zu: %zu recorded, %zu by the oracle", t,
                           entry->masters[t].numel, shard->tensor_numel[t]);
    for (size_t i = 0; i < shard->piece_count; i++) {
        const zb_ref_piece *piece = &shard->pieces[i];
        const float *recorded = entry->masters[piece->tensor].data + piece->at;
        const float *own = r->master.param[piece->param] + piece->first;
        at->result->values_compared += piece->numel;
        for (size_t e = 0; e < piece->numel; e++)
            if (!same_float(recorded[e], own[e]))
                return differs(at,
                               "fp32 weight p%d[%zu]: 0x%08x (%.9g) recorded, 0x%08x (%.9g) by the oracle",
                               piece->param, piece->first + e, bits_of(recorded[e]), (double)recorded[e],
                               bits_of(own[e]), (double)own[e]);
    }
    return 0;
}

static int compare_entry(const replay *r, const place *at, const zb_replay_entry *entry, int gave_up)
{
    at->result->values_compared++;
    if ((entry->error != NULL) != gave_up)
        return differs(at, "%s recorded, %s by the oracle", gave_up ? "no error" : entry->error,
                       gave_up ? zb_error_message() : "no error");
    if (gave_up) return 0;
    return (at->step >= 0 && compare_scalars(r, at, entry)) || compare_masters(r, at, entry);
}

/* Entry `index` of every rank. */
static int compare(const replay *r, size_t index, int gave_up, zb_replay_result *result)
{
    place at = { .step = (int64_t)index - 1, .result = result };
    for (at.rank = 0; at.rank < r->run->world_size; at.rank++)
        if (compare_entry(r, &at, &r->run->ranks[at.rank].entries[index], gave_up)) return 1;
    return 0;
}

static zb_status run_and_compare(replay *r, zb_replay_result *result)
{
    if (compare(r, 0, 0, result)) return ZB_OK;
    for (size_t index = 1; index < r->run->entry_count; index++) {
        const zb_status status = step(r, index - 1);
        if (status != ZB_OK && status != ZB_LOSS_SCALE) return status;
        if (compare(r, index, status == ZB_LOSS_SCALE, result)) return ZB_OK;
        result->steps_equal++;
    }
    return ZB_OK;
}

zb_status zb_replay_by_oracle(const zb_replay_run *run, zb_replay_result *result)
{
    zb_replay_result made = { 0 };
    replay r = { .run = run };
    zb_status status = fill(&r);
    if (status == ZB_OK) status = run_and_compare(&r, &made);
    destroy(&r);
    if (status == ZB_OK) *result = made;
    return status;
}
