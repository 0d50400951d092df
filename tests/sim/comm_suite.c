/* The suite's cases: every kind, type, operator, order and size, in place and not, blocking and not; groups;
 * messages. */
#include "tests/sim/comm_suite.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/ref.h>

#define COUNT_OF(array) (sizeof(array) / sizeof(array)[0])

enum { WORLD_MAX = 64, GUARD_BYTES = 64, GUARD = 0x5A };

/* --- numbers --- */

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * UINT64_C(0x9E3779B97F4A7C15) + b;
    z = (z ^ (z >> 32)) * UINT64_C(0xD6E8FEB86659FD93);
    z = (z ^ (z >> 32)) * UINT64_C(0xD6E8FEB86659FD93);
    return z ^ (z >> 32);
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float from_fp16(uint16_t half)
{
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    float magnitude = exponent == 31  ? (mantissa ? NAN : INFINITY)
                      : exponent == 0 ? ldexpf((float)mantissa, -24)
                                      : ldexpf((float)(mantissa + 1024), exponent - 25);
    return half >> 15 ? -magnitude : magnitude;
}

static uint16_t to_fp16(float value)
{
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value)) return 0x7E00;
    if (fabsf(value) >= 65520.0F) return sign | 0x7C00;
    if (value == 0) return sign;
    int exponent = ilogbf(value) < -14 ? -14 : ilogbf(value);
    double steps = nearbyint(ldexp(fabs((double)value), 10 - exponent));
    return (uint16_t)(sign + ((exponent + 15) << 10) + (int)steps - 1024);
}

