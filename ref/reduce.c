/* Across ranks and micro-batches: sums in rank order, and the exact global norm. */
#include "ref/oracle.h"

#include <math.h>
#include <string.h>
#include <zerobit/memory.h>

void zb_ref_store(zb_dtype dtype, const zb_ref_tensors *from, int add, zb_ref_tensors *to)
{
    for (size_t i = 0; i < to->numel; i++)
        to->data[i] = zb_ref_round(dtype, add ? to->data[i] + from->data[i] : from->data[i]);
}

float zb_ref_factor(zb_factor factor, zb_dtype dtype, float x)
{
    if (factor.kind == ZB_FACTOR_MULTIPLY) return zb_ref_round(dtype, x * factor.by);
    if (factor.kind == ZB_FACTOR_DIVIDE) return zb_ref_round(dtype, x / factor.by);
    return x;
}

float zb_ref_contribution(const zb_plan *plan, float x)
{
    const zb_averaging *averaging = &plan->averaging;
    x = zb_ref_round(plan->bucket_dtype, x);
    x = zb_ref_factor(averaging->in_bucket, plan->bucket_dtype, x);
    x = zb_ref_round(plan->comm_dtype, x);
    x = zb_ref_factor(averaging->before[0], plan->comm_dtype, x);
    return zb_ref_factor(averaging->before[1], plan->comm_dtype, x);
}

void zb_ref_reduce(const zb_plan *plan, const zb_ref_tensors *ranks, zb_ref_tensors *out)
{
    for (size_t i = 0; i < out->numel; i++) {
        float sum = zb_ref_contribution(plan, ranks[0].data[i]);
        for (int r = 1; r < plan->world_size; r++) sum = sum + zb_ref_contribution(plan, ranks[r].data[i]);
        if (plan->averaging.inside) sum = sum / (float)plan->world_size;
        sum = zb_ref_round(plan->comm_dtype, sum);
        out->data[i] = zb_ref_factor(plan->averaging.after, plan->comm_dtype, sum);
    }
}

/* Nothing is sent: each rank's optimizer is given what that rank has. */
static void keep_own(const zb_plan *plan, const zb_ref_shard *owners, const zb_ref_tensors *ranks,
                     zb_ref_tensors *out)
{
    for (int r = 0; r < plan->world_size; r++)
        for (size_t i = 0; i < owners[r].piece_count; i++) {
            const zb_ref_piece *piece = &owners[r].pieces[i];
            memcpy(out->param[piece->param] + piece->first, ranks[r].param[piece->param] + piece->first,
                   piece->numel * sizeof(float));
        }
}

zb_status zb_ref_sums_create(const zb_model *model, int world_size, zb_ref_sums *sums)
{
    zb_ref_sums made = { .world_size = world_size };
    zb_status status = ZB_NO_MEMORY;
    made.rank = zb_alloc_array((size_t)world_size, sizeof *made.rank);
    if (made.rank != NULL) status = zb_ref_tensors_create(model, &made.average);
    if (status == ZB_OK) status = zb_ref_tensors_create(model, &made.reduced);
    for (int r = 0; r < world_size && status == ZB_OK; r++)
        status = zb_ref_tensors_create(model, &made.rank[r]);
    if (status != ZB_OK) {
        zb_ref_sums_destroy(&made);
        return status;
    }
    *sums = made;
    return ZB_OK;
}

void zb_ref_sums_destroy(zb_ref_sums *sums)
{
    for (int r = 0; sums->rank != NULL && r < sums->world_size; r++) zb_ref_tensors_destroy(&sums->rank[r]);
    zb_free(sums->rank);
    zb_ref_tensors_destroy(&sums->average);
    zb_ref_tensors_destroy(&sums->reduced);
    *sums = (zb_ref_sums){ 0 };
}

/* The first is stored, each later one added; likewise below. */
void zb_ref_sums_add(const zb_plan *plan, int64_t micro, int rank, const zb_ref_tensors *gradient,
                     zb_ref_sums *sums)
{
    const int add = micro > 0 && plan->reduce_when == ZB_REDUCE_AT_BOUNDARY;
    zb_ref_store(plan->local_dtype, gradient, add, &sums->rank[rank]);
}

