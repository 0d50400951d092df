/*
 * zb_verify as a whole: equal cases, one stage that goes wrong while the others go on, refusals before any
 * work, interruption, and the n-th allocation failing. The engine is right; so what goes wrong here is the
 * data it is given.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdatomic.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/verify.h>

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const char config_text[] =
    "{\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": 2,"
    " \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.01}}}";

/* --- a data set that gives one consumer of one sample a wrong value --- */

enum { SAMPLE_COUNT = 64, EVERYBODY_RIGHT = -1 };

typedef struct evil_dataset {
    zb_dataset base;
    zb_dataset *honest;
    atomic_int fetched[SAMPLE_COUNT]; /* how often; the oracle comes first, then stage after stage */
    int64_t wrong_sample;
    int wrong_fetch;
} evil_dataset;

static void evil_fetch(const zb_dataset *dataset, int64_t index, float *input, int32_t *label, float *target)
{
    evil_dataset *evil = (evil_dataset *)(uintptr_t)dataset;
    zb_dataset_fetch(evil->honest, index, input, label, target);
    int fetch = atomic_fetch_add(&evil->fetched[index], 1);
    if (index == evil->wrong_sample && fetch == evil->wrong_fetch) input[0] += 1;
}

static void evil_destroy(zb_dataset *dataset)
{
    (void)dataset;
}

static const zb_dataset_ops evil_ops = { evil_fetch, evil_destroy };

/* --- the fixture --- */

typedef struct fixture {
    zb_config *config;
    zb_model *model;
    zb_weights weights;
    evil_dataset data;
} fixture;

static fixture f;

static const int all_stages[] = { 0, 1, 2, 3 };
static const zb_dtype fp32[] = { ZB_FP32 };
static const int world_2[] = { 2 };

static int setup(void **state)
{
    (void)state;
    f = (fixture){ 0 };
    if (zb_config_parse(config_text, strlen(config_text), NULL, &f.config) != ZB_OK) return 1;
    if (zb_model_open("mlp:6-5-3", &f.model) != ZB_OK) return 1;
    if (zb_weights_from_seed(f.model, 1, &f.weights) != ZB_OK) return 1;
    if (zb_dataset_synthetic(f.model, SAMPLE_COUNT, 1, &f.data.honest) != ZB_OK) return 1;
    f.data.base = *f.data.honest;
    f.data.base.ops = &evil_ops;
    f.data.wrong_sample = EVERYBODY_RIGHT;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    zb_dataset_destroy(f.data.honest);
    zb_weights_destroy(&f.weights);
    zb_model_destroy(f.model);
    zb_config_destroy(f.config);
    return 0;
}

static zb_verify_options options_for(const int *worlds, int world_count, int64_t steps)
{
    return (zb_verify_options){ .config = f.config,
                                .model = f.model,
                                .weights = &f.weights,
                                .dataset = &f.data.base,
                                .stages = all_stages,
                                .stage_count = COUNT(all_stages),
                                .worlds = worlds,
                                .world_count = world_count,
                                .dtypes = fp32,
                                .dtype_count = 1,
                                .steps = steps,
                                .workers = 2 };
}

/* --- tests --- */

/* The scale is at its minimum, and the first gradients overflow: the first step ends training, on every rank.
 */
static void all_end(void **state)
{
    (void)state;
    static const char text[] =
        "{\"train_micro_batch_size_per_gpu\": 2, \"fp16\": {\"enabled\": true, \"initial_scale_power\": 30,"
        " \"min_loss_scale\": 1073741824, \"hysteresis\": 1},"
        " \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.01}}}";
    static const zb_dtype fp16[] = { ZB_FP16 };
    static const int worlds[] = { 1, 3 };
    zb_config *config;
    zb_verify_case cases[8];
    assert_int_equal(zb_config_parse(text, strlen(text), NULL, &config), ZB_OK);
    zb_verify_options options = options_for(worlds, 2, 4);
    options.config = config;
    options.dtypes = fp16;
    assert_int_equal(zb_verify(&options, cases), ZB_OK);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(cases[i].status, ZB_OK);
        assert_int_equal(cases[i].ended, 1);
        assert_int_equal(cases[i].steps_done, 0);
        assert_non_null(strstr(cases[i].message, "training ends in step 0: "));
        assert_true(cases[i].values_compared > 0);
    }
    zb_config_destroy(config);
}

