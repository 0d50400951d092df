/* Communicators: made, divided, given back; and their operators. */
#include "sim/nccl/state.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "kernels/kernels.h"

static int is_known(ncclComm_t comm)
{
    for (ncclComm_t c = si_nccl.comms; c != NULL; c = c->next)
        if (c == comm) return 1;
    return 0;
}

ncclResult_t si_nccl_check_comm(ncclComm_t comm, const char *name)
{
    if (comm == NULL || !is_known(comm))
        return si_nccl_mistake(NULL, ncclInvalidArgument, "%s of no communicator", name);
    if (comm->state == COMM_DESTROYED || comm->state == COMM_ABORTED)
        return si_nccl_mistake(comm, ncclInvalidArgument, "%s of a communicator that has been given back",
                               name);
    if (comm->state == COMM_FINALIZED && strcmp(name, "ncclCommDestroy") != 0)
        return si_nccl_mistake(comm, ncclInvalidUsage, "%s of a communicator that has been finalized", name);
    if (comm->failed != ncclSuccess) return comm->failed;
    if (comm->state == COMM_MAKING || comm->polls > 0)
        return si_nccl_mistake(comm, ncclInvalidUsage,
                               "%s before the communicator's previous call has finished", name);
    return ncclSuccess;
}

ncclResult_t si_nccl_answer(ncclComm_t comm)
{
    if (comm->blocking) return ncclSuccess;
    comm->polls = (int)si_nccl_draw(POLLS_MAX + 1);
    return comm->polls > 0 ? ncclInProgress : ncclSuccess;
}

/* --- communicators --- */

static ncclComm_t create_comm(world *w, int rank, int blocking)
{
    ncclComm_t comm = zb_alloc(sizeof *comm);
    if (comm == NULL) return NULL;
    comm->world = w;
    comm->rank = rank;
    comm->blocking = blocking;
    cudaGetDevice(&comm->device);
    comm->next = si_nccl.comms;
    si_nccl.comms = comm;
    w->members[rank] = comm;
    return comm;
}

static world *create_world(int size)
{
    world *w = zb_alloc(sizeof *w);
    if (w == NULL) return NULL;
    w->size = size;
    w->next = si_nccl.worlds;
    si_nccl.worlds = w;
    return w;
}

static void begin_world(world *w)
{
    for (int r = 0; r < w->size; r++) {
        w->members[r]->state = COMM_READY;
        w->members[r]->polls = w->members[r]->blocking ? 0 : (int)si_nccl_draw(POLLS_MAX + 1);
    }
    si_nccl_report_world(w);
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    zb_standin_lock();
    const ncclResult_t result = si_nccl_enter();
    memset(id, 0, sizeof *id);
    if (result == ncclSuccess)
        snprintf(id->internal, sizeof id->internal, "id %llu", (unsigned long long)++si_nccl.ids);
    zb_standin_unlock();
    return result;
}

static world *find_world(const ncclUniqueId *id)
{
    world *w = si_nccl.worlds;
    while (w != NULL && memcmp(&w->id, id, sizeof *id) != 0) w = w->next;
    return w;
}

static int is_made(void *user)
{
    const ncclComm_t comm = user;
    return comm->state != COMM_MAKING;
}

