/*
 * A communicator whose callers hold buffers of the host, and whose insides hold them on a device: each call's
 * buffers get doubles there, copied in before it starts and out when it is finished. So what tests the host's
 * communicators tests those of devices.
 */
#ifndef ZB_TESTS_ON_DEVICE_H
#define ZB_TESTS_ON_DEVICE_H

#include <zerobit/comm.h>

/* `inner` and `device` go with it. Calls with a stream of their own are passed on as they are. */
zb_status on_device_wrap(zb_comm *inner, zb_device *device, zb_comm **comm_p);

#endif
