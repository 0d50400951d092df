/* The world's beginning and end, and the thread that watches while nobody calls. */
#include "engine/nccl/world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/cuda.h>
#include <zerobit/memory.h>

#include "engine/nccl/rendezvous.h"

enum { VERSION_MIN = 21800, SCRATCH_BYTES = 32 << 20, SCRATCH_BYTES_MIN = 256 };

zb_status zb_nccl_check_cuda(cudaError_t code, const char *call)
{
    if (code == cudaSuccess) return ZB_OK;
    const int name_length = (int)strcspn(call, "(");
    (void)cudaGetLastError(); /* told here, and by no launch that follows */
    return zb_fail(code == cudaErrorMemoryAllocation ? ZB_NO_MEMORY : ZB_INTERNAL, "%.*s: %s", name_length,
                   call, cudaGetErrorString(code));
}

void zb_nccl_lock(nccl_world *world)
{
    pthread_mutex_lock(&world->lock);
}

void zb_nccl_unlock(nccl_world *world)
{
    pthread_mutex_unlock(&world->lock);
}

/*
 * The device may let the host wait for everything that its streams were given before: not under the lock, or
 * the watching thread could not free them from a rank that is gone.
 */
zb_status zb_nccl_device_alloc(nccl_world *world, size_t bytes, void **pointer_p)
{
    zb_nccl_unlock(world);
    const zb_status status = world->device->ops->alloc(world->device, bytes, pointer_p);
    zb_nccl_lock(world);
    return status != ZB_OK ? status : zb_nccl_look(world, 0);
}

/* --- watching --- */

/* What was queued on the group's stream when the watch began is not through after all this time. */
static zb_status watch_stream(nccl_group *group)
{
    const nccl_world *world = group->world;
    if (group->comm == NULL) return ZB_OK;
    if (!group->watching) {
        if (group->watched_count == group->queued_count) return ZB_OK;
        CUDA_TRY(cudaEventRecord(group->watched, zb_cuda_stream(group->stream)));
        group->watching = 1;
        group->watched_count = group->queued_count;
        group->watched_since = zb_control_now();
    }
    const cudaError_t code = cudaEventQuery(group->watched);
    if (code == cudaErrorNotReady) {
        if (zb_control_now() - group->watched_since <= world->timeout_seconds) return ZB_OK;
        return zb_fail(ZB_DEADLOCK, "rank %d has waited %g s for the GPU to finish the collectives of %s",
                       world->rank, world->timeout_seconds, group->name);
    }
    group->watching = 0;
    return zb_nccl_check_cuda(code, "cudaEventQuery");
}

static zb_status watch_once(nccl_world *world)
{
    CUDA_TRY(cudaSetDevice(world->ordinal)); /* of this thread, also for what aborts */
    ZB_TRY(zb_nccl_look(world, 0));
    for (nccl_group *group = world->groups; group != NULL; group = group->next) {
        ZB_TRY(zb_nccl_check_async(group));
        ZB_TRY(watch_stream(group));
    }
    return ZB_OK;
}

static void *watch(void *user)
{
    enum { PERIOD_MS = 20 };
    nccl_world *world = user;
    pthread_mutex_lock(&world->lock);
    while (!world->leaving) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += PERIOD_MS * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&world->leave, &world->lock, &until);
        if (!world->leaving && !world->failure.set) zb_nccl_settle(world, NULL, watch_once(world));
    }
    pthread_mutex_unlock(&world->lock);
    return NULL;
}

static zb_status start_watching(nccl_world *world)
{
    const int code = pthread_create(&world->watcher, NULL, watch, world);
    if (code != 0) return zb_fail(ZB_NO_MEMORY, "no thread to watch NCCL with: %s", strerror(code));
    world->watched = 1;
    return ZB_OK;
}

static void stop_watching(nccl_world *world)
{
    if (!world->watched) return;
    pthread_mutex_lock(&world->lock);
    world->leaving = 1;
    pthread_cond_signal(&world->leave);
    pthread_mutex_unlock(&world->lock);
    pthread_join(world->watcher, NULL);
}

/* --- the end --- */

static void say_ended(nccl_world *world)
{
    for (int r = 0; r < world->size; r++)
        if (r != world->rank) zb_control_send(world->control, r, FRAME_ENDED, 0, 0, NULL, 0);
}

