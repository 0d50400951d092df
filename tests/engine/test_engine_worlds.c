/* Many ranks, simulated: equal bits at every stage, accounts by the formula on every rank, and failures of
 * one rank that all of them survive. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>
#include <zerobit/sim.h>
#include <zerobit/verify.h>

#include "tests/engine/rig.h"

enum { WORLD_MAX = 8, STEPS = 3, WORKERS = 2 };

/* One run of all ranks. A rank reports what is wrong by its status: it runs on a stack of its own. */
typedef struct world {
    const rig_options *options;
    zb_config *config;
    zb_model *model;
    zb_dataset *dataset;
    zb_sim *sim;
    uint64_t live;
    float *weights[WORLD_MAX];
    probe_device devices[WORLD_MAX];
} world;

static zb_status check_account(const char *what, int64_t got, uint64_t want)
{
    if (got == (int64_t)want) return ZB_OK;
    return zb_fail(ZB_DIFFERENT, "%s: %lld bytes, want %llu", what, (long long)got, (unsigned long long)want);
}

typedef struct sent_bytes {
    int64_t bytes[ZB_COLLECTIVE_COUNT];
} sent_bytes;

static zb_status note_sent(void *user, const zb_observation *o)
{
    sent_bytes *sent = user;
    if (o->quantity == ZB_Q_BYTES_SENT) memcpy(sent->bytes, o->data, sizeof sent->bytes);
    return ZB_OK;
}

static zb_status check_accounts(const world *w, zb_engine *engine, const zb_device *device)
{
    uint64_t held[ZB_MEM_COUNT];
    zb_traffic sent[ZB_COLLECTIVE_COUNT];
    sent_bytes got = { { 0 } };
    const zb_plan *plan = zb_engine_plan(engine);
    ZB_TRY(zb_memory_formula(w->config, w->model, plan, w->options->stage, held));
    ZB_TRY(zb_traffic_formula(w->config, w->model, plan, w->options->stage,
                              &(zb_step_past){ .steps = STEPS - 1 }, 0, sent));
    ZB_TRY(zb_engine_observe(engine, &(zb_observer){ note_sent, &got }));
    for (int kind = 0; kind < ZB_MEM_COUNT; kind++)
        ZB_TRY(check_account(zb_memory_kind_name((zb_memory_kind)kind), (int64_t)device->peak_bytes[kind],
                             held[kind]));
    for (int kind = 0; kind < ZB_COLLECTIVE_COUNT; kind++)
        ZB_TRY(
            check_account(zb_collective_name((zb_collective_kind)kind), got.bytes[kind], sent[kind].bytes));
    return ZB_OK;
}

static zb_status gather(const world *w, zb_engine *engine, float *all)
{
    float *out[32];
    for (int p = 0; p < w->model->param_count; p++) {
        out[p] = all;
        all += w->model->params[p].numel;
    }
    return zb_engine_gather_weights(engine, out);
}

static zb_status train(const world *w, zb_engine *engine, zb_comm *comm)
{
    for (int step = 0; step < STEPS; step++) ZB_TRY(zb_engine_train_step(engine, NULL));
    ZB_TRY(gather(w, engine, w->weights[comm->rank]));
    return check_accounts(w, engine, &w->devices[comm->rank].base);
}

static zb_status rank_main(void *user, zb_comm *comm)
{
    world *w = user;
    probe_device *device = &w->devices[comm->rank];
    zb_engine *engine = NULL;
    const zb_engine_options options = { .config = w->config,
                                        .model = w->model,
                                        .dataset = w->dataset,
                                        .device = &device->base,
                                        .comm = comm,
                                        .stage = -1,
                                        .dtype = -1,
                                        .init_seed = 11 };
    zb_status status = zb_initialize(&options, &engine);
    if (status == ZB_OK) status = train(w, engine, comm);
    zb_engine_destroy(engine);
    return status;
}

