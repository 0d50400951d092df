/*
 * Reductions by Open MPI itself. Which algorithm it uses is a control variable that a new communicator reads
 * when it is made: each kind of reduction has a communicator of its own, made while its variable, and no
 * other, was set. (Some of the algorithms begin with a reduce, which would obey its variable, too.)
 */
#include "engine/mpi/world.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"
#include "orders/signature.h"

/* --- algorithms --- */

typedef enum mpi_function {
    ALLREDUCE,
    REDUCE_SCATTER,
    REDUCE_SCATTER_BLOCK,
    REDUCE,
    FUNCTION_COUNT
} mpi_function;

static const char *const variables[FUNCTION_COUNT] = {
    [ALLREDUCE] = "coll_tuned_allreduce_algorithm",
    [REDUCE_SCATTER] = "coll_tuned_reduce_scatter_algorithm",
    [REDUCE_SCATTER_BLOCK] = "coll_tuned_reduce_scatter_block_algorithm",
    [REDUCE] = "coll_tuned_reduce_algorithm",
};

typedef struct native_algorithm {
    zb_collective_kind kind;
    zb_algorithm algorithm;
    mpi_function function;
    int number;
} native_algorithm;

/* docs/orders.md has the same table. */
static const native_algorithm algorithms[] = {
    { ZB_COLLECTIVE_ALL_REDUCE, ZB_ALGORITHM_MPI_DEFAULT, ALLREDUCE, 0 },
    { ZB_COLLECTIVE_ALL_REDUCE, ZB_ALGORITHM_MPI_LINEAR, ALLREDUCE, 1 },
    { ZB_COLLECTIVE_ALL_REDUCE, ZB_ALGORITHM_MPI_RECURSIVE_DOUBLING, ALLREDUCE, 3 },
    { ZB_COLLECTIVE_ALL_REDUCE, ZB_ALGORITHM_MPI_RING, ALLREDUCE, 4 },
    { ZB_COLLECTIVE_ALL_REDUCE, ZB_ALGORITHM_MPI_SEGMENTED_RING, ALLREDUCE, 5 },
    { ZB_COLLECTIVE_ALL_REDUCE, ZB_ALGORITHM_MPI_RABENSEIFNER, ALLREDUCE, 6 },
    { ZB_COLLECTIVE_REDUCE_SCATTER, ZB_ALGORITHM_MPI_DEFAULT, REDUCE_SCATTER_BLOCK, 0 },
    { ZB_COLLECTIVE_REDUCE_SCATTER, ZB_ALGORITHM_MPI_RECURSIVE_DOUBLING, REDUCE_SCATTER_BLOCK, 2 },
    { ZB_COLLECTIVE_REDUCE_SCATTER, ZB_ALGORITHM_MPI_RECURSIVE_HALVING, REDUCE_SCATTER_BLOCK, 3 },
    { ZB_COLLECTIVE_REDUCE_SCATTER, ZB_ALGORITHM_MPI_BUTTERFLY, REDUCE_SCATTER_BLOCK, 4 },
    { ZB_COLLECTIVE_REDUCE_SCATTER, ZB_ALGORITHM_MPI_RING, REDUCE_SCATTER, 3 },
    { ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_ALGORITHM_MPI_DEFAULT, REDUCE_SCATTER, 0 },
    { ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_ALGORITHM_MPI_RECURSIVE_HALVING, REDUCE_SCATTER, 2 },
    { ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_ALGORITHM_MPI_RING, REDUCE_SCATTER, 3 },
    { ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_ALGORITHM_MPI_BUTTERFLY, REDUCE_SCATTER, 4 },
    { ZB_COLLECTIVE_REDUCE, ZB_ALGORITHM_MPI_DEFAULT, REDUCE, 0 },
    { ZB_COLLECTIVE_REDUCE, ZB_ALGORITHM_MPI_LINEAR, REDUCE, 1 },
};
enum { ALGORITHM_COUNT = sizeof algorithms / sizeof algorithms[0] };

static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER,
                                            ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_COLLECTIVE_REDUCE };
