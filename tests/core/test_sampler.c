/*
 * The sampler against torch.utils.data.DistributedSampler 1.13.1 (lists and hashes), and, over all small
 * sizes, against what a deal of cards must satisfy.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/data.h>
#include <zerobit/memory.h>

enum { NO_SHUFFLE = 0, SHUFFLE = 1, PAD = 0, DROP = 1 };

static const struct deal_case {
    const char *name;
    int64_t size;
    int world_size, shuffle, drop_last;
    uint64_t seed;
    int64_t epoch;
    int64_t length;   /* per rank */
    int64_t want[16]; /* rank after rank */
} deal_cases[] = {
    { "N10 W2", 10, 2, SHUFFLE, PAD, 0, 0, 5, { 4, 7, 3, 0, 6, 1, 5, 9, 8, 2 } },
    { "N10 W2 epoch 1", 10, 2, SHUFFLE, PAD, 0, 1, 5, { 5, 1, 0, 9, 7, 6, 2, 8, 3, 4 } },
    { "N10 W2 seed 1 is epoch 1", 10, 2, SHUFFLE, PAD, 1, 0, 5, { 5, 1, 0, 9, 7, 6, 2, 8, 3, 4 } },
    { "N10 W3 pads", 10, 3, SHUFFLE, PAD, 0, 0, 4, { 4, 5, 0, 2, 1, 3, 8, 4, 7, 9, 6, 1 } },
    { "N10 W3 drop_last", 10, 3, SHUFFLE, DROP, 0, 0, 3, { 4, 5, 0, 1, 3, 8, 7, 9, 6 } },
    { "N10 W4 pads", 10, 4, SHUFFLE, PAD, 0, 0, 3, { 4, 3, 6, 1, 9, 2, 7, 0, 4, 5, 8, 1 } },
    { "N10 W4 drop_last", 10, 4, SHUFFLE, DROP, 0, 0, 2, { 4, 3, 1, 9, 7, 0, 5, 8 } },
    { "N10 W4 no shuffle", 10, 4, NO_SHUFFLE, PAD, 0, 0, 3, { 0, 4, 8, 1, 5, 9, 2, 6, 0, 3, 7, 1 } },
    { "N7 W3 no shuffle", 7, 3, NO_SHUFFLE, PAD, 0, 0, 3, { 0, 3, 6, 1, 4, 0, 2, 5, 1 } },
    { "N3 W4 fewer samples than ranks", 3, 4, SHUFFLE, PAD, 0, 0, 1, { 2, 0, 1, 2 } },
    { "N2 W5 padding cycles", 2, 5, SHUFFLE, PAD, 0, 0, 1, { 0, 1, 0, 1, 0 } },
    { "N1 W4 padding cycles", 1, 4, SHUFFLE, PAD, 0, 0, 1, { 0, 0, 0, 0 } },
    { "N3 W8 padding cycles", 3, 8, SHUFFLE, PAD, 0, 0, 1, { 2, 0, 1, 2, 0, 1, 2, 0 } },
    { "N3 W4 drop_last leaves nothing", 3, 4, SHUFFLE, DROP, 0, 0, 0, { 0 } },
    { "N8 W4 drop_last with nothing to drop", 8, 4, SHUFFLE, DROP, 8, 0, 2, { 3, 2, 6, 1, 5, 4, 7, 0 } },
    { "N8 W4 seed and epoch add up", 8, 4, SHUFFLE, PAD, 5, 3, 2, { 3, 2, 6, 1, 5, 4, 7, 0 } },
    { "N0 W3 gives nothing", 0, 3, SHUFFLE, PAD, 0, 0, 0, { 0 } },
};

static void check_deal(void **state)
{
    const struct deal_case *c = *state;
    for (int rank = 0; rank < c->world_size; rank++) {
        zb_sampler_config config = { .dataset_size = c->size,
                                     .world_size = c->world_size,
                                     .rank = rank,
                                     .shuffle = c->shuffle,
                                     .drop_last = c->drop_last,
                                     .seed = c->seed };
        assert_int_equal(zb_sampler_length(&config), c->length);
        int64_t got[17];
        memset(got, 0xee, sizeof got);
        const int64_t canary = got[16];
        assert_int_equal(zb_sampler_indices(&config, c->epoch, got), ZB_OK);
        assert_memory_equal(got, c->want + rank * c->length, (size_t)c->length * sizeof got[0]);
        assert_true(got[c->length] == canary);
    }
}

static const struct hash_case {
    const char *name;
    int world_size, rank, drop_last;
    int64_t epoch, length;
    int64_t head[6]; /* 0 in the first place: not compared */
    int64_t tail[3];
    uint64_t hash; /* h = h * 1000003 + x */
} hash_cases[] = {
    { "N50000 W4 r0",
      4,
      0,
      PAD,
      0,
      12500,
      { 36044, 6091, 24681, 23932, 24936, 43846 },
      { 30847, 24805, 2642 },
      UINT64_C(3995992177942984571) },
    { "N50000 W4 r3",
      4,
      3,
      PAD,
      0,
      12500,
      { 11341, 28026, 20152, 3486, 35926, 34981 },
      { 42220, 5977, 31476 },
      UINT64_C(3501153335977392754) },
    { "N50000 W4 r0 epoch 1", 4, 0, PAD, 1, 12500, { 0 }, { 0 }, UINT64_C(861702396608747181) },
    { "N50000 W3 r0", 3, 0, PAD, 0, 16667, { 0 }, { 0 }, UINT64_C(9618499707367310081) },
    { "N50000 W3 r2", 3, 2, PAD, 0, 16667, { 0 }, { 0 }, UINT64_C(2369943633731151607) },
    { "N50000 W3 r0 drop_last", 3, 0, DROP, 0, 16666, { 0 }, { 0 }, UINT64_C(6389924149116174989) },
};

