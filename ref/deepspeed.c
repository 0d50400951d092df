/*
 * Gradient norm and clipping as DeepSpeed 0.19.6 computes them, with the precision and the order of its
 * PyTorch calls. Sums and squares that PyTorch takes on a CPU in fp32 run in eight lanes (AVX2), the rest one
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

/* Each rank has the norm already; what it sends is a share of it, and the sum is the mean of equal numbers.
 */
static float mean_over_ranks(float norm, int world_size)
{
    const float share = norm / (float)world_size;
    float mean = share;
    for (int r = 1; r < world_size; r++) mean = mean + share;
    return mean;
}

static float norm_of_parameters(const zb_model *model, const zb_ref_tensors *gradients)
{
    float sum = 0.0f;
    for (int p = 0; p < model->param_count; p++) {
        const float norm = norm_fp32(gradients->param[p], model->params[p].numel);
        sum = sum + norm * norm;
    }
    return sqrtf(sum);
}

/* Of what a rank holds in one of its tensors, padding left out: the squares of its pieces' norms, added. */
static double sum_of_pieces(const zb_ref_shard *shard, size_t tensor, const zb_ref_tensors *gradients)
{
    double sum = 0.0;
    for (size_t i = 0; i < shard->piece_count; i++) {
        const zb_ref_piece *piece = &shard->pieces[i];
        if (piece->tensor != tensor) continue;
        const double norm = norm_fp64(gradients->param[piece->param] + piece->first, piece->numel);
        sum = sum + norm * norm;
    }
    return sum;
}

/* A tensor's norm over all ranks; DeepSpeed puts -1 in place of an infinity or a NaN, which then counts as 1.
 */
static double norm_of_partitions(const zb_plan *plan, const zb_ref_shard *shards,
                                 const zb_ref_tensors *gradients)
{
    const int narrow = plan->norm == ZB_NORM_PARTITION_FP32;
    double total = 0.0;
    for (size_t t = 0; t < shards[0].tensor_count; t++) {
        double sum = 0.0;
        for (int r = 0; r < plan->world_size; r++) {
            const double of_rank = sum_of_pieces(&shards[r], t, gradients);
            sum = narrow ? (double)((float)sum + (float)of_rank) : sum + of_rank;
        }
        double norm = narrow ? (double)sqrtf((float)sum) : sqrt(sum);
        if (!isfinite(norm)) norm = -1.0;
        total = narrow ? (double)((float)total + (float)norm * (float)norm) : total + norm * norm;
    }
    return narrow ? (double)sqrtf((float)total) : sqrt(total);
}

double zb_ref_deepspeed_norm(const zb_plan *plan, const zb_model *model, const zb_ref_shard *shards,
                             const zb_ref_tensors *gradients)
{
    if (plan->norm == ZB_NORM_PARAMETERS_MEAN)
        return (double)mean_over_ranks(norm_of_parameters(model, gradients), plan->world_size);
    if (plan->norm == ZB_NORM_FLAT) { /* squared in fp64, added up in fp32, and the root again in fp64 */
        const double norm = (double)norm_fp32(gradients->data, gradients->numel);
        return sqrt((double)(float)(norm * norm));
    }
    return norm_of_partitions(plan, shards, gradients);
}

double zb_ref_deepspeed_reported_norm(const zb_plan *plan, double norm, double loss_scale)
{
    if (plan->norm == ZB_NORM_PARTITION_FP32) return (double)((float)norm / (float)loss_scale);
    return norm / loss_scale;
}

float zb_ref_deepspeed_grad_scale(const zb_plan *plan, double norm, double loss_scale)
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
