/*
 * What only a simulated world promises: mistakes of a program are found and named, failures reach every rank,
 * nothing hangs or leaks, and neither workers nor seed change a bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/sim.h>

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])

/* Every call of these tests: fp32 sum, unless said otherwise. */
#define RUN(comm, work, k, ...) zb_collective_run((comm), (work), .kind = ZB_COLLECTIVE_##k, __VA_ARGS__)

static const zb_order_source ring = { .algorithm = ZB_ALGORITHM_MPI_RING };
static const zb_order_source linear = { .algorithm = ZB_ALGORITHM_MPI_LINEAR };
static const zb_order_source butterfly = { .algorithm = ZB_ALGORITHM_MPI_BUTTERFLY };
static const zb_order_source nccl = {
    .algorithm = ZB_ALGORITHM_NCCL_RING, .version = 228, .protocol = ZB_NCCL_LL, .channels = 2
};
static const zb_order_source nccl_4 = {
    .algorithm = ZB_ALGORITHM_NCCL_RING, .version = 228, .protocol = ZB_NCCL_LL, .channels = 4
};

static zb_sim *create(int world, int workers, uint64_t seed)
{
    zb_sim *sim = NULL;
    zb_sim_options options = { .world_size = world, .workers = workers, .seed = seed };
    if (zb_sim_create(&options, &sim) != ZB_OK) fail_msg("%s", zb_error_message());
    return sim;
}

/* Runs a fresh world. The message stays for the caller to look at. */
static zb_status run(int world, int workers, uint64_t seed, zb_rank_main *rank_main, void *user)
{
    uint64_t live = zb_alloc_get_stats().live;
    zb_sim *sim = create(world, workers, seed);
    zb_status status = zb_sim_run(sim, rank_main, user);
    zb_sim_destroy(sim);
    assert_int_equal(zb_alloc_get_stats().live, live);
    return status;
}

static void assert_message_has(const char *part)
{
    if (strstr(zb_error_message(), part) == NULL) fail_msg("no \"%s\" in:\n%s", part, zb_error_message());
}

/* --- programs that are wrong, and what must be said about them --- */

static zb_status pass(zb_comm *comm)
{
    return RUN(comm, NULL, BARRIER, .what = "pass");
}

#define MISMATCH(name, kind_a, kind_b, fields_a, fields_b)                                                   \
    static zb_status mismatch_##name(void *user, zb_comm *comm)                                              \
    {                                                                                                        \
        float x[8] = { 0 }, y[8] = { 0 };                                                                    \
        const size_t counts[3] = { 1, 0, 1 }, others[3] = { 1, 1, 0 };                                       \
        (void)user, (void)counts, (void)others;                                                              \
        ZB_TRY(pass(comm));                                                                                  \
        if (comm->rank != 1) return RUN(comm, NULL, kind_a, .send = x, .recv = y, .what = "left", fields_a); \
        return RUN(comm, NULL, kind_b, .send = x, .recv = y, .what = "right", fields_b);                     \
    }
#define FIELDS(...) __VA_ARGS__
MISMATCH(kind, ALL_REDUCE, BROADCAST, FIELDS(.numel = 2), FIELDS(.numel = 2))
MISMATCH(dtype, ALL_REDUCE, ALL_REDUCE, FIELDS(.numel = 2), FIELDS(.numel = 2, .dtype = ZB_INT32))
MISMATCH(numel, ALL_GATHER, ALL_GATHER, FIELDS(.numel = 2), FIELDS(.numel = 1))
MISMATCH(counts, REDUCE_SCATTER_V, REDUCE_SCATTER_V, FIELDS(.counts = counts), FIELDS(.counts = others))
MISMATCH(op, REDUCE_SCATTER, REDUCE_SCATTER, FIELDS(.numel = 2), FIELDS(.numel = 2, .op = ZB_AVG))
MISMATCH(factor, ALL_REDUCE, ALL_REDUCE, FIELDS(.numel = 2, .op = ZB_PREMUL_SUM, .factor = 0.5),
         FIELDS(.numel = 2, .op = ZB_PREMUL_SUM, .factor = 0.25))
MISMATCH(root, REDUCE, REDUCE, FIELDS(.numel = 2), FIELDS(.numel = 2, .root = 2))
MISMATCH(order, ALL_REDUCE, ALL_REDUCE, FIELDS(.numel = 2, .order = &ring),
         FIELDS(.numel = 2, .order = &linear))
MISMATCH(no_order, REDUCE, REDUCE, FIELDS(.numel = 2, .order = &linear), FIELDS(.numel = 2))
MISMATCH(channels, ALL_REDUCE, ALL_REDUCE, FIELDS(.numel = 2, .order = &nccl),
         FIELDS(.numel = 2, .order = &nccl_4))
