/* Workers take turns among their ranks; a rank stays on its worker. Also who is woken when the world breaks.
 */
#include "sim/world.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

enum { LOOKS = 1000 /* some 30 microseconds */, VAIN_MAX = 8, SLEEPS = 64 };

static _Thread_local sim_rank *current_rank;

sim_rank *sim_current_rank(void)
{
    return current_rank;
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* There is something for this worker to look at. */
static void poke(sim_worker *worker)
{
    atomic_store_explicit(&worker->poked, 1, memory_order_relaxed);
    if (worker->idle) pthread_cond_signal(&worker->wake);
}

static void enqueue(sim_rank *rank)
{
    sim_worker *worker = rank->worker;
    rank->state = SIM_RUNNABLE;
    worker->queue[worker->queued++] = rank;
    poke(worker);
}

static sim_rank *dequeue(sim_worker *worker)
{
    size_t choice = ((next_random(&worker->random) >> 32) * worker->queued) >> 32;
    sim_rank *rank = worker->queue[choice];
    worker->queue[choice] = worker->queue[--worker->queued];
    return rank;
}

/* --- the world breaks --- */

void sim_break(zb_sim *sim, const sim_rank *rank, zb_status status, const char *message)
{
    if (sim->broken) return;
    sim->broken = 1;
    sim->broken_by = rank != NULL ? rank->index : -1;
    sim->failure.status = status;
    strncpy(sim->failure.message, message, sizeof sim->failure.message - 1);
    for (int i = 0; i < sim->world_size; i++) sim_wake(&sim->ranks[i]);
}

zb_status sim_fail_broken(const zb_sim *sim)
{
    if (sim->broken_by < 0) return zb_fail(sim->failure.status, "%s", sim->failure.message);
    return zb_fail(ZB_REMOTE, "rank %d failed: %s", sim->broken_by, sim->failure.message);
}

static void rank_stops(zb_sim *sim)
{
    if (--sim->active > 0 || sim->unfinished == 0) return;
    ZB_ASSERT(!sim->broken); /* in a broken world nobody waits for long */
    char report[ZB_ERROR_MESSAGE_BYTES];
    sim_report_deadlock(sim, report, sizeof report);
    sim_break(sim, NULL, ZB_DEADLOCK, report);
}

/* --- what a rank does --- */

static void switch_to_worker(sim_rank *rank)
{
    /* The rank may be woken before it has switched away, but only its own worker, which is here, resumes it.
     * The lock cannot be held across the switch: ThreadSanitizer takes the two sides for two threads. */
    pthread_mutex_unlock(&rank->sim->lock);
    sim_fiber_switch(&rank->fiber, &rank->worker->fiber);
    pthread_mutex_lock(&rank->sim->lock);
}

void sim_suspend(sim_rank *rank, sim_part *part)
{
    part->waiting = 1;
    rank->waits_in = part;
    rank->state = SIM_WAITING;
    rank_stops(rank->sim);
    switch_to_worker(rank);
    rank->waits_in = NULL;
}

void sim_wake(sim_rank *rank)
{
    if (rank->state != SIM_WAITING) return;
    rank->sim->active++;
    enqueue(rank);
}

void sim_let_others_run(sim_rank *rank)
{
    enqueue(rank);
    switch_to_worker(rank);
}

static void report_rank_failure(sim_rank *rank, zb_status status)
{
    if (rank->sim->broken) return;
    const char *message = rank->error.status == status ? rank->error.message : zb_status_string(status);
    char place[512] = "";
    if (rank->place.group != NULL) sim_describe_place(&rank->place, place, sizeof place);
    char report[ZB_ERROR_MESSAGE_BYTES];
    snprintf(report, sizeof report, "%s%s%s%s", message, place[0] ? " (after " : "", place,
             place[0] ? ")" : "");
    sim_break(rank->sim, rank, status, report);
}

static void report_forgotten_work(sim_rank *rank)
{
    char call[512], report[ZB_ERROR_MESSAGE_BYTES];
    sim_describe_part(rank->in_flight, call, sizeof call);
    snprintf(report, sizeof report, "finished without waiting for %s", call);
    sim_break(rank->sim, rank, ZB_INVALID_ARGUMENT, report);
}

static void finish_rank(sim_rank *rank, zb_status status)
{
    zb_sim *sim = rank->sim;
    if (status != ZB_OK)
        report_rank_failure(rank, status);
    else if (rank->in_flight != NULL && !sim->broken)
        report_forgotten_work(rank);
    rank->state = SIM_FINISHED;
    if (--sim->unfinished == 0)
        for (int i = 0; i < sim->worker_count; i++) poke(&sim->workers[i]);
    rank_stops(sim);
}

/* One fiber runs the rank's main again and again, once per run. */
static void rank_entry(void *argument)
{
    sim_rank *rank = argument;
    for (;;) {
        zb_status status = rank->sim->main(rank->sim->user, &rank->sim->world->members[rank->index].base);
        pthread_mutex_lock(&rank->sim->lock);
        finish_rank(rank, status);
        pthread_mutex_unlock(&rank->sim->lock);
        sim_fiber_switch(&rank->fiber, &rank->worker->fiber);
    }
}

/* --- what a worker does --- */

static void resume(sim_worker *worker, sim_rank *rank)
{
    sim_rank *outer_rank = current_rank;
    zb_error *outer_error = zb_error_bind(&rank->error);
    current_rank = rank;
    sim_fiber_switch(&worker->fiber, &rank->fiber);
    current_rank = outer_rank;
    zb_error_bind(outer_error);
}

static void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Whether there was something to look at before long. The lock is not held. */
static int look_out(sim_worker *worker)
{
    for (int i = 0; i < LOOKS; i++) {
        if (atomic_load_explicit(&worker->poked, memory_order_relaxed)) return 1;
        pause_briefly();
    }
    return 0;
}

/*
 * Ranks on other workers are mostly a few microseconds away: less than it takes to go to sleep and be woken.
 * So, where every worker has a processor, it looks out for a while first. Where that has been in vain several
 * times in a row (they are far away, or the system has put both workers on one processor) it only tries now
 * and then. The lock is held again at the end.
 */
static void idle(sim_worker *worker)
{
    zb_sim *sim = worker->sim;
    worker->idle = 1;
    if (worker->vain >= VAIN_MAX && ++worker->slept % SLEEPS == 0) worker->vain = VAIN_MAX - 1;
    if (sim->looks_out && worker->vain < VAIN_MAX) {
        atomic_store_explicit(&worker->poked, 0, memory_order_relaxed);
        pthread_mutex_unlock(&sim->lock);
        const int seen = look_out(worker);
        pthread_mutex_lock(&sim->lock);
        worker->vain = seen ? 0 : worker->vain + 1;
    }
    while (worker->queued == 0 && sim->unfinished > 0) pthread_cond_wait(&worker->wake, &sim->lock);
    worker->idle = 0;
}

/* Takes turns among this worker's ranks until all ranks of the world have finished. The lock is held. */
static void work(sim_worker *worker)
{
    zb_sim *sim = worker->sim;
    sim_fiber_adopt(&worker->fiber);
    while (sim->unfinished > 0) {
        if (worker->queued == 0) {
            idle(worker);
            continue;
        }
        sim_rank *rank = dequeue(worker);
        rank->state = SIM_RUNNING;
        pthread_mutex_unlock(&sim->lock);
        resume(worker, rank);
        pthread_mutex_lock(&sim->lock);
    }
}

static void *worker_main(void *argument)
{
    sim_worker *worker = argument;
    zb_sim *sim = worker->sim;
    uint64_t runs_seen = 0;
    pthread_mutex_lock(&sim->lock);
    for (;;) {
        while (!sim->quit && sim->run_count == runs_seen) pthread_cond_wait(&sim->run_changed, &sim->lock);
        if (sim->quit) break;
        runs_seen = sim->run_count;
        work(worker);
        if (--sim->workers_busy == 0) pthread_cond_broadcast(&sim->run_changed);
    }
    pthread_mutex_unlock(&sim->lock);
    return NULL;
}

/* The caller's thread is worker 0. */
void sim_workers_run(zb_sim *sim)
{
    pthread_mutex_lock(&sim->lock);
    sim->active = sim->unfinished = sim->world_size;
    for (int i = 0; i < sim->world_size; i++) enqueue(&sim->ranks[i]);
    sim->workers_busy = sim->thread_count;
    sim->run_count++;
    pthread_cond_broadcast(&sim->run_changed);
    work(&sim->workers[0]);
    while (sim->workers_busy > 0) pthread_cond_wait(&sim->run_changed, &sim->lock);
    pthread_mutex_unlock(&sim->lock);
}

/* --- creation --- */

static zb_status create_worker(zb_sim *sim, int index, uint64_t seed)
{
    sim_worker *worker = &sim->workers[index];
    size_t rank_count = (size_t)((sim->world_size - index - 1) / sim->worker_count + 1);
    worker->sim = sim;
    worker->random = seed ^ ((uint64_t)index << 32);
    worker->queue = zb_alloc_array(rank_count, sizeof *worker->queue);
    worker->inputs = zb_alloc_array((size_t)sim->world_size, sizeof *worker->inputs);
    worker->block = zb_alloc(SIM_BLOCK_BYTES);
    if (worker->queue == NULL || worker->inputs == NULL || worker->block == NULL) return ZB_NO_MEMORY;
    return ZB_OK;
}

static zb_status start_threads(zb_sim *sim)
{
    for (int i = 1; i < sim->worker_count; i++) {
        int error = pthread_create(&sim->workers[i].thread, NULL, worker_main, &sim->workers[i]);
        if (error != 0)
            return zb_fail(ZB_NO_MEMORY, "worker thread %d of %d: %s", i, sim->worker_count, strerror(error));
        sim->thread_count++;
    }
    return ZB_OK;
}

zb_status sim_workers_create(zb_sim *sim, uint64_t seed, size_t stack_bytes)
{
    sim->workers = zb_alloc_array((size_t)sim->worker_count, sizeof *sim->workers);
    sim->ranks = zb_alloc_array((size_t)sim->world_size, sizeof *sim->ranks);
    if (sim->workers == NULL || sim->ranks == NULL) return ZB_NO_MEMORY;
    for (int i = 0; i < sim->worker_count; i++) pthread_cond_init(&sim->workers[i].wake, NULL);
    for (int i = 0; i < sim->worker_count; i++) ZB_TRY(create_worker(sim, i, seed));
    for (int i = 0; i < sim->world_size; i++) {
        sim_rank *rank = &sim->ranks[i];
        rank->sim = sim;
        rank->index = i;
        rank->worker = &sim->workers[i % sim->worker_count];
        ZB_TRY(sim_fiber_create(&rank->fiber, stack_bytes, rank_entry, rank));
    }
    return start_threads(sim);
}

void sim_workers_destroy(zb_sim *sim)
{
    pthread_mutex_lock(&sim->lock);
    sim->quit = 1;
    pthread_cond_broadcast(&sim->run_changed);
    pthread_mutex_unlock(&sim->lock);
    for (int i = 1; i <= sim->thread_count; i++) pthread_join(sim->workers[i].thread, NULL);
    for (int i = 0; sim->ranks != NULL && i < sim->world_size; i++) {
        sim_fiber_destroy(&sim->ranks[i].fiber);
        sim_pool_destroy(&sim->ranks[i].staging);
    }
    for (int i = 0; sim->workers != NULL && sim->ranks != NULL && i < sim->worker_count; i++) {
        pthread_cond_destroy(&sim->workers[i].wake);
        zb_free(sim->workers[i].queue);
        zb_free((void *)sim->workers[i].inputs);
        zb_free(sim->workers[i].block);
    }
    zb_free(sim->ranks);
    zb_free(sim->workers);
}
