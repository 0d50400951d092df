/* Reductions that are kept: found again by an equal call, derived anew when any field that matters differs.
 */
#include "tests/orders/support.h"

#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

#include "orders/cache.h"

#define NCCL "nccl-ring version=2.28 protocol=simple channels=2"

static const size_t counts[4] = { 5, 0, 7, 3 }, other_counts[4] = { 5, 0, 3, 7 };

static zb_status find(zb_reduction_cache *cache, const char *source_text, const zb_reduction_call *call,
                      const zb_reduction **reduction_p)
{
    zb_order_source source = source_of(source_text);
    const zb_status status = zb_reduction_cache_find(cache, &source, call, reduction_p);
    zb_order_source_destroy(&source); /* the cache has a copy */
    return status;
}

static const zb_reduction *found(zb_reduction_cache *cache, const char *source, const zb_reduction_call *call)
{
    const zb_reduction *reduction = NULL;
    assert_ok(find(cache, source, call, &reduction));
    assert_non_null(reduction);
    assert_ok(zb_reduction_check(reduction));
    return reduction;
}

#define ALL_REDUCE .kind = ZB_COLLECTIVE_ALL_REDUCE, .world_size = 4, .numel = 1000, .dtype = ZB_FP32

/* Two calls, and whether they are one for the cache. */
static const struct pair {
    const char *name, *source_a, *source_b;
    zb_reduction_call a, b;
    int same;
} pairs[] = {
    { "the same", "mpi-ring", "mpi-ring", { ALL_REDUCE }, { ALL_REDUCE }, 1 },
    { "the same text of NCCL",
      NCCL " ring=0,1,2,3",
      NCCL " ring=0,1,2,3",
      { ALL_REDUCE },
      { ALL_REDUCE },
      1 },
    { "factor of a sum", "mpi-ring", "mpi-ring", { ALL_REDUCE }, { ALL_REDUCE, .factor = 2 }, 1 },
    { "root of an all_reduce", "mpi-ring", "mpi-ring", { ALL_REDUCE }, { ALL_REDUCE, .root = 2 }, 1 },
    { "numel where there are counts",
      "mpi-ring",
      "mpi-ring",
      { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .world_size = 4, .counts = counts },
      { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .world_size = 4, .counts = counts, .numel = 9 },
      1 },
    { "kind",
      "mpi-ring",
      "mpi-ring",
      { ALL_REDUCE },
      { .kind = ZB_COLLECTIVE_REDUCE_SCATTER, .world_size = 4, .numel = 1000, .dtype = ZB_FP32 },
      0 },
    { "world size",
      "mpi-ring",
      "mpi-ring",
      { ALL_REDUCE },
      { .kind = ZB_COLLECTIVE_ALL_REDUCE, .world_size = 3, .numel = 1000, .dtype = ZB_FP32 },
      0 },
    { "numel",
      "mpi-ring",
      "mpi-ring",
      { ALL_REDUCE },
      { .kind = ZB_COLLECTIVE_ALL_REDUCE, .world_size = 4, .numel = 1001, .dtype = ZB_FP32 },
      0 },
    { "dtype",
      "mpi-ring",
      "mpi-ring",
      { ALL_REDUCE },
      { .kind = ZB_COLLECTIVE_ALL_REDUCE, .world_size = 4, .numel = 1000, .dtype = ZB_BF16 },
      0 },
    { "op", "mpi-ring", "mpi-ring", { ALL_REDUCE }, { ALL_REDUCE, .op = ZB_AVG }, 0 },
    { "factor",
      "mpi-ring",
      "mpi-ring",
      { ALL_REDUCE, .op = ZB_PREMUL_SUM, .factor = 0.5 },
      { ALL_REDUCE, .op = ZB_PREMUL_SUM, .factor = 0.25 },
      0 },
    { "sign of a factor of zero",
      "mpi-ring",
      "mpi-ring",
      { ALL_REDUCE, .op = ZB_PREMUL_SUM, .factor = 0.0 },
      { ALL_REDUCE, .op = ZB_PREMUL_SUM, .factor = -0.0 },
      0 },
    { "counts",
      "mpi-ring",
      "mpi-ring",
      { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .world_size = 4, .counts = counts },
      { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .world_size = 4, .counts = other_counts },
      0 },
    { "root of a reduce",
      "mpi-default",
      "mpi-default",
      { .kind = ZB_COLLECTIVE_REDUCE, .world_size = 4, .numel = 10 },
      { .kind = ZB_COLLECTIVE_REDUCE, .world_size = 4, .numel = 10, .root = 1 },
      0 },
    { "algorithm", "mpi-ring", "mpi-linear", { ALL_REDUCE }, { ALL_REDUCE }, 0 },
    { "version",
      NCCL,
      "nccl-ring version=2.29 protocol=simple channels=2",
      { ALL_REDUCE },
      { ALL_REDUCE },
      0 },
    { "protocol", NCCL, "nccl-ring version=2.28 protocol=ll channels=2", { ALL_REDUCE }, { ALL_REDUCE }, 0 },
    { "channels",
      NCCL,
      "nccl-ring version=2.28 protocol=simple channels=4",
      { ALL_REDUCE },
      { ALL_REDUCE },
      0 },
    { "used channels", NCCL, NCCL " used-channels=1", { ALL_REDUCE }, { ALL_REDUCE }, 0 },
    { "threads", NCCL, NCCL " threads=256", { ALL_REDUCE }, { ALL_REDUCE }, 0 },
    { "chunk bytes", NCCL, NCCL " chunk-bytes=65536", { ALL_REDUCE }, { ALL_REDUCE }, 0 },
    { "fusion", NCCL, NCCL " fusion=unfused", { ALL_REDUCE }, { ALL_REDUCE }, 0 },
    { "a ring", NCCL, NCCL " ring=0,1,2,3", { ALL_REDUCE }, { ALL_REDUCE }, 0 },
    { "another ring", NCCL " ring=0,1,2,3", NCCL " ring=0,2,1,3", { ALL_REDUCE }, { ALL_REDUCE }, 0 },
    { "one more ring",
      NCCL " ring=0,1,2,3",
      NCCL " ring=0,1,2,3 ring=0,2,1,3",
      { ALL_REDUCE },
      { ALL_REDUCE },
      0 },
    { "another tree",
      "nccl-tree version=2.28 protocol=simple channels=1 tree=1/-1/-1,2/-1/-1,3/-1/-1,-1/-1/-1",
      "nccl-tree version=2.28 protocol=simple channels=1 tree=1/2/-1,-1/-1/-1,3/-1/-1,-1/-1/-1",
      { ALL_REDUCE },
      { ALL_REDUCE },
      0 },
};

