/*
 * What the oracle demands of a route before it plays it: the engine's own hold, and one that has been changed
 * in a way that plan and model contradict does not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>

#include "ref/oracle.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { WORLD = 3 };

typedef struct setting {
    zb_config *config;
    zb_model *model;
    zb_plan plan;
    zb_route route;
} setting;

/* Small buckets, so that there are several collectives. */
static void open_setting(const char *semantics, const char *order, int stage, setting *s)
{
    char text[1024];
    *s = (setting){ 0 };
    snprintf(text, sizeof text,
             "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_clipping\": 1, \"zero_optimization\": "
             "{\"stage\": %d, "
             "\"reduce_bucket_size\": 50}, \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 1}}, "
             "\"zerobit\": {\"semantics\": \"%s\", \"order\": \"%s\"}}",
             stage, semantics, order);
    if (zb_config_parse(text, strlen(text), NULL, &s->config) != ZB_OK ||
        zb_model_open("mlp:7-5-3", &s->model) != ZB_OK ||
        zb_plan_derive(s->config, stage, ZB_FP32, WORLD, &s->plan) != ZB_OK ||
        zb_route_create(s->config, s->model, &s->plan, stage, &s->route) != ZB_OK)
        fail_msg("%s", zb_error_message());
}

static void close_setting(setting *s)
{
    zb_route_destroy(&s->route);
    zb_model_destroy(s->model);
    zb_config_destroy(s->config);
}

/* --- routes that hold --- */

#define NCCL                                                                                                 \
    "all_reduce: nccl-ring version=2.28 protocol=simple channels=2; reduce_scatter: nccl-ring "              \
    "version=2.28 protocol=simple channels=2"

static void engine_routes_hold(void **state)
{
    (void)state;
    static const char *const semantics[] = { "standard", "deepspeed-0.19.6" };
    static const char *const orders[] = { "rank", "mpi-ring", "mpi-default", "gloo", NCCL };
    for (size_t m = 0; m < COUNT(semantics); m++)
        for (size_t o = 0; o < COUNT(orders); o++)
            for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
                setting s;
                open_setting(semantics[m], orders[o], stage, &s);
                if (zb_ref_route_check(&s.plan, s.model, &s.route) != ZB_OK)
                    fail_msg("%s, %s, stage %d: %s", semantics[m], orders[o], stage, zb_error_message());
                close_setting(&s);
            }
}

/* --- routes that do not --- */

static void another_world(setting *s)
{
    s->plan.world_size = 4;
}
static void another_type(setting *s)
{
    s->route.collectives[0].call.dtype = ZB_FP16;
}
static void adds_another_type(setting *s)
{
    s->route.collectives[1].reduction.dtype = ZB_FP16;
}
static void another_operator(setting *s)
{
    s->route.collectives[0].call.op = ZB_PREMUL_SUM;
}
static void sends_more(setting *s)
{
    s->route.collectives[0].call.numel++;
}
static void not_divided(setting *s)
{
    s->route.collectives[0].reduction.rounding.divisor = 0;
}
static void divided_by_two(setting *s)
{
    s->route.collectives[0].reduction.rounding.divisor = 2;
}
static void divided_twice(setting *s)
{
    s->route.collectives[0].reduction.rounding.scaling = ZB_SCALING_DIVIDE;
    s->route.collectives[0].reduction.rounding.factor = WORLD;
}
static void a_rank_twice(setting *s)
{
    zb_reduction *r = &s->route.collectives[0].reduction;
    r->orders[0] = r->orders[1];
}
static void a_position_twice(setting *s)
{
    zb_reduction *r = &s->route.collectives[0].reduction;
    r->trees[0] = r->trees[1];
}
static void too_few_sums(setting *s)
{
    zb_reduction *r = &s->route.collectives[0].reduction;
    r->trees[1] = ZB_TREE_ADD;
}
static void a_gap(setting *s)
{
    s->route.collectives[0].reduction.ranges[0].first = 1;
}
static void too_short(setting *s)
{
    zb_reduction *r = &s->route.collectives[0].reduction;
    r->ranges[r->range_count - 1].numel--;
}
static void no_such_tree(setting *s)
{
    s->route.collectives[0].reduction.ranges[0].tree = 7;
}
static void left_out(setting *s)
{
    s->route.collectives[0].pieces[0].numel--;
}
static void sent_twice(setting *s)
{
    zb_route_piece *piece = &s->route.collectives[1].pieces[0];
    const zb_route_piece *first = &s->route.collectives[0].pieces[0];
    piece->param = first->param;
    piece->first = first->first;
    piece->numel = 1;
}
static void overlaps(setting *s)
{
    zb_route_collective *c = &s->route.collectives[s->route.count - 1];
    assert_true(c->piece_count > 1);
    c->pieces[1].at = c->pieces[0].at;
}
static void beyond_the_parameter(setting *s)
{
    s->route.collectives[0].pieces[0].first++;
}
static void no_such_parameter(setting *s)
{
    s->route.collectives[0].pieces[0].param = 99;
}
static void frozen(setting *s)
{
    s->model->params[s->route.collectives[0].pieces[0].param].requires_grad = 0;
}
/* The exact norm needs none. */
static void no_norm_sum(setting *s)
{
    s->plan.norm = ZB_NORM_PARTITION_FP32;
}

