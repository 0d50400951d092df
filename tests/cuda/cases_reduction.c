/* Reductions in rank order and in the order of trees. */
#include <stdlib.h>
#include <string.h>

#include "tests/cuda/harness.h"

enum { RANKS_MAX = 300 };

static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16, ZB_FP64, ZB_INT32, ZB_INT64, ZB_UINT8 };
enum { DTYPES = sizeof dtypes / sizeof dtypes[0] };
static const size_t sizes[] = { 0, 1, 7, 16, 33, 255, 1025, 4111 };
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static int is_integer(zb_dtype dtype)
{
    return dtype == ZB_INT32 || dtype == ZB_INT64 || dtype == ZB_UINT8;
}

/* The inputs of both sides; that of the device is overwritten after the launch. */
typedef struct inputs {
    array *arrays[RANKS_MAX];
    const void *at[SIDES][RANKS_MAX];
} inputs;

static void make_inputs(trial *t, inputs *in, int count, zb_dtype dtype, size_t numel, fill_kind kind)
{
    for (int i = 0; i < count; i++) {
        in->arrays[i] = trial_array(t, "an input", dtype, numel, kind);
        for (int side = 0; side < SIDES; side++) in->at[side][i] = AT(in->arrays[i]);
    }
    trial_scratch(t, in->at[ON_DEVICE], sizeof in->at[ON_DEVICE]);
}

/* --- ordered_reduce --- */

static void ordered_once(rng *r, zb_dtype dtype, zb_redop op, int count, size_t numel, fill_kind kind)
{
    static inputs in;
    const double factors[] = { 3, 1 / 3.0, 0.25, 2 }, factor = factors[rng_below(r, 4)];
    trial t = trial_begin(r, "ordered_reduce of %d times %zu %s, %s, factor %a, %s", count, numel,
                          zb_dtype_name(dtype), zb_redop_name(op), factor, fill_name(kind));
    make_inputs(&t, &in, count, dtype, numel, kind);
    array *out = rng_below(r, 3) == 0 ? in.arrays[rng_below(r, (size_t)count)]
                                      : trial_output(&t, "out", dtype, numel);
    TRIAL_RUN(&t, ordered_reduce, in.at[side], count, AT(out), numel, dtype, op, factor);
}

/* Integers refuse averages and factors that are none: both sides alike. */
static void check_ordered(rng *r)
{
    static const int counts[] = { 1, 2, 3, 4, 5, 8, 9, 13 };
    for (int d = 0; d < DTYPES; d++)
        for (int op = ZB_SUM; op <= ZB_PREMUL_SUM; op++)
            for (size_t i = 0; i < 4 * SIZES; i++)
                ordered_once(r, dtypes[d], (zb_redop)op, counts[rng_below(r, 8)], sizes[i % SIZES],
                             (fill_kind)(i % FILL_KINDS));
}

static void check_ordered_many(rng *r)
{
    static const int counts[] = { 63, 64, 65, 128, RANKS_MAX };
    for (size_t c = 0; c < 5; c++)
        for (int d = 0; d < DTYPES; d++) ordered_once(r, dtypes[d], ZB_SUM, counts[c], 67, FILL_UNIFORM);
}

static void check_ordered_refused(rng *r)
{
    ordered_once(r, ZB_INT32, ZB_AVG, 2, 5, FILL_BITS);
    ordered_once(r, ZB_FP32, (zb_redop)17, 2, 5, FILL_BITS);
    trial t = trial_begin(r, "ordered_reduce of nothing");
    array *out = trial_output(&t, "out", ZB_FP32, 3);
    TRIAL_RUN(&t, ordered_reduce, NULL, 0, AT(out), 3, ZB_FP32, ZB_SUM, 1);
    t = trial_begin(r, "ordered_reduce of no type");
    out = trial_output(&t, "out", ZB_FP32, 3);
    TRIAL_RUN(&t, ordered_reduce, NULL, 1, AT(out), 3, ZB_DTYPE_COUNT, ZB_SUM, 1);
}

