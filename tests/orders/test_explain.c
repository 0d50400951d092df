/* From a result back to the order that gave it, or to the first element that no order gives. */
#include "tests/orders/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zerobit/memory.h>

static zb_reduction_call call_of(zb_collective_kind kind, int n, size_t numel, zb_dtype dtype)
{
    return (zb_reduction_call){ .kind = kind, .world_size = n, .numel = numel, .dtype = dtype, .op = ZB_SUM };
}

/* A call, random contributions, and what an order makes of them. */
typedef struct scene {
    zb_reduction_call call;
    contributions c;
    size_t numel;
    void *result;
} scene;

static scene scene_of(rng *r, const char *source, zb_reduction_call call)
{
    zb_reduction reduction = derived(source, &call);
    scene s = { .call = call, .numel = reduction.numel };
    s.c = contributions_random(r, call.world_size, s.numel, call.dtype, FILL_UNIFORM);
    s.result = guarded(s.numel, zb_dtype_bytes(call.dtype), 0);
    assert_ok(zb_reduction_run(&reduction, (const void *const *)s.c.inputs, 0, s.numel, s.result));
    zb_reduction_destroy(&reduction);
    return s;
}

static void scene_free(scene *s)
{
    contributions_free(&s->c);
    guarded_free(s->result);
}

static zb_explanation explained(const scene *s, const char *expected)
{
    zb_order_source source = source_of(expected != NULL ? expected : "rank");
    zb_explanation explanation;
    assert_ok(zb_reduction_explain(&s->call, expected != NULL ? &source : NULL,
                                   (const void *const *)s->c.inputs, s->result, &explanation));
    zb_order_source_destroy(&source);
    return explanation;
}

static void assert_says(const zb_explanation *explanation, const char *words)
{
    if (strstr(explanation->text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", explanation->text, words);
}

/* --- orders with names --- */

static const struct named {
    const char *source, *found; /* this, or another that has the same order for such a call */
    zb_collective_kind kind;
} named[] = {
    { "rank", "rank", ZB_COLLECTIVE_ALL_REDUCE },
    { "gloo", "gloo", ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-default", "mpi-default", ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-linear", "mpi-linear", ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-ring", "mpi-ring", ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-segmented-ring", "mpi-ring", ZB_COLLECTIVE_ALL_REDUCE },        /* the same bits */
    { "mpi-recursive-doubling", "mpi-default", ZB_COLLECTIVE_ALL_REDUCE }, /* likewise, at this size */
    { "mpi-ring", "mpi-ring", ZB_COLLECTIVE_REDUCE_SCATTER },
    { "mpi-recursive-halving", "mpi-default", ZB_COLLECTIVE_REDUCE_SCATTER },
    { "mpi-butterfly", "mpi-default", ZB_COLLECTIVE_REDUCE_SCATTER },
    { "mpi-recursive-doubling", "mpi-recursive-doubling", ZB_COLLECTIVE_REDUCE_SCATTER },
    { "nccl-ring version=2.28 protocol=simple channels=1", "", ZB_COLLECTIVE_ALL_REDUCE },
    { "nccl-ring version=2.28 protocol=ll channels=2", "", ZB_COLLECTIVE_ALL_REDUCE },
};

static void names_every_order(void **state)
{
    (void)state;
    rng r = { 81 };
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_BF16, ZB_FP16, ZB_FP64 };
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
        for (int t = 0; t < 4; t++) {
            const size_t numel = named[i].kind == ZB_COLLECTIVE_ALL_REDUCE ? 30000 : 3000;
            scene s = scene_of(&r, named[i].source, call_of(named[i].kind, 5, numel, dtypes[t]));
            zb_explanation e = explained(&s, NULL);
            assert_int_equal(e.verdict, ZB_VERDICT_NAMED);
            assert_false(e.as_expected);
            if (strcmp(e.source, named[i].found) != 0 && strcmp(e.source, named[i].source) != 0)
                fail_msg("%s of %s is taken for %s", named[i].source, zb_dtype_name(dtypes[t]), e.source);
            e = explained(&s, named[i].source);
            assert_true(e.as_expected);
            assert_string_equal(e.source, named[i].source);
            assert_says(&e, "order: as ");
            scene_free(&s);
        }
}

/* Averages: fused, not fused, and LL128's mixture are told apart. */
static void names_the_fusion(void **state)
{
    (void)state;
    rng r = { 82 };
    static const char *const sources[] = { "nccl-ring version=2.28 protocol=simple channels=1",
                                           "nccl-ring version=2.28 protocol=ll128 channels=1", "rank",
                                           "mpi-linear" };
    for (size_t i = 0; i < 4; i++) {
        zb_reduction_call call = call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 3000, ZB_FP32);
        call.op = ZB_AVG;
        scene s = scene_of(&r, sources[i], call);
        const zb_explanation e = explained(&s, NULL);
        assert_string_equal(e.source, sources[i]);
        scene_free(&s);
    }
}

