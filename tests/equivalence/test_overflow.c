/*
 * An infinity or a NaN in one gradient of one rank, in any micro-batch of any step: every rank skips that
 * step, and the run goes on as if it had never been. A static loss scale, so that nothing but the overflow
 * tells the two runs apart.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>
#include <zerobit/random.h>
#include <zerobit/sim.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { STEPS = 4, ACCUMULATION = 2, PARAMS = 4, NUMEL_MAX = 9, WORLD_MAX = 5, NEVER = -1 };

/* A rank owns nothing of some, and of others a part; the third is frozen. */
static const int64_t param_numel[PARAMS] = { 5, 1, 4, 9 };
enum { FROZEN = 2 };

static zb_model *list_model(void)
{
    zb_model *model = NULL;
    assert_int_equal(zb_model_create("list", NULL, ZB_LOSS_ELSEWHERE, &model), ZB_OK);
    for (int p = 0; p < PARAMS; p++) {
        char name[8];
        snprintf(name, sizeof name, "p%d", p);
        assert_int_equal(zb_model_add(model, &(zb_module_spec){ .kind = ZB_MODULE_PARAMETER,
                                                                .name = name,
                                                                .shape = { 1, { param_numel[p] } },
                                                                .frozen = p == FROZEN }),
                         ZB_OK);
    }
    assert_int_equal(zb_model_finish(model), ZB_OK);
    return model;
}

/* --- a run --- */

/* Where the bad number is. */
typedef struct event {
    int step, micro, rank, param, element;
    float value;
} event;

/* What a rank ends with, and what it said of each step. */
typedef struct outcome {
    uint64_t digest; /* of weights, moments and the next rate after the last step */
    int64_t overflow[STEPS], skipped;
} outcome;

typedef struct run {
    const zb_config *config;
    const zb_model *model;
    int stage;
    zb_dtype dtype;
    event bad;    /* step NEVER: none */
    int left_out; /* this step's gradients are not given at all; NEVER: all are */
    outcome ranks[WORLD_MAX];
} run;

/* FNV-1a. */
static void digest(uint64_t *hash, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) *hash = (*hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
}

static zb_status note_last(void *user, const zb_observation *o)
{
    outcome *out = user;
    const int counts = o->quantity == ZB_Q_MASTER || o->quantity == ZB_Q_EXP_AVG ||
                       o->quantity == ZB_Q_EXP_AVG_SQ || o->quantity == ZB_Q_PARAM;
    if (!counts) return ZB_OK;
    const uint64_t where[] = { (uint64_t)o->quantity, (uint64_t)o->param, o->first, o->numel };
    digest(&out->digest, where, sizeof where);
    digest(&out->digest, o->data, o->numel * zb_dtype_bytes(o->dtype));
    return ZB_OK;
}

static zb_status note_overflow(void *user, const zb_observation *o)
{
    if (o->quantity == ZB_Q_OVERFLOW) memcpy(user, o->data, sizeof(int64_t));
    return ZB_OK;
}

static zb_status give_micro_batch(const run *r, zb_engine *engine, int rank, int step, int micro)
{
    float data[PARAMS][NUMEL_MAX];
    const float *values[PARAMS];
    for (int p = 0; p < PARAMS; p++) {
        for (uint64_t i = 0; i < NUMEL_MAX; i++) {
            const uint32_t stream = (uint32_t)(((step * ACCUMULATION + micro) * WORLD_MAX + rank) * PARAMS +
                                               p);
            data[p][i] = 64.0f * zb_random_uniform(1, stream, i) - 32.0f;
        }
        values[p] = data[p];
    }
    const event *bad = &r->bad;
    if (step == bad->step && micro == bad->micro && rank == bad->rank)
        data[bad->param][bad->element] = bad->value;
    ZB_TRY(zb_engine_external_micro_batch(engine, ZB_EXTERNAL_GRADIENT, values));
    return zb_engine_step(engine);
}

static zb_status train(run *r, zb_engine *engine, int rank)
{
    outcome *out = &r->ranks[rank];
    for (int step = 0; step < STEPS; step++) {
        if (step == r->left_out) continue;
        for (int micro = 0; micro < ACCUMULATION; micro++)
            ZB_TRY(give_micro_batch(r, engine, rank, step, micro));
        ZB_TRY(zb_engine_observe(engine, &(zb_observer){ note_overflow, &out->overflow[step] }));
    }
    out->skipped = zb_engine_counters(engine).skipped_steps;
    out->digest = 0xcbf29ce484222325u;
    const double next_rate = zb_schedule_lr(&zb_engine_lr_scheduler(engine)->group[0]);
    digest(&out->digest, &next_rate, sizeof next_rate);
    return zb_engine_observe(engine, &(zb_observer){ note_last, out });
}

static zb_status rank_main(void *user, zb_comm *comm)
{
    run *r = user;
    zb_device *device;
    zb_engine *engine = NULL;
    ZB_TRY(zb_device_cpu_create_poisoning(&device));
    zb_status status = zb_initialize(&(zb_engine_options){ .config = r->config,
                                                           .model = r->model,
                                                           .device = device,
                                                           .comm = comm,
                                                           .stage = r->stage,
                                                           .dtype = (int)r->dtype,
                                                           .init_seed = 7 },
                                     &engine);
    if (status == ZB_OK) status = train(r, engine, comm->rank);
    zb_engine_destroy(engine);
    zb_device_destroy(device);
    return status;
}

static void run_world(run *r, int world_size)
{
    zb_sim *sim;
    memset(r->ranks, 0, sizeof r->ranks);
    assert_int_equal(zb_sim_create(&(zb_sim_options){ .world_size = world_size, .workers = 1 }, &sim), ZB_OK);
    if (zb_sim_run(sim, rank_main, r) != ZB_OK) fail_msg("%s", zb_error_message());
    zb_sim_destroy(sim);
}

