/* The record of a reduction, played fast and plainly: the same bits for any tree, order, type, scaling and
 * size. */
#include "tests/orders/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WORLD_MAX = 9 };

/* A record with random trees, orders and ranges. */
typedef struct random_record {
    zb_reduction reduction;
    int32_t trees[3 * (2 * WORLD_MAX - 1)], orders[2 * WORLD_MAX];
    zb_reduction_range ranges[8];
} random_record;

static void shuffle(rng *r, int32_t *x, int n)
{
    for (int i = 0; i < n; i++) x[i] = i;
    for (int i = n - 1; i > 0; i--) {
        const int j = (int)rng_below(r, (size_t)i + 1);
        const int32_t t = x[i];
        x[i] = x[j];
        x[j] = t;
    }
}

/* Positions in random order; additions wherever two sums wait and the dice say so. */
static void random_tree(rng *r, int n, int32_t *tree)
{
    int32_t positions[WORLD_MAX];
    shuffle(r, positions, n);
    const size_t eager = rng_below(r, 4); /* 0: the deepest stack; 3: mostly a chain */
    int taken = 0, open = 0;
    for (int k = 0; k < 2 * n - 1; k++) {
        const int add = open >= 2 && (taken == n || rng_below(r, 4) < eager);
        tree[k] = add ? ZB_TREE_ADD : positions[taken++];
        open += add ? -1 : 1;
    }
}

static void random_reduction(rng *r, int n, size_t numel, zb_dtype dtype, zb_rounding rounding,
                             random_record *record)
{
    record->reduction = (zb_reduction){ .world_size = n,
                                        .dtype = dtype,
                                        .numel = numel,
                                        .rounding = rounding,
                                        .tree_count = 3,
                                        .order_count = 2,
                                        .trees = record->trees,
                                        .orders = record->orders,
                                        .ranges = record->ranges };
    for (int t = 0; t < 3; t++) random_tree(r, n, record->trees + t * (2 * n - 1));
    for (int o = 0; o < 2; o++) shuffle(r, record->orders + o * n, n);
    for (size_t at = 0; at < numel;) {
        const size_t left = numel - at, i = record->reduction.range_count++;
        const size_t piece = i == 7 ? left : 1 + rng_below(r, left);
        record->ranges[i] = (zb_reduction_range){ at, piece, (int)rng_below(r, 3), (int)rng_below(r, 2),
                                                  (int)rng_below(r, (size_t)n) };
        at += piece;
    }
    assert_ok(zb_reduction_check(&record->reduction));
}

static int is_floating(zb_dtype t)
{
    return t == ZB_FP32 || t == ZB_FP16 || t == ZB_BF16 || t == ZB_FP64;
}

static int is_possible(zb_dtype dtype, zb_rounding rounding)
{
    if (rounding.scaling == ZB_SCALING_FUSED_LL128) return dtype == ZB_FP32;
    if (!is_floating(dtype))
        return rounding.scaling <= ZB_SCALING_MULTIPLY && rounding.divisor == 0 && !rounding.wide;
    return 1;
}

static void check(rng *r, int n, size_t numel, zb_dtype dtype, zb_rounding rounding, fill_kind kind)
{
    if (!is_possible(dtype, rounding)) return;
    random_record record;
    random_reduction(r, n, numel, dtype, rounding, &record);
    contributions c = contributions_random(r, n, numel, dtype, kind);
    assert_runs_as_ref(r, &record.reduction, &c, fill_name(kind));
    contributions_free(&c);
}

static void every_type_and_rounding(void **state)
{
    use_level(state);
    rng r = { 71 };
    static const double factors[] = { 1.0 / 3, 0.25, 3.0, 0x1.555p-2, 0x1p-130 };
    for (int dtype = 0; dtype < ZB_DTYPE_COUNT; dtype++)
        for (int scaling = ZB_SCALING_NONE; scaling <= ZB_SCALING_FUSED_LL128; scaling++)
            for (int wide = 0; wide <= 1; wide++)
                for (int kind = 0; kind < FILL_KINDS; kind++)
                    for (int n = 1; n <= WORLD_MAX; n++) {
                        zb_rounding rounding = { .wide = wide, .scaling = (zb_scaling)scaling, .factor = 3 };
                        if (is_floating((zb_dtype)dtype)) {
                            rounding.factor = factors[rng_below(&r, 5)];
                            rounding.divisor = rng_below(&r, 3) == 0 ? n : 0;
                            rounding.canonical_nan = rng_below(&r, 2) && dtype != ZB_FP64;
                        }
                        check(&r, n, 120 + rng_below(&r, 30), (zb_dtype)dtype, rounding, (fill_kind)kind);
                    }
}

