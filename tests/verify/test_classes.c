/* Which stages must be equal to the bit, by config, order and world; and how far apart the others may be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/verify.h>

#include "verify/classes.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* --- classes --- */

#define RING "mpi-ring"
#define DOUBLING                                                                                             \
    "all_reduce: mpi-recursive-doubling; reduce_scatter_v: mpi-butterfly; reduce_scatter: mpi-butterfly"
#define HALVING                                                                                              \
    "all_reduce: mpi-recursive-doubling; reduce_scatter_v: mpi-recursive-halving; reduce_scatter: "          \
    "mpi-recursive-halving"
#define NCCL                                                                                                 \
    "all_reduce: nccl-ring version=2.28 protocol=simple channels=1; reduce_scatter: nccl-ring version=2.28 " \
    "protocol=simple channels=1"

static const struct class_case {
    const char *name;
    int accumulation, world;
    zb_dtype dtype;
    const char *semantics, *order, *classes; /* of stages 0 to 3 */
} class_cases[] = {
    { "one micro-batch: all are one", 1, 4, ZB_FP32, "standard", "rank", "AAAA" },
    { "in any precision", 1, 8, ZB_BF16, "standard", "rank", "AAAA" },
    { "accumulation: 0 and 1 reduce once, 2 and 3 every time", 2, 4, ZB_FP32, "standard", "rank", "AABB" },
    { "accumulation on one rank all the same", 2, 1, ZB_FP32, "standard", "rank", "AABB" },
    { "two ranks have one order", 1, 2, ZB_FP32, "standard", RING, "AAAA" },
    { "a ring starts elsewhere in an all_reduce and in a reduce_scatter", 1, 4, ZB_FP32, "standard", RING,
      "ABBC" },
    { "recursive doubling is the butterfly's tree", 1, 4, ZB_FP32, "standard", DOUBLING, "AAAA" },
    { "and at a world that is no power of two", 1, 6, ZB_FP16, "standard", DOUBLING, "AAAA" },
    { "recursive halving is another tree from four ranks on", 1, 4, ZB_FP32, "standard", HALVING, "ABBB" },
    { "but the same at three", 1, 3, ZB_FP32, "standard", HALVING, "AAAA" },
    { "both reasons at once", 2, 4, ZB_FP32, "standard", HALVING, "ABCC" },
    { "NCCL multiplies before it adds", 1, 3, ZB_FP32, "standard", NCCL, "ABBC" },
    { "DeepSpeed divides in different places", 1, 4, ZB_FP32, "deepspeed-0.19.6", "rank", "ABBC" },
};

typedef struct setting {
    zb_config *config;
    zb_model *model;
    zb_verify_case cases[ZB_STAGE_COUNT];
    zb_route routes[ZB_STAGE_COUNT];
} setting;

static void open_setting(const struct class_case *c, setting *s)
{
    char text[1024];
    *s = (setting){ 0 };
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": %d, "
             "\"gradient_clipping\": 0, "
             "\"optimizer\": {\"type\": \"SGD\", \"params\": {\"lr\": 1}}, "
             "\"zero_allow_untested_optimizer\": true, "
             "\"zerobit\": {\"semantics\": \"%s\", \"order\": \"%s\"}}",
             c->accumulation, c->semantics, c->order);
    if (zb_config_parse(text, strlen(text), NULL, &s->config) != ZB_OK) fail_msg("%s", zb_error_message());
    assert_int_equal(zb_model_open("mlp:37-29-11", &s->model), ZB_OK);
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        zb_verify_case *of = &s->cases[stage];
        *of = (zb_verify_case){ .stage = stage, .dtype = c->dtype, .world_size = c->world };
        assert_int_equal(zb_plan_derive(s->config, stage, c->dtype, c->world, &of->plan), ZB_OK);
        if (zb_route_create(s->config, s->model, &of->plan, stage, &s->routes[stage]) != ZB_OK)
            fail_msg("%s", zb_error_message());
    }
}

static void close_setting(setting *s)
{
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) zb_route_destroy(&s->routes[stage]);
    zb_model_destroy(s->model);
    zb_config_destroy(s->config);
}

