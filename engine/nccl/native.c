/* Reductions by NCCL itself, and what it reports about them. */
#include "engine/nccl/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <zerobit/cuda.h>
#include <zerobit/memory.h>

#include "kernels/kernels.h"

static int is_of_nccl(const zb_order_source *source)
{
    return source->algorithm == ZB_ALGORITHM_NCCL_RING || source->algorithm == ZB_ALGORITHM_NCCL_TREE;
}

/* --- what NCCL is told --- */

static zb_status set_variable(const char *name, const char *want)
{
    const char *found = getenv(name);
    if (found != NULL && strcasecmp(found, want) != 0)
        return zb_fail(ZB_UNSUPPORTED, "%s is \"%s\", want \"%s\", as the native order says", name, found,
                       want);
    if (found == NULL && setenv(name, want, 1) != 0)
        return zb_fail(ZB_NO_MEMORY, "the environment has no room for %s", name);
    return ZB_OK;
}

static zb_status set_for(const zb_order_source *source)
{
    static const char *const protocols[] = {
        [ZB_NCCL_SIMPLE] = "Simple", [ZB_NCCL_LL] = "LL", [ZB_NCCL_LL128] = "LL128"
    };
    int version;
    const ncclResult_t code = ncclGetVersion(&version);
    if (code != ncclSuccess) return zb_fail(ZB_INTERNAL, "ncclGetVersion: %s", ncclGetErrorString(code));
    const int major = version / 10000, minor = version / 100 % 100;
    if (source->version != 100 * major + minor)
        return zb_fail(ZB_UNSUPPORTED, "the native order is of NCCL %d.%d; this is NCCL %d.%d",
                       source->version / 100, source->version % 100, major, minor);
    ZB_TRY(set_variable("NCCL_ALGO", source->algorithm == ZB_ALGORITHM_NCCL_TREE ? "Tree" : "Ring"));
    return set_variable("NCCL_PROTO", protocols[source->protocol]);
}

zb_status zb_nccl_native_set(const zb_orders *native)
{
    static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER };
    for (int k = 0; k < 2; k++)
        if (is_of_nccl(&native->of[kinds[k]])) ZB_TRY(set_for(&native->of[kinds[k]]));
    return ZB_OK;
}

zb_status zb_nccl_hash_orders(const zb_orders *orders, uint64_t *hash_p)
{
    char *text = zb_orders_text(orders);
    if (text == NULL) return ZB_NO_MEMORY;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const char *c = text; *c != '\0'; c++) hash = (hash ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    zb_free(text);
    *hash_p = hash;
    return ZB_OK;
}

/* --- one reduction --- */

int zb_nccl_native(const zb_comm *comm, const zb_collective *c)
{
    if (comm->ops != &zb_nccl_comm_ops || comm->world_size == 1) return 0;
    const nccl_group *group = (const nccl_group *)comm;
    if (c->kind != ZB_COLLECTIVE_ALL_REDUCE && c->kind != ZB_COLLECTIVE_REDUCE_SCATTER) return 0;
    if (c->op != ZB_SUM && c->op != ZB_AVG && c->op != ZB_PREMUL_SUM) return 0;
    if (group->learning) return 1;
    const zb_order_source *native = &group->world->native.of[c->kind];
    return is_of_nccl(native) && zb_order_source_equal(native, c->order);
}

static ncclDataType_t type_of(zb_dtype dtype)
{
    static const ncclDataType_t types[ZB_DTYPE_COUNT] = {
        [ZB_FP32] = ncclFloat32, [ZB_FP16] = ncclFloat16, [ZB_BF16] = ncclBfloat16, [ZB_FP64] = ncclFloat64,
        [ZB_INT32] = ncclInt32,  [ZB_INT64] = ncclInt64,  [ZB_UINT8] = ncclUint8
    };
    return types[dtype];
}

static uint16_t half_of(zb_dtype dtype, float value)
{
    uint16_t half = 0;
    const zb_cast_args args = {
        .to = &half, .to_dtype = dtype, .from = &value, .from_dtype = ZB_FP32, .numel = 1
    };
    const zb_status status = zb_cpu_cast(&args);
    ZB_ASSERT(status == ZB_OK); /* these types have been checked */
    return half;
}

/* The factor in the type of the elements, which is what NCCL takes. */
static zb_status create_scaled_sum(const nccl_op *op, ncclRedOp_t *sum_p)
{
    const nccl_group *group = op->group;
    double wide = op->call.factor;
    float single = (float)op->call.factor;
    uint16_t half = 0;
    void *scalar = &wide;
    if (op->call.dtype == ZB_FP32) scalar = &single;
    if (op->call.dtype == ZB_FP16 || op->call.dtype == ZB_BF16) {
        half = half_of(op->call.dtype, single);
        scalar = &half;
    }
    return zb_nccl_check(group,
                         ncclRedOpCreatePreMulSum(sum_p, scalar, type_of(op->call.dtype),
                                                  ncclScalarHostImmediate, group->comm),
                         "ncclRedOpCreatePreMulSum");
}

