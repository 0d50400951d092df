/* Writing a trace: one step is gathered, sorted, written; then the next. */
#include <zerobit/trace.h>

#include "verify/json_writer.h"
#include "core/output_file.h"
#include "verify/quantity.h"
#include "verify/record_list.h"
#include "verify/trace_format.h"
#include "verify/trace_route.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/version.h>

struct zb_trace_writer {
    pthread_mutex_t lock;
    zb_output_file file;
    uint64_t hash;
    uint64_t record_count;
    zb_param *params; /* names and sizes, copied */
    int param_count;
    int world_size;
    int64_t step; /* of the records gathered; INT64_MIN: none yet */
    zb_record_list gathered;
    zb_status status; /* the first failure; nothing is written after it */
};

/* --- the header --- */

/* A parameter group's. */
static void put_optimizer(zb_json_writer *json, const zb_optimizer_config *optimizer)
{
    zb_json_begin_object(json, NULL);
    zb_json_put_int(json, "kind", optimizer->kind);
    zb_json_put_int(json, "arithmetic", optimizer->arithmetic);
    zb_json_put_double(json, "lr", optimizer->lr);
    zb_json_put_double(json, "beta1", optimizer->beta1);
    zb_json_put_double(json, "beta2", optimizer->beta2);
    zb_json_put_double(json, "eps", optimizer->eps);
    zb_json_put_bool(json, "bias_correction", optimizer->bias_correction);
    zb_json_put_int(json, "decay_mode", optimizer->decay_mode);
    zb_json_put_double(json, "weight_decay", optimizer->weight_decay);
    zb_json_put_double(json, "momentum", optimizer->momentum);
    zb_json_put_double(json, "dampening", optimizer->dampening);
    zb_json_put_bool(json, "nesterov", optimizer->nesterov);
    zb_json_put_double(json, "lr_decay", optimizer->lr_decay);
    zb_json_put_bool(json, "eps_inside_sqrt", optimizer->eps_inside_sqrt);
    zb_json_put_double(json, "min_coeff", optimizer->min_coeff);
    zb_json_put_double(json, "max_coeff", optimizer->max_coeff);
    zb_json_put_int(json, "vector_width", optimizer->vector_width);
    zb_json_end_object(json);
}

static void put_plan(zb_json_writer *json, const zb_plan *plan)
{
    char text[ZB_PLAN_TEXT_BYTES];
    zb_plan_describe(plan, text, sizeof text);
    zb_json_begin_object(json, "plan");
    zb_json_put_string(json, "text", text);
    zb_json_put_string(json, "semantics", zb_semantics_name(plan->semantics));
    zb_json_put_int(json, "world_size", plan->world_size);
    zb_json_put_int(json, "micro_batch_size", plan->micro_batch_size);
    zb_json_put_int(json, "accumulation_steps", plan->accumulation_steps);
    zb_json_put_string(json, "param_dtype", zb_dtype_name(plan->param_dtype));
    zb_json_put_string(json, "local_dtype", zb_dtype_name(plan->local_dtype));
    zb_json_put_string(json, "bucket_dtype", zb_dtype_name(plan->bucket_dtype));
    zb_json_put_string(json, "grad_dtype", zb_dtype_name(plan->grad_dtype));
    zb_json_put_string(json, "comm_dtype", zb_dtype_name(plan->comm_dtype));
    zb_json_put_int(json, "reduce_when", plan->reduce_when);
    zb_trace_put_averaging(json, &plan->averaging);
    zb_json_put_int(json, "norm", plan->norm);
    zb_json_put_double(json, "clip_norm", plan->clip_norm);
    zb_json_begin_array(json, "groups");
    for (int g = 0; g < plan->group_count; g++) put_optimizer(json, &plan->groups[g]);
    zb_json_end_array(json);
    zb_json_end_object(json);
}

