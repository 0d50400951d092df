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
            zb_plan plan = { .world_size = papers[i].world, .groups = { adam }, .group_count = 1 };
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
    zb_config config = { .group_count = 1,
                         .zero = { .reduce_scatter = 1, .reduce_bucket_numel = 500000000 } };
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
        for (int world = 1; world <= 9; world++) {
            zb_plan plan = { .world_size = world,
                             .micro_batch_size = 2,
                             .accumulation_steps = 1,
                             .groups = { c->optimizer },
                             .group_count = 1 };
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
 * Parts at stage 3: 9 + 2 + 6 + 1 = 18 per rank. Nothing is kept: forward gathers 44 and 28, backward
 * b.weight: 24; a's 44 in the buffer of its all_gather and 44 in their places. --- */

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
    { "stage 3", 3, 0, 1000, 18, 18, 36, 88, 72, 0, 216, 0, 288, 3, 9 },
    { "stage 3, overlap", 3, 1, 24, 18, 18, 36, 88, 72, 0, 216, 0, 288, 9, 9 },
    { "stage 3, overlap left open means on", 3, -1, 24, 18, 18, 36, 88, 72, 0, 216, 0, 288, 9, 9 },
    { "stage 2, overlap left open means off", 2, -1, 24, 72, 18, 36, 0, 35, 0, 0, 198, 72, 9, 1 },
};

static const zb_step_past beginning = { 0 };

