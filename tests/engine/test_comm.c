/* The front door of communicators: what it refuses, what it counts; and the world of one behind it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/comm.h>
#include <zerobit/memory.h>

#include "tests/engine/models.h"

/* --- a back end that only notes that it was called --- */

typedef struct note_comm {
    zb_comm base;
    int starts, waits;
    const zb_stream *waited_on;
    zb_status status; /* that start and wait return */
    uint64_t gives_id;
} note_comm;

static zb_status note_start(zb_comm *comm, const zb_collective *collective, zb_work *work)
{
    note_comm *note = (note_comm *)comm;
    (void)collective;
    note->starts++;
    if (work != NULL) work->id = note->gives_id;
    return note->status;
}

static zb_status note_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    note_comm *note = (note_comm *)comm;
    (void)work;
    note->waited_on = stream;
    note->waits++;
    return note->status;
}

static const zb_comm_ops note_ops = { .name = "note", .start = note_start, .wait = note_wait };

/* Rank 1 of 3 everywhere below. */
static note_comm rank1_of_3(void)
{
    return (note_comm){ .base = { .ops = &note_ops, .rank = 1, .world_size = 3 } };
}

static float a[64], b[64];
static const size_t counts[3] = { 2, 3, 4 };
static const size_t too_many[3] = { SIZE_MAX - 1, 1, 1 };
static const size_t too_many_bytes[3] = { SIZE_MAX / 8, SIZE_MAX / 8, SIZE_MAX / 8 };

#define CALL(kind_, ...)                                                                                     \
    {                                                                                                        \
        .kind = ZB_COLLECTIVE_##kind_, .what = "w", .file = "f.c", .line = 7, __VA_ARGS__                    \
    }

/* --- refusals --- */

static const struct refusal {
    const char *name;
    zb_collective call;
    const char *message;
} refusals[] = {
    { "kind above", CALL(COUNT, .send = a), "? (w at f.c:7): kind is 10, want" },
    { "kind below", { .kind = (zb_collective_kind)-1 }, "? (? at ?:0): kind is" },
    { "dtype", CALL(ALL_REDUCE, .send = a, .recv = b, .dtype = ZB_DTYPE_COUNT), "dtype is 7" },
    { "op", CALL(ALL_REDUCE, .send = a, .recv = b, .op = (zb_redop)5), "op is 5" },
    { "an average of integers", CALL(ALL_REDUCE, .send = a, .recv = b, .dtype = ZB_INT64, .op = ZB_AVG),
      "integer" },
    { "a scaled sum of bytes", CALL(REDUCE, .send = a, .recv = b, .dtype = ZB_UINT8, .op = ZB_PREMUL_SUM),
      "integer" },
    { "root above", CALL(BROADCAST, .recv = b, .root = 3), "root or peer is 3" },
    { "root below", CALL(REDUCE, .send = a, .recv = b, .root = -1), "root or peer is -1" },
    { "send to oneself", CALL(SEND, .send = a, .numel = 1, .root = 1), "peer is 1, want another" },
    { "receive from oneself", CALL(RECV, .recv = a, .numel = 1, .root = 1), "peer is 1, want another" },
    { "all_reduce without send", CALL(ALL_REDUCE, .recv = b, .numel = 1),
      "all_reduce (w at f.c:7): send is 0" },
    { "all_reduce without recv", CALL(ALL_REDUCE, .send = a, .numel = 1), "recv is 0" },
    { "broadcast without a buffer", CALL(BROADCAST, .send = a, .numel = 1), "recv is 0" },
    { "send without a buffer", CALL(SEND, .recv = a, .numel = 1), "send is 0" },
    { "the root of a reduce without recv", CALL(REDUCE, .send = a, .numel = 1, .root = 1), "recv is 0" },
    { "no counts", CALL(REDUCE_SCATTER_V, .send = a, .recv = b), "counts is 0" },
    { "sum of counts overflows", CALL(REDUCE_SCATTER_V, .send = a, .recv = b, .counts = too_many),
      "sum of counts" },
    { "bytes of counts overflow", CALL(REDUCE_SCATTER_V, .send = a, .recv = b, .counts = too_many_bytes),
      "sum of counts" },
    { "bytes overflow", CALL(ALL_REDUCE, .send = a, .recv = b, .numel = SIZE_MAX / 2), "a size that fits" },
    { "bytes over all ranks overflow", CALL(ALL_GATHER, .send = a, .recv = b, .numel = SIZE_MAX / 8),
      "a size that fits" },
    { "more bytes than any buffer has", CALL(BROADCAST, .recv = b, .numel = SIZE_MAX / 16),
      "a size that fits" },
    { "all_reduce, shifted by one", CALL(ALL_REDUCE, .send = a, .recv = a + 1, .numel = 4), "overlap" },
    { "all_reduce, the last element shared", CALL(ALL_REDUCE, .send = a + 3, .recv = a, .numel = 4),
      "overlap" },
    { "reduce_scatter into another rank's share", CALL(REDUCE_SCATTER, .send = a, .recv = a, .numel = 4),
      "overlap" },
    { "reduce_scatter_v into another rank's share",
      CALL(REDUCE_SCATTER_V, .send = a, .recv = a + 3, .counts = counts), "overlap" },
    { "all_gather from another rank's share", CALL(ALL_GATHER, .send = a + 8, .recv = a, .numel = 4),
      "overlap" },
    { "all_to_all in place", CALL(ALL_TO_ALL, .send = a, .recv = a, .numel = 4), "overlap" },
};