static void check_classes(void **state)
{
    const struct class_case *c = *state;
    setting s;
    int class_count;
    char found[ZB_STAGE_COUNT + 1] = "";
    open_setting(c, &s);
    assert_int_equal(zb_classes_find(s.cases, s.routes, ZB_STAGE_COUNT, &class_count), ZB_OK);
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        found[stage] = (char)('A' + s.cases[stage].equality_class);
        assert_true(s.cases[stage].equality_class < class_count);
    }
    assert_string_equal(found, c->classes);
    close_setting(&s);
}

/* --- between them --- */

enum { NUMEL = 3 };

static zb_param params[] = { { .name = "w", .numel = 2 }, { .name = "b", .numel = 1 } };
static const zb_model model = { .params = params, .param_count = 2, .param_numel = NUMEL };

static const struct relation_case {
    const char *name;
    float a[NUMEL], b[NUMEL];
    double bounds[NUMEL]; /* of either; the magnitudes are 1 */
    zb_status status;
    double largest;
    uint64_t elements, differ;
    const char *words;
} relation_cases[] = {
    { "equal", { 1, 2, 3 }, { 1, 2, 3 }, { 0.1, 0.1, 0.1 }, ZB_OK, 0, 3, 0, "" },
    { "at the bound", { 1, 2, 3 }, { 1, 2.5f, 3 }, { 0.25, 0.25, 0.25 }, ZB_OK, 1, 3, 1, "" },
    { "beyond it",
      { 1, 2, 3 },
      { 1, 2, 4 },
      { 0.25, 0.25, 0.25 },
      ZB_DIFFERENT,
      2,
      3,
      1,
      "stages 1 and 3 round differently, but the reduced gradient b[0] of their first step is 3 and 4" },
    { "where nothing may differ", { 1, 2, 3 }, { 1, 2.5f, 3 }, { 0, 0, 0 }, ZB_DIFFERENT, 0, 3, 1, "w[1]" },
    { "an overflow says nothing",
      { 1, (float)INFINITY, 3 },
      { 1, 2, (float)NAN },
      { 0.1, (double)INFINITY, (double)INFINITY },
      ZB_OK,
      0,
      1,
      0,
      "" },
    { "an infinity where nothing can overflow",
      { 1, 2, 3 },
      { 1, (float)INFINITY, 3 },
      { 0.1, 0.1, 0.1 },
      ZB_DIFFERENT,
      0,
      3,
      1,
      "w[1] of their first step is 2 and inf" },
    { "no number where there is one",
      { 1, 2, 3 },
      { 1, 2, (float)NAN },
      { 0.1, 0.1, 0.1 },
      ZB_DIFFERENT,
      0,
      3,
      1,
      "b[0] of their first step is 3 and nan" },
};

static const double magnitudes[NUMEL] = { 1, 1, 1 };

static void check_relation(void **state)
{
    const struct relation_case *c = *state;
    const zb_verify_case of_a = {
        .stage = 1, .equality_class = 0, .world_size = 2, .dtype = ZB_BF16, .plan = { .world_size = 2 }
    };
    const zb_verify_case of_b = {
        .stage = 3, .equality_class = 1, .world_size = 2, .dtype = ZB_BF16, .plan = { .world_size = 2 }
    };
    const zb_first_gradients a = { &of_a, (float *)c->a, (double *)c->bounds, (double *)magnitudes, 4 };
    const zb_first_gradients b = { &of_b, (float *)c->b, (double *)c->bounds, (double *)magnitudes, 5 };
    zb_verify_relation r;
    zb_classes_relate(&model, &a, &b, &r);
    assert_int_equal(r.status, c->status);
    assert_true(r.largest == c->largest);
    assert_int_equal(r.elements, c->elements);
    assert_int_equal(r.elements_differ, c->differ);
    assert_int_equal(r.roundings, 9);
    assert_int_equal(r.class_a, 0);
    assert_int_equal(r.class_b, 1);
    assert_true(r.is_bounded);
    if (strstr(r.message, c->words) == NULL) fail_msg("no %s in: %s", c->words, r.message);
}

