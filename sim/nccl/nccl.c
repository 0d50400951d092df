/* The stand-in of NCCL; see standin.h. All state is under the lock of the CUDA stand-in. */
#include "sim/nccl/standin.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>

#include "kernels/kernels.h"
#include "sim/cuda/standin.h"

enum { RANKS_MAX = 64, SCALES_MAX = 64, GROUP_MAX = 4 * RANKS_MAX, POLLS_MAX = 3 };

typedef struct world world;
typedef struct launch launch;

typedef enum comm_state { COMM_MAKING, COMM_READY, COMM_FINALIZED, COMM_DESTROYED, COMM_ABORTED } comm_state;

struct ncclComm {
    struct ncclComm *next;
    world *world;
    int rank, device, blocking;
    comm_state state;
    int polls; /* so often it still answers ncclInProgress */
    ncclResult_t failed;
    char text[256];
    uint64_t issued, finished; /* launches; they run in this order */
    uint64_t collectives;      /* issued */
    int splits;
    int scale_count;
    double scales[SCALES_MAX];
    ncclDataType_t scale_types[SCALES_MAX];
};

/* The ranks that have one unique id, or one split and color, in common. */
struct world {
    world *next;
    ncclUniqueId id;
    int size, came;
    ncclComm_t members[RANKS_MAX];
    struct meeting *meetings;
    struct division *divisions;
    struct message *messages; /* a half that waits for the other one, oldest first */
};

typedef enum call_kind { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, SEND, RECEIVE } call_kind;

typedef struct call {
    call_kind kind;
    const void *send;
    void *recv;
    size_t count;
    ncclDataType_t type;
    int op_is_scale; /* then `scale` */
    ncclRedOp_t op;
    double scale;
    int peer; /* or root */
    ncclComm_t comm;
    cudaStream_t stream;
    int posted, done;
    uint64_t number; /* of a collective in its communicator */
} call;

/* What one rank queues at once: a collective, or the messages of a group. */
struct launch {
    ncclComm_t comm;
    uint64_t issue;
    int call_count, failing, counted;
    call calls[];
};

/* One collective: all ranks' calls of that number. */
typedef struct meeting {
    struct meeting *next;
    uint64_t number;
    int came, failed;
    call *calls[RANKS_MAX];
} meeting;

typedef struct message {
    struct message *next;
    int from, to;
    call *half;
} message;

typedef struct division {
    struct division *next;
    int number, came;
    int colors[RANKS_MAX], keys[RANKS_MAX], blocking[RANKS_MAX];
    ncclComm_t *parts[RANKS_MAX];
} division;

static struct session {
    int open;
    uint64_t random;
    zb_order_source source;
    world *worlds;
    ncclComm_t comms;
    uint64_t ids, reductions;
    int mistakes;
    char first_mistake[512];
    int64_t fail_countdown, async_countdown;
    ncclResult_t fail_result, async_result;
    int fired;
} session;

static _Thread_local int group_depth, group_count;
static _Thread_local call group_calls[GROUP_MAX];
static _Thread_local ncclResult_t group_failed;

/* --- mistakes and drawing --- */

__attribute__((format(printf, 3, 4))) static ncclResult_t mistake(ncclComm_t comm, ncclResult_t result,
                                                                  const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (session.mistakes++ == 0) snprintf(session.first_mistake, sizeof session.first_mistake, "%s", text);
    if (comm != NULL) snprintf(comm->text, sizeof comm->text, "%s", text);
    return result;
}

static uint64_t draw(uint64_t below)
{
    session.random = session.random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (session.random >> 33) % below;
}

/* Every call begins here. */
static ncclResult_t enter(void)
{
    if (!session.open) return ncclSystemError;
    if (session.fail_countdown >= 0 && session.fail_countdown-- == 0) {
        session.fired = 1;
        return session.fail_result;
    }
    return ncclSuccess;
}

static int is_known(ncclComm_t comm)
{
    for (ncclComm_t c = session.comms; c != NULL; c = c->next)
        if (c == comm) return 1;
    return 0;
}