static void check_pair(void **state)
{
    const struct pair *p = *state;
    const uint64_t live = zb_alloc_get_stats().live;
    zb_reduction_cache cache = { 0 };
    const zb_reduction *a = found(&cache, p->source_a, &p->a), *b = found(&cache, p->source_b, &p->b);
    assert_int_equal(a == b, p->same);
    assert_int_equal(cache.count, p->same ? 1 : 2);
    assert_ptr_equal(found(&cache, p->source_a, &p->a), a);
    assert_ptr_equal(found(&cache, p->source_b, &p->b), b);
    zb_reduction want = derived(p->source_b, &p->b); /* it is that of its own call */
    assert_int_equal(b->world_size, want.world_size);
    assert_int_equal(b->dtype, want.dtype);
    assert_int_equal(b->numel, want.numel);
    assert_int_equal(b->range_count, want.range_count);
    assert_memory_equal(b->ranges, want.ranges, want.range_count * sizeof *want.ranges);
    assert_true(b->rounding.factor == want.rounding.factor && b->rounding.divisor == want.rounding.divisor);
    zb_reduction_destroy(&want);
    zb_reduction_cache_destroy(&cache);
    assert_int_equal(cache.count, 0);
    zb_reduction_cache_destroy(&cache); /* fine to repeat */
    assert_int_equal(zb_alloc_get_stats().live, live);
}

