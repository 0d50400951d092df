/*
 * Does Open MPI add as it has been told? Its components for collectives compete, and another one than `tuned`
 * knows nothing of orders. One small reduction of each native kind, as any other collective, tells.
 */
#include "engine/mpi/world.h"

#include <string.h>
#include <zerobit/memory.h>

/* Every rank knows all contributions. */
typedef struct probe {
    int world_size;
    size_t numel; /* of a contribution */
    float *values, *result, *want;
    const void **inputs;
    size_t *counts;
} probe;

/* Numbers of different size, so that the order of three of them shows in most elements. */
static float draw(size_t rank, size_t element)
{
    uint32_t bits = (uint32_t)(rank * 2654435761U + element * 40503U + 12345U);
    bits ^= bits >> 15;
    bits *= 0x2c1b3c6dU;
    bits ^= bits >> 12;
    bits *= 0x297a2d39U;
    bits ^= bits >> 15;
    return ((float)(bits & 0xffffff) / 0x1p23F - 1) * (float)(1 << (bits >> 24 & 7));
}

static void destroy_probe(probe *p)
{
    zb_free(p->values);
    zb_free(p->result);
    zb_free(p->want);
    zb_free(p->inputs);
    zb_free(p->counts);
}

static zb_status create_probe(int world_size, probe *p)
{
    enum { BLOCK = 3 };
    const size_t n = (size_t)world_size;
    *p = (probe){ .world_size = world_size, .numel = n * BLOCK };
    p->values = zb_alloc_array(n * p->numel, sizeof *p->values);
    p->result = zb_alloc_array(p->numel, sizeof *p->result);
    p->want = zb_alloc_array(p->numel, sizeof *p->want);
    p->inputs = zb_alloc_array(n, sizeof *p->inputs);
    p->counts = zb_alloc_array(n, sizeof *p->counts);
    if (p->values == NULL || p->result == NULL || p->want == NULL || p->inputs == NULL || p->counts == NULL)
        return ZB_NO_MEMORY;
    for (size_t r = 0; r < n; r++) {
        p->inputs[r] = p->values + r * p->numel;
        p->counts[r] = BLOCK;
        for (size_t i = 0; i < p->numel; i++) p->values[r * p->numel + i] = draw(r, i);
    }
    return ZB_OK;
}

static zb_status compare(const probe *p, const zb_order_source *order, zb_collective_kind kind, size_t first,
                         size_t numel)
{
    for (size_t i = 0; i < numel; i++) {
        uint32_t got, want;
        memcpy(&got, &p->result[i], sizeof got);
        memcpy(&want, &p->want[first + i], sizeof want);
        if (got == want) continue;
        return zb_fail(ZB_UNSUPPORTED,
                       "Open MPI does not add as it has been told: %s by %s of %d ranks, element %zu is "
                       "%#x, want %#x; another component than coll/tuned adds",
                       zb_collective_name(kind), zb_algorithm_name(order->algorithm), p->world_size,
                       first + i, got, want);
    }
    return ZB_OK;
}

static zb_status predict(const probe *p, const zb_order_source *order, const zb_collective *call)
{
    const zb_reduction_call asked = { .kind = call->kind,
                                      .world_size = p->world_size,
                                      .numel = call->numel,
                                      .counts = call->counts,
                                      .dtype = call->dtype,
                                      .op = call->op };
    zb_reduction reduction;
    ZB_TRY(zb_reduction_derive(order, &asked, &reduction));
    const zb_status status = zb_reduction_run(&reduction, p->inputs, 0, p->numel, p->want);
    zb_reduction_destroy(&reduction);
    return status;
}

static zb_status probe_kind(const probe *p, zb_comm *comm, zb_collective_kind kind)
{
    const mpi_group *group = (const mpi_group *)comm;
    const zb_order_source *order = &group->world->native.of[kind];
    const size_t rank = (size_t)comm->rank, block = p->counts[0];
    const int scatters = kind == ZB_COLLECTIVE_REDUCE_SCATTER || kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    const zb_collective call = { .kind = kind,
                                 .send = p->inputs[rank],
                                 .recv = p->result,
                                 .numel = kind == ZB_COLLECTIVE_REDUCE_SCATTER ? block : p->numel,
                                 .counts = p->counts,
                                 .dtype = ZB_FP32,
                                 .op = ZB_SUM,
                                 .order = order,
                                 .what = "does Open MPI add as it has been told?" };
    if (!zb_mpi_native(comm, &call)) return ZB_OK;
    ZB_TRY(predict(p, order, &call));
    ZB_TRY(comm->ops->start(comm, &call, NULL));
    if (kind == ZB_COLLECTIVE_REDUCE && rank != 0) return ZB_OK;
    return compare(p, order, kind, scatters ? rank * block : 0, scatters ? block : p->numel);
}

zb_status zb_mpi_probe(zb_comm *comm)
{
    static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER,
                                                ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_COLLECTIVE_REDUCE };
    enum { KIND_COUNT = sizeof kinds / sizeof kinds[0] };
    mpi_group *group = (mpi_group *)comm;
    int native = 0;
    for (int k = 0; k < KIND_COUNT; k++) native = native || group->native[kinds[k]] != MPI_COMM_NULL;
    if (!native) return ZB_OK;
    probe p;
    zb_status status = create_probe(comm->world_size, &p);
    for (int k = 0; k < KIND_COUNT && status == ZB_OK; k++) status = probe_kind(&p, comm, kinds[k]);
    destroy_probe(&p);
    group->sequence = 0; /* the program's own collectives are counted from here on */
    return zb_mpi_settle(group->world, group, -1, status);
}
