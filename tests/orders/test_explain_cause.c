/* What a result is when it is not the sum that was asked for, and results that are made of several sums. */
#include "tests/orders/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zerobit/memory.h>

#include "kernels/half.h"

enum { ROUNDS_MAX = 3, WORLD_MAX = 64, NUMEL = 1200 };

/* Contributions of all rounds, and a result that the test writes. */
typedef struct scene {
    zb_reduction_call call;
    zb_finish finish;
    int rounds;
    size_t numel;
    contributions c[ROUNDS_MAX];
    const void *inputs[ROUNDS_MAX * WORLD_MAX];
    void *result;
} scene;

static scene scene_of(rng *r, int n, size_t numel, zb_dtype dtype, zb_redop op)
{
    scene s = { .call = { .kind = ZB_COLLECTIVE_ALL_REDUCE,
                          .world_size = n,
                          .numel = numel,
                          .dtype = dtype,
                          .op = op },
                .finish = { .dtype = dtype },
                .rounds = 1,
                .numel = numel };
    s.c[0] = contributions_random(r, n, numel, dtype, FILL_UNIFORM);
    for (int rank = 0; rank < n; rank++) s.inputs[rank] = s.c[0].inputs[rank];
    s.result = guarded(numel, 8, 0);
    return s;
}

static scene scene_of_rounds(rng *r, int n, int rounds, size_t numel, zb_dtype dtype, zb_finish finish)
{
    scene s = scene_of(r, n, numel, dtype, ZB_SUM);
    s.rounds = rounds;
    s.finish = finish;
    for (int round = 1; round < rounds; round++) {
        s.c[round] = contributions_random(r, n, numel, dtype, FILL_UNIFORM);
        for (int rank = 0; rank < n; rank++) s.inputs[round * n + rank] = s.c[round].inputs[rank];
    }
    return s;
}

static void scene_free(scene *s)
{
    for (int round = 0; round < s->rounds; round++) contributions_free(&s->c[round]);
    guarded_free(s->result);
}

static zb_explanation explained(const scene *s, const char *expected)
{
    zb_order_source source = source_of(expected != NULL ? expected : "rank");
    const zb_explain_options options = { .call = &s->call,
                                         .expected = expected != NULL ? &source : NULL,
                                         .inputs = s->inputs,
                                         .result = s->result,
                                         .rounds = s->rounds,
                                         .finish = &s->finish };
    zb_explanation e;
    assert_ok(zb_reduction_explain_finished(&options, &e));
    zb_order_source_destroy(&source);
    return e;
}

static void assert_says(const zb_explanation *e, const char *words)
{
    if (strstr(e->text, words) == NULL) fail_msg("\"%s\" does not say \"%s\"", e->text, words);
}

/* --- plain arithmetic --- */

static double value(zb_dtype dtype, const void *data, size_t i)
{
    switch (dtype) {
    case ZB_FP32:
        return (double)((const float *)data)[i];
    case ZB_FP64:
        return ((const double *)data)[i];
    case ZB_FP16:
        return (double)zb_float_from_fp16(((const uint16_t *)data)[i]);
    case ZB_BF16:
        return (double)zb_float_from_bf16(((const uint16_t *)data)[i]);
    default:
        return ((const int32_t *)data)[i];
    }
}

static double rounded(zb_dtype dtype, double x)
{
    uint64_t room[2];
    store_value(dtype, room, 0, x);
    return value(dtype, room, 0);
}

/* How a test adds: terms in turn, ended by -1. */
typedef struct recipe {
    int terms[12];
    int wide;
    double divide[2], multiply; /* after the sum; 0: not */
} recipe;

static double add_up(const scene *s, const recipe *how, int round, size_t i)
{
    const zb_dtype dtype = s->call.dtype, sums = how->wide ? ZB_FP32 : dtype;
    if (dtype == ZB_INT32) {
        uint32_t whole = 0; /* wraps around */
        for (int k = 0; how->terms[k] >= 0; k++) whole += ((const uint32_t *)s->inputs[how->terms[k]])[i];
        return (double)(int32_t)whole;
    }
    const void *const *inputs = s->inputs + round * s->call.world_size;
    double sum = value(dtype, inputs[how->terms[0]], i);
    for (int k = 1; how->terms[k] >= 0; k++)
        sum = rounded(sums, sum + value(dtype, inputs[how->terms[k]], i));
    sum = rounded(dtype, sum);
    for (int k = 0; k < 2; k++)
        if (how->divide[k] != 0) sum = rounded(dtype, sum / how->divide[k]);
    return how->multiply != 0 ? rounded(dtype, sum * (double)(float)how->multiply) : sum;
}