zb_status zb_nccl_native_queue(nccl_op *op, const void *send, void *recv)
{
    const nccl_group *group = op->group;
    const zb_collective *c = &op->call;
    cudaStream_t stream = zb_cuda_stream(group->stream);
    ncclRedOp_t sum = c->op == ZB_AVG ? ncclAvg : ncclSum;
    if (c->numel == 0) return ZB_OK;
    if (group->learning) op->group->learn_begin = zb_nccl_report_end(); /* what follows is about this one */
    if (c->op == ZB_PREMUL_SUM) ZB_TRY(create_scaled_sum(op, &sum));
    zb_status status = c->kind == ZB_COLLECTIVE_ALL_REDUCE
                           ? zb_nccl_check(group,
                                           ncclAllReduce(send, recv, c->numel, type_of(c->dtype), sum,
                                                         group->comm, stream),
                                           "ncclAllReduce")
                           : zb_nccl_check(group,
                                           ncclReduceScatter(send, recv, c->numel, type_of(c->dtype), sum,
                                                             group->comm, stream),
                                           "ncclReduceScatter");
    if (c->op == ZB_PREMUL_SUM && status == ZB_OK)
        status = zb_nccl_check(group, ncclRedOpDestroy(sum, group->comm), "ncclRedOpDestroy");
    return status;
}

/* --- NCCL's report --- */

static char report_path[1024];
static int report_too_late;

void zb_nccl_report_begun(void)
{
    __atomic_store_n(&report_too_late, 1, __ATOMIC_RELAXED);
}

zb_status zb_nccl_report_to(const char *path)
{
    if (__atomic_load_n(&report_too_late, __ATOMIC_RELAXED))
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "NCCL has been called in this process: want a report to be asked for before");
    if (path[0] == '\0' || strlen(path) >= sizeof report_path)
        return zb_fail(ZB_INVALID_ARGUMENT, "a path of %zu characters, want 1 to %zu", strlen(path),
                       sizeof report_path - 1);
    if (setenv("NCCL_DEBUG", "INFO", 1) != 0 || setenv("NCCL_DEBUG_SUBSYS", "INIT,GRAPH,TUNING", 1) != 0 ||
        setenv("NCCL_DEBUG_FILE", path, 1) != 0)
        return zb_fail(ZB_NO_MEMORY, "the environment has no room for NCCL_DEBUG_FILE");
    snprintf(report_path, sizeof report_path, "%s", path);
    return ZB_OK;
}

long zb_nccl_report_end(void)
{
    struct stat found;
    return report_path[0] != '\0' && stat(report_path, &found) == 0 ? (long)found.st_size : 0;
}

/* [begin, end) of the report, behind what `text` holds already. */
static zb_status read_part(FILE *file, long begin, long end, char **text_p, size_t *used)
{
    const size_t bytes = (size_t)(end - begin);
    char *grown = zb_realloc(*text_p, *used + bytes + 1);
    if (grown == NULL) return ZB_NO_MEMORY;
    *text_p = grown;
    if (fseek(file, begin, SEEK_SET) != 0 || fread(grown + *used, 1, bytes, file) != bytes)
        return zb_fail(ZB_IO, "%s: NCCL's report cannot be read from byte %ld to %ld", report_path, begin,
                       end);
    *used += bytes;
    grown[*used] = '\0';
    return ZB_OK;
}

/* What NCCL said when it made this communicator, and what it said of the one collective. */
static zb_status read_report(const nccl_group *group, char **text_p)
{
    const long begin = group->learn_begin, end = zb_nccl_report_end();
    size_t used = 0;
    if (end <= begin)
        return zb_fail(
            ZB_UNSUPPORTED,
            "NCCL has reported nothing of the collective; want zb_nccl_report_to before the first world");
    FILE *file = fopen(report_path, "r");
    if (file == NULL) return zb_fail(ZB_IO, "%s: NCCL's report cannot be opened", report_path);
    zb_status status = read_part(file, group->report_begin, group->report_end, text_p, &used);
    if (status == ZB_OK) status = read_part(file, begin, end, text_p, &used);
    fclose(file);
    return status;
}

