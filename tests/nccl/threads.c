/* Threads as ranks; see threads.h. */
#include "tests/nccl/threads.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/cuda.h>

#include "sim/cuda/standin.h"
#include "sim/nccl/standin.h"
#include "tests/nccl/processes.h"
#include "tests/sim/on_device.h"

typedef struct thread_rank {
    const thread_world *world;
    zb_nccl_environment here;
    thread_main *main;
    void *user;
    zb_error *end;
    pthread_t thread;
} thread_rank;

/* What is left for the others to hear of is said before the communicator goes. */
static zb_status run_main(const thread_rank *rank, zb_comm *comm)
{
    zb_error kept = { .status = rank->main(rank->user, comm) };
    snprintf(kept.message, sizeof kept.message, "%s", zb_error_message());
    if (kept.status != ZB_OK) zb_comm_fail(comm, kept.status, kept.message);
    zb_comm_destroy(comm);
    return kept.status != ZB_OK ? zb_fail(kept.status, "%s", kept.message) : ZB_OK;
}

static zb_status create(const thread_rank *rank, zb_device *device, zb_comm **comm_p)
{
    const thread_world *w = rank->world;
    const zb_nccl_options options = { .device = device,
                                      .environment = &rank->here,
                                      .native = w->native,
                                      .timeout_seconds = w->timeout_seconds > 0 ? w->timeout_seconds : 30,
                                      .scratch_bytes = w->scratch_bytes,
                                      .unchecked = w->unchecked };
    return zb_comm_nccl_create(&options, comm_p);
}

static zb_status run_rank(const thread_rank *rank)
{
    zb_device *device;
    zb_comm *comm, *outer;
    ZB_TRY(zb_device_cuda_create(rank->here.rank, &device));
    zb_status status = create(rank, device, &comm);
    if (status == ZB_OK && rank->world->on_device) { /* the wrapper takes both along */
        ZB_ASSERT(on_device_wrap(comm, device, &outer) == ZB_OK);
        return run_main(rank, outer);
    }
    if (status == ZB_OK) status = run_main(rank, comm);
    zb_device_destroy(device);
    return status;
}

static void *thread_of(void *user)
{
    thread_rank *rank = user;
    zb_error error = { 0 };
    zb_error *bound = zb_error_bind(&error);
    const zb_status status = run_rank(rank);
    zb_error_bind(bound);
    *rank->end = error;
    rank->end->status = status;
    return NULL;
}

static void end_sessions(thread_ends *ends)
{
    zb_standin_join_hosts();
    const zb_status nccl = zb_nccl_standin_end();
    ends->session = nccl;
    if (nccl != ZB_OK)
        snprintf(ends->session_message, sizeof ends->session_message, "%s", zb_error_message());
    const zb_status cuda = zb_standin_end();
    if (nccl != ZB_OK || cuda == ZB_OK) return;
    ends->session = cuda;
    snprintf(ends->session_message, sizeof ends->session_message, "%s", zb_error_message());
}

void run_threads(const thread_world *world, thread_main *main, void *user, void (*before)(void *user),
                 thread_ends *ends)
{
    thread_rank ranks[THREADS_MAX];
    const int port = find_free_port();
    memset(ends, 0, sizeof *ends);
    ZB_ASSERT(zb_standin_begin(&(zb_standin_options){ .seed = world->seed, .device_count = world->size }) ==
              ZB_OK);
    ZB_ASSERT(zb_nccl_standin_begin(
                  &(zb_nccl_standin_options){ .seed = world->seed, .order = world->order }) == ZB_OK);
    if (before != NULL) before(user);
    for (int r = 0; r < world->size; r++) {
        ranks[r] = (thread_rank){ .world = world,
                                  .here = { .rank = r, .world_size = world->size, .port = port },
                                  .main = main,
                                  .user = user,
                                  .end = &ends->ranks[r] };
        snprintf(ranks[r].here.address, sizeof ranks[r].here.address, "127.0.0.1");
        ZB_ASSERT(pthread_create(&ranks[r].thread, NULL, thread_of, &ranks[r]) == 0);
    }
    for (int r = 0; r < world->size; r++) pthread_join(ranks[r].thread, NULL);
    end_sessions(ends);
}

zb_status first_failure(const thread_world *world, const thread_ends *ends)
{
    for (int pass = 0; pass < 2; pass++)
        for (int r = 0; r < world->size; r++) {
            const zb_error *end = &ends->ranks[r];
            if (end->status != ZB_OK && (pass == 1 || end->status != ZB_REMOTE))
                return zb_fail(end->status, "rank %d: %s", r, end->message);
        }
    return ends->session != ZB_OK ? zb_fail(ends->session, "the stand-ins: %s", ends->session_message)
                                  : ZB_OK;
}
