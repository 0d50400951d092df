/* The emulation itself: mistakes that a GPU might forgive for years are found and named. Kernels are C
 * functions here. */
#include <string.h>

#include "sim/simt/simt.h"
#include "tests/kernels/support.h"

enum { THREADS = 96, BLOCKS = 7 };

typedef struct scene {
    unsigned order[BLOCKS * THREADS], ran; /* block * THREADS + thread, as they came */
    unsigned sums[BLOCKS];
    const char *source;
    void *target;
} scene;

static unsigned thread(void)
{
    return sim_simt_here->thread.x;
}

static zb_status run_with(void (*body)(void *), scene *s, unsigned blocks, size_t shared_bytes)
{
    const sim_simt_launch launch = { "a_kernel",        "here.cu",    7,    { blocks, 1, 1 },
                                     { THREADS, 1, 1 }, shared_bytes, body, s };
    return sim_simt_run(&launch);
}

static void expect_failure(void (*body)(void *), const char *words)
{
    scene s = { .ran = 0 };
    assert_int_equal(run_with(body, &s, 2, 256), ZB_INTERNAL);
    if (strstr(zb_error_message(), "a_kernel") == NULL || strstr(zb_error_message(), words) == NULL)
        fail_msg("\"%s\" does not name the kernel and \"%s\"", zb_error_message(), words);
}

/* --- orders --- */

static void note(void *argument)
{
    scene *s = argument;
    s->order[s->ran++] = sim_simt_here->block.x * THREADS + thread();
}

static void every_thread_runs_once_in_an_order_of_the_seed(void **state)
{
    (void)state;
    scene runs[3] = { { .ran = 0 } };
    const uint64_t seeds[] = { 5, 5, 6 };
    for (int i = 0; i < 3; i++) {
        int seen[BLOCKS * THREADS] = { 0 };
        sim_simt_set_seed(seeds[i]);
        assert_ok(run_with(note, &runs[i], BLOCKS, 0));
        assert_int_equal(runs[i].ran, BLOCKS * THREADS);
        for (unsigned k = 0; k < BLOCKS * THREADS; k++) assert_int_equal(seen[runs[i].order[k]]++, 0);
    }
    assert_memory_equal(runs[0].order, runs[1].order, sizeof runs[0].order);
    assert_memory_not_equal(runs[0].order, runs[2].order, sizeof runs[0].order);
}

/* --- barriers --- */

/* A sum over the block by shared memory, one step at a time. */
static void block_sum(void *argument, int with_barriers)
{
    scene *s = argument;
    static const char tag;
    unsigned(*values)[THREADS] = sim_simt_shared(&tag, sizeof *values);
    (*values)[thread()] = thread();
    if (with_barriers) sim_simt_barrier(__FILE__, __LINE__);
    if (thread() != 0) return;
    s->sums[sim_simt_here->block.x] = 0;
    for (unsigned t = 0; t < THREADS; t++) s->sums[sim_simt_here->block.x] += (*values)[t];
}
static void sum_with_barrier(void *argument)
{
    block_sum(argument, 1);
}
static void sum_without_barrier(void *argument)
{
    block_sum(argument, 0);
}

static void a_missing_barrier_shows(void **state)
{
    (void)state;
    scene good = { .ran = 0 }, bad = { .ran = 0 };
    assert_ok(run_with(sum_with_barrier, &good, BLOCKS, 0));
    for (int b = 0; b < BLOCKS; b++) assert_int_equal(good.sums[b], THREADS * (THREADS - 1) / 2);
    assert_ok(run_with(sum_without_barrier, &bad, BLOCKS, 0));
    assert_memory_not_equal(bad.sums, good.sums, sizeof good.sums);
}

static void some_leave(void *argument)
{
    (void)argument;
    if (thread() < 40) sim_simt_barrier(__FILE__, __LINE__);
}
static void two_places(void *argument)
{
    (void)argument;
    if (thread() < 40)
        sim_simt_barrier(__FILE__, __LINE__);
    else
        sim_simt_barrier(__FILE__, __LINE__);
}
static void half_a_warp(void *argument)
{
    (void)argument;
    if (thread() % 32 < 16) sim_simt_warp(SIM_SIMT_SYNC, ~0u, 0, 0, __FILE__, __LINE__);
}
static void outside_the_mask(void *argument)
{
    (void)argument;
    sim_simt_warp(SIM_SIMT_SYNC, 0x0000ffff, 0, 0, __FILE__, __LINE__);
}

static void divergence_is_named(void **state)
{
    (void)state;
    expect_failure(some_leave, "56 of 96 have left");
    expect_failure(two_places, "diverge");
    expect_failure(half_a_warp, "for its warp");
    expect_failure(outside_the_mask, "leave it out");
}

/* --- warps --- */

static void exchange_lanes(void *argument)
{
    scene *s = argument;
    const unsigned lane = thread() % 32, mask = lane < 20 ? 0xfffff : ~0xfffffu;
    const uint64_t other = sim_simt_warp(SIM_SIMT_VALUE, mask, thread() * 10, (lane + 1) % 32, __FILE__,
                                         __LINE__);
    const uint64_t wanted = lane == 19 || lane == 31 ? UINT64_MAX : (thread() + 1) * 10;
    const uint64_t odd = sim_simt_warp(SIM_SIMT_BALLOT, ~0u, thread() % 2, 0, __FILE__, __LINE__);
    if (other == wanted && odd == 0xaaaaaaaa) s->ran++;
}