void zb_ref_sums_reduce(const zb_plan *plan, int64_t micro, const zb_ref_shard *owners,
                        const zb_ref_exchange *exchange, zb_ref_sums *sums)
{
    const int every_micro_batch = plan->reduce_when == ZB_REDUCE_EVERY_MICRO_BATCH;
    if (!every_micro_batch && micro < plan->accumulation_steps - 1) return;
    if (plan->averaging.absent)
        keep_own(plan, owners, sums->rank, &sums->average);
    else if (exchange->route != NULL)
        zb_ref_exchange_gradients(exchange, plan, sums->rank, &sums->average);
    else
        zb_ref_reduce(plan, sums->rank, &sums->average);
    zb_ref_round_all(plan->grad_dtype, sums->average.data, sums->average.numel);
    zb_ref_store(plan->grad_dtype, &sums->average, every_micro_batch && micro > 0, &sums->reduced);
}

/* --- the exact sum of squares --- */

enum { DIGITS = ZB_REF_SQUARE_DIGITS, UNIT_EXPONENT = -298 };

/* sum += value * 2^(32 d) */
static void add_at(zb_ref_square_sum *sum, size_t d, uint64_t value)
{
    for (; value != 0; d++) {
        ZB_ASSERT(d < DIGITS);
        value += sum->digit[d]; /* value is below 2^63 in the first round and below 2^32 later */
        sum->digit[d] = (uint32_t)value;
        value >>= 32;
    }
}

/* sum += x * x. With |x| = significand * 2^(exponent - 149) the square is significand^2 units, moved up by 2
 * exponent. */
void zb_ref_square_sum_add(zb_ref_square_sum *sum, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t exponent = bits >> 23 & 0xff, significand = bits & 0x7fffff;
    if (exponent == 0xff) {
        if (significand == 0)
            sum->infinity_seen = 1;
        else
            sum->nan_seen = 1;
        return;
    }
    if (exponent != 0) { /* a normal number: its leading 1 is not stored; a subnormal has the exponent of 1 */
        significand |= 0x800000;
        exponent -= 1;
    }
    uint64_t square = (uint64_t)significand * significand; /* below 2^48 */
    size_t d = 2 * exponent / 32, shift = 2 * exponent % 32;
    add_at(sum, d, (square & 0xffffffff) << shift);
    add_at(sum, d + 1, (square >> 32) << shift);
}

static int bit_of(const zb_ref_square_sum *sum, int i)
{
    return (int)(sum->digit[i / 32] >> (i % 32) & 1);
}

static int any_bit_below(const zb_ref_square_sum *sum, int i)
{
    for (int j = 0; j < i; j++)
        if (bit_of(sum, j)) return 1;
    return 0;
}

/* The nearest fp64 number, ties to even. Never subnormal and never too large: 2^-298 .. 2^320. */
static double rounded(const zb_ref_square_sum *sum)
{
    int top = 32 * DIGITS - 1;
    while (top > 0 && !bit_of(sum, top)) top--;
    int lowest = top > 52 ? top - 52 : 0; /* the lowest of the 53 bits that are kept */

    uint64_t kept = 0;
    for (int i = top; i >= lowest; i--) kept = 2 * kept + (uint64_t)bit_of(sum, i);
    int half = lowest > 0 && bit_of(sum, lowest - 1);
    int more_than_half = half && any_bit_below(sum, lowest - 1);
    if (more_than_half || (half && kept % 2 == 1)) kept++; /* 2^53 is exact as well */
    return ldexp((double)kept, lowest + UNIT_EXPONENT);
}

double zb_ref_square_sum_root(const zb_ref_square_sum *sum)
{
    if (sum->nan_seen) return NAN;
    if (sum->infinity_seen) return INFINITY;
    return sqrt(rounded(sum));
}

double zb_ref_norm(const zb_model *model, const zb_ref_tensors *gradients)
{
    zb_ref_square_sum sum = { 0 };
    for (int p = 0; p < model->param_count; p++) {
        if (!model->params[p].requires_grad) continue;
        for (size_t i = 0; i < model->params[p].numel; i++)
            zb_ref_square_sum_add(&sum, gradients->param[p][i]);
    }
    return zb_ref_square_sum_root(&sum);
}
