/* Which gradients travel together, and where each lies in the buffer. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>

#include "engine/bucket.h"
#include "tests/engine/models.h"

typedef struct plan_rig {
    zb_model *model;
    zb_layout layout;
    int order[SIZES_MAX];
    int order_count;
} plan_rig;

/* Trainable parameters with elements, forwards or backwards. */
static void rig_open(plan_rig *rig, const sizes *s, int stage, int world, int backward)
{
    *rig = (plan_rig){ .model = sizes_model(s) };
    assert_int_equal(zb_layout_create(rig->model, stage, world, &rig->layout), ZB_OK);
    for (int i = 0; i < s->count; i++) {
        int p = backward ? s->count - 1 - i : i;
        if (rig->model->params[p].requires_grad && rig->model->params[p].numel > 0)
            rig->order[rig->order_count++] = p;
    }
}

static void rig_close(plan_rig *rig)
{
    zb_layout_destroy(&rig->layout);
    zb_model_destroy(rig->model);
}

/* --- when a bucket is closed: the recorded example, and every edge of the limit --- */

static const struct fill_case {
    const char *name;
    int stage;
    uint64_t limit;
    int bucket_count;
    size_t numel[4];
} fill_cases[] = {
    /* sizes 3 5 4 7, world 2; stage 1 goes forwards, stage 2 backwards */
    { "stage 2, limit 8", 2, 8, 3, { 7, 4, 8 } },
    { "stage 2, limit 6: one larger than the limit travels alone", 2, 6, 4, { 7, 4, 5, 3 } },
    { "stage 2, limit 19: all of them exactly", 2, 19, 1, { 19 } },
    { "stage 2, limit 18: one less", 2, 18, 2, { 16, 3 } },
    { "stage 2, limit 7: one of exactly the limit", 2, 7, 4, { 7, 4, 5, 3 } },
    { "stage 2, limit 11: two of exactly the limit", 2, 11, 2, { 11, 8 } },
    { "stage 2, limit 10: one above", 2, 10, 3, { 7, 9, 3 } },
    { "stage 2, limit 1", 2, 1, 4, { 7, 4, 5, 3 } },
    { "stage 2, limit 0", 2, 0, 4, { 7, 4, 5, 3 } },
    { "stage 2, no limit", 2, UINT64_MAX, 1, { 19 } },
    { "stage 1, limit 8", 1, 8, 3, { 8, 4, 7 } },
    { "stage 0, limit 8", 0, 8, 3, { 8, 4, 7 } },
    /* the limit counts elements of parameters; the buffer has the padding of every part as well */
    { "stage 3, limit 8", 3, 8, 3, { 8, 4, 10 } },
    { "stage 3, limit 19", 3, 19, 1, { 22 } },
    { "stage 3, limit 0", 3, 0, 4, { 8, 4, 6, 4 } },
};

static void check_fill(void **state)
{
    const struct fill_case *c = *state;
    plan_rig rig;
    rig_open(&rig, &(sizes){ 4, { 3, 5, 4, 7 }, 0 }, c->stage, 2, c->stage >= 2);
    zb_buckets plan;
    size_t capacity = 0;
    assert_int_equal(zb_buckets_create(&rig.layout, rig.order, rig.order_count, c->limit, 0, &plan), ZB_OK);
    assert_int_equal(plan.bucket_count, c->bucket_count);
    for (int b = 0; b < c->bucket_count; b++) {
        assert_int_equal(plan.buckets[b].numel, c->numel[b]);
        if (c->numel[b] > capacity) capacity = c->numel[b];
    }
    assert_int_equal(plan.capacity, capacity);
    zb_buckets_destroy(&plan);
    rig_close(&rig);
}

/* --- shares: the same example in full --- */

static const struct share_case {
    const char *name;
    int stage, rank, bucket;
    size_t share_begin, share_numel, counts[2]; /* counts: stage 2 only */
} share_cases[] = {
    /* limit 8: stage 2 has rank 0 own flat elements 0 to 9, so that tensor 2 (8 to 11) is cut in two */
    { "stage 2, rank 0: nothing of tensor 3", 2, 0, 0, 0, 0, { 0, 7 } },
    { "stage 2, rank 1: all of tensor 3", 2, 1, 0, 0, 7, { 0, 7 } },
    { "stage 2, rank 0: half of tensor 2", 2, 0, 1, 0, 2, { 2, 2 } },
    { "stage 2, rank 1: the other half", 2, 1, 1, 2, 2, { 2, 2 } },
    { "stage 2, rank 0: tensors 0 and 1", 2, 0, 2, 0, 8, { 8, 0 } },
    { "stage 2, rank 1: none of them", 2, 1, 2, 8, 0, { 8, 0 } },
    { "stage 3, rank 0: part of tensor 3", 3, 0, 0, 0, 4, { 0 } },
    { "stage 3, rank 1: part of tensor 3, padding included", 3, 1, 0, 4, 4, { 0 } },
    { "stage 3, rank 1: parts of tensors 1 and 0", 3, 1, 2, 5, 5, { 0 } },
};