static void all_equal(void **state)
{
    (void)state;
    static const int worlds[] = { 1, 3, 4 };
    zb_verify_case cases[12];
    zb_verify_options options = options_for(worlds, 3, 4);
    assert_int_equal(zb_verify(&options, cases), ZB_OK);
    for (int i = 0; i < 12; i++) {
        assert_int_equal(cases[i].status, ZB_OK);
        assert_int_equal(cases[i].stage, i % 4);
        assert_int_equal(cases[i].world_size, worlds[i / 4]);
        assert_int_equal(cases[i].steps_done, 4);
        assert_int_equal(cases[i].plan.accumulation_steps, 2);
        assert_true(cases[i].values_compared > 0);
        assert_int_equal(cases[i].difference.found, 0);
    }
}

/* Groups of uneven sizes, smaller than the world in part, at every stage and precision, in both semantics. */
static void parameter_groups(void **state)
{
    (void)state;
#define GROUPS "\"param_groups\": [{\"params\": [\"*.bias\"], \"lr\": 0.5}, {\"weight_decay\": 0.125}]"
    static const char *const texts[] = {
        "\"optimizer\": {\"type\": \"SGD\", \"params\": {\"lr\": 0.01}}, \"zero_allow_untested_optimizer\": "
        "true, "
        "\"zerobit\": {\"param_groups\": [{\"params\": [\"*.bias\"], \"momentum\": 0.5}, {}]}",
        "\"optimizer\": {\"type\": \"Lamb\"}, \"zero_allow_untested_optimizer\": true, \"zerobit\": {" GROUPS
        "}",
        "\"optimizer\": {\"type\": \"Adam\"}, \"zero_optimization\": {\"round_robin_gradients\": true, "
        "\"sub_group_size\": 7, \"reduce_bucket_size\": 20}, \"zerobit\": {\"semantics\": "
        "\"deepspeed-0.19.6\", " GROUPS "}",
        "\"optimizer\": {\"type\": \"Adam\"}, \"zerobit\": {\"semantics\": \"deepspeed-0.19.6\", "
        "\"optimizer_arithmetic\": \"deepspeed-cpu\", \"param_groups\": [{\"params\": [\"0.*\", "
        "\"*1.bias\"], "
        "\"betas\": [0.5, 0.75]}, {}]}",
    };
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16 };
    static const int worlds[] = { 1, 2, 3, 4, 5 };
    for (size_t t = 0; t < COUNT(texts); t++) {
        char text[1024];
        zb_config *config;
        zb_verify_case cases[60];
        snprintf(text, sizeof text,
                 "{\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": 2, %s}", texts[t]);
        if (zb_config_parse(text, strlen(text), NULL, &config) != ZB_OK) fail_msg("%s", zb_error_message());
        zb_verify_options options = options_for(worlds, COUNT(worlds), 3);
        options.config = config;
        options.dtypes = dtypes;
        options.dtype_count = COUNT(dtypes);
        if (zb_verify(&options, cases) != ZB_OK) fail_msg("row %zu: %s", t, zb_error_message());
        zb_config_destroy(config);
    }
}

/* With two micro-batches stages 0, 1 and stages 2, 3 follow different plans: two oracles, of two stages each.
 */