/* --- the property --- */

static const char config_text[] =
    "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 2, \"gradient_clipping\": 0.5,"
    " \"fp16\": {\"enabled\": true, \"loss_scale\": 32},"
    " \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.01, \"weight_decay\": 0.1}},"
    " \"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_max_lr\": 0.05, \"warmup_num_steps\": "
    "3}}}";

static void assert_skipped_by_all(const run *r, const run *without, int world_size)
{
    const event *bad = &r->bad;
    for (int rank = 0; rank < world_size; rank++) {
        const outcome *out = &r->ranks[rank];
        for (int step = 0; step < STEPS; step++)
            if (out->overflow[step] != (step == bad->step))
                fail_msg(
                    "%s of world %d, stage %d: %g on rank %d in step %d, micro-batch %d: rank %d says %d of "
                    "step %d",
                    zb_dtype_name(r->dtype), world_size, r->stage, (double)bad->value, bad->rank, bad->step,
                    bad->micro, rank, (int)out->overflow[step], step);
        assert_int_equal(out->skipped, 1);
        if (out->digest != without->ranks[rank].digest)
            fail_msg(
                "%s of world %d, stage %d: %g on rank %d in step %d, micro-batch %d left a trace on rank %d",
                zb_dtype_name(r->dtype), world_size, r->stage, (double)bad->value, bad->rank, bad->step,
                bad->micro, rank);
    }
}

/* Each step, micro-batch and rank in turn; the value, and where in the rank's gradients, change along. */
static int check_world(run *r, int world_size)
{
    static const float values[] = { INFINITY, -INFINITY, NAN };
    static const int params[] = { 3, 0, 1 }; /* the trainable ones */
    int events = 0;
    for (int step = 0; step < STEPS; step++) {
        run without = *r;
        without.bad.step = NEVER;
        without.left_out = step;
        run_world(&without, world_size);
        for (int micro = 0; micro < ACCUMULATION; micro++)
            for (int rank = 0; rank < world_size; rank++, events++) {
                const int param = params[events % (int)COUNT(params)];
                r->bad = (event){ .step = step,
                                  .micro = micro,
                                  .rank = rank,
                                  .param = param,
                                  .element = events % (int)param_numel[param],
                                  .value = values[events / 2 % (int)COUNT(values)] };
                r->left_out = NEVER;
                run_world(r, world_size);
                assert_skipped_by_all(r, &without, world_size);
            }
    }
    return events;
}

static const struct setting {
    const char *name;
    zb_semantics semantics;
    int stage;
    zb_dtype dtype;
} settings[] = {
#define BOTH_TYPES(semantics_, stage_, words)                                                                \
    { words ", fp16", semantics_, stage_, ZB_FP16 },                                                         \
    {                                                                                                        \
        words ", bf16", semantics_, stage_, ZB_BF16                                                          \
    }
    BOTH_TYPES(ZB_SEMANTICS_STANDARD, 0, "standard, stage 0"),
    BOTH_TYPES(ZB_SEMANTICS_STANDARD, 1, "standard, stage 1"),
    BOTH_TYPES(ZB_SEMANTICS_STANDARD, 2, "standard, stage 2"),
    BOTH_TYPES(ZB_SEMANTICS_STANDARD, 3, "standard, stage 3"),
    BOTH_TYPES(ZB_SEMANTICS_DEEPSPEED_0_19_6, 1, "deepspeed-0.19.6, stage 1"),
    BOTH_TYPES(ZB_SEMANTICS_DEEPSPEED_0_19_6, 2, "deepspeed-0.19.6, stage 2"),
    /* Stage 0 in bf16 counts such a step and takes it, stage 3 does not see it. */
    { "deepspeed-0.19.6, stage 0, fp16", ZB_SEMANTICS_DEEPSPEED_0_19_6, 0, ZB_FP16 },
    { "deepspeed-0.19.6, stage 3, fp16", ZB_SEMANTICS_DEEPSPEED_0_19_6, 3, ZB_FP16 },
};

static void check_skipped_by_all(void **state)
{
    const struct setting *s = *state;
    static const int worlds[] = { 1, 2, 3, 4, WORLD_MAX };
    const uint64_t live = zb_alloc_get_stats().live;
    char text[sizeof config_text + 64];
    zb_config *config;
    snprintf(text, sizeof text, "{\"zerobit\": {\"semantics\": \"%s\"}, %s", zb_semantics_name(s->semantics),
             config_text + 1);
    if (zb_config_parse(text, strlen(text), NULL, &config) != ZB_OK) fail_msg("%s", zb_error_message());
    zb_plan plan;
    assert_int_equal(zb_plan_derive(config, s->stage, s->dtype, 2, &plan), ZB_OK);
    assert_int_equal(plan.overflow, ZB_OVERFLOW_SKIP);
    zb_model *model = list_model();
    run r = { .config = config, .model = model, .stage = s->stage, .dtype = s->dtype };
    int events = 0;
    for (size_t w = 0; w < COUNT(worlds); w++) events += check_world(&r, worlds[w]);
    assert_int_equal(events, STEPS * ACCUMULATION * (1 + 2 + 3 + 4 + WORLD_MAX));
    zb_model_destroy(model);
    zb_config_destroy(config);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(settings)];
    for (size_t i = 0; i < COUNT(settings); i++)
        tests[i] = (struct CMUnitTest){ settings[i].name, check_skipped_by_all, NULL, NULL,
                                        (void *)&settings[i] };
    return cmocka_run_group_tests_name("overflow", tests, NULL, NULL);
}
