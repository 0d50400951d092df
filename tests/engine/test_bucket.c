/* Which gradients travel together, how, and where each lies in the buffer. */
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
    zb_bucket_rule rule;
    int order[SIZES_MAX];
    int order_count;
} plan_rig;

static zb_transport usual_transport(int stage)
{
    return stage == 0  ? ZB_TRANSPORT_ALL_REDUCE
           : stage < 3 ? ZB_TRANSPORT_REDUCE_SCATTER_V
                       : ZB_TRANSPORT_REDUCE_SCATTER;
}

/* Trainable parameters with elements, forwards or backwards. */
static void rig_open_grouped(plan_rig *rig, const sizes *s, const int *group_of, int round_robin, int stage,
                             int world, int backward)
{
    *rig = (plan_rig){ .model = sizes_model(s) };
    const zb_layout_options options = { .model = rig->model,
                                        .stage = stage,
                                        .world_size = world,
                                        .group_of = group_of,
                                        .round_robin = round_robin };
    assert_int_equal(zb_layout_create(&options, &rig->layout), ZB_OK);
    rig->rule = (zb_bucket_rule){ .transport = usual_transport(stage), .owns_all = stage == 0 };
    for (int i = 0; i < s->count; i++) {
        int p = backward ? s->count - 1 - i : i;
        if (rig->model->params[p].requires_grad && rig->model->params[p].numel > 0)
            rig->order[rig->order_count++] = p;
    }
}

static void rig_open(plan_rig *rig, const sizes *s, int stage, int world, int backward)
{
    rig_open_grouped(rig, s, NULL, 0, stage, world, backward);
}

static void rig_close(plan_rig *rig)
{
    zb_layout_destroy(&rig->layout);
    zb_model_destroy(rig->model);
}

static void make(const plan_rig *rig, int rank, zb_buckets *plan)
{
    assert_int_equal(zb_buckets_create(&rig->layout, &rig->rule, rig->order, rig->order_count, rank, plan),
                     ZB_OK);
}

/* --- when a bucket is closed: the recorded example, and every edge of the limit --- */

static const struct fill_case {
    const char *name;
    int stage;
    uint64_t limit;
    int bucket_count;
    size_t numel[4];
    zb_bucket_close close;
} fill_cases[] = {
    /* sizes 3 5 4 7, world 2; stage 1 goes forwards, stage 2 backwards */
    { "stage 2, limit 8", 2, 8, 3, { 7, 4, 8 }, 0 },
    { "stage 2, limit 6: one larger than the limit travels alone", 2, 6, 4, { 7, 4, 5, 3 }, 0 },
    { "stage 2, limit 19: all of them exactly", 2, 19, 1, { 19 }, 0 },
    { "stage 2, limit 18: one less", 2, 18, 2, { 16, 3 }, 0 },
    { "stage 2, limit 7: one of exactly the limit", 2, 7, 4, { 7, 4, 5, 3 }, 0 },
    { "stage 2, limit 11: two of exactly the limit", 2, 11, 2, { 11, 8 }, 0 },
    { "stage 2, limit 10: one above", 2, 10, 3, { 7, 9, 3 }, 0 },
    { "stage 2, limit 1", 2, 1, 4, { 7, 4, 5, 3 }, 0 },
    { "stage 2, limit 0", 2, 0, 4, { 7, 4, 5, 3 }, 0 },
    { "stage 2, no limit", 2, UINT64_MAX, 1, { 19 }, 0 },
    { "stage 1, limit 8", 1, 8, 3, { 8, 4, 7 }, 0 },
    { "stage 0, limit 8", 0, 8, 3, { 8, 4, 7 }, 0 },
    { "stage 0, after limit 8", 0, 8, 2, { 12, 7 }, ZB_CLOSE_AFTER_LIMIT },
    { "stage 0, after limit 7: 8 is above", 0, 7, 2, { 8, 11 }, ZB_CLOSE_AFTER_LIMIT },
    { "stage 0, after limit 2", 0, 2, 4, { 3, 5, 4, 7 }, ZB_CLOSE_AFTER_LIMIT },
    { "stage 0, after limit 19", 0, 19, 1, { 19 }, ZB_CLOSE_AFTER_LIMIT },
    /* the limit counts elements of parameters; the buffer has the padding of every part as well */
    { "stage 3, limit 8", 3, 8, 3, { 8, 4, 10 }, 0 },
    { "stage 3, limit 19", 3, 19, 1, { 22 }, 0 },
    { "stage 3, limit 0", 3, 0, 4, { 8, 4, 6, 4 }, 0 },
};