static void check_share(void **state)
{
    const struct share_case *c = *state;
    plan_rig rig;
    rig_open(&rig, &(sizes){ 4, { 3, 5, 4, 7 }, 0 }, c->stage, 2, 1);
    zb_buckets plan;
    assert_int_equal(zb_buckets_create(&rig.layout, rig.order, rig.order_count, 8, c->rank, &plan), ZB_OK);
    const zb_bucket *bucket = &plan.buckets[c->bucket];
    assert_int_equal(bucket->share_begin, c->share_begin);
    assert_int_equal(bucket->share_numel, c->share_numel);
    if (c->stage == 3)
        assert_null(bucket->counts);
    else
        assert_memory_equal(bucket->counts, c->counts, sizeof c->counts);
    zb_buckets_destroy(&plan);
    rig_close(&rig);
}

/* --- what holds for all --- */

static size_t param_numel(const plan_rig *rig, int param)
{
    return rig->model->params[param].numel;
}

/* Every listed parameter is in exactly one bucket, in the order given; each bucket is as full as it can be.
 */
static void check_membership(const plan_rig *rig, const zb_buckets *plan, uint64_t limit)
{
    int next = 0;
    for (int b = 0; b < plan->bucket_count; b++) {
        const zb_bucket *bucket = &plan->buckets[b];
        uint64_t sum = 0;
        assert_true(bucket->param_count > 0);
        for (int i = 0; i < bucket->param_count; i++) {
            int listed = rig->order[next++];
            assert_int_equal(plan->bucket_of[listed], b);
            sum += param_numel(rig, listed);
        }
        if (bucket->param_count > 1) assert_true(sum <= limit);
        if (next < rig->order_count) assert_true(sum + param_numel(rig, rig->order[next]) > limit);
    }
    assert_int_equal(next, rig->order_count);
    int travelling = 0;
    for (int p = 0; p < rig->model->param_count; p++) travelling += plan->bucket_of[p] >= 0;
    assert_int_equal(travelling, rig->order_count);
}

/* Where an element of the bucket lies in its buffer. */
static size_t buffer_index(const plan_rig *rig, const zb_buckets *plan, const zb_bucket *bucket, int param,
                           size_t element)
{
    if (rig->layout.stage != 3) return plan->slot[param] + element;
    size_t part = rig->layout.part_numel[param];
    return element / part * bucket->share_numel + plan->slot[param] + element % part;
}

/* Elements do not overlap in the buffer, and each lies in the share of the rank that owns it. */
static void check_shares(const plan_rig *rig, int rank, const zb_buckets *plan, const zb_bucket *bucket)
{
    unsigned char taken[SIZES_MAX * 60 * 2] = { 0 };
    assert_true(bucket->numel <= sizeof taken);
    for (int i = 0; i < bucket->param_count; i++) {
        int param = bucket->params[i];
        zb_slice own = zb_layout_slice(&rig->layout, param, rank);
        for (size_t e = 0; e < param_numel(rig, param); e++) {
            size_t at = buffer_index(rig, plan, bucket, param, e);
            assert_true(at < bucket->numel);
            assert_int_equal(taken[at]++, 0);
            int in_share = at >= bucket->share_begin && at < bucket->share_begin + bucket->share_numel;
            int owned = e >= own.first && e < own.first + own.numel;
            if (rig->layout.stage != 0) assert_int_equal(in_share, owned);
        }
    }
}

static void check_counts(const plan_rig *rig, int rank, const zb_bucket *bucket)
{
    size_t world = (size_t)rig->layout.world_size, sum = 0;
    if (rig->layout.stage == 3) {
        assert_int_equal(bucket->numel, world * bucket->share_numel);
        assert_int_equal(bucket->share_begin, (size_t)rank * bucket->share_numel);
    }
    if (rig->layout.stage == 0 || rig->layout.stage == 3) {
        assert_null(bucket->counts);
        return;
    }
    assert_int_equal(bucket->share_numel, bucket->counts[rank]);
    for (size_t r = 0; r < world; r++) {
        if (r == (size_t)rank) assert_int_equal(bucket->share_begin, sum);
        sum += bucket->counts[r];
    }
    assert_int_equal(sum, bucket->numel);
}

static sizes random_sizes(uint64_t *random)
{
    sizes s = { .count = 1 + (int)random_below(random, 10) };
    for (int i = 0; i < s.count; i++) {
        s.numel[i] = random_below(random, random_below(random, 3) == 0 ? 2 : 60);
        if (random_below(random, 5) == 0) s.frozen |= 1u << i;
    }
    return s;
}

