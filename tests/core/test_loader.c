/*
 * The loader over a data set whose samples tell their index: which samples come in which batch, in this epoch
 * and the next, and that what was fetched belongs to them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>
#include <zerobit/data.h>
#include <zerobit/memory.h>

/* --- a data set: input (index, -index), label index mod 3, target (index + 0.5, 2 index, -1) --- */

static void telling_fetch(const zb_dataset *dataset, int64_t index, float *input, int32_t *label,
                          float *target)
{
    input[0] = (float)index;
    input[1] = -(float)index;
    if (dataset->classes > 0) {
        *label = (int32_t)(index % 3);
        assert_null(target);
    } else {
        target[0] = (float)index + 0.5f;
        target[1] = 2.0f * (float)index;
        target[2] = -1.0f;
        assert_null(label);
    }
}

static void telling_destroy(zb_dataset *dataset)
{
    (void)dataset;
}

static const zb_dataset_ops telling_ops = { .fetch = telling_fetch, .destroy = telling_destroy };

static zb_dataset telling_dataset(int64_t size, int classification)
{
    return (zb_dataset){ .ops = &telling_ops,
                         .size = size,
                         .input = { .dims = 1, .extent = { 2 } },
                         .classes = classification ? 3 : 0,
                         .target_numel = classification ? 0 : 3 };
}

/* --- which samples --- */

static const struct stream_case {
    const char *name;
    int64_t size;
    zb_loader_config config;
    int64_t length;
    struct {
        int64_t epoch, rows, indices[6];
    } batches[8]; /* up to the first without rows */
} stream_cases[] = {
    { "N10 W2 r0: every epoch alike",
      10,
      { .micro_batch_size = 2, .world_size = 2, .rank = 0, .shuffle = 1 },
      3,
      { { 0, 2, { 4, 7 } },
        { 0, 2, { 3, 0 } },
        { 0, 1, { 6 } },
        { 1, 2, { 4, 7 } },
        { 1, 2, { 3, 0 } },
        { 1, 1, { 6 } },
        { 2, 2, { 4, 7 } } } },
    { "N10 W2 r1: every epoch alike",
      10,
      { .micro_batch_size = 2, .world_size = 2, .rank = 1, .shuffle = 1 },
      3,
      { { 0, 2, { 1, 5 } }, { 0, 2, { 9, 8 } }, { 0, 1, { 2 } }, { 1, 2, { 1, 5 } } } },
    { "N10 W2 r0 drop_last: the short batch is left out",
      10,
      { .micro_batch_size = 2, .world_size = 2, .rank = 0, .shuffle = 1, .drop_last = 1 },
      2,
      { { 0, 2, { 4, 7 } }, { 0, 2, { 3, 0 } }, { 1, 2, { 4, 7 } } } },
    { "N10 W2 r0 reshuffle: epoch e is seed + e",
      10,
      { .micro_batch_size = 2, .world_size = 2, .rank = 0, .shuffle = 1, .reshuffle = 1 },
      3,
      { { 0, 2, { 4, 7 } },
        { 0, 2, { 3, 0 } },
        { 0, 1, { 6 } },
        { 1, 2, { 5, 1 } },
        { 1, 2, { 0, 9 } },
        { 1, 1, { 7 } } } },
    { "N10 W2 r1 seed 1",
      10,
      { .micro_batch_size = 5, .world_size = 2, .rank = 1, .shuffle = 1, .seed = 1 },
      1,
      { { 0, 5, { 6, 2, 8, 3, 4 } }, { 1, 5, { 6, 2, 8, 3, 4 } } } },
    { "N10 W4 drop_last: the sampler pads all the same",
      10,
      { .micro_batch_size = 3, .world_size = 4, .rank = 2, .shuffle = 1, .drop_last = 1 },
      1,
      { { 0, 3, { 7, 0, 4 } } } },
    { "no shuffle, reshuffle changes nothing",
      7,
      { .micro_batch_size = 2, .world_size = 3, .rank = 1, .reshuffle = 1 },
      2,
      { { 0, 2, { 1, 4 } }, { 0, 1, { 0 } }, { 1, 2, { 1, 4 } } } },
    { "batch larger than the epoch",
      5,
      { .micro_batch_size = INT64_MAX, .world_size = 1, .rank = 0, .shuffle = 1 },
      1,
      { { 0, 5, { 4, 0, 1, 3, 2 } }, { 1, 5, { 4, 0, 1, 3, 2 } } } },
};