static void lanes_exchange_values(void **state)
{
    (void)state;
    scene s = { .ran = 0 };
    assert_ok(run_with(exchange_lanes, &s, 2, 0));
    assert_int_equal(s.ran, 2 * THREADS);
}

/* --- shared memory --- */

static void read_poison(void *argument)
{
    scene *s = argument;
    static const char tag;
    unsigned char *fixed = sim_simt_shared(&tag, THREADS), *dynamic = sim_simt_dynamic_shared();
    if (fixed[thread()] == 0xff && dynamic[thread()] == 0xff) s->ran++;
    fixed[thread()] = dynamic[thread()] = 1; /* the next block must not see it */
}
static void write_behind(void *argument)
{
    (void)argument;
    if (thread() == 0) ((unsigned char *)sim_simt_dynamic_shared())[256] = 0;
}
static void too_much_shared(void *argument)
{
    (void)argument;
    static const char tag;
    sim_simt_shared(&tag, 49000);
    static const char other;
    sim_simt_shared(&other, 200);
}

static void shared_memory_is_poisoned_and_guarded(void **state)
{
    (void)state;
    scene s = { .ran = 0 };
    assert_ok(run_with(read_poison, &s, BLOCKS, THREADS));
    assert_int_equal(s.ran, BLOCKS * THREADS);
    expect_failure(write_behind, "behind a shared variable of 256");
    expect_failure(too_much_shared, "49200 bytes of shared variables");
}

static void ask_for_dynamic(void *argument)
{
    (void)argument;
    sim_simt_dynamic_shared();
}

/* --- asynchronous copies --- */

static void copy_and_wait(void *argument, int waits)
{
    scene *s = argument;
    char *to = (char *)s->target + 16 * thread();
    sim_simt_copy_async(to, s->source, 4, 8);
    sim_simt_copy_commit();
    sim_simt_copy_async(to + 8, s->source, 4, 4);
    sim_simt_copy_commit();
    sim_simt_copy_wait(1);
    if (memcmp(to, "abcd\0\0\0\0", 8) == 0 && to[8] == 'x')
        s->ran++; /* the first has arrived, the second has not */
    if (waits) sim_simt_copy_wait(0);
}
static void copies_waited_for(void *argument)
{
    copy_and_wait(argument, 1);
}
static void copies_left_behind(void *argument)
{
    copy_and_wait(argument, 0);
}

static void copies_arrive_when_waited_for(void **state)
{
    (void)state;
    char target[THREADS * 16];
    memset(target, 'x', sizeof target);
    scene s = { .source = "abcd", .target = target };
    assert_ok(run_with(copies_waited_for, &s, 1, 0));
    assert_int_equal(s.ran, THREADS);
    for (int t = 0; t < THREADS; t++) assert_memory_equal(target + 16 * t, "abcd\0\0\0\0abcdxxxx", 16);
    assert_int_equal(run_with(copies_left_behind, &s, 1, 0), ZB_INTERNAL);
    assert_non_null(strstr(zb_error_message(), "1 asynchronous copies"));
}

/* --- sizes --- */

static void sizes_that_no_gpu_takes(void **state)
{
    (void)state;
    const sim_simt_launch launches[] = {
        { "a_kernel", "here.cu", 7, { 0, 1, 1 }, { 32, 1, 1 }, 0, note, NULL },
        { "a_kernel", "here.cu", 7, { 1, 65536, 1 }, { 32, 1, 1 }, 0, note, NULL },
        { "a_kernel", "here.cu", 7, { 1, 1, 1 }, { 33, 32, 1 }, 0, note, NULL },
        { "a_kernel", "here.cu", 7, { 1, 1, 1 }, { 32, 1, 1 }, 228 * 1024, note, NULL },
    };
    for (size_t i = 0; i < sizeof launches / sizeof launches[0]; i++) {
        assert_int_equal(sim_simt_run(&launches[i]), ZB_INVALID_ARGUMENT);
        assert_non_null(strstr(zb_error_message(), "a_kernel"));
    }
    scene s = { .ran = 0 };
    assert_int_equal(run_with(ask_for_dynamic, &s, 1, 0), ZB_INTERNAL);
    assert_ok(run_with(note, &s, 1, 0)); /* a failure leaves nothing behind */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_thread_runs_once_in_an_order_of_the_seed),
        cmocka_unit_test(a_missing_barrier_shows),
        cmocka_unit_test(divergence_is_named),
        cmocka_unit_test(lanes_exchange_values),
        cmocka_unit_test(shared_memory_is_poisoned_and_guarded),
        cmocka_unit_test(copies_arrive_when_waited_for),
        cmocka_unit_test(sizes_that_no_gpu_takes),
    };
    return cmocka_run_group_tests_name("simt", tests, NULL, NULL);
}
