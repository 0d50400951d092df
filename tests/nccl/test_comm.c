/*
 * The NCCL communicator on the stand-ins: the suite that every communicator passes, with the host's buffers
 * and with device buffers on streams; and what comes of mistakes and failures.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/memory.h>

#include "engine/nccl/world.h"
#include "sim/nccl/standin.h"
#include "tests/nccl/threads.h"
#include "tests/sim/comm_suite.h"

/* --- the suite --- */

static void run_suite(thread_world world, int case_step)
{
    for (int i = 0; i < comm_suite_case_count; i += case_step) {
        const uint64_t live = zb_alloc_get_stats().live;
        thread_ends ends;
        run_threads(&world, comm_suite_cases[i].main, &world.seed, NULL, &ends);
        if (first_failure(&world, &ends) != ZB_OK)
            fail_msg("%d ranks, seed %d, %s: %s", world.size, (int)world.seed, comm_suite_cases[i].name,
                     zb_error_message());
        assert_int_equal(zb_alloc_get_stats().live, live);
    }
}

static void test_suite_host(void **state)
{
    (void)state;
    for (int size = 1; size <= 5; size++)
        run_suite((thread_world){ .size = size, .seed = (uint64_t)size }, 1);
}

static void test_suite_device(void **state)
{
    (void)state;
    for (int size = 1; size <= 5; size += 2)
        run_suite((thread_world){ .size = size, .seed = (uint64_t)size + 10, .on_device = 1 }, 1);
}

/* Many rounds for everything that is added. */
static void test_suite_small_scratch(void **state)
{
    (void)state;
    for (int size = 2; size <= 4; size += 2)
        run_suite(
            (thread_world){
                .size = size, .seed = 20, .on_device = size > 2, .scratch_bytes = 256 * (size_t)size },
            1);
}

static void test_suite_unchecked(void **state)
{
    (void)state;
    run_suite((thread_world){ .size = 3, .seed = 30, .unchecked = 1, .on_device = 1 }, 1);
}

/* --- mistakes --- */

static void assert_rank(const thread_ends *ends, int rank, zb_status status, const char *text)
{
    const zb_error *end = &ends->ranks[rank];
    if (end->status != status || strstr(end->message, text) == NULL)
        fail_msg("rank %d ended with status %d, \"%s\"; want %d and \"%s\"", rank, (int)end->status,
                 end->message, (int)status, text);
}

static zb_status add(zb_comm *comm, float *values, size_t numel, zb_work *work)
{
    return zb_collective_run(comm, work, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = values, .recv = values,
                             .numel = numel, .dtype = ZB_FP32, .what = "test");
}

typedef enum mistake_kind {
    OTHER_KIND,
    OTHER_NUMEL,
    OTHER_COUNT,
    OTHER_ROOT,
    OTHER_OP,
    OTHER_ORDER,
    OTHER_SPLIT,
    MISTAKE_COUNT
} mistake_kind;

static zb_status main_mistake(void *user, zb_comm *comm)
{
    static const zb_order_source gloo = { .algorithm = ZB_ALGORITHM_GLOO };
    const mistake_kind kind = *(mistake_kind *)user;
    const int odd = comm->rank == 1;
    const size_t counts[3] = { 1, odd && kind == OTHER_COUNT ? 2 : 1, 1 };
    float values[8] = { 0 }, other[8];
    zb_comm *part;
    ZB_TRY(add(comm, values, 4, NULL));
    if (kind == OTHER_KIND && odd)
        return zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = values, .numel = 4);
    if (kind == OTHER_SPLIT && odd) return zb_comm_split(comm, 0, 0, &part);
    if (kind == OTHER_ROOT)
        return zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = values, .numel = 4,
                                 .root = odd);
    if (kind == OTHER_COUNT)
        return zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_REDUCE_SCATTER_V, .send = values,
                                 .recv = other, .counts = counts);
    return zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = values, .recv = values,
                             .numel = odd && kind == OTHER_NUMEL ? 5 : 4,
                             .op = odd && kind == OTHER_OP ? ZB_MAX : ZB_SUM,
                             .order = odd && kind == OTHER_ORDER ? &gloo : NULL, .what = "here");
}

static void test_mismatch(void **state)
{
    static const char *const want[MISTAKE_COUNT] = {
        "kind differs: rank 0 has all_reduce, rank 1 has broadcast",
        "numel differs: rank 0 has 4, rank 1 has 5",
        "counts[1] differs: rank 0 has 1, rank 1 has 2",
        "root differs: rank 0 has 0, rank 1 has 1",
        "op differs: rank 0 has sum, rank 1 has max",
        "order differs: rank 0 has rank, rank 1 has gloo",
        "kind differs: rank 0 has all_reduce, rank 1 has split",
    };
    (void)state;
    for (int kind = 0; kind < MISTAKE_COUNT; kind++) {
        const thread_world world = { .size = 3, .seed = 40 };
        thread_ends ends;
        run_threads(&world, main_mistake, &kind, NULL, &ends);
        for (int r = 0; r < 3; r++) {
            assert_rank(&ends, r, ZB_MISMATCH, want[kind]);
            assert_rank(&ends, r, ZB_MISMATCH, "#1 of world");
        }
        if (ends.session != ZB_OK) fail_msg("%s", ends.session_message);
    }
}

