/*
 * The engine: set-up, and the order of a training step.
 *
 * A micro-batch goes forward -> backward -> step, in this order only. step() of the last micro-batch is the
 * boundary: reduce -> norm -> clip and optimizer -> publish -> learning rate. Source:
 * deepspeed/runtime/engine.py.
 */
#include <zerobit/engine.h>

#include <string.h>
#include <zerobit/memory.h>

#include "core/model_parts.h"
#include "engine/boundary.h"
#include "engine/external.h"
#include "engine/state.h"
#include "kernels/kernels.h"

/* --- services for stages --- */

/* Between host types, in the second half of the staging buffer. */
static zb_status convert_staged(const zb_engine *e, zb_dtype to_dtype, zb_dtype from_dtype, size_t numel,
                                const void **converted)
{
    void *to = e->staging + ZB_STAGING_NUMEL;
    *converted = e->staging;
    if (to_dtype == from_dtype) return ZB_OK;
    *converted = to;
    return zb_cpu_cast(&(zb_cast_args){
        .to = to, .to_dtype = to_dtype, .from = e->staging, .from_dtype = from_dtype, .numel = numel });
}

zb_status zb_engine_put_staged(zb_engine *e, size_t numel, void *to)
{
    zb_dtype dtype = e->plan.param_dtype;
    const void *rounded;
    ZB_TRY(convert_staged(e, dtype, ZB_FP32, numel, &rounded));
    ZB_TRY(zb_copy_in(e->compute, to, rounded, numel * zb_dtype_bytes(dtype)));
    return zb_stream_wait_idle(e->compute); /* staging is used again */
}

zb_status zb_engine_load_initial(zb_engine *e, int param, size_t first, size_t numel, void *to)
{
    while (numel > 0) {
        size_t chunk = numel < ZB_STAGING_NUMEL ? numel : ZB_STAGING_NUMEL;
        if (e->weights != NULL)
            memcpy(e->staging, e->weights->values[param] + first, chunk * sizeof(float));
        else
            zb_model_init_param(e->model, param, e->init_seed, first, chunk, e->staging);
        ZB_TRY(zb_engine_put_staged(e, chunk, to));
        first += chunk;
        to = zb_at(to, chunk, e->plan.param_dtype);
        numel -= chunk;
    }
    return ZB_OK;
}

zb_status zb_engine_save_widened(zb_engine *e, float *to, const void *from, size_t numel)
{
    zb_dtype dtype = e->plan.param_dtype;
    while (numel > 0) {
        size_t chunk = numel < ZB_STAGING_NUMEL ? numel : ZB_STAGING_NUMEL;
        const void *widened;
        ZB_TRY(zb_copy_out(e->compute, e->staging, from, chunk * zb_dtype_bytes(dtype)));
        ZB_TRY(zb_stream_wait_idle(e->compute));
        ZB_TRY(convert_staged(e, ZB_FP32, dtype, chunk, &widened));
        memcpy(to, widened, chunk * sizeof(float));
        to += chunk;
        from = zb_at(from, chunk, dtype);
        numel -= chunk;
    }
    return ZB_OK;
}

zb_status zb_engine_take_gradient(zb_engine *e, void *to, zb_dtype to_dtype, const void *from,
                                  zb_dtype from_dtype, size_t numel)
{
    if (e->micro_index == 0) return zb_store(e->compute, to, to_dtype, from, from_dtype, numel);
    return zb_accumulate(e->compute, to, to_dtype, from, from_dtype, numel);
}

static zb_status order_after(zb_event *event, zb_stream *earlier, zb_stream *later)
{
    if (earlier == later) return ZB_OK;
    ZB_TRY(zb_event_record(event, earlier));
    return zb_stream_wait_event(later, event);
}

zb_status zb_engine_collective(zb_engine *e, const zb_collective *collective, zb_work *work)
{
    zb_collective on_stream = *collective;
    if (on_stream.stream == NULL) on_stream.stream = e->transfer;
    ZB_TRY(order_after(e->compute_reached, e->compute, on_stream.stream));
    ZB_TRY(zb_comm_start(e->comm, &on_stream, work));
    return work != NULL ? ZB_OK : order_after(e->transfer_reached, on_stream.stream, e->compute);
}