void zb_nccl_release(nccl_world *world)
{
    enum { GRACE_SECONDS = 1 };
    stop_watching(world);
    if (world->control != NULL) say_ended(world);
    zb_control_destroy(world->control, world->failure.set ? GRACE_SECONDS : world->timeout_seconds);
    zb_stream_destroy(world->copies);
    zb_orders_destroy(&world->native);
    pthread_cond_destroy(&world->leave);
    pthread_mutex_destroy(&world->lock);
    zb_free(world->last_calls);
    zb_free(world->has_called);
    zb_free(world);
}

/* --- the beginning --- */

static zb_status check_environment(const zb_nccl_environment *here)
{
    if (here == NULL) return zb_fail(ZB_INVALID_ARGUMENT, "environment is NULL, want who this rank is");
    if (here->world_size < 1 || here->rank < 0 || here->rank >= here->world_size)
        return zb_fail(ZB_INVALID_ARGUMENT, "rank %d of a world of %d, want 0 to world_size - 1", here->rank,
                       here->world_size);
    if (here->world_size > 1 && (here->address[0] == '\0' || here->port < 1 || here->port > 65535))
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "rendezvous at \"%s\", port %d, want an address and a port from 1 to 65535",
                       here->address, here->port);
    return ZB_OK;
}

static zb_status check_options(const zb_nccl_options *options)
{
    const size_t least = SCRATCH_BYTES_MIN * (size_t)options->environment->world_size;
    if (options->device == NULL || !zb_device_is_cuda(options->device))
        return zb_fail(ZB_INVALID_ARGUMENT, "the device is %s, want one of CUDA's",
                       options->device == NULL ? "NULL" : options->device->ops->name);
    if (!(options->timeout_seconds >= 0))
        return zb_fail(ZB_INVALID_ARGUMENT, "timeout_seconds is %g, want 0 or more",
                       options->timeout_seconds);
    if (options->scratch_bytes != 0 && options->scratch_bytes < least)
        return zb_fail(ZB_INVALID_ARGUMENT, "scratch_bytes is %zu, want 0 or at least %zu, for %d ranks",
                       options->scratch_bytes, least, options->environment->world_size);
    return ZB_OK;
}

/* Ranks that share a GPU must look like machines of their own, or NCCL refuses the second. */
static zb_status look_like_machines(int rank)
{
    char name[64];
    snprintf(name, sizeof name, "zerobit-rank-%d", rank);
    if (setenv("NCCL_HOSTID", name, 1) == 0 && setenv("NCCL_NET", "Socket", 1) == 0 &&
        setenv("NCCL_ALGO", "Ring", 0) == 0)
        return ZB_OK;
    return zb_fail(ZB_NO_MEMORY, "the environment has no room for NCCL_HOSTID");
}

/* What may fail on one rank alone, before the ranks have met. */
static zb_status prepare(nccl_world *world, const zb_nccl_options *options, ncclUniqueId *id)
{
    int version;
    ZB_TRY(check_options(options));
    world->device = options->device;
    world->ordinal = zb_cuda_ordinal(options->device);
    ZB_TRY(zb_nccl_native_set(&world->native));
    if (options->shared_gpu) ZB_TRY(look_like_machines(world->rank));
    zb_nccl_report_begun();
    ncclResult_t code = ncclGetVersion(&version);
    if (code == ncclSuccess && version < VERSION_MIN)
        return zb_fail(ZB_UNSUPPORTED, "this is NCCL %d.%d, want 2.18 or newer", version / 10000,
                       version / 100 % 100);
    CUDA_TRY(cudaSetDevice(world->ordinal));
    if (code == ncclSuccess && world->rank == 0) code = ncclGetUniqueId(id);
    if (code != ncclSuccess) return zb_fail(ZB_INTERNAL, "ncclGetUniqueId: %s", ncclGetErrorString(code));
    return ZB_OK;
}

static zb_status meet(nccl_world *world, ncclUniqueId *id)
{
    nccl_meeting meeting = { .here = &world->here,
                             .timeout_seconds = world->timeout_seconds,
                             .names = { "scratch_bytes", "unchecked", "native", "NCCL's version" },
                             .words = { world->scratch_bytes, (uint64_t)world->unchecked } };
    int version = 0;
    _Static_assert(sizeof *id == MEETING_GIFT_BYTES, "rank 0 gives NCCL's id to the others");
    ncclGetVersion(&version);
    ZB_TRY(zb_nccl_hash_orders(&world->native, &meeting.words[2]));
    meeting.words[3] = (uint64_t)version;
    memcpy(meeting.gift, id, sizeof *id);
    int *sockets = zb_alloc_array((size_t)world->size, sizeof *sockets);
    if (sockets == NULL) return ZB_NO_MEMORY;
    zb_status status = zb_nccl_meet(&meeting, sockets);
    if (status == ZB_OK && world->size > 1)
        status = zb_control_create(world->rank, world->size, sockets, &world->control);
    zb_free(sockets);
    memcpy(id, meeting.gift, sizeof *id);
    return status;
}