static zb_status main_message_mistake(void *user, zb_comm *comm)
{
    (void)user;
    float values[4] = { 0 };
    if (comm->rank == 2) return add(comm, values, 4, NULL);
    return zb_collective_run(comm, NULL, .kind = comm->rank == 0 ? ZB_COLLECTIVE_SEND : ZB_COLLECTIVE_RECV,
                             .send = values, .recv = values, .numel = comm->rank == 0 ? 3 : 4,
                             .root = 1 - comm->rank);
}

/* A message is its two ranks'. */
static void test_message_mismatch(void **state)
{
    (void)state;
    const thread_world world = { .size = 3, .seed = 41 };
    thread_ends ends;
    run_threads(&world, main_message_mistake, NULL, NULL, &ends);
    assert_rank(&ends, 0, ZB_MISMATCH, "numel differs: rank 0 has 3, rank 1 has 4");
    assert_rank(&ends, 1, ZB_MISMATCH, "numel differs: rank 0 has 3, rank 1 has 4");
    assert_rank(&ends, 2, ZB_REMOTE, "failed: ranks called different collectives: numel differs");
}

static zb_status main_lost_work(void *user, zb_comm *comm)
{
    (void)user;
    float values[4] = { 0 };
    zb_work work = { 0 }, unknown = { .id = 77 };
    ZB_TRY(add(comm, values, 4, &work));
    ZB_TRY(zb_comm_wait(comm, &work, NULL));
    return comm->rank == 0 ? zb_comm_wait(comm, &unknown, NULL) : add(comm, values, 4, NULL);
}

static void test_unknown_work(void **state)
{
    (void)state;
    const thread_world world = { .size = 2, .seed = 42 };
    thread_ends ends;
    run_threads(&world, main_lost_work, NULL, NULL, &ends);
    assert_rank(&ends, 0, ZB_INVALID_ARGUMENT, "rank 0 waits for work 77, which it has not in flight");
    assert_rank(&ends, 1, ZB_REMOTE, "rank 0 failed: rank 0 waits for work 77");
}

static zb_status main_other_device(void *user, zb_comm *comm)
{
    (void)user;
    zb_device *cpu;
    zb_stream *stream;
    float values[4] = { 0 };
    ZB_TRY(zb_device_cpu_create(&cpu));
    zb_status status = zb_stream_create(cpu, "of the CPU", &stream);
    if (status == ZB_OK) {
        status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = values,
                                   .recv = values, .numel = 4, .stream = stream);
        zb_stream_destroy(stream);
    }
    zb_device_destroy(cpu);
    return status;
}

static void test_stream_of_another_device(void **state)
{
    (void)state;
    const thread_world world = { .size = 1, .seed = 48 };
    thread_ends ends;
    run_threads(&world, main_other_device, NULL, NULL, &ends);
    assert_rank(&ends, 0, ZB_INVALID_ARGUMENT,
                "stream of the CPU of device cpu; communicator world is of GPU 0");
}

/* --- ranks that fail, die, end or do not come --- */

static zb_status main_late(void *user, zb_comm *comm)
{
    (void)user;
    float values[4] = { 0 };
    ZB_TRY(add(comm, values, 4, NULL));
    if (comm->rank == 2) usleep(1500000);
    return add(comm, values, 4, NULL);
}

static void test_time_limit(void **state)
{
    (void)state;
    const thread_world world = { .size = 3, .seed = 43, .timeout_seconds = 0.7 };
    thread_ends ends;
    run_threads(&world, main_late, NULL, NULL, &ends);
    int found = 0;
    for (int r = 0; r < 2; r++) found += ends.ranks[r].status == ZB_DEADLOCK;
    assert_true(found >= 1);
    for (int r = 0; r < 3; r++) {
        const char *message = ends.ranks[r].message;
        if (ends.ranks[r].status == ZB_OK ||
            strstr(message, "has waited 0.7 s for other ranks in all_reduce #1 of world (test)") == NULL ||
            strstr(message, "rank 2 has not come; it came last to all_reduce #0 of a communicator (test)") ==
                NULL)
            fail_msg("rank %d: %s", r, message);
    }
}

static zb_status main_fail(void *user, zb_comm *comm)
{
    (void)user;
    float values[4] = { 0 };
    ZB_TRY(add(comm, values, 4, NULL));
    if (comm->rank == 1) return zb_fail(ZB_CORRUPT, "the disk is full of holes");
    return add(comm, values, 4, NULL);
}

