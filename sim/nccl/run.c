/* What runs on streams: messages find their other halves, collectives their ranks. */
#include "sim/nccl/state.h"

#include <string.h>
#include <zerobit/memory.h>

#include "kernels/kernels.h"

/* --- types --- */

size_t si_nccl_type_bytes(ncclDataType_t type)
{
    static const size_t bytes[] = { 1, 1, 4, 4, 8, 8, 2, 4, 8, 2 };
    return (unsigned)type < sizeof bytes / sizeof bytes[0] ? bytes[type] : 0;
}

int si_nccl_is_floating(ncclDataType_t type)
{
    return type == ncclFloat16 || type == ncclFloat32 || type == ncclFloat64 || type == ncclBfloat16;
}

zb_dtype si_nccl_dtype(ncclDataType_t type)
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

/* --- messages --- */

const char *const si_nccl_names[] = { "ncclAllReduce", "ncclReduceScatter", "ncclAllGather",
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
    const size_t sent = sends->count * si_nccl_type_bytes(sends->type),
                 taken = receives->count * si_nccl_type_bytes(receives->type);
    if (sent != taken) {
        si_nccl_mistake(sends->comm, ncclInvalidUsage,
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

/* What waits for other ranks does so no more: its memory goes with the launch. */
void si_nccl_forget(ncclComm_t comm)
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

/* --- collectives --- */

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
    const zb_dtype dtype = si_nccl_dtype(c->type);
    if (!c->op_is_scale && c->op != ncclSum && c->op != ncclAvg) {
        const zb_redop op = c->op == ncclMin ? ZB_MIN : ZB_MAX;
        return zb_cpu_ordered_reduce(&(zb_ordered_reduce_args){
            .inputs = inputs, .count = size, .out = result, .numel = numel, .dtype = dtype, .op = op });
    }
    zb_order_source source = si_nccl.source;
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
    si_nccl.reductions++;
    return status;
}

static zb_status execute_reduction(const meeting *m, int size)
{
    const call *c = m->calls[0];
    const size_t one = c->count * si_nccl_type_bytes(c->type),
                 whole = c->kind == ALL_REDUCE ? one : one * (size_t)size;
    unsigned char *result = zb_alloc(whole);
    if (result == NULL) return ZB_NO_MEMORY;
    const zb_status status = reduce_into(m, size, result, whole / si_nccl_type_bytes(c->type));
    for (int r = 0; r < size && status == ZB_OK; r++)
        memcpy(zb_standin_memory(m->calls[r]->recv), result + (c->kind == ALL_REDUCE ? 0 : (size_t)r * one),
               one);
    zb_free(result);
    return status;
}

static zb_status execute(const meeting *m, int size)
{
    const call *c = m->calls[0];
    const size_t bytes = c->count * si_nccl_type_bytes(c->type);
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
        si_nccl_mistake(a->comm, ncclInvalidUsage,
                        "rank 0 calls %s of %zu, rank %d %s of %zu; in NCCL this hangs or corrupts memory",
                        si_nccl_names[a->kind], a->count, r, si_nccl_names[b->kind], b->count);
        m->failed = 1;
    }
    if (!m->failed && execute(m, w->size) != ZB_OK) {
        si_nccl_mistake(m->calls[0]->comm, ncclInternalError, "%s: %s", si_nccl_names[m->calls[0]->kind],
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

/* --- launches --- */

static zb_standin_progress try_run(void *user)
{
    launch *l = user;
    ncclComm_t comm = l->comm;
    if (!si_nccl.open || comm->state == COMM_ABORTED) return ZB_STANDIN_DONE;
    if (l->issue != comm->finished) return ZB_STANDIN_NOT_YET;
    if (!l->counted) {
        l->counted = 1;
        l->failing = si_nccl.async_countdown >= 0 && si_nccl.async_countdown-- == 0;
        if (l->failing) si_nccl.fired = 1;
    }
    if (l->failing) {
        fail_comm(comm, si_nccl.async_result);
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

static int add_accesses(const call *c, zb_standin_access *accesses)
{
    const size_t one = c->count * si_nccl_type_bytes(c->type), n = (size_t)c->comm->world->size;
    const size_t send = c->kind == REDUCE_SCATTER ? n * one : c->kind == RECEIVE ? 0 : one;
    const size_t recv = c->kind == ALL_GATHER ? n * one : c->kind == SEND ? 0 : one;
    const int reads = c->kind != BROADCAST || c->comm->rank == c->peer;
    int count = 0;
    if (send > 0 && reads) accesses[count++] = (zb_standin_access){ "sendbuff", c->send, send, 1, 0 };
    if (recv > 0) accesses[count++] = (zb_standin_access){ "recvbuff", c->recv, recv, 0, 1 };
    return count;
}

ncclResult_t si_nccl_queue(const call *calls, int count)
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
                                                               : si_nccl_names[calls[0].kind],
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
    return si_nccl_mistake(comm, ncclUnhandledCudaError, "%s: %s", operation.name, cudaGetErrorString(code));
}