static void test_finding_allocates_nothing(void **state)
{
    (void)state;
    zb_reduction_cache cache = { 0 };
    zb_order_source source = source_of(NCCL " ring=0,2,1,3");
    const zb_reduction_call call = { ALL_REDUCE };
    const zb_reduction *first, *again;
    assert_ok(zb_reduction_cache_find(&cache, &source, &call, &first));
    const uint64_t calls = zb_alloc_get_stats().calls;
    assert_ok(zb_reduction_cache_find(&cache, &source, &call, &again));
    assert_int_equal(zb_alloc_get_stats().calls, calls);
    assert_ptr_equal(first, again);
    zb_order_source_destroy(&source);
    zb_reduction_cache_destroy(&cache);
}

/* The caller's counts may become those of the next call. */
static void test_counts_are_copied(void **state)
{
    (void)state;
    zb_reduction_cache cache = { 0 };
    size_t own[4];
    memcpy(own, counts, sizeof own);
    const zb_reduction_call call = { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .world_size = 4, .counts = own };
    const zb_reduction *first = found(&cache, "mpi-ring", &call);
    memcpy(own, other_counts, sizeof own);
    assert_ptr_not_equal(found(&cache, "mpi-ring", &call), first);
    const zb_reduction_call same = { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V,
                                     .world_size = 4,
                                     .counts = counts };
    assert_ptr_equal(found(&cache, "mpi-ring", &same), first);
    zb_reduction_cache_destroy(&cache);
}

enum { MANY = 200 };

static zb_reduction_call call_number(int i)
{
    return (zb_reduction_call){
        .kind = ZB_COLLECTIVE_ALL_REDUCE, .world_size = 2 + i % 7, .numel = (size_t)i, .dtype = ZB_FP32
    };
}

static void test_growth_keeps_all(void **state)
{
    (void)state;
    zb_reduction_cache cache = { 0 };
    const zb_reduction *all[MANY];
    for (int i = 0; i < MANY; i++) {
        const zb_reduction_call call = call_number(i);
        all[i] = found(&cache, "mpi-ring", &call);
        assert_int_equal(cache.count, i + 1);
        assert_true(cache.bucket_count >= cache.count &&
                    (cache.bucket_count & (cache.bucket_count - 1)) == 0);
    }
    for (int i = 0; i < MANY; i++) {
        const zb_reduction_call call = call_number(i);
        assert_ptr_equal(found(&cache, "mpi-ring", &call), all[i]);
    }
    assert_int_equal(cache.count, MANY);
    zb_reduction_cache_destroy(&cache);
}

/* What failed is not kept, what was there stays, and the next try succeeds. `before`: entries that are there;
 * with 16 of them the table must grow too. */