static void test_rank_fails(void **state)
{
    (void)state;
    const thread_world world = { .size = 4, .seed = 44 };
    thread_ends ends;
    run_threads(&world, main_fail, NULL, NULL, &ends);
    for (int r = 0; r < 4; r++)
        assert_rank(&ends, r, r == 1 ? ZB_CORRUPT : ZB_REMOTE,
                    r == 1 ? "the disk is full of holes" : "rank 1 failed: the disk is full of holes");
    if (ends.session != ZB_OK) fail_msg("%s", ends.session_message);
}

/* As if its process were gone: nobody is told, its connections are closed, and it does nothing any more. */
static zb_status die(zb_comm *comm)
{
    nccl_world *world = ((nccl_group *)comm)->world;
    zb_nccl_lock(world);
    zb_control_destroy(world->control, 0);
    world->control = NULL;
    world->failure.set = 1;
    world->failure.status = ZB_INTERRUPTED;
    snprintf(world->failure.message, sizeof world->failure.message, "dead");
    zb_nccl_unlock(world);
    return zb_fail(ZB_INTERRUPTED, "dead");
}

static zb_status main_die(void *user, zb_comm *comm)
{
    float values[64] = { 0 };
    const int in_flight = *(int *)user;
    zb_work work = { 0 };
    ZB_TRY(add(comm, values, 4, NULL));
    if (comm->rank == 1 && !in_flight) return die(comm);
    ZB_TRY(add(comm, values, 64, &work));
    if (comm->rank == 1) return die(comm);
    ZB_TRY(zb_comm_wait(comm, &work, NULL));
    return add(comm, values, 4, NULL);
}

static void test_rank_dies(void **state)
{
    (void)state;
    for (int in_flight = 0; in_flight < 2; in_flight++) {
        const thread_world world = { .size = 3, .seed = 45 };
        thread_ends ends;
        run_threads(&world, main_die, &in_flight, NULL, &ends);
        assert_rank(&ends, 0, ZB_REMOTE, "rank 1 is gone: its connection was closed without a word");
        assert_int_equal(ends.ranks[2].status, ZB_REMOTE);
        assert_true(strstr(ends.ranks[2].message, "rank 1 is gone") != NULL);
    }
}

static zb_status main_end_early(void *user, zb_comm *comm)
{
    (void)user;
    float values[4] = { 0 };
    ZB_TRY(add(comm, values, 4, NULL));
    if (comm->rank == 0) return ZB_OK;
    return add(comm, values, 4, NULL);
}

static void test_rank_ends(void **state)
{
    (void)state;
    const thread_world world = { .size = 2, .seed = 46 };
    thread_ends ends;
    run_threads(&world, main_end_early, NULL, NULL, &ends);
    assert_int_equal(ends.ranks[0].status, ZB_OK);
    assert_rank(&ends, 1, ZB_REMOTE,
                "rank 0 has ended, and rank 1 waits for it in all_reduce #1 of world (test)");
}

static zb_status main_leave_in_flight(void *user, zb_comm *comm)
{
    (void)user;
    static float values[2][4];
    zb_work work;
    ZB_TRY(add(comm, values[comm->rank], 4, &work));
    return ZB_OK;
}

/* Nobody is left to return it to, but the other ranks hear of it. */
static void test_destroyed_in_flight(void **state)
{
    (void)state;
    const thread_world world = { .size = 2, .seed = 47 };
    thread_ends ends;
    run_threads(&world, main_leave_in_flight, NULL, NULL, &ends);
    if (ends.session != ZB_OK) fail_msg("%s", ends.session_message);
}

/* --- NCCL fails --- */

typedef struct nccl_fault {
    int64_t n;
    int asynchronous;
    ncclResult_t result;
    atomic_int fired;
} nccl_fault;

static void set_fault(void *user)
{
    const nccl_fault *fault = user;
    if (fault->asynchronous)
        zb_nccl_standin_fail_async(fault->n, fault->result);
    else
        zb_nccl_standin_fail_call(fault->n, fault->result);
}

static zb_status main_bit_of_everything(void *user, zb_comm *comm)
{
    nccl_fault *fault = user;
    const int n = comm->world_size;
    float values[12] = { 1, 2, 3 }, all[12];
    zb_comm *part = NULL;
    zb_status status = add(comm, values, 4, NULL);
    if (status == ZB_OK)
        status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_GATHER, .send = values, .recv = all,
                                   .numel = 12 / (size_t)n);
    if (status == ZB_OK)
        status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_TO_ALL, .send = values, .recv = all,
                                   .numel = 12 / (size_t)n);
    if (status == ZB_OK)
        status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = values, .numel = 3);
    if (status == ZB_OK) status = zb_comm_split(comm, comm->rank == 0 ? -1 : 0, 0, &part);
    if (status == ZB_OK && part != NULL) status = add(part, values, 5, NULL);
    zb_error kept = { .status = status };
    snprintf(kept.message, sizeof kept.message, "%s", zb_error_message());
    zb_comm_destroy(part);
    if (zb_nccl_standin_fault_fired()) atomic_store(&fault->fired, 1);
    return status == ZB_OK ? ZB_OK : zb_fail(kept.status, "%s", kept.message);
}