static uint16_t to_bf16(float value)
{
    uint32_t bits = bits_of(value);
    if (isnan(value)) return 0x7FC0;
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

/* An element of any type: in `raw` as it lies in a buffer. */
typedef struct element {
    unsigned char raw[8];
} element;

/* What rank `rank` has at `index`: mostly ordinary numbers of many sizes, and now and then a special one. */
static element make_element(zb_dtype dtype, uint64_t seed, int rank, size_t index)
{
    static const uint32_t specials[] = { 0x80000000, 0, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x007FFFFF };
    uint64_t random = mix(seed * 1000003 + (uint64_t)rank, index);
    int exponent = (int)(random >> 40 & 15) - 8;
    double fraction = 1.0 + (double)(random & 0xFFFFFFFFFF) / (double)(1ULL << 40);
    double value = (random >> 63 ? -fraction : fraction) *
                   (exponent < 0 ? 1.0 / (1 << -exponent) : 1 << exponent);
    int special = (random >> 48 & 127) == 0;
    float single = special ? float_of(specials[(random >> 55) % COUNT_OF(specials)]) : (float)value;
    element e = { { 0 } };
    uint16_t half;
    switch (dtype) {
    case ZB_FP32:
        memcpy(e.raw, &single, 4);
        break;
    case ZB_FP64:
        if (special) value = single;
        memcpy(e.raw, &value, 8);
        break;
    case ZB_FP16:
        half = to_fp16(single);
        memcpy(e.raw, &half, 2);
        break;
    case ZB_BF16:
        half = to_bf16(single);
        memcpy(e.raw, &half, 2);
        break;
    default:
        memcpy(e.raw, &random, 8);
    }
    return e;
}

static double wide(zb_dtype dtype, element e)
{
    float single;
    double value;
    uint16_t half;
    switch (dtype) {
    case ZB_FP32:
        memcpy(&single, e.raw, 4);
        return single;
    case ZB_FP64:
        memcpy(&value, e.raw, 8);
        return value;
    case ZB_FP16:
        memcpy(&half, e.raw, 2);
        return from_fp16(half);
    default:
        memcpy(&half, e.raw, 2);
        return float_of((uint32_t)half << 16);
    }
}

static element narrow(zb_dtype dtype, double value)
{
    element e = { { 0 } };
    float single = (float)value;
    uint16_t half = dtype == ZB_FP16 ? to_fp16(single) : to_bf16(single);
    if (dtype == ZB_FP64)
        memcpy(e.raw, &value, 8);
    else if (dtype == ZB_FP32)
        memcpy(e.raw, &single, 4);
    else
        memcpy(e.raw, &half, 2);
    return e;
}

static int is_float(zb_dtype dtype)
{
    return dtype == ZB_FP32 || dtype == ZB_FP64 || dtype == ZB_FP16 || dtype == ZB_BF16;
}

/* One step of the accumulator, which holds fp32 values except for fp64. */
static double add_wide(zb_dtype dtype, double a, double b)
{
    return dtype == ZB_FP64 ? a + b : (double)((float)a + (float)b);
}

static double pick(zb_redop op, double a, double b)
{
    if (isnan(a) || isnan(b)) return NAN;
    if (a == b) return (signbit(a) != 0) == (op == ZB_MIN) ? a : b;
    return (a < b) == (op == ZB_MIN) ? a : b;
}

static int64_t integer(zb_dtype dtype, element e)
{
    int64_t wide_value;
    int32_t value;
    if (dtype == ZB_UINT8) return e.raw[0];
    memcpy(&value, e.raw, 4);
    memcpy(&wide_value, e.raw, 8);
    return dtype == ZB_INT32 ? value : wide_value;
}

/* --- a case --- */

typedef struct call_case {
    zb_collective_kind kind;
    zb_dtype dtype;
    zb_redop op;
    double factor;
    size_t numel;
    int in_place, async, root;
    uint64_t seed;
    /* Where an order is named: what this rank gives, and what it must receive. */
    const zb_order_source *order;
    const unsigned char *given, *expected;
} call_case;

static element reduce_plainly(const call_case *c, int world, size_t index)
{
    element first = make_element(c->dtype, c->seed, 0, index);
    if (!is_float(c->dtype)) {
        int64_t acc = integer(c->dtype, first);
        for (int r = 1; r < world; r++) {
            int64_t x = integer(c->dtype, make_element(c->dtype, c->seed, r, index));
            if (c->op == ZB_SUM)
                acc = (int64_t)((uint64_t)acc + (uint64_t)x);
            else
                acc = (x < acc) == (c->op == ZB_MIN) ? x : acc;
        }
        memcpy(first.raw, &acc, 8);
        return first;
    }
    double acc = wide(c->dtype, first);
    double factor = c->dtype == ZB_FP64 ? c->factor : (double)(float)c->factor;
    int single = c->dtype != ZB_FP64;
    if (c->op == ZB_PREMUL_SUM) acc = single ? (double)((float)acc * (float)factor) : acc * factor;
    for (int r = 1; r < world; r++) {
        double x = wide(c->dtype, make_element(c->dtype, c->seed, r, index));
        if (c->op == ZB_PREMUL_SUM) x = single ? (double)((float)x * (float)factor) : x * factor;
        acc = c->op == ZB_MIN || c->op == ZB_MAX ? pick(c->op, acc, x) : add_wide(c->dtype, acc, x);
    }
    if (c->op == ZB_AVG) acc = single ? (double)((float)acc / (float)world) : acc / world;
    return narrow(c->dtype, acc);
}

typedef struct call_shape {
    size_t send_numel, recv_numel;
    size_t share; /* where the smaller buffer begins in the larger one, in place */
    size_t counts[WORLD_MAX];
} call_shape;

static call_shape shape_of(const call_case *c, int world, int rank)
{
    call_shape s = { .send_numel = c->numel, .recv_numel = c->numel };
    size_t all = (size_t)world * c->numel;
    switch (c->kind) {
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        s.send_numel = all, s.share = (size_t)rank * c->numel;
        break;
    case ZB_COLLECTIVE_ALL_GATHER:
        s.recv_numel = all, s.share = (size_t)rank * c->numel;
        break;
    case ZB_COLLECTIVE_ALL_TO_ALL:
        s.send_numel = s.recv_numel = all;
        break;
    case ZB_COLLECTIVE_BROADCAST:
        s.send_numel = rank == c->root ? c->numel : 0;
        break;
    case ZB_COLLECTIVE_REDUCE:
        s.recv_numel = rank == c->root ? c->numel : 0;
        break;
    case ZB_COLLECTIVE_REDUCE_SCATTER_V:
        s.send_numel = 0;
        for (int r = 0; r < world; r++) {
            if (r == rank) s.share = s.send_numel;
            s.counts[r] = r % 3 == 1 ? 0 : c->numel + (size_t)r;
            s.send_numel += s.counts[r];
        }
        s.recv_numel = s.counts[rank];
        break;
    default:
        break;
    }
    return s;
}

static element expected_element(const call_case *c, const call_shape *s, int world, int rank, size_t i)
{
    switch (c->kind) {
    case ZB_COLLECTIVE_ALL_GATHER:
        return make_element(c->dtype, c->seed, (int)(i / c->numel), i % c->numel);
    case ZB_COLLECTIVE_ALL_TO_ALL:
        return make_element(c->dtype, c->seed, (int)(i / c->numel), (size_t)rank * c->numel + i % c->numel);
    case ZB_COLLECTIVE_BROADCAST:
        return make_element(c->dtype, c->seed, c->root, i);
    default:
        return reduce_plainly(c, world, s->share + i);
    }
}

static int same_element(zb_dtype dtype, const unsigned char *got, element want)
{
    if (memcmp(got, want.raw, zb_dtype_bytes(dtype)) == 0) return 1;
    element e = { { 0 } };
    memcpy(e.raw, got, zb_dtype_bytes(dtype));
    return is_float(dtype) && isnan(wide(dtype, e)) && isnan(wide(dtype, want));
}

/* A call under way: the buffers lie in `memory`, with guards around them. */
typedef struct call_state {
    call_case c;
    call_shape shape;
    unsigned char *memory, *send, *recv;
    size_t memory_bytes;
    zb_work work;
} call_state;

static void fill(const call_state *s, int rank)
{
    size_t bytes = zb_dtype_bytes(s->c.dtype);
    if (s->c.given != NULL) {
        memcpy(s->send, s->c.given, s->shape.send_numel * bytes);
        return;
    }
    for (size_t i = 0; i < s->shape.send_numel; i++) {
        element e = make_element(s->c.dtype, s->c.seed, rank, i);
        memcpy(s->send + i * bytes, e.raw, bytes);
    }
}

static zb_status call_start(call_state *s, zb_comm *comm, const call_case *c)
{
    *s = (call_state){ .c = *c, .shape = shape_of(c, comm->world_size, comm->rank) };
    size_t element_bytes = zb_dtype_bytes(c->dtype);
    size_t send = s->shape.send_numel * element_bytes, recv = s->shape.recv_numel * element_bytes;
    s->memory_bytes = send + recv + 3 * GUARD_BYTES;
    s->memory = zb_alloc(s->memory_bytes);
    if (s->memory == NULL) return ZB_NO_MEMORY;
    memset(s->memory, GUARD, s->memory_bytes);
    s->send = s->memory + GUARD_BYTES;
    s->recv = s->send + send + GUARD_BYTES;
    if (c->kind == ZB_COLLECTIVE_BROADCAST)
        s->send = s->recv;
    else if (c->in_place && send >= recv)
        s->recv = s->send + s->shape.share * element_bytes;
    else if (c->in_place)
        s->send = s->recv + s->shape.share * element_bytes;
    fill(s, comm->rank);
    return zb_collective_run(comm, c->async ? &s->work : NULL, .kind = c->kind, .send = s->send,
                             .recv = s->recv, .numel = c->numel, .counts = s->shape.counts, .dtype = c->dtype,
                             .op = c->op, .factor = c->factor, .order = c->order, .root = c->root,
                             .what = "suite");
}

static zb_status check_guard(const call_state *s, const unsigned char *guard)
{
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (guard[i] != GUARD)
            return zb_fail(ZB_DIFFERENT, "%s wrote outside of its buffers", zb_collective_name(s->c.kind));
    return ZB_OK;
}

static zb_status call_finish(call_state *s, zb_comm *comm)
{
    size_t bytes = zb_dtype_bytes(s->c.dtype);
    ZB_TRY(zb_comm_wait(comm, &s->work, NULL));
    const int same = s->c.expected != NULL &&
                     memcmp(s->recv, s->c.expected, s->shape.recv_numel * bytes) == 0;
    for (size_t i = 0; i < s->shape.recv_numel && !same; i++) {
        element want = { { 0 } };
        if (s->c.expected != NULL)
            memcpy(want.raw, s->c.expected + i * bytes, bytes);
        else
            want = expected_element(&s->c, &s->shape, comm->world_size, comm->rank, i);
        if (!same_element(s->c.dtype, s->recv + i * bytes, want))
            return zb_fail(
                ZB_DIFFERENT,
                "%s %s op %d order %s numel %zu in place %d async %d, world %d rank %d: element %zu",
                zb_collective_name(s->c.kind), zb_dtype_name(s->c.dtype), (int)s->c.op,
                zb_algorithm_name(s->c.order != NULL ? s->c.order->algorithm : ZB_ALGORITHM_RANK), s->c.numel,
                s->c.in_place, s->c.async, comm->world_size, comm->rank, i);
    }
    ZB_TRY(check_guard(s, s->memory));
    return check_guard(s, s->memory + s->memory_bytes - GUARD_BYTES);
}

static void call_end(call_state *s)
{
    zb_free(s->memory);
    s->memory = NULL;
}

static zb_status run_call(zb_comm *comm, const call_case *c)
{
    call_state s;
    zb_status status = call_start(&s, comm, c);
    if (status == ZB_OK) status = call_finish(&s, comm);
    call_end(&s);
    return status;
}

/* --- every kind, type, operator and size --- */

static const zb_collective_kind data_kinds[] = { ZB_COLLECTIVE_ALL_REDUCE,       ZB_COLLECTIVE_REDUCE_SCATTER,
                                                 ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_COLLECTIVE_REDUCE,
                                                 ZB_COLLECTIVE_ALL_GATHER,       ZB_COLLECTIVE_ALL_TO_ALL,
                                                 ZB_COLLECTIVE_BROADCAST };

static int reduces(zb_collective_kind kind)
{
    return kind == ZB_COLLECTIVE_ALL_REDUCE || kind == ZB_COLLECTIVE_REDUCE ||
           kind == ZB_COLLECTIVE_REDUCE_SCATTER || kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
}

static int offered(const call_case *c)
{
    if (c->in_place && c->kind == ZB_COLLECTIVE_ALL_TO_ALL) return 0;
    if (!reduces(c->kind)) return c->op == ZB_SUM;
    return is_float(c->dtype) || (c->op != ZB_AVG && c->op != ZB_PREMUL_SUM);
}

/* In place and blocking in all four combinations, for all operators. */
static zb_status run_variants(zb_comm *comm, call_case c)
{
    for (int op = ZB_SUM; op <= ZB_PREMUL_SUM; op++) {
        for (int variant = 0; variant < 4; variant++) {
            c.op = (zb_redop)op;
            c.factor = op == ZB_PREMUL_SUM ? 1.0 / 3 : 0;
            c.in_place = variant & 1;
            c.async = variant >> 1;
            c.seed++;
            c.root = (int)(c.seed % (uint64_t)comm->world_size);
            if (offered(&c)) ZB_TRY(run_call(comm, &c));
        }
    }
    return ZB_OK;
}

static zb_status main_every_call(void *user, zb_comm *comm)
{
    size_t world = (size_t)comm->world_size;
    const size_t sizes[] = { 0, 1, world - 1, world, 67 };
    uint64_t seed = *(uint64_t *)user;
    for (size_t k = 0; k < COUNT_OF(data_kinds); k++)
        for (int dtype = 0; dtype < ZB_DTYPE_COUNT; dtype++)
            for (size_t n = 0; n < COUNT_OF(sizes); n++)
                ZB_TRY(run_variants(comm, (call_case){ .kind = data_kinds[k],
                                                       .dtype = (zb_dtype)dtype,
                                                       .numel = sizes[n],
                                                       .seed = seed += 64 }));
    return ZB_OK;
}

/* Larger than any block that a back end may work in. */
static zb_status main_large_calls(void *user, zb_comm *comm)
{
    uint64_t seed = *(uint64_t *)user;
    for (size_t k = 0; k < COUNT_OF(data_kinds); k++)
        for (int variant = 0; variant < 4; variant++)
            ZB_TRY(run_call(
                comm, &(call_case){ .kind = data_kinds[k],
                                    .dtype = variant == 3 ? ZB_BF16 : ZB_FP32,
                                    .numel = 10007,
                                    .in_place = data_kinds[k] != ZB_COLLECTIVE_ALL_TO_ALL && variant & 1,
                                    .async = variant >> 1,
                                    .seed = seed++ }));
    return ZB_OK;
}

/* Some ranks block where others do not: they meet in the same operation. */
static zb_status main_mixed_blocking(void *user, zb_comm *comm)
{
    uint64_t seed = *(uint64_t *)user;
    for (int round = 0; round < 40; round++)
        ZB_TRY(run_call(comm,
                        &(call_case){ .kind = data_kinds[round % (int)COUNT_OF(data_kinds)],
                                      .dtype = ZB_FP32,
                                      .numel = (size_t)(round * 53),
                                      .async = (int)(mix(seed + (uint64_t)round, (uint64_t)comm->rank) & 1),
                                      .root = round % comm->world_size,
                                      .seed = seed + (uint64_t)round }));
    return ZB_OK;
}

/* --- every order --- */

enum { SUM_KINDS = 4, POOL_NUMEL = 1024, POOL_PERIOD = 311 /* fits no chunk */, LARGE_NUMEL = 9001 };
static const zb_collective_kind sum_kinds[SUM_KINDS] = { ZB_COLLECTIVE_ALL_REDUCE,
                                                         ZB_COLLECTIVE_REDUCE_SCATTER,
                                                         ZB_COLLECTIVE_REDUCE_SCATTER_V,
                                                         ZB_COLLECTIVE_REDUCE };

/* What docs/orders.md says is offered. */
static const struct order_case {
    const char *text;
    enum { NO_RINGS, TWO_RINGS, ONE_TREE } shape; /* written behind the text, for the world at hand */
    int kinds[SUM_KINDS];
    int averages, averages_of_fp64; /* and pre-multiplied sums */
} order_cases[] = {
    { "rank", NO_RINGS, { 1, 1, 1, 1 }, 1, 1 },
    { "gloo", NO_RINGS, { 1, 1, 1, 1 }, 1, 1 },
    { "mpi-default", NO_RINGS, { 1, 1, 1, 1 }, 1, 1 },
    { "mpi-linear", NO_RINGS, { 1, 0, 0, 1 }, 1, 1 },
    { "mpi-recursive-doubling", NO_RINGS, { 1, 1, 0, 0 }, 1, 1 },
    { "mpi-ring", NO_RINGS, { 1, 1, 1, 0 }, 1, 1 },
    { "mpi-segmented-ring", NO_RINGS, { 1, 0, 0, 0 }, 1, 1 },
    { "mpi-rabenseifner", NO_RINGS, { 1, 0, 0, 0 }, 1, 1 },
    { "mpi-recursive-halving", NO_RINGS, { 0, 1, 1, 0 }, 1, 1 },
    { "mpi-butterfly", NO_RINGS, { 0, 1, 1, 0 }, 1, 1 },
    { "nccl-ring version=2.28 protocol=simple channels=2 chunk-bytes=8192", TWO_RINGS, { 1, 1, 0, 0 }, 1, 0 },
    { "nccl-ring version=2.29 protocol=ll channels=2", TWO_RINGS, { 1, 1, 0, 0 }, 1, 0 },
    { "nccl-ring version=2.30 protocol=ll128 channels=2 chunk-bytes=3840", TWO_RINGS, { 1, 1, 0, 0 }, 1, 0 },
    { "nccl-tree version=2.28 protocol=simple channels=2", ONE_TREE, { 1, 0, 0, 0 }, 0, 0 },
};

/* One ring up and one down; a tree of two children each. */
static zb_status make_order(const struct order_case *c, int world, zb_order_source *source_p)
{
    char text[64 * WORLD_MAX];
    size_t used = (size_t)snprintf(text, sizeof text, "%s", c->text);
    for (int ring = 0; c->shape == TWO_RINGS && ring < 2; ring++)
        for (int i = 0; i < world; i++)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%d", i == 0 ? " ring=" : ",",
                                     ring == 0 ? i : (world - i) % world);
    for (int i = 0; c->shape == ONE_TREE && i < world; i++) {
        const int left = 2 * i + 1 < world ? 2 * i + 1 : -1, right = 2 * i + 2 < world ? 2 * i + 2 : -1;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%d/%d/-1", i == 0 ? " tree=" : ",", left,
                                 right);
    }
    return zb_order_source_parse(text, source_p);
}

