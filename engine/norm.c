/*
 * The global gradient norm; see norm.h. DeepSpeed's ways follow the order and precision of its PyTorch calls:
 * kernels take the norm of each piece, the few numbers that come of it are put together here.
 */
#include "engine/norm.h"

#include <math.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>

#include "engine/state.h"
#include "engine/torch_sum.h"
#include "kernels/kernels.h"

static int is_partial(const zb_engine *e)
{
    return e->stage->ops->norm_is_partial;
}

static size_t word_count(const zb_plan *plan, const zb_layout *layout)
{
    return plan->norm == ZB_NORM_EXACT ? ZB_SUM_SQUARES_WORDS : (size_t)layout->order_count + 1;
}

/* --- create, destroy --- */

zb_status zb_norm_create(zb_engine *e, zb_norm *norm)
{
    norm->word_count = word_count(&e->plan, &e->layout);
    norm->host = zb_alloc_array(norm->word_count, sizeof *norm->host);
    norm->squares = zb_alloc_array(norm->word_count, sizeof *norm->squares);
    norm->of_tensor = zb_alloc_array((size_t)e->layout.norm_tensors.count, sizeof(double));
    if (norm->host == NULL || norm->squares == NULL || norm->of_tensor == NULL) return ZB_NO_MEMORY;
    return zb_device_alloc(e->device, ZB_MEM_WORKSPACE, norm->word_count * sizeof *norm->host, &norm->words);
}

void zb_norm_destroy(zb_engine *e, zb_norm *norm)
{
    zb_device_free(e->device, ZB_MEM_WORKSPACE, norm->word_count * sizeof *norm->host, norm->words);
    zb_free(norm->host);
    zb_free(norm->squares);
    zb_free(norm->of_tensor);
}

/* --- one number across ranks --- */

/* The word after the pieces' norms carries it. */
static zb_status reduce_scalar(zb_engine *e, zb_dtype dtype, zb_redop op, const char *what, void *value)
{
    const size_t bytes = zb_dtype_bytes(dtype);
    void *word = (double *)e->norm.words + (e->norm.word_count - 1);
    ZB_TRY(zb_copy_in(e->compute, word, value, bytes));
    ZB_TRY(zb_engine_collective_run(
        e, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = word, .recv = word, .numel = 1, .dtype = dtype,
        .op = op, .order = zb_orders_source(e->plan.orders, ZB_COLLECTIVE_ALL_REDUCE), .what = what));
    ZB_TRY(zb_copy_out(e->compute, value, word, bytes));
    return zb_stream_wait_idle(e->compute);
}

/* --- the exact norm --- */

/* Over all ranks' shards: fixed-point digits add without rounding, whoever owns what. An infinity or a NaN
 * anywhere shows in it on every rank, so that all agree on an overflow without a further collective. */
static zb_status measure_exact(zb_engine *e, double *norm)
{
    int64_t sums[ZB_SUM_SQUARES_WORDS], *words = e->norm.words;
    ZB_TRY(zb_launch_fill_bytes(e->compute, &(zb_fill_bytes_args){ .data = words, .bytes = sizeof sums }));
    for (int next = 0; next < e->shard.segment_count;) {
        const zb_segment run = zb_shard_run(&e->shard, &next);
        ZB_TRY(zb_launch_sum_squares(e->compute, &(zb_sum_squares_args){ .dtype = e->plan.grad_dtype,
                                                                         .x = run.grad,
                                                                         .numel = run.numel,
                                                                         .accumulator = words }));
    }
    if (is_partial(e))
        ZB_TRY(zb_engine_collective_run(e, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = words,
                                        .recv = words, .numel = ZB_SUM_SQUARES_WORDS, .dtype = ZB_INT64,
                                        .op = ZB_SUM, .what = "gradient norm"));
    ZB_TRY(zb_copy_out(e->compute, sums, words, sizeof sums));
    ZB_TRY(zb_stream_wait_idle(e->compute));
    *norm = zb_sum_squares_norm(sums);
    return ZB_OK;
}

/* --- DeepSpeed's norms --- */

static zb_status launch_norm(zb_engine *e, size_t index, const void *x, size_t numel, int wide)
{
    return zb_launch_norm(e->compute, &(zb_norm_args){ .dtype = e->plan.grad_dtype,
                                                       .x = x,
                                                       .numel = numel,
                                                       .wide = wide,
                                                       .norm = (double *)e->norm.words + index });
}

