/*
 * More than 2^31 elements on two ranks: all_reduce, all_gather, reduce_scatter, broadcast and a message of
 * uint8, cut where MPI counts in int. Takes 5 GiB of memory.
 */
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/mpi.h>

#define RUN(comm, k, ...)                                                                                    \
    zb_collective_run((comm), NULL, .kind = ZB_COLLECTIVE_##k, .dtype = ZB_UINT8, __VA_ARGS__)

/* Blocks of 2^30 and 2^31 elements must not be mistaken for one another. */
static unsigned char element(int rank, size_t i)
{
    return (unsigned char)((i * 37 + (i >> 28) * 11 + (size_t)rank * 101) & 0xff);
}

static void fill(unsigned char *x, size_t numel, int rank)
{
    for (size_t i = 0; i < numel; i++) x[i] = element(rank, i);
}

typedef unsigned char expected_at(int rank, size_t i);

static unsigned char sum_at(int rank, size_t i)
{
    (void)rank;
    return (unsigned char)(element(0, i) + element(1, i));
}

static zb_status check(const unsigned char *x, size_t first, size_t numel, expected_at *expected, int rank,
                       const char *what)
{
    for (size_t i = 0; i < numel; i++)
        if (x[i] != expected(rank, first + i))
            return zb_fail(ZB_DIFFERENT, "%s: element %zu is %d, want %d", what, first + i, x[i],
                           expected(rank, first + i));
    return ZB_OK;
}

static zb_status run_all(zb_comm *comm, unsigned char *x, size_t numel)
{
    const int me = comm->rank;
    const size_t half = numel / 2, own = (size_t)me * half;
    fill(x, numel, me);
    ZB_TRY(RUN(comm, ALL_REDUCE, .send = x, .recv = x, .numel = numel));
    ZB_TRY(check(x, 0, numel, sum_at, 0, "all_reduce"));

    fill(x, numel, me);
    ZB_TRY(RUN(comm, REDUCE_SCATTER, .send = x, .recv = x + own, .numel = half));
    ZB_TRY(check(x + own, own, half, sum_at, 0, "reduce_scatter"));
    ZB_TRY(RUN(comm, ALL_GATHER, .send = x + own, .recv = x, .numel = half));
    ZB_TRY(check(x, 0, numel, sum_at, 0, "all_gather"));

    fill(x, numel, me);
    ZB_TRY(RUN(comm, BROADCAST, .recv = x, .numel = numel, .root = 1));
    ZB_TRY(check(x, 0, numel, element, 1, "broadcast"));

    fill(x, numel, me);
    ZB_TRY(me == 0 ? RUN(comm, SEND, .send = x, .numel = numel, .root = 1)
                   : RUN(comm, RECV, .recv = x, .numel = numel, .root = 0));
    return check(x, 0, numel, element, 0, "message");
}

static zb_status run(zb_comm *comm)
{
    const size_t numel = 2 * (((size_t)1 << 31) / 2 + 1000003);
    if (comm->world_size != 2) return zb_fail(ZB_INVALID_ARGUMENT, "%d ranks, want 2", comm->world_size);
    unsigned char *x = zb_alloc(numel);
    if (x == NULL) return ZB_NO_MEMORY;
    const zb_status status = run_all(comm, x, numel);
    zb_free(x);
    return status;
}

int main(void)
{
    zb_comm *comm;
    zb_status status = zb_comm_mpi_create(NULL, &comm);
    if (status == ZB_OK) status = run(comm);
    if (status != ZB_OK) fprintf(stderr, "%s\n", zb_error_message());
    return zb_mpi_end(status == ZB_OK ? 0 : 1);
}
