/*
 * The oracle: a whole training run of W ranks in one process. This file makes the gradients of a step, has
 * step.c take it, and shows it; what each line of it computes is in the other files of this folder.
 */
#include <zerobit/ref.h>

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <zerobit/memory.h>

#include "ref/oracle.h"

struct zb_ref {
    zb_ref_state state;
    const zb_model *model;   /* borrowed */
    zb_loader **loader;      /* [world_size] */
    zb_ref_pass pass;        /* one for all ranks, which take turns */
    zb_ref_tensors values;   /* the masters in the model's type: what forward reads */
    zb_ref_tensors gradient; /* of one micro-batch of one rank */
    float *sent;             /* one parameter's contribution; NULL: they are not shown */
    double *magnitudes;      /* [numel] of the first step's gradients; NULL: no bounds are wanted */
    uint16_t *payload;       /* one parameter's elements as 16-bit numbers, for showing */
};

/* --- what can be run --- */

static zb_status check_choices(const zb_plan *plan)
{
    const struct dtype_field {
        const char *name;
        zb_dtype found;
    } dtypes[] = {
        { "param_dtype", plan->param_dtype },   { "local_dtype", plan->local_dtype },
        { "bucket_dtype", plan->bucket_dtype }, { "grad_dtype", plan->grad_dtype },
        { "comm_dtype", plan->comm_dtype },     { "seed_dtype", plan->seed_dtype },
    };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (dtypes[i].found != ZB_FP32 && dtypes[i].found != ZB_FP16 && dtypes[i].found != ZB_BF16)
            return zb_fail(ZB_UNSUPPORTED, "oracle: plan.%s is %s, only fp32, fp16 and bf16 are offered",
                           dtypes[i].name, zb_dtype_name(dtypes[i].found));
    const struct choice {
        const char *name;
        int found, last;
    } choices[] = {
        { "reduce_when", (int)plan->reduce_when, ZB_REDUCE_EVERY_MICRO_BATCH },
        { "averaging.in_bucket", (int)plan->averaging.in_bucket.kind, ZB_FACTOR_DIVIDE },
        { "averaging.before[0]", (int)plan->averaging.before[0].kind, ZB_FACTOR_DIVIDE },
        { "averaging.before[1]", (int)plan->averaging.before[1].kind, ZB_FACTOR_DIVIDE },
        { "averaging.after", (int)plan->averaging.after.kind, ZB_FACTOR_DIVIDE },
        { "overflow", (int)plan->overflow, ZB_OVERFLOW_STOP },
        { "tensors", (int)plan->tensors, ZB_TENSORS_SUB_GROUPS },
        { "norm", (int)plan->norm, ZB_NORM_PYTORCH },
        { "clip", (int)plan->clip, ZB_CLIP_RECIPROCAL },
    };
    for (size_t i = 0; i < sizeof choices / sizeof choices[0]; i++)
        if (choices[i].found < 0 || choices[i].found > choices[i].last)
            return zb_fail(ZB_UNSUPPORTED, "oracle: plan.%s is %d, want 0 to %d", choices[i].name,
                           choices[i].found, choices[i].last);
    if (!zb_optimizer_has_arithmetic(plan->groups[0].kind, plan->groups[0].arithmetic))
        return zb_fail(ZB_UNSUPPORTED,
                       "oracle: plan.groups[0].kind is %d and arithmetic %d, which do not go together",
                       (int)plan->groups[0].kind, (int)plan->groups[0].arithmetic);
    return ZB_OK;
}

static zb_status check_sizes(const zb_plan *plan)
{
    if (plan->group_count < 1 || plan->group_count > ZB_PARAM_GROUP_MAX)
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: plan.group_count is %d, want 1 to %d", plan->group_count,
                       ZB_PARAM_GROUP_MAX);
    if (plan->world_size < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: plan.world_size is %d, want >= 1", plan->world_size);
    if (plan->micro_batch_size < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: plan.micro_batch_size is %lld, want >= 1",
                       (long long)plan->micro_batch_size);
    if (plan->accumulation_steps < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: plan.accumulation_steps is %lld, want >= 1",
                       (long long)plan->accumulation_steps);
    if (!(plan->clip_norm >= 0.0) || isinf(plan->clip_norm))
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: plan.clip_norm is %g, want a finite number >= 0",
                       plan->clip_norm);
    return ZB_OK;
}