/* Contributions of all ranks, of one type; every case takes its own part of them. */
typedef struct pool {
    zb_dtype dtype;
    size_t numel;
    unsigned char *data; /* [world][numel] */
    unsigned char *expected;
    const void *inputs[WORLD_MAX];
} pool;

static zb_status pool_create(pool *p, zb_dtype dtype, size_t numel, int world, uint64_t seed)
{
    const size_t bytes = zb_dtype_bytes(dtype);
    *p = (pool){ .dtype = dtype, .numel = numel };
    p->data = zb_alloc_array((size_t)world * numel, bytes);
    p->expected = zb_alloc_array(numel, bytes);
    if (p->data == NULL || p->expected == NULL) return ZB_NO_MEMORY;
    for (int rank = 0; rank < world; rank++) {
        unsigned char *data = p->data + (size_t)rank * numel * bytes;
        for (size_t i = 0; i < numel && i < POOL_PERIOD; i++) {
            const element e = make_element(dtype, seed, rank, i);
            memcpy(data + i * bytes, e.raw, bytes);
        }
        for (size_t i = POOL_PERIOD; i < numel; i++)
            memcpy(data + i * bytes, data + (i - POOL_PERIOD) * bytes, bytes);
    }
    return ZB_OK;
}

static void pool_destroy(pool *p)
{
    zb_free(p->data);
    zb_free(p->expected);
}

