/*
 * Reductions on MPI against their records, in worlds of 2 ranks to all of them: every rank knows everybody's
 * contribution, and compares what it has received with zb_reduction_run, bit for bit.
 *
 *   reductions data     every order that has a name, and rings and trees of NCCL's, by data movement
 *   reductions native   every algorithm of Open MPI's, by Open MPI itself: its calls are counted on the way
 *
 * --message-bytes N cuts messages, --large takes one size of several rounds.
 */
#include <mpi.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/mpi.h>
#include <zerobit/random.h>

#include "kernels/half.h"

enum { WORLD_MAX = 8, NUMEL_MAX = 3000017, SMALL_MAX = 40000 };

static size_t input_numel = SMALL_MAX, message_bytes;
static int rank, comparisons, failures;
static unsigned native_calls;

/* --- Open MPI's own reductions, counted --- */

int MPI_Allreduce(const void *from, void *to, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm)
{
    native_calls++;
    return PMPI_Allreduce(from, to, count, type, op, comm);
}

int MPI_Reduce(const void *from, void *to, int count, MPI_Datatype type, MPI_Op op, int root, MPI_Comm comm)
{
    native_calls++;
    return PMPI_Reduce(from, to, count, type, op, root, comm);
}

int MPI_Reduce_scatter(const void *from, void *to, const int counts[], MPI_Datatype type, MPI_Op op,
                       MPI_Comm comm)
{
    native_calls++;
    return PMPI_Reduce_scatter(from, to, counts, type, op, comm);
}

int MPI_Reduce_scatter_block(const void *from, void *to, int count, MPI_Datatype type, MPI_Op op,
                             MPI_Comm comm)
{
    native_calls++;
    return PMPI_Reduce_scatter_block(from, to, count, type, op, comm);
}

/* --- contributions --- */

static void *inputs[ZB_DTYPE_COUNT][WORLD_MAX];

static void die(const char *what)
{
    fprintf(stderr, "rank %d: %s: %s\n", rank, what, zb_error_message());
    MPI_Abort(MPI_COMM_WORLD, 3);
}

/* Between -1 and 1, of exponents that differ enough for the order to show. */
static double draw(int of_rank, size_t i)
{
    const uint32_t bits = zb_random_bits(5, (uint32_t)of_rank, i);
    return ((double)(bits & 0xffffff) / 0x1p23 - 1) * (1 << (bits >> 24 & 3)) / 8;
}

static void store(zb_dtype dtype, void *to, size_t i, double x)
{
    switch (dtype) {
    case ZB_FP32:
        ((float *)to)[i] = (float)x;
        break;
    case ZB_FP64:
        ((double *)to)[i] = x * (1 + 0x1p-30 * (double)(i % 1001));
        break;
    case ZB_FP16:
        ((uint16_t *)to)[i] = zb_fp16_from_float((float)x);
        break;
    case ZB_BF16:
        ((uint16_t *)to)[i] = zb_bf16_from_float((float)x);
        break;
    case ZB_INT32:
        ((int32_t *)to)[i] = (int32_t)(x * 0x1p31);
        break;
    case ZB_INT64:
        ((int64_t *)to)[i] = (int64_t)(x * 0x1p62);
        break;
    default:
        ((uint8_t *)to)[i] = (uint8_t)(int)(x * 100 + 101);
    }
}

static void make_inputs(int only)
{
    for (int d = 0; d < ZB_DTYPE_COUNT; d++)
        for (int r = 0; r < WORLD_MAX && (only < 0 || d == only); r++) {
            inputs[d][r] = zb_alloc_array(input_numel, zb_dtype_bytes((zb_dtype)d));
            if (inputs[d][r] == NULL) die("inputs");
            for (size_t i = 0; i < input_numel; i++) store((zb_dtype)d, inputs[d][r], i, draw(r, i));
        }
}

/* --- one collective --- */

typedef struct trial {
    const char *text; /* of the order */
    const zb_order_source *order;
    zb_reduction_call call;
    int in_place, async, native;
} trial;

/* Of the contribution, and which elements of the result this rank has. */
static void find_own(const zb_reduction_call *call, int of_rank, size_t *total_p, size_t *first_p,
                     size_t *numel_p)
{
    *total_p = *numel_p = call->numel;
    *first_p = 0;
    if (call->kind == ZB_COLLECTIVE_REDUCE && of_rank != call->root) *numel_p = 0;
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER) {
        *total_p = (size_t)call->world_size * call->numel;
        *first_p = (size_t)of_rank * call->numel;
    }
    if (call->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return;
    *total_p = 0;
    for (int r = 0; r < call->world_size; r++) {
        if (r == of_rank) *first_p = *total_p;
        *total_p += call->counts[r];
    }
    *numel_p = call->counts[of_rank];
}

