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
    zb_loss_scaler scaler; /* its scale is what the next step uses */
    zb_loader **loader;    /* [world_size] */
    int64_t step;          /* optimizer steps done, skipped ones included */
    int64_t skipped;
    zb_ref_pass pass;      /* one for all ranks, which take turns */
    zb_ref_tensors master; /* fp32: what the optimizer writes */
    zb_ref_tensors values; /* the masters in the model's type: what forward reads */
    zb_ref_tensors exp_avg, exp_avg_sq;
    zb_ref_tensors gradient; /* of one micro-batch of one rank */
    zb_ref_sums sums;
    uint16_t *payload; /* one parameter's elements as 16-bit numbers, for showing */
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
        { "local_dtype", plan->local_dtype },
        { "bucket_dtype", plan->bucket_dtype },
        { "grad_dtype", plan->grad_dtype },
        { "comm_dtype", plan->comm_dtype },
    };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (dtypes[i].found != ZB_FP32 && dtypes[i].found != ZB_FP16 && dtypes[i].found != ZB_BF16)
            return zb_fail(ZB_UNSUPPORTED, "oracle: plan.%s is %s, only fp32, fp16 and bf16 are offered",
                           dtypes[i].name, zb_dtype_name(dtypes[i].found));
    if (plan->reduce_when != ZB_REDUCE_AT_BOUNDARY && plan->reduce_when != ZB_REDUCE_EVERY_MICRO_BATCH)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.reduce_when is %d, which is unknown",
                       (int)plan->reduce_when);
    if (plan->averaging.absent)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.averaging.absent is 1, only 0 is offered");
    if (plan->order != ZB_ORDER_RANK)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.order is %d, only rank order is offered",
                       (int)plan->order);
    if (plan->norm != ZB_NORM_EXACT)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.norm is %d, only the exact sum is offered",
                       (int)plan->norm);
    if (plan->optimizer.kind != ZB_OPTIMIZER_ADAM && plan->optimizer.kind != ZB_OPTIMIZER_SGD)
        return zb_fail(ZB_UNSUPPORTED, "oracle: plan.optimizer.kind is %d, which is unknown",
                       (int)plan->optimizer.kind);
    if (plan->optimizer.variant != ZB_ADAM_FUSED && plan->optimizer.variant != ZB_ADAM_TORCH)
        return zb_fail(ZB_UNSUPPORTED,
                       "oracle: plan.optimizer.variant is %d, only fused and torch are offered",
                       (int)plan->optimizer.variant);
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

static size_t largest_param_numel(const zb_model *model)
{
    size_t largest = 0;
    for (int p = 0; p < model->param_count; p++)
        if (model->params[p].numel > largest) largest = model->params[p].numel;
    return largest;
}

/* The model begins with the given weights in its own type, and the masters with what is left of them. */
static void set_weights(zb_ref *ref, const zb_weights *weights)
{
    const zb_model *model = ref->model;
    for (int p = 0; p < model->param_count; p++)
        memcpy(ref->values.param[p], weights->values[p], model->params[p].numel * sizeof(float));
    zb_ref_round_all(ref->plan.param_dtype, ref->values.data, ref->values.numel);
    zb_ref_store(ZB_FP32, &ref->values, 0, &ref->master);
}

static zb_status create_tensors(zb_ref *ref)
{
    const zb_model *model = ref->model;
    zb_ref_tensors *const single[] = { &ref->master, &ref->values, &ref->exp_avg, &ref->exp_avg_sq,
                                       &ref->gradient };
    for (size_t i = 0; i < sizeof single / sizeof single[0]; i++)
        ZB_TRY(zb_ref_tensors_create(model, single[i]));
    ZB_TRY(zb_ref_sums_create(model, ref->plan.world_size, &ref->sums));
    ref->payload = zb_alloc_array(largest_param_numel(model), sizeof *ref->payload);
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
    ZB_TRY(zb_schedule_init(&ref->schedule, options->schedule));
    ZB_TRY(zb_loss_scaler_init(&ref->scaler, &ref->plan.scaler));
    ZB_TRY(create_loaders(ref, options));
    ZB_TRY(zb_ref_pass_create(ref->model, ref->plan.param_dtype, rows_max(&ref->plan, options->dataset),
                              &ref->pass));
    ZB_TRY(create_tensors(ref));
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
    zb_free(ref->loader);
    zb_free(ref->payload);
    zb_ref_tensors_destroy(&ref->master);
    zb_ref_tensors_destroy(&ref->values);
    zb_ref_tensors_destroy(&ref->exp_avg);
    zb_ref_tensors_destroy(&ref->exp_avg_sq);
    zb_ref_tensors_destroy(&ref->gradient);
    zb_ref_sums_destroy(&ref->sums);
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
    ZB_TRY(show_tensors(ref, observer, ZB_Q_MASTER, ZB_FP32, AFTER_INITIALIZE, ALL_PARAMS, &ref->master));
    return show_tensors(ref, observer, ZB_Q_PARAM, ref->plan.param_dtype, AFTER_INITIALIZE, ALL_PARAMS,
                        &ref->values);
}