/* What this rank must receive, played plainly from the record of the order. */
static zb_status expect(pool *p, const zb_comm *comm, call_case *c)
{
    const call_shape shape = shape_of(c, comm->world_size, comm->rank);
    const size_t bytes = zb_dtype_bytes(c->dtype), spare = p->numel - shape.send_numel;
    const size_t first = spare > 0 ? c->seed % spare : 0;
    zb_reduction reduction;
    ZB_TRY(zb_reduction_derive(c->order,
                               &(zb_reduction_call){ .kind = c->kind,
                                                     .world_size = comm->world_size,
                                                     .numel = c->numel,
                                                     .counts = shape.counts,
                                                     .dtype = c->dtype,
                                                     .op = c->op,
                                                     .factor = c->factor,
                                                     .root = c->root },
                               &reduction));
    for (int rank = 0; rank < comm->world_size; rank++)
        p->inputs[rank] = p->data + ((size_t)rank * p->numel + first) * bytes;
    zb_ref_reduction_run(&reduction, p->inputs, shape.share, shape.recv_numel, p->expected);
    zb_reduction_destroy(&reduction);
    c->given = p->inputs[comm->rank];
    c->expected = p->expected;
    return ZB_OK;
}

static int order_offers(const struct order_case *order, const call_case *c)
{
    if (c->op == ZB_SUM) return 1;
    if (!is_float(c->dtype) || !order->averages) return 0; /* an integer's are refused by the front door */
    return c->dtype != ZB_FP64 || order->averages_of_fp64;
}