static zb_status check_dataset(const zb_model *model, const zb_dataset *dataset)
{
    if (zb_model_output_module(model) == ZB_MODEL_INPUT)
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: model %s has no module with an output", model->name);
    size_t outputs = zb_shape_numel(&model->modules[zb_model_output_module(model)].out);
    if (zb_shape_numel(&dataset->input) != zb_shape_numel(&model->input))
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: a sample has %zu elements, the model's input %zu",
                       zb_shape_numel(&dataset->input), zb_shape_numel(&model->input));
    if (model->loss == ZB_LOSS_MSE && dataset->target_numel != outputs)
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: a target has %zu elements, the model's output %zu",
                       dataset->target_numel, outputs);
    if (model->loss == ZB_LOSS_CROSS_ENTROPY && (dataset->classes < 1 || (size_t)dataset->classes > outputs))
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: the data set has %lld classes, the model %zu outputs",
                       (long long)dataset->classes, outputs);
    return ZB_OK;
}

/* --- create, destroy --- */

static zb_status create_loaders(zb_ref *ref, const zb_ref_options *options)
{
    const zb_plan *plan = &ref->state.plan;
    ref->loader = zb_alloc_array((size_t)plan->world_size, sizeof *ref->loader);
    if (ref->loader == NULL) return ZB_NO_MEMORY;
    for (int r = 0; r < plan->world_size; r++) {
        const zb_loader_config config = { .micro_batch_size = plan->micro_batch_size,
                                          .world_size = plan->world_size,
                                          .rank = r,
                                          .shuffle = options->shuffle,
                                          .drop_last = options->drop_last,
                                          .seed = options->sampler_seed,
                                          .reshuffle = options->reshuffle };
        ZB_TRY(zb_loader_create(options->dataset, &config, &ref->loader[r]));
    }
    return ZB_OK;
}

static size_t largest_param_numel(const zb_model *model)
{
    size_t largest = 0;
    for (int p = 0; p < model->param_count; p++)
        if (model->params[p].numel > largest) largest = model->params[p].numel;
    return largest;
}

/* The model begins with the given weights in its own type, and the masters with what is left of them. A
 * hidden first step changes the masters only. */
static void set_weights(zb_ref *ref, const zb_weights *weights)
{
    const zb_model *model = ref->model;
    for (int p = 0; p < model->param_count; p++)
        memcpy(ref->values.param[p], weights->values[p], model->params[p].numel * sizeof(float));
    zb_ref_round_all(ref->state.plan.param_dtype, ref->values.data, ref->values.numel);
    zb_ref_store(ZB_FP32, &ref->values, 0, &ref->state.master);
    zb_ref_state_begin(&ref->state);
}

static zb_status create_tensors(zb_ref *ref)
{
    ZB_TRY(zb_ref_tensors_create(ref->model, &ref->values));
    ZB_TRY(zb_ref_tensors_create(ref->model, &ref->gradient));
    ref->payload = zb_alloc_array(largest_param_numel(ref->model), sizeof *ref->payload);
    return ref->payload == NULL ? ZB_NO_MEMORY : ZB_OK;
}

/* A rank never sees more rows at once than its share of an epoch. */
static size_t rows_max(const zb_plan *plan, const zb_dataset *dataset)
{
    const zb_sampler_config sampler = { .dataset_size = dataset->size, .world_size = plan->world_size };
    const int64_t share = zb_sampler_length(&sampler);
    return (size_t)(plan->micro_batch_size < share ? plan->micro_batch_size : share);
}