enum { KIND_COUNT = sizeof kinds / sizeof kinds[0] };

/* NULL: Open MPI has no such algorithm for this kind. */
static const native_algorithm *find_algorithm(zb_collective_kind kind, zb_algorithm algorithm)
{
    for (int a = 0; a < ALGORITHM_COUNT; a++)
        if (algorithms[a].kind == kind && algorithms[a].algorithm == algorithm) return &algorithms[a];
    return NULL;
}

static const native_algorithm *native_of(const zb_orders *native, zb_collective_kind kind)
{
    return find_algorithm(kind, native->of[kind].algorithm);
}

/* --- control variables --- */

static zb_status open_variable(const char *name, MPI_T_cvar_handle *handle_p, int *count_p)
{
    int index;
    if (MPI_T_cvar_get_index(name, &index) != MPI_SUCCESS ||
        MPI_T_cvar_handle_alloc(index, NULL, handle_p, count_p) != MPI_SUCCESS)
        return zb_fail(ZB_UNSUPPORTED, "this Open MPI has no control variable %s", name);
    return ZB_OK;
}

/* At most `count_max` numbers or characters. */
static zb_status read_variable(const char *name, void *value, int count_max)
{
    MPI_T_cvar_handle handle;
    int count;
    ZB_TRY(open_variable(name, &handle, &count));
    const int code = count <= count_max ? MPI_T_cvar_read(handle, value) : MPI_ERR_OTHER;
    MPI_T_cvar_handle_free(&handle);
    return code == MPI_SUCCESS ? ZB_OK : zb_fail(ZB_UNSUPPORTED, "Open MPI does not tell its %s", name);
}

static zb_status write_number(const char *name, int value)
{
    MPI_T_cvar_handle handle;
    int count;
    ZB_TRY(open_variable(name, &handle, &count));
    int got = -1, code = MPI_T_cvar_write(handle, &value);
    if (code == MPI_SUCCESS) code = MPI_T_cvar_read(handle, &got);
    MPI_T_cvar_handle_free(&handle);
    if (code == MPI_SUCCESS && got == value) return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED, "Open MPI cannot be made to set %s to %d", name, value);
}

static zb_status check_library(void)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length, provided;
    MPI_TRY(MPI_Get_library_version(version, &length));
    if (strncmp(version, "Open MPI v4.1.", 14) != 0) {
        version[strcspn(version, ",\n")] = '\0';
        return zb_fail(ZB_UNSUPPORTED, "the MPI library is %.80s; orders are known of Open MPI 4.1", version);
    }
    MPI_TRY(MPI_T_init_thread(MPI_THREAD_SINGLE, &provided));
    return ZB_OK;
}

/* --- what it is set to --- */

static zb_status find_source(zb_collective_kind kind, mpi_function function, int number,
                             zb_order_source *source)
{
    for (int a = 0; a < ALGORITHM_COUNT; a++)
        if (algorithms[a].kind == kind && algorithms[a].function == function &&
            algorithms[a].number == number) {
            source->algorithm = algorithms[a].algorithm;
            return ZB_OK;
        }
    return zb_fail(ZB_UNSUPPORTED, "%s is %d, an algorithm whose order is not known", variables[function],
                   number);
}

/* Numbers alone decide; with a file of rules they would not. */
static zb_status check_rules_file(void)
{
    static char file[65536];
    ZB_TRY(read_variable("coll_tuned_dynamic_rules_filename", file, (int)sizeof file));
    if (file[0] == '\0') return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED, "coll_tuned_dynamic_rules_filename is %.200s: its rules are not known",
                   file);
}