/* A sum in place and not, blocking and not; of the other operations one of these four, in turn. */
static zb_status run_ordered(pool *p, zb_comm *comm, const struct order_case *order, call_case c)
{
    c.factor = c.op == ZB_PREMUL_SUM ? 1.0 / 3 : 0;
    if (!order_offers(order, &c)) return ZB_OK;
    ZB_TRY(expect(p, comm, &c));
    for (int variant = 0; variant < 4; variant++) {
        if (c.op != ZB_SUM && c.seed % 4 != (uint64_t)variant) continue;
        c.in_place = variant & 1;
        c.async = variant >> 1;
        ZB_TRY(run_call(comm, &c));
    }
    return ZB_OK;
}

static zb_status run_ops(pool *p, zb_comm *comm, const struct order_case *order, call_case c)
{
    static const zb_redop ops[] = { ZB_SUM, ZB_AVG, ZB_PREMUL_SUM };
    for (size_t i = 0; i < COUNT_OF(ops); i++) {
        c.op = ops[i];
        c.seed++;
        c.root = (int)(c.seed % (uint64_t)comm->world_size);
        ZB_TRY(run_ordered(p, comm, order, c));
    }
    return ZB_OK;
}

static zb_status run_sizes(pool *p, zb_comm *comm, const struct order_case *order, call_case c)
{
    const size_t world = (size_t)comm->world_size, sizes[] = { 0, 1, world - 1, 67 };
    for (size_t n = 0; n < COUNT_OF(sizes); n++) {
        c.numel = sizes[n];
        c.seed += 10;
        ZB_TRY(run_ops(p, comm, order, c));
    }
    return ZB_OK;
}