static int count_failed(const thread_ends *ends, int size, const char *text)
{
    int count = 0;
    for (int r = 0; r < size; r++)
        count += ends->ranks[r].status != ZB_OK && strstr(ends->ranks[r].message, text) != NULL;
    return count;
}

/* Whatever call of NCCL's fails, on whatever rank: all ranks end, those that were still under way with the
 * reason. */
static int fail_everywhere(int asynchronous, int on_device, const char *text)
{
    int64_t n = 0;
    for (;; n++) {
        const uint64_t live = zb_alloc_get_stats().live;
        const thread_world world = {
            .size = 3, .seed = (uint64_t)n, .timeout_seconds = 20, .on_device = on_device
        };
        nccl_fault fault = { .n = n,
                             .asynchronous = asynchronous,
                             .result = asynchronous ? ncclRemoteError : ncclSystemError };
        thread_ends ends;
        run_threads(&world, main_bit_of_everything, &fault, set_fault, &ends);
        int failed = 0;
        for (int r = 0; r < 3; r++) {
            failed += ends.ranks[r].status != ZB_OK;
            assert_int_not_equal(ends.ranks[r].status, ZB_DEADLOCK);
        }
        if (ends.session != ZB_OK) fail_msg("call %d: %s", (int)n, ends.session_message);
        assert_int_equal(zb_alloc_get_stats().live, live);
        assert_int_equal(count_failed(&ends, 3, text), failed);
        if (failed == 0 && !atomic_load(&fault.fired) && n > 10) return (int)n;
    }
}

static void test_every_call_fails(void **state)
{
    (void)state;
    assert_true(fail_everywhere(0, 0, "unhandled system error") > 40);
}

static void test_every_launch_fails(void **state)
{
    (void)state;
    assert_true(fail_everywhere(1, 0, "remote process exited") > 12);
}

/* Here ranks wait for their streams, outside of any call: only the watching thread can let them go. */
static void test_every_launch_fails_behind_streams(void **state)
{
    (void)state;
    assert_true(fail_everywhere(1, 1, "remote process exited") > 12);
}

static zb_status main_fail_at_once(void *user, zb_comm *comm)
{
    nccl_fault *fault = user;
    static float values[2][4];
    zb_work work;
    const zb_status status = add(comm, values[comm->rank], 4, &work);
    if (status == ZB_OK) zb_comm_fail(comm, ZB_INTERNAL, "on purpose");
    if (zb_nccl_standin_fault_fired()) atomic_store(&fault->fired, 1);
    return status;
}

/* NCCL notices in the middle of a group that the other rank is gone, which says so itself meanwhile. */
static void test_failure_inside_a_group(void **state)
{
    (void)state;
    int fired = 1;
    for (int64_t n = 0; fired; n++) {
        const thread_world world = { .size = 2, .seed = (uint64_t)n, .timeout_seconds = 20 };
        nccl_fault fault = { .n = n, .result = ncclRemoteError };
        thread_ends ends;
        run_threads(&world, main_fail_at_once, &fault, set_fault, &ends);
        if (ends.session != ZB_OK) fail_msg("call %d: %s", (int)n, ends.session_message);
        for (int r = 0; r < 2; r++) assert_int_not_equal(ends.ranks[r].status, ZB_DEADLOCK);
        fired = atomic_load(&fault.fired) || n < 10;
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_message_mismatch),
        cmocka_unit_test(test_unknown_work),
        cmocka_unit_test(test_stream_of_another_device),
        cmocka_unit_test(test_time_limit),
        cmocka_unit_test(test_rank_fails),
        cmocka_unit_test(test_rank_dies),
        cmocka_unit_test(test_rank_ends),
        cmocka_unit_test(test_destroyed_in_flight),
        cmocka_unit_test(test_every_call_fails),
        cmocka_unit_test(test_every_launch_fails),
        cmocka_unit_test(test_every_launch_fails_behind_streams),
        cmocka_unit_test(test_failure_inside_a_group),
        cmocka_unit_test(test_suite_host),
        cmocka_unit_test(test_suite_device),
        cmocka_unit_test(test_suite_small_scratch),
        cmocka_unit_test(test_suite_unchecked),
    };
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("NCCL's communicator", tests, NULL, NULL);
}
