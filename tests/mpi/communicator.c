/*
 * What only this back end promises: a process has one world, a pattern that repeats allocates nothing,
 * scratch memory is bounded, this rank's place can be told. Run by mpirun with two ranks or more;
 * --unchecked leaves out the comparison of calls.
 */
#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/mpi.h>

#define RUN(comm, work, k, ...) zb_collective_run((comm), (work), .kind = ZB_COLLECTIVE_##k, __VA_ARGS__)

static zb_status expect(int holds, const char *what)
{
    return holds ? ZB_OK : zb_fail(ZB_DIFFERENT, "%s", what);
}

/* --- one world --- */

static zb_status one_world(zb_comm *world)
{
    zb_comm *second;
    const zb_status status = zb_comm_mpi_create(NULL, &second);
    ZB_TRY(expect(status == ZB_INVALID_ARGUMENT, "a process got a second world"));
    ZB_TRY(expect(strstr(zb_error_message(), "one at a time") != NULL, zb_error_message()));
    zb_comm_destroy(world); /* stays */
    return RUN(world, NULL, BARRIER, .what = "still there");
}

/* --- what repeats allocates nothing --- */

enum { NUMEL = 1000, IN_FLIGHT = 4 };

static const zb_order_source mpi_ring = { .algorithm = ZB_ALGORITHM_MPI_RING },
                             gloo = { .algorithm = ZB_ALGORITHM_GLOO };

/* One rank waits in rising, the others in falling order; a rank may be a round ahead of another. */
static zb_status one_round(zb_comm *comm, zb_comm *group)
{
    static float x[IN_FLIGHT][8 * NUMEL], y[IN_FLIGHT][8 * NUMEL];
    zb_work works[IN_FLIGHT];
    const int n = comm->world_size, to = (comm->rank + 1) % n, from = (comm->rank + n - 1) % n;
    ZB_TRY(RUN(comm, &works[0], ALL_REDUCE, .send = x[0], .recv = y[0], .numel = NUMEL, .order = &mpi_ring));
    ZB_TRY(RUN(comm, &works[1], REDUCE_SCATTER, .send = x[1], .recv = y[1], .numel = 100, .order = &gloo));
    ZB_TRY(RUN(comm, &works[2], SEND, .send = x[2], .numel = 70, .root = to));
    ZB_TRY(RUN(comm, &works[3], RECV, .recv = y[3], .numel = 70, .root = from));
    for (int i = 0; i < IN_FLIGHT; i++)
        ZB_TRY(zb_comm_wait(comm, &works[comm->rank == 0 ? i : IN_FLIGHT - 1 - i], NULL));
    ZB_TRY(RUN(group, NULL, REDUCE, .send = x[0], .recv = y[0], .numel = 8 * NUMEL, .root = 0));
    return RUN(comm, NULL, BROADCAST, .recv = y[0], .numel = 8 * NUMEL, .root = 1);
}

static zb_status repeats_without_allocating(zb_comm *world)
{
    zb_comm *group;
    ZB_TRY(zb_comm_split(world, 0, -world->rank, &group));
    for (int round = 0; round < 2; round++) ZB_TRY(one_round(world, group));
    const uint64_t before = zb_alloc_get_stats().calls;
    for (int round = 0; round < 20; round++) ZB_TRY(one_round(world, group));
    const uint64_t calls = zb_alloc_get_stats().calls - before;
    zb_comm_destroy(group);
    if (calls == 0) return ZB_OK;
    return zb_fail(ZB_DIFFERENT, "%llu allocations from the third round on", (unsigned long long)calls);
}

/* --- memory does not grow with the size of a reduction --- */

static zb_status reduces_in_bounded_memory(zb_comm *world)
{
    const size_t numel = (size_t)24 << 20, held = (size_t)5 << 20;
    float *x = zb_alloc_array(numel, sizeof *x);
    zb_work work;
    if (x == NULL) return ZB_NO_MEMORY;
    const uint64_t before = zb_alloc_get_stats().live_bytes;
    zb_status status = RUN(world, &work, ALL_REDUCE, .send = x, .recv = x, .numel = numel);
    const uint64_t more = zb_alloc_get_stats().live_bytes - before;
    if (status == ZB_OK) status = zb_comm_wait(world, &work, NULL);
    zb_free(x);
    if (status != ZB_OK || more <= held) return status;
    return zb_fail(ZB_DIFFERENT, "an all_reduce of %zu bytes holds %llu bytes, want at most %zu",
                   numel * sizeof(float), (unsigned long long)more, held);
}

/* --- what blocks in MPI does not block what is in flight --- */

static zb_status split_once(zb_comm *world)
{
    zb_comm *group;
    ZB_TRY(zb_comm_split(world, 0, world->rank, &group));
    zb_comm_destroy(group);
    return ZB_OK;
}

static zb_status add_natively(zb_comm *world)
{
    static float x[NUMEL];
    return RUN(world, NULL, ALL_REDUCE, .send = x, .recv = x, .numel = NUMEL, .order = &mpi_ring);
}