static void check_fill(void **state)
{
    const struct fill_case *c = *state;
    plan_rig rig;
    rig_open(&rig, &(sizes){ 4, { 3, 5, 4, 7 }, 0 }, c->stage, 2, c->stage >= 2);
    rig.rule.limit_numel = c->limit;
    rig.rule.close = c->close;
    zb_buckets plan;
    size_t capacity = 0;
    make(&rig, 0, &plan);
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
    rig.rule.limit_numel = 8;
    zb_buckets plan;
    make(&rig, c->rank, &plan);
    const zb_bucket *bucket = &plan.buckets[c->bucket];
    assert_int_equal(bucket->share_begin, c->share_begin);
    assert_int_equal(bucket->share_numel, c->share_numel);
    assert_true((bucket->counts != NULL) == (c->stage == 2));
    if (bucket->counts != NULL) assert_memory_equal(bucket->counts, c->counts, sizeof c->counts);
    zb_buckets_destroy(&plan);
    rig_close(&rig);
}

/* --- collectives of the transports that are cut at owners --- */

enum { SENDS_MAX = 6 };

static const struct send_case {
    const char *name;
    zb_transport transport;
    int world;
    uint64_t limit;
    int count;
    zb_bucket_send sends[SENDS_MAX]; /* of all buckets */
} send_cases[] = {
    /* sizes 3 5 4 7, backwards. World 2: rank 0 owns flat elements 0 to 9; world 3: 0 to 7, 8 to 15 */
    { "owners, all in one", ZB_TRANSPORT_OWNERS, 2, 19, 1, { { 0, 19, 0 } } },
    { "owners, one per bucket", ZB_TRANSPORT_OWNERS, 2, 8, 3, { { 0, 7, 0 }, { 0, 4, 0 }, { 0, 8, 0 } } },
    { "owners, an oversized one of one owner",
      ZB_TRANSPORT_OWNERS,
      2,
      6,
      4,
      { { 0, 7, 0 }, { 0, 4, 0 }, { 0, 5, 0 }, { 0, 3, 0 } } },
    { "owners, an oversized one of two is cut where the first ends",
      ZB_TRANSPORT_OWNERS,
      3,
      3,
      5,
      { { 0, 4, 0 }, { 4, 3, 0 }, { 0, 4, 0 }, { 0, 5, 0 }, { 0, 3, 0 } } },
    { "owners, not cut where the first is within the limit",
      ZB_TRANSPORT_OWNERS,
      3,
      4,
      4,
      { { 0, 7, 0 }, { 0, 4, 0 }, { 0, 5, 0 }, { 0, 3, 0 } } },
    { "rooted, in order of first appearance",
      ZB_TRANSPORT_ROOTED,
      3,
      19,
      3,
      { { 0, 8, 1 }, { 8, 3, 2 }, { 11, 8, 0 } } },
    { "rooted, world 2", ZB_TRANSPORT_ROOTED, 2, 19, 2, { { 0, 9, 1 }, { 9, 10, 0 } } },
    { "rooted, every bucket on its own",
      ZB_TRANSPORT_ROOTED,
      3,
      11,
      3,
      { { 0, 8, 1 }, { 8, 3, 2 }, { 0, 8, 0 } } },
    { "rooted, an oversized one",
      ZB_TRANSPORT_ROOTED,
      3,
      3,
      5,
      { { 0, 4, 1 }, { 4, 3, 2 }, { 0, 4, 1 }, { 0, 5, 0 }, { 0, 3, 0 } } },
    { "none", ZB_TRANSPORT_NONE, 2, 8, 0, { { 0 } } },
};

