/* What a stage holds and sends, by formula: the ZeRO paper's arithmetic, and small models counted by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>

#include "tests/engine/models.h"

static const zb_optimizer_config adam = { .kind = ZB_OPTIMIZER_ADAM };

static uint64_t sum(const uint64_t *bytes, int count)
{
    uint64_t total = 0;
    for (int i = 0; i < count; i++) total += bytes[i];
    return total;
}

/* --- the paper's table: psi parameters on N ranks; fp32 Adam has 4 + 4 + 8 bytes per parameter --- */

static const struct paper_case {
    int world;
    double gigabytes[ZB_STAGE_COUNT]; /* of 7.5e9 parameters */
} papers[] = {
    { 1, { 120, 120, 120, 120 } },
    { 4, { 120, 75, 52.5, 30 } }, /* 8 psi + 8 psi / N; 4 psi + 12 psi / N; 16 psi / N */
    { 16, { 120, 63.75, 35.625, 7.5 } },
    { 64, { 120, 60.9375, 31.40625, 1.875 } },
};

static void paper_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(papers); i++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
            zb_plan plan = { .world_size = papers[i].world, .optimizer = adam };
            uint64_t bytes[ZB_MEM_COUNT];
            zb_memory_formula_numel(7500000000u, &plan, stage, bytes);
            assert_int_equal(sum(bytes, ZB_MEM_COUNT), (uint64_t)(papers[i].gigabytes[stage] * 1e9));
        }
}

/* --- one matrix: the formula of a parameter count is that of the model --- */

static zb_model *matrix(int64_t in, int64_t out)
{
    zb_model *model;
    assert_int_equal(zb_model_create("matrix", &(zb_shape){ 1, { in } }, ZB_LOSS_MSE, &model), ZB_OK);
    zb_module_spec spec = { .kind = ZB_MODULE_LINEAR, .name = "w", .out_features = out, .no_bias = 1 };
    assert_int_equal(zb_model_add(model, &spec), ZB_OK);
    assert_int_equal(zb_model_finish(model), ZB_OK);
    return model;
}

static const struct numel_case {
    const char *name;
    int64_t in, out;
    zb_optimizer_config optimizer;
} numel_cases[] = {
    { "15 parameters, Adam", 5, 3, { .kind = ZB_OPTIMIZER_ADAM } },
    { "15 parameters, SGD", 5, 3, { .kind = ZB_OPTIMIZER_SGD } },
    { "1 parameter, SGD with momentum", 1, 1, { .kind = ZB_OPTIMIZER_SGD, .momentum = 0.5 } },
    { "1024 parameters, Adam", 32, 32, { .kind = ZB_OPTIMIZER_ADAM } },
};

static void check_numel(void **state)
{
    const struct numel_case *c = *state;
    zb_model *model = matrix(c->in, c->out);
    zb_config config = { .zero = { .reduce_scatter = 1, .reduce_bucket_numel = 500000000 } };
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
        for (int world = 1; world <= 9; world++) {
            zb_plan plan = {
                .world_size = world, .micro_batch_size = 2, .accumulation_steps = 1, .optimizer = c->optimizer
            };
            uint64_t by_numel[ZB_MEM_COUNT], by_model[ZB_MEM_COUNT];
            zb_memory_formula_numel(model->param_numel, &plan, stage, by_numel);
            assert_int_equal(zb_memory_formula(&config, model, &plan, stage, by_model), ZB_OK);
            assert_int_equal(by_numel[ZB_MEM_PARAM], by_model[ZB_MEM_PARAM]);
            assert_int_equal(by_numel[ZB_MEM_GRAD], by_model[ZB_MEM_GRAD]);
            assert_int_equal(by_numel[ZB_MEM_OPTIMIZER], by_model[ZB_MEM_OPTIMIZER]);
            assert_int_equal(by_numel[ZB_MEM_ACTIVATION], 0);
        }
    zb_model_destroy(model);
}