/* Many chunks of NCCL's and many blocks of a back end. */
static zb_status run_large(pool *p, zb_comm *comm, const struct order_case *order, call_case c)
{
    const int whole = c.kind == ZB_COLLECTIVE_ALL_REDUCE || c.kind == ZB_COLLECTIVE_REDUCE;
    c.op = order->averages && (c.dtype != ZB_FP64 || order->averages_of_fp64) ? ZB_AVG : ZB_SUM;
    c.numel = whole ? LARGE_NUMEL : LARGE_NUMEL / (size_t)comm->world_size;
    return run_ordered(p, comm, order, c);
}

typedef zb_status run_order_fn(pool *p, zb_comm *comm, const struct order_case *order, call_case c);

static zb_status run_kinds(pool *p, zb_comm *comm, const struct order_case *order, uint64_t seed,
                           run_order_fn *run)
{
    zb_order_source source;
    ZB_TRY(make_order(order, comm->world_size, &source));
    zb_status status = ZB_OK;
    for (int k = 0; k < SUM_KINDS && status == ZB_OK; k++)
        if (order->kinds[k])
            status = run(p, comm, order,
                         (call_case){ .kind = sum_kinds[k],
                                      .dtype = p->dtype,
                                      .seed = seed + 100 * (uint64_t)k,
                                      .order = &source });
    zb_order_source_destroy(&source);
    return status;
}

static zb_status run_orders(zb_comm *comm, zb_dtype dtype, size_t pool_numel, uint64_t seed,
                            run_order_fn *run)
{
    pool p;
    zb_status status = pool_create(&p, dtype, pool_numel, comm->world_size, seed);
    for (size_t o = 0; o < COUNT_OF(order_cases) && status == ZB_OK; o++)
        status = run_kinds(&p, comm, &order_cases[o], seed + 1000 * o, run);
    pool_destroy(&p);
    return status;
}

static const zb_dtype sum_dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16, ZB_FP64, ZB_INT32 };

static zb_status main_every_order(void *user, zb_comm *comm)
{
    const size_t world = (size_t)comm->world_size;
    const size_t room = POOL_NUMEL + world * (67 + world); /* a reduce_scatter takes world times the size */
    for (size_t d = 0; d < COUNT_OF(sum_dtypes); d++)
        ZB_TRY(run_orders(comm, sum_dtypes[d], room, *(uint64_t *)user + d, run_sizes));
    return ZB_OK;
}

static zb_status main_large_orders(void *user, zb_comm *comm)
{
    const size_t world = (size_t)comm->world_size, room = LARGE_NUMEL + POOL_NUMEL + world * world;
    ZB_TRY(run_orders(comm, ZB_FP32, room, *(uint64_t *)user, run_large));
    return run_orders(comm, ZB_BF16, room, *(uint64_t *)user, run_large);
}

/* --- several in flight --- */

