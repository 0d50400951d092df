/* A rank's device and communicator; see seat.h. */
#include "verify/seat.h"

#include <zerobit/sim.h>

static zb_status make_device(const zb_device_factory *devices, int rank, zb_device **device_p)
{
    if (devices == NULL) return zb_device_cpu_create_poisoning(device_p);
    return devices->create(devices->user, rank, device_p);
}

zb_status zb_seat_create(const zb_device_factory *devices, zb_comm *world, int is_simulated, zb_seat *seat)
{
    *seat = (zb_seat){ .comm = world };
    ZB_TRY(make_device(devices, world->rank, &seat->device));
    if (!is_simulated || seat->device->ops->memory_is_hosts) return ZB_OK;
    const zb_status status = zb_comm_shared_device_create(world, seat->device, &seat->comm);
    if (status != ZB_OK) {
        zb_device_destroy(seat->device);
        *seat = (zb_seat){ 0 };
        return status;
    }
    seat->owns_comm = 1;
    return ZB_OK;
}

void zb_seats_settle(zb_seat *seats, int count)
{
    for (int i = 0; i < count; i++)
        if (seats[i].device != NULL) (void)zb_device_wait_idle(seats[i].device);
}

void zb_seat_destroy(zb_seat *seat)
{
    if (seat->owns_comm) zb_comm_destroy(seat->comm);
    zb_device_destroy(seat->device);
    *seat = (zb_seat){ 0 };
}