/* --- tree_reduce --- */

typedef struct tree_plan {
    int32_t tree[2 * RANKS_MAX], order[RANKS_MAX];
    int length, next;
} tree_plan;

/* Positions plan->next ..., `count` of them, split at random; the branch first that needs more open sums: the
 * larger one. */
static void add_tree(rng *r, tree_plan *plan, int count, int shape)
{
    if (count == 1) {
        plan->tree[plan->length++] = plan->next++;
        return;
    }
    int larger = shape == 0   ? count - 1
                 : shape == 1 ? (count + 1) / 2
                              : count - 1 - (int)rng_below(r, (size_t)(count / 2));
    if (larger < count - larger) larger = count - larger;
    add_tree(r, plan, larger, shape);
    add_tree(r, plan, count - larger, shape);
    plan->tree[plan->length++] = ZB_TREE_ADD;
}

static void make_plan(rng *r, tree_plan *plan, int count)
{
    memset(plan, 0, sizeof *plan);
    add_tree(r, plan, count, (int)rng_below(r, 3)); /* a chain, balanced, or anything */
    for (int i = 0; i < count; i++) {
        const int j = (int)rng_below(r, (size_t)i + 1);
        plan->order[i] = plan->order[j];
        plan->order[j] = i;
    }
}

static zb_rounding random_rounding(rng *r, zb_dtype dtype)
{
    const int choices = dtype == ZB_FP32 ? 5 : is_integer(dtype) ? 2 : 4;
    return (zb_rounding){ .wide = (int)rng_below(r, 2),
                          .scaling = (zb_scaling)rng_below(r, (size_t)choices),
                          .factor = is_integer(dtype) ? 3
                                    : rng_below(r, 2) ? 1 / 3.0
                                                      : 0.25,
                          .divisor = !is_integer(dtype) && rng_below(r, 3) == 0 ? 3 : 0,
                          .canonical_nan = (int)rng_below(r, 2) };
}

static void tree_once(rng *r, zb_dtype dtype, int count, size_t numel, fill_kind kind)
{
    static inputs in;
    static tree_plan plan[SIDES];
    const zb_rounding rounding = random_rounding(r, dtype);
    const size_t first = rng_below(r, 3) * 16 + rng_below(r, 2), range_first = rng_below(r, first + 1);
    const int start = (int)rng_below(r, (size_t)count);
    trial t = trial_begin(
        r, "tree_reduce of %d times %zu %s from %zu, scaling %d, factor %a, divisor %a, wide %d, %s", count,
        numel, zb_dtype_name(dtype), first, (int)rounding.scaling, rounding.factor, rounding.divisor,
        rounding.wide, fill_name(kind));
    make_plan(r, &plan[ON_CPU], count);
    plan[ON_DEVICE] = plan[ON_CPU];
    make_inputs(&t, &in, count, dtype, first + numel, kind);
    trial_scratch(&t, &plan[ON_DEVICE], sizeof plan[ON_DEVICE]);
    const int in_place = rng_below(r, 3) == 0;
    array *out = in_place ? in.arrays[rng_below(r, (size_t)count)] : trial_output(&t, "out", dtype, numel);
    out->nan_bits = rounding.canonical_nan && count > 1 && dtype != ZB_FP64;
    TRIAL_RUN(&t, tree_reduce, in.at[side], count, plan[side].tree, plan[side].order, start, range_first,
              first, numel, (char *)AT(out) + (in_place ? first * zb_dtype_bytes(dtype) : 0), dtype,
              rounding);
}

static void check_tree(rng *r)
{
    static const int counts[] = { 1, 2, 3, 4, 5, 8, 9, 13, 16 };
    for (int d = 0; d < DTYPES; d++)
        for (size_t i = 0; i < 40 * SIZES; i++)
            tree_once(r, dtypes[d], counts[rng_below(r, 9)], sizes[i % SIZES],
                      (fill_kind)(rng_below(r, FILL_KINDS)));
}