static void check_send(void **state)
{
    const struct send_case *c = *state;
    plan_rig rig;
    rig_open(&rig, &(sizes){ 4, { 3, 5, 4, 7 }, 0 }, 2, c->world, 1);
    rig.rule.limit_numel = c->limit;
    rig.rule.transport = c->transport;
    zb_buckets plan;
    int seen = 0;
    make(&rig, 0, &plan);
    for (int b = 0; b < plan.bucket_count; b++)
        for (int s = 0; s < plan.buckets[b].send_count; s++, seen++) {
            assert_true(seen < c->count);
            assert_int_equal(plan.buckets[b].sends[s].begin, c->sends[seen].begin);
            assert_int_equal(plan.buckets[b].sends[s].numel, c->sends[seen].numel);
            assert_int_equal(plan.buckets[b].sends[s].root, c->sends[seen].root);
        }
    assert_int_equal(seen, c->count);
    zb_buckets_destroy(&plan);
    rig_close(&rig);
}

/* --- what holds for all plans --- */

enum { BUFFER_MAX = SIZES_MAX * 60 * 2, GROUPS = 3, NOBODY = -1 };

static size_t param_numel(const plan_rig *rig, int param)
{
    return rig->model->params[param].numel;
}

/* Every parameter is in one bucket; in the given order; none but the first exceeds the limit. */
static void check_membership(const plan_rig *rig, const zb_buckets *plan)
{
    int seen = 0;
    for (int b = 0; b < plan->bucket_count; b++) {
        const zb_bucket *bucket = &plan->buckets[b];
        uint64_t numel = 0;
        assert_true(bucket->param_count > 0);
        for (int i = 0; i < bucket->param_count; i++) {
            assert_int_equal(plan->bucket_of[rig->order[seen + i]], b);
            numel += param_numel(rig, rig->order[seen + i]);
        }
        if (rig->rule.close == ZB_CLOSE_BEFORE_LIMIT && bucket->param_count > 1)
            assert_true(numel <= rig->rule.limit_numel);
        seen += bucket->param_count;
    }
    assert_int_equal(seen, rig->order_count);
}

static int element_name(int param, size_t element)
{
    return param * 1000 + (int)element;
}

/* The buffer with a name in the place of each number; zeros and gaps are NOBODY. */
static void fill(const plan_rig *rig, const zb_buckets *plan, const zb_bucket *bucket, int *buffer)
{
    unsigned char written[BUFFER_MAX] = { 0 };
    int padded = 0;
    assert_true(bucket->numel <= BUFFER_MAX);
    for (int i = 0; i < bucket->param_count; i++) {
        const int param = bucket->params[i];
        size_t next = 0;
        for (int k = 0; k < plan->piece_count[param]; k++) {
            const zb_bucket_piece piece = zb_buckets_piece(plan, param, k);
            assert_int_equal(piece.first, next);
            assert_true(piece.at + piece.numel + piece.padding <= bucket->numel);
            for (size_t e = 0; e < piece.numel + piece.padding; e++) {
                assert_int_equal(written[piece.at + e]++, 0);
                buffer[piece.at + e] = e < piece.numel ? element_name(param, piece.first + e) : NOBODY;
            }
            next += piece.numel;
            padded |= piece.padding > 0;
            assert_true(piece.numel > 0 || next == param_numel(rig, param)); /* empty ones come last */
        }
        assert_int_equal(next, param_numel(rig, param));
    }
    for (size_t e = 0; e < bucket->numel; e++) assert_int_equal(written[e], 1);
    if (bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER) assert_int_equal(bucket->padded, padded);
}

/* What the sends reduce, or the share receives: one for each element that this rank is given. */
static void receive(const zb_bucket *bucket, int rank, unsigned char *received)
{
    memset(received, 0, BUFFER_MAX);
    for (int s = 0; s < bucket->send_count; s++)
        for (size_t e = 0; e < bucket->sends[s].numel; e++)
            received[bucket->sends[s].begin + e] += bucket->transport != ZB_TRANSPORT_ROOTED ||
                                                    bucket->sends[s].root == rank;
    if (bucket->transport == ZB_TRANSPORT_NONE) memset(received, 1, bucket->numel);
    for (size_t e = 0; e < bucket->share_numel; e++) received[bucket->share_begin + e]++;
}