static zb_status fetch_norms(zb_engine *e, size_t count)
{
    ZB_TRY(zb_copy_out(e->compute, e->norm.host, e->norm.words, count * sizeof *e->norm.host));
    return zb_stream_wait_idle(e->compute);
}

/* DeepSpeed puts -1 in the place of what is no number; squared, it counts as 1. */
static double or_minus_one(double norm)
{
    return isfinite(norm) ? norm : -1.0;
}

/* Every rank has the norm already and sends a share of it; the sum is the mean of equal numbers. Source:
 * runtime/utils.py, clip_grad_norm_, which is not called where nothing is clipped: the same sum, made here.
 */
static zb_status mean_over_ranks(zb_engine *e, float norm, double *mean)
{
    const float share = norm / (float)e->plan.world_size;
    float sum = share;
    if (e->plan.clip_norm > 0.0)
        ZB_TRY(reduce_scalar(e, ZB_FP32, ZB_SUM, "mean of gradient norms", &sum));
    else
        for (int r = 1; r < e->plan.world_size; r++) sum = sum + share;
    *mean = (double)sum;
    return ZB_OK;
}

/* Source: runtime/utils.py, clip_grad_norm_ and get_global_norm_of_tensors. */
static zb_status measure_parameters(zb_engine *e, double *norm)
{
    const zb_layout *layout = &e->layout;
    const int mean = e->plan.norm == ZB_NORM_PARAMETERS_MEAN;
    const int *order = mean ? e->graph.trainable : layout->by_group;
    for (int i = 0; i < layout->order_count; i++)
        ZB_TRY(launch_norm(e, (size_t)i, e->stage->ops->whole_grad(e->stage, order[i]),
                           e->model->params[order[i]].numel, 0));
    ZB_TRY(fetch_norms(e, (size_t)layout->order_count));
    for (int i = 0; i < layout->order_count; i++) {
        const float of_param = (float)e->norm.host[i];
        e->norm.squares[i] = (double)(of_param * of_param);
    }
    const float root = sqrtf(zb_torch_sum_fp32(e->norm.squares, (size_t)layout->order_count));
    *norm = (double)root;
    return mean ? mean_over_ranks(e, root, norm) : ZB_OK;
}

/* PyTorch's vector_norm, of each parameter and of those norms. Source: torch/nn/utils/clip_grad.py. */
static zb_status measure_pytorch(zb_engine *e, double *norm)
{
    const size_t count = (size_t)e->layout.order_count;
    float *of_param = e->norm.of_tensor;
    for (size_t i = 0; i < count; i++) {
        const int param = e->graph.trainable[i];
        ZB_TRY(
            launch_norm(e, i, e->stage->ops->whole_grad(e->stage, param), e->model->params[param].numel, 0));
    }
    ZB_TRY(fetch_norms(e, count));
    for (size_t i = 0; i < count; i++) of_param[i] = (float)e->norm.host[i];
    return zb_cpu_norm(&(zb_norm_args){ .dtype = ZB_FP32, .x = of_param, .numel = count, .norm = norm });
}

/* Source: runtime/utils.py, get_flattened_grad_norm. */
static zb_status measure_flat(zb_engine *e, double *norm)
{
    const zb_layout *layout = &e->layout;
    double sum = 0.0;
    for (int g = 0; g < layout->group_count; g++) {
        const zb_layout_group *group = &layout->groups[g];
        const zb_place place = e->stage->ops->place(e->stage, g, group->shard_begin);
        ZB_TRY(launch_norm(e, (size_t)g, place.grad, group->numel, 0));
    }
    ZB_TRY(fetch_norms(e, (size_t)layout->group_count));
    for (int g = 0; g < layout->group_count; g++) sum = sum + e->norm.host[g] * e->norm.host[g];
    *norm = fabs(or_minus_one(sqrt((double)(float)sum)));
    return ZB_OK;
}

/* Python's ** between numbers: pow of the C library, which may miss the nearest number by one. With an
 * exponent that is known to the compiler it would be replaced by the exact square. */
static double power(double x, double y)
{
    const volatile double exponent = y;
    return pow(x, exponent);
}