zb_status zb_engine_collective_wait(zb_engine *e, zb_work *work)
{
    return zb_comm_wait(e->comm, work, e->compute);
}

void zb_engine_collective_abandon(zb_engine *e, zb_work *work)
{
    if (work->id == 0 && work->handle == NULL) return;
    zb_error kept = { 0 }, scratch = { 0 }, *bound = zb_error_bind(NULL);
    if (bound != NULL) kept = *bound;
    zb_error_bind(bound != NULL ? bound : &scratch); /* a fiber that waits comes back with its own */
    (void)zb_comm_wait(e->comm, work, NULL);
    if (bound != NULL) *bound = kept;
    zb_error_bind(bound);
}

zb_stage_facts zb_engine_facts(const zb_engine *e)
{
    return (
        zb_stage_facts){ .config = e->config, .plan = &e->plan, .graph = &e->graph, .layout = &e->layout };
}

zb_redop zb_engine_grad_op(const zb_engine *e)
{
    return e->plan.averaging.inside ? ZB_AVG : ZB_SUM;
}

const zb_stage_ops *zb_stage_find(int number)
{
    static const zb_stage_ops *const stages[ZB_STAGE_COUNT] = { &zb_stage0, &zb_stage1, &zb_stage2,
                                                                &zb_stage3 };
    return number >= 0 && number < ZB_STAGE_COUNT ? stages[number] : NULL;
}

int zb_overlap_comm(const zb_config *config, int stage)
{
    return config->zero.overlap_comm < 0 ? stage == 3 : config->zero.overlap_comm;
}

/* --- set-up --- */

static zb_status check_dataset(const zb_model *model, const zb_dataset *dataset)
{
    char have[ZB_SHAPE_TEXT_BYTES], want[ZB_SHAPE_TEXT_BYTES];
    if (model->loss == ZB_LOSS_ELSEWHERE)
        return zb_fail(ZB_INVALID_ARGUMENT, "a data set for model %s, whose forward is elsewhere: want none",
                       model->name);
    if (!zb_shape_equal(&dataset->input, &model->input))
        return zb_fail(ZB_INVALID_ARGUMENT, "data set has samples of shape %s, model %s wants %s",
                       zb_shape_format(&dataset->input, have), model->name,
                       zb_shape_format(&model->input, want));
    size_t output_numel = zb_shape_numel(&model->modules[zb_model_output_module(model)].out);
    if (model->loss == ZB_LOSS_CROSS_ENTROPY &&
        (dataset->classes < 1 || (uint64_t)dataset->classes > output_numel))
        return zb_fail(ZB_INVALID_ARGUMENT, "data set has %lld classes, model %s can tell %zu apart",
                       (long long)dataset->classes, model->name, output_numel);
    if (model->loss == ZB_LOSS_MSE && dataset->target_numel != output_numel)
        return zb_fail(ZB_INVALID_ARGUMENT, "data set has %zu target values per sample, model %s gives %zu",
                       dataset->target_numel, model->name, output_numel);
    return ZB_OK;
}

static zb_status create_streams(zb_engine *e)
{
    ZB_TRY(zb_stream_create(e->device, "compute", &e->compute));
    if (!zb_overlap_comm(e->config, e->layout.stage)) {
        e->transfer = e->prefetch = e->compute;
        return ZB_OK;
    }
    ZB_TRY(zb_stream_create(e->device, "transfer", &e->transfer));
    e->prefetch = e->transfer;
    if (e->layout.stage == 3) ZB_TRY(zb_stream_create(e->device, "prefetch", &e->prefetch));
    ZB_TRY(zb_event_create(e->device, "compute reached", &e->compute_reached));
    return zb_event_create(e->device, "transfer reached", &e->transfer_reached);
}

static zb_status create_loader(zb_engine *e, const zb_engine_options *options)
{
    if (options->dataset == NULL) return ZB_OK;
    ZB_TRY(check_dataset(e->model, options->dataset));
    zb_loader_config config = { .micro_batch_size = e->plan.micro_batch_size,
                                .world_size = e->comm->world_size,
                                .rank = e->comm->rank,
                                .shuffle = 1,
                                .drop_last = e->config->dataloader_drop_last,
                                .seed = options->sampler_seed,
                                .reshuffle = e->plan.reshuffle };
    return zb_loader_create(options->dataset, &config, &e->loader);
}