static zb_status read_sources(zb_orders *orders)
{
    int numbers[FUNCTION_COUNT];
    for (int f = 0; f < FUNCTION_COUNT; f++) ZB_TRY(read_variable(variables[f], &numbers[f], 1));
    ZB_TRY(check_rules_file());
    if (numbers[REDUCE] != 0 && (numbers[REDUCE_SCATTER] == 0 || numbers[REDUCE_SCATTER_BLOCK] == 0))
        return zb_fail(ZB_UNSUPPORTED,
                       "%s is %d, and %s and %s are %d and %d: by default they may begin with such a "
                       "reduce, whose order is not known",
                       variables[REDUCE], numbers[REDUCE], variables[REDUCE_SCATTER],
                       variables[REDUCE_SCATTER_BLOCK], numbers[REDUCE_SCATTER],
                       numbers[REDUCE_SCATTER_BLOCK]);
    ZB_TRY(find_source(ZB_COLLECTIVE_ALL_REDUCE, ALLREDUCE, numbers[ALLREDUCE],
                       &orders->of[ZB_COLLECTIVE_ALL_REDUCE]));
    ZB_TRY(find_source(ZB_COLLECTIVE_REDUCE_SCATTER, REDUCE_SCATTER_BLOCK, numbers[REDUCE_SCATTER_BLOCK],
                       &orders->of[ZB_COLLECTIVE_REDUCE_SCATTER]));
    ZB_TRY(find_source(ZB_COLLECTIVE_REDUCE_SCATTER_V, REDUCE_SCATTER, numbers[REDUCE_SCATTER],
                       &orders->of[ZB_COLLECTIVE_REDUCE_SCATTER_V]));
    return find_source(ZB_COLLECTIVE_REDUCE, REDUCE, numbers[REDUCE], &orders->of[ZB_COLLECTIVE_REDUCE]);
}

zb_status zb_mpi_native_read(zb_orders *orders_p)
{
    zb_orders read = { 0 };
    bool obeys = false;
    ZB_TRY(check_library());
    ZB_TRY(read_variable("coll_tuned_use_dynamic_rules", &obeys, 1));
    for (int k = 0; k < KIND_COUNT; k++) read.of[kinds[k]].algorithm = ZB_ALGORITHM_MPI_DEFAULT;
    if (obeys) ZB_TRY(read_sources(&read));
    *orders_p = read; /* Open MPI's sources own nothing */
    return ZB_OK;
}

/* --- making it do so --- */

zb_status zb_mpi_native_check(const zb_orders *native)
{
    int any = 0, forced = 0;
    bool obeys = false;
    for (int k = 0; k < KIND_COUNT; k++) {
        const native_algorithm *a = native_of(native, kinds[k]);
        any = any || a != NULL;
        forced = forced || (a != NULL && a->number != 0);
    }
    if (!any) return ZB_OK;
    if (zb_simd_level() == NULL) return ZB_INVALID_ARGUMENT; /* operators of MPI cannot fail later */
    ZB_TRY(check_library());
    ZB_TRY(read_variable("coll_tuned_use_dynamic_rules", &obeys, 1));
    if (!forced || obeys) return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED,
                   "Open MPI was initialised without coll_tuned_use_dynamic_rules, and takes no orders: "
                   "want mpirun --mca coll_tuned_use_dynamic_rules 1");
}

/* A communicator that is made while only this algorithm is set. */
static zb_status open_one(mpi_group *group, const native_algorithm *a)
{
    int before[FUNCTION_COUNT];
    for (int f = 0; f < FUNCTION_COUNT; f++) {
        ZB_TRY(read_variable(variables[f], &before[f], 1));
        ZB_TRY(write_number(variables[f], f == (int)a->function ? a->number : 0));
    }
    MPI_TRY(MPI_Comm_dup(group->messages, &group->native[a->kind]));
    for (int f = 0; f < FUNCTION_COUNT; f++) ZB_TRY(write_number(variables[f], before[f]));
    return ZB_OK;
}

zb_status zb_mpi_native_open(mpi_group *group)
{
    if (group->base.world_size == 1) return ZB_OK;
    for (int k = 0; k < KIND_COUNT; k++) {
        const native_algorithm *a = native_of(&group->world->native, kinds[k]);
        if (a != NULL) ZB_TRY(open_one(group, a));
    }
    return ZB_OK;
}

/* --- types --- */

