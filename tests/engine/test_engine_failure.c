/* Anything that can fail does, at every point, in set-up and in two steps: the failure comes out as it was,
 * the engine takes no further part, and nothing is left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#include "tests/engine/rig.h"

enum { STEPS = 2 };

/* Where failures come from, and how one is asked for. */
typedef struct source {
    const char *name;
    zb_status status;
    void (*fail_at)(rig *rig, int64_t n);
    int (*fired)(const rig *rig);
} source;

static void alloc_fail_at(rig *r, int64_t n)
{
    (void)r;
    zb_alloc_fail_at(n);
}

static int alloc_fired(const rig *r)
{
    (void)r;
    return zb_alloc_fault_fired();
}

static void device_fail_at(rig *r, int64_t n)
{
    r->device.fault.fail_at = n < 0 ? -1 : r->device.fault.calls + n;
}

static int device_fired(const rig *r)
{
    return r->device.fault.fired;
}

static void comm_fail_at(rig *r, int64_t n)
{
    r->comm.fault.fail_at = n < 0 ? -1 : r->comm.fault.calls + n;
}

static int comm_fired(const rig *r)
{
    return r->comm.fault.fired;
}

static const source sources[] = {
    { "allocations", ZB_NO_MEMORY, alloc_fail_at, alloc_fired },
    { "device calls", ZB_REMOTE, device_fail_at, device_fired },
    { "collectives", ZB_REMOTE, comm_fail_at, comm_fired },
};

static const struct setting {
    int overlap, lazy, accumulation;
    uint64_t bucket;
    int recorded;
} settings[] = {
    { 0, 0, 1, 0, 0 },
    { 1, 1, 1, 20, 0 },
    { 1, 1, 2, 1, 1 },
};

static zb_status initialize_and_train(rig *r)
{
    ZB_TRY(zb_initialize(&r->options, &r->engine));
    for (int i = 0; i < STEPS; i++) ZB_TRY(zb_engine_train_step(r->engine, NULL));
    return ZB_OK;
}

/* A step that broke off cannot be taken up again; asking for it must not bring the program down. */
static void assert_broken(rig *r)
{
    float loss, input[128] = { 0 };
    int32_t label[1] = { 0 };
    float target[8] = { 0 }, *out[16] = { 0 };
    zb_batch batch = { .rows = 1, .inputs = input, .labels = label, .targets = target };
    assert_int_equal(zb_engine_backward(r->engine), ZB_INVALID_ARGUMENT);
    assert_message_has("broke a step off");
    assert_int_equal(zb_engine_step(r->engine), ZB_INVALID_ARGUMENT);
    assert_int_equal(zb_engine_forward(r->engine, &batch, &loss), ZB_INVALID_ARGUMENT);
    assert_int_equal(zb_engine_train_step(r->engine, NULL), ZB_INVALID_ARGUMENT);
    assert_int_equal(zb_engine_gather_weights(r->engine, out), ZB_INVALID_ARGUMENT);
    assert_message_has("broke a step off");
}

/* Returns whether the n-th call was there to fail. */
static int fail_once(const source *s, const rig_options *o, int64_t n)
{
    rig r;
    char message[256];
    zb_error own; /* a simulated rank brings one, a thread has its own: either keeps the message */
    zb_error *before = zb_error_bind(n % 2 ? &own : NULL);
    rig_open(&r, o);
    r.comm.fault.lasting = 1;
    s->fail_at(&r, n);
    zb_status status = initialize_and_train(&r);
    int fired = s->fired(&r);
    s->fail_at(&r, -1);
    if (status != (fired ? s->status : ZB_OK))
        fail_msg("%s, number %lld: status is %s", rig_name(o), (long long)n, zb_status_string(status));
    snprintf(message, sizeof message, "%s", zb_error_message());
    zb_engine_destroy(r.engine);
    /* Destruction may have to wait for what is under way; the message is still that of the failure. */
    if (fired) assert_string_equal(zb_error_message(), message);
    r.engine = NULL;
    rig_close(&r);
    zb_error_bind(before);
    return fired;
}

static void check_source(void **state)
{
    const source *s = *state;
    for (int m = 0; m < test_model_count; m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (size_t i = 0; i < COUNT(settings); i++) {
                rig_options o = { .model = test_model_names[m],
                                  .stage = stage,
                                  .overlap = settings[i].overlap,
                                  .lazy = settings[i].lazy,
                                  .accumulation = settings[i].accumulation,
                                  .bucket = settings[i].bucket,
                                  .recorded = settings[i].recorded };
                int64_t n = 0;
                while (fail_once(s, &o, n)) n++;
                assert_true(n > 0);
            }
}

static void check_plans(void **state)
{
    const source *s = *state;
    for (int p = 0; p < rig_plan_count; p++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
            if (!(rig_plans[p].stages >> stage & 1)) continue;
            rig_options o = { .model = "unused",
                              .plan = &rig_plans[p],
                              .stage = stage,
                              .overlap = p % 2,
                              .lazy = p % 2,
                              .accumulation = 2,
                              .bucket = 8 };
            int64_t n = 0;
            while (fail_once(s, &o, n)) n++;
            assert_true(n > 0);
        }
}

/* Once more for the engine itself: what it says after a failure. */
static void a_broken_engine_says_so(void **state)
{
    (void)state;
    static const char *const models[] = { "conv", "tied", "unused" };
    for (size_t m = 0; m < COUNT(models); m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (int which = 1; which <= 2; which++) { /* device, collectives */
                rig_options o = { .model = models[m], .stage = stage, .overlap = 1, .lazy = 1, .bucket = 20 };
                for (int64_t n = 0;; n++) {
                    rig r;
                    rig_open(&r, &o);
                    rig_start(&r);
                    sources[which].fail_at(&r, n);
                    zb_status status = zb_engine_train_step(r.engine, NULL);
                    int fired = sources[which].fired(&r);
                    assert_int_equal(status, fired ? ZB_REMOTE : ZB_OK);
                    if (fired) assert_broken(&r);
                    rig_close(&r);
                    if (!fired) break;
                }
            }
}

int main(void)
{
    struct CMUnitTest tests[2 * COUNT(sources) + 1] = { cmocka_unit_test(a_broken_engine_says_so) };
    for (size_t i = 0; i < COUNT(sources); i++)
        tests[i + 1] = (struct CMUnitTest){ sources[i].name, check_source, NULL, NULL, (void *)&sources[i] };
    for (size_t i = 0; i < COUNT(sources); i++)
        tests[i + 1 + COUNT(sources)] = (struct CMUnitTest){ sources[i].name, check_plans, NULL, NULL,
                                                             (void *)&sources[i] };
    return cmocka_run_group_tests_name("engine_failure", tests, NULL, NULL);
}