static void note_traffic(zb_engine *e)
{
    for (int kind = 0; kind < ZB_COLLECTIVE_COUNT; kind++) {
        zb_traffic now = e->comm->traffic[kind], *before = &e->traffic_before[kind];
        e->traffic[kind] = (zb_traffic){ .calls = now.calls - before->calls,
                                         .bytes = now.bytes - before->bytes };
        *before = now;
    }
}

static zb_status sum_over_ranks(void *user, int64_t *words, size_t count)
{
    return zb_engine_collective_run((zb_engine *)user, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = words,
                                    .recv = words, .numel = count, .dtype = ZB_INT64, .op = ZB_SUM,
                                    .what = "norms of weights and updates");
}

static zb_status create_optimizer(zb_engine *e)
{
    zb_optimizer_exchange exchange = { 0 };
    if (e->stage->ops->norm_is_partial && zb_optimizer_adds_norms(&e->plan))
        exchange = (zb_optimizer_exchange){ .sum = sum_over_ranks, .user = e };
    return zb_optimizer_create(&e->plan, e->compute, &e->shard, exchange, &e->optimizer);
}

static zb_status create_schedules(zb_engine *e)
{
    zb_schedule_config schedules[ZB_PARAM_GROUP_MAX];
    zb_config_list_schedules(e->config, schedules);
    return zb_schedules_init(&e->schedules, schedules, e->plan.group_count);
}

static zb_status create_layout(zb_engine *e, int stage)
{
    zb_layout_options options = zb_layout_options_of(&e->plan, e->model, stage);
    int *group_of = zb_alloc_array((size_t)e->model->param_count, sizeof *group_of);
    if (group_of == NULL) return ZB_NO_MEMORY;
    zb_status status = zb_config_assign_groups(e->config, e->model, group_of);
    options.group_of = group_of;
    if (status == ZB_OK) status = zb_layout_create(&options, &e->layout);
    zb_free(group_of);
    return status;
}

static zb_status set_up(zb_engine *e, const zb_engine_options *options, int stage)
{
    if (zb_model_output_module(e->model) == ZB_MODEL_INPUT && e->model->loss != ZB_LOSS_ELSEWHERE)
        return zb_fail(ZB_INVALID_ARGUMENT, "model %s has no module with an output", e->model->name);
    ZB_TRY(zb_graph_create(e->model, &e->graph));
    ZB_TRY(create_layout(e, stage));
    if (e->layout.numel == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "model %s has no trainable element: nothing to optimize",
                       e->model->name);
    if ((e->staging = zb_alloc_array(2 * ZB_STAGING_NUMEL, sizeof *e->staging)) == NULL) return ZB_NO_MEMORY;
    ZB_TRY(create_streams(e));
    ZB_TRY(create_loader(e, options));
    ZB_TRY(zb_executor_create(&e->graph, e->device, e->compute, e->plan.param_dtype,
                              (size_t)e->plan.micro_batch_size, &e->executor));
    ZB_TRY(zb_stage_find(stage)->create(e, &e->stage));
    ZB_TRY(zb_engine_create_shard(e));
    ZB_TRY(create_optimizer(e));
    if (e->plan.hidden_first_step) ZB_TRY(zb_boundary_hidden_step(e));
    ZB_TRY(zb_norm_create(e, &e->norm));
    ZB_TRY(zb_loss_scaler_init(&e->scaler, &e->plan.scaler));
    ZB_TRY(create_schedules(e));
    note_traffic(e);
    return ZB_OK;
}