static void differ(const trial *t, const zb_reduction *reduction, size_t element)
{
    char sum[256];
    zb_reduction_describe(reduction, zb_reduction_range_of(reduction, element), sum, sizeof sum);
    if (failures++ < 5)
        fprintf(stderr,
                "%s %s%s, %d ranks, %zu of %s, op %d, in place %d, async %d: element %zu differs on rank %d: "
                "is not %s\n",
                zb_collective_name(t->call.kind), t->text, t->native ? " by Open MPI" : "",
                t->call.world_size, t->call.numel, zb_dtype_name(t->call.dtype), (int)t->call.op, t->in_place,
                t->async, element, rank, sum);
}

static zb_status run_collective(const trial *t, zb_comm *comm, const void *send, void *recv)
{
    zb_work work = { 0 };
    const unsigned before = native_calls;
    ZB_TRY(zb_collective_run(comm, t->async ? &work : NULL, .kind = t->call.kind, .send = send, .recv = recv,
                             .numel = t->call.numel, .counts = t->call.counts, .dtype = t->call.dtype,
                             .op = t->call.op, .factor = t->call.factor, .root = t->call.root,
                             .order = t->order, .what = "orders"));
    ZB_TRY(zb_comm_wait(comm, &work, NULL));
    if ((native_calls != before) != t->native)
        return zb_fail(ZB_DIFFERENT, "%s %s of %zu: %u reductions of Open MPI's, want %d",
                       zb_collective_name(t->call.kind), t->text, t->call.numel, native_calls - before,
                       t->native);
    return ZB_OK;
}

static zb_status compare(const trial *t, zb_comm *comm, const zb_reduction *reduction)
{
    static unsigned char *send, *recv, *want;
    const size_t bytes = zb_dtype_bytes(t->call.dtype);
    if (send == NULL) {
        send = zb_alloc_array(input_numel, 8);
        recv = zb_alloc_array(input_numel, 8);
        want = zb_alloc_array(input_numel, 8);
    }
    if (send == NULL || recv == NULL || want == NULL) return ZB_NO_MEMORY;
    size_t total, first, numel;
    find_own(&t->call, comm->rank, &total, &first, &numel);
    memcpy(send, inputs[t->call.dtype][comm->rank], total * bytes);
    memset(recv, 0x77, numel * bytes);
    unsigned char *out = t->in_place ? send + first * bytes : recv;
    if (t->in_place && t->call.kind == ZB_COLLECTIVE_REDUCE) out = send;
    ZB_TRY(run_collective(t, comm, send, out));
    ZB_TRY(zb_reduction_run(reduction, (const void *const *)inputs[t->call.dtype], first, numel, want));
    comparisons++;
    for (size_t i = 0; i < numel; i++)
        if (memcmp(out + i * bytes, want + i * bytes, bytes) != 0) {
            differ(t, reduction, first + i);
            break;
        }
    return ZB_OK;
}

/* What the order does not offer is left out, on all ranks alike. */
static zb_status run_trial(const trial *t, zb_comm *comm)
{
    zb_reduction reduction;
    static const zb_order_source by_rank = { 0 };
    const zb_order_source *order = t->order != NULL ? t->order : &by_rank;
    const zb_status status = zb_reduction_derive(order, &t->call, &reduction);
    if (status == ZB_UNSUPPORTED) return ZB_OK;
    ZB_TRY(status);
    const zb_status compared = compare(t, comm, &reduction);
    zb_reduction_destroy(&reduction);
    return compared;
}

/* --- all of an order --- */

static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER,
                                            ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_COLLECTIVE_REDUCE };
enum { KIND_COUNT = sizeof kinds / sizeof kinds[0] };

static int is_float(zb_dtype dtype)
{
    return dtype == ZB_FP32 || dtype == ZB_FP16 || dtype == ZB_BF16 || dtype == ZB_FP64;
}

