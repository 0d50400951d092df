/*
 * A simulated world: W ranks as fibers in one process, on a few worker threads. Any number of workers and
 * any seed give the same results.
 *
 * Every collective is checked across its group; a mismatch names both call sites. A wait that can never end
 * is reported with every rank's position. Buffers of an asynchronous operation are poisoned (0xFF) while it
 * owns them, and a write to them in that time is an error: reading a result too early cannot go unseen.
 */
#ifndef ZEROBIT_SIM_H
#define ZEROBIT_SIM_H

#include <stdint.h>
#include <zerobit/comm.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct zb_sim zb_sim;

typedef struct zb_sim_options {
    int world_size;  /* 1..65536 */
    int workers;     /* threads; 0: one per core, at most world_size. A rank stays on its worker. */
    uint64_t seed;   /* order in which runnable ranks are resumed */
    size_t stack_bytes; /* per rank, at least 64 KiB; 0: 256 KiB. A guard page lies below. */
} zb_sim_options;

/** The world outlives its runs: communicators and sequence numbers persist from one zb_sim_run to the next. */
ZB_API zb_status zb_sim_create(const zb_sim_options *options, zb_sim **sim_p);
ZB_API void zb_sim_destroy(zb_sim *sim);

typedef zb_status zb_rank_main(void *user, zb_comm *comm);

/**
 * Run `main` once on every rank and wait for all. When a rank fails, the others get ZB_REMOTE from the
 * collective they are in or come to (in a deadlock all that wait get ZB_DEADLOCK). Returns ZB_OK, or the
 * status of the rank that failed first; the caller's zb_error_message() then holds the whole report: who
 * failed, where, and for ZB_MISMATCH and ZB_DEADLOCK every rank's position. After a failure the world is
 * broken: only zb_sim_destroy is left.
 * `comm` is the rank's world communicator; it belongs to the sim.
 */
ZB_API zb_status zb_sim_run(zb_sim *sim, zb_rank_main *main, void *user);

/**
 * Ranks that share one device, a GPU most likely: `control`, a communicator of a simulated world, brings them together on the host,
 * and the device moves and adds the data, in stream order, each rank a part of it, reading where the others keep theirs. Calls
 * without a stream have the host's memory and go to `control` as they are; send and recv pass through the host.
 *
 * Every rank makes its own, with a handle of the same device (its memory is the others' too). Both are borrowed. A call with
 * a stream returns when all ranks have come to it, also with a zb_work. Errors are those of `control`, and the device's; ZB_MISMATCH
 * names the field, both values and both calls. Once a rank has failed, others may still be looking at its buffers, counts and
 * order: what it has given to its last call, and the communicator, must stay until all ranks have returned, and its device's memory until every rank's
 * device has been waited for (zb_device_wait_idle).
 */
ZB_API zb_status zb_comm_shared_device_create(zb_comm *control, zb_device *device, zb_comm **comm_p);

/** Let other ranks run. From inside a rank only. */
ZB_API void zb_sim_yield(zb_comm *comm);

/** For tests: the n-th collective (0: next, counted over all ranks) fails on its rank with `status`. Negative: off. */
ZB_API void zb_sim_fail_at(zb_sim *sim, int64_t n, zb_status status);
ZB_API int zb_sim_fault_fired(const zb_sim *sim);

#ifdef __cplusplus
}
#endif
#endif
