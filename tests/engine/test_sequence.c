/* What stage 3 sends for layers that are called elsewhere: the sequences of DeepSpeed 0.19.6, gathers,
 * comparisons and reductions in one. */
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

static const int64_t numel[PARAMS] = { 16, 4, 24, 4, 10, 3 };

/* Three layers with a weight and a bias, called one after the other. */
static void set_order(zb_model *model)
{
    int params[] = { 0, 1, 2, 3, 4, 5 }, forward[] = { 0, 1, 2, 3 }, backward[] = { 0, 3, 2, 1 };
    zb_index_list layers[] = { { NULL, 0 }, { params, 2 }, { params + 2, 2 }, { params + 4, 2 } };
    const zb_model_order order = { .layers = layers,
                                   .layer_count = COUNT(layers),
                                   .forward = { forward, COUNT(forward) },
                                   .backward = { backward, COUNT(backward) } };
    assert_int_equal(zb_model_set_order(model, &order), ZB_OK);
}

static zb_model *three_layers(void)
{
    zb_model *model;
    assert_int_equal(zb_model_create("list", NULL, ZB_LOSS_ELSEWHERE, &model), ZB_OK);
    for (int p = 0; p < PARAMS; p++) {
        char name[8];
        snprintf(name, sizeof name, "p%d", p);
        const zb_module_spec spec = { .kind = ZB_MODULE_PARAMETER,
                                      .name = name,
                                      .shape = { 1, { numel[p] } } };
        assert_int_equal(zb_model_add(model, &spec), ZB_OK);
    }
    assert_int_equal(zb_model_finish(model), ZB_OK);
    set_order(model);
    return model;
}

static zb_config *config_of(const char *knobs)
{
    char text[1024];
    zb_config *config;
    int length = snprintf(
        text, sizeof text,
        "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 1, "
        "\"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}, \"optimizer\": {\"type\": \"Adam\"}, "
        "\"zero_optimization\": {\"stage\": 3, %s}}",
        knobs);
    if (zb_config_parse(text, (size_t)length, "sequence.json", &config) != ZB_OK)
        fail_msg("%s", zb_error_message());
    return config;
}

/* --- what is sent --- */

typedef struct sequence {
    const zb_config *config;
    const zb_model *model;
    char text[STEPS][TEXT_BYTES]; /* of rank 0 */
    int step;
} sequence;

static zb_status note_call(void *user, const zb_comm *comm, const zb_collective *c)
{
    sequence *run = user;
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

static zb_status train(sequence *run, zb_comm *comm, zb_engine *engine)
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
    sequence *run = user;
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
                                        .init_seed = 1 };
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
    zb_config *config = config_of(c->knobs);
    sequence *run = calloc(1, sizeof *run);
    zb_model *model = three_layers();
    char second[TEXT_BYTES];
    assert_non_null(run);
    *run = (sequence){ .config = config, .model = model };
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

int main(void)
{
    struct CMUnitTest tests[COUNT(schedules)];
    for (size_t i = 0; i < COUNT(schedules); i++)
        tests[i] = (struct CMUnitTest){ schedules[i].name, check_schedule, NULL, NULL,
                                        (void *)&schedules[i] };
    return cmocka_run_group_tests_name("sequence", tests, NULL, NULL);
}