static void check_refusal(void **state)
{
    const struct refusal *c = *state;
    note_comm note = rank1_of_3();
    zb_work work = { .id = 5 };
    assert_int_equal(zb_comm_start(&note.base, &c->call, &work), ZB_INVALID_ARGUMENT);
    assert_message_has(c->message);
    assert_int_equal(note.starts, 0);
    for (int kind = 0; kind < ZB_COLLECTIVE_COUNT; kind++) assert_int_equal(note.base.traffic[kind].calls, 0);
}

/* --- what is let through, and what it counts --- */

static const struct passage {
    const char *name;
    zb_collective call;
    uint64_t bytes;
} passages[] = {
    { "all_reduce", CALL(ALL_REDUCE, .send = a, .recv = b, .numel = 4), 16 },
    { "all_reduce in place", CALL(ALL_REDUCE, .send = a, .recv = a, .numel = 4), 16 },
    { "all_reduce, neighbours", CALL(ALL_REDUCE, .send = a, .recv = a + 4, .numel = 4), 16 },
    { "all_reduce of integers",
      CALL(ALL_REDUCE, .send = a, .recv = b, .numel = 4, .dtype = ZB_INT64, .op = ZB_MAX), 32 },
    { "all_reduce of nothing", CALL(ALL_REDUCE, .numel = 0), 0 },
    { "reduce_scatter", CALL(REDUCE_SCATTER, .send = a, .recv = b, .numel = 4), 48 },
    { "reduce_scatter in place", CALL(REDUCE_SCATTER, .send = a, .recv = a + 4, .numel = 4), 48 },
    { "reduce_scatter_v", CALL(REDUCE_SCATTER_V, .send = a, .recv = b, .counts = counts), 36 },
    { "reduce_scatter_v in place", CALL(REDUCE_SCATTER_V, .send = a, .recv = a + 2, .counts = counts), 36 },
    { "all_gather", CALL(ALL_GATHER, .send = a, .recv = b, .numel = 4), 48 },
    { "all_gather in place", CALL(ALL_GATHER, .send = a + 4, .recv = a, .numel = 4), 48 },
    { "all_to_all", CALL(ALL_TO_ALL, .send = a, .recv = b, .numel = 4), 48 },
    { "broadcast", CALL(BROADCAST, .recv = b, .numel = 4, .root = 2), 16 },
    { "reduce, at the root", CALL(REDUCE, .send = a, .recv = b, .numel = 4, .root = 1), 16 },
    { "reduce, elsewhere: no recv needed", CALL(REDUCE, .send = a, .numel = 4, .root = 0), 16 },
    { "reduce in place", CALL(REDUCE, .send = a, .recv = a, .numel = 4, .root = 1), 16 },
    { "send", CALL(SEND, .send = a, .numel = 4, .root = 0), 16 },
    { "recv", CALL(RECV, .recv = a, .numel = 4, .root = 2), 16 },
    { "barrier", CALL(BARRIER, .numel = 0), 0 },
    { "an operator does not matter to a copy", CALL(BROADCAST, .recv = b, .numel = 4, .op = (zb_redop)77),
      16 },
};