static void world_open(world *w, const rig_options *o, int size)
{
    *w = (world){ .options = o, .live = zb_alloc_get_stats().live };
    w->config = rig_config(o);
    w->model = test_model(o->model);
    assert_int_equal(zb_dataset_synthetic(w->model, 23, 3, &w->dataset), ZB_OK);
    assert_int_equal(
        zb_sim_create(&(zb_sim_options){ .world_size = size, .workers = WORKERS, .seed = 1 }, &w->sim),
        ZB_OK);
    for (int rank = 0; rank < size; rank++) {
        probe_device_init(&w->devices[rank]);
        w->weights[rank] = calloc(w->model->param_numel + 1, sizeof(float));
        assert_non_null(w->weights[rank]);
    }
}

static void world_close(world *w)
{
    for (int rank = 0; rank < WORLD_MAX && w->weights[rank] != NULL; rank++) {
        for (int kind = 0; kind < ZB_MEM_COUNT; kind++)
            assert_int_equal(w->devices[rank].base.held_bytes[kind], 0);
        probe_device_close(&w->devices[rank]);
        free(w->weights[rank]);
    }
    zb_sim_destroy(w->sim);
    zb_dataset_destroy(w->dataset);
    zb_model_destroy(w->model);
    zb_config_destroy(w->config);
    assert_int_equal(zb_alloc_get_stats().live, w->live);
}

/* --- equal bits, and the accounts --- */

static const int sizes_tried[] = { 2, 3, 4, 7 };

static void run_and_compare(const rig_options *o, int size, float **want)
{
    world w;
    world_open(&w, o, size);
    if (zb_sim_run(w.sim, rank_main, &w) != ZB_OK)
        fail_msg("%s, world %d: %s", rig_name(o), size, zb_error_message());
    size_t bytes = w.model->param_numel * sizeof(float);
    if (*want == NULL) {
        *want = malloc(bytes + 1);
        assert_non_null(*want);
        memcpy(*want, w.weights[0], bytes);
    }
    for (int rank = 0; rank < size; rank++)
        if (memcmp(w.weights[rank], *want, bytes) != 0)
            fail_msg("%s, world %d: weights gathered by rank %d differ", rig_name(o), size, rank);
    world_close(&w);
}

/* With one micro-batch a step all stages have one plan. */
static void stages_agree_in_every_world(void **state)
{
    (void)state;
    for (int m = 0; m < test_model_count; m++)
        for (size_t s = 0; s < COUNT(sizes_tried); s++) {
            float *want = NULL;
            for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
                for (int overlap = 0; overlap < 2; overlap++)
                    for (uint64_t bucket = 0; bucket <= 20; bucket += 20)
                        run_and_compare(&(rig_options){ .model = test_model_names[m],
                                                        .stage = stage,
                                                        .overlap = overlap,
                                                        .bucket = bucket },
                                        sizes_tried[s], &want);
            free(want);
        }
}

/* With several, stages 0 and 1 share a plan, and 2 and 3 another. */
static void pairs_agree_with_accumulation(void **state)
{
    (void)state;
    for (int m = 0; m < test_model_count; m++)
        for (int first = 0; first < ZB_STAGE_COUNT; first += 2) {
            float *want = NULL;
            for (int stage = first; stage < first + 2; stage++)
                for (int overlap = 0; overlap < 2; overlap++)
                    run_and_compare(&(rig_options){ .model = test_model_names[m],
                                                    .stage = stage,
                                                    .overlap = overlap,
                                                    .accumulation = 3,
                                                    .bucket = 20 },
                                    3, &want);
            free(want);
        }
}

/* --- what only tunes --- */

#define TUNES(text)                                                                                          \
    {                                                                                                        \
        .name = text, .zero = text                                                                           \
    }
#define TUNES_IN(type, text)                                                                                 \
    {                                                                                                        \
        .name = type " " text, .zero = text, .rest = "\"" type "\": {\"enabled\": true}"                     \
    }