zb_status zb_initialize(const zb_engine_options *options, zb_engine **engine_p)
{
    ZB_ASSERT(options->config != NULL && options->model != NULL && options->device != NULL &&
              options->comm != NULL);
    if (options->weights != NULL && options->weights->param_count != options->model->param_count)
        return zb_fail(ZB_INVALID_ARGUMENT, "weights of %d parameters for model %s, which has %d",
                       options->weights->param_count, options->model->name, options->model->param_count);
    int stage = options->stage >= 0 ? options->stage : options->config->zero.stage;
    zb_dtype dtype = options->dtype >= 0 ? (zb_dtype)options->dtype : options->config->dtype;
    zb_plan plan;
    ZB_TRY(zb_plan_derive(options->config, stage, dtype, options->comm->world_size, &plan));

    zb_engine *e = zb_alloc(sizeof *e);
    if (e == NULL) return ZB_NO_MEMORY;
    e->config = options->config;
    e->model = options->model;
    e->weights = options->weights;
    e->init_seed = options->init_seed;
    e->device = options->device;
    e->comm = options->comm;
    e->plan = plan;
    zb_status status = set_up(e, options, stage);
    e->weights = NULL;
    if (status != ZB_OK) {
        zb_engine_destroy(e);
        return status;
    }
    *engine_p = e;
    return ZB_OK;
}

void zb_engine_destroy(zb_engine *e)
{
    if (e == NULL) return;
    if (e->stage != NULL) e->stage->ops->destroy(e->stage); /* first: waits for what is under way */
    zb_norm_destroy(e, &e->norm);
    zb_optimizer_destroy(&e->optimizer, e->device);
    zb_shard_destroy(&e->shard);
    zb_executor_destroy(&e->executor);
    zb_loader_destroy(e->loader);
    zb_event_destroy(e->compute_reached);
    zb_event_destroy(e->transfer_reached);
    if (e->prefetch != e->transfer) zb_stream_destroy(e->prefetch);
    if (e->transfer != e->compute) zb_stream_destroy(e->transfer);
    zb_stream_destroy(e->compute);
    zb_free(e->staging);
    zb_layout_destroy(&e->layout);
    zb_graph_destroy(&e->graph);
    zb_free(e);
}

zb_loader *zb_engine_loader(zb_engine *e)
{
    return e->loader;
}
const zb_schedules *zb_engine_lr_scheduler(const zb_engine *e)
{
    return &e->schedules;
}
const zb_optimizer_config *zb_engine_optimizer(const zb_engine *e)
{
    return e->plan.groups;
}
const zb_plan *zb_engine_plan(const zb_engine *e)
{
    return &e->plan;
}
int zb_engine_stage(const zb_engine *e)
{
    return e->layout.stage;
}
zb_counters zb_engine_counters(const zb_engine *e)
{
    return e->counters;
}
double zb_engine_global_grad_norm(const zb_engine *e)
{
    return e->grad_norm;
}
double zb_engine_loss_scale(const zb_engine *e)
{
    return e->scaler.scale;
}

/* --- a micro-batch --- */

zb_status zb_engine_check_whole(const zb_engine *e, const char *name)
{
    if (e->phase != ZB_BROKEN) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s called after a failure broke a step off; all that is left is zb_engine_destroy", name);
}

static const char *const phase_names[] = { "forward", "backward", "step" };

static zb_status expect_call(const zb_engine *e, enum zb_micro_phase phase, const char *call)
{
    ZB_TRY(zb_engine_check_whole(e, call));
    if (e->phase == phase) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s called where %s is due (a micro-batch goes forward, backward, step)", call,
                   phase_names[e->phase]);
}

static zb_status expect_phase(const zb_engine *e, enum zb_micro_phase phase)
{
    return expect_call(e, phase, phase_names[phase]);
}

/* A step that breaks off leaves buckets half full and parameters half gathered: nothing to go on from. */
static zb_status enter_phase(zb_engine *e, enum zb_micro_phase phase, zb_status status)
{
    e->phase = status == ZB_OK ? phase : ZB_BROKEN;
    return status;
}

int zb_engine_is_boundary(const zb_engine *e)
{
    return e->micro_index + 1 == e->plan.accumulation_steps;
}

zb_status zb_engine_forward(zb_engine *e, const zb_batch *batch, float *loss)
{
    ZB_TRY(expect_phase(e, ZB_WANTS_FORWARD));
    ZB_TRY(zb_executor_check_batch(&e->executor, batch));
    return enter_phase(e, ZB_WANTS_BACKWARD, zb_executor_forward(&e->executor, e->stage, batch, loss));
}

/* What the loss's own gradient begins as. */
static float loss_scale(const zb_engine *e)
{
    return e->plan.loss_is_scaled ? (float)e->scaler.scale : 1.0f;
}