static void check_passage(void **state)
{
    const struct passage *c = *state;
    note_comm note = rank1_of_3();
    for (uint64_t i = 1; i <= 2; i++) {
        assert_int_equal(zb_comm_start(&note.base, &c->call, NULL), ZB_OK);
        for (int kind = 0; kind < ZB_COLLECTIVE_COUNT; kind++) {
            int own = (zb_collective_kind)kind == c->call.kind;
            assert_int_equal(note.base.traffic[kind].calls, own ? i : 0);
            assert_int_equal(note.base.traffic[kind].bytes, own ? i * c->bytes : 0);
        }
    }
    assert_int_equal(note.starts, 2);
}

static void a_start_that_fails_counts_nothing(void **state)
{
    (void)state;
    note_comm note = rank1_of_3();
    note.status = ZB_REMOTE;
    assert_int_equal(zb_collective_run(&note.base, NULL, .kind = ZB_COLLECTIVE_BARRIER), ZB_REMOTE);
    assert_int_equal(note.base.traffic[ZB_COLLECTIVE_BARRIER].calls, 0);
}

/* --- the observer --- */

typedef struct watch {
    const note_comm *comm;
    int count;
    zb_collective seen[2];
    int starts_before[2];
    zb_status status;
} watch;

static zb_status note_starting(void *user, const zb_comm *comm, const zb_collective *collective)
{
    watch *w = user;
    assert_ptr_equal(comm, &w->comm->base);
    w->seen[w->count] = *collective;
    w->starts_before[w->count++] = w->comm->starts;
    return w->status;
}

static void observer_hears_of_what_is_let_through(void **state)
{
    (void)state;
    note_comm note = rank1_of_3();
    watch w = { .comm = &note };
    const zb_comm_observer observer = { note_starting, &w };
    note.base.observer = &observer;
    assert_int_equal(zb_comm_start(&note.base, &(zb_collective)CALL(REDUCE, .send = a, .root = 9), NULL),
                     ZB_INVALID_ARGUMENT);
    assert_int_equal(w.count, 0);
    assert_int_equal(zb_comm_start(&note.base, &(zb_collective)CALL(REDUCE, .send = a, .numel = 5), NULL),
                     ZB_OK);
    assert_int_equal(
        zb_comm_start(&note.base, &(zb_collective)CALL(ALL_GATHER, .send = a, .recv = b, .numel = 2), NULL),
        ZB_OK);
    assert_int_equal(w.count, 2);
    for (int i = 0; i < 2; i++) assert_int_equal(w.starts_before[i], i);
    assert_int_equal(w.seen[0].kind, ZB_COLLECTIVE_REDUCE);
    assert_int_equal(w.seen[0].numel, 5);
    assert_int_equal(w.seen[1].kind, ZB_COLLECTIVE_ALL_GATHER);
}

static void observer_that_fails_stops_the_start(void **state)
{
    (void)state;
    note_comm note = rank1_of_3();
    watch w = { .comm = &note, .status = ZB_NO_MEMORY };
    const zb_comm_observer observer = { note_starting, &w };
    zb_work work = { .id = 5 };
    note.base.observer = &observer;
    assert_int_equal(zb_comm_start(&note.base, &(zb_collective)CALL(BARRIER, .send = NULL), &work),
                     ZB_NO_MEMORY);
    assert_int_equal(note.starts, 0);
    assert_int_equal(work.id, 0);
    assert_int_equal(note.base.traffic[ZB_COLLECTIVE_BARRIER].calls, 0);
}

static void work_is_waited_for_once(void **state)
{
    (void)state;
    note_comm note = rank1_of_3();
    zb_work work = { 0 };
    assert_int_equal(zb_comm_wait(&note.base, &work, NULL), ZB_OK);
    assert_int_equal(note.waits, 0);

    note.gives_id = 9;
    assert_int_equal(zb_collective_run(&note.base, &work, .kind = ZB_COLLECTIVE_BARRIER), ZB_OK);
    assert_int_equal(work.id, 9);
    assert_int_equal(zb_comm_wait(&note.base, &work, NULL), ZB_OK);
    assert_int_equal(zb_comm_wait(&note.base, &work, NULL), ZB_OK);
    assert_int_equal(note.waits, 1);

    work.id = 9;
    note.status = ZB_REMOTE;
    assert_int_equal(zb_comm_wait(&note.base, &work, NULL), ZB_REMOTE);
    assert_int_equal(zb_comm_wait(&note.base, &work, NULL), ZB_OK);
}