MISMATCH(message, SEND, RECV, FIELDS(.numel = 2, .root = 1), FIELDS(.numel = 1, .root = 0))

static zb_status mismatch_split(void *user, zb_comm *comm)
{
    (void)user;
    zb_comm *group = NULL;
    if (comm->rank == 2) return pass(comm);
    ZB_TRY(zb_comm_split(comm, 0, 0, &group));
    zb_comm_destroy(group);
    return ZB_OK;
}

static zb_status missing_rank(void *user, zb_comm *comm)
{
    (void)user;
    float x[2] = { 0 };
    ZB_TRY(pass(comm));
    if (comm->rank == 2) return ZB_OK;
    return RUN(comm, NULL, ALL_REDUCE, .send = x, .recv = x, .numel = 2, .what = "lonely");
}

/* Two groups of the same ranks, used in opposite order. */
static zb_status crossed_groups(void *user, zb_comm *comm)
{
    (void)user;
    zb_comm *groups[2] = { NULL, NULL };
    float x = 0;
    zb_status status = zb_comm_split(comm, 7, 0, &groups[0]);
    if (status == ZB_OK) status = zb_comm_split(comm, 8, 0, &groups[1]);
    for (int i = 0; i < 2 && status == ZB_OK; i++)
        status = RUN(groups[comm->rank == 0 ? i : 1 - i], NULL, ALL_REDUCE, .send = &x, .recv = &x,
                     .numel = 1);
    zb_comm_destroy(groups[0]);
    zb_comm_destroy(groups[1]);
    return status;
}

static zb_status recv_without_send(void *user, zb_comm *comm)
{
    (void)user;
    float x;
    return comm->rank == 1 ? RUN(comm, NULL, RECV, .recv = &x, .numel = 1, .root = 2, .what = "hears nothing")
                           : ZB_OK;
}

/* Everyone sends first: a message has no place to wait in. */
static zb_status ring_of_sends(void *user, zb_comm *comm)
{
    (void)user;
    float x = 0;
    return RUN(comm, NULL, SEND, .send = &x, .numel = 1, .root = (comm->rank + 1) % comm->world_size);
}

#define RACE_BUFFERS                                                                                         \
    float send[16] = { 0 }, recv[16] = { 0 };                                                                \
    zb_work work;                                                                                            \
    (void)user;                                                                                              \
    ZB_TRY(RUN(comm, &work, ALL_REDUCE, .send = send, .recv = recv, .numel = 16, .what = "racy"))

static zb_status race_on_send(void *user, zb_comm *comm)
{
    RACE_BUFFERS;
    if (comm->rank == 1) send[3] = 1;
    return zb_comm_wait(comm, &work, NULL);
}

static zb_status race_on_recv(void *user, zb_comm *comm)
{
    RACE_BUFFERS;
    if (comm->rank == 1) recv[5] = 1;
    return zb_comm_wait(comm, &work, NULL);
}

static zb_status race_in_place(void *user, zb_comm *comm)
{
    (void)user;
    float x[16] = { 0 };
    zb_work work;
    ZB_TRY(
        RUN(comm, &work, REDUCE_SCATTER, .send = x, .recv = x + 4 * comm->rank, .numel = 4, .what = "racy"));
    if (comm->rank == 1) x[4 * 2 + 1] = 1;
    return zb_comm_wait(comm, &work, NULL);
}

static zb_status not_waited_for(void *user, zb_comm *comm)
{
    (void)user;
    static float x[3][2];
    zb_work work;
    if (comm->rank != 1)
        return RUN(comm, NULL, ALL_REDUCE, .send = x[comm->rank], .recv = x[comm->rank], .numel = 2);
    return RUN(comm, &work, ALL_REDUCE, .send = x[1], .recv = x[1], .numel = 2, .what = "forgotten");
}

static zb_status destroyed_in_flight(void *user, zb_comm *comm)
{
    (void)user;
    static float x[3];
    zb_comm *group;
    zb_work work;
    ZB_TRY(zb_comm_split(comm, comm->rank, 0, &group));
    zb_status status = RUN(group, &work, BROADCAST, .recv = &x[comm->rank], .numel = 1, .what = "lost");
    if (comm->rank == 2)
        zb_comm_destroy(group);
    else
        status = zb_comm_wait(group, &work, NULL);
    if (comm->rank != 2) zb_comm_destroy(group);
    return status;
}

static zb_status own_failure(void *user, zb_comm *comm)
{
    (void)user;
    ZB_TRY(pass(comm));
    if (comm->rank == 2) return zb_fail(ZB_CORRUPT, "the disk of rank %d is gone", comm->rank);
    for (;;) ZB_TRY(pass(comm));
}

static zb_status silent_failure(void *user, zb_comm *comm)
{
    (void)user;
    return comm->rank == 2 ? ZB_IO : pass(comm);
}

