/* Reductions in an order of NCCL's; see native_sums.h. */
#include "tests/nccl/native_sums.h"

#include <string.h>
#include <zerobit/memory.h>

static void contribute(zb_dtype dtype, int rank, size_t numel, unsigned char *data)
{
    uint64_t random = (uint64_t)rank * 77 + (uint64_t)dtype;
    for (size_t i = 0; i < numel; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        const float value = (float)(int32_t)(random >> 32) / (float)(UINT32_C(1) << (random >> 20 & 31));
        const uint32_t bits = (uint32_t)(random >> 24);
        uint32_t single;
        memcpy(&single, &value, sizeof single);
        const uint16_t half = dtype == ZB_BF16 ? (uint16_t)(single >> 16) : (uint16_t)(random >> 41 & 0xBBFF);
        if (dtype == ZB_FP32) memcpy(data + 4 * i, &value, 4);
        if (dtype == ZB_INT32) memcpy(data + 4 * i, &bits, 4);
        if (dtype == ZB_FP16 || dtype == ZB_BF16) memcpy(data + 2 * i, &half, 2);
    }
}

typedef struct sum_case {
    zb_collective_kind kind;
    zb_dtype dtype;
    zb_redop op;
} sum_case;

enum { RANKS_MAX = 64, ELEMENT_BYTES_MAX = 4 };

typedef struct buffers {
    size_t numel;
    unsigned char *given; /* [world_size][world_size * numel], every rank's contribution */
    unsigned char *got, *want;
} buffers;

static unsigned char *given_by(const buffers *b, int world_size, int rank)
{
    return b->given + (size_t)rank * (size_t)world_size * b->numel * ELEMENT_BYTES_MAX;
}

static zb_status expect(const zb_comm *comm, const sum_case *c, const zb_order_source *order,
                        const buffers *b)
{
    const int n = comm->world_size, scatters = c->kind == ZB_COLLECTIVE_REDUCE_SCATTER;
    const size_t first = scatters ? (size_t)comm->rank * b->numel : 0;
    const zb_reduction_call call = {
        .kind = c->kind, .world_size = n, .numel = b->numel, .dtype = c->dtype, .op = c->op, .factor = 0.3
    };
    const void *inputs[RANKS_MAX];
    zb_reduction reduction;
    for (int r = 0; r < n; r++) inputs[r] = given_by(b, n, r);
    ZB_TRY(zb_reduction_derive(order, &call, &reduction));
    const zb_status status = zb_reduction_run(&reduction, inputs, first, b->numel, b->want);
    zb_reduction_destroy(&reduction);
    return status;
}

static zb_status compare(zb_comm *comm, const sum_case *c, const zb_order_source *order, const buffers *b)
{
    const int n = comm->world_size;
    for (int r = 0; r < n; r++) contribute(c->dtype, r, (size_t)n * b->numel, given_by(b, n, r));
    ZB_TRY(expect(comm, c, order, b));
    ZB_TRY(zb_collective_run(comm, NULL, .kind = c->kind, .send = given_by(b, n, comm->rank), .recv = b->got,
                             .numel = b->numel, .dtype = c->dtype, .op = c->op, .factor = 0.3, .order = order,
                             .what = "native"));
    if (memcmp(b->got, b->want, b->numel * zb_dtype_bytes(c->dtype)) == 0) return ZB_OK;
    return zb_fail(ZB_DIFFERENT, "%s %s %s of %zu differs at rank %d of %d", zb_collective_name(c->kind),
                   zb_dtype_name(c->dtype), zb_redop_name(c->op), b->numel, comm->rank, n);
}

static zb_status compare_all(zb_comm *comm, const zb_orders *orders, const buffers *b)
{
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16, ZB_INT32 };
    static const zb_redop ops[] = { ZB_SUM, ZB_AVG, ZB_PREMUL_SUM };
    static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER };
    for (int i = 0; i < 4 * 3 * 2; i++) {
        const sum_case c = { kinds[i % 2], dtypes[i / 6], ops[i / 2 % 3] };
        if (c.dtype != ZB_INT32 || c.op == ZB_SUM) ZB_TRY(compare(comm, &c, &orders->of[c.kind], b));
    }
    return ZB_OK;
}

zb_status compare_native_sums(zb_comm *comm, const zb_orders *orders, size_t numel)
{
    const size_t n = (size_t)comm->world_size;
    ZB_ASSERT(n <= RANKS_MAX);
    const buffers b = { .numel = numel,
                        .given = zb_alloc(n * n * numel * ELEMENT_BYTES_MAX),
                        .got = zb_alloc(numel * ELEMENT_BYTES_MAX),
                        .want = zb_alloc(numel * ELEMENT_BYTES_MAX) };
    const int there = b.given != NULL && b.got != NULL && b.want != NULL;
    const zb_status status = there ? compare_all(comm, orders, &b) : ZB_NO_MEMORY;
    zb_free(b.given);
    zb_free(b.got);
    zb_free(b.want);
    return status;
}