static void wait_says_which_stream(void **state)
{
    (void)state;
    note_comm note = rank1_of_3();
    zb_stream stream = { .name = "s" };
    zb_work work = { .id = 9 };
    assert_int_equal(zb_comm_wait(&note.base, &work, &stream), ZB_OK);
    assert_ptr_equal(note.waited_on, &stream);
}

/* Whoever moves bytes with the host's hands must not be given what only a GPU can reach. */
static void device_memory_is_refused_where_only_the_hosts_is_moved(void **state)
{
    (void)state;
    const zb_device_ops far_ops = { .name = "far" };
    zb_comm_ops moves = note_ops;
    moves.takes_device_memory = 1;
    zb_device far = { .ops = &far_ops };
    zb_stream stream = { .device = &far, .name = "s" };
    note_comm note = rank1_of_3();
    float send[4] = { 0 }, recv[4];
    const zb_collective call = CALL(ALL_REDUCE, .send = send, .recv = recv, .numel = 4, .stream = &stream);
    assert_int_equal(zb_comm_start(&note.base, &call, NULL), ZB_UNSUPPORTED);
    assert_non_null(
        strstr(zb_error_message(), "buffers of device far; communicator note moves only the host"));
    assert_int_equal(note.starts, 0);
    note.base.ops = &moves;
    assert_int_equal(zb_comm_start(&note.base, &call, NULL), ZB_OK);
    assert_int_equal(note.starts, 1);
}

/* A back end that finishes at once leaves the work alone; what was in it before must not be waited for. */
static void start_clears_the_work(void **state)
{
    (void)state;
    zb_comm *self;
    zb_work work = { .id = 5, .handle = a };
    assert_int_equal(zb_comm_self_create(&self), ZB_OK);
    assert_int_equal(zb_collective_run(self, &work, .kind = ZB_COLLECTIVE_BARRIER), ZB_OK);
    assert_int_equal(work.id, 0);
    assert_null(work.handle);
    zb_comm_destroy(self);
}

static void names(void **state)
{
    (void)state;
    assert_string_equal(zb_collective_name(ZB_COLLECTIVE_REDUCE_SCATTER_V), "reduce_scatter_v");
    assert_string_equal(zb_collective_name(ZB_COLLECTIVE_BARRIER), "barrier");
    assert_string_equal(zb_collective_name(ZB_COLLECTIVE_COUNT), "?");
    assert_string_equal(zb_collective_name((zb_collective_kind)-1), "?");
}

/* --- the world of one --- */

static const size_t self_counts[1] = { 3 };

static const struct self_case {
    const char *name;
    zb_collective_kind kind;
    zb_redop op;
    double factor;
    float want[3]; /* of 1 2 3 */
} self_cases[] = {
    { "self: all_reduce sum", ZB_COLLECTIVE_ALL_REDUCE, ZB_SUM, 0, { 1, 2, 3 } },
    { "self: all_reduce avg", ZB_COLLECTIVE_ALL_REDUCE, ZB_AVG, 0, { 1, 2, 3 } },
    { "self: all_reduce min", ZB_COLLECTIVE_ALL_REDUCE, ZB_MIN, 0, { 1, 2, 3 } },
    { "self: the factor counts in a world of one too",
      ZB_COLLECTIVE_ALL_REDUCE,
      ZB_PREMUL_SUM,
      0.5,
      { 0.5, 1, 1.5 } },
    { "self: reduce", ZB_COLLECTIVE_REDUCE, ZB_SUM, 0, { 1, 2, 3 } },
    { "self: reduce_scatter", ZB_COLLECTIVE_REDUCE_SCATTER, ZB_PREMUL_SUM, 2, { 2, 4, 6 } },
    { "self: reduce_scatter_v", ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_AVG, 0, { 1, 2, 3 } },
    { "self: all_gather", ZB_COLLECTIVE_ALL_GATHER, ZB_SUM, 0, { 1, 2, 3 } },
    { "self: all_to_all", ZB_COLLECTIVE_ALL_TO_ALL, ZB_SUM, 0, { 1, 2, 3 } },
};