static void plans_hold_together(void **state)
{
    (void)state;
    uint64_t random = 3;
    for (int round = 0; round < 3000; round++) {
        sizes s = random_sizes(&random);
        int stage = (int)random_below(&random, 4), world = 1 + (int)random_below(&random, 9);
        int rank = (int)random_below(&random, (uint32_t)world);
        uint64_t limit = random_below(&random, 150);
        plan_rig rig;
        zb_buckets plan;
        rig_open(&rig, &s, stage, world, stage >= 2);
        assert_int_equal(zb_buckets_create(&rig.layout, rig.order, rig.order_count, limit, rank, &plan),
                         ZB_OK);
        size_t capacity = 0;
        check_membership(&rig, &plan, limit);
        for (int b = 0; b < plan.bucket_count; b++) {
            if (plan.buckets[b].numel > capacity) capacity = plan.buckets[b].numel;
            check_shares(&rig, rank, &plan, &plan.buckets[b]);
            check_counts(&rig, rank, &plan.buckets[b]);
        }
        assert_int_equal(plan.capacity, capacity);
        zb_bucket_measure measure = zb_buckets_measure(&rig.layout, rig.order, rig.order_count, limit);
        assert_int_equal(measure.capacity, capacity);
        assert_int_equal(measure.bucket_count, plan.bucket_count);
        zb_buckets_destroy(&plan);
        rig_close(&rig);
    }
}

/* Stages 0 and 1 reduce in place: a bucket must be one range of the flat gradient. */
static void forward_buckets_are_ranges(void **state)
{
    (void)state;
    uint64_t random = 4;
    for (int round = 0; round < 500; round++) {
        sizes s = random_sizes(&random);
        plan_rig rig;
        zb_buckets plan;
        int stage = (int)random_below(&random, 2);
        rig_open(&rig, &s, stage, 3, 0);
        assert_int_equal(
            zb_buckets_create(&rig.layout, rig.order, rig.order_count, random_below(&random, 100), 0, &plan),
            ZB_OK);
        size_t next = 0;
        for (int b = 0; b < plan.bucket_count; b++) {
            assert_int_equal(plan.buckets[b].flat_offset, next);
            next += plan.buckets[b].numel;
        }
        assert_int_equal(next, rig.layout.numel);
        zb_buckets_destroy(&plan);
        rig_close(&rig);
    }
}

/* Ready order follows the modules, which need not follow the parameters; the buffer still ascends. */
static void a_bucket_is_sorted_by_flat_offset(void **state)
{
    (void)state;
    static const int order[] = { 1, 3, 0, 2 };
    plan_rig rig;
    zb_buckets plan;
    rig_open(&rig, &(sizes){ 4, { 3, 5, 4, 7 }, 0 }, 2, 2, 0);
    assert_int_equal(zb_buckets_create(&rig.layout, order, 4, 12, 1, &plan), ZB_OK);
    assert_int_equal(plan.bucket_count, 2);
    assert_int_equal(plan.buckets[0].params[0], 1);
    assert_int_equal(plan.buckets[0].params[1], 3);
    assert_int_equal(plan.buckets[1].params[0], 0);
    assert_int_equal(plan.buckets[1].params[1], 2);
    assert_int_equal(plan.slot[3], 5);
    zb_buckets_destroy(&plan);
    rig_close(&rig);
}

static void out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    plan_rig rig;
    rig_open(&rig, &(sizes){ 4, { 3, 5, 4, 7 }, 0 }, 2, 2, 1);
    uint64_t live = zb_alloc_get_stats().live;
    int fired = 1;
    for (int n = 0; fired; n++) {
        zb_buckets plan = { .bucket_count = 99 };
        zb_alloc_fail_at(n);
        zb_status status = zb_buckets_create(&rig.layout, rig.order, rig.order_count, 8, 0, &plan);
        fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (fired)
            assert_int_equal(plan.bucket_count, 99);
        else
            zb_buckets_destroy(&plan);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    rig_close(&rig);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(fill_cases) + COUNT(share_cases) + 4] = {
        cmocka_unit_test(plans_hold_together),
        cmocka_unit_test(forward_buckets_are_ranges),
        cmocka_unit_test(a_bucket_is_sorted_by_flat_offset),
        cmocka_unit_test(out_of_memory_leaves_nothing),
    };
    size_t n = 4;
    for (size_t i = 0; i < COUNT(fill_cases); i++)
        tests[n++] = (struct CMUnitTest){ fill_cases[i].name, check_fill, NULL, NULL,
                                          (void *)&fill_cases[i] };
    for (size_t i = 0; i < COUNT(share_cases); i++)
        tests[n++] = (struct CMUnitTest){ share_cases[i].name, check_share, NULL, NULL,
                                          (void *)&share_cases[i] };
    return cmocka_run_group_tests_name("bucket", tests, NULL, NULL);
}