static void put_model(zb_json_writer *json, const zb_model *model)
{
    zb_json_put_string(json, "model", model->name);
    zb_json_begin_array(json, "params");
    for (int i = 0; i < model->param_count; i++) {
        const zb_param *param = &model->params[i];
        zb_json_begin_object(json, NULL);
        zb_json_put_string(json, "name", param->name);
        zb_json_begin_array(json, "shape");
        for (int d = 0; d < param->shape.dims; d++) zb_json_put_int(json, NULL, param->shape.extent[d]);
        zb_json_end_array(json);
        zb_json_put_bool(json, "requires_grad", param->requires_grad);
        zb_json_end_object(json);
    }
    zb_json_end_array(json);
}

static zb_status header_text(const zb_trace_header *header, zb_json_writer *json)
{
    char plan_text[512];
    zb_plan_describe(&header->plan, plan_text, sizeof plan_text);
    char *orders = zb_orders_text(header->plan.orders);
    if (orders == NULL) return ZB_NO_MEMORY;
    zb_json_begin_object(json, NULL);
    zb_json_put_string(json, "zerobit_version", ZB_VERSION);
    zb_json_put_int(json, "stage", header->stage);
    zb_json_put_string(json, "comm", header->comm);
    zb_json_put_string(json, "device", header->device);
    zb_json_put_string(json, "order", header->order);
    zb_json_put_string(json, "orders", orders);
    zb_json_put_int(json, "steps", header->steps);
    zb_json_put_string(json, "plan_text", plan_text);
    put_plan(json, &header->plan);
    put_model(json, header->model);
    if (header->route != NULL) zb_trace_put_route(json, header->route);
    zb_json_end_object(json);
    zb_free(orders);
    return zb_json_writer_finish(json);
}

/* --- bytes --- */

static zb_status put_bytes(zb_trace_writer *writer, const void *data, size_t bytes)
{
    writer->hash = zb_trace_hash(writer->hash, data, bytes);
    return zb_output_file_write(&writer->file, data, bytes);
}

static zb_status put_check(zb_trace_writer *writer)
{
    uint64_t check = writer->hash;
    return put_bytes(writer, &check, sizeof check);
}

static zb_status put_header(zb_trace_writer *writer, const zb_trace_header *header)
{
    zb_json_writer json = { 0 };
    zb_status status = header_text(header, &json);
    if (status != ZB_OK) goto out_json;
    zb_trace_file_head head = { ZB_TRACE_MAGIC, ZB_TRACE_VERSION, (uint32_t)json.bytes };
    status = put_bytes(writer, &head, sizeof head);
    if (status != ZB_OK) goto out_json;
    size_t whole = json.bytes / 8 * 8;
    char tail[8] = { 0 };
    memcpy(tail, json.text + whole, json.bytes - whole);
    status = put_bytes(writer, json.text, whole);
    if (status == ZB_OK && whole < json.bytes) status = put_bytes(writer, tail, sizeof tail);
    if (status == ZB_OK) status = put_check(writer);
out_json:
    zb_json_writer_destroy(&json);
    return status;
}

static zb_status put_record(zb_trace_writer *writer, const zb_observation *o)
{
    zb_trace_record_head head = { .kind = ZB_TRACE_RECORD,
                                  .quantity = (uint32_t)o->quantity,
                                  .step = o->step,
                                  .micro = o->micro,
                                  .rank = o->rank,
                                  .param = o->param,
                                  .dtype = (uint32_t)o->dtype,
                                  .first = o->first,
                                  .numel = o->numel };
    ZB_TRY(put_bytes(writer, &head, sizeof head));
    ZB_TRY(put_check(writer));
    ZB_TRY(put_bytes(writer, o->data, zb_trace_padded(o->numel * zb_dtype_bytes(o->dtype))));
    return put_check(writer);
}

static zb_status flush_step(zb_trace_writer *writer)
{
    zb_record_list_seal(&writer->gathered);
    for (size_t i = 0; i < writer->gathered.count; i++) {
        const zb_observation *record = &writer->gathered.records[i];
        if (i > 0 && zb_observation_order(record - 1, record) == 0)
            return zb_fail(ZB_INVALID_ARGUMENT,
                           "trace %s: step %" PRId64 ", rank %d shows %s at element %zu twice",
                           writer->file.path, record->step, record->rank, zb_quantity_name(record->quantity),
                           record->first);
        ZB_TRY(put_record(writer, record));
    }
    writer->record_count += writer->gathered.count;
    zb_record_list_clear(&writer->gathered);
    return ZB_OK;
}