static zb_status unsupported(void *user, zb_comm *comm)
{
    (void)user;
    unsigned char x = 0;
    zb_collective call = {
        .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = &x, .recv = &x, .numel = 1, .dtype = ZB_UINT8, .op = ZB_AVG
    };
    return comm->ops->start(comm, &call, NULL); /* past the front door, which refuses it */
}

static zb_status order_not_offered(void *user, zb_comm *comm)
{
    (void)user;
    float x[2] = { 0 };
    ZB_TRY(pass(comm));
    return RUN(comm, NULL, REDUCE, .send = x, .recv = x, .numel = 2, .order = &ring);
}

static zb_status order_not_offered_async(void *user, zb_comm *comm)
{
    (void)user;
    float x[3] = { 0 }, y[1];
    const size_t counts[3] = { 1, 1, 1 };
    zb_work work = { 0 };
    ZB_TRY(RUN(comm, &work, REDUCE_SCATTER_V, .send = x, .recv = y, .counts = counts, .order = &nccl));
    return zb_comm_wait(comm, &work, NULL);
}

static const struct wrong_program {
    const char *name;
    zb_rank_main *main;
    zb_status status;
    const char *says[5];
} wrong_programs[] = {
    { "kind",
      mismatch_kind,
      ZB_MISMATCH,
      { "kind differs", "all_reduce #1 of world (left) at sim/test_sim.c:",
        "broadcast #1 of world (right) at sim/test_sim.c:", "rank 1 ", "positions:" } },
    { "dtype", mismatch_dtype, ZB_MISMATCH, { "dtype differs", "rank 1 has int32", "has fp32" } },
    { "numel", mismatch_numel, ZB_MISMATCH, { "numel differs", "rank 1 has 1", "has 2" } },
    { "counts", mismatch_counts, ZB_MISMATCH, { "counts[1] differs", "rank 1 has 1", "has 0" } },
    { "op", mismatch_op, ZB_MISMATCH, { "op differs", "rank 1 has avg", "has sum" } },
    { "factor", mismatch_factor, ZB_MISMATCH, { "factor differs", "rank 1 has 0.25", "has 0.5" } },
    { "root", mismatch_root, ZB_MISMATCH, { "root differs", "rank 1 has 2", "has 0" } },
    { "order", mismatch_order, ZB_MISMATCH, { "order differs", "rank 1 has mpi-linear", "has mpi-ring" } },
    { "no order", mismatch_no_order, ZB_MISMATCH, { "order differs", "rank 1 has rank", "has mpi-linear" } },
    { "settings of an order",
      mismatch_channels,
      ZB_MISMATCH,
      { "order differs", "rank 1 has nccl-ring version=2.28 protocol=ll channels=4",
        "protocol=ll channels=2" } },
    { "message",
      mismatch_message,
      ZB_MISMATCH,
      { "numel differs", "rank 0 has 2", "rank 1 has 1", "send to rank 1 of world",
        "recv from rank 0 of world" } },
    { "split", mismatch_split, ZB_MISMATCH, { "kind differs", "split", "barrier" } },
    { "a rank is missing",
      missing_rank,
      ZB_DEADLOCK,
      { "no rank can go on:", "ranks 0-1: waits in all_reduce #1 of world (lonely) at sim/test_sim.c:",
        "for rank 2", "rank 2: finished" } },
    { "crossed groups",
      crossed_groups,
      ZB_DEADLOCK,
      { "cycle: rank ", "all_reduce #0 of world[split 0, color 7]",
        "all_reduce #0 of world[split 1, color 8]" } },
    { "recv without send",
      recv_without_send,
      ZB_DEADLOCK,
      { "rank 1: waits in recv from rank 2 of world (hears nothing)", "for rank 2", "ranks 0,2: finished" } },
    { "ring of sends",
      ring_of_sends,
      ZB_DEADLOCK,
      { "cycle: rank 0 waits in send to rank 1 of world", "for rank 1, which waits in send to rank 2" } },
    { "send written",
      race_on_send,
      ZB_RACE,
      { "rank 1 failed: send buffer written while all_reduce #0 of world (racy) at sim/test_sim.c:",
        "byte 14 of 64" } },
    { "recv written", race_on_recv, ZB_RACE, { "rank 1 failed: receive buffer written", "byte 20 of 64" } },
    { "send written in place",
      race_in_place,
      ZB_RACE,
      { "rank 1 failed: send buffer written", "byte 38 of 48" } },
    { "not waited for",
      not_waited_for,
      ZB_INVALID_ARGUMENT,
      { "rank 1 failed: finished without waiting for all_reduce #0 of world (forgotten)" } },
    { "destroyed in flight",
      destroyed_in_flight,
      ZB_INVALID_ARGUMENT,
      { "rank 2 failed: communicator destroyed without waiting for broadcast #0", "(lost)" } },
    { "a rank fails",
      own_failure,
      ZB_CORRUPT,
      { "rank 2 failed: the disk of rank 2 is gone (after barrier #0 of world (pass) at sim/test_sim.c:" } },
    { "a rank fails silently", silent_failure, ZB_IO, { "rank 2 failed: input/output error" } },
    { "not supported", unsupported, ZB_UNSUPPORTED, { "average of uint8" } },
    { "an order that is not offered",
      order_not_offered,
      ZB_UNSUPPORTED,
      { "failed: mpi-ring does not offer reduce of 3 ranks: want mpi-linear or mpi-default" } },
    { "an order that is not offered, not waited for",
      order_not_offered_async,
      ZB_UNSUPPORTED,
      { "failed: nccl-ring does not offer reduce_scatter_v of 3 ranks" } },
};