static zb_status fill(zb_ref *ref, const zb_ref_options *options)
{
    const zb_plan *plan = options->plan;
    ZB_TRY(zb_ref_state_create(plan, options->schedules, ref->model, options->group_of, options->route,
                               &ref->state));
    ZB_TRY(create_loaders(ref, options));
    ZB_TRY(zb_ref_pass_create(ref->model, plan->param_dtype, rows_max(plan, options->dataset), &ref->pass));
    ZB_TRY(create_tensors(ref));
    if (options->with_contributions) {
        ref->sent = zb_alloc_array(largest_param_numel(ref->model), sizeof *ref->sent);
        if (ref->sent == NULL) return ZB_NO_MEMORY;
    }
    if (options->with_bounds) {
        ref->magnitudes = zb_alloc_array(ref->gradient.numel, sizeof *ref->magnitudes);
        if (ref->magnitudes == NULL) return ZB_NO_MEMORY;
    }
    set_weights(ref, options->weights);
    return ZB_OK;
}

zb_status zb_ref_create(const zb_ref_options *options, zb_ref **ref_p)
{
    ZB_TRY(check_choices(options->plan));
    ZB_TRY(check_sizes(options->plan));
    ZB_TRY(check_dataset(options->model, options->dataset));
    if (options->weights->param_count != options->model->param_count)
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: %d weights for a model of %d parameters",
                       options->weights->param_count, options->model->param_count);

    zb_ref *ref = zb_alloc(sizeof *ref);
    if (ref == NULL) return ZB_NO_MEMORY;
    ref->model = options->model;
    zb_status status = fill(ref, options);
    if (status != ZB_OK) {
        zb_ref_destroy(ref);
        return status;
    }
    *ref_p = ref;
    return ZB_OK;
}

void zb_ref_destroy(zb_ref *ref)
{
    if (ref == NULL) return;
    for (int r = 0; ref->loader != NULL && r < ref->state.plan.world_size; r++)
        zb_loader_destroy(ref->loader[r]);
    zb_free(ref->loader);
    zb_free(ref->payload);
    zb_free(ref->magnitudes);
    zb_free(ref->sent);
    zb_ref_tensors_destroy(&ref->values);
    zb_ref_tensors_destroy(&ref->gradient);
    zb_ref_pass_destroy(&ref->pass);
    zb_ref_state_destroy(&ref->state); /* last: it has the world size */
    zb_free(ref);
}

/* --- showing --- */

enum { NO_MICRO = -1, AFTER_INITIALIZE = -1 };

static zb_status show(const zb_observer *observer, zb_observation observation)
{
    return observer == NULL ? ZB_OK : observer->observe(observer->user, &observation);
}

/* A quantity of a rank and micro-batch, or of the whole step. */
static zb_status show_values(const zb_observer *observer, zb_quantity quantity, zb_dtype dtype, int64_t step,
                             int64_t micro, int rank, size_t numel, const void *data)
{
    return show(observer, (zb_observation){ .quantity = quantity,
                                            .step = step,
                                            .micro = micro,
                                            .rank = rank,
                                            .param = ZB_NO_PARAM,
                                            .dtype = dtype,
                                            .numel = numel,
                                            .data = data });
}

static zb_status show_scalar(const zb_observer *observer, zb_quantity quantity, zb_dtype dtype, int64_t step,
                             const void *data)
{
    return show_values(observer, quantity, dtype, step, NO_MICRO, ZB_EVERY_RANK, 1, data);
}

enum which_params { ALL_PARAMS, TRAINABLE_PARAMS };

/* The data of an observation of 16-bit numbers are their bit patterns. */
static const void *payload_of(const zb_ref *ref, zb_dtype dtype, const float *x, size_t numel)
{
    if (dtype == ZB_FP32) return x;
    for (size_t i = 0; i < numel; i++) ref->payload[i] = zb_ref_encode(dtype, x[i]);
    return ref->payload;
}

static zb_status show_tensors(const zb_ref *ref, const zb_observer *observer, zb_quantity quantity,
                              zb_dtype dtype, int64_t step, enum which_params which,
                              const zb_ref_tensors *tensors)
{
    if (observer == NULL) return ZB_OK;
    for (int p = 0; p < ref->model->param_count; p++) {
        const size_t numel = ref->model->params[p].numel;
        if (which == TRAINABLE_PARAMS && !ref->model->params[p].requires_grad) continue;
        ZB_TRY(show(observer, (zb_observation){ .quantity = quantity,
                                                .step = step,
                                                .micro = NO_MICRO,
                                                .rank = ZB_EVERY_RANK,
                                                .param = p,
                                                .dtype = dtype,
                                                .numel = numel,
                                                .data = payload_of(ref, dtype, tensors->param[p], numel) }));
    }
    return ZB_OK;
}