/* Plans whose gradients differ by more than rounding are told apart, not held to a bound. */
static const struct incomparable {
    const char *name;
    zb_plan a, b;
    const char *words;
} incomparables[] = {
    { "an average that is absent", { .averaging = { .absent = 1 } }, { 0 }, "not averaged" },
    { "a loss scale",
      { .loss_is_scaled = 1, .scaler = { .initial_scale = 8 } },
      { 0 },
      "scaled differently" },
    { "a sum and an average",
      { .averaging = { .inside = 1 }, .world_size = 2 },
      { .world_size = 2 },
      "different numbers" },
};

static void check_incomparable(void **state)
{
    const struct incomparable *c = *state;
    const float far_a[NUMEL] = { 1, 2, 3 }, far_b[NUMEL] = { 10, 20, 30 };
    const double bounds[NUMEL] = { 0 };
    const zb_verify_case of_a = { .plan = c->a }, of_b = { .plan = c->b, .equality_class = 1 };
    const zb_first_gradients a = { &of_a, (float *)far_a, (double *)bounds, (double *)magnitudes, 1 };
    const zb_first_gradients b = { &of_b, (float *)far_b, (double *)bounds, (double *)magnitudes, 1 };
    zb_verify_relation r;
    zb_classes_relate(&model, &a, &b, &r);
    assert_int_equal(r.status, ZB_OK);
    assert_false(r.is_bounded);
    if (strstr(r.message, c->words) == NULL) fail_msg("no %s in: %s", c->words, r.message);
}

/* 1 / 3 rounded and multiplied, or divided by 3: the same average, meant, and farther apart than the
 * roundings behind that alone. */
static void rounded_factors(void **state)
{
    (void)state;
    const double big[NUMEL] = { 0x1p24, 0x1p24, 0x1p24 }, none[NUMEL] = { 0 };
    const zb_verify_case of_a = { .plan = { .averaging.after = { ZB_FACTOR_MULTIPLY, 1.0f / 3.0f } } };
    const zb_verify_case of_b = { .plan = { .averaging.after = { ZB_FACTOR_DIVIDE, 3.0f } },
                                  .equality_class = 1 };
    const float exact[NUMEL] = { 1, 2, 3 }, near[NUMEL] = { 1, 2, 3.125f }, far[NUMEL] = { 1, 2, 3.25f };
    const zb_first_gradients a = { &of_a, (float *)exact, (double *)none, (double *)big, 1 };
    const zb_first_gradients b = { &of_b, (float *)near, (double *)none, (double *)big, 1 };
    const zb_first_gradients c = { &of_b, (float *)far, (double *)none, (double *)big, 1 };
    zb_verify_relation r;
    zb_classes_relate(&model, &a, &b, &r); /* |1/3 - fl(1/3)| 2^24 is 1/6 */
    assert_int_equal(r.status, ZB_OK);
    assert_true(r.largest > 0.74 && r.largest < 0.76);
    zb_classes_relate(&model, &a, &c, &r);
    assert_int_equal(r.status, ZB_DIFFERENT);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(class_cases) + COUNT(relation_cases) + COUNT(incomparables) + 1];
    size_t count = 0;
    for (size_t i = 0; i < COUNT(class_cases); i++)
        tests[count++] = (struct CMUnitTest){ class_cases[i].name, check_classes, NULL, NULL,
                                              (void *)&class_cases[i] };
    for (size_t i = 0; i < COUNT(relation_cases); i++)
        tests[count++] = (struct CMUnitTest){ relation_cases[i].name, check_relation, NULL, NULL,
                                              (void *)&relation_cases[i] };
    for (size_t i = 0; i < COUNT(incomparables); i++)
        tests[count++] = (struct CMUnitTest){ incomparables[i].name, check_incomparable, NULL, NULL,
                                              (void *)&incomparables[i] };
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(rounded_factors);
    return cmocka_run_group_tests_name("classes", tests, NULL, NULL);
}
