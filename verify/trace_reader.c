/* Reading a trace, one step at a time. */
#include "verify/trace_reader.h"

#include "verify/quantity.h"
#include "verify/trace_format.h"
#include "verify/trace_route.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <zerobit/memory.h>

enum { HEADER_BYTES_MAX = 256 << 20, WORLD_SIZE_MAX = 1 << 24 };

struct zb_trace_reader {
    char *path;
    FILE *stream;
    uint64_t file_bytes, offset;
    uint64_t hash;
    zb_trace_info info;
    uint64_t record_count;
    zb_trace_record_head head; /* read ahead: of the next record */
    uint64_t head_offset;
    zb_observation last; /* to see that records ascend */
    zb_record_list step;
};

__attribute__((format(printf, 3, 4))) static zb_status corrupt(const zb_trace_reader *reader, uint64_t offset,
                                                               const char *format, ...)
{
    char reason[256];
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    return zb_fail(ZB_CORRUPT, "%s: not a whole trace: %s at byte %" PRIu64 " of %" PRIu64, reader->path,
                   reason, offset, reader->file_bytes);
}

/* Read bytes that the caller has found to lie inside the file. */
static zb_status read_bytes(zb_trace_reader *reader, void *to, size_t bytes)
{
    if (bytes > reader->file_bytes - reader->offset) return corrupt(reader, reader->offset, "the file ends");
    if (fread(to, 1, bytes, reader->stream) != bytes) {
        if (ferror(reader->stream))
            return zb_fail(ZB_IO, "%s: cannot be read: %s", reader->path, strerror(errno));
        return corrupt(reader, reader->offset, "the file ends");
    }
    reader->offset += bytes;
    return ZB_OK;
}

static zb_status read_hashed(zb_trace_reader *reader, void *to, size_t bytes)
{
    ZB_TRY(read_bytes(reader, to, bytes));
    reader->hash = zb_trace_hash(reader->hash, to, bytes);
    return ZB_OK;
}

static zb_status read_check(zb_trace_reader *reader, uint64_t from, const char *what)
{
    uint64_t expected = reader->hash, found = 0;
    ZB_TRY(read_hashed(reader, &found, sizeof found));
    if (found != expected) return corrupt(reader, from, "the checksum does not fit the %s", what);
    return ZB_OK;
}

/* --- the header --- */

static int get_integer(const cJSON *object, const char *key, int64_t min, int64_t max, int64_t *value)
{
    return zb_trace_get_integer(cJSON_GetObjectItemCaseSensitive(object, key), min, max, value);
}

static int get_text(const cJSON *object, const char *key, char *to, size_t bytes)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsString(item) || strlen(item->valuestring) >= bytes) return 0;
    memcpy(to, item->valuestring, strlen(item->valuestring) + 1);
    return 1;
}

static int read_shape(const cJSON *shape, zb_param *param)
{
    int dims = cJSON_GetArraySize(shape);
    if (!cJSON_IsArray(shape) || dims > ZB_MAX_DIMS) return 0;
    param->shape.dims = dims;
    param->numel = 1;
    int d = 0;
    const cJSON *extent;
    cJSON_ArrayForEach(extent, shape)
    {
        double value = cJSON_IsNumber(extent) ? extent->valuedouble : -1;
        if (value < 0 || value > 9007199254740992.0 || value != floor(value)) return 0;
        param->shape.extent[d++] = (int64_t)value;
        if (__builtin_mul_overflow(param->numel, (size_t)value, &param->numel)) return 0;
    }
    /* Sizes in bytes must be representable as well. */
    return param->numel <= SIZE_MAX / 16;
}

static int read_param(const cJSON *json, zb_param *param)
{
    const cJSON *requires_grad = cJSON_GetObjectItemCaseSensitive(json, "requires_grad");
    param->requires_grad = cJSON_IsTrue(requires_grad);
    return cJSON_IsBool(requires_grad) && get_text(json, "name", param->name, sizeof param->name) &&
           read_shape(cJSON_GetObjectItemCaseSensitive(json, "shape"), param);
}

static int get_dtype(const cJSON *object, const char *key, zb_dtype *dtype)
{
    return zb_trace_get_dtype(cJSON_GetObjectItemCaseSensitive(object, key), dtype);
}

static const char *read_plan(const cJSON *json, zb_trace_plan *plan)
{
    int64_t reduce_when;
    if (!get_integer(json, "accumulation_steps", 1, INT64_C(1) << 48, &plan->accumulation_steps))
        return "plan.accumulation_steps";
    if (!get_dtype(json, "local_dtype", &plan->local_dtype)) return "plan.local_dtype";
    if (!get_dtype(json, "bucket_dtype", &plan->bucket_dtype)) return "plan.bucket_dtype";
    if (!get_dtype(json, "comm_dtype", &plan->comm_dtype)) return "plan.comm_dtype";
    if (!get_dtype(json, "grad_dtype", &plan->grad_dtype)) return "plan.grad_dtype";
    if (!get_integer(json, "reduce_when", ZB_REDUCE_AT_BOUNDARY, ZB_REDUCE_EVERY_MICRO_BATCH, &reduce_when))
        return "plan.reduce_when";
    plan->reduce_when = (zb_reduce_when)reduce_when;
    if (!zb_trace_read_averaging(cJSON_GetObjectItemCaseSensitive(json, "averaging"), &plan->averaging))
        return "plan.averaging";
    return NULL;
}