static const struct damage {
    void (*change)(setting *s);
    const char *words;
} damages[] = {
    { another_world, "the route is of 3 ranks, the plan of 4" },
    { another_type, "collective 0: is of 3 ranks, fp16" },
    { adds_another_type, "collective 1: adds fp16 of 3 ranks, the plan fp32 of 3" },
    { another_operator, "collective 0: is of 3 ranks, fp32, operator 4" },
    { sends_more, "collective 0: sends " },
    { not_divided, "divisor 0 of 3 ranks is not the plan's average" },
    { divided_by_two, "divisor 2 of 3 ranks is not the plan's average" },
    { divided_twice, "factor 3, divisor 3 of 3 ranks is not the plan's average" },
    { a_rank_twice, "collective 0: order 0 has rank " },
    { a_position_twice, "collective 0: tree 0 has position " },
    { too_few_sums, "collective 0: tree 0 adds 1 sums" },
    { a_gap, "want it to begin at 0" },
    { too_short, "collective 0: ranges end at element " },
    { no_such_tree, "range 0 has tree 7" },
    { left_out, "the route sends no " },
    { sent_twice, "collective 1: sends " },
    { overlaps, " at elements " },
    { beyond_the_parameter, "that train" },
    { no_such_parameter, "sends parameter 99, the model has 4" },
    { frozen, "which has 0 that train" },
    { no_norm_sum, "sum of norms, fp 32: is of 0 numbers, want 1" },
};

static void check_damage(void **state)
{
    const struct damage *d = *state;
    setting s;
    open_setting("standard", "rank", 0, &s);
    d->change(&s);
    assert_int_equal(zb_ref_route_check(&s.plan, s.model, &s.route), ZB_INVALID_ARGUMENT);
    if (strstr(zb_error_message(), d->words) == NULL) fail_msg("no %s in: %s", d->words, zb_error_message());
    close_setting(&s);
}

static void out_of_memory(void **state)
{
    (void)state;
    setting s;
    open_setting("standard", "rank", 2, &s);
    const int64_t live = (int64_t)zb_alloc_get_stats().live;
    for (int n = 0; n < 3; n++) {
        zb_alloc_fail_at(n);
        assert_int_equal(zb_ref_route_check(&s.plan, s.model, &s.route), ZB_NO_MEMORY);
        assert_int_equal((int64_t)zb_alloc_get_stats().live, live);
    }
    close_setting(&s);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(damages) + 2];
    for (size_t i = 0; i < COUNT(damages); i++)
        tests[i] = (struct CMUnitTest){ damages[i].words, check_damage, NULL, NULL, (void *)&damages[i] };
    tests[COUNT(damages)] = (struct CMUnitTest)cmocka_unit_test(engine_routes_hold);
    tests[COUNT(damages) + 1] = (struct CMUnitTest)cmocka_unit_test(out_of_memory);
    return cmocka_run_group_tests_name("ref_route", tests, NULL, NULL);
}
