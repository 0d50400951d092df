/*
 * A device and a communicator that pass everything on to the CPU and to a world of one, and on the way
 *  - fail the n-th call that can fail,
 *  - hold the engine to the rules of streams: kernels on `compute`, collectives on the transfer stream,
 *    ordered by events against what computed their input and what reads their result,
 *  - finish a started collective only when it is waited for, with poison in its result until then.
 * A broken rule fails the running test.
 */
#ifndef ZB_TESTS_ENGINE_PROBE_H
#define ZB_TESTS_ENGINE_PROBE_H

#include <zerobit/comm.h>
#include <zerobit/device.h>

/* Counts calls that can fail; lets one of them fail. */
typedef struct probe_fault {
    int64_t calls;
    int64_t fail_at; /* -1: never */
    int fired;
    int lasting; /* and every call after it fails as well */
} probe_fault;

enum { PROBE_STREAMS = 3, PROBE_PENDING = 64 };

typedef struct probe_device {
    zb_device base;
    zb_device *cpu;
    probe_fault fault;
    int stream_count;
    const zb_stream *in_collective; /* what a collective launches goes here; NULL: none runs */
    uint64_t compute_done;          /* work put on the compute stream so far */
    uint64_t
        compute_must_see[PROBE_STREAMS]; /* work of the other streams that later compute work relies on */
    int under_way;                       /* collectives started and not waited for */
    int copying_out;                     /* the host may not look before it has waited */
    int64_t waits_between;               /* how often one stream was made to wait for the other */
} probe_device;

typedef struct probe_stream {
    zb_stream base;
    zb_stream *cpu;
    int index;                    /* 0: compute, 1: transfer, 2: prefetch                */
    uint64_t seen[PROBE_STREAMS]; /* how much of each stream's work is ordered before here */
} probe_stream;

typedef struct probe_comm {
    zb_comm base;
    zb_comm *self;
    probe_device *device;
    probe_fault fault;
    int lazy;
    struct probe_pending {
        zb_collective collective;
        int taken;
        void *sent; /* what is to be sent; NULL: it has run already */
        size_t bytes;
    } pending[PROBE_PENDING];
} probe_comm;

void probe_device_init(probe_device *device);
void probe_device_close(probe_device *device);
void probe_comm_init(probe_comm *comm, probe_device *device);
/* Nothing may be under way any more, even after a failure. */
void probe_comm_close(probe_comm *comm);

#endif