#define KNOBS(X)                                                                                             \
    X("\"reduce_scatter\": false"), X("\"contiguous_gradients\": false"),                                    \
        X("\"use_multi_rank_bucket_allreduce\": false"), X("\"round_robin_gradients\": true"),               \
        X("\"sub_group_size\": 7"), X("\"reduce_scatter\": false, \"round_robin_gradients\": true")
#define IN_BF16(text) TUNES_IN("bf16", text)

/* In standard semantics none of these changes a bit, at any stage, bucket size or overlap. */
static const rig_plan plain_fp32 = { .name = "nothing tuned" },
                      plain_bf16 = IN_BF16("\"stage3_prefetch_bucket_size\": 7");
static const rig_plan fp32_knobs[] = { KNOBS(TUNES) }, bf16_knobs[] = { KNOBS(IN_BF16) };

static void check_knobs(const char *model, int stage, const rig_plan *plain, const rig_plan *knobs,
                        size_t count)
{
    float *want = NULL;
    rig_options o = {
        .model = model, .stage = stage, .plan = plain, .accumulation = 2, .gathering = RIG_ALL_STAY
    };
    run_and_compare(&o, 3, &want);
    for (size_t k = 0; k < count; k++)
        for (o.overlap = 0; o.overlap < 2; o.overlap++)
            for (o.bucket = 0; o.bucket <= 24; o.bucket += 8) {
                o.plan = &knobs[k];
                run_and_compare(&o, 3, &want);
            }
    free(want);
}

static void knobs_change_no_bit(void **state)
{
    (void)state;
    static const char *const models[] = { "conv", "unused", "tied and frozen" };
    for (size_t m = 0; m < COUNT(models); m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
            check_knobs(models[m], stage, &plain_fp32, fp32_knobs, COUNT(fp32_knobs));
            check_knobs(models[m], stage, &plain_bf16, bf16_knobs, COUNT(bf16_knobs));
        }
}

/* --- against the oracle, which has its own gradients --- */

static const struct oracle_case {
    const char *name, *optimizer;
    int accumulation, overlap;
    uint64_t bucket;
} oracle_cases[] = {
    { "the oracle agrees: Adam", RIG_ADAM, 1, 0, 0 },
    { "the oracle agrees: Adam, 3 micro-batches, small buckets", RIG_ADAM, 3, 1, 20 },
    { "the oracle agrees: SGD with momentum", RIG_MOMENTUM, 1, 1, 1 },
    { "the oracle agrees: SGD, 2 micro-batches", RIG_SGD, 2, 0, 20 },
};

static void check_oracle(void **state)
{
    const struct oracle_case *c = *state;
    static const int stages[] = { 0, 1, 2, 3 };
    static const zb_dtype dtype = ZB_FP32;
    for (int m = 0; m < test_model_count; m++) {
        rig_options o = { .model = test_model_names[m],
                          .optimizer = c->optimizer,
                          .accumulation = c->accumulation,
                          .overlap = c->overlap,
                          .bucket = c->bucket };
        zb_config *config = rig_config(&o);
        zb_model *model = test_model(o.model);
        zb_dataset *dataset;
        zb_weights weights;
        zb_verify_case cases[COUNT(stages) * COUNT(sizes_tried)];
        assert_int_equal(zb_dataset_synthetic(model, 23, 3, &dataset), ZB_OK);
        assert_int_equal(zb_weights_from_seed(model, 11, &weights), ZB_OK);
        if (zb_verify(&(zb_verify_options){ .config = config,
                                            .model = model,
                                            .weights = &weights,
                                            .dataset = dataset,
                                            .stages = stages,
                                            .stage_count = COUNT(stages),
                                            .worlds = sizes_tried,
                                            .world_count = COUNT(sizes_tried),
                                            .dtypes = &dtype,
                                            .dtype_count = 1,
                                            .steps = STEPS,
                                            .workers = WORKERS },
                      cases) != ZB_OK)
            fail_msg("%s: %s", o.model, zb_error_message());
        zb_weights_destroy(&weights);
        zb_dataset_destroy(dataset);
        zb_model_destroy(model);
        zb_config_destroy(config);
    }
}