zb_status zb_ref_observe_initial(zb_ref *ref, const zb_observer *observer)
{
    const zb_ref_state *state = &ref->state;
    ZB_TRY(show_tensors(ref, observer, ZB_Q_MASTER, ZB_FP32, AFTER_INITIALIZE, ALL_PARAMS, &state->master));
    return show_tensors(ref, observer, ZB_Q_PARAM, state->plan.param_dtype, AFTER_INITIALIZE, ALL_PARAMS,
                        &ref->values);
}

static zb_status show_moments(const zb_ref *ref, const zb_observer *observer, int64_t step)
{
    const zb_ref_state *state = &ref->state;
    const zb_optimizer_kind kind = state->plan.groups[0].kind;
    int momentum = 0; /* in any group */
    for (int g = 0; g < state->plan.group_count; g++) momentum |= state->plan.groups[g].momentum != 0.0;
    const int has_exp_avg = kind == ZB_OPTIMIZER_SGD ? momentum : kind != ZB_OPTIMIZER_ADAGRAD;
    const int has_exp_avg_sq = kind != ZB_OPTIMIZER_SGD && kind != ZB_OPTIMIZER_LION;
    if (has_exp_avg)
        ZB_TRY(show_tensors(ref, observer, ZB_Q_EXP_AVG, ZB_FP32, step, TRAINABLE_PARAMS, &state->exp_avg));
    if (!has_exp_avg_sq) return ZB_OK;
    return show_tensors(ref, observer, ZB_Q_EXP_AVG_SQ, ZB_FP32, step, TRAINABLE_PARAMS, &state->exp_avg_sq);
}

static zb_status show_step(const zb_ref *ref, const zb_observer *observer)
{
    const zb_ref_state *state = &ref->state;
    const zb_plan *plan = &state->plan;
    const int64_t step = state->steps - 1; /* it has been counted */
    ZB_TRY(show_tensors(ref, observer, ZB_Q_GRAD, plan->grad_dtype, step, TRAINABLE_PARAMS,
                        &state->sums.reduced));
    ZB_TRY(show_scalar(observer, ZB_Q_NORM, ZB_FP64, step, &state->norm));
    ZB_TRY(show_scalar(observer, ZB_Q_OVERFLOW, ZB_INT64, step, &state->overflow));
    ZB_TRY(show_scalar(observer, ZB_Q_LOSS_SCALE, ZB_FP64, step, &state->loss_scale));
    ZB_TRY(show_values(observer, ZB_Q_LR, ZB_FP64, step, NO_MICRO, ZB_EVERY_RANK, (size_t)plan->group_count,
                       state->lr));
    ZB_TRY(show_tensors(ref, observer, ZB_Q_MASTER, ZB_FP32, step, ALL_PARAMS, &state->master));
    ZB_TRY(show_moments(ref, observer, step));
    ZB_TRY(show_tensors(ref, observer, ZB_Q_PARAM, plan->param_dtype, step, ALL_PARAMS, &ref->values));

    const int64_t micro_steps = state->steps * plan->accumulation_steps;
    const int64_t samples = micro_steps * plan->micro_batch_size * plan->world_size;
    const int64_t counters[] = { micro_steps, state->steps, samples, state->skipped };
    return show_values(observer, ZB_Q_COUNTERS, ZB_INT64, step, NO_MICRO, ZB_EVERY_RANK, 4, counters);
}

/* --- a step --- */