/* --- counted by hand: model "mlp" has 35 + 7 + 21 + 3 = 66 parameters; world 4, 3 micro-batches of 2 rows.
 * Parts at stage 3: 9 + 2 + 6 + 1 = 18 per rank. Forward gathers 36 + 8 + 24 + 4, backward b.weight: 24. ---
 */

enum { NORM_BYTES = ZB_SUM_SQUARES_WORDS * 8 };

static const struct hand_case {
    const char *name;
    int stage, overlap;
    uint64_t bucket;
    uint64_t param, grad, optimizer, gather, buckets;                  /* elements */
    uint64_t all_reduce, reduce_scatter, reduce_scatter_v, all_gather; /* elements; the norm is added below */
    uint64_t reductions, gathers;                                      /* calls, without the norm's */
} hands[] = {
    { "stage 0", 0, 0, 1000, 66, 66, 132, 0, 0, 66, 0, 0, 0, 1, 0 },
    { "stage 1", 1, 1, 1000, 72, 72, 36, 0, 0, 0, 0, 66, 72, 1, 1 },
    { "stage 2", 2, 0, 1000, 72, 18, 36, 0, 66, 0, 0, 198, 72, 3, 1 },
    { "stage 2, small bucket", 2, 0, 24, 72, 18, 36, 0, 35, 0, 0, 198, 72, 9, 1 },
    { "stage 2, overlap: two buckets", 2, 1, 24, 72, 18, 36, 0, 70, 0, 0, 198, 72, 9, 1 },
    { "stage 3", 3, 0, 1000, 18, 18, 36, 44, 72, 0, 216, 0, 288, 3, 15 },
    { "stage 3, overlap", 3, 1, 24, 18, 18, 36, 44, 72, 0, 216, 0, 288, 9, 15 },
    { "stage 3, overlap left open means on", 3, -1, 24, 18, 18, 36, 44, 72, 0, 216, 0, 288, 9, 15 },
    { "stage 2, overlap left open means off", 2, -1, 24, 72, 18, 36, 0, 35, 0, 0, 198, 72, 9, 1 },
};

static void check_hand(void **state)
{
    const struct hand_case *c = *state;
    zb_model *model = test_model("mlp");
    zb_config config = {
        .zero = { .reduce_scatter = 1, .overlap_comm = c->overlap, .reduce_bucket_numel = c->bucket }
    };
    zb_plan plan = { .world_size = 4, .micro_batch_size = 2, .accumulation_steps = 3, .optimizer = adam };
    uint64_t held[ZB_MEM_COUNT];
    zb_traffic sent[ZB_COLLECTIVE_COUNT];
    assert_int_equal(zb_memory_formula(&config, model, &plan, c->stage, held), ZB_OK);
    assert_int_equal(held[ZB_MEM_PARAM], 4 * c->param);
    assert_int_equal(held[ZB_MEM_GRAD], 4 * c->grad);
    assert_int_equal(held[ZB_MEM_OPTIMIZER], 4 * c->optimizer);
    assert_int_equal(held[ZB_MEM_GATHER], 4 * c->gather);
    assert_int_equal(held[ZB_MEM_BUCKET], 4 * c->buckets);
    /* input 5, values and gradients 7 7 3, labels 1, log-probabilities 3, row loss 1; the loss */
    assert_int_equal(held[ZB_MEM_ACTIVATION], 4 * (2 * (5 + 2 * 17 + 1 + 3 + 1) + 1));
    /* the largest parameter, the largest activation */
    assert_int_equal(held[ZB_MEM_WORKSPACE], 4 * (35 + 2 * 7) + NORM_BYTES);

    assert_int_equal(zb_traffic_formula(&config, model, &plan, c->stage, 0, sent), ZB_OK);
    uint64_t norm_calls = c->stage > 0;
    assert_int_equal(sent[ZB_COLLECTIVE_ALL_REDUCE].bytes, 4 * c->all_reduce + norm_calls * NORM_BYTES);
    assert_int_equal(sent[ZB_COLLECTIVE_REDUCE_SCATTER].bytes, 4 * c->reduce_scatter);
    assert_int_equal(sent[ZB_COLLECTIVE_REDUCE_SCATTER_V].bytes, 4 * c->reduce_scatter_v);
    assert_int_equal(sent[ZB_COLLECTIVE_ALL_GATHER].bytes, 4 * c->all_gather);
    assert_int_equal(sent[ZB_COLLECTIVE_ALL_REDUCE].calls + sent[ZB_COLLECTIVE_REDUCE_SCATTER].calls +
                         sent[ZB_COLLECTIVE_REDUCE_SCATTER_V].calls,
                     c->reductions + norm_calls);
    assert_int_equal(sent[ZB_COLLECTIVE_ALL_GATHER].calls, c->gathers);
    uint64_t calls = 0;
    for (int kind = 0; kind < ZB_COLLECTIVE_COUNT; kind++) calls += sent[kind].calls;
    assert_int_equal(calls, c->reductions + c->gathers + norm_calls);
    zb_model_destroy(model);
}