/* How gradients crossed ranks, as far as the header tells. */
static const char *read_travel(const cJSON *json, zb_trace_info *info, zb_status *status)
{
    const cJSON *orders = cJSON_GetObjectItemCaseSensitive(json, "orders");
    const cJSON *route = cJSON_GetObjectItemCaseSensitive(json, "route");
    if (!cJSON_IsString(orders)) return "orders";
    info->orders = zb_strdup(orders->valuestring);
    if (info->orders == NULL) *status = ZB_NO_MEMORY;
    if (info->orders == NULL || route == NULL) return NULL;
    info->has_route = 1;
    return zb_trace_read_route(route, info->params, info->param_count, info->world_size, &info->route,
                               status);
}

/* What is wrong with the header, or NULL. ZB_NO_MEMORY comes back through status. */
static const char *read_info(const cJSON *json, zb_trace_info *info, zb_status *status)
{
    int64_t stage, world_size;
    const cJSON *params = cJSON_GetObjectItemCaseSensitive(json, "params");
    const cJSON *plan = cJSON_GetObjectItemCaseSensitive(json, "plan");
    if (!get_text(json, "model", info->model, sizeof info->model)) return "model";
    if (!get_text(json, "plan_text", info->plan_text, sizeof info->plan_text)) return "plan_text";
    if (!get_integer(json, "stage", -1, 3, &stage)) return "stage";
    if (!get_integer(plan, "world_size", 1, WORLD_SIZE_MAX, &world_size)) return "plan.world_size";
    if (!cJSON_IsArray(params)) return "params";
    info->stage = (int)stage;
    info->world_size = (int)world_size;
    info->param_count = cJSON_GetArraySize(params);
    info->params = zb_alloc_array((size_t)info->param_count, sizeof *info->params);
    if (info->params == NULL) {
        *status = ZB_NO_MEMORY;
        return NULL;
    }
    int index = 0;
    const cJSON *param;
    cJSON_ArrayForEach(param, params)
    {
        if (!read_param(param, &info->params[index++])) return "params";
    }
    const char *wrong = read_plan(plan, &info->plan);
    return wrong != NULL ? wrong : read_travel(json, info, status);
}

static zb_status parse_header(zb_trace_reader *reader, const char *text, size_t bytes)
{
    errno = 0; /* tells lack of memory from bad text */
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    if (json == NULL && errno == ENOMEM)
        return zb_fail(ZB_NO_MEMORY, "%s: out of memory while parsing its header", reader->path);
    zb_status status = ZB_OK;
    const char *wrong = json != NULL ? read_info(json, &reader->info, &status) : "JSON";
    cJSON_Delete(json);
    if (status != ZB_OK) return status;
    if (wrong != NULL)
        return corrupt(reader, sizeof(zb_trace_file_head), "the header's \"%s\" is not as it should be",
                       wrong);
    return ZB_OK;
}

static zb_status read_header(zb_trace_reader *reader)
{
    zb_trace_file_head head;
    ZB_TRY(read_hashed(reader, &head, sizeof head));
    if (memcmp(head.magic, ZB_TRACE_MAGIC, sizeof head.magic) != 0)
        return corrupt(reader, 0, "no trace signature");
    if (head.version != ZB_TRACE_VERSION)
        return corrupt(reader, offsetof(zb_trace_file_head, version),
                       "version %" PRIu32 " where %d is known, of another zerobit,", head.version,
                       ZB_TRACE_VERSION);
    uint64_t padded = zb_trace_padded(head.header_bytes);
    if (head.header_bytes > HEADER_BYTES_MAX || padded > reader->file_bytes - reader->offset)
        return corrupt(reader, offsetof(zb_trace_file_head, header_bytes), "a header of %" PRIu32 " bytes",
                       head.header_bytes);
    char *text = zb_alloc(padded + 1);
    if (text == NULL) return ZB_NO_MEMORY;
    zb_status status = read_hashed(reader, text, padded);
    if (status == ZB_OK) status = read_check(reader, 0, "header");
    if (status == ZB_OK) status = parse_header(reader, text, head.header_bytes);
    zb_free(text);
    return status;
}

/* --- records --- */

static zb_status read_end(zb_trace_reader *reader)
{
    if (reader->head.numel != reader->record_count)
        return corrupt(reader, reader->head_offset, "%" PRIu64 " records where %" PRIu64 " are promised",
                       reader->record_count, reader->head.numel);
    if (reader->offset != reader->file_bytes)
        return corrupt(reader, reader->offset, "more data after the end");
    return ZB_OK;
}