static void one_stage_goes_wrong(void **state)
{
    (void)state;
    for (int stage = 0; stage < 4; stage++) {
        /* One step takes 8 of the 64 samples: find one of step 2, and who has it, from a run without fault.
         */
        zb_verify_case cases[4];
        zb_verify_options options = options_for(world_2, 1, 2);
        f.data.wrong_sample = EVERYBODY_RIGHT;
        memset(f.data.fetched, 0, sizeof f.data.fetched);
        assert_int_equal(zb_verify(&options, cases), ZB_OK);
        int64_t sample = 0;
        while (f.data.fetched[sample] != 0) sample++;

        memset(f.data.fetched, 0, sizeof f.data.fetched);
        f.data.wrong_sample = sample;
        f.data.wrong_fetch = stage / 2 * 3 + 1 + stage % 2; /* oracle, 0, 1, oracle, 2, 3 */
        options.steps = 8;                                  /* the whole epoch */
        assert_int_equal(zb_verify(&options, cases), ZB_DIFFERENT);
        char place[64];
        snprintf(place, sizeof place, "stage %d, world 2, fp32: step %" PRId64, stage,
                 cases[stage].difference.step);
        assert_ptr_equal(strstr(zb_error_message(), place), zb_error_message());
        for (int i = 0; i < 4; i++) {
            assert_int_equal(cases[i].status, i == stage ? ZB_DIFFERENT : ZB_OK);
            assert_int_equal(cases[i].steps_done, i == stage ? cases[i].difference.step : 8);
        }
        const zb_difference *d = &cases[stage].difference;
        assert_int_equal(d->found, 1);
        assert_in_range(d->step, 2, 7);
        /* A wrong input shows in that rank's loss before it shows in anything else. */
        assert_int_equal(d->quantity, ZB_Q_LOSS);
        assert_int_equal(d->missing, ZB_MISSING_NONE);
        assert_in_range(d->rank_b, 0, 1);
        assert_string_equal(d->text, cases[stage].message);
    }
}

static void refused_before_any_work(void **state)
{
    (void)state;
    static const int none[] = { 0 }, twice[] = { 2, 2 }, high[] = { 4 }, negative[] = { -1 };
    static const zb_dtype fp32_twice[] = { ZB_FP32, ZB_FP32 }, no_dtype[] = { (zb_dtype)77 };
    static const struct {
        const char *message;
        const int *stages;
        int stage_count;
        const int *worlds;
        int world_count;
        const zb_dtype *dtypes;
        int dtype_count;
        int64_t steps;
        zb_status status;
    } refusals[] = {
        { "world 0, want 1 to 65536", all_stages, 4, none, 1, fp32, 1, 1, ZB_INVALID_ARGUMENT },
        { "world 2 given twice", all_stages, 4, twice, 2, fp32, 1, 1, ZB_INVALID_ARGUMENT },
        { "no world given", all_stages, 4, world_2, 0, fp32, 1, 1, ZB_INVALID_ARGUMENT },
        { "stage 4, want 0 to 3", high, 1, world_2, 1, fp32, 1, 1, ZB_INVALID_ARGUMENT },
        { "stage -1, want 0 to 3", negative, 1, world_2, 1, fp32, 1, 1, ZB_INVALID_ARGUMENT },
        { "stage 2 given twice", twice, 2, world_2, 1, fp32, 1, 1, ZB_INVALID_ARGUMENT },
        { "no precision given", all_stages, 4, world_2, 1, fp32, 0, 1, ZB_INVALID_ARGUMENT },
        { "0 steps, want at least 1", all_stages, 4, world_2, 1, fp32, 1, 0, ZB_INVALID_ARGUMENT },
        { "precision fp32 given twice", all_stages, 4, world_2, 1, fp32_twice, 2, 1, ZB_INVALID_ARGUMENT },
        { "stage 0, world 2, ?: dtype is ?", all_stages, 4, world_2, 1, no_dtype, 1, 1, ZB_INVALID_ARGUMENT },
        { "9223372036854775807 steps of 4 cases", all_stages, 4, world_2, 1, fp32, 1, INT64_MAX,
          ZB_INVALID_ARGUMENT },
    };
    for (size_t i = 0; i < COUNT(refusals); i++) {
        zb_verify_case cases[16];
        zb_verify_options options = options_for(refusals[i].worlds, refusals[i].world_count,
                                                refusals[i].steps);
        options.stages = refusals[i].stages;
        options.stage_count = refusals[i].stage_count;
        options.dtypes = refusals[i].dtypes;
        options.dtype_count = refusals[i].dtype_count;
        assert_int_equal(zb_verify(&options, cases), refusals[i].status);
        assert_ptr_equal(strstr(zb_error_message(), refusals[i].message), zb_error_message());
    }
    zb_verify_case cases[4];
    zb_verify_options options = options_for(world_2, 1, 1);
    options.workers = -1;
    assert_int_equal(zb_verify(&options, cases), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "-1 workers"));
    for (int i = 0; i < SAMPLE_COUNT; i++) assert_int_equal(f.data.fetched[i], 0);
}

