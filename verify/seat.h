/*
 * What a rank of a world has to itself: the device that it computes on, and the communicator that reaches
 * that device's memory. The engine is made from the two.
 */
#ifndef VERIFY_SEAT_H
#define VERIFY_SEAT_H

#include <zerobit/comm.h>
#include <zerobit/device.h>

typedef struct zb_seat {
    zb_device *device;
    zb_comm *comm; /* the world's, or one of this seat's own on top of it */
    int owns_comm;
} zb_seat;

/**
 * On the rank itself. devices NULL: the CPU. Simulated ranks whose memory is not the host's share one
 * device's. After a failure the seat is empty.
 */
zb_status zb_seat_create(const zb_device_factory *devices, zb_comm *world, int is_simulated, zb_seat *seat);

/** Before the first engine is destroyed: no rank's device still reads what another holds. Failures are left
 * to be told by what follows. */
void zb_seats_settle(zb_seat *seats, int count);
/** The engine that sits on it goes first. An empty seat is fine. */
void zb_seat_destroy(zb_seat *seat);

#endif