/* --- orders without a name --- */

/* Adds elements [first, first + numel) anew, in another order. */
static void redo(scene *s, size_t first, size_t numel, int order_is_descending, int start,
                 zb_rounding rounding)
{
    const int n = s->call.world_size;
    int32_t tree[2 * 9 - 1] = { 0 }, order[9];
    for (int i = 0; i < n; i++) {
        order[i] = order_is_descending ? n - 1 - i : i;
        if (i > 0) {
            tree[2 * i - 1] = i;
            tree[2 * i] = ZB_TREE_ADD;
        }
    }
    zb_reduction_range range = { 0, s->numel, 0, 0, start };
    const zb_reduction reduction = { .world_size = n,
                                     .dtype = s->call.dtype,
                                     .numel = s->numel,
                                     .rounding = rounding,
                                     .tree_count = 1,
                                     .order_count = 1,
                                     .range_count = 1,
                                     .trees = tree,
                                     .orders = order,
                                     .ranges = &range };
    assert_ok(zb_reduction_run(&reduction, (const void *const *)s->c.inputs, first, numel,
                               (char *)s->result + first * zb_dtype_bytes(s->call.dtype)));
}

static void finds_a_wrong_start(void **state)
{
    (void)state;
    rng r = { 83 };
    /* Chunks of 336, 336 and 328 elements; the third starts at rank 1 in place of rank 0. */
    scene s = scene_of(&r, "nccl-ring version=2.28 protocol=simple channels=1",
                       call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 1000, ZB_FP32));
    redo(&s, 672, 328, 0, 2, (zb_rounding){ 0 });
    const zb_explanation e = explained(&s, "nccl-ring version=2.28 protocol=simple channels=1");
    assert_int_equal(e.verdict, ZB_VERDICT_ORDER);
    assert_int_equal(e.part_count, 2);
    assert_string_equal(e.parts[0].sum, "(1 + 2) + 0");
    assert_string_equal(e.parts[1].sum, "(2 + 0) + 1");
    assert_string_equal(e.parts[1].rounding, "each addition rounded");
    assert_in_range(e.parts[1].first, 336, 346); /* its first elements may agree with the part before */
    assert_says(&e, "(2 + 0) + 1, each addition rounded");
    scene_free(&s);
}

static void finds_a_wrong_rounding(void **state)
{
    (void)state;
    rng r = { 84 };
    scene s = scene_of(&r, "rank", call_of(ZB_COLLECTIVE_ALL_REDUCE, 4, 1000, ZB_BF16));
    redo(&s, 0, 1000, 0, 0, (zb_rounding){ 0 });
    const zb_explanation e = explained(&s, "rank");
    assert_int_equal(e.verdict, ZB_VERDICT_ORDER);
    assert_int_equal(e.part_count, 1);
    assert_string_equal(e.parts[0].sum, "((0 + 1) + 2) + 3");
    assert_string_equal(e.parts[0].rounding, "each addition rounded");
    scene_free(&s);
}

static void finds_where_the_division_was(void **state)
{
    (void)state;
    rng r = { 85 };
    static const struct {
        zb_rounding rounding;
        const char *words;
    } cases[] = {
        { { .scaling = ZB_SCALING_DIVIDE, .factor = 3 }, "contributions divided" },
        { { .scaling = ZB_SCALING_MULTIPLY, .factor = 1.0 / 3 }, "contributions multiplied" },
        { { .scaling = ZB_SCALING_FUSED, .factor = 1.0 / 3 }, "contributions multiplied, fused" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        zb_reduction_call call = call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 1000, ZB_FP32);
        call.op = ZB_AVG;
        scene s = scene_of(&r, "rank", call);
        redo(&s, 0, 1000, 0, 0, cases[i].rounding);
        const zb_explanation e = explained(&s, "rank");
        assert_int_equal(e.verdict, ZB_VERDICT_ORDER);
        assert_string_equal(e.parts[0].rounding, cases[i].words);
        assert_string_equal(e.source, "rank");
        scene_free(&s);
    }
}

static void more_parts_than_are_kept(void **state)
{
    (void)state;
    rng r = { 86 };
    scene s = scene_of(&r, "rank", call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 4000, ZB_FP32));
    for (size_t i = 0; i < 40; i++) redo(&s, i * 100, 100, (int)(i % 2), (int)(i % 3), (zb_rounding){ 0 });
    const zb_explanation e = explained(&s, NULL);
    assert_int_equal(e.verdict, ZB_VERDICT_ORDER);
    assert_true(e.part_count > ZB_EXPLAINED_PARTS);
    assert_says(&e, "more parts");
    scene_free(&s);
}