/* No rank goes into NCCL where another cannot: it would wait there. */
static zb_status agree(nccl_group *group)
{
    const zb_collective call = { .kind = ZB_COLLECTIVE_BARRIER, .what = "start" };
    nccl_op *op;
    ZB_TRY(zb_nccl_op_take(group, &call, &op));
    op->sequence = UINT64_MAX; /* before all that is counted */
    zb_status status = zb_call_record_write(&call, group->world->rank, 0, &op->record);
    if (status == ZB_OK) status = zb_nccl_meet_all(op, NULL);
    zb_nccl_op_give(op);
    return status;
}

static zb_status open_group(nccl_world *world, ncclUniqueId id, nccl_group **group_p)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    nccl_group *group;
    ZB_TRY(zb_stream_create(world->device, "copies of NCCL's ranks", &world->copies));
    ZB_TRY(zb_nccl_group_create(world, world->rank, world->size, "world", 1, group_p));
    group = *group_p;
    for (int r = 0; r < world->size; r++) group->world_ranks[r] = r;
    ZB_TRY(agree(group));
    config.blocking = 0;
    group->report_begin = zb_nccl_report_end();
    CUDA_TRY(cudaSetDevice(world->ordinal));
    NCCL_TRY(group, ncclCommInitRankConfig(&group->comm, world->size, id, world->rank, &config));
    group->report_end = zb_nccl_report_end();
    return start_watching(world);
}

static zb_status create_world(const zb_nccl_options *options, nccl_world **world_p)
{
    nccl_world *world = zb_alloc(sizeof *world);
    pthread_condattr_t monotonic;
    if (world == NULL) return ZB_NO_MEMORY;
    world->here = *options->environment;
    world->rank = world->here.rank;
    world->size = world->here.world_size;
    world->timeout_seconds = options->timeout_seconds > 0 ? options->timeout_seconds : 300;
    world->scratch_bytes = options->scratch_bytes > 0 ? options->scratch_bytes : SCRATCH_BYTES;
    world->unchecked = options->unchecked != 0;
    pthread_mutex_init(&world->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&world->leave, &monotonic);
    pthread_condattr_destroy(&monotonic);
    world->last_calls = zb_alloc_array((size_t)world->size, sizeof *world->last_calls);
    world->has_called = zb_alloc_array((size_t)world->size, sizeof *world->has_called);
    if (world->last_calls == NULL || world->has_called == NULL) {
        zb_nccl_release(world);
        return ZB_NO_MEMORY;
    }
    *world_p = world;
    return ZB_OK;
}

/* A rank that cannot go on meets the others all the same, or they would wait for it. */
static zb_status open_world(nccl_world *world, const zb_nccl_options *options, nccl_group **group_p)
{
    ncclUniqueId id = { { 0 } };
    zb_error error = { .status = zb_orders_copy(options->native, &world->native) };
    if (error.status == ZB_OK) error.status = prepare(world, options, &id);
    snprintf(error.message, sizeof error.message, "%s", zb_error_message());
    const zb_status met = meet(world, &id);
    if (error.status != ZB_OK) return zb_nccl_settle(world, NULL, zb_fail(error.status, "%s", error.message));
    ZB_TRY(met);
    return zb_nccl_settle(world, NULL, open_group(world, id, group_p));
}

zb_status zb_comm_nccl_create(const zb_nccl_options *options, zb_comm **comm_p)
{
    nccl_world *world;
    nccl_group *group = NULL;
    ZB_ASSERT(options != NULL && comm_p != NULL);
    ZB_TRY(check_environment(options->environment));
    ZB_TRY(create_world(options, &world));
    zb_nccl_lock(world);
    const zb_status status = open_world(world, options, &group);
    zb_nccl_unlock(world);
    if (status != ZB_OK) {
        zb_error error = { .status = status };
        snprintf(error.message, sizeof error.message, "%s", zb_error_message());
        if (group != NULL) zb_nccl_group_destroy(group);
        world->failure.set = 1;
        zb_nccl_release(world);
        return zb_fail(status, "%s", error.message);
    }
    *comm_p = &group->base;
    return ZB_OK;
}
