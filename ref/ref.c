/*
 * The oracle: a whole training run of W ranks in one process. This file is the order of a step; what each
 * line of it computes is in the other files of this folder.
 */
#include <zerobit/ref.h>

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <zerobit/memory.h>

#include "ref/oracle.h"

struct zb_ref {
    zb_plan plan;
    const zb_model *model; /* borrowed */
    zb_schedule schedule;  /* its rate is what the next step uses */
    zb_loader **loader;    /* [world_size] */
    int64_t step;          /* optimizer steps done */
    zb_ref_pass pass;      /* one for all ranks, which take turns */
    zb_ref_tensors values; /* the weights: what forward reads is what the optimizer writes */
    zb_ref_tensors exp_avg, exp_avg_sq;
    zb_ref_tensors gradient;  /* of one micro-batch of one rank */
    zb_ref_tensors *rank_sum; /* [world_size]: of the micro-batches that have not been reduced yet */
    zb_ref_tensors average;   /* over ranks, of one reduction */
    zb_ref_tensors reduced;   /* what the optimizer gets */
};

/* --- what can be run --- */

static zb_status check_choices(const zb_plan *plan)
{
    if (plan->semantics != ZB_SEMANTICS_STANDARD)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.semantics is %d, only standard is offered",
                       (int)plan->semantics);
    const struct dtype_field {
        const char *name;
        zb_dtype found;
    } dtypes[] = {
        { "param_dtype", plan->param_dtype },
        { "grad_dtype", plan->grad_dtype },
        { "comm_dtype", plan->comm_dtype },
    };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (dtypes[i].found != ZB_FP32)
            return zb_fail(ZB_UNSUPPORTED, "oracle: plan.%s is %s, only fp32 is offered", dtypes[i].name,
                           zb_dtype_name(dtypes[i].found));
    if (plan->reduce_when != ZB_REDUCE_AT_BOUNDARY && plan->reduce_when != ZB_REDUCE_EVERY_MICRO_BATCH)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.reduce_when is %d, which is unknown",
                       (int)plan->reduce_when);
    if (plan->average != ZB_AVERAGE_INSIDE && plan->average != ZB_SUM_ONLY)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.average is %d, which is unknown", (int)plan->average);
    if (plan->order != ZB_ORDER_RANK)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.order is %d, only rank order is offered",
                       (int)plan->order);
    if (plan->norm != ZB_NORM_EXACT)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.norm is %d, only the exact sum is offered",
                       (int)plan->norm);
    if (plan->optimizer.kind != ZB_OPTIMIZER_ADAM && plan->optimizer.kind != ZB_OPTIMIZER_SGD)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.optimizer.kind is %d, which is unknown",
                       (int)plan->optimizer.kind);
    return ZB_OK;
}

static zb_status check_sizes(const zb_plan *plan)
{
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
    ref->loader = zb_alloc_array((size_t)ref->plan.world_size, sizeof *ref->loader);
    if (ref->loader == NULL) return ZB_NO_MEMORY;
    for (int r = 0; r < ref->plan.world_size; r++) {
        const zb_loader_config config = { .micro_batch_size = ref->plan.micro_batch_size,
                                          .world_size = ref->plan.world_size,
                                          .rank = r,
                                          .shuffle = options->shuffle,
                                          .drop_last = options->drop_last,
                                          .seed = options->sampler_seed,
                                          .reshuffle = options->reshuffle };
        ZB_TRY(zb_loader_create(options->dataset, &config, &ref->loader[r]));
    }
    return ZB_OK;
}