static void check_stream(void **state)
{
    const struct stream_case *c = *state;
    zb_dataset dataset = telling_dataset(c->size, 1);
    zb_loader *loader = NULL;
    assert_int_equal(zb_loader_create(&dataset, &c->config, &loader), ZB_OK);
    assert_int_equal(zb_loader_length(loader), c->length);
    assert_int_equal(zb_loader_epoch(loader), 0);
    for (int b = 0; b < 8 && c->batches[b].rows > 0; b++) {
        zb_batch batch;
        assert_int_equal(zb_loader_next(loader, &batch), ZB_OK);
        assert_int_equal(zb_loader_epoch(loader), c->batches[b].epoch);
        assert_int_equal(batch.rows, c->batches[b].rows);
        for (int64_t row = 0; row < batch.rows; row++)
            assert_int_equal(batch.indices[row], c->batches[b].indices[row]);
    }
    zb_loader_destroy(loader);
}

/* --- what is in a batch --- */

static void check_contents(void **state)
{
    const int classification = *(const int *)*state;
    zb_dataset dataset = telling_dataset(11, classification);
    zb_loader_config config = {
        .micro_batch_size = 4, .world_size = 2, .rank = 1, .shuffle = 1, .seed = 3, .reshuffle = 1
    };
    zb_loader *loader = NULL;
    assert_int_equal(zb_loader_create(&dataset, &config, &loader), ZB_OK);
    for (int b = 0; b < 9; b++) {
        zb_batch batch;
        assert_int_equal(zb_loader_next(loader, &batch), ZB_OK);
        assert_int_equal(batch.labels != NULL, classification);
        assert_int_equal(batch.targets != NULL, !classification);
        for (int64_t row = 0; row < batch.rows; row++) {
            float index = (float)batch.indices[row];
            assert_true(batch.inputs[2 * row] == index && batch.inputs[2 * row + 1] == -index);
            if (classification) {
                assert_int_equal(batch.labels[row], batch.indices[row] % 3);
            } else {
                const float *target = batch.targets + 3 * row;
                assert_true(target[0] == index + 0.5f && target[1] == 2.0f * index && target[2] == -1.0f);
            }
        }
    }
    zb_loader_destroy(loader);
}

/* --- refusals --- */

static const struct refused_case {
    const char *name;
    int64_t size;
    zb_loader_config config;
    const char *says[3];
} refused_cases[] = {
    { "refused: micro batch 0",
      10,
      { .micro_batch_size = 0, .world_size = 1 },
      { "micro_batch_size is 0", ">= 1", "" } },
    { "refused: micro batch -3",
      10,
      { .micro_batch_size = -3, .world_size = 1 },
      { "micro_batch_size is -3", ">= 1", "" } },
    { "refused: world 0", 10, { .micro_batch_size = 1, .world_size = 0 }, { "world_size is 0", ">= 1", "" } },
    { "refused: rank 3 of 3",
      10,
      { .micro_batch_size = 1, .world_size = 3, .rank = 3 },
      { "rank is 3", "0..2", "" } },
    { "refused: empty data set",
      0,
      { .micro_batch_size = 4, .world_size = 2 },
      { "0 samples among 2 ranks", "are 0 for each", "at least 1" } },
    { "refused: drop_last would drop everything",
      10,
      { .micro_batch_size = 4, .world_size = 4, .drop_last = 1 },
      { "10 samples among 4 ranks", "are 3 for each", "at least 4 (one full micro batch" } },
};