/* --- the interface --- */

static zb_status writer_start(zb_trace_writer *writer, const char *path, const zb_trace_header *header)
{
    const zb_model *model = header->model;
    writer->step = INT64_MIN;
    writer->world_size = header->plan.world_size;
    writer->param_count = model->param_count;
    writer->params = zb_alloc_array((size_t)model->param_count, sizeof *writer->params);
    if (writer->params == NULL) return ZB_NO_MEMORY;
    for (int i = 0; i < model->param_count; i++) writer->params[i] = model->params[i];
    ZB_TRY(zb_output_file_open(&writer->file, path, ZB_OUTPUT_REPLACE));
    return put_header(writer, header);
}

zb_status zb_trace_writer_create(const char *path, const zb_trace_header *header, zb_trace_writer **writer_p)
{
    zb_trace_writer *writer = zb_alloc(sizeof *writer);
    if (writer == NULL) return ZB_NO_MEMORY;
    pthread_mutex_init(&writer->lock, NULL);
    zb_status status = writer_start(writer, path, header);
    if (status == ZB_OK)
        *writer_p = writer;
    else
        zb_trace_writer_destroy(writer);
    return status;
}

static zb_status write_locked(zb_trace_writer *writer, const zb_observation *observation)
{
    const char *fault = zb_observation_fault(observation, writer->params, writer->param_count,
                                             writer->world_size);
    if (fault != NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "trace %s: %s: %s (step %" PRId64 ", rank %d, parameter %d)",
                       writer->file.path, zb_quantity_name(observation->quantity), fault, observation->step,
                       observation->rank, observation->param);
    if (observation->step < writer->step)
        return zb_fail(ZB_INVALID_ARGUMENT, "trace %s: step %" PRId64 " is shown after step %" PRId64,
                       writer->file.path, observation->step, writer->step);
    /* Every rank has finished a step before any shows the next one: what was gathered is complete. */
    if (observation->step > writer->step) ZB_TRY(flush_step(writer));
    writer->step = observation->step;

    void *values;
    ZB_TRY(zb_record_list_append(&writer->gathered, observation, &values));
    size_t bytes = observation->numel * zb_dtype_bytes(observation->dtype);
    if (bytes > 0) memcpy(values, observation->data, bytes);
    /* The memory is used again for every step: the padding must not show what lay there. */
    memset((unsigned char *)values + bytes, 0, zb_trace_padded(bytes) - bytes);
    return ZB_OK;
}

static zb_status check_whole(const zb_trace_writer *writer)
{
    if (writer->status == ZB_OK && writer->file.stream == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "the trace is finished already");
    if (writer->status == ZB_OK) return ZB_OK;
    return zb_fail(writer->status, "the trace cannot go on after an earlier failure (%s)",
                   zb_status_string(writer->status));
}

zb_status zb_trace_write(zb_trace_writer *writer, const zb_observation *observation)
{
    pthread_mutex_lock(&writer->lock);
    /* One rank's failure does not keep the others from coming: what it left half written must stay alone. */
    zb_status status = check_whole(writer);
    if (status == ZB_OK) status = writer->status = write_locked(writer, observation);
    pthread_mutex_unlock(&writer->lock);
    return status;
}

static zb_status write_end(zb_trace_writer *writer)
{
    ZB_TRY(flush_step(writer));
    zb_trace_record_head end = { .kind = ZB_TRACE_END, .numel = writer->record_count };
    ZB_TRY(put_bytes(writer, &end, sizeof end));
    ZB_TRY(put_check(writer));
    return zb_output_file_finish(&writer->file);
}

zb_status zb_trace_writer_finish(zb_trace_writer *writer)
{
    ZB_TRY(check_whole(writer));
    return writer->status = write_end(writer);
}

void zb_trace_writer_destroy(zb_trace_writer *writer)
{
    if (writer == NULL) return;
    zb_output_file_discard(&writer->file);
    zb_record_list_destroy(&writer->gathered);
    zb_free(writer->params);
    pthread_mutex_destroy(&writer->lock);
    zb_free(writer);
}