/* --- refusals --- */

static void bad_stages_and_worlds_are_refused(void **state)
{
    (void)state;
    zb_model *model = test_model("mlp");
    zb_config config = { .zero = { .reduce_scatter = 1, .reduce_bucket_numel = 100 } };
    zb_plan plan = { .world_size = 0, .micro_batch_size = 1, .accumulation_steps = 1, .optimizer = adam };
    uint64_t bytes[ZB_MEM_COUNT] = { 77 };
    zb_traffic traffic[ZB_COLLECTIVE_COUNT] = { { 78, 79 } };
    uint64_t live = zb_alloc_get_stats().live;
    assert_int_equal(zb_memory_formula(&config, model, &plan, 1, bytes), ZB_INVALID_ARGUMENT);
    assert_message_has("world size is 0");
    plan.world_size = 2;
    assert_int_equal(zb_memory_formula(&config, model, &plan, 4, bytes), ZB_INVALID_ARGUMENT);
    assert_message_has("stage is 4");
    assert_int_equal(zb_traffic_formula(&config, model, &plan, -1, 0, traffic), ZB_INVALID_ARGUMENT);
    assert_message_has("stage is -1");
    assert_int_equal(bytes[0], 77);
    assert_int_equal(traffic[0].calls, 78);
    assert_int_equal(zb_alloc_get_stats().live, live);
    zb_model_destroy(model);
}

static void out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    zb_model *model = test_model("conv");
    zb_config config = { .zero = { .reduce_scatter = 1, .reduce_bucket_numel = 100 } };
    zb_plan plan = { .world_size = 2, .micro_batch_size = 1, .accumulation_steps = 1, .optimizer = adam };
    uint64_t bytes[ZB_MEM_COUNT], live = zb_alloc_get_stats().live;
    zb_traffic traffic[ZB_COLLECTIVE_COUNT];
    for (int which = 0; which < 2; which++) {
        int fired = 1;
        for (int n = 0; fired; n++) {
            zb_alloc_fail_at(n);
            zb_status status = which ? zb_memory_formula(&config, model, &plan, 3, bytes)
                                     : zb_traffic_formula(&config, model, &plan, 3, 0, traffic);
            fired = zb_alloc_fault_fired();
            zb_alloc_fail_at(-1);
            assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
            assert_int_equal(zb_alloc_get_stats().live, live);
        }
    }
    zb_model_destroy(model);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(numel_cases) + COUNT(hands) + 3] = {
        cmocka_unit_test(paper_table),
        cmocka_unit_test(bad_stages_and_worlds_are_refused),
        cmocka_unit_test(out_of_memory_leaves_nothing),
    };
    size_t n = 3;
    for (size_t i = 0; i < COUNT(numel_cases); i++)
        tests[n++] = (struct CMUnitTest){ numel_cases[i].name, check_numel, NULL, NULL,
                                          (void *)&numel_cases[i] };
    for (size_t i = 0; i < COUNT(hands); i++)
        tests[n++] = (struct CMUnitTest){ hands[i].name, check_hand, NULL, NULL, (void *)&hands[i] };
    return cmocka_run_group_tests_name("formula", tests, NULL, NULL);
}
