/* What must not depend on the stage, nor on buckets, streams or when a collective ends: the bits. And what a
 * step may not do: allocate, hold other than its formula, send other than its formula. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#include "tests/engine/rig.h"

enum { STEPS = 5 };

/* Each row against the one without anything: stage 0, one bucket, no overlap. In a world of one reduction is
 * the identity, so that the moment of reducing makes no difference either. */
static const struct variant {
    int overlap, lazy;
    uint64_t bucket;
} variants[] = {
    { 0, 0, 0 }, { 0, 1, 0 },  { 1, 0, 0 },  { 1, 1, 0 },  { 0, 0, 1 },
    { 1, 1, 1 }, { 0, 0, 20 }, { 1, 1, 20 }, { 1, 1, 40 },
};

static float *train(const rig_options *o, size_t *bytes, double *norm)
{
    rig r;
    rig_open(&r, o);
    rig_start(&r);
    rig_train(&r, STEPS);
    float *weights = rig_weights(&r);
    *bytes = rig_weights_bytes(&r);
    *norm = zb_engine_global_grad_norm(r.engine);
    rig_close(&r);
    return weights;
}

static const struct bits_case {
    const char *name;
    int accumulation;
    const char *optimizer;
} bits_cases[] = {
    { "Adam", 1, RIG_ADAM },
    { "Adam, 3 micro-batches", 3, RIG_ADAM },
    { "SGD with momentum, 2 micro-batches", 2, RIG_MOMENTUM },
    { "SGD", 1, RIG_SGD },
};

static void check_bits(void **state)
{
    const struct bits_case *c = *state;
    for (int m = 0; m < test_model_count; m++) {
        rig_options o = { .model = test_model_names[m],
                          .accumulation = c->accumulation,
                          .optimizer = c->optimizer };
        size_t bytes;
        double norm, want_norm;
        float *want = train(&o, &bytes, &want_norm);
        for (o.stage = 0; o.stage < ZB_STAGE_COUNT; o.stage++)
            for (size_t v = 0; v < COUNT(variants); v++) {
                o.overlap = variants[v].overlap;
                o.lazy = variants[v].lazy;
                o.bucket = variants[v].bucket;
                float *got = train(&o, &bytes, &norm);
                if (memcmp(got, want, bytes) != 0) fail_msg("%s: weights differ from stage 0", rig_name(&o));
                if (memcmp(&norm, &want_norm, sizeof norm) != 0)
                    fail_msg("%s: norm %a, want %a", rig_name(&o), norm, want_norm);
                free(got);
            }
        free(want);
    }
}

/* --- the accounts --- */

typedef struct accounts {
    int64_t held[ZB_MEM_COUNT], calls[ZB_COLLECTIVE_COUNT], sent[ZB_COLLECTIVE_COUNT];
} accounts;

static zb_status note_accounts(void *user, const zb_observation *o)
{
    accounts *a = user;
    if (o->quantity == ZB_Q_BYTES_HELD) memcpy(a->held, o->data, sizeof a->held);
    if (o->quantity == ZB_Q_CALLS) memcpy(a->calls, o->data, sizeof a->calls);
    if (o->quantity == ZB_Q_BYTES_SENT) memcpy(a->sent, o->data, sizeof a->sent);
    return ZB_OK;
}

static void assert_accounts(rig *r, const rig_options *o, const uint64_t *held, const zb_traffic *sent)
{
    accounts got = { 0 };
    assert_int_equal(zb_engine_observe(r->engine, &(zb_observer){ note_accounts, &got }), ZB_OK);
    for (int kind = 0; kind < ZB_MEM_COUNT; kind++) {
        if (got.held[kind] != (int64_t)held[kind] || r->device.base.peak_bytes[kind] != held[kind])
            fail_msg("%s: %s: %lld bytes held, %llu at most, want %llu", rig_name(o),
                     zb_memory_kind_name((zb_memory_kind)kind), (long long)got.held[kind],
                     (unsigned long long)r->device.base.peak_bytes[kind], (unsigned long long)held[kind]);
    }
    for (int kind = 0; kind < ZB_COLLECTIVE_COUNT; kind++)
        if (got.sent[kind] != (int64_t)sent[kind].bytes || got.calls[kind] != (int64_t)sent[kind].calls)
            fail_msg("%s: %s: %lld bytes in %lld calls, want %llu in %llu", rig_name(o),
                     zb_collective_name((zb_collective_kind)kind), (long long)got.sent[kind],
                     (long long)got.calls[kind], (unsigned long long)sent[kind].bytes,
                     (unsigned long long)sent[kind].calls);
}