/* One addition in fp32, rounded once. */
static void add_half(zb_dtype dtype, void *in, void *inout, int count)
{
    const void *inputs[2] = { inout, in };
    const zb_status status = zb_cpu_ordered_reduce(&(zb_ordered_reduce_args){
        .inputs = inputs, .count = 2, .out = inout, .numel = (size_t)count, .dtype = dtype, .op = ZB_SUM });
    ZB_ASSERT(status == ZB_OK);
}

static void add_fp16(void *in, void *inout, int *count, MPI_Datatype *type)
{
    (void)type;
    add_half(ZB_FP16, in, inout, *count);
}

static void add_bf16(void *in, void *inout, int *count, MPI_Datatype *type)
{
    (void)type;
    add_half(ZB_BF16, in, inout, *count);
}

static MPI_Datatype type_of(zb_dtype dtype)
{
    switch (dtype) {
    case ZB_FP32:
        return MPI_FLOAT;
    case ZB_FP64:
        return MPI_DOUBLE;
    case ZB_INT32:
        return MPI_INT32_T;
    case ZB_INT64:
        return MPI_INT64_T;
    default:
        return MPI_UINT16_T;
    }
}

/* As commutative ones: Open MPI would use other algorithms for others. */
static zb_status find_sum(mpi_world *world, zb_dtype dtype, MPI_Op *op_p)
{
    const int fp16 = dtype == ZB_FP16;
    *op_p = MPI_SUM;
    if (!fp16 && dtype != ZB_BF16) return ZB_OK;
    MPI_Op *made = &world->half_sums[fp16];
    if (*made == MPI_OP_NULL) MPI_TRY(MPI_Op_create(fp16 ? add_fp16 : add_bf16, 1, made));
    *op_p = *made;
    return ZB_OK;
}

/* --- one collective --- */

static int adds(zb_redop op)
{
    return op == ZB_SUM || op == ZB_AVG || op == ZB_PREMUL_SUM;
}

/* Where processors have AVX, Open MPI 4.1 adds bytes with saturation: 200 + 100 is 255, as in no record. */
static int adds_alike(zb_dtype dtype)
{
    return dtype != ZB_UINT8;
}

int zb_mpi_native(const zb_comm *comm, const zb_collective *collective)
{
    const zb_collective_kind kind = collective->kind;
    if (comm->ops != &zb_mpi_comm_ops || !zb_call_is_reduction((int)kind)) return 0;
    if (!adds_alike(collective->dtype)) return 0;
    const mpi_group *group = (const mpi_group *)comm;
    return group->native[kind] != MPI_COMM_NULL && adds(collective->op) &&
           zb_order_source_equal(collective->order, &group->world->native.of[kind]);
}

static size_t total_numel(const mpi_group *group, const zb_collective *call)
{
    const size_t n = (size_t)group->base.world_size;
    size_t total = 0;
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER) return n * call->numel;
    if (call->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return call->numel;
    for (size_t r = 0; r < n; r++) total += call->counts[r];
    return total;
}

zb_status zb_mpi_native_refuse(const mpi_group *group, const zb_collective *call)
{
    const size_t total = total_numel(group, call);
    if (total <= INT_MAX) return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED, "%s of %zu elements by Open MPI itself: it counts up to %d",
                   zb_collective_name(call->kind), total, INT_MAX);
}

/* Of this rank. */
static size_t result_numel(const mpi_op *op)
{
    const int me = op->group->base.rank;
    if (op->call.kind == ZB_COLLECTIVE_ALL_REDUCE) return op->call.numel;
    if (op->call.kind == ZB_COLLECTIVE_REDUCE) return me == op->call.root ? op->call.numel : 0;
    return op->firsts[me + 1] - op->firsts[me];
}

/* `out` may be `in`. */
static zb_status scale(zb_dtype dtype, zb_rounding rounding, const void *in, void *out, size_t numel)
{
    int32_t zero = 0;
    zb_reduction_range range = { .numel = numel };
    const zb_reduction alone = { .world_size = 1,
                                 .dtype = dtype,
                                 .numel = numel,
                                 .rounding = rounding,
                                 .tree_count = 1,
                                 .order_count = 1,
                                 .range_count = 1,
                                 .trees = &zero,
                                 .orders = &zero,
                                 .ranges = &range };
    return numel > 0 ? zb_reduction_run(&alone, &in, 0, numel, out) : ZB_OK;
}