static void check_refused(void **state)
{
    const struct refused_case *c = *state;
    zb_dataset dataset = telling_dataset(c->size, 1);
    zb_loader *loader = NULL;
    uint64_t live = zb_alloc_get_stats().live;
    assert_int_equal(zb_loader_create(&dataset, &c->config, &loader), ZB_INVALID_ARGUMENT);
    assert_null(loader);
    for (int i = 0; i < 3; i++) assert_non_null(strstr(zb_error_message(), c->says[i]));
    assert_int_equal(zb_alloc_get_stats().live, live);
}

/* --- memory --- */

static void allocation_failures_leave_nothing(void **state)
{
    (void)state;
    for (int classification = 0; classification < 2; classification++) {
        zb_dataset dataset = telling_dataset(10, classification);
        zb_loader_config config = { .micro_batch_size = 2, .world_size = 2, .shuffle = 1 };
        uint64_t live = zb_alloc_get_stats().live;
        int n = 0;
        for (;; n++) {
            zb_loader *loader = NULL;
            zb_alloc_fail_at(n);
            zb_status status = zb_loader_create(&dataset, &config, &loader);
            int fired = zb_alloc_fault_fired();
            zb_alloc_fail_at(-1);
            assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
            assert_int_equal(loader == NULL, fired);
            zb_loader_destroy(loader);
            assert_int_equal(zb_alloc_get_stats().live, live);
            if (!fired) break;
        }
        assert_int_equal(n, 5); /* the loader, order, indices, inputs, labels or targets */
    }
}

static void next_allocates_nothing(void **state)
{
    (void)state;
    zb_dataset dataset = telling_dataset(10, 1);
    zb_loader_config config = { .micro_batch_size = 2, .world_size = 2, .shuffle = 1, .reshuffle = 1 };
    zb_loader *loader = NULL;
    assert_int_equal(zb_loader_create(&dataset, &config, &loader), ZB_OK);
    uint64_t calls = zb_alloc_get_stats().calls;
    for (int b = 0; b < 10; b++) {
        zb_batch batch;
        assert_int_equal(zb_loader_next(loader, &batch), ZB_OK);
    }
    assert_int_equal(zb_loader_epoch(loader), 3);
    assert_int_equal(zb_alloc_get_stats().calls, calls);
    zb_loader_destroy(loader);
}

/* A thousand ranks share this machine: 4 bytes per sample and rank, no more. */
static void rank_holds_four_bytes_per_sample(void **state)
{
    (void)state;
    zb_dataset dataset = telling_dataset(50000, 1);
    zb_loader_config config = { .micro_batch_size = 4, .world_size = 1024, .shuffle = 1, .reshuffle = 1 };
    uint64_t before = zb_alloc_get_stats().live_bytes;
    zb_loader *loader = NULL;
    assert_int_equal(zb_loader_create(&dataset, &config, &loader), ZB_OK);
    assert_in_range(zb_alloc_get_stats().live_bytes - before, 200000, 201000);
    zb_loader_destroy(loader);
    assert_int_equal(zb_alloc_get_stats().live_bytes, before);
}

#define ADD_CASES(table, check)                                                                              \
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) tests[count++] = (struct CMUnitTest)         \
        {                                                                                                    \
            table[i].name, check, NULL, NULL, (void *)&table[i]                                              \
        }

int main(void)
{
    static int regression = 0, classification = 1;
    static const struct CMUnitTest single[] = {
        cmocka_unit_test_prestate(check_contents, &regression),
        cmocka_unit_test_prestate(check_contents, &classification),
        cmocka_unit_test(allocation_failures_leave_nothing),
        cmocka_unit_test(next_allocates_nothing),
        cmocka_unit_test(rank_holds_four_bytes_per_sample),
    };
    struct CMUnitTest tests[64];
    size_t count = sizeof single / sizeof single[0];
    memcpy(tests, single, sizeof single);
    ADD_CASES(stream_cases, check_stream);
    ADD_CASES(refused_cases, check_refused);
    return _cmocka_run_group_tests("loader", tests, count, NULL, NULL);
}