/* --- values --- */

static void names_a_wrong_element(void **state)
{
    (void)state;
    rng r = { 87 };
    static const char *const sources[] = { "rank", "mpi-ring", "mpi-recursive-doubling", "gloo" };
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_BF16, ZB_INT32, ZB_FP64 };
    for (int trial = 0; trial < 200; trial++) {
        const zb_dtype dtype = dtypes[trial / 4 % 4];
        scene s = scene_of(&r, sources[trial % 4],
                           call_of(ZB_COLLECTIVE_ALL_REDUCE, 2 + (int)rng_below(&r, 7), 5000, dtype));
        const size_t i = 50 + rng_below(&r, 4900);
        unsigned char *byte = (unsigned char *)s.result + i * zb_dtype_bytes(dtype) + zb_dtype_bytes(dtype) -
                              1;
        *byte ^= (unsigned char)(1u << rng_below(&r, 8)); /* the sign, or the upper exponent */
        const zb_explanation e = explained(&s, trial % 2 ? NULL : sources[trial % 4]);
        if (e.verdict != ZB_VERDICT_VALUE || e.element != i) fail_msg("element %zu: %s", i, e.text);
        assert_says(&e, "which no known order gives");
        assert_says(&e, "contributions rank 0: 0x");
        scene_free(&s);
    }
}

/* The last bit of one element: some other order may happen to give it, but not for more than a few elements.
 */
static void names_an_element_off_by_one_bit(void **state)
{
    (void)state;
    rng r = { 88 };
    for (int trial = 0; trial < 100; trial++) {
        scene s = scene_of(&r, "mpi-ring",
                           call_of(ZB_COLLECTIVE_ALL_REDUCE, 8, 5000, trial % 2 ? ZB_FP32 : ZB_FP16));
        const size_t i = 100 + rng_below(&r, 400); /* away from the borders of blocks of 625 */
        ((unsigned char *)s.result)[i * zb_dtype_bytes(s.call.dtype)] ^= 1;
        const zb_explanation e = explained(&s, "mpi-ring");
        if (e.verdict != ZB_VERDICT_VALUE || e.element + 8 < i || e.element > i)
            fail_msg("element %zu: %s", i, e.text);
        assert_true(e.within_rounding);
        scene_free(&s);
    }
}

static void tells_another_order_from_a_wrong_value(void **state)
{
    (void)state;
    rng r = { 89 };
    scene s = scene_of(&r, "rank", call_of(ZB_COLLECTIVE_ALL_REDUCE, 8, 5000, ZB_FP32));
    float *result = s.result;
    for (size_t i = 0; i < 5000; i++) { /* an order that nobody has */
        float x[8];
        for (int rank = 0; rank < 8; rank++) x[rank] = ((const float *)s.c.inputs[rank])[i];
        result[i] = ((x[3] + x[7]) + (x[1] + x[4])) + ((x[0] + x[6]) + x[2]) + x[5];
    }
    zb_explanation e = explained(&s, "rank");
    assert_int_equal(e.verdict, ZB_VERDICT_VALUE);
    assert_true(e.within_rounding);
    assert_says(&e, "though rounding could");
    for (size_t i = 0; i < 5000; i++) result[i] += 1e-4f; /* nine roundings make less than 5e-6 */
    e = explained(&s, "rank");
    assert_int_equal(e.verdict, ZB_VERDICT_VALUE);
    assert_false(e.within_rounding);
    scene_free(&s);
}

static void special_values(void **state)
{
    (void)state;
    rng r = { 90 };
    zb_reduction_call call = call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 700, ZB_FP16);
    zb_reduction reduction = derived("mpi-ring", &call);
    contributions c = contributions_random(&r, 3, 700, ZB_FP16, FILL_SPECIAL);
    uint16_t result[700];
    assert_ok(zb_reduction_run(&reduction, (const void *const *)c.inputs, 0, 700, result));
    for (size_t i = 0; i < 700; i++)
        if ((result[i] & 0x7fff) > 0x7c00) result[i] = 0xffff; /* another NaN */
    zb_order_source source = source_of("mpi-ring");
    zb_explanation e;
    assert_ok(zb_reduction_explain(&call, &source, (const void *const *)c.inputs, result, &e));
    assert_true(e.as_expected);
    zb_reduction_destroy(&reduction);
    contributions_free(&c);
}