static void test_wrong_programs(void **state)
{
    const struct wrong_program *p = *state;
    for (int workers = 1; workers <= 3; workers++) {
        for (uint64_t seed = 0; seed < 8; seed++) {
            zb_status status = run(3, workers, seed, p->main, NULL);
            if (status != p->status) fail_msg("%s: %s", zb_status_string(status), zb_error_message());
            for (size_t i = 0; i < COUNT_OF(p->says) && p->says[i] != NULL; i++)
                assert_message_has(p->says[i]);
        }
    }
}

/* --- what the other ranks see --- */

typedef struct seen {
    zb_status status[3];
    char message[3][ZB_ERROR_MESSAGE_BYTES];
    zb_rank_main *main;
} seen;

static zb_status record_own(void *user, zb_comm *comm)
{
    seen *s = user;
    s->status[comm->rank] = s->main(NULL, comm);
    snprintf(s->message[comm->rank], sizeof s->message[0], "%s", zb_error_message());
    return s->status[comm->rank];
}

static void test_others_get_remote(void **state)
{
    (void)state;
    static seen s;
    s.main = own_failure;
    assert_int_equal(run(3, 2, 1, record_own, &s), ZB_CORRUPT);
    for (int r = 0; r < 2; r++) {
        assert_int_equal(s.status[r], ZB_REMOTE);
        assert_non_null(strstr(s.message[r], "rank 2 failed: the disk of rank 2 is gone"));
    }
}

static void test_deadlocked_ranks_get_the_report(void **state)
{
    (void)state;
    static seen s;
    s.main = missing_rank;
    assert_int_equal(run(3, 1, 1, record_own, &s), ZB_DEADLOCK);
    assert_int_equal(s.status[0], ZB_DEADLOCK);
    assert_int_equal(s.status[1], ZB_DEADLOCK);
    assert_int_equal(s.status[2], ZB_OK);
    assert_non_null(strstr(s.message[1], "rank 2: finished"));
}

/* The report of a failure does not speak of a communicator that is gone. */
static zb_status fail_without_group(void *user, zb_comm *comm)
{
    (void)user;
    zb_comm *group;
    ZB_TRY(zb_comm_split(comm, 0, 0, &group));
    zb_status status = pass(group);
    zb_comm_destroy(group);
    if (status != ZB_OK) return status;
    return comm->rank == 2 ? zb_fail(ZB_IO, "no more") : pass(comm);
}

static void test_failure_after_destroy(void **state)
{
    (void)state;
    assert_int_equal(run(3, 2, 4, fail_without_group, NULL), ZB_IO);
    assert_string_equal(zb_error_message(), "rank 2 failed: no more");
}

/* A failure that main swallows still breaks the world. */
static zb_status swallow(void *user, zb_comm *comm)
{
    mismatch_numel(user, comm);
    return ZB_OK;
}

static void test_broken_world(void **state)
{
    (void)state;
    zb_sim *sim = create(3, 1, 0);
    assert_int_equal(zb_sim_run(sim, swallow, NULL), ZB_MISMATCH);
    assert_int_equal(zb_sim_run(sim, swallow, NULL), ZB_INVALID_ARGUMENT);
    assert_message_has("broke in an earlier run");
    zb_sim_destroy(sim);
}

/* --- asynchronous operations --- */

/* Reading too early gives NaN; afterwards the result is there. */
static zb_status read_early(void *user, zb_comm *comm)
{
    RACE_BUFFERS;
    for (int i = 0; i < 16; i++)
        if (recv[i] == recv[i])
            return zb_fail(ZB_DIFFERENT, "recv[%d] is %g before the wait", i, (double)recv[i]);
    ZB_TRY(zb_comm_wait(comm, &work, NULL));
    return recv[15] == 0 ? ZB_OK : zb_fail(ZB_DIFFERENT, "recv[15] is %g after the wait", (double)recv[15]);
}