static zb_status main_in_flight(void *user, zb_comm *comm)
{
    enum { IN_FLIGHT = 6 };
    uint64_t seed = *(uint64_t *)user;
    zb_status status = ZB_OK;
    for (int round = 0; round < 20 && status == ZB_OK; round++) {
        call_state states[IN_FLIGHT] = { { .memory = NULL } };
        int order[IN_FLIGHT];
        for (int i = 0; i < IN_FLIGHT && status == ZB_OK; i++) {
            uint64_t random = mix(seed + (uint64_t)round, (uint64_t)i);
            status = call_start(&states[i], comm,
                                &(call_case){ .kind = data_kinds[random % COUNT_OF(data_kinds)],
                                              .dtype = ZB_FP32,
                                              .numel = random >> 32 & 127,
                                              .async = 1,
                                              .root = (int)(random >> 40) % comm->world_size,
                                              .seed = random });
        }
        for (int i = 0; i < IN_FLIGHT; i++) { /* each rank waits in an order of its own */
            int j = (int)(mix(seed + (uint64_t)(round * 64 + comm->rank), (uint64_t)i) % (uint64_t)(i + 1));
            order[i] = order[j];
            order[j] = i;
        }
        for (int i = 0; i < IN_FLIGHT && status == ZB_OK; i++) status = call_finish(&states[order[i]], comm);
        for (int i = 0; i < IN_FLIGHT; i++) call_end(&states[i]);
    }
    return status;
}

/* Rank 0 blocks in an operation that the others only start: it must get through without their wait, since
 * they wait for a message of it first. */
static zb_status main_progress(void *user, zb_comm *comm)
{
    uint64_t seed = *(uint64_t *)user;
    for (int round = 0; round < 20; round++) {
        call_case c = { .kind = data_kinds[round % (int)COUNT_OF(data_kinds)],
                        .dtype = ZB_FP32,
                        .numel = 100,
                        .async = comm->rank != 0,
                        .seed = seed++ };
        call_state s;
        zb_status status = call_start(&s, comm, &c);
        int32_t token = round;
        for (int r = 1; r < comm->world_size && comm->rank == 0 && status == ZB_OK; r++)
            status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_SEND, .send = &token, .numel = 1,
                                       .dtype = ZB_INT32, .root = r);
        if (comm->rank != 0 && status == ZB_OK)
            status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_RECV, .recv = &token, .numel = 1,
                                       .dtype = ZB_INT32, .root = 0);
        if (status == ZB_OK) status = call_finish(&s, comm);
        call_end(&s);
        ZB_TRY(status);
    }
    return ZB_OK;
}

/* --- messages --- */

enum { MESSAGES = 5, MESSAGE_NUMEL = 33 };

/* A ring, everything in flight: messages of one pair keep their order. */
static zb_status main_ring(void *user, zb_comm *comm)
{
    int world = comm->world_size, to = (comm->rank + 1) % world, from = (comm->rank + world - 1) % world;
    uint64_t seed = *(uint64_t *)user;
    int32_t out[MESSAGES][MESSAGE_NUMEL], in[MESSAGES][MESSAGE_NUMEL];
    zb_work sends[MESSAGES], receives[MESSAGES];
    if (world == 1) return ZB_OK;
    for (int m = 0; m < MESSAGES; m++) {
        for (int i = 0; i < MESSAGE_NUMEL; i++)
            out[m][i] = (int32_t)mix(seed + (uint64_t)comm->rank, (uint64_t)(m * MESSAGE_NUMEL + i));
        ZB_TRY(zb_collective_run(comm, &sends[m], .kind = ZB_COLLECTIVE_SEND, .send = out[m],
                                 .numel = MESSAGE_NUMEL, .dtype = ZB_INT32, .root = to));
        ZB_TRY(zb_collective_run(comm, &receives[m], .kind = ZB_COLLECTIVE_RECV, .recv = in[m],
                                 .numel = MESSAGE_NUMEL, .dtype = ZB_INT32, .root = from));
    }
    for (int m = MESSAGES - 1; m >= 0; m--) {
        ZB_TRY(zb_comm_wait(comm, &sends[m], NULL));
        ZB_TRY(zb_comm_wait(comm, &receives[m], NULL));
        for (int i = 0; i < MESSAGE_NUMEL; i++)
            if (in[m][i] != (int32_t)mix(seed + (uint64_t)from, (uint64_t)(m * MESSAGE_NUMEL + i)))
                return zb_fail(ZB_DIFFERENT, "message %d of rank %d arrived wrong at rank %d", m, from,
                               comm->rank);
    }
    return ZB_OK;
}