static ncclResult_t join(ncclComm_t *comm_p, int size, const ncclUniqueId *id, int rank, int blocking)
{
    int device = 0;
    if (size < 1 || size > RANKS_MAX || rank < 0 || rank >= size)
        return si_nccl_mistake(NULL, ncclInvalidArgument, "ncclCommInitRankConfig of rank %d of %d", rank,
                               size);
    if (id->internal[0] == '\0')
        return si_nccl_mistake(NULL, ncclInvalidArgument, "ncclCommInitRankConfig without a unique id");
    world *w = find_world(id);
    if (w == NULL) {
        if ((w = create_world(size)) == NULL) return ncclSystemError;
        w->id = *id;
    }
    if (w->size != size || w->members[rank] != NULL)
        return si_nccl_mistake(NULL, ncclInvalidUsage,
                               "ncclCommInitRankConfig of rank %d of %d, where %d are", rank, size, w->size);
    cudaGetDevice(&device);
    for (int r = 0; r < size; r++)
        if (w->members[r] != NULL && w->members[r]->device == device)
            return si_nccl_mistake(NULL, ncclInvalidUsage, "rank %d and rank %d both have device %d", r, rank,
                                   device);
    if ((*comm_p = create_comm(w, rank, blocking)) == NULL) return ncclSystemError;
    if (++w->came == size) begin_world(w);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    const int blocking = config == NULL || config->blocking != 0;
    zb_standin_lock();
    ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess) result = join(comm, size, &id, rank, blocking);
    if (result == ncclSuccess && !blocking) result = ncclInProgress;
    zb_standin_unlock();
    if (result == ncclSuccess && zb_standin_wait(is_made, *comm, "ncclCommInitRankConfig") != cudaSuccess)
        return ncclUnhandledCudaError;
    return result;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *found)
{
    ncclResult_t result = ncclSuccess;
    zb_standin_lock();
    if (!si_nccl.open || comm == NULL || !is_known(comm) || comm->state == COMM_DESTROYED ||
        comm->state == COMM_ABORTED)
        result = si_nccl_mistake(NULL, ncclInvalidArgument,
                                 "ncclCommGetAsyncError of a communicator that is not there");
    else if (comm->failed != ncclSuccess)
        *found = comm->failed;
    else if (comm->state == COMM_MAKING || (comm->polls > 0 && comm->polls-- > 0))
        *found = ncclInProgress;
    else if (comm->state == COMM_FINALIZED && comm->finished < comm->issued)
        *found = ncclInProgress;
    else
        *found = ncclSuccess;
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count)
{
    zb_standin_lock();
    ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess) result = si_nccl_check_comm(comm, "ncclCommCount");
    if (result == ncclSuccess) *count = comm->world->size;
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    zb_standin_lock();
    ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess) result = si_nccl_check_comm(comm, "ncclCommFinalize");
    if (result == ncclSuccess) {
        comm->state = COMM_FINALIZED;
        result = si_nccl_answer(comm);
    }
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    zb_standin_lock();
    ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess) result = si_nccl_check_comm(comm, "ncclCommDestroy");
    if (result == ncclSuccess && comm->finished < comm->issued)
        result = si_nccl_mistake(comm, ncclInvalidUsage, "ncclCommDestroy with work in flight");
    if (comm != NULL && is_known(comm)) comm->state = COMM_DESTROYED;
    zb_standin_unlock();
    return result;
}

/* Its own work lets go; that of other ranks still waits for it. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    ncclResult_t result = ncclSuccess;
    zb_standin_lock();
    if (!si_nccl.open || comm == NULL || !is_known(comm) || comm->state == COMM_DESTROYED ||
        comm->state == COMM_ABORTED) {
        result = si_nccl_mistake(NULL, ncclInvalidArgument,
                                 "ncclCommAbort of a communicator that is not there");
    } else {
        if (si_nccl_in_group())
            result = si_nccl_mistake(
                comm, ncclInvalidUsage,
                "ncclCommAbort inside a group, which NCCL does not let go before its end");
        comm->state = COMM_ABORTED;
        si_nccl_forget(comm);
    }
    zb_standin_unlock();
    return result;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const words[] = { "no error",
                                         "unhandled cuda error",
                                         "unhandled system error",
                                         "internal error",
                                         "invalid argument",
                                         "invalid usage",
                                         "remote process exited or there was a network error",
                                         "NCCL operation in progress" };
    return (unsigned)result < sizeof words / sizeof words[0] ? words[result] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    return comm != NULL ? comm->text : "";
}

/* --- split --- */

static division *find_division(world *w, int number)
{
    division *d = w->divisions;
    while (d != NULL && d->number != number) d = d->next;
    if (d != NULL || (d = zb_alloc(sizeof *d)) == NULL) return d;
    d->number = number;
    d->next = w->divisions;
    w->divisions = d;
    return d;
}

static int place_in(const world *w, const division *d, int rank, int *size_p)
{
    int place = 0;
    *size_p = 0;
    for (int r = 0; r < w->size; r++) {
        if (d->colors[r] != d->colors[rank]) continue;
        ++*size_p;
        place += d->keys[r] < d->keys[rank] || (d->keys[r] == d->keys[rank] && r < rank);
    }
    return place;
}