static zb_status wait_on_garbage(void *user, zb_comm *comm)
{
    RACE_BUFFERS;
    zb_comm *group;
    zb_work copy = work, garbage = { 12345, (void *)(uintptr_t)12345 };
    if (zb_comm_wait(comm, &garbage, NULL) != ZB_INVALID_ARGUMENT)
        return zb_fail(ZB_DIFFERENT, "garbage was taken");
    ZB_TRY(zb_comm_split(comm, 0, 0, &group));
    garbage = work;
    zb_status elsewhere = zb_comm_wait(group, &garbage, NULL);
    zb_comm_destroy(group);
    if (elsewhere != ZB_INVALID_ARGUMENT)
        return zb_fail(ZB_DIFFERENT, "another communicator's work was taken");
    ZB_TRY(zb_comm_wait(comm, &work, NULL));
    if (zb_comm_wait(comm, &copy, NULL) != ZB_INVALID_ARGUMENT) return zb_fail(ZB_DIFFERENT, "waited twice");
    return zb_comm_wait(comm, &work, NULL); /* zero by now: nothing to wait for */
}

static zb_status foreign_comm(void *user, zb_comm *comm)
{
    zb_comm **first = user;
    if (comm->rank == 0) *first = comm;
    ZB_TRY(pass(comm));
    if (comm->rank == 1 && pass(*first) != ZB_INVALID_ARGUMENT)
        return zb_fail(ZB_DIFFERENT, "another rank's communicator was taken");
    ZB_TRY(pass(comm));
    return zb_comm_destroy(comm), pass(comm); /* the world's communicators belong to the world */
}

static zb_status nested_run(void *user, zb_comm *comm)
{
    if (zb_sim_run(user, nested_run, NULL) != ZB_INVALID_ARGUMENT)
        return zb_fail(ZB_DIFFERENT, "a running world was run");
    zb_sim *inner;
    zb_sim_options options = { .world_size = 3, .workers = 1, .seed = 5 };
    ZB_TRY(zb_sim_create(&options, &inner));
    zb_status status = zb_sim_run(inner, read_early, NULL);
    zb_sim_destroy(inner);
    return status == ZB_OK ? pass(comm) : status;
}

static zb_status take_turns(void *user, zb_comm *comm)
{
    int *turns = user;
    for (int i = 0; i < 100; i++) {
        turns[comm->rank]++;
        zb_sim_yield(comm);
    }
    return pass(comm);
}

static void test_right_programs(void **state)
{
    (void)state;
    for (int workers = 1; workers <= 3; workers++) {
        zb_comm *first = NULL;
        int turns[3] = { 0, 0, 0 };
        if (run(3, workers, 1, read_early, NULL) != ZB_OK ||
            run(3, workers, 1, wait_on_garbage, NULL) != ZB_OK ||
            run(3, workers, 1, foreign_comm, &first) != ZB_OK ||
            run(3, workers, 1, take_turns, turns) != ZB_OK)
            fail_msg("%s", zb_error_message());
        assert_int_equal(turns[0] + turns[1] + turns[2], 300);
    }
    zb_sim *sim = create(3, 2, 1);
    if (zb_sim_run(sim, nested_run, sim) != ZB_OK) fail_msg("%s", zb_error_message());
    zb_sim_destroy(sim);
}

/* --- a program with some of everything --- */

enum { MIX_WORLD = 4, MIX_NUMEL = 5000, MIX_BIG = 300000 };

typedef struct mixed {
    int big;
    const zb_order_source *all_reduce, *reduce_scatter; /* how they are added; NULL: in rank order */
    float out[MIX_WORLD][MIX_NUMEL];
} mixed;

static void fill(float *x, size_t numel, int rank)
{
    for (size_t i = 0; i < numel; i++)
        x[i] = (float)((i * 7919 + (size_t)rank * 104729) % 10007) / 977.0F - 5;
}

static zb_status run_mixed(mixed *m, zb_comm *comm, float *a, float *b, zb_comm *group)
{
    size_t n = m->big ? MIX_BIG : MIX_NUMEL;
    zb_work works[3] = { { 0 } };
    fill(a, n, comm->rank);
    ZB_TRY(
        RUN(comm, NULL, ALL_REDUCE, .send = a, .recv = a, .numel = n, .op = ZB_AVG, .order = m->all_reduce));
    ZB_TRY(RUN(comm, &works[0], REDUCE_SCATTER, .send = a, .recv = b, .numel = n / MIX_WORLD,
               .order = m->reduce_scatter));
    ZB_TRY(RUN(group, &works[1], ALL_REDUCE, .send = b + n / 2, .recv = b + n / 2, .numel = 100));
    zb_status status = RUN(comm, &works[2], BROADCAST, .recv = b + n / 2 + 200, .numel = 50, .root = 2);
    for (int i = 0; i < 3 && status == ZB_OK; i++) {
        int which = (i + comm->rank) % 3;
        status = zb_comm_wait(which == 1 ? group : comm, &works[which], NULL);
    }
    if (status != ZB_OK) return status;
    ZB_TRY(RUN(comm, NULL, ALL_GATHER, .send = b, .recv = a, .numel = n / MIX_WORLD));
    ZB_TRY(comm->rank == 0 ? RUN(comm, NULL, SEND, .send = a, .numel = 7, .root = 1) : ZB_OK);
    return comm->rank == 1 ? RUN(comm, NULL, RECV, .recv = a, .numel = 7, .root = 0) : ZB_OK;
}