static void batch_of_the_last_world_is_checked_first(void **state)
{
    (void)state;
    static const int worlds[] = { 2, 3 };
    zb_verify_case cases[8];
    f.config->batch = (zb_batch_triangle){ .train_batch_size = 16 };
    zb_verify_options options = options_for(worlds, 2, 1);
    assert_int_equal(zb_verify(&options, cases), ZB_INVALID_CONFIG);
    assert_non_null(strstr(zb_error_message(), "stage 0, world 3, fp32: "));
    for (int i = 0; i < SAMPLE_COUNT; i++) assert_int_equal(f.data.fetched[i], 0);
}

/* --- progress and interruption --- */

typedef struct listener {
    volatile sig_atomic_t interrupt;
    int64_t interrupt_at; /* done; -1: never */
    int64_t done, total;
    int calls;
} listener;

static void listen(void *user, const zb_verify_case *current, int64_t done, int64_t total)
{
    listener *l = user;
    assert_true(done >= l->done && done <= total && current != NULL);
    l->done = done;
    l->total = total;
    l->calls++;
    if (done == l->interrupt_at) l->interrupt = 1;
}

static void progress_is_told(void **state)
{
    (void)state;
    listener l = { .interrupt_at = -1 };
    zb_verify_case cases[4];
    zb_verify_options options = options_for(world_2, 1, 5);
    options.progress = listen;
    options.user = &l;
    options.interrupt = &l.interrupt;
    assert_int_equal(zb_verify(&options, cases), ZB_OK);
    assert_int_equal(l.total, 20);
    assert_int_equal(l.done, 20);
    assert_true(l.calls >= 20);
}

static void interruption_says_where(void **state)
{
    (void)state;
    listener l = { .interrupt_at = 10 + 4 }; /* stages 0 and 1 are done; two steps of stages 2 and 3 */
    zb_verify_case cases[4];
    zb_verify_options options = options_for(world_2, 1, 5);
    options.progress = listen;
    options.user = &l;
    options.interrupt = &l.interrupt;
    assert_int_equal(zb_verify(&options, cases), ZB_INTERRUPTED);
    assert_string_equal(zb_error_message(), "interrupted: stage 2, world 2, fp32, before step 2 of 5");
    for (int i = 0; i < 4; i++) {
        assert_int_equal(cases[i].status, i < 2 ? ZB_OK : ZB_INTERRUPTED);
        assert_int_equal(cases[i].steps_done, i < 2 ? 5 : 2);
    }
}

static void allocation_failures_are_survived(void **state)
{
    (void)state;
    for (int64_t n = 0;; n++) {
        zb_verify_case cases[4];
        zb_verify_options options = options_for(world_2, 1, 1);
        options.workers = 1; /* which allocation is the n-th must not depend on threads */
        uint64_t live = zb_alloc_get_stats().live;
        zb_alloc_fail_at(n);
        zb_status status = zb_verify(&options, cases);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        if (zb_alloc_get_stats().live != live) fail_msg("allocation %" PRId64 ": blocks are left", n);
        if (!fired) {
            assert_int_equal(status, ZB_OK);
            break;
        }
        /* Of the whole, or of the cases on whose world it happened. */
        assert_true(status == ZB_NO_MEMORY || status == ZB_DIFFERENT);
        if (status == ZB_DIFFERENT) assert_non_null(strstr(zb_error_message(), "out of memory"));
        assert_true(n < 10000);
    }
}

int main(void)
{
#define FRESH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        FRESH(all_equal),
        FRESH(all_end),
        FRESH(parameter_groups),
        FRESH(one_stage_goes_wrong),
        FRESH(refused_before_any_work),
        FRESH(batch_of_the_last_world_is_checked_first),
        FRESH(progress_is_told),
        FRESH(interruption_says_where),
        FRESH(allocation_failures_are_survived),
    };
    return cmocka_run_group_tests_name("verify", tests, NULL, NULL);
}