static zb_status call_reduce_scatter(mpi_op *op, MPI_Comm comm, const void *from, void *to, MPI_Op sum)
{
    const MPI_Datatype type = type_of(op->call.dtype);
    for (int r = 0; r < op->group->base.world_size; r++)
        op->indices[r] = (int)(op->firsts[r + 1] - op->firsts[r]);
    MPI_TRY(MPI_Reduce_scatter(from, to, op->indices, type, sum, comm));
    return ZB_OK;
}

static zb_status call_mpi(mpi_op *op, const void *from, void *to)
{
    const mpi_group *group = op->group;
    const native_algorithm *a = native_of(&group->world->native, op->call.kind);
    const MPI_Comm comm = group->native[op->call.kind];
    const MPI_Datatype type = type_of(op->call.dtype);
    const int numel = (int)op->call.numel;
    MPI_Op sum;
    ZB_TRY(find_sum(group->world, op->call.dtype, &sum));
    if (from == to && result_numel(op) > 0) from = MPI_IN_PLACE; /* of a reduce, the root alone says so */
    switch (a->function) {
    case ALLREDUCE:
        MPI_TRY(MPI_Allreduce(from, to, numel, type, sum, comm));
        return ZB_OK;
    case REDUCE:
        MPI_TRY(MPI_Reduce(from, to, numel, type, sum, op->call.root, comm));
        return ZB_OK;
    case REDUCE_SCATTER_BLOCK:
        MPI_TRY(MPI_Reduce_scatter_block(from, to, numel, type, sum, comm));
        return ZB_OK;
    default:
        return call_reduce_scatter(op, comm, from, to, sum);
    }
}

/* Where a reduce_scatter works in place its result would lie in its contributions. */
static int result_lies_apart(const mpi_op *op)
{
    const zb_collective *c = &op->call;
    const size_t share = op->firsts[op->group->base.rank] * zb_dtype_bytes(c->dtype);
    const int scatters = c->kind == ZB_COLLECTIVE_REDUCE_SCATTER || c->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V;
    return scatters && (const char *)c->recv == (const char *)c->send + share;
}

static int multiplies(const mpi_op *op)
{
    return op->reduction->rounding.scaling != ZB_SCALING_NONE;
}

/* Contributions that have been multiplied need no place apart for the result. */
zb_status zb_mpi_native_prepare(mpi_op *op)
{
    size_t numel = 0;
    if (multiplies(op))
        numel = total_numel(op->group, &op->call);
    else if (result_lies_apart(op))
        numel = result_numel(op);
    if (numel == 0) return ZB_OK;
    return zb_mpi_scratch_take(op->group->world, numel * zb_dtype_bytes(op->call.dtype), &op->scratch);
}

static zb_status divide(const mpi_op *op, void *result)
{
    zb_rounding rounding = op->reduction->rounding;
    if (rounding.divisor == 0) return ZB_OK;
    rounding.scaling = ZB_SCALING_NONE;
    return scale(op->call.dtype, rounding, result, result, result_numel(op));
}

zb_status zb_mpi_native_run(mpi_op *op)
{
    const size_t total = total_numel(op->group, &op->call);
    const void *from = op->call.send;
    void *to = op->call.recv;
    if (total == 0) return ZB_OK;
    if (multiplies(op)) {
        from = op->scratch;
        ZB_TRY(scale(op->call.dtype, op->reduction->rounding, op->call.send, op->scratch, total));
    } else if (result_lies_apart(op)) {
        to = op->scratch;
    }
    ZB_TRY(call_mpi(op, from, to));
    ZB_TRY(divide(op, to));
    if (to == op->scratch && to != NULL)
        memcpy(op->call.recv, to, result_numel(op) * zb_dtype_bytes(op->call.dtype));
    return ZB_OK;
}