static zb_status main_mixed(void *user, zb_comm *comm)
{
    mixed *m = user;
    size_t n = m->big ? MIX_BIG : MIX_NUMEL;
    float *a = zb_alloc_array(n, sizeof *a), *b = zb_alloc_array(n, sizeof *b);
    zb_comm *group = NULL;
    zb_status status = a != NULL && b != NULL ? zb_comm_split(comm, comm->rank % 2, 0, &group) : ZB_NO_MEMORY;
    if (status == ZB_OK) status = run_mixed(m, comm, a, b, group);
    if (status == ZB_OK) memcpy(m->out[comm->rank], a, sizeof m->out[0]);
    zb_comm_destroy(group);
    zb_free(a);
    zb_free(b);
    return status;
}

static void test_same_bits(void **state)
{
    (void)state;
    static mixed first, again;
    for (int kind = 0; kind < 4; kind++) {
        memset(&first, 0, sizeof first);
        first.big = again.big = kind % 2;
        if (kind / 2) first.all_reduce = &ring, first.reduce_scatter = &nccl;
        again.all_reduce = first.all_reduce;
        again.reduce_scatter = first.reduce_scatter;
        assert_int_equal(run(MIX_WORLD, 1, 0, main_mixed, &first), ZB_OK);
        for (int workers = 1; workers <= 4; workers++) {
            for (uint64_t seed = 1; seed < 6; seed++) {
                memset(again.out, 0, sizeof again.out);
                if (run(MIX_WORLD, workers, seed, main_mixed, &again) != ZB_OK)
                    fail_msg("%s", zb_error_message());
                assert_memory_equal(again.out, first.out, sizeof first.out);
            }
        }
    }
}

/* --- failures at every place --- */

static void test_fail_at_every_collective(void **state)
{
    mixed *m = *state;
    for (int workers = 1; workers <= 3; workers += 2) {
        int64_t n = 0;
        for (;; n++) {
            uint64_t live = zb_alloc_get_stats().live;
            zb_sim *sim = create(MIX_WORLD, workers, (uint64_t)n);
            zb_sim_fail_at(sim, n, ZB_INTERRUPTED);
            zb_status status = zb_sim_run(sim, main_mixed, m);
            int fired = zb_sim_fault_fired(sim);
            zb_sim_destroy(sim);
            assert_int_equal(zb_alloc_get_stats().live, live);
            if (!fired) {
                assert_int_equal(status, ZB_OK);
                break;
            }
            assert_int_equal(status, ZB_INTERRUPTED);
            assert_message_has("injected fault in ");
        }
        assert_int_equal(n, MIX_WORLD * 6 + 2);
    }
}

static void test_fail_at_is_taken_back(void **state)
{
    (void)state;
    static mixed m;
    zb_sim *sim = create(MIX_WORLD, 1, 0);
    zb_sim_fail_at(sim, 3, ZB_IO);
    zb_sim_fail_at(sim, -1, ZB_OK);
    assert_int_equal(zb_sim_run(sim, main_mixed, &m), ZB_OK);
    assert_int_equal(zb_sim_fault_fired(sim), 0);
    zb_sim_destroy(sim);
}

static void test_every_allocation_fails(void **state)
{
    mixed *m = *state;
    int64_t n = 0;
    for (;; n++) {
        uint64_t live = zb_alloc_get_stats().live;
        zb_sim *sim = NULL;
        zb_sim_options options = { .world_size = MIX_WORLD, .workers = 1, .seed = 3 };
        zb_alloc_fail_at(n);
        zb_status status = zb_sim_create(&options, &sim);
        if (status == ZB_OK) status = zb_sim_run(sim, main_mixed, m);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        zb_sim_destroy(sim);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (!fired) {
            assert_int_equal(status, ZB_OK);
            break;
        }
        assert_int_equal(status, ZB_NO_MEMORY);
        assert_message_has("out of memory");
    }
    assert_true(n > (m->all_reduce != NULL ? 28 : 20)); /* deriving an order allocates too */
}

/* --- steady state --- */