/* Leaves the gradients of rank r's next micro-batch in ref->gradient. */
static zb_status run_micro_batch(zb_ref *ref, const zb_observer *observer, int64_t micro, int r)
{
    const zb_ref_state *state = &ref->state;
    zb_batch batch;
    ZB_TRY(zb_loader_next(ref->loader[r], &batch));
    ZB_ASSERT(batch.rows >= 1 && batch.rows <= state->plan.micro_batch_size);
    ZB_TRY(show_values(observer, ZB_Q_SAMPLES, ZB_INT64, state->steps, micro, r, (size_t)batch.rows,
                       batch.indices));

    const float loss = zb_ref_forward(&ref->pass, &ref->values, &batch);
    ZB_TRY(show_values(observer, ZB_Q_LOSS, ZB_FP32, state->steps, micro, r, 1, &loss));
    zb_ref_backward(&ref->pass, &ref->values, &batch, zb_ref_seed(state),
                    (float)state->plan.accumulation_steps, &ref->gradient);
    return ZB_OK;
}

/* What rank r sends of its gradients after this micro-batch. */
static zb_status show_contributions(zb_ref *ref, const zb_observer *observer, int64_t micro, int r)
{
    const zb_plan *plan = &ref->state.plan;
    const int is_sent = plan->reduce_when == ZB_REDUCE_EVERY_MICRO_BATCH ||
                        micro == plan->accumulation_steps - 1;
    if (ref->sent == NULL || observer == NULL || plan->averaging.absent || !is_sent) return ZB_OK;
    for (int p = 0; p < ref->model->param_count; p++) {
        const size_t numel = ref->model->params[p].numel;
        if (!ref->model->params[p].requires_grad || numel == 0) continue;
        for (size_t i = 0; i < numel; i++)
            ref->sent[i] = zb_ref_contribution(plan, ref->state.sums.rank[r].param[p][i]);
        ZB_TRY(
            show(observer, (zb_observation){ .quantity = ZB_Q_CONTRIBUTION,
                                             .step = ref->state.steps,
                                             .micro = micro,
                                             .rank = r,
                                             .param = p,
                                             .dtype = plan->comm_dtype,
                                             .numel = numel,
                                             .data = payload_of(ref, plan->comm_dtype, ref->sent, numel) }));
    }
    return ZB_OK;
}

/* All micro-batches of all ranks. */
static zb_status compute_gradients(zb_ref *ref, const zb_observer *observer)
{
    const zb_plan *plan = &ref->state.plan;
    for (int64_t micro = 0; micro < plan->accumulation_steps; micro++)
        for (int r = 0; r < plan->world_size; r++) {
            ZB_TRY(run_micro_batch(ref, observer, micro, r));
            if (ref->magnitudes != NULL && ref->state.steps == 0)
                zb_ref_bound_note(&ref->gradient, ref->magnitudes);
            zb_ref_state_add(&ref->state, micro, r, &ref->gradient);
            ZB_TRY(show_contributions(ref, observer, micro, r));
        }
    return ZB_OK;
}

zb_status zb_ref_step(zb_ref *ref, const zb_observer *observer)
{
    ZB_TRY(compute_gradients(ref, observer));
    const int64_t optimizer_steps = ref->state.optimizer.step;
    ZB_TRY(zb_ref_state_step(&ref->state));
    if (ref->state.optimizer.step > optimizer_steps)
        zb_ref_store(ref->state.plan.param_dtype, &ref->state.master, 0, &ref->values);
    return show_step(ref, observer);
}

/* --- the first step's gradient --- */

int zb_ref_gradient_roundings(const zb_ref *ref)
{
    return zb_ref_roundings(&ref->state.plan);
}

void zb_ref_first_gradient(const zb_ref *ref, int param, float *gradient, double *bound, double *magnitude)
{
    const zb_ref_tensors *reduced = &ref->state.sums.reduced;
    ZB_ASSERT(ref->magnitudes != NULL && ref->state.steps == 1);
    const size_t first = (size_t)(reduced->param[param] - reduced->data);
    for (size_t i = 0; i < ref->model->params[param].numel; i++) {
        gradient[i] = reduced->data[first + i];
        magnitude[i] = ref->magnitudes[first + i];
        bound[i] = zb_ref_bound_of(&ref->state.plan, magnitude[i]);
    }
}