/* Whether it is there, and through with the call before. */
static ncclResult_t check_comm(ncclComm_t comm, const char *name)
{
    if (comm == NULL || !is_known(comm))
        return mistake(NULL, ncclInvalidArgument, "%s of no communicator", name);
    if (comm->state == COMM_DESTROYED || comm->state == COMM_ABORTED)
        return mistake(comm, ncclInvalidArgument, "%s of a communicator that has been given back", name);
    if (comm->state == COMM_FINALIZED && strcmp(name, "ncclCommDestroy") != 0)
        return mistake(comm, ncclInvalidUsage, "%s of a communicator that has been finalized", name);
    if (comm->failed != ncclSuccess) return comm->failed;
    if (comm->state == COMM_MAKING || comm->polls > 0)
        return mistake(comm, ncclInvalidUsage, "%s before the communicator's previous call has finished",
                       name);
    return ncclSuccess;
}

/* What a call answers that has done its part. */
static ncclResult_t answer(ncclComm_t comm)
{
    if (comm->blocking) return ncclSuccess;
    comm->polls = (int)draw(POLLS_MAX + 1);
    return comm->polls > 0 ? ncclInProgress : ncclSuccess;
}

/* --- types --- */

static size_t type_bytes(ncclDataType_t type)
{
    static const size_t bytes[] = { 1, 1, 4, 4, 8, 8, 2, 4, 8, 2 };
    return (unsigned)type < sizeof bytes / sizeof bytes[0] ? bytes[type] : 0;
}

/* ZB_DTYPE_COUNT: the stand-in does not add that type. */
static zb_dtype dtype_of(ncclDataType_t type)
{
    switch (type) {
    case ncclUint8:
        return ZB_UINT8;
    case ncclInt32:
        return ZB_INT32;
    case ncclInt64:
        return ZB_INT64;
    case ncclFloat16:
        return ZB_FP16;
    case ncclFloat32:
        return ZB_FP32;
    case ncclFloat64:
        return ZB_FP64;
    case ncclBfloat16:
        return ZB_BF16;
    default:
        return ZB_DTYPE_COUNT;
    }
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
    comm->next = session.comms;
    session.comms = comm;
    w->members[rank] = comm;
    return comm;
}

static world *create_world(int size)
{
    world *w = zb_alloc(sizeof *w);
    if (w == NULL) return NULL;
    w->size = size;
    w->next = session.worlds;
    session.worlds = w;
    return w;
}

static void write_report(const world *w);

static void begin_world(world *w)
{
    for (int r = 0; r < w->size; r++) {
        w->members[r]->state = COMM_READY;
        w->members[r]->polls = w->members[r]->blocking ? 0 : (int)draw(POLLS_MAX + 1);
    }
    write_report(w);
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    zb_standin_lock();
    const ncclResult_t result = enter();
    memset(id, 0, sizeof *id);
    if (result == ncclSuccess)
        snprintf(id->internal, sizeof id->internal, "id %llu", (unsigned long long)++session.ids);
    zb_standin_unlock();
    return result;
}

