/*
 * Where the ranks of an engine under test run: all of them in this process, simulated, or spread over several
 * processes, one rank in each, of which this is one. What every rank shows arrives in one process, which
 * judges; in a spread world that is the process of rank 0, to which the others send it.
 */
#ifndef VERIFY_WORLD_H
#define VERIFY_WORLD_H

#include <stdint.h>
#include <zerobit/comm.h>
#include <zerobit/observe.h>
#include <zerobit/sim.h>

typedef struct zb_world zb_world;

/* What a rank does; it shows itself to `observer`. */
typedef zb_status zb_world_main(void *user, zb_comm *comm, const zb_observer *observer);

zb_status zb_world_simulate(const zb_sim_options *options, zb_world **world_p);
/** Collective over `comm`, which is borrowed: a world of its ranks with a communicator of its own, so that
 * several can be under way. */
zb_status zb_world_spread(zb_comm *comm, zb_world **world_p);
/** NULL is fine. Collective in a spread world that has not failed. */
void zb_world_destroy(zb_world *world);

/** Whether what all ranks show comes to this process. */
int zb_world_judges(const zb_world *world);

/**
 * Run `main` once on every rank and hand what they show to `judge`, where this process judges: in a simulated
 * world from any thread, while they run. ZB_OK, or why the first rank failed (spread: why this one did,
 * ZB_REMOTE when it was another). After a failure only zb_world_destroy is left.
 */
zb_status zb_world_run(zb_world *world, zb_world_main *main, void *user, const zb_observer *judge);

/** Every process gets the numbers of the one that judges. */
zb_status zb_world_agree(zb_world *world, int64_t *words, size_t count);

#endif
