/* Modules that someone else calls: the engine at stage 3 sends what DeepSpeed sends for the same calls,
 * gathers and reductions in one sequence; and call orders that do not fit are refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>
#include <zerobit/sim.h>

#include "tests/engine/models.h"

enum { STEPS = 4, WORLD = 2, PARAMS = 6, TEXT_BYTES = 2048, WORKERS = 2 };

static const sizes six = { PARAMS, { 16, 4, 24, 4, 10, 3 }, 0 };

/* Three modules with a weight and a bias, called one after the other. */
static const zb_index_list modules[] = {
    { NULL, 0 },
    { (const int[]){ 0, 1 }, 2 },
    { (const int[]){ 2, 3 }, 2 },
    { (const int[]){ 4, 5 }, 2 },
};
static const zb_call_order three = {
    .modules = modules,
    .module_count = COUNT(modules),
    .forward = { (const int[]){ 0, 1, 2, 3 }, 4 },
    .backward = { (const int[]){ 0, 3, 2, 1 }, 4 },
    .gradients = { (const int[]){ 5, 4, 3, 2, 1, 0 }, 6 },
};

static zb_model *list_of(const sizes *s)
{
    zb_model *model;
    assert_int_equal(zb_model_create("list", NULL, ZB_LOSS_ELSEWHERE, &model), ZB_OK);
    for (int p = 0; p < s->count; p++) {
        char name[8];
        snprintf(name, sizeof name, "p%d", p);
        const zb_module_spec spec = { .kind = ZB_MODULE_PARAMETER,
                                      .name = name,
                                      .shape = { 1, { (int64_t)s->numel[p] } },
                                      .frozen = (s->frozen >> p) & 1 };
        assert_int_equal(zb_model_add(model, &spec), ZB_OK);
    }
    assert_int_equal(zb_model_finish(model), ZB_OK);
    return model;
}

static zb_config *config_of(const char *semantics, const char *knobs)
{
    char text[1024];
    zb_config *config;
    int length = snprintf(text, sizeof text,
                          "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 1, "
                          "\"zerobit\": {\"semantics\": \"%s\"}, \"optimizer\": {\"type\": \"Adam\"}, "
                          "\"zero_optimization\": {\"stage\": 3, %s}}",
                          semantics, knobs);
    if (zb_config_parse(text, (size_t)length, "order.json", &config) != ZB_OK)
        fail_msg("%s", zb_error_message());
    return config;
}

/* --- what is sent --- */

typedef struct order_run {
    const zb_config *config;
    const zb_model *model;
    const zb_call_order *order;
    char text[STEPS][TEXT_BYTES]; /* of rank 0 */
    int step;
} order_run;

static zb_status note_call(void *user, const zb_comm *comm, const zb_collective *c)
{
    order_run *run = user;
    static const char *const names[ZB_COLLECTIVE_COUNT] = { [ZB_COLLECTIVE_ALL_GATHER] = "AG",
                                                            [ZB_COLLECTIVE_REDUCE_SCATTER] = "RS",
                                                            [ZB_COLLECTIVE_ALL_REDUCE] = "AR",
                                                            [ZB_COLLECTIVE_BROADCAST] = "B" };
    const int times = c->kind == ZB_COLLECTIVE_ALL_GATHER || c->kind == ZB_COLLECTIVE_REDUCE_SCATTER
                          ? comm->world_size
                          : 1;
    char *text = run->text[run->step];
    const size_t used = strlen(text);
    snprintf(text + used, TEXT_BYTES - used, "%s%zu ", names[c->kind] != NULL ? names[c->kind] : "?",
             c->numel * (size_t)times);
    return ZB_OK;
}

static zb_status train(order_run *run, zb_comm *comm, zb_engine *engine)
{
    static const float ones[32] = { 1, 1, 1, 1 };
    const float *values[PARAMS];
    for (int p = 0; p < PARAMS; p++) values[p] = ones;
    for (int step = 0; step < STEPS; step++) {
        if (comm->rank == 0) run->step = step;
        ZB_TRY(zb_engine_external_micro_batch(engine, ZB_EXTERNAL_INPUT, values));
        ZB_TRY(zb_engine_step(engine));
    }
    return ZB_OK;
}

static zb_status run_rank(void *user, zb_comm *comm)
{
    order_run *run = user;
    zb_device *device;
    zb_engine *engine = NULL;
    const zb_comm_observer observer = { note_call, run };
    ZB_TRY(zb_device_cpu_create_poisoning(&device));
    const zb_engine_options options = { .config = run->config,
                                        .model = run->model,
                                        .device = device,
                                        .comm = comm,
                                        .stage = -1,
                                        .dtype = -1,
                                        .init_seed = 1,
                                        .call_order = run->order };
    zb_status status = zb_initialize(&options, &engine);
    if (comm->rank == 0) comm->observer = &observer;
    if (status == ZB_OK) status = train(run, comm, engine);
    comm->observer = NULL;
    zb_engine_destroy(engine);
    zb_device_destroy(device);
    return status;
}

