/*
 * The communicator suite on MPI, in every world from one rank to all of them: smaller ones are groups. Run by
 * mpirun. --message-bytes N cuts messages, --unchecked leaves out the comparison of calls.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/mpi.h>

#include "tests/sim/comm_suite.h"

static zb_status run_case(zb_comm *members, const comm_suite_case *c, uint64_t seed)
{
    zb_status status = c->main(&seed, members);
    if (status == ZB_OK) status = c->main(&seed, members); /* a group outlives what is done with it */
    if (status != ZB_OK) zb_fail_context("%d ranks, %s", members->world_size, c->name);
    return status;
}

static zb_status run_world(zb_comm *world, int ranks)
{
    zb_comm *members = NULL;
    zb_status status = ZB_OK;
    ZB_TRY(zb_comm_split(world, world->rank < ranks ? 0 : -1, world->rank, &members));
    for (int c = 0; c < comm_suite_case_count && members != NULL && status == ZB_OK; c++)
        status = run_case(members, &comm_suite_cases[c], (uint64_t)ranks);
    zb_comm_destroy(members);
    return status;
}

static zb_status run(const zb_mpi_options *options)
{
    zb_comm *world;
    ZB_TRY(zb_comm_mpi_create(options, &world));
    for (int ranks = 1; ranks <= world->world_size; ranks++) ZB_TRY(run_world(world, ranks));
    if (world->rank == 0)
        printf("%d cases in worlds of 1 to %d ranks\n", comm_suite_case_count, world->world_size);
    return ZB_OK;
}

int main(int argc, char **argv)
{
    zb_mpi_options options = { .timeout_seconds = 60 };
    const uint64_t live = zb_alloc_get_stats().live;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--unchecked") == 0) options.unchecked = 1;
        if (strcmp(argv[i], "--message-bytes") == 0 && i + 1 < argc)
            options.message_bytes_max = strtoul(argv[++i], NULL, 10);
    }
    const zb_status status = run(&options);
    if (status != ZB_OK) fprintf(stderr, "%s\n", zb_error_message());
    const int code = zb_mpi_end(status == ZB_OK ? 0 : 1);
    if (zb_alloc_get_stats().live == live) return code;
    fprintf(stderr, "%llu blocks are left\n", (unsigned long long)(zb_alloc_get_stats().live - live));
    return 1;
}
