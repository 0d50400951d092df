/*
 * A stand-in for NCCL, on the stand-in of the CUDA run-time: ranks are threads or fibers of one process, each
 * with a device of its own. What NCCL's documentation demands of its callers it checks; what in NCCL would
 * hang or corrupt memory it reports.
 *
 *  - A communicator is there when all ranks have come. A non-blocking one answers ncclInProgress, also to
 * later calls, until it has been asked often enough (the seed says how often); any other call before that is
 * a mistake.
 *  - Nothing is queued before the outermost ncclGroupEnd. Sends and receives of a group run together; each
 * waits for its other half. Work of one communicator runs in the order in which it was issued, on whatever
 * streams.
 *  - Collectives meet by their number in the communicator; ranks that differ in kind, count, type, operator
 * or root are a mistake.
 *  - Sums, averages and pre-multiplied sums are added as the order of the session says (orders/), all of its
 * channels used.
 *  - An aborted communicator lets go of what it has queued. One that has been given back must not be used any
 * more.
 *  - With NCCL_DEBUG_FILE rank 0 writes what zerobit reads: the version, the rings, and what each collective
 * uses.
 */
#ifndef ZB_SIM_NCCL_STANDIN_H
#define ZB_SIM_NCCL_STANDIN_H

#include <nccl.h>
#include <stdint.h>
#include <zerobit/status.h>

typedef struct zb_nccl_standin_options {
    uint64_t seed;
    const char *order; /* NULL: "nccl-ring version=2.28 protocol=simple channels=2" */
} zb_nccl_standin_options;

/** Inside of a session of the CUDA stand-in. ZB_INVALID_ARGUMENT when one is open, or for an order that is
 * not NCCL's. */
zb_status zb_nccl_standin_begin(const zb_nccl_standin_options *options);
/** ZB_INVALID_ARGUMENT with the first mistake, or where a communicator has not been given back; the message
 * counts the others. */
zb_status zb_nccl_standin_end(void);

/** The n-th call from now on (0: the next) fails with `result`; asking for asynchronous errors and aborting
 * do not count. Negative: off. */
void zb_nccl_standin_fail_call(int64_t n, ncclResult_t result);
/** As soon as it runs, the n-th collective or group from now on lets its communicator fail on that rank,
 * asynchronously, and never ends. */
void zb_nccl_standin_fail_async(int64_t n, ncclResult_t result);
int zb_nccl_standin_fault_fired(void);
/** Reductions that NCCL itself has added. */
uint64_t zb_nccl_standin_reductions(void);

#endif
