/*
 * Gradient norm and clipping by the plan's methods. DeepSpeed's have the precision and the order of its
 * PyTorch calls: sums of squares that PyTorch takes on a CPU in fp32 run in eight lanes (AVX2), the rest one
 * by one.
 */
#include "ref/oracle.h"

#include <math.h>

/* torch.norm of an fp32 array: eight lanes over whole groups of eight, added up, then what is left over: four
 * elements likewise, the last one to three by fused multiply-adds. */
static float norm_fp32(const float *x, size_t numel)
{
    enum { LANES = 8 };
    const size_t whole = numel - numel % LANES, rounded_twice = numel - numel % 4;
    float lane[LANES] = { 0.0f };
    for (size_t i = 0; i < whole; i++) lane[i % LANES] = lane[i % LANES] + x[i] * x[i];
    float sum = lane[0];
    for (size_t l = 1; l < LANES; l++) sum = sum + lane[l];
    for (size_t i = whole; i < rounded_twice; i++) sum = sum + x[i] * x[i];
    for (size_t i = rounded_twice; i < numel; i++) sum = fmaf(x[i], x[i], sum);
    return sqrtf(sum);
}

/* The same of the array converted to fp64, where squares are exact, in four lanes. */
static double norm_fp64(const float *x, size_t numel)
{
    enum { LANES = 4 };
    const size_t whole = numel - numel % LANES;
    double lane[LANES] = { 0.0 };
    for (size_t i = 0; i < whole; i++) lane[i % LANES] = lane[i % LANES] + (double)x[i] * (double)x[i];
    double sum = lane[0];
    for (size_t l = 1; l < LANES; l++) sum = sum + lane[l];
    for (size_t i = whole; i < numel; i++) sum = sum + (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/*
 * torch.sum of a small array, ATen/native/cpu/SumKernel.cpp: rows as wide as a vector register, added to four
 * accumulators in turn, each of which is emptied into the level above after every so many rows. What does not
 * fill a row comes first in the end, then the lanes. An array shorter than a row is added likewise, one by
 * one.
 */
typedef struct summands {
    double (*at)(const void *context, size_t i);
    const void *context;
    size_t count;
    int narrow; /* fp32, in eight lanes; else fp64 in four */
} summands;

enum { LEVELS = 4, TURNS = 4, LANES_MAX = 8 };

/* Sums of two fp32 numbers are rounded once, as fp64 is wide enough. */
static double plus(const summands *s, double a, double b)
{
    return s->narrow ? (double)(float)(a + b) : a + b;
}

static void add_row(const summands *s, size_t lanes, size_t row, double *to)
{
    for (size_t l = 0; l < lanes; l++) to[l] = plus(s, to[l], s->at(s->context, row * lanes + l));
}

/* How many rows each accumulator takes before it is emptied, as a power of two. */
static int level_power(size_t rows)
{
    int bits = 0;
    while (((size_t)1 << bits) < rows) bits++;
    return bits / LEVELS > 4 ? bits / LEVELS : 4;
}

static void empty_level(const summands *s, double (*from)[LANES_MAX], double (*to)[LANES_MAX])
{
    for (int k = 0; k < TURNS; k++)
        for (int l = 0; l < LANES_MAX; l++) {
            to[k][l] = plus(s, to[k][l], from[k][l]);
            from[k][l] = 0.0;
        }
}

static void sum_rows(const summands *s, size_t lanes, size_t rows, double total[LANES_MAX])
{
    double level[LEVELS][TURNS][LANES_MAX] = { { { 0.0 } } };
    const size_t turns = rows / TURNS;
    const int power = level_power(turns);
    for (size_t i = 0; i < turns; i++) {
        for (size_t k = 0; k < TURNS; k++) add_row(s, lanes, i * TURNS + k, level[0][k]);
        for (int j = 1; j < LEVELS; j++) {
            const size_t done = i + 1, filled = (size_t)1 << (j * power);
            if (done % filled != 0) break;
            empty_level(s, level[j - 1], level[j]);
        }
    }
    for (int j = 1; j < LEVELS; j++) empty_level(s, level[j], level[0]);
    for (size_t row = turns * TURNS; row < rows; row++) add_row(s, lanes, row, level[0][0]);
    for (int l = 0; l < LANES_MAX; l++) {
        total[l] = level[0][0][l];
        for (int k = 1; k < TURNS; k++) total[l] = plus(s, total[l], level[0][k][l]);
    }
}

static double torch_sum(const summands *s)
{
    const size_t width = s->narrow ? 8 : 4, lanes = s->count < width ? 1 : width, rows = s->count / lanes;
    double lane[LANES_MAX], sum = 0.0;
    sum_rows(s, lanes, rows, lane);
    for (size_t i = rows * lanes; i < s->count; i++) sum = plus(s, sum, s->at(s->context, i));
    for (size_t l = 0; l < lanes; l++) sum = plus(s, sum, lane[l]);
    return sum;
}

/* Where DeepSpeed puts -1 in place of an infinity or a NaN. */
static double finite_or_minus_1(double norm)
{
    return isfinite(norm) ? norm : -1.0;
}

/* Each rank has the norm already; what it sends is a share of it, and the sum is the mean of equal numbers.
 */
static float mean_over_ranks(const zb_plan *plan, const zb_ref_exchange *exchange, float norm)
{
    const float share = norm / (float)plan->world_size;
    float mean = share;
    for (int r = 0; r < plan->world_size; r++) exchange->values[r] = (double)share;
    if (plan->clip_norm > 0.0) return zb_ref_exchange_sum_fp32(exchange);
    for (int r = 1; r < plan->world_size; r++)
        mean = mean + share; /* nobody is asked: the same sum, made here */
    return mean;
}

/* Squared norms of the trainable parameters of a model, which clip_grad_norm_ walks whatever the groups. One
 * without elements has no gradient (engine.py, _get_gradients_for_reduction) and is passed over. */
typedef struct model_squares {
    const zb_model *model;
    const zb_ref_tensors *gradients;
} model_squares;

static int has_gradient(const zb_param *param)
{
    return param->requires_grad && param->numel > 0;
}

static double square_of_param(const void *context, size_t i)
{
    const model_squares *of = context;
    int p = 0;
    for (size_t before = 0;; p++)
        if (has_gradient(&of->model->params[p]) && before++ == i) break;
    const float norm = norm_fp32(of->gradients->param[p], of->model->params[p].numel);
    return (double)(norm * norm);
}

static float norm_of_model(const zb_model *model, const zb_ref_tensors *gradients)
{
    const model_squares of = { model, gradients };
    summands squares = { .at = square_of_param, .context = &of, .narrow = 1 };
    for (int p = 0; p < model->param_count; p++) squares.count += (size_t)has_gradient(&model->params[p]);
    return sqrtf((float)torch_sum(&squares));
}

/* PyTorch's clip_grad_norm_: vector_norm of the parameters' norms. */
static float norm_of_norms(const zb_model *model, const zb_ref_tensors *gradients, float *scratch)
{
    size_t count = 0;
    for (int p = 0; p < model->param_count; p++)
        if (has_gradient(&model->params[p]))
            scratch[count++] = norm_fp32(gradients->param[p], model->params[p].numel);
    return norm_fp32(scratch, count);
}

/* The same group by group: get_global_norm_of_tensors. */
typedef struct tensor_squares {
    const zb_ref_shard *shard;
    const zb_ref_tensors *gradients;
    float *scratch;
} tensor_squares;

static double square_of_tensor(const void *context, size_t t)
{
    const tensor_squares *of = context;
    zb_ref_shard_gather(of->shard, t, of->gradients, of->scratch);
    const float norm = norm_fp32(of->scratch, of->shard->tensors[t].numel);
    return (double)(norm * norm);
}

static double norm_of_parameters(const zb_ref_shard *shard, const zb_ref_tensors *gradients, float *scratch)
{
    const tensor_squares of = { shard, gradients, scratch };
    const summands squares = {
        .at = square_of_tensor, .context = &of, .count = shard->tensor_count, .narrow = 1
    };
    return finite_or_minus_1((double)sqrtf((float)torch_sum(&squares)));
}

/* get_flattened_grad_norm: each group's norm in fp32, squared and added in fp64, the sum rounded to fp32;
 * then get_global_norm, which makes 1 of -1. */
static double norm_of_groups(const zb_ref_shard *shard, const zb_ref_tensors *gradients, float *scratch)
{
    double sum = 0.0;
    for (size_t t = 0; t < shard->tensor_count; t++) {
        zb_ref_shard_gather(shard, t, gradients, scratch);
        const double norm = (double)norm_fp32(scratch, shard->tensors[t].numel);
        sum = sum + norm * norm;
    }
    return fabs(finite_or_minus_1(sqrt((double)(float)sum)));
}

/* x ** y of Python's numbers, which is the C library's pow and not always the number nearest to the square or
 * to the root. A compiler that knows y would compute those. */
static double python_power(double x, double y)
{
    const volatile double exponent = y;
    return pow(x, exponent);
}

/* get_weight_norm of each group, a tensor of squares added one by one in fp32; then get_global_norm. */
static double norm_of_unfused(const zb_ref_shard *shard, const zb_ref_tensors *gradients, float *scratch)
{
    double total = 0.0;
    for (size_t t = 0; t < shard->tensor_count;) {
        const int group = shard->tensors[t].group;
        float sum = 0.0f;
        for (; t < shard->tensor_count && shard->tensors[t].group == group; t++) {
            zb_ref_shard_gather(shard, t, gradients, scratch);
            const float norm = norm_fp32(scratch, shard->tensors[t].numel);
            sum = sum + norm * norm;
        }
        total = total + python_power(finite_or_minus_1(python_power((double)sum, 0.5)), 2.0);
    }
    return sqrt(total);
}

/* Of what a rank holds of a tensor, padding left out: the squared norms of its pieces. */
typedef struct piece_squares {
    const zb_ref_piece *pieces; /* the rank's own of the tensor */
    size_t piece_count;
    const zb_ref_piece *asked; /* stage 3: rank 0's, for it has some of every parameter; NULL: the own ones */
    const zb_ref_tensors *gradients;
} piece_squares;

static double square_of_piece(const void *context, size_t i)
{
    const piece_squares *of = context;
    size_t own = of->asked == NULL ? i : 0;
    while (of->asked != NULL && own < of->piece_count && of->pieces[own].param != of->asked[i].param) own++;
    if (own == of->piece_count) return 0.0;
    const zb_ref_piece *piece = &of->pieces[own];
    const double norm = norm_fp64(of->gradients->param[piece->param] + piece->first, piece->numel);
    return norm * norm;
}

/* Stage 3 asks each rank about all of a sub-group's parameters, stages 1 and 2 about those that it holds. */
static double sum_of_pieces(const zb_ref_shard *shards, int rank, size_t t, int asks_all,
                            const zb_ref_tensors *gradients)
{
    const zb_ref_shard_tensor *own = &shards[rank].tensors[t], *first = &shards[0].tensors[t];
    const piece_squares of = { .pieces = shards[rank].pieces + own->first_piece,
                               .piece_count = own->piece_count,
                               .asked = asks_all ? shards[0].pieces + first->first_piece : NULL,
                               .gradients = gradients };
    const summands squares = { .at = square_of_piece,
                               .context = &of,
                               .count = asks_all ? first->piece_count : own->piece_count };
    return torch_sum(&squares);
}

/* Stages 1, 2: fp32 from where ranks add up; the total is torch.norm of the groups' norms. */
static double norm_of_partitions(const zb_plan *plan, const zb_ref_shard *shards,
                                 const zb_ref_tensors *gradients, const zb_ref_exchange *exchange,
                                 float *scratch)
{
    for (size_t t = 0; t < shards[0].tensor_count; t++) {
        for (int r = 0; r < plan->world_size; r++)
            exchange->values[r] = (double)(float)sum_of_pieces(shards, r, t, 0, gradients);
        const float sum = zb_ref_exchange_sum_fp32(exchange);
        scratch[t] = (float)finite_or_minus_1((double)sqrtf(sum));
    }
    return (double)norm_fp32(scratch, shards[0].tensor_count);
}

/* Stage 3: fp64 throughout, the total again torch.norm: four lanes, and what is left over fused. */
static double norm_of_sub_groups(const zb_plan *plan, const zb_ref_shard *shards,
                                 const zb_ref_tensors *gradients, const zb_ref_exchange *exchange)
{
    enum { LANES = 4 };
    const size_t count = shards[0].tensor_count, whole = count - count % LANES;
    double lane[LANES] = { 0.0 }, total = 0.0;
    for (size_t t = 0; t < count; t++) {
        for (int r = 0; r < plan->world_size; r++)
            exchange->values[r] = sum_of_pieces(shards, r, t, 1, gradients);
        const double sum = zb_ref_exchange_sum_fp64(exchange);
        const double norm = finite_or_minus_1(sqrt(sum));
        if (t == whole)
            for (size_t l = 0; l < LANES; l++) total = total + lane[l];
        if (t < whole)
            lane[t % LANES] = lane[t % LANES] + norm * norm;
        else
            total = fma(norm, norm, total);
    }
    for (size_t l = 0; count == whole && l < LANES; l++) total = total + lane[l];
    return sqrt(total);
}

zb_tensors zb_ref_norm_tensors(const zb_plan *plan)
{
    switch (plan->norm) {
    case ZB_NORM_EXACT:
    case ZB_NORM_PARAMETERS_MEAN:
    case ZB_NORM_PARAMETERS:
    case ZB_NORM_UNFUSED:
    case ZB_NORM_PYTORCH:
        return ZB_TENSORS_PARAMETERS;
    case ZB_NORM_FLAT:
        return ZB_TENSORS_GROUPS;
    case ZB_NORM_PARTITION_FP32:
        return ZB_TENSORS_PARTITIONS;
    case ZB_NORM_PARTITION_FP64:
        return ZB_TENSORS_SUB_GROUPS;
    }
    ZB_ASSERT(0);
    return ZB_TENSORS_PARAMETERS;
}

double zb_ref_plan_norm(const zb_plan *plan, const zb_model *model, const zb_ref_shard *shards,
                        const zb_ref_tensors *gradients, const zb_ref_exchange *exchange, float *scratch)
{
    switch (plan->norm) {
    case ZB_NORM_EXACT:
        return zb_ref_norm(model, gradients);
    case ZB_NORM_PARAMETERS_MEAN:
        return (double)mean_over_ranks(plan, exchange, norm_of_model(model, gradients));
    case ZB_NORM_PARAMETERS:
        return norm_of_parameters(&shards[0], gradients, scratch);
    case ZB_NORM_FLAT:
        return norm_of_groups(&shards[0], gradients, scratch);
    case ZB_NORM_UNFUSED:
        return norm_of_unfused(&shards[0], gradients, scratch);
    case ZB_NORM_PARTITION_FP32:
        return norm_of_partitions(plan, shards, gradients, exchange, scratch);
    case ZB_NORM_PARTITION_FP64:
        return norm_of_sub_groups(plan, shards, gradients, exchange);
    case ZB_NORM_PYTORCH:
        return (double)norm_of_norms(model, gradients, scratch);
    }
    ZB_ASSERT(0);
    return NAN;
}

double zb_ref_reported_norm(const zb_plan *plan, double norm, double loss_scale)
{
    if (plan->norm == ZB_NORM_PARTITION_FP32) return (double)((float)norm / (float)loss_scale);
    if (plan->norm == ZB_NORM_UNFUSED) return norm; /* the loss scale stays in it */
    return norm / loss_scale;
}

float zb_ref_plan_grad_scale(const zb_plan *plan, double norm, double loss_scale)
{
    const float clip_norm = (float)plan->clip_norm, scale = (float)loss_scale;
    const int clips = plan->clip_norm > 0.0;
    if (plan->clip == ZB_CLIP_COMBINED)
        return zb_ref_grad_scale(norm / loss_scale, plan->clip_norm, loss_scale);
    if (plan->clip == ZB_CLIP_COMBINED_FP32) {
        const float excess = clips ? ((float)norm / scale + 1e-6f) / clip_norm : 0.0f;
        return 1.0f / (excess > 1.0f ? excess * scale : scale);
    }
    const float divisor = (float)norm + 1e-6f;
    const float quotient = plan->clip == ZB_CLIP_RECIPROCAL ? 1.0f / divisor * clip_norm
                                                            : clip_norm / divisor;
    const float coefficient = clips ? quotient : 1.0f;
    return coefficient > 1.0f ? 1.0f : coefficient; /* a NaN stays */
}