/* Source: runtime/utils.py, get_weight_norm and get_global_norm. */
static zb_status measure_unfused(zb_engine *e, double *norm)
{
    const zb_layout *layout = &e->layout;
    float of_group[ZB_PARAM_GROUP_MAX] = { 0 };
    double sum = 0.0;
    for (int i = 0; i < layout->order_count; i++) {
        const int param = layout->by_group[i];
        ZB_TRY(launch_norm(e, (size_t)i, e->stage->ops->whole_grad(e->stage, param),
                           e->model->params[param].numel, 0));
    }
    ZB_TRY(fetch_norms(e, (size_t)layout->order_count));
    for (int i = 0; i < layout->order_count; i++) {
        const float of_param = (float)e->norm.host[i];
        const int group = layout->group_of[layout->by_group[i]];
        of_group[group] = of_group[group] + of_param * of_param;
    }
    for (int g = 0; g < layout->group_count; g++)
        sum = sum + power(or_minus_one(power((double)of_group[g], 0.5)), 2.0);
    *norm = sqrt(sum);
    return ZB_OK;
}

/* Of what this rank holds of a tensor: the squares of its slices' norms, added. Stage 3 asks every rank about
 * all of a sub-group's parameters, stages 1 and 2 only about those that it holds. */
static double sum_of_slices(const zb_engine *e, int tensor)
{
    const zb_layout *layout = &e->layout;
    size_t count = 0;
    for (int i = 0; i < layout->order_count; i++) {
        const int param = layout->by_offset[i];
        const int asked = layout->stage == 3 || zb_layout_slice(layout, param, e->comm->rank).numel > 0;
        if (layout->norm_tensors.of[param] == tensor && asked)
            e->norm.squares[count++] = e->norm.host[i] * e->norm.host[i];
    }
    return zb_torch_sum_fp64(e->norm.squares, count);
}

static zb_status launch_slices(zb_engine *e)
{
    const zb_layout *layout = &e->layout;
    for (int i = 0; i < layout->order_count; i++) {
        const int param = layout->by_offset[i], group = layout->group_of[param];
        const zb_slice slice = zb_layout_slice(layout, param, e->comm->rank);
        const void *grad = NULL;
        if (slice.numel > 0) grad = e->stage->ops->place(e->stage, group, slice.shard_offset).grad;
        ZB_TRY(launch_norm(e, (size_t)i, grad, slice.numel, 1));
    }
    return fetch_norms(e, (size_t)layout->order_count);
}

/* The total is torch.norm of the groups' norms. Source: stage_1_and_2.py, scaled_global_norm. */
static zb_status measure_partitions_fp32(zb_engine *e, double *norm)
{
    const int count = e->layout.norm_tensors.count;
    float *of_tensor = e->norm.of_tensor;
    ZB_TRY(launch_slices(e));
    for (int t = 0; t < count; t++) {
        float sum = (float)sum_of_slices(e, t);
        if (is_partial(e)) ZB_TRY(reduce_scalar(e, ZB_FP32, ZB_SUM, "gradient norm of a group", &sum));
        of_tensor[t] = (float)or_minus_one((double)sqrtf(sum));
    }
    return zb_cpu_norm(
        &(zb_norm_args){ .dtype = ZB_FP32, .x = of_tensor, .numel = (size_t)count, .norm = norm });
}

/* torch.norm of fp64 numbers: four lanes over whole groups of four, the lanes added up, then what is left
 * over, fused. */
static double norm_of_fp64(const double *x, int count)
{
    enum { LANES = 4 };
    const int whole = count - count % LANES;
    double lanes[LANES] = { 0 };
    for (int i = 0; i < whole; i++) lanes[i % LANES] = lanes[i % LANES] + x[i] * x[i];
    double sum = lanes[0];
    for (int l = 1; l < LANES; l++) sum = sum + lanes[l];
    for (int i = whole; i < count; i++) sum = fma(x[i], x[i], sum);
    return sqrt(sum);
}

/* Source: stage3.py, get_grad_norm_direct. */
static zb_status measure_partitions_fp64(zb_engine *e, double *norm)
{
    const int count = e->layout.norm_tensors.count;
    double *of_tensor = e->norm.of_tensor;
    ZB_TRY(launch_slices(e));
    for (int t = 0; t < count; t++) {
        double sum = sum_of_slices(e, t);
        if (is_partial(e)) ZB_TRY(reduce_scalar(e, ZB_FP64, ZB_SUM, "gradient norm of a sub-group", &sum));
        of_tensor[t] = or_minus_one(sqrt(sum));
    }
    *norm = norm_of_fp64(of_tensor, count);
    return ZB_OK;
}

