/* The smallest program on MPI: adds up the ranks. */
#include <stdio.h>
#include <zerobit/mpi.h>

static zb_status run(zb_comm *world)
{
    int32_t rank = world->rank, sum = -1;
    ZB_TRY(zb_collective_run(world, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = &rank, .recv = &sum,
                             .numel = 1, .dtype = ZB_INT32, .what = "sum of ranks"));
    if (sum != world->world_size * (world->world_size - 1) / 2)
        return zb_fail(ZB_DIFFERENT, "the sum of %d ranks is %d", world->world_size, sum);
    return ZB_OK;
}

int main(void)
{
    zb_comm *world;
    zb_status status = zb_comm_mpi_create(NULL, &world);
    if (status == ZB_OK) status = run(world);
    if (status != ZB_OK) fprintf(stderr, "%s\n", zb_error_message());
    return zb_mpi_end(status == ZB_OK ? 0 : 1);
}