static void check_tree_many(rng *r)
{
    static const int counts[] = { 63, 64, 65, RANKS_MAX };
    for (size_t c = 0; c < 4; c++)
        for (int d = 0; d < DTYPES; d++) tree_once(r, dtypes[d], counts[c], 67, FILL_UNIFORM);
}

/* Contributions whose fused sum lies halfway between two numbers of the type, or close by. */
static void check_tree_fused_ties(rng *r)
{
    enum { N = 3000 };
    static uint16_t x[2][N];
    static const int32_t tree[] = { 0, 1, ZB_TREE_ADD }, order[] = { 0, 1 };
    for (int h = 0; h < 2; h++) {
        const zb_dtype dtype = h ? ZB_BF16 : ZB_FP16;
        for (size_t i = 0; i < N;
             i++) { /* sum + x * 3 with x an odd number of halves of the sum's last place, scaled */
            const double sum = ldexp((double)(1024 + rng_below(r, 1024)),
                                     h ? -10 : (int)rng_below(r, 8) - 12);
            x[0][i] = plain_to_half(dtype, sum);
            x[1][i] = plain_to_half(dtype, ldexp(sum, -8 - (int)rng_below(r, 5)) * (i % 2 ? 1 : -1));
        }
        trial t = trial_begin(r, "tree_reduce of %s, fused, ties", zb_dtype_name(dtype));
        array *in[] = { trial_values(&t, "x0", dtype, N, x[0]), trial_values(&t, "x1", dtype, N, x[1]) };
        array *out = trial_output(&t, "out", dtype, N);
        const zb_rounding rounding = { .scaling = ZB_SCALING_FUSED, .factor = 0.75 };
        const void *at[SIDES][2];
        for (int side = 0; side < SIDES; side++) at[side][0] = AT(in[0]), at[side][1] = AT(in[1]);
        TRIAL_RUN(&t, tree_reduce, at[side], 2, tree, order, 0, 0, 0, N, AT(out), dtype, rounding);
    }
}

static void check_tree_refused(rng *r)
{
    static const int32_t tree[] = { 0 }, order[] = { 0 };
    trial t;
    array *out;
    const void *none[] = { NULL };
#define REFUSED(count, dtype, ...)                                                                           \
    t = trial_begin(r, "tree_reduce, refused: %s", #dtype ", " #__VA_ARGS__);                                \
    out = trial_output(&t, "out", ZB_FP64, 3);                                                               \
    TRIAL_RUN(&t, tree_reduce, none, count, tree, order, 0, 0, 0, 3, AT(out), dtype, { __VA_ARGS__ })
    REFUSED(0, ZB_FP32, 0);
    REFUSED(1, ZB_DTYPE_COUNT, 0);
    REFUSED(1, ZB_FP32, .scaling = (zb_scaling)9);
    REFUSED(1, ZB_FP16, .scaling = ZB_SCALING_FUSED_LL128);
    REFUSED(1, ZB_INT32, .divisor = 2);
    REFUSED(1, ZB_INT64, .scaling = ZB_SCALING_FUSED);
    REFUSED(1, ZB_UINT8, .scaling = ZB_SCALING_MULTIPLY, .factor = -1);
    REFUSED(1, ZB_INT32, .scaling = ZB_SCALING_MULTIPLY, .factor = 0.5);
#undef REFUSED
}

CUDA_CASE_TABLE(reduction, { "ordered_reduce", check_ordered },
                { "ordered_reduce, many", check_ordered_many },
                { "ordered_reduce, refused", check_ordered_refused }, { "tree_reduce", check_tree },
                { "tree_reduce, many", check_tree_many },
                { "tree_reduce, fused ties", check_tree_fused_ties },
                { "tree_reduce, refused", check_tree_refused });