/* docs/orders.md: what Open MPI has. */
static int open_mpi_has(zb_collective_kind kind, zb_algorithm algorithm)
{
    const int scatters = kind == ZB_COLLECTIVE_REDUCE_SCATTER || kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    switch (algorithm) {
    case ZB_ALGORITHM_MPI_DEFAULT:
        return 1;
    case ZB_ALGORITHM_MPI_LINEAR:
        return kind == ZB_COLLECTIVE_ALL_REDUCE || kind == ZB_COLLECTIVE_REDUCE;
    case ZB_ALGORITHM_MPI_RECURSIVE_DOUBLING:
        return kind == ZB_COLLECTIVE_ALL_REDUCE || kind == ZB_COLLECTIVE_REDUCE_SCATTER;
    case ZB_ALGORITHM_MPI_RING:
        return kind != ZB_COLLECTIVE_REDUCE;
    case ZB_ALGORITHM_MPI_SEGMENTED_RING:
    case ZB_ALGORITHM_MPI_RABENSEIFNER:
        return kind == ZB_COLLECTIVE_ALL_REDUCE;
    case ZB_ALGORITHM_MPI_RECURSIVE_HALVING:
    case ZB_ALGORITHM_MPI_BUTTERFLY:
        return scatters;
    default:
        return 0;
    }
}

/* Uneven, some of them empty. */
static void cut(size_t numel, int ranks, size_t *counts)
{
    for (int r = 0; r < ranks; r++) {
        const uint32_t bits = zb_random_bits(7, (uint32_t)r, numel);
        counts[r] = bits % 5 == 0 ? 0 : bits % (2 * numel / (size_t)ranks + 2);
    }
}

/* `numel` elements in all, more or less, for the kinds that scatter. */
static zb_status run_size(trial t, zb_comm *comm, size_t numel, zb_collective_kind kind)
{
    size_t counts[WORLD_MAX];
    cut(numel, comm->world_size, counts);
    t.call.kind = kind;
    t.call.counts = counts;
    t.call.world_size = comm->world_size;
    t.call.root = (int)(numel % (size_t)comm->world_size);
    t.call.numel = kind == ZB_COLLECTIVE_REDUCE_SCATTER ? numel / (size_t)comm->world_size : numel;
    t.call.factor = 1.0 / 3;
    const uint32_t variant = zb_random_bits(11, (uint32_t)numel, (uint64_t)kind * 8 + t.call.dtype);
    t.in_place = variant & 1;
    t.async = variant >> 1 & 1;
    return run_trial(&t, comm);
}

static zb_status run_kind(trial t, zb_comm *comm, zb_collective_kind kind, const size_t *sizes,
                          int size_count)
{
    const int has = t.native && open_mpi_has(kind, t.order->algorithm);
    for (int d = 0; d < ZB_DTYPE_COUNT; d++)
        for (int op = 0; op < 3; op++) {
            static const zb_redop ops[] = { ZB_SUM, ZB_AVG, ZB_PREMUL_SUM };
            if (inputs[d][0] == NULL || (op > 0 && !is_float((zb_dtype)d))) continue;
            t.native = has && d != ZB_UINT8;
            t.call.dtype = (zb_dtype)d;
            t.call.op = ops[op];
            for (int i = 0; i < size_count; i++) ZB_TRY(run_size(t, comm, sizes[i], kind));
        }
    return ZB_OK;
}

static zb_status run_order(const char *text, const zb_order_source *order, zb_comm *comm, int native)
{
    static const size_t small[] = { 16, 131, 1027, 5003 }, large[] = { NUMEL_MAX - 17 };
    const int before = comparisons, is_large = input_numel > SMALL_MAX;
    const trial t = { .text = text, .order = order, .native = native };
    for (int k = 0; k < KIND_COUNT; k++)
        ZB_TRY(run_kind(t, comm, kinds[k], is_large ? large : small, is_large ? 1 : 4));
    if (comparisons == before) return zb_fail(ZB_DIFFERENT, "%s: nothing was compared", text);
    return ZB_OK;
}

static zb_status run_text(const char *text, zb_comm *comm)
{
    zb_order_source order;
    ZB_TRY(zb_order_source_parse(text, &order));
    const zb_status status = run_order(text, &order, comm, 0);
    zb_order_source_destroy(&order);
    return status;
}

/* --- orders by data movement --- */

static const char *const names[] = {
    "rank",
    "gloo",
    "mpi-default",
    "mpi-linear",
    "mpi-recursive-doubling",
    "mpi-ring",
    "mpi-segmented-ring",
    "mpi-rabenseifner",
    "mpi-recursive-halving",
    "mpi-butterfly",
    "nccl-ring version=2.28 protocol=simple channels=1",
    "nccl-ring version=2.28 protocol=ll channels=2",
    "nccl-ring version=2.30 protocol=ll128 channels=3",
};
enum { NAME_COUNT = sizeof names / sizeof names[0] };