/* This rank's averages arrive, each once, and where the layout wants them. */
static void check_bucket(const plan_rig *rig, int rank, const zb_buckets *plan, const zb_bucket *bucket)
{
    int buffer[BUFFER_MAX], taken[SIZES_MAX][64] = { { 0 } };
    unsigned char received[BUFFER_MAX];
    fill(rig, plan, bucket, buffer);
    receive(bucket, rank, received);
    for (size_t i = 0; i < bucket->own_count; i++)
        for (size_t e = 0; e < bucket->own[i].numel; e++) {
            const int name = buffer[bucket->own[i].at + e];
            const int param = name / 1000;
            const size_t element = (size_t)(name % 1000), to = bucket->own[i].to + e;
            assert_int_equal(received[bucket->own[i].at + e], 1);
            const zb_slice own = zb_layout_slice(&rig->layout, param, rank);
            if (rig->rule.to_flat)
                assert_int_equal(to, rig->layout.offset[param] + element);
            else
                assert_int_equal(to, own.shard_offset + element - own.first);
            taken[param][element]++;
        }
    for (int i = 0; i < bucket->param_count; i++) {
        const int param = bucket->params[i];
        const zb_slice own = zb_layout_slice(&rig->layout, param, rank);
        for (size_t e = 0; e < param_numel(rig, param); e++)
            assert_int_equal(taken[param][e],
                             rig->rule.owns_all || (e >= own.first && e < own.first + own.numel));
    }
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

static zb_transport random_transport(int stage, uint64_t *random)
{
    static const zb_transport flat[] = { ZB_TRANSPORT_ALL_REDUCE, ZB_TRANSPORT_REDUCE_SCATTER_V,
                                         ZB_TRANSPORT_OWNERS, ZB_TRANSPORT_ROOTED, ZB_TRANSPORT_NONE };
    if (stage == 0) return ZB_TRANSPORT_ALL_REDUCE;
    if (stage == 3) return random_below(random, 2) ? ZB_TRANSPORT_REDUCE_SCATTER : ZB_TRANSPORT_ALL_REDUCE;
    return flat[random_below(random, COUNT(flat))];
}

static void random_rule(int stage, zb_bucket_rule *rule, uint64_t *random)
{
    *rule = (zb_bucket_rule){ .transport = random_transport(stage, random),
                              .close = stage == 0 && random_below(random, 2) ? ZB_CLOSE_AFTER_LIMIT
                                                                             : ZB_CLOSE_BEFORE_LIMIT,
                              .limit_numel = random_below(random, 150),
                              .owns_all = stage == 0,
                              .to_flat = stage == 0 };
    if (stage != 1 || random_below(random, 3) > 0) return;
    *rule = (zb_bucket_rule){ .transport = ZB_TRANSPORT_ALL_REDUCE,
                              .close = ZB_CLOSE_AFTER_LIMIT,
                              .limit_numel = random_below(random, 150),
                              .whole_groups = 1,
                              .owns_all = 1,
                              .to_flat = 1 };
}

static void check_measure(const plan_rig *rig, const zb_buckets *plan)
{
    const zb_bucket_measure measure = zb_buckets_measure(&rig->layout, &rig->rule, rig->order,
                                                         rig->order_count);
    uint64_t calls[ZB_COLLECTIVE_COUNT] = { 0 }, numel[ZB_COLLECTIVE_COUNT] = { 0 };
    size_t capacity = 0;
    for (int b = 0; b < plan->bucket_count; b++) {
        const zb_bucket *bucket = &plan->buckets[b];
        const int rooted = bucket->transport == ZB_TRANSPORT_ROOTED;
        if (bucket->numel > capacity) capacity = bucket->numel;
        for (int s = 0; s < bucket->send_count; s++) {
            calls[rooted ? ZB_COLLECTIVE_REDUCE : ZB_COLLECTIVE_ALL_REDUCE]++;
            numel[rooted ? ZB_COLLECTIVE_REDUCE : ZB_COLLECTIVE_ALL_REDUCE] += bucket->sends[s].numel;
        }
        const int scatters = bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER;
        if (!scatters && bucket->transport != ZB_TRANSPORT_REDUCE_SCATTER_V) continue;
        calls[scatters ? ZB_COLLECTIVE_REDUCE_SCATTER : ZB_COLLECTIVE_REDUCE_SCATTER_V]++;
        numel[scatters ? ZB_COLLECTIVE_REDUCE_SCATTER : ZB_COLLECTIVE_REDUCE_SCATTER_V] += bucket->numel;
    }
    assert_int_equal(plan->capacity, capacity);
    assert_int_equal(measure.capacity, capacity);
    assert_int_equal(measure.bucket_count, plan->bucket_count);
    assert_memory_equal(measure.calls, calls, sizeof calls);
    assert_memory_equal(measure.numel, numel, sizeof numel);
}

static void plans_hold_together(void **state)
{
    (void)state;
    uint64_t random = 3;
    for (int round = 0; round < 6000; round++) {
        sizes s = random_sizes(&random);
        int stage = (int)random_below(&random, 4), world = 1 + (int)random_below(&random, 9);
        int rank = (int)random_below(&random, (uint32_t)world), group_of[SIZES_MAX];
        int groups = 1 + (int)random_below(&random, GROUPS);
        for (int p = 0; p < s.count; p++) group_of[p] = (int)random_below(&random, (uint32_t)groups);
        plan_rig rig;
        zb_buckets plan;
        rig_open_grouped(&rig, &s, group_of, (int)random_below(&random, 2), stage, world, stage >= 2);
        random_rule(stage, &rig.rule, &random);
        if (rig.rule.whole_groups)
            memcpy(rig.order, rig.layout.by_offset, sizeof(int) * (size_t)rig.order_count);
        make(&rig, rank, &plan);
        check_membership(&rig, &plan);
        for (int b = 0; b < plan.bucket_count; b++) check_bucket(&rig, rank, &plan, &plan.buckets[b]);
        check_measure(&rig, &plan);
        zb_buckets_destroy(&plan);
        rig_close(&rig);
    }
}

/* Gradients that are reduced where they lie: a bucket is one range of the flat space. */
static void buckets_in_place_are_ranges(void **state)
{
    (void)state;
    uint64_t random = 4;
    for (int round = 0; round < 1000; round++) {
        sizes s = random_sizes(&random);
        int group_of[SIZES_MAX], stage = (int)random_below(&random, 2);
        for (int p = 0; p < s.count; p++) group_of[p] = (int)random_below(&random, GROUPS);
        plan_rig rig;
        zb_buckets plan;
        rig_open_grouped(&rig, &s, group_of, (int)random_below(&random, 2), stage, 3, 0);
        rig.rule.in_place = rig.rule.to_flat = 1;
        rig.rule.limit_numel = random_below(&random, 100);
        memcpy(rig.order, rig.layout.by_offset, sizeof(int) * (size_t)rig.order_count);
        make(&rig, 0, &plan);
        check_measure(&rig, &plan);
        for (int b = 0; b < plan.bucket_count; b++) {
            const zb_bucket *bucket = &plan.buckets[b];
            for (int i = 0; i < bucket->param_count; i++) {
                const zb_bucket_piece piece = zb_buckets_piece(&plan, bucket->params[i], 0);
                assert_int_equal(plan.piece_count[bucket->params[i]], 1);
                assert_int_equal(bucket->flat_offset + piece.at, rig.layout.offset[bucket->params[i]]);
            }
        }
        zb_buckets_destroy(&plan);
        rig_close(&rig);
    }
}

/* Ready order follows the modules, which need not follow the parameters; shares still ascend. */
static void a_scattered_bucket_is_sorted_by_flat_offset(void **state)
{
    (void)state;
    static const int order[] = { 1, 3, 0, 2 };
    plan_rig rig;
    zb_buckets plan;
    rig_open(&rig, &(sizes){ 4, { 3, 5, 4, 7 }, 0 }, 2, 2, 0);
    rig.rule.limit_numel = 12;
    memcpy(rig.order, order, sizeof order);
    make(&rig, 1, &plan);
    assert_int_equal(plan.bucket_count, 2);
    assert_int_equal(plan.buckets[0].params[0], 1);
    assert_int_equal(plan.buckets[0].params[1], 3);
    assert_int_equal(plan.buckets[1].params[0], 0);
    assert_int_equal(plan.buckets[1].params[1], 2);
    assert_int_equal(zb_buckets_piece(&plan, 3, 0).at, 5);
    zb_buckets_destroy(&plan);
    rig_close(&rig);
}

/* --- the rule of a config --- */

static const struct rule_case {
    const char *name;
    int stage;
    const char *zero, *rest; /* members of the config */
    zb_bucket_rule want;
} rule_cases[] = {
#define DEEPSPEED "\"zerobit\": {\"semantics\": \"deepspeed-0.19.6\"}"
#define BF16      "\"bf16\": {\"enabled\": true}, "
    { "standard, stage 0",
      0,
      "",
      "",
      { .transport = ZB_TRANSPORT_ALL_REDUCE,
        .limit_numel = 7,
        .in_place = 1,
        .owns_all = 1,
        .to_flat = 1 } },
    { "standard, stage 1",
      1,
      "",
      "",
      { .transport = ZB_TRANSPORT_REDUCE_SCATTER_V, .limit_numel = 7, .in_place = 1, .to_flat = 1 } },
    { "standard, stage 1, reduce_scatter off",
      1,
      ", \"reduce_scatter\": false",
      "",
      { .transport = ZB_TRANSPORT_ALL_REDUCE, .limit_numel = 7, .in_place = 1, .to_flat = 1 } },
    { "standard, stage 1, sent in another type",
      1,
      "",
      "\"communication_data_type\": \"bf16\"",
      { .transport = ZB_TRANSPORT_REDUCE_SCATTER_V, .limit_numel = 7, .to_flat = 1 } },
    { "standard, stage 2", 2, "", "", { .transport = ZB_TRANSPORT_REDUCE_SCATTER_V, .limit_numel = 7 } },
    { "standard, stage 2: these tune",
      2,
      ", \"contiguous_gradients\": false, \"use_multi_rank_bucket_allreduce\": false",
      "",
      { .transport = ZB_TRANSPORT_REDUCE_SCATTER_V, .limit_numel = 7 } },
    { "standard, stage 3", 3, "", "", { .transport = ZB_TRANSPORT_REDUCE_SCATTER, .limit_numel = 7 } },
    { "standard, stage 3, reduce_scatter off",
      3,
      ", \"reduce_scatter\": false",
      "",
      { .transport = ZB_TRANSPORT_ALL_REDUCE, .limit_numel = 7 } },
    { "DeepSpeed, stage 0",
      0,
      "",
      DEEPSPEED,
      { .transport = ZB_TRANSPORT_ALL_REDUCE,
        .close = ZB_CLOSE_AFTER_LIMIT,
        .limit_numel = 500000000,
        .in_place = 1,
        .owns_all = 1,
        .to_flat = 1 } },
    { "DeepSpeed, stage 1",
      1,
      "",
      DEEPSPEED,
      { .transport = ZB_TRANSPORT_OWNERS, .limit_numel = 7, .to_flat = 1 } },
    { "DeepSpeed, stage 2, rooted",
      2,
      ", \"use_multi_rank_bucket_allreduce\": false",
      DEEPSPEED,
      { .transport = ZB_TRANSPORT_ROOTED, .limit_numel = 7 } },
    { "DeepSpeed, stage 2, reduce_scatter off",
      2,
      ", \"reduce_scatter\": false",
      DEEPSPEED,
      { .transport = ZB_TRANSPORT_ALL_REDUCE, .limit_numel = 7 } },
    { "DeepSpeed, stage 1, round robin is not the order of buckets",
      1,
      ", \"reduce_scatter\": false, \"round_robin_gradients\": true",
      DEEPSPEED,
      { .transport = ZB_TRANSPORT_ALL_REDUCE, .limit_numel = 7, .to_flat = 1 } },
    { "DeepSpeed, stage 2, scattered gradients",
      2,
      ", \"contiguous_gradients\": false",
      DEEPSPEED,
      { .transport = ZB_TRANSPORT_ALL_REDUCE, .limit_numel = 7 } },
    { "DeepSpeed on a CPU, stage 2, scattered gradients",
      2,
      ", \"contiguous_gradients\": false",
      "\"zerobit\": {\"semantics\": \"deepspeed-0.19.6\", \"quirks\": "
      "{\"unreduced_without_contiguous_gradients\": true}}",
      { .transport = ZB_TRANSPORT_NONE, .limit_numel = 7 } },
    { "DeepSpeed, stage 3, scattered gradients",
      3,
      ", \"reduce_scatter\": false, \"contiguous_gradients\": false",
      DEEPSPEED,
      { .transport = ZB_TRANSPORT_REDUCE_SCATTER, .limit_numel = 7 } },
    { "DeepSpeed, stage 1, bf16 accumulated in fp32",
      1,
      "",
      BF16 "\"data_types\": {\"grad_accum_dtype\": \"fp32\"}, " DEEPSPEED,
      { .transport = ZB_TRANSPORT_ALL_REDUCE,
        .close = ZB_CLOSE_AFTER_LIMIT,
        .limit_numel = 500000000,
        .whole_groups = 1,
        .owns_all = 1,
        .to_flat = 1 } },
};

static void check_rule(void **state)
{
    const struct rule_case *c = *state;
    char text[1024];
    zb_config *config;
    zb_plan plan;
    zb_model *model = sizes_model(&(sizes){ 2, { 3, 5 }, 0 });
    int length = snprintf(
        text, sizeof text,
        "{\"train_micro_batch_size_per_gpu\": 2, \"optimizer\": {\"type\": \"Adam\", \"params\": {}}, "
        "\"zero_optimization\": {\"stage\": %d, \"reduce_bucket_size\": 7%s}%s%s}",
        c->stage, c->zero, c->rest[0] != '\0' ? ", " : "", c->rest);
    if (zb_config_parse(text, (size_t)length, "rule.json", &config) != ZB_OK)
        fail_msg("%s", zb_error_message());
    if (zb_plan_derive(config, c->stage, config->dtype, 2, &plan) != ZB_OK)
        fail_msg("%s", zb_error_message());
    zb_layout layout;
    const zb_layout_options options = zb_layout_options_of(&plan, model, c->stage);
    assert_int_equal(zb_layout_create(&options, &layout), ZB_OK);
    const zb_bucket_rule got = zb_bucket_rule_of(config, &plan, &layout);
    assert_int_equal(got.transport, c->want.transport);
    assert_int_equal(got.close, c->want.close);
    assert_int_equal(got.limit_numel, c->want.limit_numel);
    assert_int_equal(got.whole_groups, c->want.whole_groups);
    assert_int_equal(got.in_place, c->want.in_place);
    assert_int_equal(got.owns_all, c->want.owns_all);
    assert_int_equal(got.to_flat, c->want.to_flat);
    zb_layout_destroy(&layout);
    zb_config_destroy(config);
    zb_model_destroy(model);
}

static void out_of_memory_leaves_nothing(void **state)
{
    (void)state;
    plan_rig rig;
    rig_open(&rig, &(sizes){ 4, { 3, 5, 4, 7 }, 0 }, 2, 2, 1);
    rig.rule.limit_numel = 8;
    uint64_t live = zb_alloc_get_stats().live;
    int fired = 1;
    for (int n = 0; fired; n++) {
        zb_buckets plan = { .bucket_count = 99 };
        zb_alloc_fail_at(n);
        zb_status status = zb_buckets_create(&rig.layout, &rig.rule, rig.order, rig.order_count, 0, &plan);
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

#define ROWS(array, function)                                                                                \
    for (size_t i = 0; i < COUNT(array); i++)                                                                \
        tests[n++] = (struct CMUnitTest){ array[i].name, function, NULL, NULL, (void *)&array[i] };

int main(void)
{
    struct CMUnitTest
        tests[COUNT(fill_cases) + COUNT(share_cases) + COUNT(send_cases) + COUNT(rule_cases) + 4] = {
            cmocka_unit_test(plans_hold_together),
            cmocka_unit_test(buckets_in_place_are_ranges),
            cmocka_unit_test(a_scattered_bucket_is_sorted_by_flat_offset),
            cmocka_unit_test(out_of_memory_leaves_nothing),
        };
    size_t n = 4;
    ROWS(fill_cases, check_fill)
    ROWS(share_cases, check_share)
    ROWS(send_cases, check_send)
    ROWS(rule_cases, check_rule)
    return cmocka_run_group_tests_name("bucket", tests, NULL, NULL);
}