/* --- failures --- */

static const char *const failing_models[] = { "conv", "unused" };

/* Calls `arm`, runs, and checks that what was armed came out; returns whether it fired. */
typedef int run_failing(world *w, int64_t n);

static int fail_collective(world *w, int64_t n)
{
    zb_sim_fail_at(w->sim, n, ZB_IO);
    zb_status status = zb_sim_run(w->sim, rank_main, w);
    int fired = zb_sim_fault_fired(w->sim);
    assert_int_equal(status, fired ? ZB_IO : ZB_OK);
    return fired;
}

static int fail_allocation(world *w, int64_t n)
{
    zb_alloc_fail_at(n);
    zb_status status = zb_sim_run(w->sim, rank_main, w);
    int fired = zb_alloc_fault_fired();
    zb_alloc_fail_at(-1);
    assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
    return fired;
}

/* A rank that fails by itself while others are in the middle of a collective with it. */
static int fail_device(world *w, int64_t n)
{
    probe_fault *fault = &w->devices[1].fault;
    fault->fail_at = n;
    zb_status status = zb_sim_run(w->sim, rank_main, w);
    assert_int_equal(status, fault->fired ? ZB_REMOTE : ZB_OK);
    if (fault->fired) assert_message_has("probe: call");
    return fault->fired;
}

static const struct failure_case {
    const char *name;
    run_failing *run;
} failures[] = {
    { "the n-th collective", fail_collective },
    { "the n-th allocation", fail_allocation },
    { "the n-th device call of one rank", fail_device },
};

static void check_failure(void **state)
{
    const struct failure_case *c = *state;
    for (size_t m = 0; m < COUNT(failing_models); m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (int overlap = 0; overlap < 2; overlap++) {
                rig_options o = {
                    .model = failing_models[m], .stage = stage, .overlap = overlap, .bucket = 20
                };
                int fired = 1;
                for (int64_t n = 0; fired; n++) {
                    world w;
                    world_open(&w, &o, 2);
                    fired = c->run(&w, n);
                    world_close(&w);
                }
            }
}

/* Every plan, in two ranks that fail together. */
static void check_plan_failure(void **state)
{
    const struct failure_case *c = *state;
    for (int p = 0; p < rig_plan_count; p++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
            rig_options o = {
                .model = "unused", .plan = &rig_plans[p], .stage = stage, .overlap = p % 2, .bucket = 8
            };
            int fired = rig_plans[p].stages >> stage & 1;
            for (int64_t n = 0; fired; n++) {
                world w;
                world_open(&w, &o, 2);
                fired = c->run(&w, n);
                world_close(&w);
            }
        }
}

int main(void)
{
    struct CMUnitTest tests[2 * COUNT(failures) + COUNT(oracle_cases) + 3] = {
        cmocka_unit_test(knobs_change_no_bit),
        cmocka_unit_test(stages_agree_in_every_world),
        cmocka_unit_test(pairs_agree_with_accumulation),
    };
    size_t n = 3;
    for (size_t i = 0; i < COUNT(failures); i++)
        tests[n++] = (struct CMUnitTest){ failures[i].name, check_failure, NULL, NULL, (void *)&failures[i] };
    for (size_t i = 0; i < COUNT(failures); i++)
        tests[n++] = (struct CMUnitTest){ failures[i].name, check_plan_failure, NULL, NULL,
                                          (void *)&failures[i] };
    for (size_t i = 0; i < COUNT(oracle_cases); i++)
        tests[n++] = (struct CMUnitTest){ oracle_cases[i].name, check_oracle, NULL, NULL,
                                          (void *)&oracle_cases[i] };
    return cmocka_run_group_tests_name("engine_worlds", tests, NULL, NULL);
}