static void every_size(void **state)
{
    use_level(state);
    rng r = { 72 };
    for (size_t s = 0; s < edge_size_count; s++)
        for (int n = 2; n <= 5; n++)
            for (int dtype = 0; dtype < ZB_DTYPE_COUNT; dtype++)
                check(&r, n, edge_sizes[s], (zb_dtype)dtype, (zb_rounding){ 0 }, FILL_WIDE);
}

/* 16-bit sums that are halfway between two numbers but for something that fp32, or even fp64, does not see.
 */
static void fused_rounds_once(void **state)
{
    use_level(state);
    static const struct {
        const char *name;
        zb_dtype dtype;
        double first, second, factor;
        uint16_t want;
    } cases[] = {
        { "fp16: 2050 + (1 - 2^-14)", ZB_FP16, 2066, 1 + 0x1p-7, 1 - 0x1p-7, 0x6801 },
        { "bf16: 258 + (1 - 2^-20)", ZB_BF16, 258, 1, 1 - 0x1p-20, 0x4381 },
        { "bf16: 256 + (1 + 2^-20)", ZB_BF16, 256, 1, 1 + 0x1p-20, 0x4381 },
        { "bf16: 2^-60 + 257", ZB_BF16, 0x1p-60, 256, 1 + 0x1p-8, 0x4381 },
        { "bf16: -2^-60 + 257", ZB_BF16, -0x1p-60, 256, 1 + 0x1p-8, 0x4380 },
        { "bf16: -2^-60 + 259", ZB_BF16, -0x1p-60, 256, 1 + 3 * 0x1p-8, 0x4381 },
        { "bf16: 2^-60 - 257", ZB_BF16, 0x1p-60, -256, 1 + 0x1p-8, 0xc380 },
        { "bf16: a tie, to even", ZB_BF16, 258, 1, 1, 0x4382 },
        { "fp16: overflow", ZB_FP16, 65504, 16, 1, 0x7c00 },
        { "fp16: not yet overflow", ZB_FP16, 65504, 15.9921875, 1, 0x7bff },
        { "fp16: subnormal, 2.5 + 2^-24 times the smallest", ZB_FP16, 0x1p-22, 0x1p-24, 0.5 + 0x1p-24,
          0x0003 },
        { "fp16: subnormal", ZB_FP16, 0x1p-24, 6 * 0x1p-24, 1.25, 0x0008 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint16_t first, second, got, plain;
        store_value(cases[i].dtype, &first, 0, cases[i].first);
        store_value(cases[i].dtype, &second, 0, cases[i].second);
        const void *inputs[] = { &first, &second };
        int32_t tree[] = { 0, 1, ZB_TREE_ADD }, order[] = { 0, 1 };
        zb_reduction_range range = { .numel = 1 };
        const zb_rounding rounding = { .scaling = ZB_SCALING_FUSED, .factor = cases[i].factor };
        const zb_reduction reduction = { .world_size = 2,
                                         .dtype = cases[i].dtype,
                                         .numel = 1,
                                         .rounding = rounding,
                                         .tree_count = 1,
                                         .order_count = 1,
                                         .range_count = 1,
                                         .trees = tree,
                                         .orders = order,
                                         .ranges = &range };
        assert_ok(zb_reduction_run(&reduction, inputs, 0, 1, &got));
        zb_ref_reduction_run(&reduction, inputs, 0, 1, &plain);
        if (got != cases[i].want || plain != cases[i].want)
            fail_msg("%s: %#x, and %#x plainly, want %#x", cases[i].name, (unsigned)got, (unsigned)plain,
                     (unsigned)cases[i].want);
    }
}

/* Which of LL128's 120 packs of 16 bytes have a fused upper half; every lower half is. Inputs for which it
 * shows. */
static void ll128_fuses_by_place(void **state)
{
    use_level(state);
    static const int fused_packs[] = { 7, 15, 23, 31, 67, 75, 83, 91 };
    enum { NUMEL = 3 * 480 + 5, FIRST = 11 };
    static float x[3][FIRST + NUMEL];
    float out[NUMEL];
    for (size_t i = 0; i < FIRST + NUMEL; i++) {
        x[0][i] = x[1][i] = 1;
        x[2][i] = 7; /* the average is 3 when fused, else the number above it */
    }
    const void *inputs[] = { x[0], x[1], x[2] };
    int32_t tree[] = { 0, 1, ZB_TREE_ADD, 2, ZB_TREE_ADD }, order[] = { 0, 1, 2 };
    zb_reduction_range ranges[] = { { 0, FIRST, 0, 0, 0 }, { FIRST, NUMEL, 0, 0, 0 } };
    const zb_rounding rounding = { .scaling = ZB_SCALING_FUSED_LL128, .factor = 1.0 / 3 };
    const zb_reduction reduction = { .world_size = 3,
                                     .dtype = ZB_FP32,
                                     .numel = FIRST + NUMEL,
                                     .rounding = rounding,
                                     .tree_count = 1,
                                     .order_count = 1,
                                     .range_count = 2,
                                     .trees = tree,
                                     .orders = order,
                                     .ranges = ranges };
    for (int plain = 0; plain <= 1; plain++) {
        if (plain)
            zb_ref_reduction_run(&reduction, inputs, FIRST, NUMEL, out);
        else
            assert_ok(zb_reduction_run(&reduction, inputs, FIRST, NUMEL, out));
        for (int i = 0; i < NUMEL; i++) {
            const int pack = i / 4 % 120;
            int fused = i % 4 < 2;
            for (int k = 0; k < 8; k++) fused |= pack == fused_packs[k];
            if (bits_of(out[i]) != (fused ? 0x40400000u : 0x40400001u))
                fail_msg("element %d, pack %d: %a, %sfused", i, pack, (double)out[i], fused ? "" : "not ");
        }
    }
}

static void in_place(void **state)
{
    use_level(state);
    rng r = { 73 };
    for (int dtype = 0; dtype < ZB_DTYPE_COUNT; dtype++)
        for (int out_is = 0; out_is < 4; out_is++) {
            random_record record;
            random_reduction(&r, 4, 1500, (zb_dtype)dtype, (zb_rounding){ 0 }, &record);
            contributions c = contributions_random(&r, 4, 1500, (zb_dtype)dtype, FILL_WIDE);
            const size_t bytes = zb_dtype_bytes((zb_dtype)dtype);
            void *want = guarded(1500, bytes, 0);
            zb_ref_reduction_run(&record.reduction, (const void *const *)c.inputs, 0, 1500, want);
            assert_ok(zb_reduction_run(&record.reduction, (const void *const *)c.inputs, 0, 1500,
                                       c.inputs[out_is]));
            assert_int_equal(first_difference((zb_dtype)dtype, c.inputs[out_is], want, 1500, 0), 1500);
            guarded_free(want);
            contributions_free(&c);
        }
}

/* `rank` is what the kernel for rank order computes. */
static void rank_order_is_the_ordered_reduce(void **state)
{
    use_level(state);
    rng r = { 74 };
    static const zb_redop ops[] = { ZB_SUM, ZB_AVG, ZB_PREMUL_SUM };
    for (int dtype = 0; dtype < ZB_DTYPE_COUNT; dtype++)
        for (int o = 0; o < 3; o++)
            for (int n = 1; n <= WORLD_MAX; n++) {
                if (ops[o] == ZB_AVG && !is_floating((zb_dtype)dtype)) continue;
                const size_t numel = 600 + rng_below(&r, 20);
                const zb_reduction_call call = { .kind = ZB_COLLECTIVE_ALL_REDUCE,
                                                 .world_size = n,
                                                 .numel = numel,
                                                 .dtype = (zb_dtype)dtype,
                                                 .op = ops[o],
                                                 .factor = is_floating((zb_dtype)dtype) ? 0.3 : 3 };
                zb_reduction reduction = derived("rank", &call);
                contributions c = contributions_random(&r, n, numel, (zb_dtype)dtype, FILL_WIDE);
                const void *const *inputs = (const void *const *)c.inputs;
                void *got = guarded(numel, zb_dtype_bytes((zb_dtype)dtype), 0);
                void *want = guarded(numel, zb_dtype_bytes((zb_dtype)dtype), 0);
                assert_ok(zb_cpu_ordered_reduce(&(zb_ordered_reduce_args){ .inputs = inputs,
                                                                           .count = n,
                                                                           .out = want,
                                                                           .numel = numel,
                                                                           .dtype = (zb_dtype)dtype,
                                                                           .op = ops[o],
                                                                           .factor = call.factor }));
                assert_ok(zb_reduction_run(&reduction, inputs, 0, numel, got));
                assert_int_equal(first_difference((zb_dtype)dtype, got, want, numel, 0), numel);
                guarded_free(got);
                guarded_free(want);
                contributions_free(&c);
                zb_reduction_destroy(&reduction);
            }
}

/* --- records that are wrong --- */

static void wrong_records(void **state)
{
    (void)state;
    static const struct {
        const char *says;
        int32_t tree[5], order[3];
        zb_reduction_range ranges[2];
        size_t range_count;
        int world_size;
    } cases[] = {
        { "over 0 ranks", { 0 }, { 0 }, { { 0 } }, 0, 0 },
        { "place 1 adds with 1 sums", { 0, -1, 1, 2, -1 }, { 0, 1, 2 }, { { 0, 9, 0, 0, 0 } }, 1, 3 },
        { "place 1 is 0, want", { 0, 0, -1, 2, -1 }, { 0, 1, 2 }, { { 0, 9, 0, 0, 0 } }, 1, 3 },
        { "place 3 is 3, want", { 0, 1, -1, 3, -1 }, { 0, 1, 2 }, { { 0, 9, 0, 0, 0 } }, 1, 3 },
        { "place 3 is -2, want", { 0, 1, -1, -2, -1 }, { 0, 1, 2 }, { { 0, 9, 0, 0, 0 } }, 1, 3 },
        { "position 2 is rank 1, which it has had",
          { 0, 1, -1, 2, -1 },
          { 0, 1, 1 },
          { { 0, 9, 0, 0, 0 } },
          1,
          3 },
        { "position 0 is rank 3, want", { 0, 1, -1, 2, -1 }, { 3, 1, 1 }, { { 0, 9, 0, 0, 0 } }, 1, 3 },
        { "9 elements from 1, want some from 0",
          { 0, 1, -1, 2, -1 },
          { 0, 1, 2 },
          { { 1, 9, 0, 0, 0 } },
          1,
          3 },
        { "10 elements from 0, want some from 0, within 9",
          { 0, 1, -1, 2, -1 },
          { 0, 1, 2 },
          { { 0, 10, 0, 0, 0 } },
          1,
          3 },
        { "hold 8 elements, want 9", { 0, 1, -1, 2, -1 }, { 0, 1, 2 }, { { 0, 8, 0, 0, 0 } }, 1, 3 },
        { "tree 1 of 1", { 0, 1, -1, 2, -1 }, { 0, 1, 2 }, { { 0, 9, 1, 0, 0 } }, 1, 3 },
        { "order -1 of 1", { 0, 1, -1, 2, -1 }, { 0, 1, 2 }, { { 0, 9, 0, -1, 0 } }, 1, 3 },
        { "start 3 of 3", { 0, 1, -1, 2, -1 }, { 0, 1, 2 }, { { 0, 9, 0, 0, 3 } }, 1, 3 },
        { "0 elements from 4",
          { 0, 1, -1, 2, -1 },
          { 0, 1, 2 },
          { { 0, 4, 0, 0, 0 }, { 4, 0, 0, 0, 0 } },
          2,
          3 },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t tree[5], order[3];
        zb_reduction_range ranges[2];
        memcpy(tree, cases[i].tree, sizeof tree);
        memcpy(order, cases[i].order, sizeof order);
        memcpy(ranges, cases[i].ranges, sizeof ranges);
        const zb_reduction reduction = { .world_size = cases[i].world_size,
                                         .numel = 9,
                                         .tree_count = 1,
                                         .order_count = 1,
                                         .range_count = cases[i].range_count,
                                         .trees = tree,
                                         .orders = order,
                                         .ranges = ranges };
        assert_int_equal(zb_reduction_check(&reduction), ZB_INVALID_ARGUMENT);
        if (strstr(zb_error_message(), cases[i].says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", zb_error_message(), cases[i].says);
    }
}

static void too_many_waiting_sums(void **state)
{
    (void)state;
    enum { N = ZB_TREE_DEPTH + 1 };
    int32_t tree[2 * N - 1], order[N];
    for (int i = 0; i < N; i++) tree[i] = order[i] = i;
    for (int i = N; i < 2 * N - 1; i++) tree[i] = ZB_TREE_ADD;
    zb_reduction_range range = { .numel = 1 };
    zb_reduction reduction = { .world_size = N,
                               .numel = 1,
                               .tree_count = 1,
                               .order_count = 1,
                               .range_count = 1,
                               .trees = tree,
                               .orders = order,
                               .ranges = &range };
    assert_int_equal(zb_reduction_check(&reduction), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "more than 20 sums"));
}

static void refused_roundings(void **state)
{
    use_level(state);
    static const struct {
        const char *says;
        zb_dtype dtype;
        zb_rounding rounding;
        zb_status status;
    } cases[] = {
        { "want fp32", ZB_BF16, { .scaling = ZB_SCALING_FUSED_LL128 }, ZB_UNSUPPORTED },
        { "int32 with a division", ZB_INT32, { .divisor = 2 }, ZB_UNSUPPORTED },
        { "uint8 with a division", ZB_UINT8, { .scaling = ZB_SCALING_DIVIDE, .factor = 2 }, ZB_UNSUPPORTED },
        { "fused", ZB_INT64, { .scaling = ZB_SCALING_FUSED, .factor = 2 }, ZB_UNSUPPORTED },
        { "factor 0.5", ZB_INT64, { .scaling = ZB_SCALING_MULTIPLY, .factor = 0.5 }, ZB_INVALID_ARGUMENT },
        { "scaling 9", ZB_FP32, { .scaling = (zb_scaling)9 }, ZB_INVALID_ARGUMENT },
        { "type 7", ZB_DTYPE_COUNT, { 0 }, ZB_INVALID_ARGUMENT },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t a = 1, b = 2, out = 3;
        const void *inputs[] = { &a, &b };
        int32_t tree[] = { 0, 1, ZB_TREE_ADD }, order[] = { 0, 1 };
        zb_reduction_range range = { .numel = 1 };
        const zb_reduction reduction = { .world_size = 2,
                                         .dtype = cases[i].dtype,
                                         .numel = 1,
                                         .rounding = cases[i].rounding,
                                         .tree_count = 1,
                                         .order_count = 1,
                                         .range_count = 1,
                                         .trees = tree,
                                         .orders = order,
                                         .ranges = &range };
        assert_int_equal(zb_reduction_run(&reduction, inputs, 0, 1, &out), cases[i].status);
        if (strstr(zb_error_message(), cases[i].says) == NULL)
            fail_msg("\"%s\" does not say \"%s\"", zb_error_message(), cases[i].says);
        assert_int_equal(out, 3);
    }
    zb_reduction empty = { .world_size = 2 };
    assert_int_equal(zb_reduction_run(&empty, NULL, 0, 1, NULL), ZB_INVALID_ARGUMENT);
    assert_ok(zb_reduction_run(&empty, NULL, 0, 0, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = { AT_EACH_LEVEL(every_type_and_rounding),
                                        AT_EACH_LEVEL(every_size),
                                        AT_EACH_LEVEL(fused_rounds_once),
                                        AT_EACH_LEVEL(ll128_fuses_by_place),
                                        AT_EACH_LEVEL(in_place),
                                        AT_EACH_LEVEL(rank_order_is_the_ordered_reduce),
                                        AT_EACH_LEVEL(refused_roundings),
                                        cmocka_unit_test(wrong_records),
                                        cmocka_unit_test(too_many_waiting_sums) };
    return cmocka_run_group_tests_name("orders_run", tests, NULL, NULL);
}