static zb_status create_tensors(zb_ref *ref, const zb_weights *weights)
{
    const zb_model *model = ref->model;
    zb_ref_tensors *const single[] = { &ref->values,   &ref->exp_avg, &ref->exp_avg_sq,
                                       &ref->gradient, &ref->average, &ref->reduced };
    for (size_t i = 0; i < sizeof single / sizeof single[0]; i++)
        ZB_TRY(zb_ref_tensors_create(model, single[i]));
    ref->rank_sum = zb_alloc_array((size_t)ref->plan.world_size, sizeof *ref->rank_sum);
    if (ref->rank_sum == NULL) return ZB_NO_MEMORY;
    for (int r = 0; r < ref->plan.world_size; r++) ZB_TRY(zb_ref_tensors_create(model, &ref->rank_sum[r]));

    for (int p = 0; p < model->param_count; p++)
        memcpy(ref->values.param[p], weights->values[p], model->params[p].numel * sizeof(float));
    return ZB_OK;
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
    ZB_TRY(zb_schedule_init(&ref->schedule, options->schedule));
    ZB_TRY(create_loaders(ref, options));
    ZB_TRY(zb_ref_pass_create(ref->model, rows_max(&ref->plan, options->dataset), &ref->pass));
    return create_tensors(ref, options->weights);
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
    ref->plan = *options->plan;
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
    for (int r = 0; ref->loader != NULL && r < ref->plan.world_size; r++) zb_loader_destroy(ref->loader[r]);
    for (int r = 0; ref->rank_sum != NULL && r < ref->plan.world_size; r++)
        zb_ref_tensors_destroy(&ref->rank_sum[r]);
    zb_free(ref->loader);
    zb_free(ref->rank_sum);
    zb_ref_tensors_destroy(&ref->values);
    zb_ref_tensors_destroy(&ref->exp_avg);
    zb_ref_tensors_destroy(&ref->exp_avg_sq);
    zb_ref_tensors_destroy(&ref->gradient);
    zb_ref_tensors_destroy(&ref->average);
    zb_ref_tensors_destroy(&ref->reduced);
    zb_ref_pass_destroy(&ref->pass);
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

static zb_status show_tensors(const zb_ref *ref, const zb_observer *observer, zb_quantity quantity,
                              int64_t step, enum which_params which, const zb_ref_tensors *tensors)
{
    for (int p = 0; p < ref->model->param_count; p++) {
        if (which == TRAINABLE_PARAMS && !ref->model->params[p].requires_grad) continue;
        ZB_TRY(show(observer, (zb_observation){ .quantity = quantity,
                                                .step = step,
                                                .micro = NO_MICRO,
                                                .rank = ZB_EVERY_RANK,
                                                .param = p,
                                                .dtype = ZB_FP32,
                                                .numel = ref->model->params[p].numel,
                                                .data = tensors->param[p] }));
    }
    return ZB_OK;
}

zb_status zb_ref_observe_initial(zb_ref *ref, const zb_observer *observer)
{
    ZB_TRY(show_tensors(ref, observer, ZB_Q_MASTER, AFTER_INITIALIZE, ALL_PARAMS, &ref->values));
    return show_tensors(ref, observer, ZB_Q_PARAM, AFTER_INITIALIZE, ALL_PARAMS, &ref->values);
}

static zb_status show_step(const zb_ref *ref, const zb_observer *observer, int64_t step, double norm,
                           double lr)
{
    const zb_plan *plan = &ref->plan;
    const int64_t overflow = 0; /* fp32 never skips a step: infinities and NaNs go on into the weights */
    const double loss_scale = 1.0;
    ZB_TRY(show_tensors(ref, observer, ZB_Q_GRAD, step, TRAINABLE_PARAMS, &ref->reduced));
    ZB_TRY(show_scalar(observer, ZB_Q_NORM, ZB_FP64, step, &norm));
    ZB_TRY(show_scalar(observer, ZB_Q_OVERFLOW, ZB_INT64, step, &overflow));
    ZB_TRY(show_scalar(observer, ZB_Q_LOSS_SCALE, ZB_FP64, step, &loss_scale));
    ZB_TRY(show_scalar(observer, ZB_Q_LR, ZB_FP64, step, &lr));

    const zb_optimizer_config *optimizer = &plan->optimizer;
    const int has_exp_avg = optimizer->kind == ZB_OPTIMIZER_ADAM || optimizer->momentum != 0.0;
    const int has_exp_avg_sq = optimizer->kind == ZB_OPTIMIZER_ADAM;
    ZB_TRY(show_tensors(ref, observer, ZB_Q_MASTER, step, ALL_PARAMS, &ref->values));
    if (has_exp_avg) ZB_TRY(show_tensors(ref, observer, ZB_Q_EXP_AVG, step, TRAINABLE_PARAMS, &ref->exp_avg));
    if (has_exp_avg_sq)
        ZB_TRY(show_tensors(ref, observer, ZB_Q_EXP_AVG_SQ, step, TRAINABLE_PARAMS, &ref->exp_avg_sq));
    ZB_TRY(show_tensors(ref, observer, ZB_Q_PARAM, step, ALL_PARAMS, &ref->values));

    const int64_t done = step + 1, micro_steps = done * plan->accumulation_steps;
    const int64_t counters[] = { micro_steps, done, micro_steps * plan->micro_batch_size * plan->world_size,
                                 0 };
    return show_values(observer, ZB_Q_COUNTERS, ZB_INT64, step, NO_MICRO, ZB_EVERY_RANK, 4, counters);
}

/* --- a step --- */

/* Leaves the gradients of rank r's next micro-batch in ref->gradient. */
static zb_status run_micro_batch(zb_ref *ref, const zb_observer *observer, int64_t micro, int r)
{
    zb_batch batch;
    ZB_TRY(zb_loader_next(ref->loader[r], &batch));
    ZB_ASSERT(batch.rows >= 1 && batch.rows <= ref->plan.micro_batch_size);
    ZB_TRY(show_values(observer, ZB_Q_SAMPLES, ZB_INT64, ref->step, micro, r, (size_t)batch.rows,
                       batch.indices));

    const float loss = zb_ref_forward(&ref->pass, &ref->values, &batch);
    ZB_TRY(show_values(observer, ZB_Q_LOSS, ZB_FP32, ref->step, micro, r, 1, &loss));
    zb_ref_backward(&ref->pass, &ref->values, &batch, (float)ref->plan.accumulation_steps, &ref->gradient);
    return ZB_OK;
}

/* The first is stored, each later one is added. */
static void store_or_add(zb_ref_tensors *to, const zb_ref_tensors *from, int first)
{
    if (first)
        memcpy(to->data, from->data, to->numel * sizeof *to->data);
    else
        zb_ref_accumulate(to, from);
}

/* All micro-batches of all ranks; leaves the sum over micro-batches of the average over ranks in
 * ref->reduced. */
static zb_status compute_gradients(zb_ref *ref, const zb_observer *observer)
{
    const zb_plan *plan = &ref->plan;
    const int every_micro_batch = plan->reduce_when == ZB_REDUCE_EVERY_MICRO_BATCH;
    for (int64_t micro = 0; micro < plan->accumulation_steps; micro++) {
        for (int r = 0; r < plan->world_size; r++) {
            ZB_TRY(run_micro_batch(ref, observer, micro, r));
            store_or_add(&ref->rank_sum[r], &ref->gradient, micro == 0 || every_micro_batch);
        }
        if (every_micro_batch) {
            zb_ref_reduce(ref->rank_sum, plan->world_size, plan->average, &ref->average);
            store_or_add(&ref->reduced, &ref->average, micro == 0);
        }
    }
    if (!every_micro_batch) zb_ref_reduce(ref->rank_sum, plan->world_size, plan->average, &ref->reduced);
    return ZB_OK;
}

zb_status zb_ref_step(zb_ref *ref, const zb_observer *observer)
{
    ZB_TRY(compute_gradients(ref, observer));
    const double norm = zb_ref_norm(ref->model, &ref->reduced);
    const float grad_scale = zb_ref_clip_scale(norm, ref->plan.clip_norm);

    const int64_t step = ref->step++;
    const double lr = zb_schedule_lr(&ref->schedule);
    for (int p = 0; p < ref->model->param_count; p++) {
        const zb_param *param = &ref->model->params[p];
        if (!param->requires_grad) continue;
        zb_ref_update(&ref->plan.optimizer, lr, step + 1, grad_scale, param->numel, ref->values.param[p],
                      ref->reduced.param[p], ref->exp_avg.param[p], ref->exp_avg_sq.param[p]);
    }
    zb_schedule_step(&ref->schedule);
    return show_step(ref, observer, step, norm, lr);
}