/* Blocking messages from every rank to rank 0, which takes them in falling order. */
static zb_status main_collect(void *user, zb_comm *comm)
{
    (void)user;
    int64_t value = 100 + comm->rank;
    if (comm->rank != 0)
        return zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_SEND, .send = &value, .numel = 1,
                                 .dtype = ZB_INT64, .root = 0);
    for (int r = comm->world_size - 1; r > 0; r--) {
        ZB_TRY(zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_RECV, .recv = &value, .numel = 1,
                                 .dtype = ZB_INT64, .root = r));
        if (value != 100 + r) return zb_fail(ZB_DIFFERENT, "got %lld from rank %d", (long long)value, r);
    }
    return ZB_OK;
}

/* --- groups --- */

static zb_status check_group(zb_comm *world, zb_comm *group, int color, int colors)
{
    int want_size = 0, want_rank = 0;
    for (int r = color; r < world->world_size; r += colors) {
        want_size++;
        if (r > world->rank) want_rank++; /* keys fall with the rank */
    }
    if (group->world_size == want_size && group->rank == want_rank) return ZB_OK;
    return zb_fail(ZB_DIFFERENT, "rank %d is %d of %d in color %d, want %d of %d", world->rank, group->rank,
                   group->world_size, color, want_rank, want_size);
}

static zb_status use_group(zb_comm *world, zb_comm *group, uint64_t seed)
{
    for (int round = 0; round < 4; round++) {
        call_case c = { .kind = ZB_COLLECTIVE_REDUCE_SCATTER, .dtype = ZB_FP32, .numel = 19, .seed = seed++ };
        ZB_TRY(run_call(group, &c));
        c.kind = ZB_COLLECTIVE_ALL_REDUCE;
        c.async = 1;
        ZB_TRY(run_call(world, &c));
    }
    return ZB_OK;
}

/* Groups by rank modulo 3, in reverse order, used in turns with the world; then split once more, one each. */
static zb_status main_groups(void *user, zb_comm *comm)
{
    int colors = comm->world_size < 3 ? comm->world_size : 3, color = comm->rank % colors;
    zb_comm *group = NULL, *alone = NULL;
    ZB_TRY(zb_comm_split(comm, color, -comm->rank, &group));
    zb_status status = check_group(comm, group, color, colors);
    if (status == ZB_OK) status = use_group(comm, group, *(uint64_t *)user);
    if (status == ZB_OK) status = zb_comm_split(group, group->rank, 0, &alone);
    if (status == ZB_OK && alone->world_size != 1)
        status = zb_fail(ZB_DIFFERENT, "a group of one has %d ranks", alone->world_size);
    if (status == ZB_OK) status = use_group(group, alone, *(uint64_t *)user);
    zb_comm_destroy(alone);
    zb_comm_destroy(group);
    return status;
}

/* Color < 0: in no group, and no group is made. */
static zb_status main_no_group(void *user, zb_comm *comm)
{
    zb_comm *group = comm;
    ZB_TRY(zb_comm_split(comm, comm->rank == 0 ? -1 : 5, 0, &group));
    if (comm->rank == 0) return group == NULL ? ZB_OK : zb_fail(ZB_DIFFERENT, "rank 0 is in a group");
    zb_status status = group->rank == comm->rank - 1 && group->world_size == comm->world_size - 1
                           ? use_group(group, group, *(uint64_t *)user)
                           : zb_fail(ZB_DIFFERENT, "rank %d is %d of %d", comm->rank, group->rank,
                                     group->world_size);
    zb_comm_destroy(group);
    return status;
}

/* --- barrier and traffic --- */

static zb_status main_traffic(void *user, zb_comm *comm)
{
    (void)user;
    zb_traffic before = comm->traffic[ZB_COLLECTIVE_BARRIER];
    zb_traffic reduce_before = comm->traffic[ZB_COLLECTIVE_ALL_REDUCE];
    for (int i = 0; i < 10; i++) ZB_TRY(zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_BARRIER));
    float x[7] = { 0 };
    ZB_TRY(zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_REDUCE, .send = x, .recv = x, .numel = 7));
    if (comm->traffic[ZB_COLLECTIVE_BARRIER].calls != before.calls + 10 ||
        comm->traffic[ZB_COLLECTIVE_ALL_REDUCE].bytes != reduce_before.bytes + sizeof x)
        return zb_fail(ZB_DIFFERENT, "traffic was not counted");
    return ZB_OK;
}

const comm_suite_case comm_suite_cases[] = {
    { "every kind, type, operator, size", main_every_call },
    { "large calls", main_large_calls },
    { "every order of addition", main_every_order },
    { "every order, large", main_large_orders },
    { "some ranks block, others do not", main_mixed_blocking },
    { "several in flight, any order", main_in_flight },
    { "progress without a wait", main_progress },
    { "messages in a ring", main_ring },
    { "messages to rank 0", main_collect },
    { "groups in turns with the world", main_groups },
    { "ranks in no group", main_no_group },
    { "barriers; traffic is counted", main_traffic },
};
const int comm_suite_case_count = (int)COUNT_OF(comm_suite_cases);