static world *find_world(const ncclUniqueId *id)
{
    world *w = session.worlds;
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
        return mistake(NULL, ncclInvalidArgument, "ncclCommInitRankConfig of rank %d of %d", rank, size);
    if (id->internal[0] == '\0')
        return mistake(NULL, ncclInvalidArgument, "ncclCommInitRankConfig without a unique id");
    world *w = find_world(id);
    if (w == NULL) {
        if ((w = create_world(size)) == NULL) return ncclSystemError;
        w->id = *id;
    }
    if (w->size != size || w->members[rank] != NULL)
        return mistake(NULL, ncclInvalidUsage, "ncclCommInitRankConfig of rank %d of %d, where %d are", rank,
                       size, w->size);
    cudaGetDevice(&device);
    for (int r = 0; r < size; r++)
        if (w->members[r] != NULL && w->members[r]->device == device)
            return mistake(NULL, ncclInvalidUsage, "rank %d and rank %d both have device %d", r, rank,
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
    ncclResult_t result = enter();
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
    if (!session.open || comm == NULL || !is_known(comm) || comm->state == COMM_DESTROYED ||
        comm->state == COMM_ABORTED)
        result = mistake(NULL, ncclInvalidArgument,
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
    ncclResult_t result = enter();
    if (result == ncclSuccess) result = check_comm(comm, "ncclCommCount");
    if (result == ncclSuccess) *count = comm->world->size;
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    zb_standin_lock();
    ncclResult_t result = enter();
    if (result == ncclSuccess) result = check_comm(comm, "ncclCommFinalize");
    if (result == ncclSuccess) {
        comm->state = COMM_FINALIZED;
        result = answer(comm);
    }
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    zb_standin_lock();
    ncclResult_t result = enter();
    if (result == ncclSuccess) result = check_comm(comm, "ncclCommDestroy");
    if (result == ncclSuccess && comm->finished < comm->issued)
        result = mistake(comm, ncclInvalidUsage, "ncclCommDestroy with work in flight");
    if (comm != NULL && is_known(comm)) comm->state = COMM_DESTROYED;
    zb_standin_unlock();
    return result;
}

/* What waits for other ranks does so no more: its memory goes with the launch. */
static void forget_calls(ncclComm_t comm)
{
    world *w = comm->world;
    for (meeting *m = w->meetings; m != NULL; m = m->next) {
        m->came -= m->calls[comm->rank] != NULL;
        m->calls[comm->rank] = NULL;
    }
    for (message **link = &w->messages; *link != NULL;) {
        message *m = *link;
        if (m->half->comm == comm) {
            *link = m->next;
            zb_free(m);
        } else {
            link = &m->next;
        }
    }
}

/* Its own work lets go; that of other ranks still waits for it. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    ncclResult_t result = ncclSuccess;
    zb_standin_lock();
    if (!session.open || comm == NULL || !is_known(comm) || comm->state == COMM_DESTROYED ||
        comm->state == COMM_ABORTED) {
        result = mistake(NULL, ncclInvalidArgument, "ncclCommAbort of a communicator that is not there");
    } else {
        comm->state = COMM_ABORTED;
        forget_calls(comm);
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
        w->members[r]->polls = w->members[r]->blocking ? 0 : (int)draw(POLLS_MAX + 1);
    }
    return ncclSuccess;
}

static ncclResult_t join_division(ncclComm_t comm, int color, int key, ncclComm_t *part, int blocking)
{
    world *w = comm->world;
    if (comm->finished < comm->issued)
        return mistake(comm, ncclInvalidUsage, "ncclCommSplit with work in flight");
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
    ncclResult_t result = enter();
    if (result == ncclSuccess) result = check_comm(comm, "ncclCommSplit");
    if (result == ncclSuccess && color < 0 && color != NCCL_SPLIT_NOCOLOR)
        result = mistake(comm, ncclInvalidArgument, "ncclCommSplit with color %d", color);
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
        .to = &single, .to_dtype = ZB_FP32, .from = scalar, .from_dtype = dtype_of(type), .numel = 1
    };
    ZB_ASSERT(zb_cpu_cast(&args) == ZB_OK);
    return single;
}

static int is_floating(ncclDataType_t type)
{
    return type == ncclFloat16 || type == ncclFloat32 || type == ncclFloat64 || type == ncclBfloat16;
}

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t *op, void *scalar, ncclDataType_t type,
                                      ncclScalarResidence_t residence, ncclComm_t comm)
{
    zb_standin_lock();
    ncclResult_t result = enter();
    if (result == ncclSuccess) result = check_comm(comm, "ncclRedOpCreatePreMulSum");
    if (result == ncclSuccess && (residence != ncclScalarHostImmediate || !is_floating(type)))
        result = mistake(comm, ncclInvalidArgument, "ncclRedOpCreatePreMulSum of type %d", (int)type);
    int slot = 0;
    while (result == ncclSuccess && slot < comm->scale_count && comm->scale_types[slot] != ncclNumTypes)
        slot++;
    if (result == ncclSuccess && slot == SCALES_MAX)
        result = mistake(comm, ncclInvalidUsage, "%d operators that were not destroyed", SCALES_MAX);
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
    ncclResult_t result = enter();
    if (result == ncclSuccess) result = check_comm(comm, "ncclRedOpDestroy");
    if (result == ncclSuccess &&
        (slot < 0 || slot >= comm->scale_count || comm->scale_types[slot] == ncclNumTypes))
        result = mistake(comm, ncclInvalidArgument, "ncclRedOpDestroy of operator %d", (int)op);
    if (result == ncclSuccess) comm->scale_types[slot] = ncclNumTypes;
    zb_standin_unlock();
    return result;
}

/* --- running: messages --- */

static const char *const kind_names[] = { "ncclAllReduce", "ncclReduceScatter", "ncclAllGather",
                                          "ncclBroadcast", "ncclSend",          "ncclRecv" };

static void fail_comm(ncclComm_t comm, ncclResult_t result)
{
    if (comm->failed == ncclSuccess) comm->failed = result;
}

static message **find_half(world *w, int from, int to, call_kind kind)
{
    message **link = &w->messages;
    while (*link != NULL && ((*link)->from != from || (*link)->to != to || (*link)->half->kind != kind))
        link = &(*link)->next;
    return link;
}

static void copy_bytes(void *to, const void *from, size_t bytes)
{
    if (bytes > 0) memmove(zb_standin_memory(to), zb_standin_memory(from), bytes);
}

static void match(call *sends, call *receives)
{
    const size_t sent = sends->count * type_bytes(sends->type),
                 taken = receives->count * type_bytes(receives->type);
    if (sent != taken) {
        mistake(sends->comm, ncclInvalidUsage,
                "ncclSend of %zu bytes from rank %d meets ncclRecv of %zu at rank %d", sent,
                sends->comm->rank, taken, receives->comm->rank);
        fail_comm(sends->comm, ncclInvalidUsage);
        fail_comm(receives->comm, ncclInvalidUsage);
        return;
    }
    copy_bytes(receives->recv, sends->send, sent);
    sends->done = receives->done = 1;
}

/* Halves meet in the order in which they were posted; the first one waits. */
static void post(call *half)
{
    world *w = half->comm->world;
    const int sends = half->kind == SEND, me = half->comm->rank;
    const int from = sends ? me : half->peer, to = sends ? half->peer : me;
    message **other = find_half(w, from, to, sends ? RECEIVE : SEND);
    half->posted = 1;
    if (*other != NULL) {
        message *m = *other;
        *other = m->next;
        match(sends ? half : m->half, sends ? m->half : half);
        zb_free(m);
        return;
    }
    message *waits = zb_alloc(sizeof *waits);
    ZB_ASSERT(waits != NULL);
    *waits = (message){ .from = from, .to = to, .half = half };
    message **end = &w->messages;
    while (*end != NULL) end = &(*end)->next;
    *end = waits;
}

/* --- running: collectives --- */

static meeting *find_meeting(world *w, uint64_t number)
{
    meeting *m = w->meetings;
    while (m != NULL && m->number != number) m = m->next;
    if (m != NULL) return m;
    m = zb_alloc(sizeof *m);
    ZB_ASSERT(m != NULL);
    m->number = number;
    m->next = w->meetings;
    w->meetings = m;
    return m;
}

static void end_meeting(world *w, meeting *m)
{
    meeting **link = &w->meetings;
    while (*link != m) link = &(*link)->next;
    *link = m->next;
    zb_free(m);
}

static int calls_agree(const call *a, const call *b)
{
    return a->kind == b->kind && a->count == b->count && a->type == b->type && a->op == b->op &&
           a->op_is_scale == b->op_is_scale && a->scale == b->scale && a->peer == b->peer;
}

static zb_status reduce_into(const meeting *m, int size, void *result, size_t numel)
{
    const call *c = m->calls[0];
    const void *inputs[RANKS_MAX];
    for (int r = 0; r < size; r++) inputs[r] = zb_standin_memory(m->calls[r]->send);
    const zb_dtype dtype = dtype_of(c->type);
    if (!c->op_is_scale && c->op != ncclSum && c->op != ncclAvg) {
        const zb_redop op = c->op == ncclMin ? ZB_MIN : ZB_MAX;
        return zb_cpu_ordered_reduce(&(zb_ordered_reduce_args){
            .inputs = inputs, .count = size, .out = result, .numel = numel, .dtype = dtype, .op = op });
    }
    zb_order_source source = session.source;
    if (source.ring_count > 0 && source.world_size != size) source.ring_count = 0;
    source.used_channels = source.channels;
    zb_reduction reduction;
    ZB_TRY(zb_reduction_derive(&source,
                               &(zb_reduction_call){ .kind = c->kind == ALL_REDUCE
                                                                 ? ZB_COLLECTIVE_ALL_REDUCE
                                                                 : ZB_COLLECTIVE_REDUCE_SCATTER,
                                                     .world_size = size,
                                                     .numel = c->count,
                                                     .dtype = dtype,
                                                     .op = c->op_is_scale     ? ZB_PREMUL_SUM
                                                           : c->op == ncclAvg ? ZB_AVG
                                                                              : ZB_SUM,
                                                     .factor = c->scale },
                               &reduction));
    const zb_status status = zb_reduction_run(&reduction, inputs, 0, numel, result);
    zb_reduction_destroy(&reduction);
    session.reductions++;
    return status;
}

static zb_status execute_reduction(const meeting *m, int size)
{
    const call *c = m->calls[0];
    const size_t one = c->count * type_bytes(c->type),
                 whole = c->kind == ALL_REDUCE ? one : one * (size_t)size;
    unsigned char *result = zb_alloc(whole);
    if (result == NULL) return ZB_NO_MEMORY;
    const zb_status status = reduce_into(m, size, result, whole / type_bytes(c->type));
    for (int r = 0; r < size && status == ZB_OK; r++)
        memcpy(zb_standin_memory(m->calls[r]->recv), result + (c->kind == ALL_REDUCE ? 0 : (size_t)r * one),
               one);
    zb_free(result);
    return status;
}

static zb_status execute(const meeting *m, int size)
{
    const call *c = m->calls[0];
    const size_t bytes = c->count * type_bytes(c->type);
    if (bytes == 0) return ZB_OK;
    if (c->kind == ALL_REDUCE || c->kind == REDUCE_SCATTER) return execute_reduction(m, size);
    for (int r = 0; r < size; r++) {
        if (c->kind == BROADCAST && r != c->peer)
            copy_bytes(m->calls[r]->recv, m->calls[c->peer]->send, bytes);
        for (int from = 0; from < size && c->kind == ALL_GATHER; from++)
            copy_bytes((char *)m->calls[r]->recv + (size_t)from * bytes, m->calls[from]->send, bytes);
    }
    if (c->kind == BROADCAST) copy_bytes(m->calls[c->peer]->recv, m->calls[c->peer]->send, bytes);
    return ZB_OK;
}

static void meet(meeting *m, const world *w)
{
    for (int r = 1; r < w->size; r++) {
        const call *a = m->calls[0], *b = m->calls[r];
        if (calls_agree(a, b)) continue;
        mistake(a->comm, ncclInvalidUsage,
                "rank 0 calls %s of %zu, rank %d %s of %zu; in NCCL this hangs or corrupts memory",
                kind_names[a->kind], a->count, r, kind_names[b->kind], b->count);
        m->failed = 1;
    }
    if (!m->failed && execute(m, w->size) != ZB_OK) {
        mistake(m->calls[0]->comm, ncclInternalError, "%s: %s", kind_names[m->calls[0]->kind],
                zb_error_message());
        m->failed = 1;
    }
    for (int r = 0; r < w->size; r++) {
        if (m->failed) fail_comm(m->calls[r]->comm, ncclInvalidUsage);
        m->calls[r]->done = !m->failed;
    }
}

static void come(call *c)
{
    world *w = c->comm->world;
    meeting *m = find_meeting(w, c->number);
    c->posted = 1;
    m->calls[c->comm->rank] = c;
    if (++m->came < w->size) return;
    meet(m, w);
    end_meeting(w, m);
}

/* --- running: launches --- */

static zb_standin_progress try_run(void *user)
{
    launch *l = user;
    ncclComm_t comm = l->comm;
    if (!session.open || comm->state == COMM_ABORTED) return ZB_STANDIN_DONE;
    if (l->issue != comm->finished) return ZB_STANDIN_NOT_YET;
    if (!l->counted) {
        l->counted = 1;
        l->failing = session.async_countdown >= 0 && session.async_countdown-- == 0;
        if (l->failing) session.fired = 1;
    }
    if (l->failing) {
        fail_comm(comm, session.async_result);
        return ZB_STANDIN_NOT_YET;
    }
    int done = 1;
    for (int i = 0; i < l->call_count; i++) {
        call *c = &l->calls[i];
        if (!c->posted) (c->kind == SEND || c->kind == RECEIVE ? post : come)(c);
        done = done && c->done;
    }
    if (!done) return ZB_STANDIN_NOT_YET;
    comm->finished++;
    return ZB_STANDIN_DONE;
}

static void release(void *user)
{
    zb_free(user);
}

/* --- queueing --- */

static int add_accesses(const call *c, zb_standin_access *accesses)
{
    const size_t one = c->count * type_bytes(c->type), n = (size_t)c->comm->world->size;
    const size_t send = c->kind == REDUCE_SCATTER ? n * one : c->kind == RECEIVE ? 0 : one;
    const size_t recv = c->kind == ALL_GATHER ? n * one : c->kind == SEND ? 0 : one;
    const int reads = c->kind != BROADCAST || c->comm->rank == c->peer;
    int count = 0;
    if (send > 0 && reads) accesses[count++] = (zb_standin_access){ "sendbuff", c->send, send, 1, 0 };
    if (recv > 0) accesses[count++] = (zb_standin_access){ "recvbuff", c->recv, recv, 0, 1 };
    return count;
}

static ncclResult_t queue(const call *calls, int count)
{
    ncclComm_t comm = calls[0].comm;
    launch *l = zb_alloc(sizeof *l + (size_t)count * sizeof(call));
    zb_standin_access *accesses = zb_alloc_array((size_t)count, 2 * sizeof *accesses);
    int access_count = 0;
    if (l == NULL || accesses == NULL) {
        zb_free(l);
        zb_free(accesses);
        return ncclSystemError;
    }
    l->comm = comm;
    l->call_count = count;
    memcpy(l->calls, calls, (size_t)count * sizeof *calls);
    for (int i = 0; i < count; i++) {
        if (calls[i].kind != SEND && calls[i].kind != RECEIVE) l->calls[i].number = comm->collectives++;
        access_count += add_accesses(&calls[i], accesses + access_count);
    }
    l->issue = comm->issued++;
    const zb_standin_operation operation = { .name = count > 1 ? "a group of ncclSend and ncclRecv"
                                                               : kind_names[calls[0].kind],
                                             .accesses = accesses,
                                             .access_count = access_count,
                                             .try_run = try_run,
                                             .release = release,
                                             .user = l };
    const cudaError_t code = zb_standin_enqueue(calls[0].stream, &operation);
    zb_free(accesses);
    if (code == cudaSuccess) return ncclSuccess;
    zb_free(l);
    comm->issued--;
    return mistake(comm, ncclUnhandledCudaError, "%s: %s", operation.name, cudaGetErrorString(code));
}

static void report_collective(const call *c);

/* Messages of one communicator and stream go together; a collective goes alone. */
static ncclResult_t queue_group(call *calls, int count)
{
    for (int i = 0; i < count; i++) {
        call together[GROUP_MAX];
        int taken = 0;
        if (calls[i].comm == NULL) continue;
        for (int j = i; j < count; j++) {
            const int pairs = calls[i].kind >= SEND && calls[j].kind >= SEND;
            if (j != i && (!pairs || calls[j].comm != calls[i].comm || calls[j].stream != calls[i].stream))
                continue;
            together[taken++] = calls[j];
            if (j != i) calls[j].comm = NULL;
        }
        const ncclResult_t result = queue(together, taken);
        if (result != ncclSuccess) return result;
        report_collective(&together[0]);
    }
    return ncclSuccess;
}

static ncclResult_t check_pointer(const call *c, const void *pointer, const char *name)
{
    struct cudaPointerAttributes found;
    if (c->count == 0) return ncclSuccess;
    if (pointer == NULL)
        return mistake(c->comm, ncclInvalidArgument, "%s: %s is NULL", kind_names[c->kind], name);
    if (cudaPointerGetAttributes(&found, pointer) != cudaSuccess || found.type != cudaMemoryTypeDevice ||
        found.device != c->comm->device)
        return mistake(c->comm, ncclInvalidArgument, "%s: %s is not on device %d, the communicator's",
                       kind_names[c->kind], name, c->comm->device);
    return ncclSuccess;
}

static ncclResult_t check_call(const call *c)
{
    const int size = c->comm->world->size, pair = c->kind == SEND || c->kind == RECEIVE;
    int device = -1;
    cudaGetDevice(&device);
    if (device != c->comm->device)
        return mistake(c->comm, ncclInvalidUsage, "%s on device %d with a communicator of device %d",
                       kind_names[c->kind], device, c->comm->device);
    if (type_bytes(c->type) == 0)
        return mistake(c->comm, ncclInvalidArgument, "%s of type %d", kind_names[c->kind], (int)c->type);
    if ((pair || c->kind == BROADCAST) && (c->peer < 0 || c->peer >= size))
        return mistake(c->comm, ncclInvalidArgument, "%s with rank %d of %d", kind_names[c->kind], c->peer,
                       size);
    if (c->kind != RECEIVE && (c->kind != BROADCAST || c->comm->rank == c->peer)) {
        const ncclResult_t result = check_pointer(c, c->send, "sendbuff");
        if (result != ncclSuccess) return result;
    }
    return c->kind != SEND ? check_pointer(c, c->recv, "recvbuff") : ncclSuccess;
}

static ncclResult_t resolve_op(call *c)
{
    const int slot = (int)c->op - ncclNumOps;
    if (c->kind != ALL_REDUCE && c->kind != REDUCE_SCATTER) return ncclSuccess;
    if (dtype_of(c->type) == ZB_DTYPE_COUNT || c->op == ncclProd || c->op < ncclSum ||
        (c->op == ncclAvg && !is_floating(c->type)))
        return mistake(c->comm, ncclInvalidArgument, "%s of type %d with operator %d", kind_names[c->kind],
                       (int)c->type, (int)c->op);
    if (slot < 0) return ncclSuccess;
    if (slot >= c->comm->scale_count || c->comm->scale_types[slot] != c->type)
        return mistake(c->comm, ncclInvalidArgument, "%s with operator %d, which is not of its type",
                       kind_names[c->kind], (int)c->op);
    c->op_is_scale = 1;
    c->scale = c->comm->scales[slot];
    c->op = ncclNumOps;
    return ncclSuccess;
}

static ncclResult_t issue_locked(call *c)
{
    ncclResult_t result = enter();
    if (result == ncclSuccess) result = check_comm(c->comm, kind_names[c->kind]);
    if (result == ncclSuccess) result = check_call(c);
    if (result == ncclSuccess) result = resolve_op(c);
    if (group_depth > 0) {
        if (result == ncclSuccess && group_count == GROUP_MAX) result = ncclInternalError;
        if (result == ncclSuccess)
            group_calls[group_count++] = *c;
        else if (group_failed == ncclSuccess)
            group_failed = result;
        return result;
    }
    if (result == ncclSuccess) result = queue_group(c, 1);
    return result == ncclSuccess ? answer(c->comm) : result;
}

static ncclResult_t issue(call c)
{
    zb_standin_lock();
    const ncclResult_t result = issue_locked(&c);
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclGroupStart(void)
{
    zb_standin_lock();
    const ncclResult_t result = enter();
    if (result == ncclSuccess && group_depth++ == 0) {
        group_count = 0;
        group_failed = ncclSuccess;
    }
    zb_standin_unlock();
    return result;
}

static ncclResult_t end_group(void)
{
    ncclResult_t result = enter();
    if (group_depth == 0) return mistake(NULL, ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group_depth > 0) return result;
    if (result == ncclSuccess) result = group_failed;
    if (result != ncclSuccess || group_count == 0) return result;
    ncclComm_t first = group_calls[0].comm;
    result = queue_group(group_calls, group_count);
    return result == ncclSuccess ? answer(first) : result;
}

ncclResult_t ncclGroupEnd(void)
{
    zb_standin_lock();
    const ncclResult_t result = end_group();
    zb_standin_unlock();
    return result;
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream)
{
    return issue((call){ ALL_REDUCE, send, recv, count, type, .op = op, .comm = comm, .stream = stream });
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t recv_count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    return issue(
        (call){ REDUCE_SCATTER, send, recv, recv_count, type, .op = op, .comm = comm, .stream = stream });
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t send_count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    return issue((call){ ALL_GATHER, send, recv, send_count, type, .comm = comm, .stream = stream });
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    return issue((call){ BROADCAST, send, recv, count, type, .peer = root, .comm = comm, .stream = stream });
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return issue((call){ SEND, send, NULL, count, type, .peer = peer, .comm = comm, .stream = stream });
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return issue((call){ RECEIVE, NULL, recv, count, type, .peer = peer, .comm = comm, .stream = stream });
}

/* --- the report --- */

static FILE *open_report(void)
{
    const char *path = getenv("NCCL_DEBUG_FILE");
    return path != NULL ? fopen(path, "a") : NULL;
}

static void write_report(const world *w)
{
    const zb_order_source *source = &session.source;
    FILE *file = open_report();
    if (file == NULL) return;
    if (ftell(file) == 0)
        fprintf(file, "NCCL version %d.%d.%d+cuda13.0\n", NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH);
    for (int k = 0; k < source->channels; k++) {
        fprintf(file, "host:1:2 [0] NCCL INFO Channel %02d/%02d :", k, source->channels);
        for (int i = 0; i < w->size; i++) {
            const int ringed = source->ring_count > 0 && source->world_size == w->size;
            fprintf(file, " %d", ringed ? (int)source->rings[k % source->ring_count * w->size + i] : i);
        }
        fprintf(file, "\n");
    }
    fclose(file);
}

static void report_collective(const call *c)
{
    static const char *const functions[] = { "AllReduce", "ReduceScatter", "AllGather", "Broadcast" };
    static const char *const protocols[] = {
        [ZB_NCCL_SIMPLE] = "SIMPLE", [ZB_NCCL_LL] = "LL", [ZB_NCCL_LL128] = "LL128"
    };
    if (c->kind >= SEND || c->comm->rank != 0) return;
    FILE *file = open_report();
    if (file == NULL) return;
    fprintf(file, "host:1:2 [0] NCCL INFO %s: %zu Bytes -> Algo RING proto %s channel{Lo..Hi}={0..%d}\n",
            functions[c->kind], c->count * type_bytes(c->type), protocols[session.source.protocol],
            session.source.channels - 1);
    fclose(file);
}

/* --- the session --- */

zb_status zb_nccl_standin_begin(const zb_nccl_standin_options *options)
{
    static const char standard[] = "nccl-ring version=2.28 protocol=simple channels=2";
    zb_order_source source;
    if (session.open) return zb_fail(ZB_INVALID_ARGUMENT, "a session of the NCCL stand-in is open already");
    ZB_TRY(zb_order_source_parse(options->order != NULL ? options->order : standard, &source));
    if (source.algorithm != ZB_ALGORITHM_NCCL_RING) {
        zb_order_source_destroy(&source);
        return zb_fail(ZB_INVALID_ARGUMENT, "order \"%s\", want an nccl-ring", options->order);
    }
    session = (struct session){
        .open = 1, .random = options->seed, .source = source, .fail_countdown = -1, .async_countdown = -1
    };
    return ZB_OK;
}

static void free_world(world *w)
{
    for (meeting *m = w->meetings, *next; m != NULL; m = next) {
        next = m->next;
        zb_free(m);
    }
    for (division *d = w->divisions, *next; d != NULL; d = next) {
        next = d->next;
        zb_free(d);
    }
    for (message *m = w->messages, *next; m != NULL; m = next) {
        next = m->next;
        zb_free(m);
    }
    zb_free(w);
}

zb_status zb_nccl_standin_end(void)
{
    zb_standin_lock();
    for (ncclComm_t comm = session.comms, next; comm != NULL; comm = next) {
        next = comm->next;
        if (comm->state != COMM_DESTROYED && comm->state != COMM_ABORTED)
            mistake(NULL, ncclInvalidUsage, "rank %d of %d has not given its communicator back", comm->rank,
                    comm->world->size);
        zb_free(comm);
    }
    for (world *w = session.worlds, *next; w != NULL; w = next) {
        next = w->next;
        free_world(w);
    }
    zb_order_source_destroy(&session.source);
    session.open = 0;
    zb_standin_unlock();
    if (session.mistakes == 0) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "%s (and %d more)", session.first_mistake, session.mistakes - 1);
}

void zb_nccl_standin_fail_call(int64_t n, ncclResult_t result)
{
    zb_standin_lock();
    session.fail_countdown = n;
    session.fail_result = result;
    session.fired = 0;
    zb_standin_unlock();
}

void zb_nccl_standin_fail_async(int64_t n, ncclResult_t result)
{
    zb_standin_lock();
    session.async_countdown = n;
    session.async_result = result;
    session.fired = 0;
    zb_standin_unlock();
}

int zb_nccl_standin_fault_fired(void)
{
    zb_standin_lock();
    const int fired = session.fired;
    zb_standin_unlock();
    return fired;
}

uint64_t zb_nccl_standin_reductions(void)
{
    zb_standin_lock();
    const uint64_t count = session.reductions;
    zb_standin_unlock();
    return count;
}
