/* A simulated world: creation, runs, and the few calls that are not those of a communicator. */
#define _GNU_SOURCE /* PTHREAD_MUTEX_ADAPTIVE_NP */
#include <zerobit/sim.h>

#include <string.h>
#include <unistd.h>
#include <zerobit/memory.h>

#include "sim/world.h"

enum {
    WORLD_SIZE_MAX = 65536,
    WORKERS_MAX = 1024,
    STACK_BYTES_DEFAULT = 256 * 1024,
    STACK_BYTES_MIN = 64 * 1024
};

static zb_status check_options(const zb_sim_options *options)
{
    if (options->world_size < 1 || options->world_size > WORLD_SIZE_MAX)
        return zb_fail(ZB_INVALID_ARGUMENT, "world_size is %d, want 1..%d", options->world_size,
                       WORLD_SIZE_MAX);
    if (options->workers < 0 || options->workers > WORKERS_MAX)
        return zb_fail(ZB_INVALID_ARGUMENT, "workers is %d, want 0..%d", options->workers, WORKERS_MAX);
    if (options->stack_bytes != 0 && options->stack_bytes < STACK_BYTES_MIN)
        return zb_fail(ZB_INVALID_ARGUMENT, "stack_bytes is %zu, want 0 or at least %d", options->stack_bytes,
                       STACK_BYTES_MIN);
    return ZB_OK;
}

static int count_cores(void)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 1 ? 1 : cores > WORKERS_MAX ? WORKERS_MAX : (int)cores;
}

static int choose_workers(const zb_sim_options *options)
{
    const int workers = options->workers != 0 ? options->workers : count_cores();
    return workers < options->world_size ? workers : options->world_size;
}

/* Held for a moment at a time: who finds it taken tries again before it goes to sleep, where the system
 * offers that. */
static void create_lock(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
    pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static zb_status create_world_group(zb_sim *sim)
{
    ZB_TRY(sim_group_create(sim, sim->world_size, "world", &sim->world));
    for (int i = 0; i < sim->world_size; i++) sim_group_set_member(sim->world, i, &sim->ranks[i]);
    return ZB_OK;
}

zb_status zb_sim_create(const zb_sim_options *options, zb_sim **sim_p)
{
    ZB_TRY(check_options(options));
    zb_sim *sim = zb_alloc(sizeof *sim);
    if (sim == NULL) return ZB_NO_MEMORY;
    create_lock(&sim->lock);
    pthread_cond_init(&sim->run_changed, NULL);
    sim->world_size = options->world_size;
    sim->worker_count = choose_workers(options);
    sim->looks_out = sim->worker_count > 1 && sim->worker_count <= count_cores();
    sim->fault_countdown = -1;
    size_t stack_bytes = options->stack_bytes != 0 ? options->stack_bytes : STACK_BYTES_DEFAULT;
    zb_status status = sim_workers_create(sim, options->seed, stack_bytes);
    if (status == ZB_OK) status = create_world_group(sim);
    if (status != ZB_OK) {
        zb_sim_destroy(sim);
        return status;
    }
    *sim_p = sim;
    return ZB_OK;
}

void zb_sim_destroy(zb_sim *sim)
{
    if (sim == NULL) return;
    while (sim->groups != NULL) sim_group_destroy(sim->groups);
    sim_workers_destroy(sim);
    pthread_cond_destroy(&sim->run_changed);
    pthread_mutex_destroy(&sim->lock);
    zb_free(sim);
}

/* After the run the lock is not needed: the workers have left it. */
static zb_status run_result(const zb_sim *sim)
{
    if (!sim->broken) return ZB_OK;
    if (sim->broken_by < 0) return zb_fail(sim->failure.status, "%s", sim->failure.message);
    return zb_fail(sim->failure.status, "rank %d failed: %s", sim->broken_by, sim->failure.message);
}

zb_status zb_sim_run(zb_sim *sim, zb_rank_main *main, void *user)
{
    pthread_mutex_lock(&sim->lock);
    int running = sim->running, broken = sim->broken;
    if (!running && !broken) sim->running = 1;
    pthread_mutex_unlock(&sim->lock);
    if (running) return zb_fail(ZB_INVALID_ARGUMENT, "this simulated world is running already");
    if (broken)
        return zb_fail(ZB_INVALID_ARGUMENT, "this simulated world broke in an earlier run: %s",
                       sim->failure.message);
    sim->main = main;
    sim->user = user;
    sim_workers_run(sim);
    sim->running = 0;
    return run_result(sim);
}

void zb_sim_yield(zb_comm *comm)
{
    sim_member *member = (sim_member *)comm;
    ZB_ASSERT(comm->ops == &sim_comm_ops && sim_current_rank() == member->rank);
    pthread_mutex_lock(&member->rank->sim->lock);
    sim_let_others_run(member->rank);
    pthread_mutex_unlock(&member->rank->sim->lock);
}

void zb_sim_fail_at(zb_sim *sim, int64_t n, zb_status status)
{
    ZB_ASSERT(n < 0 || status != ZB_OK);
    pthread_mutex_lock(&sim->lock);
    sim->fault_countdown = n < 0 ? -1 : n;
    sim->fault_status = status;
    sim->fault_fired = 0;
    pthread_mutex_unlock(&sim->lock);
}

int zb_sim_fault_fired(const zb_sim *sim)
{
    return sim->fault_fired;
}