static void check_accounts(const rig_options *o)
{
    rig r;
    uint64_t held[ZB_MEM_COUNT];
    zb_traffic sent[ZB_COLLECTIVE_COUNT];
    zb_step_past past = { 0 };
    static const zb_traffic nothing[ZB_COLLECTIVE_COUNT] = { { 0 } };
    rig_open(&r, o);
    rig_start(&r);
    const zb_plan *plan = zb_engine_plan(r.engine);
    assert_int_equal(zb_memory_formula(r.config, r.model, plan, o->stage, held), ZB_OK);
    assert_accounts(&r, o, held, nothing);
    for (int step = 0; step < 3; step++) {
        past.steps = step;
        assert_int_equal(zb_traffic_formula(r.config, r.model, plan, o->stage, &past, 0, sent), ZB_OK);
        rig_train(&r, 1);
        free(rig_weights(&r)); /* looking does not count */
        assert_accounts(&r, o, held, sent);
    }
    rig_close(&r);
}

static void accounts_are_the_formulas(void **state)
{
    (void)state;
    static const uint64_t buckets[] = { 0, 1, 20 };
    for (int m = 0; m < test_model_count; m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (int accumulation = 1; accumulation <= 3; accumulation += 2)
                for (size_t b = 0; b < COUNT(buckets); b++)
                    for (int overlap = 0; overlap < 2; overlap++)
                        check_accounts(&(rig_options){ .model = test_model_names[m],
                                                       .stage = stage,
                                                       .accumulation = accumulation,
                                                       .bucket = buckets[b],
                                                       .overlap = overlap,
                                                       .optimizer = b == 1 ? RIG_MOMENTUM : RIG_ADAM });
}

/* Everything a step needs is there after zb_initialize, and the host's part after the first step at the
 * latest; the second crosses an epoch. */
static void check_allocations(const rig_options *o)
{
    rig r;
    accounts ignored;
    rig_open(&r, o);
    rig_start(&r);
    rig_train(&r, 1);
    zb_alloc_stats before = zb_alloc_get_stats();
    rig_train(&r, 4);
    assert_int_equal(zb_engine_observe(r.engine, &(zb_observer){ note_accounts, &ignored }), ZB_OK);
    free(rig_weights(&r));
    zb_alloc_stats after = zb_alloc_get_stats();
    if (after.calls != before.calls)
        fail_msg("%s: %llu allocations in a step", rig_name(o),
                 (unsigned long long)(after.calls - before.calls));
    rig_close(&r);
}

static void a_step_allocates_nothing(void **state)
{
    (void)state;
    for (int m = 0; m < test_model_count; m++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (int overlap = 0; overlap < 2; overlap++)
                check_allocations(&(rig_options){ .model = test_model_names[m],
                                                  .stage = stage,
                                                  .overlap = overlap,
                                                  .bucket = 20,
                                                  .accumulation = 2 });
}

/* The same two for every plan, with the probe's eye on the order of streams. */
static void every_plan_keeps_the_rules(void **state)
{
    (void)state;
    static const char *const models[] = { "mlp", "unused" };
    for (int p = 0; p < rig_plan_count; p++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (size_t m = 0; m < COUNT(models) && (rig_plans[p].stages >> stage & 1); m++)
                for (int overlap = 0; overlap < 2; overlap++) {
                    rig_options o = { .model = models[m],
                                      .plan = &rig_plans[p],
                                      .stage = stage,
                                      .accumulation = 2,
                                      .overlap = overlap,
                                      .lazy = overlap,
                                      .bucket = 20 };
                    check_accounts(&o);
                    check_allocations(&o);
                }
}

/* With overlap there is a second stream, at stage 3 a third, used and ordered; without there is one. The
 * probe has checked the order of everything that ran. */
static void overlap_brings_streams(void **state)
{
    (void)state;
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
        for (int overlap = 0; overlap < 2; overlap++) {
            rig r;
            rig_open(&r, &(rig_options){ .model = "conv", .stage = stage, .overlap = overlap, .lazy = 1 });
            rig_start(&r);
            rig_train(&r, 1);
            assert_int_equal(r.device.stream_count, overlap ? 2 + (stage == 3) : 1);
            assert_true((r.device.waits_between > 0) == overlap);
            rig_close(&r);
        }
}

int main(void)
{
    struct CMUnitTest tests[COUNT(bits_cases) + 4] = {
        cmocka_unit_test(accounts_are_the_formulas),
        cmocka_unit_test(a_step_allocates_nothing),
        cmocka_unit_test(every_plan_keeps_the_rules),
        cmocka_unit_test(overlap_brings_streams),
    };
    for (size_t i = 0; i < COUNT(bits_cases); i++)
        tests[i + 4] = (struct CMUnitTest){ bits_cases[i].name, check_bits, NULL, NULL,
                                            (void *)&bits_cases[i] };
    return cmocka_run_group_tests_name("engine_stages", tests, NULL, NULL);
}
