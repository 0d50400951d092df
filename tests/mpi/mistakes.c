/*
 * Programs that are wrong, or that something happens to: `mistakes NAME` under mpirun with three ranks. Each
 * rank prints one report, "rank R: MESSAGE"; check_mistakes knows what must be in it and how the job must
 * end.
 */
#include <mpi.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/memory.h>
#include <zerobit/mpi.h>

#define RUN(comm, work, k, ...) zb_collective_run((comm), (work), .kind = ZB_COLLECTIVE_##k, __VA_ARGS__)

static int rank = -1;
static zb_mpi_options options = { .timeout_seconds = 20 };

static zb_status pass(zb_comm *comm)
{
    return RUN(comm, NULL, BARRIER, .what = "pass");
}

/* --- calls that do not fit --- */

#define MISMATCH(name, kind_a, kind_b, fields_a, fields_b)                                                   \
    static zb_status mismatch_##name(zb_comm *comm)                                                          \
    {                                                                                                        \
        float x[8] = { 0 }, y[8] = { 0 };                                                                    \
        const size_t counts[3] = { 1, 0, 1 }, others[3] = { 1, 1, 0 };                                       \
        const zb_order_source ring = { .algorithm = ZB_ALGORITHM_MPI_RING };                                 \
        (void)counts, (void)others, (void)ring;                                                              \
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
MISMATCH(order, ALL_REDUCE, ALL_REDUCE, FIELDS(.numel = 2), FIELDS(.numel = 2, .order = &ring))

static zb_status mismatch_split(zb_comm *comm)
{
    zb_comm *group = NULL;
    if (comm->rank == 2) return pass(comm);
    ZB_TRY(zb_comm_split(comm, 0, 0, &group));
    zb_comm_destroy(group);
    return ZB_OK;
}

/* Ranks 0 and 1 disagree about a message, rank 2 waits for them. */
static zb_status mismatch_message(zb_comm *comm)
{
    float x[8] = { 0 };
    if (comm->rank == 0) return RUN(comm, NULL, SEND, .send = x, .numel = 2, .root = 1, .what = "two");
    if (comm->rank == 1) return RUN(comm, NULL, RECV, .recv = x, .numel = 1, .root = 0, .what = "one");
    return pass(comm);
}

/* The third of three in flight, waited for in falling order. */
static zb_status mismatch_in_flight(zb_comm *comm)
{
    float x[3][8] = { { 0 } };
    zb_work works[3];
    for (int i = 0; i < 3; i++)
        ZB_TRY(RUN(comm, &works[i], ALL_REDUCE, .send = x[i], .recv = x[i], .what = "in flight",
                   .numel = i == 2 && comm->rank == 1 ? 3 : 8));
    for (int i = 2; i >= 0; i--) ZB_TRY(zb_comm_wait(comm, &works[i], NULL));
    return ZB_OK;
}

/* --- ranks that fail --- */

/* Found by nobody but the rank itself. */
static zb_status fails_outside(zb_comm *comm)
{
    ZB_TRY(pass(comm));
    if (comm->rank == 1) {
        zb_fail(ZB_IO, "the disk of rank 1 is full");
        zb_mpi_fail(ZB_IO, zb_error_message());
        sleep(1); /* the others need not wait for the end of this one */
        return ZB_IO;
    }
    return pass(comm);
}

/* As above, but nobody is told before the end. */
static zb_status fails_at_end(zb_comm *comm)
{
    ZB_TRY(pass(comm));
    return comm->rank == 1 ? zb_fail(ZB_IO, "the disk of rank 1 is full") : pass(comm);
}

/* The others have messages on their way, and their buffer is gone when they have been told. */
static zb_status fails_in_collective(zb_comm *comm)
{
    const size_t numel = 1 << 20;
    float *x = zb_alloc_array(numel, sizeof *x), y[2][3] = { { 0 } };
    zb_work works[2];
    zb_status status = x == NULL ? ZB_NO_MEMORY : pass(comm);
    if (status == ZB_OK)
        status = RUN(comm, &works[0], ALL_REDUCE, .send = x, .recv = x, .numel = numel, .what = "in flight");
    if (status == ZB_OK && comm->rank == 1) zb_alloc_fail_at(0);
    if (status == ZB_OK)
        status = RUN(comm, &works[1], ALL_GATHER, .send = y[0], .recv = y[1], .numel = 1,
                     .what = "no memory");
    if (status == ZB_OK) status = zb_comm_wait(comm, &works[1], NULL);
    zb_free(x);
    return status;
}

/* Everything that asks for memory, with the n-th allocation failing on rank 1. */
static int64_t failing_allocation = -1;

static zb_status use_everything(zb_comm *comm)
{
    float x[24] = { 0 }, y[24];
    zb_work works[2];
    zb_comm *group = NULL;
    const zb_order_source ring = { .algorithm = ZB_ALGORITHM_MPI_RING },
                          linear = { .algorithm = ZB_ALGORITHM_MPI_LINEAR };
    ZB_TRY(RUN(comm, &works[0], ALL_REDUCE, .send = x, .recv = y, .numel = 24, .order = &linear));
    ZB_TRY(RUN(comm, &works[1], ALL_GATHER, .send = x, .recv = x, .numel = 0));
    ZB_TRY(zb_comm_wait(comm, &works[1], NULL));
    ZB_TRY(zb_comm_wait(comm, &works[0], NULL));
    ZB_TRY(RUN(comm, NULL, ALL_REDUCE, .send = x, .recv = y, .numel = 24, .op = ZB_PREMUL_SUM, .factor = 2,
               .order = &ring));
    ZB_TRY(zb_comm_split(comm, comm->rank > 0, 0, &group));
    const zb_status status = RUN(group, NULL, REDUCE_SCATTER, .send = x, .recv = x + 5 * group->rank,
                                 .numel = 5);
    zb_comm_destroy(group);
    return status;
}

static zb_status not_waited_for(zb_comm *comm)
{
    static float x[8];
    zb_work work;
    ZB_TRY(RUN(comm, &work, ALL_REDUCE, .send = x, .recv = x, .numel = 8, .what = "forgotten"));
    return ZB_OK;
}

static zb_status destroyed_in_flight(zb_comm *comm)
{
    static float x[8];
    zb_comm *group;
    zb_work work;
    ZB_TRY(zb_comm_split(comm, 0, 0, &group));
    ZB_TRY(RUN(group, &work, ALL_REDUCE, .send = x, .recv = x, .numel = 8, .what = "forgotten"));
    zb_comm_destroy(group);
    return pass(comm);
}

/* Without comparison MPI finds that a message does not fit. */
static zb_status too_long(zb_comm *comm)
{
    float x[8] = { 0 };
    if (comm->rank == 0) return RUN(comm, NULL, SEND, .send = x, .numel = 8, .root = 1);
    if (comm->rank == 1) return RUN(comm, NULL, RECV, .recv = x, .numel = 2, .root = 0);
    return pass(comm);
}

static zb_status waited_twice(zb_comm *comm)
{
    float x[8] = { 0 };
    zb_work work, copy;
    ZB_TRY(RUN(comm, &work, ALL_REDUCE, .send = x, .recv = x, .numel = 8));
    copy = work;
    ZB_TRY(zb_comm_wait(comm, &work, NULL));
    return comm->rank == 1 ? zb_comm_wait(comm, &copy, NULL) : pass(comm);
}

/* --- ranks that die, hang, leave --- */

static zb_status killed(zb_comm *comm)
{
    float x[2] = { 0 };
    ZB_TRY(pass(comm));
    if (comm->rank == 1) {
        usleep(300000); /* the others are in their collective */
        raise(SIGKILL);
    }
    return RUN(comm, NULL, ALL_REDUCE, .send = x, .recv = x, .numel = 2, .what = "bereaved");
}

static zb_status never_comes(zb_comm *comm)
{
    float x[2] = { 0 };
    ZB_TRY(pass(comm));
    if (comm->rank == 2) sleep(60);
    return RUN(comm, NULL, ALL_REDUCE, .send = x, .recv = x, .numel = 2, .what = "lonely");
}

static zb_status has_ended(zb_comm *comm)
{
    float x[2] = { 0 };
    ZB_TRY(pass(comm));
    if (comm->rank == 2) return ZB_OK;
    return RUN(comm, NULL, ALL_REDUCE, .send = x, .recv = x, .numel = 2, .what = "lonely");
}

/* Two groups of the same ranks, used in opposite order. */
static zb_status crossed_groups(zb_comm *comm)
{
    float x = 0;
    zb_comm *groups[2] = { NULL, NULL };
    zb_status status = zb_comm_split(comm, 7, 0, &groups[0]);
    if (status == ZB_OK) status = zb_comm_split(comm, 8, 0, &groups[1]);
    for (int i = 0; i < 2 && status == ZB_OK; i++)
        status = RUN(groups[comm->rank == 0 ? i : 1 - i], NULL, ALL_REDUCE, .send = &x, .recv = &x,
                     .numel = 1);
    zb_comm_destroy(groups[0]);
    zb_comm_destroy(groups[1]);
    return status;
}

/* Everyone sends first: a message has no place to wait in. */
static zb_status ring_of_sends(zb_comm *comm)
{
    float x = 0;
    return RUN(comm, NULL, SEND, .send = &x, .numel = 1, .root = (comm->rank + 1) % comm->world_size);
}

/* --- none of this --- */

static zb_status nothing(zb_comm *comm)
{
    return pass(comm);
}

static zb_status never_called(zb_comm *comm)
{
    (void)comm;
    return zb_fail(ZB_DIFFERENT, "a world that could not be made");
}

static zb_status too_many_for_mpi(zb_comm *comm)
{
    /* The error comes before anything is read. */
    char *x = (char *)4096, *y = x + ((size_t)1 << 40);
    const zb_order_source ring = { .algorithm = ZB_ALGORITHM_MPI_RING };
    return RUN(comm, NULL, ALL_REDUCE, .send = x, .recv = y, .numel = (size_t)3 << 30, .order = &ring);
}

static const struct program {
    const char *name;
    zb_status (*main)(zb_comm *comm);
    double timeout_seconds;
    size_t message_bytes_max;
    const char *native;
} programs[] = {
    { "nothing", nothing, 0, 0, NULL },
    { "mismatch-kind", mismatch_kind, 0, 0, NULL },
    { "mismatch-dtype", mismatch_dtype, 0, 0, NULL },
    { "mismatch-numel", mismatch_numel, 0, 0, NULL },
    { "mismatch-counts", mismatch_counts, 0, 0, NULL },
    { "mismatch-op", mismatch_op, 0, 0, NULL },
    { "mismatch-factor", mismatch_factor, 0, 0, NULL },
    { "mismatch-root", mismatch_root, 0, 0, NULL },
    { "mismatch-order", mismatch_order, 0, 0, NULL },
    { "mismatch-split", mismatch_split, 0, 0, NULL },
    { "mismatch-message", mismatch_message, 0, 0, NULL },
    { "mismatch-in-flight", mismatch_in_flight, 0, 0, NULL },
    { "fails-outside", fails_outside, 0, 0, NULL },
    { "fails-at-end", fails_at_end, 0, 0, NULL },
    { "fails-in-collective", fails_in_collective, 0, 0, NULL },
    { "allocation", use_everything, 0, 0, "mpi-ring" },
    { "not-waited-for", not_waited_for, 0, 0, NULL },
    { "destroyed-in-flight", destroyed_in_flight, 0, 0, NULL },
    { "too-long", too_long, 0, 0, NULL },
    { "waited-twice", waited_twice, 0, 0, NULL },
    { "killed", killed, 0, 0, NULL },
    { "never-comes", never_comes, 2, 0, NULL },
    { "has-ended", has_ended, 2, 0, NULL },
    { "crossed-groups", crossed_groups, 2, 0, NULL },
    { "ring-of-sends", ring_of_sends, 2, 0, NULL },
    { "different-options", never_called, 0, 64, NULL },
    { "not-as-told", never_called, 0, 0, "mpi-recursive-halving" },
    { "bad-option", never_called, 0, 10, NULL },
    { "too-many-for-mpi", too_many_for_mpi, 0, 0, "mpi-ring" },
};
enum { PROGRAM_COUNT = sizeof programs / sizeof programs[0] };

/* What gcov has counted is written at exit, to which these programs do not come. */
#ifdef ZB_COVERAGE
void __gcov_dump(void);
int MPI_Abort(MPI_Comm comm, int code)
{
    __gcov_dump();
    return PMPI_Abort(comm, code);
}
#else
static void __gcov_dump(void) {}
#endif

/* A rank whose job is ended for it says where it was. */
static void on_terminate(int number)
{
    char text[700] = "rank ", *at = text + 5;
    const char *place = zb_mpi_place();
    (void)number;
    if (place == NULL) { /* has said what it had to say */
        __gcov_dump();
        _exit(0);
    }
    *at++ = (char)('0' + rank);
    strcpy(at, ": ended from outside, ");
    strcat(at, place);
    strcat(at, "\n");
    if (write(STDERR_FILENO, text, strlen(text)) < 0) _exit(3);
    __gcov_dump();
    _exit(1);
}

static int code_of(zb_status status)
{
    switch (status) {
    case ZB_OK:
        return 0;
    case ZB_MISMATCH:
        return 41;
    case ZB_DEADLOCK:
        return 42;
    case ZB_REMOTE:
        return 43;
    default:
        return 44;
    }
}

static zb_status run(const struct program *program)
{
    zb_comm *comm;
    zb_orders native = { 0 };
    options.message_bytes_max = program->message_bytes_max;
    options.unchecked = program->main == too_long;
    if (rank == 1 && program->main == never_called && options.message_bytes_max == 64)
        options.message_bytes_max = 128;
    if (program->timeout_seconds > 0) options.timeout_seconds = program->timeout_seconds;
    if (program->native != NULL) {
        ZB_TRY(zb_orders_parse(program->native, &native));
        options.native = &native;
    }
    if (rank == 1) zb_alloc_fail_at(failing_allocation);
    const zb_status status = zb_comm_mpi_create(&options, &comm);
    zb_orders_destroy(&native);
    ZB_TRY(status);
    return program->main(comm);
}

int main(int argc, char **argv)
{
    const struct program *program = NULL;
    for (int i = 0; i < PROGRAM_COUNT; i++)
        if (argc > 1 && strcmp(argv[1], programs[i].name) == 0) program = &programs[i];
    if (program == NULL) return 2;
    if (getenv("OMPI_COMM_WORLD_RANK") != NULL) rank = atoi(getenv("OMPI_COMM_WORLD_RANK"));
    if (argc > 2) failing_allocation = atoi(argv[2]);
    signal(SIGTERM, on_terminate);
    const zb_status status = run(program);
    if (status != ZB_OK) fprintf(stderr, "rank %d: %s\n", rank, zb_error_message());
    if (failing_allocation >= 0 && rank == 1 && !zb_alloc_fault_fired()) printf("no allocation has failed\n");
    return zb_mpi_end(code_of(status));
}