/* Two channels: up, and down. */
static void write_rings(int ranks, char *text)
{
    text += sprintf(text, "nccl-ring version=2.28 protocol=simple channels=2 ring=0");
    for (int r = 1; r < ranks; r++) text += sprintf(text, ",%d", r);
    text += sprintf(text, " ring=0");
    for (int r = ranks - 1; r > 0; r--) text += sprintf(text, ",%d", r);
}

/* A chain. */
static void write_tree(int ranks, char *text)
{
    text += sprintf(text, "nccl-tree version=2.28 protocol=simple channels=1 tree=");
    for (int r = 0; r < ranks; r++)
        text += sprintf(text, "%s%d/-1/-1", r > 0 ? "," : "", r + 1 < ranks ? r + 1 : -1);
}

static zb_status run_named(zb_comm *comm)
{
    char text[512];
    for (int i = 0; i < NAME_COUNT; i++) ZB_TRY(run_text(names[i], comm));
    write_rings(comm->world_size, text);
    ZB_TRY(run_text(text, comm));
    write_tree(comm->world_size, text);
    return run_text(text, comm);
}

/* --- worlds --- */

typedef zb_status world_main(zb_comm *comm, const void *user);

static zb_status in_all_worlds(zb_comm *world, int ranks_min, world_main *main_of_world, const void *user)
{
    for (int ranks = ranks_min; ranks <= world->world_size; ranks++) {
        zb_comm *comm = NULL;
        zb_status status = ZB_OK;
        ZB_TRY(zb_comm_split(world, world->rank < ranks ? 0 : -1, world->rank, &comm));
        if (comm != NULL) status = main_of_world(comm, user);
        zb_comm_destroy(comm);
        ZB_TRY(status);
    }
    return ZB_OK;
}

static zb_status data_world(zb_comm *comm, const void *user)
{
    (void)user;
    return run_named(comm);
}

static zb_status native_world(zb_comm *comm, const void *user)
{
    const zb_orders *native = user;
    char text[256];
    zb_orders_describe(native, text, sizeof text);
    return run_order(text, &native->of[ZB_COLLECTIVE_ALL_REDUCE], comm, comm->world_size > 1);
}

static zb_status run_data(void)
{
    zb_comm *world;
    const int is_large = input_numel > SMALL_MAX;
    ZB_TRY(zb_comm_mpi_create(&(zb_mpi_options){ .message_bytes_max = message_bytes }, &world));
    rank = world->rank;
    ZB_TRY(in_all_worlds(world, is_large ? world->world_size : 2, data_world, NULL));
    return ZB_OK;
}

static zb_status run_native(const char *text)
{
    zb_orders native;
    zb_comm *world;
    ZB_TRY(zb_orders_parse(text, &native));
    ZB_TRY(zb_comm_mpi_create(&(zb_mpi_options){ .native = &native }, &world));
    ZB_TRY(in_all_worlds(world, input_numel > SMALL_MAX ? world->world_size : 1, native_world, &native));
    zb_orders_destroy(&native);
    return ZB_OK;
}

/* The test's own MPI_Init: then a process may have one world after the other. */
static int run_natives(void)
{
    setenv("OMPI_MCA_coll_tuned_use_dynamic_rules", "1", 1);
    MPI_Init(NULL, NULL);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    int code = 0;
    for (int i = 2; i < 10 && code == 0; i++) {
        if (run_native(names[i]) != ZB_OK) {
            fprintf(stderr, "%s: %s\n", names[i], zb_error_message());
            code = 1;
        }
        code = zb_mpi_end(code);
    }
    return code;
}

int main(int argc, char **argv)
{
    int only = -1;
    const int native = argc > 1 && strcmp(argv[1], "native") == 0;
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--message-bytes") == 0 && i + 1 < argc)
            message_bytes = strtoul(argv[++i], NULL, 10);
        if (strcmp(argv[i], "--large") == 0) input_numel = NUMEL_MAX, only = ZB_FP32;
    }
    make_inputs(only);
    int code;
    if (native) {
        code = run_natives();
    } else {
        const zb_status status = run_data();
        if (status != ZB_OK) fprintf(stderr, "%s\n", zb_error_message());
        code = zb_mpi_end(status != ZB_OK || failures > 0);
    }
    if (rank == 0 || failures > 0)
        printf("%d comparisons, %d results differ, %u reductions by Open MPI\n", comparisons, failures,
               native_calls);
    if (native) MPI_Finalize();
    return code != 0 || failures > 0;
}