static void check_allocation_failures(int before)
{
    static const char ring[] = NCCL " ring=0,2,1,3";
    const zb_reduction_call call = { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V,
                                     .world_size = 4,
                                     .counts = counts };
    int64_t n = 0;
    for (int fired = 1; fired; n++) {
        const uint64_t live = zb_alloc_get_stats().live;
        zb_reduction_cache cache = { 0 };
        for (int i = 0; i < before; i++) {
            const zb_reduction_call other = call_number(i);
            found(&cache, "mpi-ring", &other);
        }
        const zb_reduction *reduction = NULL, *with_ring = NULL;
        zb_order_source source = source_of(ring), plain = source_of("mpi-ring");
        const zb_reduction_call all_reduce = { ALL_REDUCE };
        zb_alloc_fail_at(n);
        zb_status status = zb_reduction_cache_find(&cache, &source, &all_reduce, &with_ring);
        if (status == ZB_OK) status = zb_reduction_cache_find(&cache, &plain, &call, &reduction);
        fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (fired) assert_true(with_ring == NULL || reduction == NULL);
        assert_int_equal(cache.count, before + (with_ring != NULL) + (reduction != NULL));
        for (int i = 0; i < before; i++) {
            const zb_reduction_call other = call_number(i);
            found(&cache, "mpi-ring", &other);
        }
        found(&cache, ring, &all_reduce);
        found(&cache, "mpi-ring", &call);
        assert_int_equal(cache.count, before + 2);
        zb_order_source_destroy(&source);
        zb_order_source_destroy(&plain);
        zb_reduction_cache_destroy(&cache);
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
    assert_true(n > 8);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    check_allocation_failures(0);
    check_allocation_failures(15);
    check_allocation_failures(16);
}

static void test_refusals_are_passed_on(void **state)
{
    (void)state;
    const uint64_t live = zb_alloc_get_stats().live;
    zb_reduction_cache cache = { 0 };
    const zb_reduction *reduction = NULL;
    const zb_reduction_call call = { .kind = ZB_COLLECTIVE_REDUCE, .world_size = 4, .numel = 3 };
    for (int i = 0; i < 2; i++) { /* the second time too */
        assert_int_equal(find(&cache, "mpi-ring", &call, &reduction), ZB_UNSUPPORTED);
        assert_non_null(strstr(zb_error_message(), "mpi-ring does not offer reduce of 4 ranks"));
    }
    assert_null(reduction);
    assert_int_equal(cache.count, 0);
    zb_reduction_cache_destroy(&cache);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

static void test_collectives(void **state)
{
    (void)state;
    zb_order_source ring = source_of("mpi-ring"), linear = source_of("mpi-linear");
    const struct {
        zb_collective call;
        int derived;
    } rows[] = {
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 8, .order = &ring }, 1 },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 8, .op = ZB_AVG, .order = &ring }, 1 },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 8, .op = ZB_PREMUL_SUM, .factor = 3, .order = &ring },
          1 },
        { { .kind = ZB_COLLECTIVE_REDUCE_SCATTER, .numel = 8, .order = &ring }, 1 },
        { { .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .counts = counts, .order = &ring }, 1 },
        { { .kind = ZB_COLLECTIVE_REDUCE, .numel = 8, .root = 3, .order = &linear }, 1 },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 8 }, 0 },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 8, .op = ZB_MIN, .order = &ring }, 0 },
        { { .kind = ZB_COLLECTIVE_ALL_REDUCE, .numel = 8, .op = ZB_MAX, .order = &ring }, 0 },
        { { .kind = ZB_COLLECTIVE_ALL_GATHER, .numel = 8, .order = &ring }, 0 },
        { { .kind = ZB_COLLECTIVE_BROADCAST, .numel = 8, .order = &ring }, 0 },
        { { .kind = ZB_COLLECTIVE_BARRIER, .order = &ring }, 0 },
    };
    zb_reduction_cache cache = { 0 };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const zb_reduction *reduction = (const zb_reduction *)&cache; /* must be overwritten */
        assert_ok(zb_reduction_of_collective(&cache, &rows[i].call, 4, &reduction));
        assert_int_equal(reduction != NULL, rows[i].derived);
        if (reduction == NULL) continue;
        assert_int_equal(reduction->world_size, 4);
        assert_true(reduction->rounding.divisor == (rows[i].call.op == ZB_AVG ? 4 : 0));
        if (rows[i].call.op == ZB_PREMUL_SUM) assert_true(reduction->rounding.factor == 3);
    }
    assert_int_equal(cache.count, 6);
    zb_reduction_cache_destroy(&cache);
    zb_order_source_destroy(&ring);
    zb_order_source_destroy(&linear);
}

int main(void)
{
    enum { PAIRS = sizeof pairs / sizeof pairs[0] };
    struct CMUnitTest pair_tests[PAIRS];
    for (size_t i = 0; i < PAIRS; i++)
        pair_tests[i] = (struct CMUnitTest){ pairs[i].name, check_pair, NULL, NULL, (void *)&pairs[i] };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finding_allocates_nothing), cmocka_unit_test(test_counts_are_copied),
        cmocka_unit_test(test_growth_keeps_all),          cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_refusals_are_passed_on),    cmocka_unit_test(test_collectives),
    };
    int failed = cmocka_run_group_tests_name("pairs of calls", pair_tests, NULL, NULL);
    return failed + cmocka_run_group_tests_name("orders_cache", tests, NULL, NULL);
}