static void cook(scene *s, const recipe *how, size_t first, size_t numel)
{
    for (size_t i = first; i < first + numel; i++) {
        double total = 0;
        for (int round = 0; round < s->rounds; round++) {
            const double x = rounded(s->finish.dtype, add_up(s, how, round, i));
            total = round == 0 ? x : rounded(s->finish.dtype, total + x);
        }
        store_value(s->finish.dtype, s->result, i, total);
    }
}

/* --- other numbers --- */

static const struct cause_case {
    const char *name;
    int n;
    zb_dtype dtype;
    zb_redop op;
    recipe how;
    const char *cause, *sum;
} causes[] = {
    { "one missing",
      4,
      ZB_FP32,
      ZB_SUM,
      { { 0, 1, 3, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 0, 1, 3: rank 2 is missing",
      "(0 + 1) + 3" },
    { "one missing, another start",
      4,
      ZB_FP32,
      ZB_SUM,
      { { 3, 0, 1, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 0, 1, 3: rank 2 is missing",
      "(3 + 0) + 1" },
    { "one twice",
      4,
      ZB_FP32,
      ZB_SUM,
      { { 0, 1, 1, 2, 3, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 0 to 3: rank 1 is there twice",
      "(((0 + 1) + 1) + 2) + 3" },
    { "one in place of another",
      4,
      ZB_FP32,
      ZB_SUM,
      { { 0, 1, 1, 3, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 0, 1, 3: rank 2 is missing, rank 1 is there twice",
      "((0 + 1) + 1) + 3" },
    { "half of the group",
      4,
      ZB_FP32,
      ZB_SUM,
      { { 2, 3, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 2, 3: ranks 0, 1 are missing",
      "2 + 3" },
    { "every other rank",
      6,
      ZB_FP32,
      ZB_SUM,
      { { 1, 3, 5, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 1, 3, 5: ranks 0, 2, 4 are missing",
      "(1 + 3) + 5" },
    { "a rank's own",
      3,
      ZB_FP32,
      ZB_SUM,
      { { 1, -1 }, 0, { 0 }, 0 },
      "the sum of rank 1: ranks 0, 2 are missing",
      "1" },
    { "some set",
      7,
      ZB_FP32,
      ZB_SUM,
      { { 0, 2, 3, 6, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 0, 2, 3, 6: ranks 1, 4, 5 are missing",
      "((0 + 2) + 3) + 6" },
    { "bf16, one missing",
      4,
      ZB_BF16,
      ZB_SUM,
      { { 0, 2, 3, -1 }, 1, { 0 }, 0 },
      "the sum of ranks 0, 2, 3: rank 1 is missing",
      "(0 + 2) + 3" },
    { "fp16, one twice",
      3,
      ZB_FP16,
      ZB_SUM,
      { { 0, 1, 2, 2, -1 }, 1, { 0 }, 0 },
      "the sum of ranks 0, 1, 2: rank 2 is there twice",
      "((0 + 1) + 2) + 2" },
    { "fp64, one missing",
      5,
      ZB_FP64,
      ZB_SUM,
      { { 0, 1, 2, 4, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 0, 1, 2, 4: rank 3 is missing",
      "((0 + 1) + 2) + 4" },
    { "int32, one missing",
      5,
      ZB_INT32,
      ZB_SUM,
      { { 0, 1, 2, 4, -1 }, 0, { 0 }, 0 },
      "the sum of ranks 0, 1, 2, 4: rank 3 is missing",
      "((0 + 1) + 2) + 4" },
    { "an average that is a sum",
      3,
      ZB_FP32,
      ZB_AVG,
      { { 0, 1, 2, -1 }, 0, { 0 }, 0 },
      "the sum of all ranks, not divided by 3",
      "(0 + 1) + 2" },
    { "an average by another group's size",
      4,
      ZB_FP32,
      ZB_AVG,
      { { 0, 1, 2, 3, -1 }, 0, { 3 }, 0 },
      "the sum of all ranks, divided by 3, not by 4",
      "((0 + 1) + 2) + 3" },
    { "an average of another group",
      4,
      ZB_FP32,
      ZB_AVG,
      { { 0, 1, 3, -1 }, 0, { 3 }, 0 },
      "the sum of ranks 0, 1, 3, divided by 3, not by 4: rank 2 is missing",
      "(0 + 1) + 3" },
    { "an average with one missing",
      4,
      ZB_FP32,
      ZB_AVG,
      { { 0, 1, 3, -1 }, 0, { 4 }, 0 },
      "the sum of ranks 0, 1, 3: rank 2 is missing",
      "(0 + 1) + 3" },
    { "divided twice",
      4,
      ZB_FP16,
      ZB_AVG,
      { { 0, 1, 2, 3, -1 }, 1, { 4, 4 }, 0 },
      "the sum of all ranks, divided by 4 twice",
      "((0 + 1) + 2) + 3" },
    { "a sum that is an average",
      3,
      ZB_BF16,
      ZB_SUM,
      { { 0, 1, 2, -1 }, 1, { 3 }, 0 },
      "the sum of all ranks, divided by 3, which was not asked for",
      "(0 + 1) + 2" },
};

static void names_what_is_wrong(void **state)
{
    (void)state;
    rng r = { 201 };
    for (size_t i = 0; i < sizeof causes / sizeof causes[0]; i++) {
        const struct cause_case *c = &causes[i];
        scene s = scene_of(&r, c->n, NUMEL, c->dtype, c->op);
        cook(&s, &c->how, 0, NUMEL);
        const zb_explanation e = explained(&s, "rank");
        if (e.verdict != ZB_VERDICT_VALUE || strcmp(e.cause, c->cause) != 0)
            fail_msg("%s: %s", c->name, e.text);
        assert_int_equal(e.element, 0);
        assert_int_equal(e.cause_numel, NUMEL);
        assert_false(e.within_rounding);
        assert_says(&e, c->cause);
        assert_says(&e, c->sum);
        assert_says(&e, "to the bit");
        scene_free(&s);
    }
}

/* Only some elements are wrong: a chunk to which a rank came too late, and a single one. */
static void names_where_a_rank_is_missing(void **state)
{
    (void)state;
    rng r = { 202 };
    const recipe right = { { 0, 1, 2, 3, -1 }, 0, { 0 }, 0 }, late = { { 0, 1, 2, -1 }, 0, { 0 }, 0 };
    static const struct {
        size_t first, numel;
    } cases[] = { { 300, 300 }, { 900, 300 }, { 500, 1 } };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        scene s = scene_of(&r, 4, NUMEL, ZB_FP32, ZB_SUM);
        cook(&s, &right, 0, NUMEL);
        cook(&s, &late, cases[i].first, cases[i].numel);
        const zb_explanation e = explained(&s, NULL);
        assert_int_equal(e.verdict, ZB_VERDICT_VALUE);
        assert_int_equal(e.element, cases[i].first);
        assert_int_equal(e.cause_numel, cases[i].numel);
        assert_string_equal(e.cause, "the sum of ranks 0, 1, 2: rank 3 is missing");
        scene_free(&s);
    }
}

/* A rank that sends zeros leaves the tree as it is. */
static void names_a_rank_missing_in_a_tree(void **state)
{
    (void)state;
    rng r = { 214 };
    static const float zeros[NUMEL] = { 0 };
    scene s = scene_of(&r, 8, NUMEL, ZB_FP32, ZB_SUM);
    zb_reduction reduction = derived("mpi-recursive-doubling", &s.call);
    const void *sent[8];
    memcpy(sent, s.inputs, sizeof sent);
    sent[1] = zeros;
    assert_ok(zb_reduction_run(&reduction, sent, 0, s.numel, s.result));
    const zb_explanation e = explained(&s, "mpi-recursive-doubling");
    assert_string_equal(e.cause, "the sum of ranks 0, 2 to 7: rank 1 is missing");
    assert_says(&e, "to the bit they are (0 + (2 + 3)) + ((4 + 5) + (6 + 7)), each addition rounded");
    zb_reduction_destroy(&reduction);
    scene_free(&s);
}

/* Numbers that are nobody's sum get no cause. */
static void makes_nothing_up(void **state)
{
    (void)state;
    rng r = { 203 };
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16, ZB_INT32 };
    for (int trial = 0; trial < 400; trial++) {
        const zb_dtype dtype = dtypes[trial % 4];
        const int n = 2 + (int)rng_below(&r, 9);
        scene s = scene_of(&r, n, 100, dtype, trial % 8 < 4 || dtype == ZB_INT32 ? ZB_SUM : ZB_AVG);
        contributions other = contributions_random(&r, n, 100, dtype, FILL_UNIFORM);
        for (size_t i = 0; i < 100; i++)
            store_value(dtype, s.result, i, value(dtype, other.inputs[0], i) * 1.5);
        const zb_explanation e = explained(&s, NULL);
        if (e.verdict != ZB_VERDICT_VALUE || e.cause[0] != '\0') fail_msg("trial %d: %s", trial, e.text);
        assert_says(&e, "which no known order gives");
        contributions_free(&other);
        scene_free(&s);
    }
}

static void integers_have_no_average(void **state)
{
    (void)state;
    rng r = { 204 };
    scene s = scene_of(&r, 3, 10, ZB_INT32, ZB_AVG);
    zb_explanation e;
    assert_int_equal(zb_reduction_explain(&s.call, NULL, s.inputs, s.result, &e), ZB_UNSUPPORTED);
    assert_non_null(strstr(zb_error_message(), "the average of int32 is not defined"));
    scene_free(&s);
}

/* --- other ways of adding --- */

static void names_the_rounding(void **state)
{
    (void)state;
    rng r = { 205 };
    static const struct {
        zb_dtype dtype;
        zb_redop op;
        recipe how;
        const char *words;
    } cases[] = {
        { ZB_BF16, ZB_SUM, { { 0, 1, 2, 3, 4, -1 }, 0, { 0 }, 0 }, "each addition rounded" },
        { ZB_BF16, ZB_AVG, { { 0, 1, 2, 3, 4, -1 }, 1, { 5 }, 0 }, "rounded once, then divided" },
        { ZB_FP16, ZB_AVG, { { 0, 1, 2, 3, 4, -1 }, 0, { 5 }, 0 }, "each addition rounded, then divided" },
        { ZB_FP32,
          ZB_AVG,
          { { 0, 1, 2, 3, 4, -1 }, 0, { 0 }, 1.0 / 5 },
          "then multiplied by the reciprocal" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        scene s = scene_of(&r, 5, 4000, cases[i].dtype, cases[i].op);
        cook(&s, &cases[i].how, 0, 4000);
        const zb_explanation e = explained(&s, "rank");
        if (e.verdict != ZB_VERDICT_ORDER || strcmp(e.parts[0].rounding, cases[i].words) != 0)
            fail_msg("%s: %s", cases[i].words, e.text);
        assert_int_equal(e.part_count, 1);
        assert_string_equal(e.parts[0].sum, "(((0 + 1) + 2) + 3) + 4");
        assert_string_equal(e.source, "rank");
        assert_says(&e, "order: as rank, but ");
        assert_says(&e, "expected: rank, which would have given another element ");
        assert_in_range(e.unexpected, 0, 100);
        scene_free(&s);
    }
}

/* The trees of an order that has many, each rounded otherwise than it should be. */
static void names_the_rounding_of_a_ring(void **state)
{
    (void)state;
    rng r = { 206 };
    scene s = scene_of(&r, 5, 3000, ZB_FP32, ZB_AVG);
    zb_reduction reduction = derived("gloo", &s.call);
    reduction.rounding = (zb_rounding){ .scaling = ZB_SCALING_DIVIDE, .factor = 5 };
    assert_ok(zb_reduction_run(&reduction, s.inputs, 0, s.numel, s.result));
    const zb_explanation e = explained(&s, NULL);
    assert_int_equal(e.verdict, ZB_VERDICT_ORDER);
    assert_string_equal(e.source, "gloo");
    assert_int_equal(e.part_count, 5);
    assert_string_equal(e.parts[1].sum, "(((0 + 4) + 3) + 2) + 1");
    assert_string_equal(e.parts[1].rounding, "contributions divided");
    zb_reduction_destroy(&reduction);
    scene_free(&s);
}

/* --- single elements amid an order --- */

static void an_element_in_another_order_is_a_value(void **state)
{
    (void)state;
    rng r = { 207 };
    const recipe around = { { 0, 1, 2, 3, -1 }, 0, { 0 }, 0 }, other = { { 3, 2, 1, 0, -1 }, 0, { 0 }, 0 };
    const recipe unnamed = { { 1, 2, 3, 0, -1 }, 0, { 0 }, 0 };
    for (int trial = 0; trial < 60; trial++) {
        scene s = scene_of(&r, 4, 20000, ZB_FP32, ZB_SUM);
        const recipe *main = trial % 2 ? &around : &unnamed;
        cook(&s, main, 0, s.numel);
        /* The first, the last, or one in between. */
        size_t i = trial % 3 == 0 ? 0 : trial % 3 == 1 ? s.numel - 1 : 1 + rng_below(&r, s.numel - 2);
        const float before = ((float *)s.result)[i];
        cook(&s, &other, i, 1);
        if (((float *)s.result)[i] == before) {
            scene_free(&s);
            continue;
        }
        const zb_explanation e = explained(&s, NULL);
        if (e.verdict != ZB_VERDICT_VALUE || e.element != i) fail_msg("element %zu: %s", i, e.text);
        assert_true(e.within_rounding);
        assert_string_equal(e.cause, "");
        assert_says(&e, ", each addition rounded, gives, but that for ");
        assert_says(&e, trial % 2 ? "where rank gives all but 1 of the elements" : "as beside it, gives 0x");
        scene_free(&s);
    }
}

/* Where other orders are not told from the right one for long, by whole numbers, the order with a name says
 * which element it is. */
static void an_element_beside_many_that_tell_nothing(void **state)
{
    (void)state;
    rng r = { 215 };
    const recipe around = { { 0, 1, 2, 3, -1 }, 0, { 0 }, 0 }, other = { { 3, 2, 1, 0, -1 }, 0, { 0 }, 0 };
    scene s = scene_of(&r, 4, 5000, ZB_FP32, ZB_SUM);
    for (int rank = 0; rank < 4; rank++)
        for (size_t i = 1; i < 40; i++) ((float *)s.c[0].inputs[rank])[i] = (float)rng_below(&r, 100);
    for (int rank = 0; rank < 4; rank++)
        ((float *)s.c[0].inputs[rank])[0] = rank == 0 ? 1.0f : 0x1p-24f * (float)rank;
    cook(&s, &around, 0, s.numel);
    cook(&s, &other, 0, 1);
    const zb_explanation e = explained(&s, NULL);
    if (e.verdict != ZB_VERDICT_VALUE || e.element != 0) fail_msg("%s", e.text);
    assert_says(&e, "where rank gives all but 1 of the elements");
    scene_free(&s);
}

/* But what follows an order of its own for long enough is one, and so are the short chunks of a short buffer.
 */
static void short_chunks_are_orders(void **state)
{
    (void)state;
    rng r = { 208 };
    const recipe a = { { 0, 1, 2, -1 }, 0, { 0 }, 0 }, b = { { 1, 2, 0, -1 }, 0, { 0 }, 0 },
                 c = { { 2, 0, 1, -1 }, 0, { 0 }, 0 };
    scene s = scene_of(&r, 3, 300, ZB_FP32, ZB_SUM);
    cook(&s, &b, 0, 100);
    cook(&s, &c, 100, 100);
    cook(&s, &a, 200, 98);
    cook(&s, &b, 298, 2);
    zb_explanation e = explained(&s, NULL);
    assert_int_equal(e.verdict, ZB_VERDICT_ORDER);
    scene_free(&s);
    s = scene_of(&r, 3, 12, ZB_FP32, ZB_SUM);
    for (size_t i = 0; i < 12; i += 2) cook(&s, i % 4 ? &a : &b, i, 2);
    e = explained(&s, NULL);
    assert_int_equal(e.verdict, ZB_VERDICT_ORDER);
    scene_free(&s);
}

/* --- several rounds, scaled, converted --- */

static const struct finish_case {
    const char *name;
    int rounds;
    zb_dtype dtype;
    zb_finish finish;
    const char *source;
    int hides; /* the last type is too narrow to tell orders apart */
} finishes[] = {
    { "one round, divided", 1, ZB_FP32, { { ZB_FACTOR_DIVIDE, 5 }, ZB_FP32 }, "mpi-ring", 0 },
    { "one round, widened", 1, ZB_BF16, { { ZB_FACTOR_NONE, 0 }, ZB_FP32 }, "gloo", 0 },
    { "one round, multiplied, widened",
      1,
      ZB_FP16,
      { { ZB_FACTOR_MULTIPLY, 0.2f }, ZB_FP32 },
      "mpi-ring",
      0 },
    { "three rounds", 3, ZB_FP32, { { ZB_FACTOR_NONE, 0 }, ZB_FP32 }, "mpi-ring", 0 },
    { "three rounds, divided, added up in fp32",
      3,
      ZB_BF16,
      { { ZB_FACTOR_DIVIDE, 5 }, ZB_FP32 },
      "mpi-ring",
      0 },
    { "three rounds, divided, added up in bf16",
      3,
      ZB_BF16,
      { { ZB_FACTOR_DIVIDE, 5 }, ZB_BF16 },
      "gloo",
      0 },
    { "two rounds, narrowed", 2, ZB_FP32, { { ZB_FACTOR_DIVIDE, 5 }, ZB_FP16 }, "mpi-recursive-doubling", 1 },
};

/* The result of an order, by the oracle's loops and plain arithmetic. */
static void cook_order(scene *s, const char *source)
{
    zb_reduction reduction = derived(source, &s->call);
    void *sum = guarded(s->numel, 8, 0);
    for (int round = 0; round < s->rounds; round++) {
        zb_ref_reduction_run(&reduction, s->inputs + round * s->call.world_size, 0, s->numel, sum);
        for (size_t i = 0; i < s->numel; i++) {
            const double by = (double)s->finish.after.by;
            double x = value(s->call.dtype, sum, i);
            if (s->finish.after.kind == ZB_FACTOR_DIVIDE) x = rounded(s->call.dtype, x / by);
            if (s->finish.after.kind == ZB_FACTOR_MULTIPLY) x = rounded(s->call.dtype, x * by);
            x = rounded(s->finish.dtype, x);
            if (round > 0) x += value(s->finish.dtype, s->result, i);
            store_value(s->finish.dtype, s->result, i, x);
        }
    }
    guarded_free(sum);
    zb_reduction_destroy(&reduction);
}

static void explains_what_is_made_of_sums(void **state)
{
    (void)state;
    rng r = { 209 };
    for (size_t i = 0; i < sizeof finishes / sizeof finishes[0]; i++) {
        const struct finish_case *c = &finishes[i];
        scene s = scene_of_rounds(&r, 5, c->rounds, NUMEL, c->dtype, c->finish);
        cook_order(&s, c->source);
        zb_explanation e = explained(&s, c->source);
        if (!e.as_expected) fail_msg("%s: %s", c->name, e.text);
        e = explained(&s, "rank");
        assert_int_equal(e.verdict, ZB_VERDICT_NAMED);
        assert_int_equal(e.as_expected, c->hides);
        /* Another order, without a name. */
        recipe how = { { 2, 3, 4, 0, 1, -1 }, 0, { 0 }, 0 };
        if (c->finish.after.kind == ZB_FACTOR_DIVIDE) how.divide[0] = (double)c->finish.after.by;
        if (c->finish.after.kind == ZB_FACTOR_MULTIPLY) how.multiply = (double)c->finish.after.by;
        cook(&s, &how, 0, NUMEL);
        e = explained(&s, c->source);
        if (!c->hides) {
            if (e.verdict != ZB_VERDICT_ORDER || e.part_count != 1) fail_msg("%s: %s", c->name, e.text);
            assert_string_equal(e.parts[0].sum, "(((2 + 3) + 4) + 0) + 1");
        }
        /* A rank missing in all rounds. */
        const recipe less = { { 2, 3, 4, 1, -1 }, 0, { how.divide[0] }, how.multiply };
        cook(&s, &less, 0, NUMEL);
        e = explained(&s, c->source);
        assert_string_equal(e.cause, "the sum of ranks 1 to 4: rank 0 is missing");
        if (!c->hides) assert_says(&e, "((2 + 3) + 4) + 1");
        scene_free(&s);
    }
}

static void names_a_missing_round(void **state)
{
    (void)state;
    rng r = { 210 };
    const zb_finish finish = { { ZB_FACTOR_DIVIDE, 4 }, ZB_FP32 };
    scene s = scene_of_rounds(&r, 4, 3, NUMEL, ZB_FP32, finish);
    const recipe how = { { 0, 1, 2, 3, -1 }, 0, { 4 }, 0 }, less = { { 0, 1, 3, -1 }, 0, { 4 }, 0 };
    for (size_t i = 0; i < NUMEL; i++)
        ((float *)s.result)[i] = (float)add_up(&s, &how, 0, i) + (float)add_up(&s, &how, 2, i);
    zb_explanation e = explained(&s, "rank");
    assert_string_equal(e.cause, "the sum of all rounds: round 1 is missing");
    for (size_t i = 0; i < NUMEL; i++)
        ((float *)s.result)[i] = ((float)add_up(&s, &how, 0, i) + (float)add_up(&s, &less, 1, i)) +
                                 (float)add_up(&s, &how, 2, i);
    e = explained(&s, "rank");
    assert_string_equal(e.cause, "the sum of all rounds: rank 2 of round 1 is missing");
    assert_int_equal(e.cause_numel, NUMEL);
    assert_says(&e, "round 1 rank 2: 0x");
    scene_free(&s);
}

static void unfinishable_types_are_refused(void **state)
{
    (void)state;
    rng r = { 211 };
    static const struct {
        zb_dtype dtype;
        int rounds;
        zb_finish finish;
        zb_status status;
        const char *message;
    } cases[] = {
        { ZB_FP64, 2, { { ZB_FACTOR_NONE, 0 }, ZB_FP64 }, ZB_UNSUPPORTED, "sums of fp64, made into fp64" },
        { ZB_INT32, 1, { { ZB_FACTOR_DIVIDE, 2 }, ZB_INT32 }, ZB_UNSUPPORTED, "sums of int32" },
        { ZB_FP32, 1, { { ZB_FACTOR_NONE, 0 }, ZB_FP64 }, ZB_UNSUPPORTED, "made into fp64" },
        { ZB_FP32, -1, { { ZB_FACTOR_NONE, 0 }, ZB_FP32 }, ZB_INVALID_ARGUMENT, "-1 rounds" },
        { ZB_FP32, 1, { { ZB_FACTOR_DIVIDE, 0 }, ZB_FP32 }, ZB_INVALID_ARGUMENT, "divided by 0" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        scene s = scene_of(&r, 2, 10, cases[i].dtype, ZB_SUM);
        const zb_explain_options options = { .call = &s.call,
                                             .inputs = s.inputs,
                                             .result = s.result,
                                             .rounds = cases[i].rounds,
                                             .finish = &cases[i].finish };
        zb_explanation e;
        assert_int_equal(zb_reduction_explain_finished(&options, &e), cases[i].status);
        assert_non_null(strstr(zb_error_message(), cases[i].message));
        scene_free(&s);
    }
}

static void every_failing_allocation(void **state)
{
    (void)state;
    rng r = { 212 };
    const zb_finish finish = { { ZB_FACTOR_DIVIDE, 4 }, ZB_FP32 };
    scene s = scene_of_rounds(&r, 4, 2, 300, ZB_BF16, finish);
    const recipe how = { { 0, 1, 3, -1 }, 1, { 4 }, 0 };
    cook(&s, &how, 0, 300);
    const zb_explain_options options = {
        .call = &s.call, .inputs = s.inputs, .result = s.result, .rounds = 2, .finish = &finish
    };
    const uint64_t live = zb_alloc_get_stats().live;
    for (int64_t n = 0;; n++) {
        zb_explanation e;
        zb_alloc_fail_at(n);
        const zb_status status = zb_reduction_explain_finished(&options, &e);
        const int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (!fired) break;
    }
    scene_free(&s);
}

/* --- speed: what takes longest --- */

typedef void spoil_function(rng *r, scene *s);

static void spoil_nothing(rng *r, scene *s)
{
    (void)r;
    (void)s;
}
static void spoil_last(rng *r, scene *s)
{
    (void)r;
    *((unsigned char *)s->result + s->numel * zb_dtype_bytes(s->finish.dtype) - 1) ^= 0x40;
}
static void run_chain(scene *s, size_t first, size_t numel, int start)
{
    zb_reduction reduction = derived("rank", &s->call);
    reduction.rounding.wide = 0;
    for (int i = 0; i < s->call.world_size; i++) reduction.orders[i] = (i + start) % s->call.world_size;
    assert_ok(zb_reduction_run(&reduction, s->inputs, first, numel,
                               (char *)s->result + first * zb_dtype_bytes(s->call.dtype)));
    zb_reduction_destroy(&reduction);
}
static void spoil_start(rng *r, scene *s)
{
    (void)r;
    run_chain(s, 0, s->numel, s->call.world_size - 1);
}
static void spoil_often(rng *r, scene *s)
{
    for (size_t i = 0; i + 40 <= s->numel; i += 40)
        run_chain(s, i, 40, (int)rng_below(r, (size_t)s->call.world_size));
}
static void spoil_everywhere(rng *r, scene *s)
{
    for (size_t i = 0; i < s->numel; i++) run_chain(s, i, 1, (int)rng_below(r, (size_t)s->call.world_size));
}
static void spoil_rank(rng *r, scene *s)
{
    (void)r;
    const void *kept = s->inputs[3];
    s->inputs[3] = s->inputs[2];
    run_chain(s, 0, s->numel, 0);
    s->inputs[3] = kept;
}

static const struct speed_case {
    const char *name;
    int n;
    size_t numel;
    zb_dtype dtype;
    zb_redop op;
    const char *source;
    spoil_function *spoil;
    zb_verdict verdict;
} speeds[] = {
    { "a value at the end", 8, 1000000, ZB_FP32, ZB_SUM, "mpi-ring", spoil_last, ZB_VERDICT_VALUE },
    { "int32, a value at the end", 8, 1000000, ZB_INT32, ZB_SUM, "rank", spoil_last, ZB_VERDICT_VALUE },
    { "no name", 8, 1000000, ZB_FP32, ZB_SUM, "rank", spoil_start, ZB_VERDICT_ORDER },
    { "fp16 avg, as it should be", 8, 1000000, ZB_FP16, ZB_AVG, "rank", spoil_nothing, ZB_VERDICT_NAMED },
    { "fp16 avg, no name", 8, 1000000, ZB_FP16, ZB_AVG, "rank", spoil_start, ZB_VERDICT_ORDER },
    { "bf16 avg, a value at the end", 8, 1000000, ZB_BF16, ZB_AVG, "rank", spoil_last, ZB_VERDICT_VALUE },
    { "another order every 40 elements", 8, 1000000, ZB_FP32, ZB_SUM, "rank", spoil_often, ZB_VERDICT_ORDER },
    { "another order for each element of 3 ranks", 3, 200000, ZB_FP32, ZB_SUM, "rank", spoil_everywhere,
      ZB_VERDICT_VALUE },
    { "another order for each element of 8 ranks", 8, 200000, ZB_FP32, ZB_SUM, "rank", spoil_everywhere,
      ZB_VERDICT_VALUE },
    { "a rank missing", 8, 1000000, ZB_FP32, ZB_SUM, "rank", spoil_rank, ZB_VERDICT_VALUE },
    { "64 ranks, a value at the end", 64, 200000, ZB_FP32, ZB_SUM, "mpi-ring", spoil_last, ZB_VERDICT_VALUE },
    { "64 ranks, no name", 64, 200000, ZB_BF16, ZB_AVG, "rank", spoil_start, ZB_VERDICT_ORDER },
    { "64 ranks, a rank missing", 64, 200000, ZB_BF16, ZB_SUM, "rank", spoil_rank, ZB_VERDICT_VALUE },
};

static void is_fast(void **state)
{
    (void)state;
    rng r = { 213 };
    for (size_t i = 0; i < sizeof speeds / sizeof speeds[0]; i++) {
        const struct speed_case *c = &speeds[i];
        scene s = scene_of(&r, c->n, c->numel, c->dtype, c->op);
        zb_reduction reduction = derived(c->source, &s.call);
        assert_ok(zb_reduction_run(&reduction, s.inputs, 0, s.numel, s.result));
        zb_reduction_destroy(&reduction);
        c->spoil(&r, &s);
        const clock_t start = clock();
        const zb_explanation e = explained(&s, NULL);
        const double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        printf("%s: %.3f s: %.110s\n", c->name, seconds, e.text);
        assert_int_equal(e.verdict, c->verdict);
#if !defined(ZB_SANITIZED) && !defined(ZB_COVERAGE)
        assert_true(seconds < 1);
#endif
        scene_free(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_what_is_wrong),
        cmocka_unit_test(names_where_a_rank_is_missing),
        cmocka_unit_test(names_a_rank_missing_in_a_tree),
        cmocka_unit_test(makes_nothing_up),
        cmocka_unit_test(integers_have_no_average),
        cmocka_unit_test(names_the_rounding),
        cmocka_unit_test(names_the_rounding_of_a_ring),
        cmocka_unit_test(an_element_in_another_order_is_a_value),
        cmocka_unit_test(an_element_beside_many_that_tell_nothing),
        cmocka_unit_test(short_chunks_are_orders),
        cmocka_unit_test(explains_what_is_made_of_sums),
        cmocka_unit_test(names_a_missing_round),
        cmocka_unit_test(unfinishable_types_are_refused),
        cmocka_unit_test(every_failing_allocation),
        cmocka_unit_test(is_fast),
    };
    return cmocka_run_group_tests_name("orders_explain_cause", tests, NULL, NULL);
}
