/*
 * Real Open MPI against the orders named after it: every algorithm that can be forced, and the default
 * choice, on every world from two ranks to all of them. Each rank knows everybody's contribution and compares
 * what it has received with the record, bit for bit. Run by mpirun with coll_tuned_use_dynamic_rules set; the
 * algorithm is a control variable (MPI_T) that a new communicator obeys. --all: many more sizes. --from N:
 * worlds from N ranks on.
 */
#include <mpi.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/random.h>

#include "kernels/half.h"

enum { NUMEL_MAX = 540000, WORLD_MAX = 16, ALL_SIZES = 110 };

static int world_rank, failures, comparisons;

static void die(const char *what)
{
    fprintf(stderr, "rank %d: %s: %s\n", world_rank, what, zb_error_message());
    MPI_Abort(MPI_COMM_WORLD, 3);
}

/* --- types --- */

#define HALF_OPERATION(name, WIDEN, NARROW)                                                                  \
    static void name(void *in, void *inout, int *count, MPI_Datatype *type)                                  \
    {                                                                                                        \
        (void)type;                                                                                          \
        const uint16_t *x = in;                                                                              \
        uint16_t *y = inout;                                                                                 \
        for (int i = 0; i < *count; i++) y[i] = NARROW(WIDEN(x[i]) + WIDEN(y[i]));                           \
    }
HALF_OPERATION(add_fp16, zb_float_from_fp16, zb_fp16_from_float)
HALF_OPERATION(add_bf16, zb_float_from_bf16, zb_bf16_from_float)

typedef struct element_type {
    zb_dtype dtype;
    MPI_Datatype type;
    MPI_Op op;
    void *inputs[WORLD_MAX]; /* of every rank, NUMEL_MAX each */
} element_type;

enum { TYPE_COUNT = 5 };
static element_type types[TYPE_COUNT];

/* Between -1 and 1, of exponents that differ enough for the order to show. */
static double draw(int rank, size_t i)
{
    const uint32_t bits = zb_random_bits(5, (uint32_t)rank, i);
    return ((double)(bits & 0xffffff) / 0x1p23 - 1) * (1 << (bits >> 24 & 3)) / 8;
}

static void fill(element_type *t, int rank)
{
    t->inputs[rank] = zb_alloc_array(NUMEL_MAX, zb_dtype_bytes(t->dtype));
    if (t->inputs[rank] == NULL) die("inputs");
    for (size_t i = 0; i < NUMEL_MAX; i++) {
        const double x = draw(rank, i);
        if (t->dtype == ZB_FP32) ((float *)t->inputs[rank])[i] = (float)x;
        if (t->dtype == ZB_FP64) ((double *)t->inputs[rank])[i] = x * (1 + 0x1p-30 * (double)(i % 1001));
        if (t->dtype == ZB_INT32) ((int32_t *)t->inputs[rank])[i] = (int32_t)(x * 0x1p31);
        if (t->dtype == ZB_FP16) ((uint16_t *)t->inputs[rank])[i] = zb_fp16_from_float((float)x);
        if (t->dtype == ZB_BF16) ((uint16_t *)t->inputs[rank])[i] = zb_bf16_from_float((float)x);
    }
}

static void make_types(int ranks)
{
    MPI_Op fp16_sum, bf16_sum;
    MPI_Op_create(add_fp16, 1, &fp16_sum);
    MPI_Op_create(add_bf16, 1, &bf16_sum);
    types[0] = (element_type){ .dtype = ZB_FP32, .type = MPI_FLOAT, .op = MPI_SUM };
    types[1] = (element_type){ .dtype = ZB_FP64, .type = MPI_DOUBLE, .op = MPI_SUM };
    types[2] = (element_type){ .dtype = ZB_INT32, .type = MPI_INT, .op = MPI_SUM };
    types[3] = (element_type){ .dtype = ZB_FP16, .type = MPI_UINT16_T, .op = fp16_sum };
    types[4] = (element_type){ .dtype = ZB_BF16, .type = MPI_UINT16_T, .op = bf16_sum };
    for (int t = 0; t < TYPE_COUNT; t++)
        for (int rank = 0; rank < ranks; rank++) fill(&types[t], rank);
}

/* --- algorithms --- */

