/*
 * Gradient norm and clipping by the plan's methods. DeepSpeed's have the precision and the order of its
 * PyTorch calls: sums of squares that PyTorch takes on a CPU in fp32 run in eight lanes (AVX2), the rest one
 * by one.
 */
#include "ref/oracle.h"

#include <math.h>

/* torch.norm of an fp32 array: eight lanes over whole groups of eight, added up, then what is left over. */
static float norm_fp32(const float *x, size_t numel)
{
    enum { LANES = 8 };
    const size_t whole = numel - numel % LANES;
    float lane[LANES] = { 0.0f };
    for (size_t i = 0; i < whole; i++) lane[i % LANES] = lane[i % LANES] + x[i] * x[i];
    float sum = lane[0];
    for (size_t l = 1; l < LANES; l++) sum = sum + lane[l];
    for (size_t i = whole; i < numel; i++) sum = sum + x[i] * x[i];
    return sqrtf(sum);
}

/* The same of the array converted to fp64, where squares are exact. */
static double norm_fp64(const float *x, size_t numel)
{
    double sum = 0.0;
    for (size_t i = 0; i < numel; i++) sum = sum + (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* Where DeepSpeed puts -1 in place of an infinity or a NaN. */
static double finite_or_minus_1(double norm)
{
    return isfinite(norm) ? norm : -1.0;
}

/* Each rank has the norm already; what it sends is a share of it, and the sum is the mean of equal numbers.
 */
static float mean_over_ranks(float norm, int world_size)
{
    const float share = norm / (float)world_size;
    float mean = share;
    for (int r = 1; r < world_size; r++) mean = mean + share;
    return mean;
}

/* clip_grad_norm_ walks the model, whatever the groups. */
static float norm_of_model(const zb_model *model, const zb_ref_tensors *gradients)
{
    float sum = 0.0f;
    for (int p = 0; p < model->param_count; p++) {
        if (!model->params[p].requires_grad) continue;
        const float norm = norm_fp32(gradients->param[p], model->params[p].numel);
        sum = sum + norm * norm;
    }
    return sqrtf(sum);
}

/* get_global_norm_of_tensors, group by group. */
static double norm_of_parameters(const zb_ref_shard *shard, const zb_ref_tensors *gradients, float *scratch)
{
    float sum = 0.0f;
    for (size_t t = 0; t < shard->tensor_count; t++) {
        zb_ref_shard_gather(shard, t, gradients, scratch);
        const float norm = norm_fp32(scratch, shard->tensors[t].numel);
        sum = sum + norm * norm;
    }
    return finite_or_minus_1((double)sqrtf(sum));
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

/* Of what a rank holds of a tensor, padding left out: the squares of its pieces' norms, added. */
static double sum_of_pieces(const zb_ref_shard *shard, size_t t, const zb_ref_tensors *gradients)
{
    const zb_ref_shard_tensor *tensor = &shard->tensors[t];
    double sum = 0.0;
    for (size_t i = 0; i < tensor->piece_count; i++) {
        const zb_ref_piece *piece = &shard->pieces[tensor->first_piece + i];
        const double norm = norm_fp64(gradients->param[piece->param] + piece->first, piece->numel);
        sum = sum + norm * norm;
    }
    return sum;
}

/* Stages 1, 2: fp32 from where ranks add up; the total is torch.norm of the groups' norms. */
static double norm_of_partitions(const zb_plan *plan, const zb_ref_shard *shards,
                                 const zb_ref_tensors *gradients, float *scratch)
{
    for (size_t t = 0; t < shards[0].tensor_count; t++) {
        float sum = (float)sum_of_pieces(&shards[0], t, gradients);
        for (int r = 1; r < plan->world_size; r++) sum = sum + (float)sum_of_pieces(&shards[r], t, gradients);
        scratch[t] = (float)finite_or_minus_1((double)sqrtf(sum));
    }
    return (double)norm_fp32(scratch, shards[0].tensor_count);
}

/* Stage 3: fp64 throughout. */
static double norm_of_sub_groups(const zb_plan *plan, const zb_ref_shard *shards,
                                 const zb_ref_tensors *gradients)
{
    double total = 0.0;
    for (size_t t = 0; t < shards[0].tensor_count; t++) {
        double sum = sum_of_pieces(&shards[0], t, gradients);
        for (int r = 1; r < plan->world_size; r++) sum = sum + sum_of_pieces(&shards[r], t, gradients);
        const double norm = finite_or_minus_1(sqrt(sum));
        total = total + norm * norm;
    }
    return sqrt(total);
}

zb_tensors zb_ref_norm_tensors(const zb_plan *plan)
{
    switch (plan->norm) {
    case ZB_NORM_EXACT:
    case ZB_NORM_PARAMETERS_MEAN:
    case ZB_NORM_PARAMETERS:
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
                        const zb_ref_tensors *gradients, float *scratch)
{
    switch (plan->norm) {
    case ZB_NORM_EXACT:
        return zb_ref_norm(model, gradients);
    case ZB_NORM_PARAMETERS_MEAN:
        return (double)mean_over_ranks(norm_of_model(model, gradients), plan->world_size);
    case ZB_NORM_PARAMETERS:
        return norm_of_parameters(&shards[0], gradients, scratch);
    case ZB_NORM_FLAT:
        return norm_of_groups(&shards[0], gradients, scratch);
    case ZB_NORM_PARTITION_FP32:
        return norm_of_partitions(plan, shards, gradients, scratch);
    case ZB_NORM_PARTITION_FP64:
        return norm_of_sub_groups(plan, shards, gradients);
    }
    ZB_ASSERT(0);
    return NAN;
}

double zb_ref_reported_norm(const zb_plan *plan, double norm, double loss_scale)
{
    if (plan->norm == ZB_NORM_PARTITION_FP32) return (double)((float)norm / (float)loss_scale);
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
    const float coefficient = clips ? clip_norm / ((float)norm + 1e-6f) : 1.0f;
    return coefficient > 1.0f ? 1.0f : coefficient; /* a NaN stays */
}