#define SECOND "B1 B8 B1 B12 B1 B12 "

/* DeepSpeed 0.19.6, fp32, two ranks; the first step records, and before the second one ranks compare. */
static const struct schedule_case {
    const char *name, *knobs, *first, *later;
} schedules[] = {
    { "everything stays from forward to backward",
      "\"param_persistence_threshold\": 0, \"prefetch_bucket_size\": 0",
      "B1 B0 AG20 AG28 AG14 AG14 AG28 AG20 RS62 AR1 ", "AG20 AG28 AG14 RS62 AR1 " },
    { "nothing is kept",
      "\"param_persistence_threshold\": 0, \"prefetch_bucket_size\": 0, \"max_reuse_distance\": 0",
      "B1 B0 AG20 AG28 AG14 AG14 AG28 AG20 RS62 AR1 ", "AG20 AG28 AG14 AG14 AG28 AG20 RS62 AR1 " },
    { "all ahead", "\"param_persistence_threshold\": 0", "B1 B0 AG20 AG28 AG14 AG14 AG28 AG20 RS62 AR1 ",
      "AG62 RS62 AR1 " },
    { "ahead by 20", "\"param_persistence_threshold\": 0, \"prefetch_bucket_size\": 20",
      "B1 B0 AG20 AG28 AG14 AG14 AG28 AG20 RS62 AR1 ", "AG20 AG24 AG4 AG14 RS62 AR1 " },
    { "at most 30 alive", "\"param_persistence_threshold\": 0, \"max_live_parameters\": 30",
      "B1 B0 AG20 AG28 AG14 AG14 AG28 AG20 RS62 AR1 ", "AG44 AG4 AG14 RS62 AR1 " },
    { "biases persist", "\"param_persistence_threshold\": 4, \"prefetch_bucket_size\": 0",
      "B1 B0 AG20 AG28 AG14 AG14 AG28 AG20 RS62 AR1 AG4 AG4 AG4 ", "AG16 AG24 AG10 RS62 AR1 AG4 AG4 AG4 " },
    { "sub-groups have norms of their own",
      "\"param_persistence_threshold\": 0, \"prefetch_bucket_size\": 0, \"sub_group_size\": 10",
      "B1 B0 AG20 AG28 AG14 AG14 AG28 AG20 RS62 AR1 AR1 AR1 ", "AG20 AG28 AG14 RS62 AR1 AR1 AR1 " },
    { "small buckets",
      "\"param_persistence_threshold\": 0, \"prefetch_bucket_size\": 0, \"reduce_bucket_size\": 15",
      "B1 B0 AG20 AG28 AG14 AG14 AG28 RS14 RS4 AG20 RS24 RS4 RS16 AR1 ",
      "AG20 AG28 AG14 RS14 RS4 RS24 RS4 RS16 AR1 " },
    { "small buckets, summed whole",
      "\"param_persistence_threshold\": 0, \"prefetch_bucket_size\": 0, \"reduce_bucket_size\": 15, "
      "\"reduce_scatter\": false",
      "B1 B0 AG20 AG28 AG14 AG14 AG28 AR13 AR4 AG20 RS24 AR4 RS16 AR1 ",
      "AG20 AG28 AG14 AR13 AR4 RS24 AR4 RS16 AR1 " },
};

static void check_schedule(void **state)
{
    const struct schedule_case *c = *state;
    zb_sim *sim;
    zb_config *config = config_of("deepspeed-0.19.6", c->knobs);
    order_run *run = calloc(1, sizeof *run);
    zb_model *model = list_of(&six);
    char second[TEXT_BYTES];
    assert_non_null(run);
    *run = (order_run){ .config = config, .model = model, .order = &three };
    assert_int_equal(
        zb_sim_create(&(zb_sim_options){ .world_size = WORLD, .workers = WORKERS, .seed = 1 }, &sim), ZB_OK);
    if (zb_sim_run(sim, run_rank, run) != ZB_OK) fail_msg("%s", zb_error_message());
    snprintf(second, sizeof second, "%s%s", SECOND, c->later);
    assert_string_equal(run->text[0], c->first);
    assert_string_equal(run->text[1], second);
    for (int step = 2; step < STEPS; step++) assert_string_equal(run->text[step], c->later);
    zb_sim_destroy(sim);
    zb_model_destroy(model);
    zb_config_destroy(config);
    free(run);
}

/* --- what does not fit --- */