static const struct algorithm {
    const char *source, *variable;
    int number;
    zb_collective_kind kind;
} algorithms[] = {
    { "mpi-default", "allreduce", 0, ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-linear", "allreduce", 1, ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-recursive-doubling", "allreduce", 3, ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-ring", "allreduce", 4, ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-segmented-ring", "allreduce", 5, ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-rabenseifner", "allreduce", 6, ZB_COLLECTIVE_ALL_REDUCE },
    { "mpi-default", "reduce_scatter", 0, ZB_COLLECTIVE_REDUCE_SCATTER_V },
    { "mpi-recursive-halving", "reduce_scatter", 2, ZB_COLLECTIVE_REDUCE_SCATTER_V },
    { "mpi-ring", "reduce_scatter", 3, ZB_COLLECTIVE_REDUCE_SCATTER_V },
    { "mpi-butterfly", "reduce_scatter", 4, ZB_COLLECTIVE_REDUCE_SCATTER_V },
    { "mpi-default", "reduce_scatter_block", 0, ZB_COLLECTIVE_REDUCE_SCATTER },
    { "mpi-recursive-doubling", "reduce_scatter_block", 2, ZB_COLLECTIVE_REDUCE_SCATTER },
    { "mpi-recursive-halving", "reduce_scatter_block", 3, ZB_COLLECTIVE_REDUCE_SCATTER },
    { "mpi-butterfly", "reduce_scatter_block", 4, ZB_COLLECTIVE_REDUCE_SCATTER },
    { "mpi-default", "reduce", 0, ZB_COLLECTIVE_REDUCE },
    { "mpi-linear", "reduce", 1, ZB_COLLECTIVE_REDUCE },
};
enum { ALGORITHM_COUNT = sizeof algorithms / sizeof algorithms[0] };

static MPI_T_cvar_handle open_variable(const char *name)
{
    int index, count;
    MPI_T_cvar_handle handle;
    if (MPI_T_cvar_get_index(name, &index) != MPI_SUCCESS ||
        MPI_T_cvar_handle_alloc(index, NULL, &handle, &count) != MPI_SUCCESS)
        die(name);
    return handle;
}

static void set_variable(const char *name, int value)
{
    int got = -1;
    MPI_T_cvar_handle handle = open_variable(name);
    if (MPI_T_cvar_write(handle, &value) != MPI_SUCCESS) die(name);
    MPI_T_cvar_read(handle, &got);
    if (got != value) die(name);
    MPI_T_cvar_handle_free(&handle);
}

/* Without this one the others would be ignored. */
static void check_dynamic_rules(void)
{
    bool on = false;
    MPI_T_cvar_handle handle = open_variable("coll_tuned_use_dynamic_rules");
    MPI_T_cvar_read(handle, &on);
    if (!on) die("coll_tuned_use_dynamic_rules is off");
    MPI_T_cvar_handle_free(&handle);
}

/* Every communicator made from now on adds by this algorithm. */
static void force(const struct algorithm *a)
{
    char name[128];
    snprintf(name, sizeof name, "coll_tuned_%s_algorithm", a->variable);
    set_variable(name, a->number);
}

/* --- one collective --- */

/* Uneven, some of them empty; they add up to numel. */
static void cut(size_t numel, int ranks, size_t *counts)
{
    size_t left = numel;
    for (int rank = 0; rank < ranks; rank++) {
        const uint32_t bits = zb_random_bits(7, (uint32_t)rank, numel);
        const size_t share = bits % 5 == 0 ? 0 : bits % (2 * numel / (size_t)ranks + 2);
        counts[rank] = rank == ranks - 1 || share > left ? left : share;
        left -= counts[rank];
    }
}

static void run_native(const zb_reduction_call *call, const element_type *t, MPI_Comm comm, int rank,
                       void *out)
{
    int counts[WORLD_MAX];
    switch (call->kind) {
    case ZB_COLLECTIVE_ALL_REDUCE:
        MPI_Allreduce(t->inputs[rank], out, (int)call->numel, t->type, t->op, comm);
        break;
    case ZB_COLLECTIVE_REDUCE:
        MPI_Reduce(t->inputs[rank], out, (int)call->numel, t->type, t->op, call->root, comm);
        break;
    case ZB_COLLECTIVE_REDUCE_SCATTER:
        MPI_Reduce_scatter_block(t->inputs[rank], out, (int)call->numel, t->type, t->op, comm);
        break;
    default:
        for (int i = 0; i < call->world_size; i++) counts[i] = (int)call->counts[i];
        MPI_Reduce_scatter(t->inputs[rank], out, counts, t->type, t->op, comm);
    }
}

/* Which elements of the result this rank has. */
static void find_own(const zb_reduction_call *call, int rank, size_t *first_p, size_t *numel_p)
{
    *first_p = 0;
    *numel_p = call->numel;
    if (call->kind == ZB_COLLECTIVE_REDUCE && rank != call->root) *numel_p = 0;
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER) *first_p = (size_t)rank * call->numel;
    if (call->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return;
    for (int i = 0; i < rank; i++) *first_p += call->counts[i];
    *numel_p = call->counts[rank];
}

static void compare(const struct algorithm *a, const zb_reduction_call *call, const element_type *t,
                    MPI_Comm comm, void *got, void *want)
{
    int rank;
    MPI_Comm_rank(comm, &rank);
    const size_t bytes = zb_dtype_bytes(t->dtype);
    memset(got, 0x77, 4096);
    run_native(call, t, comm, rank, got);

    zb_order_source source;
    zb_reduction reduction;
    if (zb_order_source_parse(a->source, &source) != ZB_OK) die(a->source);
    if (zb_reduction_derive(&source, call, &reduction) != ZB_OK) die(a->source);
    size_t first, numel;
    find_own(call, rank, &first, &numel);
    if (zb_reduction_run(&reduction, (const void *const *)t->inputs, first, numel, want) != ZB_OK)
        die(a->source);
    comparisons++;
    if (memcmp(got, want, numel * bytes) != 0) {
        size_t i = 0;
        while (memcmp((char *)got + i * bytes, (char *)want + i * bytes, bytes) == 0) i++;
        char sum[256];
        zb_reduction_describe(&reduction, zb_reduction_range_of(&reduction, first + i), sum, sizeof sum);
        if (failures++ < 5)
            fprintf(stderr, "%s %s, %d ranks, %zu of %s: element %zu differs on rank %d: is not %s\n",
                    zb_collective_name(call->kind), a->source, call->world_size, call->numel,
                    zb_dtype_name(t->dtype), first + i, rank, sum);
    }
    zb_reduction_destroy(&reduction);
    zb_order_source_destroy(&source);
}

/* --- all of them --- */

/* numel elements in all for the kinds that scatter. */
static void run_size(const struct algorithm *a, size_t numel, int ranks, MPI_Comm comm, void *got, void *want)
{
    size_t counts[WORLD_MAX];
    cut(numel, ranks, counts);
    for (int t = 0; t < TYPE_COUNT; t++) {
        zb_reduction_call call = { .kind = a->kind,
                                   .world_size = ranks,
                                   .numel = numel,
                                   .counts = counts,
                                   .dtype = types[t].dtype,
                                   .op = ZB_SUM,
                                   .root = (int)(numel % (size_t)ranks) };
        if (a->kind == ZB_COLLECTIVE_REDUCE_SCATTER) call.numel = numel / (size_t)ranks;
        compare(a, &call, &types[t], comm, got, want);
    }
}

static const size_t sample_sizes[] = { 1, 2, 3, 5, 7, 8, 15, 31, 100, 1023, 1024, 2053, 12345, 66001 };
enum { SAMPLE_COUNT = sizeof sample_sizes / sizeof sample_sizes[0] };

/* All: the sample, every small size, random ones of every magnitude, and the largest. */
static size_t size_at(int i)
{
    if (i < SAMPLE_COUNT) return sample_sizes[i];
    if (i == ALL_SIZES - 1) return NUMEL_MAX;
    if (i < SAMPLE_COUNT + 24) return (size_t)(i - SAMPLE_COUNT + 1);
    const uint32_t bits = zb_random_bits(9, 0, (uint64_t)i);
    return 1 + (bits >> 8) % ((size_t)1 << (5 + bits % 14));
}

static void run_world(int ranks, int size_count, void *got, void *want)
{
    MPI_Comm members = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, world_rank < ranks ? 0 : MPI_UNDEFINED, world_rank, &members);
    for (int a = 0; a < ALGORITHM_COUNT && members != MPI_COMM_NULL; a++) {
        MPI_Comm comm;
        force(&algorithms[a]);
        MPI_Comm_dup(members, &comm);
        for (int i = 0; i < size_count; i++) run_size(&algorithms[a], size_at(i), ranks, comm, got, want);
        MPI_Comm_free(&comm);
        set_variable("coll_tuned_reduce_algorithm", 0); /* others begin with a reduce */
    }
    if (members != MPI_COMM_NULL) MPI_Comm_free(&members);
    MPI_Barrier(MPI_COMM_WORLD);
}

int main(int argc, char **argv)
{
    int ranks, provided, total, all = 0, from = 2;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--all") == 0) all = 1;
        if (strcmp(argv[i], "--from") == 0 && i + 1 < argc) from = atoi(argv[++i]);
    }
    MPI_Init(&argc, &argv);
    MPI_T_init_thread(MPI_THREAD_SINGLE, &provided);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    if (ranks < 2 || ranks > WORLD_MAX) die("want 2 to 16 ranks");
    if (from < 2 || from > ranks) die("--from: want 2 to as many as there are");
    check_dynamic_rules();
    make_types(ranks);
    void *got = zb_alloc_array(NUMEL_MAX, 8), *want = zb_alloc_array(NUMEL_MAX, 8);
    if (got == NULL || want == NULL) die("results");
    const double start = MPI_Wtime();
    for (int w = from; w <= ranks; w++) run_world(w, all ? ALL_SIZES : SAMPLE_COUNT, got, want);
    MPI_Allreduce(&failures, &total, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (world_rank == 0)
        printf("%d comparisons in worlds of %d to %d ranks, %d results differ, %.1f s\n", comparisons, from,
               ranks, total, MPI_Wtime() - start);
    MPI_Finalize();
    return total != 0;
}