/* The last rank has come: the parts are made, each on its member's device. */
static ncclResult_t divide(world *w, const division *d)
{
    world *made[RANKS_MAX] = { NULL };
    for (int r = 0; r < w->size; r++) {
        int size, first = 0;
        if (d->colors[r] == NCCL_SPLIT_NOCOLOR) continue;
        while (d->colors[first] != d->colors[r]) first++;
        const int place = place_in(w, d, r, &size);
        if (made[first] == NULL && (made[first] = create_world(size)) == NULL) return ncclSystemError;
        ncclComm_t part = create_comm(made[first], place, d->blocking[r]);
        if (part == NULL) return ncclSystemError;
        part->device = w->members[r]->device;
        __atomic_store_n(d->parts[r], part, __ATOMIC_RELEASE);
        if (++made[first]->came == size) begin_world(made[first]);
    }
    for (int r = 0; r < w->size; r++) {
        w->members[r]->state = COMM_READY;
        w->members[r]->polls = w->members[r]->blocking ? 0 : (int)si_nccl_draw(POLLS_MAX + 1);
    }
    return ncclSuccess;
}

static ncclResult_t join_division(ncclComm_t comm, int color, int key, ncclComm_t *part, int blocking)
{
    world *w = comm->world;
    if (comm->finished < comm->issued)
        return si_nccl_mistake(comm, ncclInvalidUsage, "ncclCommSplit with work in flight");
    division *d = find_division(w, comm->splits++);
    if (d == NULL) return ncclSystemError;
    *part = NULL;
    d->colors[comm->rank] = color;
    d->keys[comm->rank] = key;
    d->blocking[comm->rank] = blocking;
    d->parts[comm->rank] = part;
    comm->state = COMM_MAKING;
    return ++d->came == w->size ? divide(w, d) : ncclSuccess;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *part, ncclConfig_t *config)
{
    const int blocking = config == NULL || config->blocking != 0;
    zb_standin_lock();
    ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess) result = si_nccl_check_comm(comm, "ncclCommSplit");
    if (result == ncclSuccess && color < 0 && color != NCCL_SPLIT_NOCOLOR)
        result = si_nccl_mistake(comm, ncclInvalidArgument, "ncclCommSplit with color %d", color);
    if (result == ncclSuccess) result = join_division(comm, color, key, part, blocking);
    if (result == ncclSuccess && !comm->blocking) result = ncclInProgress;
    zb_standin_unlock();
    if (result == ncclSuccess && zb_standin_wait(is_made, comm, "ncclCommSplit") != cudaSuccess)
        return ncclUnhandledCudaError;
    return result;
}

/* --- operators --- */

static double scalar_value(const void *scalar, ncclDataType_t type)
{
    double wide = 0;
    float single = 0;
    if (type == ncclFloat64) {
        memcpy(&wide, scalar, sizeof wide);
        return wide;
    }
    if (type == ncclFloat32) {
        memcpy(&single, scalar, sizeof single);
        return single;
    }
    const zb_cast_args args = {
        .to = &single, .to_dtype = ZB_FP32, .from = scalar, .from_dtype = si_nccl_dtype(type), .numel = 1
    };
    ZB_ASSERT(zb_cpu_cast(&args) == ZB_OK);
    return single;
}

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *scalar, ncclDataType_t type,
                                      ncclScalarResidence_t residence, ncclComm_t comm)
{
    zb_standin_lock();
    ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess) result = si_nccl_check_comm(comm, "ncclRedOpCreatePreMulSum");
    if (result == ncclSuccess && (residence != ncclScalarHostImmediate || !si_nccl_is_floating(type)))
        result = si_nccl_mistake(comm, ncclInvalidArgument, "ncclRedOpCreatePreMulSum of type %d", (int)type);
    int slot = 0;
    while (result == ncclSuccess && slot < comm->scale_count && comm->scale_types[slot] != ncclNumTypes)
        slot++;
    if (result == ncclSuccess && slot == SCALES_MAX)
        result = si_nccl_mistake(comm, ncclInvalidUsage, "%d operators that were not destroyed", SCALES_MAX);
    if (result == ncclSuccess) {
        if (slot == comm->scale_count) comm->scale_count++;
        comm->scales[slot] = scalar_value(scalar, type);
        comm->scale_types[slot] = type;
        *op = (ncclRedOp_t)(ncclNumOps + slot);
    }
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm)
{
    const int slot = (int)op - ncclNumOps;
    zb_standin_lock();
    ncclResult_t result = si_nccl_enter();
    if (result == ncclSuccess) result = si_nccl_check_comm(comm, "ncclRedOpDestroy");
    if (result == ncclSuccess &&
        (slot < 0 || slot >= comm->scale_count || comm->scale_types[slot] == ncclNumTypes))
        result = si_nccl_mistake(comm, ncclInvalidArgument, "ncclRedOpDestroy of operator %d", (int)op);
    if (result == ncclSuccess) comm->scale_types[slot] = ncclNumTypes;
    zb_standin_unlock();
    return result;
}