/* In DeepSpeed a 16-bit loss is multiplied by the scale in its own type, in which the scale may be infinite.
 */
static zb_status round_seed(const zb_engine *e, float *seed)
{
    float rounded;
    ZB_TRY(zb_cpu_cast(&(zb_cast_args){
        .to = &rounded, .to_dtype = e->plan.seed_dtype, .from = seed, .from_dtype = ZB_FP32, .numel = 1 }));
    return zb_cpu_cast(&(zb_cast_args){
        .to = seed, .to_dtype = ZB_FP32, .from = &rounded, .from_dtype = e->plan.seed_dtype, .numel = 1 });
}

zb_status zb_engine_backward(zb_engine *e)
{
    ZB_TRY(expect_phase(e, ZB_WANTS_BACKWARD));
    float seed = loss_scale(e), divisor = (float)e->plan.accumulation_steps;
    ZB_TRY(round_seed(e, &seed));
    return enter_phase(e, ZB_WANTS_STEP, zb_executor_backward(&e->executor, e->stage, seed, divisor));
}

zb_status zb_engine_external_micro_batch(zb_engine *e, zb_external_kind kind, const float *const *values)
{
    ZB_TRY(expect_call(e, ZB_WANTS_FORWARD, "external_micro_batch"));
    ZB_TRY(zb_external_check(e, values));
    float divisor = (float)
                        e->plan.accumulation_steps; /* this loss is in fp32 whatever the model computes in */
    return enter_phase(e, ZB_WANTS_STEP, zb_external_run(e, kind, values, loss_scale(e), divisor));
}

/* --- the boundary step --- */

static zb_status boundary_step(zb_engine *e)
{
    ZB_TRY(zb_boundary_step(e));
    note_traffic(e);
    return ZB_OK;
}

zb_status zb_engine_step(zb_engine *e)
{
    ZB_TRY(expect_phase(e, ZB_WANTS_STEP));
    int boundary = zb_engine_is_boundary(e);
    ZB_TRY(enter_phase(e, ZB_WANTS_FORWARD, boundary ? boundary_step(e) : ZB_OK));
    e->micro_index = boundary ? 0 : e->micro_index + 1;
    e->counters.micro_steps++;
    return ZB_OK;
}

static zb_status show(const zb_observer *observer, zb_observation observation)
{
    return observer != NULL ? observer->observe(observer->user, &observation) : ZB_OK;
}

static zb_status train_micro_batches(zb_engine *e, const zb_observer *observer)
{
    int64_t step = e->counters.global_steps;
    for (int64_t micro = 0; micro < e->plan.accumulation_steps; micro++) {
        zb_batch batch;
        float loss;
        ZB_TRY(zb_loader_next(e->loader, &batch));
        ZB_TRY(show(observer, (zb_observation){ .quantity = ZB_Q_SAMPLES,
                                                .step = step,
                                                .micro = micro,
                                                .rank = e->comm->rank,
                                                .param = ZB_NO_PARAM,
                                                .dtype = ZB_INT64,
                                                .numel = (size_t)batch.rows,
                                                .data = batch.indices }));
        ZB_TRY(zb_engine_forward(e, &batch, &loss));
        ZB_TRY(show(observer, (zb_observation){ .quantity = ZB_Q_LOSS,
                                                .step = step,
                                                .micro = micro,
                                                .rank = e->comm->rank,
                                                .param = ZB_NO_PARAM,
                                                .dtype = ZB_FP32,
                                                .numel = 1,
                                                .data = &loss }));
        ZB_TRY(zb_engine_backward(e));
        ZB_TRY(zb_engine_step(e));
    }
    return ZB_OK;
}

zb_status zb_engine_train_step(zb_engine *e, const zb_observer *observer)
{
    if (e->loader == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "the engine has no loader: it was given no data set");
    ZB_TRY(expect_phase(e, ZB_WANTS_FORWARD));
    if (e->micro_index > 0)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "train_step called after %lld of %lld micro-batches of a step that was begun by hand",
                       (long long)e->micro_index, (long long)e->plan.accumulation_steps);
    /* The observer's failure breaks the step off as well: the next one would go on in the middle of it. */
    return enter_phase(e, ZB_WANTS_FORWARD, train_micro_batches(e, observer));
}