/* Of several rounds, in which every rank is needed: rank 1 waits for it first, the others afterwards. */
static zb_status wait_around(zb_comm *world, zb_status (*block)(zb_comm *world))
{
    const size_t numel = (size_t)3 << 20;
    zb_work work;
    float *x = zb_alloc_array(numel, sizeof *x);
    if (x == NULL) return ZB_NO_MEMORY;
    zb_status status = RUN(world, &work, ALL_REDUCE, .send = x, .recv = x, .numel = numel);
    if (status == ZB_OK && world->rank == 1) status = zb_comm_wait(world, &work, NULL);
    if (status == ZB_OK) status = block(world);
    if (status == ZB_OK && world->rank != 1) status = zb_comm_wait(world, &work, NULL);
    zb_free(x);
    return status;
}

static zb_status waits_around_a_split(zb_comm *world)
{
    return wait_around(world, split_once);
}

static zb_status waits_around_a_native_reduction(zb_comm *world)
{
    return wait_around(world, add_natively);
}

/* --- the place --- */

static zb_status tells_its_place(zb_comm *world)
{
    char want[160];
    ZB_TRY(RUN(world, NULL, BARRIER, .what = "a place"));
    const int line = __LINE__ - 1;
    snprintf(want, sizeof want, "of world (a place) at mpi/communicator.c:%d", line);
    const char *place = zb_mpi_place();
    ZB_TRY(expect(place != NULL && strncmp(place, "came last to barrier #", 22) == 0, place));
    return expect(strstr(place, want) != NULL, place);
}

/* --- native or not --- */

static zb_status says_what_is_native(zb_comm *world)
{
    zb_collective call = { .kind = ZB_COLLECTIVE_ALL_REDUCE, .dtype = ZB_FP32, .order = &mpi_ring };
    zb_comm *alone;
    ZB_TRY(expect(zb_mpi_native(world, &call), "all_reduce by mpi-ring is native"));
    call.dtype = ZB_UINT8;
    ZB_TRY(expect(!zb_mpi_native(world, &call), "a sum of uint8 is not"));
    call.dtype = ZB_FP32;
    call.op = ZB_MAX;
    ZB_TRY(expect(!zb_mpi_native(world, &call), "a maximum is not"));
    call.op = ZB_SUM;
    call.order = &gloo;
    ZB_TRY(expect(!zb_mpi_native(world, &call), "gloo is not"));
    call.order = &mpi_ring;
    call.kind = ZB_COLLECTIVE_REDUCE;
    ZB_TRY(expect(!zb_mpi_native(world, &call), "Open MPI has no reduce by ring"));
    call.kind = ZB_COLLECTIVE_ALL_GATHER;
    ZB_TRY(expect(!zb_mpi_native(world, &call), "an all_gather does not add"));
    call.kind = ZB_COLLECTIVE_ALL_REDUCE;
    ZB_TRY(zb_comm_split(world, world->rank, 0, &alone));
    const int native = zb_mpi_native(alone, &call);
    zb_comm_destroy(alone);
    return expect(!native, "a rank alone adds by itself");
}

static const struct check {
    const char *name;
    zb_status (*run)(zb_comm *world);
} checks[] = {
    { "a process has one world", one_world },
    { "what repeats allocates nothing", repeats_without_allocating },
    { "memory of a reduction is bounded", reduces_in_bounded_memory },
    { "one waits before a split, one after it", waits_around_a_split },
    { "one waits before a native reduction, one after it", waits_around_a_native_reduction },
    { "a rank tells its place", tells_its_place },
    { "which reductions are native", says_what_is_native },
};

static zb_status run(int unchecked, zb_comm **world)
{
    zb_orders native;
    ZB_TRY(expect(zb_mpi_place() == NULL, "a place before the first collective"));
    ZB_TRY(zb_orders_parse("mpi-ring", &native));
    const zb_mpi_options options = { .native = &native, .unchecked = unchecked, .timeout_seconds = 30 };
    const zb_status status = zb_comm_mpi_create(&options, world);
    zb_orders_destroy(&native);
    ZB_TRY(status);
    ZB_TRY(expect(zb_mpi_place() == NULL, "a place before the program's first collective"));
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++)
        if (checks[i].run(*world) != ZB_OK) return zb_fail_context("%s", checks[i].name);
    return ZB_OK;
}

static int check_end(int code)
{
    zb_comm *world;
    int finalized;
    MPI_Finalized(&finalized);
    if (code != 0) return code;
    if (finalized && zb_mpi_place() == NULL && zb_comm_mpi_create(NULL, &world) == ZB_INVALID_ARGUMENT)
        return 0;
    fprintf(stderr, "after the end: finalized %d, place %s\n", finalized, zb_mpi_place());
    return 1;
}

int main(int argc, char **argv)
{
    const int unchecked = argc > 1 && strcmp(argv[1], "--unchecked") == 0;
    const uint64_t live = zb_alloc_get_stats().live;
    zb_comm *world;
    const zb_status status = run(unchecked, &world);
    if (status != ZB_OK) fprintf(stderr, "%s\n", zb_error_message());
    const int code = check_end(zb_mpi_end(status == ZB_OK ? 0 : 1));
    if (zb_alloc_get_stats().live == live) return code;
    fprintf(stderr, "%llu blocks are left\n", (unsigned long long)(zb_alloc_get_stats().live - live));
    return 1;
}