static zb_status read_head(zb_trace_reader *reader)
{
    reader->head_offset = reader->offset;
    ZB_TRY(read_hashed(reader, &reader->head, sizeof reader->head));
    ZB_TRY(read_check(reader, reader->head_offset, "head of the record"));
    if (reader->head.kind == ZB_TRACE_END) return read_end(reader);
    if (reader->head.kind != ZB_TRACE_RECORD || reader->head.reserved != 0)
        return corrupt(reader, reader->head_offset, "no record");
    return ZB_OK;
}

/* The record whose head has been read, appended to the step; then the next head. */
static zb_status read_record(zb_trace_reader *reader)
{
    const zb_trace_record_head *head = &reader->head;
    zb_observation o = { .quantity = (zb_quantity)head->quantity,
                         .step = head->step,
                         .micro = head->micro,
                         .rank = head->rank,
                         .param = head->param,
                         .dtype = (zb_dtype)head->dtype,
                         .first = head->first,
                         .numel = head->numel };
    const char *fault = zb_observation_fault(&o, reader->info.params, reader->info.param_count,
                                             reader->info.world_size);
    if (fault != NULL) return corrupt(reader, reader->head_offset, "a record with %s", fault);
    if (reader->record_count > 0 && zb_observation_order(&reader->last, &o) >= 0)
        return corrupt(reader, reader->head_offset, "a record out of order");
    /* Before anything is allocated for it: the file must be able to hold that much. */
    uint64_t remaining = reader->file_bytes - reader->offset;
    if (o.numel > remaining / zb_dtype_bytes(o.dtype) ||
        zb_trace_padded(o.numel * zb_dtype_bytes(o.dtype)) > remaining)
        return corrupt(reader, reader->head_offset, "a record of %zu elements", o.numel);

    void *values;
    ZB_TRY(zb_record_list_append(&reader->step, &o, &values));
    ZB_TRY(read_hashed(reader, values, zb_trace_padded(o.numel * zb_dtype_bytes(o.dtype))));
    ZB_TRY(read_check(reader, reader->head_offset, "record"));
    reader->last = o;
    reader->record_count++;
    return read_head(reader);
}

zb_status zb_trace_reader_next_step(zb_trace_reader *reader, const zb_record_list **step_p)
{
    zb_record_list_clear(&reader->step);
    int64_t step = reader->head.step;
    while (reader->head.kind == ZB_TRACE_RECORD && reader->head.step == step) ZB_TRY(read_record(reader));
    zb_record_list_seal(&reader->step);
    *step_p = &reader->step;
    return ZB_OK;
}

/* --- open and close --- */

static zb_status reader_start(zb_trace_reader *reader, const char *path)
{
    struct stat status;
    reader->path = zb_strdup(path);
    if (reader->path == NULL) return ZB_NO_MEMORY;
    /* Before it is opened: a pipe would wait for somebody to write. */
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        return zb_fail(ZB_IO, "%s: cannot be read: not a regular file", path);
    reader->stream = fopen(path, "rb");
    if (reader->stream == NULL || fstat(fileno(reader->stream), &status) != 0)
        return zb_fail(ZB_IO, "%s: cannot be read: %s", path, strerror(errno));
    reader->file_bytes = (uint64_t)status.st_size;
    ZB_TRY(read_header(reader));
    return read_head(reader);
}

zb_status zb_trace_reader_open(const char *path, zb_trace_reader **reader_p)
{
    zb_trace_reader *reader = zb_alloc(sizeof *reader);
    if (reader == NULL) return ZB_NO_MEMORY;
    zb_status status = reader_start(reader, path);
    if (status == ZB_OK)
        *reader_p = reader;
    else
        zb_trace_reader_destroy(reader);
    return status;
}

void zb_trace_reader_destroy(zb_trace_reader *reader)
{
    if (reader == NULL) return;
    if (reader->stream != NULL) fclose(reader->stream);
    zb_record_list_destroy(&reader->step);
    zb_free(reader->info.params);
    zb_free(reader->info.orders);
    zb_route_destroy(&reader->info.route);
    zb_free(reader->path);
    zb_free(reader);
}

const zb_trace_info *zb_trace_reader_info(const zb_trace_reader *reader)
{
    return &reader->info;
}

zb_status zb_trace_check_models(const char *path_a, const zb_trace_info *a, const char *path_b,
                                const zb_trace_info *b)
{
    if (a->param_count != b->param_count)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "%s and %s are of different models: %s with %d parameters, %s with %d", path_a, path_b,
                       a->model, a->param_count, b->model, b->param_count);
    for (int i = 0; i < a->param_count; i++) {
        const zb_param *pa = &a->params[i], *pb = &b->params[i];
        int same_shape = pa->shape.dims == pb->shape.dims;
        for (int n = 0; same_shape && n < pa->shape.dims; n++)
            same_shape = pa->shape.extent[n] == pb->shape.extent[n];
        if (strcmp(pa->name, pb->name) != 0 || !same_shape || pa->requires_grad != pb->requires_grad)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "%s and %s are of different models: parameter %d is %s (%zu elements%s) in one, "
                           "%s (%zu elements%s) in the other",
                           path_a, path_b, i, pa->name, pa->numel, pa->requires_grad ? "" : ", frozen",
                           pb->name, pb->numel, pb->requires_grad ? "" : ", frozen");
    }
    return ZB_OK;
}