static zb_status main_rounds(void *user, zb_comm *comm)
{
    static float x[8][4000], y[8][8000];
    float *a = x[comm->rank], *b = y[comm->rank];
    size_t world = (size_t)comm->world_size;
    int rounds = *(int *)user;
    for (int round = 0; round < rounds; round++) {
        zb_work works[4];
        ZB_TRY(RUN(comm, &works[0], REDUCE_SCATTER, .send = a, .recv = b, .numel = 100));
        ZB_TRY(RUN(comm, &works[1], ALL_GATHER, .send = a, .recv = b + 1000, .numel = 300));
        ZB_TRY(RUN(comm, &works[2], SEND, .send = a, .numel = 1000,
                   .root = (int)((size_t)(comm->rank + 1) % world)));
        ZB_TRY(RUN(comm, &works[3], RECV, .recv = b + 6000, .numel = 1000,
                   .root = (int)((size_t)comm->rank + world - 1) % (int)world));
        for (int i = 3; i >= 0; i--) ZB_TRY(zb_comm_wait(comm, &works[i], NULL));
        ZB_TRY(RUN(comm, NULL, ALL_REDUCE, .send = a, .recv = a, .numel = 4000));
        ZB_TRY(RUN(comm, NULL, BROADCAST, .recv = a, .numel = 2000, .root = 1));
    }
    return ZB_OK;
}

/* Here a fast rank is one operation ahead at times, but never in the first round. */
static zb_status main_gathers(void *user, zb_comm *comm)
{
    static float x[8][1024];
    for (int round = 0; round < *(int *)user; round++)
        ZB_TRY(RUN(comm, NULL, ALL_GATHER, .send = x[comm->rank] + 64 * comm->rank, .recv = x[comm->rank],
                   .numel = 64));
    return ZB_OK;
}

/* Every round has the same sums in the same orders, and so derives nothing after the first. */
static zb_status main_ordered_sums(void *user, zb_comm *comm)
{
    static float x[8][4000], y[8][4000];
    static const size_t counts[8] = { 1, 2, 0, 700, 3, 5, 8, 13 };
    float *a = x[comm->rank], *b = y[comm->rank];
    for (int round = 0; round < *(int *)user; round++) {
        zb_work works[2];
        ZB_TRY(RUN(comm, NULL, ALL_REDUCE, .send = a, .recv = a, .numel = 4000, .order = &ring));
        ZB_TRY(RUN(comm, NULL, ALL_REDUCE, .send = a, .recv = a, .numel = 3000, .order = &ring));
        ZB_TRY(
            RUN(comm, NULL, ALL_REDUCE, .send = a, .recv = a, .numel = 4000, .op = ZB_AVG, .order = &ring));
        ZB_TRY(RUN(comm, &works[0], REDUCE_SCATTER, .send = a, .recv = b, .numel = 100, .order = &nccl));
        ZB_TRY(RUN(comm, &works[1], REDUCE_SCATTER_V, .send = a + 1000, .recv = b + 1000, .counts = counts,
                   .order = &butterfly));
        ZB_TRY(zb_comm_wait(comm, &works[1], NULL));
        ZB_TRY(zb_comm_wait(comm, &works[0], NULL));
        ZB_TRY(RUN(comm, NULL, REDUCE, .send = a, .recv = b, .numel = 50, .root = 3, .order = &linear));
    }
    return ZB_OK;
}

static void test_steady_state_allocates_nothing(void **state)
{
    zb_rank_main *rounds_main = *(zb_rank_main **)*state;
    for (int workers = 1; workers <= 3; workers++) {
        for (uint64_t seed = 0; seed < 10; seed++) {
            zb_sim *sim = create(8, workers, seed);
            int rounds = 1;
            assert_int_equal(zb_sim_run(sim, rounds_main, &rounds), ZB_OK);
            uint64_t calls = zb_alloc_get_stats().calls;
            rounds = 30;
            assert_int_equal(zb_sim_run(sim, rounds_main, &rounds), ZB_OK);
            assert_int_equal(zb_alloc_get_stats().calls, calls);
            zb_sim_destroy(sim);
        }
    }
}

/* --- many ranks --- */

static zb_status main_many(void *user, zb_comm *comm)
{
    (void)user;
    float mine[60], *all = zb_alloc_array((size_t)comm->world_size * 60, sizeof *all);
    zb_status status = all != NULL ? ZB_OK : ZB_NO_MEMORY;
    for (int i = 0; i < 60; i++) mine[i] = (float)comm->rank;
    if (status == ZB_OK) status = RUN(comm, NULL, ALL_GATHER, .send = mine, .recv = all, .numel = 60);
    if (status == ZB_OK)
        status = RUN(comm, NULL, REDUCE_SCATTER, .send = all, .recv = mine, .numel = 60, .op = ZB_AVG);
    if (status == ZB_OK && mine[59] != (float)comm->rank)
        status = zb_fail(ZB_DIFFERENT, "got %g", (double)mine[59]);
    zb_free(all);
    return status == ZB_OK ? pass(comm) : status;
}