/* The version stands once in a report, before the first communicator. */
static zb_status prefix_version(char **text_p)
{
    int version;
    char *with;
    if (strstr(*text_p, "NCCL version ") != NULL) return ZB_OK;
    const ncclResult_t code = ncclGetVersion(&version);
    if (code != ncclSuccess) return zb_fail(ZB_INTERNAL, "ncclGetVersion: %s", ncclGetErrorString(code));
    const size_t bytes = strlen(*text_p) + 64;
    with = zb_alloc(bytes);
    if (with == NULL) return ZB_NO_MEMORY;
    snprintf(with, bytes, "NCCL version %d.%d\n%s", version / 10000, version / 100 % 100, *text_p);
    zb_free(*text_p);
    *text_p = with;
    return ZB_OK;
}

static zb_status source_of_report(const char *text, zb_order_source *source_p)
{
    zb_nccl_log log;
    ZB_TRY(zb_nccl_log_read(text, &log));
    const zb_status status = log.collective_count == 1
                                 ? zb_nccl_log_source(&log, 0, source_p)
                                 : zb_fail(ZB_UNSUPPORTED,
                                           "NCCL has reported %zu collectives, want one: that of rank 0",
                                           log.collective_count);
    zb_nccl_log_destroy(&log);
    return status;
}

static zb_status read_source(const nccl_group *group, char **words_p)
{
    char *text = NULL;
    zb_order_source source = { 0 };
    zb_status status = read_report(group, &text);
    if (status == ZB_OK) status = prefix_version(&text);
    if (status == ZB_OK) status = source_of_report(text, &source);
    zb_free(text);
    if (status == ZB_OK) {
        *words_p = zb_order_source_text(&source);
        status = *words_p != NULL ? ZB_OK : ZB_NO_MEMORY;
    }
    zb_order_source_destroy(&source);
    return status;
}

/* --- learning --- */

static zb_status run_once(nccl_group *group, zb_collective_kind kind, zb_dtype dtype, size_t numel)
{
    nccl_world *world = group->world;
    zb_device *device = world->device;
    const size_t bytes = (size_t)group->base.world_size * numel * zb_dtype_bytes(dtype);
    void *send = NULL, *recv = NULL;
    zb_status status = device->ops->alloc(device, bytes, &send);
    if (status == ZB_OK) status = device->ops->alloc(device, bytes, &recv);
    group->learning = 1;
    if (status == ZB_OK)
        status = zb_collective_run(&group->base, NULL, .kind = kind, .send = send, .recv = recv,
                                   .numel = numel, .dtype = dtype, .stream = world->copies,
                                   .what = "learn NCCL's order");
    group->learning = 0;
    if (status == ZB_OK) status = zb_stream_wait_idle(world->copies);
    if (send != NULL) device->ops->free(device, send);
    if (recv != NULL) device->ops->free(device, recv);
    return status;
}

/* What rank 0 has read, or why it could not, to all. */
static zb_status share_words(zb_comm *comm, zb_status status, char **words_p)
{
    const char *mine = status == ZB_OK ? *words_p : zb_error_message();
    int64_t head[2] = { (int64_t)status, mine != NULL ? (int64_t)strlen(mine) : 0 };
    ZB_TRY(zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = head, .numel = 2,
                             .dtype = ZB_INT64, .what = "learn NCCL's order"));
    char *words = zb_alloc((size_t)head[1] + 1);
    if (words == NULL) return ZB_NO_MEMORY;
    if (comm->rank == 0 && mine != NULL) memcpy(words, mine, (size_t)head[1]);
    const zb_status shared = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = words,
                                               .numel = (size_t)head[1], .dtype = ZB_UINT8,
                                               .what = "learn NCCL's order");
    zb_free(*words_p);
    *words_p = words;
    ZB_TRY(shared);
    return head[0] == ZB_OK ? ZB_OK : zb_fail((zb_status)head[0], "%s", words);
}

zb_status zb_nccl_learn(zb_comm *comm, zb_collective_kind kind, zb_dtype dtype, size_t numel,
                        zb_order_source *source_p)
{
    nccl_group *group = (nccl_group *)comm;
    if (comm->ops != &zb_nccl_comm_ops)
        return zb_fail(ZB_INVALID_ARGUMENT, "communicator %s, want one of NCCL's", comm->ops->name);
    if ((kind != ZB_COLLECTIVE_ALL_REDUCE && kind != ZB_COLLECTIVE_REDUCE_SCATTER) || numel == 0 ||
        comm->world_size < 2)
        return zb_fail(
            ZB_INVALID_ARGUMENT,
            "%s of %zu elements on %d ranks, want an all_reduce or reduce_scatter of some on several",
            zb_collective_name(kind), numel, comm->world_size);
    char *words = NULL;
    ZB_TRY(run_once(group, kind, dtype, numel));
    zb_status status = comm->rank == 0 ? read_source(group, &words) : ZB_OK;
    status = share_words(comm, status, &words);
    if (status == ZB_OK) status = zb_order_source_parse(words, source_p);
    zb_free(words);
    return status;
}