#define LIST(...)                                                                                            \
    {                                                                                                        \
        (const int[]){ __VA_ARGS__ }, (int)(sizeof((const int[]){ __VA_ARGS__ }) / sizeof(int))              \
    }

static const zb_index_list out_of_range[] = { LIST(6) };

static const struct refusal_case {
    const char *name;
    zb_call_order order;
    const char *message;
} refusals[] = {
    { "a parameter that is not there",
      { .modules = out_of_range, .module_count = 1, .forward = LIST(0), .backward = LIST(0) },
      "parameter of a module [0] is 6, want 0 to 5" },
    { "a module that is not there",
      { .modules = modules, .module_count = 4, .forward = LIST(0, 4), .backward = LIST(0) },
      "forward [1] is 4, want 0 to 3" },
    { "another module first",
      { .modules = modules, .module_count = 4, .forward = LIST(1, 2), .backward = LIST(0) },
      "forward [0] is 1, want module 0 first" },
    { "the model inside itself",
      { .modules = modules, .module_count = 4, .forward = LIST(0, 1), .backward = LIST(0, 1, 0) },
      "backward [2] is 0, want module 0 first" },
    { "no calls", { .modules = modules, .module_count = 4, .forward = LIST(0) }, "backward is empty" },
    { "a gradient twice",
      { .modules = modules,
        .module_count = 4,
        .forward = LIST(0),
        .backward = LIST(0),
        .gradients = LIST(0, 1, 0) },
      "gradient [2] is that of p0" },
    { "a gradient of a frozen parameter",
      { .modules = modules,
        .module_count = 4,
        .forward = LIST(0),
        .backward = LIST(0),
        .gradients = LIST(0, 2) },
      "gradient [1] is that of p2" },
    { "a gradient too few",
      { .modules = modules,
        .module_count = 4,
        .forward = LIST(0),
        .backward = LIST(0),
        .gradients = LIST(0, 1, 3, 4) },
      "4 gradients, want one for each of 5" },
};

/* With the n-th allocation failing; n -1: none. */
static zb_status initialize(const zb_model *model, const zb_call_order *order, int n, int *fired)
{
    zb_device *device;
    zb_comm *comm;
    zb_engine *engine = NULL;
    zb_config *config = config_of("standard", "\"reduce_bucket_size\": 10");
    assert_int_equal(zb_device_cpu_create(&device), ZB_OK);
    assert_int_equal(zb_comm_self_create(&comm), ZB_OK);
    const zb_engine_options options = { .config = config,
                                        .model = model,
                                        .device = device,
                                        .comm = comm,
                                        .stage = -1,
                                        .dtype = -1,
                                        .call_order = order };
    zb_alloc_fail_at(n);
    const zb_status status = zb_initialize(&options, &engine);
    *fired = zb_alloc_fault_fired();
    zb_alloc_fail_at(-1);
    zb_engine_destroy(engine);
    zb_comm_destroy(comm);
    zb_device_destroy(device);
    zb_config_destroy(config);
    return status;
}

static void check_refusal(void **state)
{
    const struct refusal_case *c = *state;
    sizes s = six;
    s.frozen = 1 << 2;
    zb_model *model = list_of(&s);
    int fired;
    assert_int_equal(initialize(model, &c->order, -1, &fired), ZB_INVALID_ARGUMENT);
    assert_message_has(c->message);
    zb_model_destroy(model);
}

static void a_model_with_modules_calls_them_itself(void **state)
{
    (void)state;
    zb_model *model = test_model("mlp");
    int fired;
    assert_int_equal(initialize(model, &three, -1, &fired), ZB_INVALID_ARGUMENT);
    assert_message_has("which calls its modules itself");
    zb_model_destroy(model);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    zb_model *model = list_of(&six);
    const uint64_t live = zb_alloc_get_stats().live;
    int fired = 1;
    for (int n = 0; fired; n++) {
        const zb_status status = initialize(model, &three, n, &fired);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    zb_model_destroy(model);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(schedules) + COUNT(refusals) + 2] = {
        cmocka_unit_test(a_model_with_modules_calls_them_itself),
        cmocka_unit_test(every_allocation_may_fail),
    };
    size_t n = 2;
    for (size_t i = 0; i < COUNT(schedules); i++)
        tests[n++] = (struct CMUnitTest){ schedules[i].name, check_schedule, NULL, NULL,
                                          (void *)&schedules[i] };
    for (size_t i = 0; i < COUNT(refusals); i++)
        tests[n++] = (struct CMUnitTest){ refusals[i].name, check_refusal, NULL, NULL, (void *)&refusals[i] };
    return cmocka_run_group_tests_name("call_order", tests, NULL, NULL);
}
