/* Stage 3's gathering and releasing at work: no knob changes a bit, whenever anyone looks the weights are
 * there, and ranks that have recorded different orders find out. */
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

enum { STEPS = 4, WORKERS = 2 };

/* --- any knobs, many ranks, against the oracle: bits, and calls and bytes by the formula at every step ---
 */

static const char *const types[] = { "",
                                     "\"fp16\": {\"enabled\": true, \"initial_scale_power\": 20, "
                                     "\"hysteresis\": 1, \"loss_scale_window\": 1}, ",
                                     "\"bf16\": {\"enabled\": true}, " };

static zb_config *random_config(uint64_t *random, const zb_model *model, zb_dtype *dtype)
{
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16 };
    static const char *const keys[] = { "prefetch_bucket_size", "max_live_parameters", "max_reuse_distance",
                                        "param_persistence_threshold", "model_persistence_threshold" };
    char text[2048];
    const uint32_t type = random_below(random, COUNT(types)), numel = (uint32_t)model->param_numel;
    zb_config *config;
    *dtype = dtypes[type];
    int length = snprintf(text, sizeof text,
                          "{\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": %u, %s"
                          "\"optimizer\": " RIG_ADAM ", \"gradient_clipping\": 0.5, "
                          "\"zerobit\": {\"quirks\": {\"first_iteration_recorded\": %s}}, "
                          "\"zero_optimization\": {\"stage\": 3, \"overlap_comm\": %s",
                          1 + random_below(random, 3), types[type],
                          random_below(random, 3) == 0 ? "true" : "false",
                          random_below(random, 2) ? "true" : "false");
    for (size_t i = 0; i < COUNT(keys); i++)
        if (random_below(random, 4) > 0)
            length += snprintf(text + length, sizeof text - (size_t)length, ", \"%s\": %u", keys[i],
                               random_below(random, 2 * numel) * random_below(random, 3) / 2);
    if (random_below(random, 4) == 0)
        length += snprintf(text + length, sizeof text - (size_t)length, ", \"allgather_sequential\": true");
    if (random_below(random, 6) == 0)
        length += snprintf(text + length, sizeof text - (size_t)length,
                           ", \"stage3_module_granularity_threshold\": %u", 1 + random_below(random, numel));
    length += snprintf(text + length, sizeof text - (size_t)length, "}}");
    if (zb_config_parse(text, (size_t)length, "random", &config) != ZB_OK) fail_msg("%s", zb_error_message());
    return config;
}

static void no_knob_changes_a_bit(void **state)
{
    (void)state;
    static const int stage = 3;
    int skipped = 0;
    for (uint64_t seed = 1; seed <= 150; seed++) {
        uint64_t random = seed;
        zb_model *model = test_model(test_model_names[random_below(&random, (uint32_t)test_model_count)]);
        zb_dtype dtype;
        zb_config *config = random_config(&random, model, &dtype);
        const int world = 1 + (int)random_below(&random, 5);
        zb_dataset *dataset;
        zb_weights weights;
        zb_verify_case result;
        assert_int_equal(zb_dataset_synthetic(model, 23, 3, &dataset), ZB_OK);
        assert_int_equal(zb_weights_from_seed(model, 11, &weights), ZB_OK);
        if (zb_verify(&(zb_verify_options){ .config = config,
                                            .model = model,
                                            .weights = &weights,
                                            .dataset = dataset,
                                            .stages = &stage,
                                            .stage_count = 1,
                                            .worlds = &world,
                                            .world_count = 1,
                                            .dtypes = &dtype,
                                            .dtype_count = 1,
                                            .steps = STEPS,
                                            .workers = WORKERS,
                                            .sim_seed = seed },
                      &result) != ZB_OK)
            fail_msg("seed %llu: %s %s", (unsigned long long)seed, zb_error_message(), result.message);
        skipped += dtype == ZB_FP16;
        zb_weights_destroy(&weights);
        zb_dataset_destroy(dataset);
        zb_model_destroy(model);
        zb_config_destroy(config);
    }
    assert_true(skipped > 20); /* a scale of 2^20 overflows in the first steps */
}

/* --- looking --- */

static const char *const gatherings[] = {
    RIG_SOME_STAY,
    RIG_ALL_STAY,
    RIG_NONE_STAYS,
    "\"param_persistence_threshold\": 0, \"prefetch_bucket_size\": 30, \"max_live_parameters\": 40, "
    "\"max_reuse_distance\": 1",
    "\"param_persistence_threshold\": 4, \"allgather_sequential\": true, \"max_reuse_distance\": 0",
    "\"param_persistence_threshold\": 4, \"module_granularity_threshold\": 100000",
};

static void assert_shows(rig *r, const float *want, const char *when)
{
    float *got = rig_weights(r);
    if (memcmp(got, want, rig_weights_bytes(r)) != 0) fail_msg("%s: not the weights of the step", when);
    free(got);
}