/* What no rounding makes is not put down to it. */
static void special_results_are_no_rounding(void **state)
{
    (void)state;
    static const struct {
        float x[3], result;
        int within;
    } cases[] = {
        { { (float)INFINITY, 1, 2 }, -(float)INFINITY, 0 },
        { { (float)INFINITY, 1, 2 }, 3, 0 },
        { { (float)INFINITY, 1, 2 }, (float)NAN, 0 },
        { { 0, 0, 0 }, -0.0f, 0 },
        { { 1, 2, 3 }, (float)INFINITY, 0 },
        { { 1, 0x1p-24f, 0x1p-24f }, 1, 1 }, /* ((1 + x) + x) and (1 + (x + x)) */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const zb_reduction_call call = call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 1, ZB_FP32);
        const void *const inputs[] = { &cases[i].x[0], &cases[i].x[1], &cases[i].x[2] };
        zb_explanation e;
        assert_ok(zb_reduction_explain(&call, NULL, inputs, &cases[i].result, &e));
        if (cases[i].within)
            assert_int_not_equal(e.verdict, ZB_VERDICT_VALUE);
        else
            assert_int_equal(e.verdict, ZB_VERDICT_VALUE);
        assert_false(e.within_rounding);
    }
}

static void nothing_to_explain(void **state)
{
    (void)state;
    rng r = { 91 };
    scene s = scene_of(&r, "rank", call_of(ZB_COLLECTIVE_ALL_REDUCE, 3, 0, ZB_FP32));
    const zb_explanation e = explained(&s, NULL);
    assert_int_equal(e.verdict, ZB_VERDICT_NAMED);
    scene_free(&s);
    zb_explanation untouched = { .element = 77 };
    const zb_reduction_call wrong = call_of(ZB_COLLECTIVE_ALL_GATHER, 3, 0, ZB_FP32);
    assert_int_equal(zb_reduction_explain(&wrong, NULL, NULL, NULL, &untouched), ZB_INVALID_ARGUMENT);
    assert_int_equal(untouched.element, 77);
}

static void every_failing_allocation(void **state)
{
    (void)state;
    rng r = { 92 };
    scene s = scene_of(&r, "rank", call_of(ZB_COLLECTIVE_ALL_REDUCE, 4, 300, ZB_BF16));
    redo(&s, 0, 300, 1, 2, (zb_rounding){ .wide = 1 });
    const uint64_t live = zb_alloc_get_stats().live;
    for (int64_t n = 0;; n++) {
        zb_explanation e;
        zb_alloc_fail_at(n);
        const zb_status status = zb_reduction_explain(&s.call, NULL, (const void *const *)s.c.inputs,
                                                      s.result, &e);
        const int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (!fired) break;
    }
    scene_free(&s);
}

/* A million elements of eight ranks: the order tried last, many parts, and an error at the very end. */
static void is_fast(void **state)
{
    (void)state;
    rng r = { 93 };
    enum { NUMEL = 1000000 };
    static const char *const cases[] = { "nccl-ring version=2.30 protocol=ll128 channels=32", "parts",
                                         "value" };
    for (int i = 0; i < 3; i++) {
        scene s = scene_of(&r, i == 0 ? cases[0] : "mpi-ring",
                           call_of(ZB_COLLECTIVE_ALL_REDUCE, 8, NUMEL, ZB_FP32));
        if (i == 1)
            for (size_t k = 0; k < 100; k++)
                redo(&s, k * 10000, 10000, (int)(k % 2), (int)(k % 7), (zb_rounding){ 0 });
        if (i == 2) ((float *)s.result)[NUMEL - 1] += 1;
        const clock_t start = clock();
        const zb_explanation e = explained(&s, NULL);
        const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        printf("%s: %.3f s: %.100s\n", cases[i], seconds, e.text);
        assert_int_equal(e.verdict, i == 0 ? ZB_VERDICT_NAMED : i == 1 ? ZB_VERDICT_ORDER : ZB_VERDICT_VALUE);
#if !defined(ZB_SANITIZED) && !defined(ZB_COVERAGE)
        assert_true(seconds < 1);
#endif
        scene_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_every_order),
        cmocka_unit_test(names_the_fusion),
        cmocka_unit_test(finds_a_wrong_start),
        cmocka_unit_test(finds_a_wrong_rounding),
        cmocka_unit_test(finds_where_the_division_was),
        cmocka_unit_test(more_parts_than_are_kept),
        cmocka_unit_test(names_a_wrong_element),
        cmocka_unit_test(names_an_element_off_by_one_bit),
        cmocka_unit_test(tells_another_order_from_a_wrong_value),
        cmocka_unit_test(special_values),
        cmocka_unit_test(special_results_are_no_rounding),
        cmocka_unit_test(nothing_to_explain),
        cmocka_unit_test(every_failing_allocation),
        cmocka_unit_test(is_fast),
    };
    return cmocka_run_group_tests_name("orders_explain", tests, NULL, NULL);
}