static void test_many_ranks(void **state)
{
    (void)state;
    if (run(1024, 2, 9, main_many, NULL) != ZB_OK) fail_msg("%s", zb_error_message());
}

/* One rank of many is elsewhere: the report stays short and names it. */
static zb_status main_one_is_missing(void *user, zb_comm *comm)
{
    int missing = *(int *)user;
    if (comm->rank == missing) return ZB_OK;
    if (comm->rank % 20 == 7) {
        float x;
        return RUN(comm, NULL, RECV, .recv = &x, .numel = 1, .root = missing);
    }
    return pass(comm);
}

static void test_report_of_many_ranks(void **state)
{
    (void)state;
    int missing = 4;
    assert_int_equal(run(1024, 2, 9, main_one_is_missing, &missing), ZB_DEADLOCK);
    assert_message_has("ranks 0-3,5-6,8-26,28-46,");
    assert_message_has(",...: waits in barrier #0 of world (pass)");
    assert_message_has("for ranks 4,7,27,47,");
    assert_message_has("rank 4: finished");
    assert_message_has("ranks 7,27,47,67,");
    assert_message_has(",...: waits in recv from rank 4 of world");
}

/* More places than a report has lines for. */
static zb_status main_everywhere(void *user, zb_comm *comm)
{
    (void)user;
    float x;
    return comm->rank == 0 ? ZB_OK : RUN(comm, NULL, RECV, .recv = &x, .numel = 1, .root = comm->rank - 1);
}

static void test_report_of_many_places(void **state)
{
    (void)state;
    assert_int_equal(run(64, 1, 9, main_everywhere, NULL), ZB_DEADLOCK);
    assert_message_has("rank 9: waits in recv from rank 8 of world");
    assert_message_has("and 54 ranks in other places");
}

/* --- options --- */

static void test_bad_options(void **state)
{
    (void)state;
    static const struct {
        zb_sim_options options;
        const char *says;
    } rows[] = {
        { { .world_size = 0 }, "world_size is 0, want 1..65536" },
        { { .world_size = 65537 }, "world_size is 65537" },
        { { .world_size = 2, .workers = -1 }, "workers is -1" },
        { { .world_size = 2, .stack_bytes = 100 }, "stack_bytes is 100" },
        { { .world_size = 2, .stack_bytes = (size_t)1 << 60 }, "mmap" },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        zb_sim *sim = NULL;
        assert_int_not_equal(zb_sim_create(&rows[i].options, &sim), ZB_OK);
        assert_null(sim);
        assert_message_has(rows[i].says);
    }
    zb_sim_destroy(NULL);
}

static void test_default_workers(void **state)
{
    (void)state;
    assert_int_equal(run(5, 0, 0, main_many, NULL), ZB_OK);
}

int main(void)
{
    struct CMUnitTest wrong[COUNT_OF(wrong_programs)];
    for (size_t i = 0; i < COUNT_OF(wrong_programs); i++)
        wrong[i] = (struct CMUnitTest){ wrong_programs[i].name, test_wrong_programs, NULL, NULL,
                                        (void *)&wrong_programs[i] };
    static zb_rank_main *rounds = main_rounds, *gathers = main_gathers, *ordered_sums = main_ordered_sums;
    static mixed in_rank_order, ordered = { .all_reduce = &ring, .reduce_scatter = &nccl };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_others_get_remote),
        cmocka_unit_test(test_deadlocked_ranks_get_the_report),
        cmocka_unit_test(test_failure_after_destroy),
        cmocka_unit_test(test_broken_world),
        cmocka_unit_test(test_right_programs),
        cmocka_unit_test(test_same_bits),
        { "every collective fails", test_fail_at_every_collective, NULL, NULL, &in_rank_order },
        { "every collective fails, in libraries' orders", test_fail_at_every_collective, NULL, NULL,
          &ordered },
        cmocka_unit_test(test_fail_at_is_taken_back),
        { "every allocation fails", test_every_allocation_fails, NULL, NULL, &in_rank_order },
        { "every allocation fails, in libraries' orders", test_every_allocation_fails, NULL, NULL, &ordered },
        { "steady state: some of everything", test_steady_state_allocates_nothing, NULL, NULL, &rounds },
        { "steady state: sums in libraries' orders", test_steady_state_allocates_nothing, NULL, NULL,
          &ordered_sums },
        { "steady state: one at a time", test_steady_state_allocates_nothing, NULL, NULL, &gathers },
        cmocka_unit_test(test_many_ranks),
        cmocka_unit_test(test_report_of_many_ranks),
        cmocka_unit_test(test_report_of_many_places),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_default_workers),
    };
    int failed = cmocka_run_group_tests_name("wrong programs", wrong, NULL, NULL);
    return failed + cmocka_run_group_tests_name("simulated world", tests, NULL, NULL);
}