zb_status zb_norm_measure(zb_engine *e, double *norm)
{
    switch (e->plan.norm) {
    case ZB_NORM_EXACT:
        return measure_exact(e, norm);
    case ZB_NORM_PARAMETERS_MEAN:
    case ZB_NORM_PARAMETERS:
        return measure_parameters(e, norm);
    case ZB_NORM_PYTORCH:
        return measure_pytorch(e, norm);
    case ZB_NORM_FLAT:
        return measure_flat(e, norm);
    case ZB_NORM_UNFUSED:
        return measure_unfused(e, norm);
    case ZB_NORM_PARTITION_FP32:
        return measure_partitions_fp32(e, norm);
    case ZB_NORM_PARTITION_FP64:
        return measure_partitions_fp64(e, norm);
    }
    return zb_fail(ZB_INTERNAL, "norm method is %d", (int)e->plan.norm);
}

/* --- overflow --- */

int zb_norm_flags_overflow(const zb_plan *plan)
{
    const int heeds = plan->overflow == ZB_OVERFLOW_SKIP || plan->overflow == ZB_OVERFLOW_COUNT;
    return heeds && (plan->quirks.overflow_by_flag || plan->norm != ZB_NORM_EXACT);
}

/* The exact norm is taken of a skipped step too; DeepSpeed takes none then, and reports the one before. */
int zb_norm_is_measured(const zb_plan *plan, int overflow)
{
    return !overflow || plan->overflow != ZB_OVERFLOW_SKIP || plan->norm == ZB_NORM_EXACT;
}

/* Where every rank has every average they agree without asking. Source: stage_1_and_2.py, has_overflow. */
zb_status zb_norm_find_overflow(zb_engine *e, int *overflow)
{
    uint8_t flag = 0, *word = e->norm.words;
    ZB_TRY(zb_launch_fill_bytes(e->compute, &(zb_fill_bytes_args){ .data = word, .bytes = sizeof flag }));
    for (int next = 0; next < e->shard.segment_count;) {
        const zb_segment run = zb_shard_run(&e->shard, &next);
        ZB_TRY(zb_launch_find_nonfinite(
            e->compute, &(zb_find_nonfinite_args){
                            .dtype = e->plan.grad_dtype, .x = run.grad, .numel = run.numel, .flag = word }));
    }
    if (is_partial(e))
        ZB_TRY(zb_engine_collective_run(e, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = word, .recv = word,
                                        .numel = 1, .dtype = ZB_UINT8, .op = ZB_MAX,
                                        .what = "overflow flag"));
    ZB_TRY(zb_copy_out(e->compute, &flag, word, sizeof flag));
    ZB_TRY(zb_stream_wait_idle(e->compute));
    *overflow = flag;
    return ZB_OK;
}

/* --- by formula --- */

uint64_t zb_norm_bytes(const zb_stage_facts *facts)
{
    return word_count(facts->plan, facts->layout) * sizeof(double);
}

static void add_calls(zb_traffic *traffic, uint64_t calls, uint64_t bytes)
{
    traffic->calls += calls;
    traffic->bytes += calls * bytes;
}

void zb_norm_traffic(const zb_stage_facts *facts, zb_traffic *all_reduce)
{
    const zb_plan *plan = facts->plan;
    const int partial = zb_stage_find(facts->layout->stage)->norm_is_partial;
    const uint64_t tensors = (uint64_t)facts->layout->norm_tensors.count;
    const int by_flag = zb_norm_flags_overflow(plan);
    if (partial && by_flag) add_calls(all_reduce, 1, 1);
    if (!zb_norm_is_measured(plan, facts->skipped)) return;
    if (plan->norm == ZB_NORM_PARAMETERS_MEAN && plan->clip_norm > 0.0)
        add_calls(all_reduce, 1, sizeof(float));
    if (!partial) return;
    if (plan->norm == ZB_NORM_EXACT) add_calls(all_reduce, 1, ZB_SUM_SQUARES_WORDS * sizeof(int64_t));
    if (plan->norm == ZB_NORM_PARTITION_FP32) add_calls(all_reduce, tensors, sizeof(float));
    if (plan->norm == ZB_NORM_PARTITION_FP64) add_calls(all_reduce, tensors, sizeof(double));
}