static void check_hand(void **state)
{
    const struct hand_case *c = *state;
    zb_model *model = test_model("mlp");
    zb_config config = {
        .group_count = 1,
        .zero = { .reduce_scatter = 1, .overlap_comm = c->overlap, .reduce_bucket_numel = c->bucket }
    };
    zb_plan plan = {
        .world_size = 4, .micro_batch_size = 2, .accumulation_steps = 3, .groups = { adam }, .group_count = 1
    };
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
    /* the largest parameter; no activation is used twice */
    assert_int_equal(held[ZB_MEM_WORKSPACE], 4 * 35 + NORM_BYTES);

    assert_int_equal(zb_traffic_formula(&config, model, &plan, c->stage, &beginning, 0, sent), ZB_OK);
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

/* --- stage 3's gathers, of the same model: what the knobs do, and what came before --- */

enum { ANY = 1000000000 };

#define ALL_PERSIST    .param_persistence_numel = 35, .model_persistence_numel = 66
#define BIASES_PERSIST .param_persistence_numel = 7, .model_persistence_numel = 66
#define KEPT           .max_reuse_numel = ANY

/* held: elements in the arena; calls, numel: all_gathers of a step and their elements. */
static const struct gather_case {
    const char *name;
    zb_zero_config zero;
    zb_step_past past;
    int deepspeed, may_skip, skipped;
    uint64_t held, calls, numel, broadcasts, integers;
} gathers[] = {
    { .name = "one by one: a module at a time, no buffers",
      .zero = { .allgather_sequential = 1 },
      .held = 44,
      .calls = 15,
      .numel = 288 },
    /* b's 28 come when a's 44 are there, and take 28 more in the buffer. */
    { .name = "all persist: gathered where they are first needed, and after the step",
      .zero = { ALL_PERSIST },
      .held = 100,
      .calls = 2 + 4,
      .numel = 72 + 72 },
    { .name = "all persist: later only after the step",
      .zero = { ALL_PERSIST },
      .past = { 1, 0, 0 },
      .held = 100,
      .calls = 4,
      .numel = 72 },
    { .name = "all persist: a skipped step gathers nothing behind it",
      .zero = { ALL_PERSIST },
      .past = { 2, 0, 0 },
      .may_skip = 1,
      .skipped = 1,
      .held = 100 },
    { .name = "all persist: behind a skipped step they are needed",
      .zero = { ALL_PERSIST },
      .past = { 5, 0, 1 },
      .may_skip = 1,
      .held = 100,
      .calls = 2 + 4,
      .numel = 72 + 72 },
    /* Backward does not read a's weight, so that only b's is kept for it. */
    { .name = "biases persist, weights stay till backward",
      .zero = { BIASES_PERSIST, KEPT },
      .held = 88,
      .calls = 2 + 2 * 2 + 2,
      .numel = 44 + 28 + 2 * 60 + 12 },
    { .name = "biases persist, and are there from the start",
      .zero = { BIASES_PERSIST, KEPT },
      .past = { 1, 0, 0 },
      .held = 88,
      .calls = 3 * 2 + 2,
      .numel = 3 * 60 + 12 },
    { .name = "all ahead: one call",
      .zero = { .prefetch_bucket_numel = 66, .max_live_numel = ANY },
      .held = 144,
      .calls = 3,
      .numel = 216 },
    { .name = "the model as one unit",
      .zero = { .module_granularity_numel = 22, KEPT },
      .held = 144,
      .calls = 3,
      .numel = 216 },
    { .name = "not as one: 66 elements in 3 modules are more than 21",
      .zero = { .module_granularity_numel = 21, KEPT },
      .held = 88,
      .calls = 6,
      .numel = 216 },
    /* Recorded: 72 forward, 72 backward; a never leaves backward and is given up behind it. Then the order is
     * known: units 0 1 2 0 2 1 that need 8 parameters. */
    { .name = "DeepSpeed: the first micro-batch records, the second compares",
      .zero = { KEPT },
      .deepspeed = 1,
      .held = 100,
      .calls = 4 + 2 + 2,
      .numel = 144 + 72 + 72,
      .broadcasts = 2 + 6,
      .integers = 1 + 3 + 6 + 8 + 8 },
    { .name = "DeepSpeed: later steps",
      .zero = { KEPT },
      .past = { 1, 0, 0 },
      .deepspeed = 1,
      .held = 100,
      .calls = 6,
      .numel = 216 },
};

static void check_gathers(void **state)
{
    const struct gather_case *c = *state;
    zb_model *model = test_model("mlp");
    zb_config config = { .group_count = 1, .zero = c->zero };
    zb_plan plan = { .semantics = c->deepspeed ? ZB_SEMANTICS_DEEPSPEED_0_19_6 : ZB_SEMANTICS_STANDARD,
                     .quirks.first_iteration_recorded = c->deepspeed,
                     .overflow = c->may_skip ? ZB_OVERFLOW_SKIP : ZB_OVERFLOW_UNSEEN,
                     .world_size = 4,
                     .micro_batch_size = 2,
                     .accumulation_steps = 3,
                     .groups = { adam },
                     .group_count = 1 };
    uint64_t held[ZB_MEM_COUNT];
    zb_traffic sent[ZB_COLLECTIVE_COUNT];
    assert_int_equal(zb_memory_formula(&config, model, &plan, 3, held), ZB_OK);
    assert_int_equal(held[ZB_MEM_GATHER], 4 * c->held);
    assert_int_equal(zb_traffic_formula(&config, model, &plan, 3, &c->past, c->skipped, sent), ZB_OK);
    assert_int_equal(sent[ZB_COLLECTIVE_ALL_GATHER].calls, c->calls);
    assert_int_equal(sent[ZB_COLLECTIVE_ALL_GATHER].bytes, 4 * c->numel);
    assert_int_equal(sent[ZB_COLLECTIVE_BROADCAST].calls, c->broadcasts);
    assert_int_equal(sent[ZB_COLLECTIVE_BROADCAST].bytes, 8 * c->integers);
    zb_model_destroy(model);
}

/* --- refusals --- */

static void bad_stages_and_worlds_are_refused(void **state)
{
    (void)state;
    zb_model *model = test_model("mlp");
    zb_config config = { .group_count = 1, .zero = { .reduce_scatter = 1, .reduce_bucket_numel = 100 } };
    zb_plan plan = {
        .world_size = 0, .micro_batch_size = 1, .accumulation_steps = 1, .groups = { adam }, .group_count = 1
    };
    uint64_t bytes[ZB_MEM_COUNT] = { 77 };
    zb_traffic traffic[ZB_COLLECTIVE_COUNT] = { { 78, 79 } };
    uint64_t live = zb_alloc_get_stats().live;
    assert_int_equal(zb_memory_formula(&config, model, &plan, 1, bytes), ZB_INVALID_ARGUMENT);
    assert_message_has("world size is 0");
    plan.world_size = 2;
    assert_int_equal(zb_memory_formula(&config, model, &plan, 4, bytes), ZB_INVALID_ARGUMENT);
    assert_message_has("stage is 4");
    assert_int_equal(zb_traffic_formula(&config, model, &plan, -1, &beginning, 0, traffic),
                     ZB_INVALID_ARGUMENT);
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
    zb_config config = { .group_count = 1, .zero = { .reduce_scatter = 1, .reduce_bucket_numel = 100 } };
    zb_plan plan = {
        .world_size = 2, .micro_batch_size = 1, .accumulation_steps = 1, .groups = { adam }, .group_count = 1
    };
    uint64_t bytes[ZB_MEM_COUNT], live = zb_alloc_get_stats().live;
    zb_traffic traffic[ZB_COLLECTIVE_COUNT];
    for (int which = 0; which < 2; which++) {
        int fired = 1;
        for (int n = 0; fired; n++) {
            zb_alloc_fail_at(n);
            zb_status status = which ? zb_memory_formula(&config, model, &plan, 3, bytes)
                                     : zb_traffic_formula(&config, model, &plan, 3, &beginning, 0, traffic);
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
    struct CMUnitTest tests[COUNT(numel_cases) + COUNT(hands) + COUNT(gathers) + 3] = {
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
    for (size_t i = 0; i < COUNT(gathers); i++)
        tests[n++] = (struct CMUnitTest){ gathers[i].name, check_gathers, NULL, NULL, (void *)&gathers[i] };
    return cmocka_run_group_tests_name("formula", tests, NULL, NULL);
}