/* On host memory, and on a stream; apart, and in place where that is allowed. */
static void check_self(void **state)
{
    const struct self_case *c = *state;
    zb_comm *self;
    zb_device *device;
    zb_stream *stream;
    assert_int_equal(zb_comm_self_create(&self), ZB_OK);
    assert_int_equal(zb_device_cpu_create(&device), ZB_OK);
    assert_int_equal(zb_stream_create(device, "s", &stream), ZB_OK);
    for (int variant = 0; variant < 4; variant++) {
        float send[3] = { 1, 2, 3 }, recv[3] = { 9, 9, 9 };
        int in_place = (variant & 1) && c->kind != ZB_COLLECTIVE_ALL_TO_ALL;
        float *to = in_place ? send : recv;
        zb_work work;
        assert_int_equal(zb_collective_run(self, &work, .kind = c->kind, .send = send, .recv = to, .numel = 3,
                                           .counts = self_counts, .op = c->op, .factor = c->factor,
                                           .stream = variant & 2 ? stream : NULL),
                         ZB_OK);
        assert_int_equal(zb_comm_wait(self, &work, NULL), ZB_OK);
        assert_memory_equal(to, c->want, sizeof c->want);
    }
    zb_stream_destroy(stream);
    zb_comm_destroy(self);
    zb_device_destroy(device);
}

static void self_broadcast_and_barrier_do_nothing(void **state)
{
    (void)state;
    zb_comm *self;
    float buffer[2] = { 4, 5 };
    assert_int_equal(zb_comm_self_create(&self), ZB_OK);
    assert_int_equal(self->rank, 0);
    assert_int_equal(self->world_size, 1);
    assert_int_equal(
        zb_collective_run(self, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = buffer, .numel = 2), ZB_OK);
    assert_int_equal(zb_collective_run(self, NULL, .kind = ZB_COLLECTIVE_BARRIER), ZB_OK);
    assert_true(buffer[0] == 4 && buffer[1] == 5);
    assert_int_equal(self->traffic[ZB_COLLECTIVE_BROADCAST].bytes, 8);
    assert_int_equal(zb_comm_wait(self, &(zb_work){ .id = 1 }, NULL), ZB_INVALID_ARGUMENT);
    zb_comm_destroy(self);
}

static void self_splits_into_itself(void **state)
{
    (void)state;
    uint64_t live = zb_alloc_get_stats().live;
    zb_comm *self, *part = NULL, *none = (zb_comm *)1;
    assert_int_equal(zb_comm_self_create(&self), ZB_OK);
    assert_int_equal(zb_comm_split(self, 4, 0, &part), ZB_OK);
    assert_int_equal(part->world_size, 1);
    assert_int_equal(zb_comm_split(self, -1, 0, &none), ZB_OK);
    assert_null(none);
    zb_comm_destroy(part);
    zb_comm_destroy(self);
    zb_comm_destroy(NULL);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(refusals) + COUNT(passages) + COUNT(self_cases) + 8] = {
        cmocka_unit_test(a_start_that_fails_counts_nothing),
        cmocka_unit_test(work_is_waited_for_once),
        cmocka_unit_test(wait_says_which_stream),
        cmocka_unit_test(device_memory_is_refused_where_only_the_hosts_is_moved),
        cmocka_unit_test(start_clears_the_work),
        cmocka_unit_test(names),
        cmocka_unit_test(self_broadcast_and_barrier_do_nothing),
        cmocka_unit_test(self_splits_into_itself),
        cmocka_unit_test(observer_hears_of_what_is_let_through),
        cmocka_unit_test(observer_that_fails_stops_the_start),
    };
    size_t n = 8;
    for (size_t i = 0; i < COUNT(refusals); i++)
        tests[n++] = (struct CMUnitTest){ refusals[i].name, check_refusal, NULL, NULL, (void *)&refusals[i] };
    for (size_t i = 0; i < COUNT(passages); i++)
        tests[n++] = (struct CMUnitTest){ passages[i].name, check_passage, NULL, NULL, (void *)&passages[i] };
    for (size_t i = 0; i < COUNT(self_cases); i++)
        tests[n++] = (struct CMUnitTest){ self_cases[i].name, check_self, NULL, NULL,
                                          (void *)&self_cases[i] };
    return cmocka_run_group_tests_name("comm", tests, NULL, NULL);
}