static void check_hash(void **state)
{
    const struct hash_case *c = *state;
    zb_sampler_config config = { .dataset_size = 50000,
                                 .world_size = c->world_size,
                                 .rank = c->rank,
                                 .shuffle = 1,
                                 .drop_last = c->drop_last };
    assert_int_equal(zb_sampler_length(&config), c->length);
    int64_t *got = malloc((size_t)c->length * sizeof *got);
    assert_non_null(got);
    assert_int_equal(zb_sampler_indices(&config, c->epoch, got), ZB_OK);
    uint64_t hash = 0;
    for (int64_t k = 0; k < c->length; k++) hash = hash * 1000003 + (uint64_t)got[k];
    assert_true(hash == c->hash);
    if (c->head[0] != 0) {
        assert_memory_equal(got, c->head, sizeof c->head);
        assert_memory_equal(got + c->length - 3, c->tail, sizeof c->tail);
    }
    free(got);
}

static const struct refused_case {
    const char *name;
    zb_sampler_config config;
    const char *says[2];
} refused_cases[] = {
    { "refused: world 0", { .dataset_size = 10, .world_size = 0 }, { "world_size is 0", ">= 1" } },
    { "refused: world -2", { .dataset_size = 10, .world_size = -2 }, { "world_size is -2", ">= 1" } },
    { "refused: rank -1", { .dataset_size = 10, .world_size = 2, .rank = -1 }, { "rank is -1", "0..1" } },
    { "refused: rank = world", { .dataset_size = 10, .world_size = 2, .rank = 2 }, { "rank is 2", "0..1" } },
    { "refused: size -1",
      { .dataset_size = -1, .world_size = 2 },
      { "dataset_size is -1", "0..4294967296" } },
    { "refused: size 2^32 + 1",
      { .dataset_size = (INT64_C(1) << 32) + 1, .world_size = 2 },
      { "dataset_size is 4294967297", "0..4294967296" } },
};

static void check_refused(void **state)
{
    const struct refused_case *c = *state;
    int64_t untouched = 77;
    assert_int_equal(zb_sampler_indices(&c->config, 0, &untouched), ZB_INVALID_ARGUMENT);
    assert_int_equal(untouched, 77);
    for (int i = 0; i < 2; i++) assert_non_null(strstr(zb_error_message(), c->says[i]));
    assert_int_equal(zb_sampler_length(&c->config), -1);
}

/* How often each sample is given out over all ranks, the padding's share known beforehand. */
static void check_shards(int64_t size, int world_size, int shuffle, int drop_last)
{
    int64_t order[64], shard[64], places[128];
    zb_sampler_config config = {
        .dataset_size = size, .world_size = 1, .shuffle = shuffle, .drop_last = drop_last, .seed = 9
    };
    assert_int_equal(zb_sampler_indices(&config, 2, order), ZB_OK);

    config.world_size = world_size;
    int64_t length = zb_sampler_length(&config);
    for (config.rank = 0; config.rank < world_size; config.rank++) {
        assert_int_equal(zb_sampler_length(&config), length);
        assert_int_equal(zb_sampler_indices(&config, 2, shard), ZB_OK);
        for (int64_t k = 0; k < length; k++) places[k * world_size + config.rank] = shard[k];
    }

    int64_t total = length * world_size;
    if (drop_last)
        assert_true(total <= size && total > size - world_size);
    else
        assert_true(total >= size && total < size + world_size);
    for (int64_t p = 0; p < total; p++) assert_int_equal(places[p], order[p % size]);

    /* `order` itself holds every sample once. */
    int seen[64] = { 0 };
    for (int64_t i = 0; i < size; i++) {
        assert_in_range(order[i], 0, size - 1);
        assert_int_equal(seen[order[i]]++, 0);
        if (!shuffle) assert_int_equal(order[i], i);
    }
}

static void shards_are_the_whole_set_and_the_padding(void **state)
{
    (void)state;
    for (int64_t size = 0; size <= 40; size++)
        for (int world_size = 1; world_size <= 9; world_size++)
            for (int flags = 0; flags < 4; flags++) check_shards(size, world_size, flags & 1, flags >> 1);
}

static void allocation_failure_is_reported(void **state)
{
    (void)state;
    zb_sampler_config config = { .dataset_size = 10, .world_size = 1, .shuffle = 1 };
    uint64_t live = zb_alloc_get_stats().live;
    int64_t got[10];
    int n = 0;
    for (;; n++) {
        zb_alloc_fail_at(n);
        zb_status status = zb_sampler_indices(&config, 0, got);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(zb_alloc_get_stats().live, live);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (!fired) break;
    }
    assert_true(n > 0);
}

#define ADD_CASES(table, check)                                                                              \
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) tests[count++] = (struct CMUnitTest)         \
        {                                                                                                    \
            table[i].name, check, NULL, NULL, (void *)&table[i]                                              \
        }

int main(void)
{
    static const struct CMUnitTest single[] = {
        cmocka_unit_test(shards_are_the_whole_set_and_the_padding),
        cmocka_unit_test(allocation_failure_is_reported),
    };
    struct CMUnitTest tests[64];
    size_t count = sizeof single / sizeof single[0];
    memcpy(tests, single, sizeof single);
    ADD_CASES(deal_cases, check_deal);
    ADD_CASES(hash_cases, check_hash);
    ADD_CASES(refused_cases, check_refused);
    return _cmocka_run_group_tests("sampler", tests, count, NULL, NULL);
}