/* The numbers of one step that are not tensors. */
typedef struct step_scalars {
    double loss_scale; /* in force when the step began */
    double norm;       /* of the reduced gradients, without the loss scale */
    int64_t overflow;
    double lr;
} step_scalars;

static zb_status show_step(const zb_ref *ref, const zb_observer *observer, const step_scalars *scalars)
{
    const zb_plan *plan = &ref->plan;
    const int64_t step = ref->step - 1; /* it has been counted */
    ZB_TRY(
        show_tensors(ref, observer, ZB_Q_GRAD, plan->grad_dtype, step, TRAINABLE_PARAMS, &ref->sums.reduced));
    ZB_TRY(show_scalar(observer, ZB_Q_NORM, ZB_FP64, step, &scalars->norm));
    ZB_TRY(show_scalar(observer, ZB_Q_OVERFLOW, ZB_INT64, step, &scalars->overflow));
    ZB_TRY(show_scalar(observer, ZB_Q_LOSS_SCALE, ZB_FP64, step, &scalars->loss_scale));
    ZB_TRY(show_scalar(observer, ZB_Q_LR, ZB_FP64, step, &scalars->lr));

    const zb_optimizer_config *optimizer = &plan->optimizer;
    const int has_exp_avg = optimizer->kind == ZB_OPTIMIZER_ADAM || optimizer->momentum != 0.0;
    const int has_exp_avg_sq = optimizer->kind == ZB_OPTIMIZER_ADAM;
    ZB_TRY(show_tensors(ref, observer, ZB_Q_MASTER, ZB_FP32, step, ALL_PARAMS, &ref->master));
    if (has_exp_avg)
        ZB_TRY(show_tensors(ref, observer, ZB_Q_EXP_AVG, ZB_FP32, step, TRAINABLE_PARAMS, &ref->exp_avg));
    if (has_exp_avg_sq)
        ZB_TRY(
            show_tensors(ref, observer, ZB_Q_EXP_AVG_SQ, ZB_FP32, step, TRAINABLE_PARAMS, &ref->exp_avg_sq));
    ZB_TRY(show_tensors(ref, observer, ZB_Q_PARAM, plan->param_dtype, step, ALL_PARAMS, &ref->values));

    const int64_t micro_steps = ref->step * plan->accumulation_steps;
    const int64_t samples = micro_steps * plan->micro_batch_size * plan->world_size;
    const int64_t counters[] = { micro_steps, ref->step, samples, ref->skipped };
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
    zb_ref_backward(&ref->pass, &ref->values, &batch, (float)ref->scaler.scale,
                    (float)ref->plan.accumulation_steps, &ref->gradient);
    return ZB_OK;
}

/* All micro-batches of all ranks; leaves the sum over micro-batches of the average over ranks in
 * sums.reduced. */
static zb_status compute_gradients(zb_ref *ref, const zb_observer *observer)
{
    const zb_plan *plan = &ref->plan;
    for (int64_t micro = 0; micro < plan->accumulation_steps; micro++) {
        for (int r = 0; r < plan->world_size; r++) {
            ZB_TRY(run_micro_batch(ref, observer, micro, r));
            zb_ref_sums_add(plan, micro, r, &ref->gradient, &ref->sums);
        }
        zb_ref_sums_reduce(plan, micro, &ref->sums);
    }
    return ZB_OK;
}

static void update_weights(zb_ref *ref, const step_scalars *scalars)
{
    const zb_plan *plan = &ref->plan;
    const int64_t applied = ref->step - ref->skipped; /* this one included */
    const float grad_scale = zb_ref_grad_scale(scalars->norm, plan->clip_norm, scalars->loss_scale);
    zb_optimizer_config optimizer = plan->optimizer;
    if (zb_schedule_has_momentum(&ref->schedule)) {
        optimizer.beta1 = zb_schedule_beta1(&ref->schedule);
        optimizer.beta2 = zb_schedule_beta2(&ref->schedule);
    }
    for (int p = 0; p < ref->model->param_count; p++) {
        const zb_param *param = &ref->model->params[p];
        if (!param->requires_grad) continue;
        zb_ref_update(&optimizer, scalars->lr, applied, grad_scale, param->numel, ref->master.param[p],
                      ref->sums.reduced.param[p], ref->exp_avg.param[p], ref->exp_avg_sq.param[p]);
    }
    zb_ref_store(plan->param_dtype, &ref->master, 0, &ref->values);
}

zb_status zb_ref_step(zb_ref *ref, const zb_observer *observer)
{
    ZB_TRY(compute_gradients(ref, observer));
    step_scalars scalars = { .loss_scale = ref->scaler.scale, .lr = zb_schedule_lr(&ref->schedule) };
    const double norm = zb_ref_norm(ref->model, &ref->sums.reduced); /* finite unless a gradient is not */
    scalars.norm = norm / scalars.loss_scale;
    scalars.overflow = ref->plan.overflow == ZB_OVERFLOW_SKIP && !isfinite(norm);

    ref->step++;
    if (scalars.overflow) {
        ref->skipped++;
    } else {
        update_weights(ref, &scalars);
        zb_schedule_step(&ref->schedule);
    }
    ZB_TRY(zb_loss_scaler_update(&ref->scaler, (int)scalars.overflow));
    return show_step(ref, observer, &scalars);
}