/* Forward, backward and step by hand; with `look`, the weights are gathered wherever that is allowed. */
static float *train_by_hand(const rig_options *o, int look)
{
    rig r;
    rig_open(&r, o);
    rig_start(&r);
    for (int step = 0; step < STEPS; step++) {
        float *now = look ? rig_weights(&r) : NULL;
        for (int micro = 0; micro < o->accumulation; micro++) {
            zb_batch batch;
            float loss;
            assert_int_equal(zb_loader_next(zb_engine_loader(r.engine), &batch), ZB_OK);
            if (look) assert_shows(&r, now, "before forward");
            assert_int_equal(zb_engine_forward(r.engine, &batch, &loss), ZB_OK);
            if (look) assert_shows(&r, now, "between forward and backward");
            assert_int_equal(zb_engine_backward(r.engine), ZB_OK);
            if (look) assert_shows(&r, now, "before the step");
            assert_int_equal(zb_engine_step(r.engine), ZB_OK);
        }
        free(now);
    }
    float *weights = rig_weights(&r);
    rig_close(&r);
    return weights;
}

static void looking_is_allowed_at_any_time(void **state)
{
    (void)state;
    for (int m = 0; m < test_model_count; m++)
        for (size_t g = 0; g < COUNT(gatherings); g++)
            for (int variant = 0; variant < 4; variant++) {
                rig_options o = { .model = test_model_names[m],
                                  .stage = 3,
                                  .accumulation = 2,
                                  .overlap = variant > 0,
                                  .lazy = variant > 1,
                                  .recorded = variant > 2,
                                  .gathering = gatherings[g] };
                rig_options plain = { .model = o.model, .stage = 0, .accumulation = 2 };
                zb_model *model = test_model(o.model);
                const size_t bytes = model->param_numel * sizeof(float);
                float *want = train_by_hand(&plain, 0), *unseen = train_by_hand(&o, 0);
                float *seen = train_by_hand(&o, 1);
                if (memcmp(want, unseen, bytes) != 0) fail_msg("%s: weights differ", rig_name(&o));
                if (memcmp(want, seen, bytes) != 0) fail_msg("%s: looking changes weights", rig_name(&o));
                free(want);
                free(unseen);
                free(seen);
                zb_model_destroy(model);
            }
}

/* --- ranks that have not the same model --- */

/* Three layers of one size; the last has the weight of another. */
static zb_model *tied_to(const char *other)
{
    zb_model *model;
    const zb_module_spec specs[] = {
        { .kind = ZB_MODULE_LINEAR, .name = "a", .out_features = 4, .no_bias = 1 },
        { .kind = ZB_MODULE_LINEAR, .name = "b", .out_features = 4, .no_bias = 1 },
        { .kind = ZB_MODULE_LINEAR, .name = "c", .out_features = 4, .no_bias = 1, .tie = other },
    };
    assert_int_equal(zb_model_create("tied", &(zb_shape){ 1, { 4 } }, ZB_LOSS_MSE, &model), ZB_OK);
    for (size_t i = 0; i < COUNT(specs); i++) assert_int_equal(zb_model_add(model, &specs[i]), ZB_OK);
    assert_int_equal(zb_model_finish(model), ZB_OK);
    return model;
}

typedef struct disagreeing {
    zb_config *config;
    zb_model *models[2];
    zb_dataset *dataset;
} disagreeing;

static zb_status run_disagreeing(void *user, zb_comm *comm)
{
    const disagreeing *d = user;
    zb_device *device;
    zb_engine *engine = NULL;
    ZB_TRY(zb_device_cpu_create(&device));
    const zb_engine_options options = { .config = d->config,
                                        .model = d->models[comm->rank],
                                        .dataset = d->dataset,
                                        .device = device,
                                        .comm = comm,
                                        .stage = -1,
                                        .dtype = -1,
                                        .init_seed = 11 };
    zb_status status = zb_initialize(&options, &engine);
    for (int step = 0; status == ZB_OK && step < STEPS; step++) status = zb_engine_train_step(engine, NULL);
    zb_engine_destroy(engine);
    zb_device_destroy(device);
    return status;
}

/* Nothing is kept in the pass that records, so that the gathers are of equal sizes: only the comparison
 * tells. */
static void another_order_on_one_rank_is_named(void **state)
{
    (void)state;
    rig_options o = { .stage = 3, .recorded = 1, .gathering = RIG_NONE_STAYS };
    disagreeing d = { .config = rig_config(&o), .models = { tied_to("a"), tied_to("b") } };
    zb_sim *sim;
    assert_int_equal(zb_dataset_synthetic(d.models[0], 23, 3, &d.dataset), ZB_OK);
    assert_int_equal(zb_sim_create(&(zb_sim_options){ .world_size = 2, .workers = WORKERS, .seed = 1 }, &sim),
                     ZB_OK);
    assert_int_equal(zb_sim_run(sim, run_disagreeing, &d), ZB_MISMATCH);
    assert_message_has("rank 1 has recorded another order than rank 0: parameter 2 is 1, want 0");
    zb_sim_destroy(sim);
    zb_dataset_destroy(d.dataset);
    zb_model_destroy(d.models[0]);
    zb_model_destroy(d.models[1]);
    zb_config_destroy(d.config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_knob_changes_a_bit),
        cmocka_unit_test(looking_is_allowed_at_any_time),
        cmocka_unit_test(another_order_on_one_rank_is_named),
    };
    return cmocka_run_group_tests_name("gather", tests, NULL, NULL);
}
