/* See trace_route.h. A route that is read is believed only where it lies within the parameters and its
 * collectives. */
#include "verify/trace_route.h"

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <zerobit/memory.h>

size_t zb_trace_call_numel(const zb_reduction_call *call)
{
    size_t total = 0;
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER) return call->numel * (size_t)call->world_size;
    if (call->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return call->numel;
    for (int rank = 0; rank < call->world_size; rank++) total += call->counts[rank];
    return total;
}

/* --- writing --- */

static void put_collective(zb_json_writer *json, const zb_route_collective *collective)
{
    const zb_reduction_call *call = &collective->call;
    zb_json_begin_object(json, NULL);
    zb_json_put_string(json, "kind", zb_collective_name(call->kind));
    zb_json_put_uint(json, "numel", call->numel);
    if (call->counts != NULL) {
        zb_json_begin_array(json, "counts");
        for (int rank = 0; rank < call->world_size; rank++) zb_json_put_uint(json, NULL, call->counts[rank]);
        zb_json_end_array(json);
    }
    zb_json_put_string(json, "dtype", zb_dtype_name(call->dtype));
    zb_json_put_string(json, "op", zb_redop_name(call->op));
    if (call->op == ZB_PREMUL_SUM) zb_json_put_double(json, "factor", call->factor);
    if (call->kind == ZB_COLLECTIVE_REDUCE) zb_json_put_int(json, "root", call->root);
    zb_json_begin_array(json, "pieces");
    for (size_t p = 0; p < collective->piece_count; p++) {
        const zb_route_piece *piece = &collective->pieces[p];
        zb_json_begin_array(json, NULL);
        zb_json_put_int(json, NULL, piece->param);
        zb_json_put_uint(json, NULL, piece->first);
        zb_json_put_uint(json, NULL, piece->numel);
        zb_json_put_uint(json, NULL, piece->at);
        zb_json_end_array(json);
    }
    zb_json_end_array(json);
    zb_json_end_object(json);
}

void zb_trace_put_route(zb_json_writer *json, const zb_route *route)
{
    zb_json_begin_array(json, "route");
    for (size_t c = 0; c < route->count; c++) put_collective(json, &route->collectives[c]);
    zb_json_end_array(json);
}

static void put_factor(zb_json_writer *json, const char *key, zb_factor factor)
{
    zb_json_begin_array(json, key);
    zb_json_put_int(json, NULL, factor.kind);
    zb_json_put_double(json, NULL, (double)factor.by);
    zb_json_end_array(json);
}

void zb_trace_put_averaging(zb_json_writer *json, const zb_averaging *averaging)
{
    zb_json_begin_object(json, "averaging");
    zb_json_put_bool(json, "absent", averaging->absent);
    put_factor(json, "in_bucket", averaging->in_bucket);
    zb_json_begin_array(json, "before");
    for (int k = 0; k < 2; k++) put_factor(json, NULL, averaging->before[k]);
    zb_json_end_array(json);
    zb_json_put_bool(json, "inside", averaging->inside);
    put_factor(json, "after", averaging->after);
    zb_json_end_object(json);
}

/* --- reading --- */

int zb_trace_get_integer(const cJSON *item, int64_t min, int64_t max, int64_t *value)
{
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble)) return 0;
    if (item->valuedouble < (double)min || item->valuedouble > (double)max) return 0;
    *value = (int64_t)item->valuedouble;
    return 1;
}

int zb_trace_get_dtype(const cJSON *item, zb_dtype *dtype)
{
    return cJSON_IsString(item) && zb_dtype_parse(item->valuestring, dtype);
}

static int get_size(const cJSON *item, size_t *value)
{
    int64_t found;
    if (!zb_trace_get_integer(item, 0, INT64_C(1) << 48, &found)) return 0;
    *value = (size_t)found;
    return 1;
}

/* Minimum and maximum have no order, and are in no trace. */
static int get_op(const cJSON *item, zb_redop *op)
{
    return cJSON_IsString(item) && zb_redop_parse(item->valuestring, op) && *op != ZB_MIN && *op != ZB_MAX;
}

static const cJSON *member(const cJSON *object, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

static int read_kind(const cJSON *item, zb_collective_kind *kind)
{
    static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER,
                                                ZB_COLLECTIVE_REDUCE_SCATTER_V, ZB_COLLECTIVE_REDUCE };
    for (size_t i = 0; cJSON_IsString(item) && i < sizeof kinds / sizeof kinds[0]; i++)
        if (strcmp(item->valuestring, zb_collective_name(kinds[i])) == 0) {
            *kind = kinds[i];
            return 1;
        }
    return 0;
}

/* The counts of a reduce_scatter_v belong to the call. */
static const char *read_counts(const cJSON *json, zb_reduction_call *call, zb_status *status)
{
    const cJSON *counts = member(json, "counts"), *item;
    size_t n = 0;
    if (call->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return counts == NULL ? NULL : "counts";
    if (!cJSON_IsArray(counts) || cJSON_GetArraySize(counts) != call->world_size) return "counts";
    size_t *made = zb_alloc_array((size_t)call->world_size, sizeof *made);
    if (made == NULL) {
        *status = ZB_NO_MEMORY;
        return "counts";
    }
    call->counts = made;
    cJSON_ArrayForEach(item, counts)
    {
        if (!get_size(item, &made[n++])) return "counts";
    }
    return NULL;
}

static const char *read_call(const cJSON *json, zb_reduction_call *call, zb_status *status)
{
    const cJSON *factor = member(json, "factor");
    int64_t root;
    if (!read_kind(member(json, "kind"), &call->kind)) return "kind";
    if (!get_size(member(json, "numel"), &call->numel)) return "numel";
    if (!zb_trace_get_dtype(member(json, "dtype"), &call->dtype)) return "dtype";
    if (!get_op(member(json, "op"), &call->op)) return "op";
    if (call->op == ZB_PREMUL_SUM) {
        if (!cJSON_IsNumber(factor)) return "factor";
        call->factor = factor->valuedouble;
    }
    if (call->kind == ZB_COLLECTIVE_REDUCE) {
        if (!zb_trace_get_integer(member(json, "root"), 0, call->world_size - 1, &root)) return "root";
        call->root = (int)root;
    }
    return read_counts(json, call, status);
}

/* [param, first, numel, at], behind `end`. */
static int read_piece(const cJSON *json, const zb_param *params, int param_count, size_t end, size_t limit,
                      zb_route_piece *piece)
{
    int64_t param;
    if (!cJSON_IsArray(json) || cJSON_GetArraySize(json) != 4) return 0;
    if (!zb_trace_get_integer(cJSON_GetArrayItem(json, 0), 0, param_count - 1, &param)) return 0;
    piece->param = (int)param;
    if (!get_size(cJSON_GetArrayItem(json, 1), &piece->first) ||
        !get_size(cJSON_GetArrayItem(json, 2), &piece->numel) ||
        !get_size(cJSON_GetArrayItem(json, 3), &piece->at))
        return 0;
    const size_t whole = params[param].numel;
    return piece->first <= whole && piece->numel <= whole - piece->first && piece->at >= end &&
           piece->at <= limit && piece->numel <= limit - piece->at;
}

static const char *read_collective(const cJSON *json, const zb_param *params, int param_count,
                                   zb_route_collective *collective, zb_status *status)
{
    const cJSON *pieces = member(json, "pieces"), *item;
    size_t end = 0;
    const char *wrong = read_call(json, &collective->call, status);
    if (wrong != NULL) return wrong;
    const size_t limit = zb_trace_call_numel(&collective->call);
    if (!cJSON_IsArray(pieces)) return "pieces";
    collective->pieces = zb_alloc_array((size_t)cJSON_GetArraySize(pieces), sizeof *collective->pieces);
    if (collective->pieces == NULL) {
        *status = ZB_NO_MEMORY;
        return "pieces";
    }
    cJSON_ArrayForEach(item, pieces)
    {
        zb_route_piece *piece = &collective->pieces[collective->piece_count++];
        if (!read_piece(item, params, param_count, end, limit, piece)) return "pieces";
        end = piece->at + piece->numel;
    }
    return NULL;
}

const char *zb_trace_read_route(const cJSON *json, const zb_param *params, int param_count, int world_size,
                                zb_route *route_p, zb_status *status_p)
{
    const cJSON *item;
    *route_p = (zb_route){ .world_size = world_size };
    if (!cJSON_IsArray(json)) return "route";
    route_p->collectives = zb_alloc_array((size_t)cJSON_GetArraySize(json), sizeof *route_p->collectives);
    if (route_p->collectives == NULL) {
        *status_p = ZB_NO_MEMORY;
        return "route";
    }
    cJSON_ArrayForEach(item, json)
    {
        zb_route_collective *collective = &route_p->collectives[route_p->count++];
        collective->call.world_size = world_size;
        if (read_collective(item, params, param_count, collective, status_p) != NULL) return "route";
    }
    return NULL;
}

static int read_factor(const cJSON *json, zb_factor *factor)
{
    int64_t kind;
    const cJSON *by = cJSON_GetArrayItem(json, 1);
    if (!cJSON_IsArray(json) || cJSON_GetArraySize(json) != 2 || !cJSON_IsNumber(by) ||
        !zb_trace_get_integer(cJSON_GetArrayItem(json, 0), ZB_FACTOR_NONE, ZB_FACTOR_DIVIDE, &kind))
        return 0;
    *factor = (zb_factor){ (zb_factor_kind)kind, (float)by->valuedouble };
    return 1;
}

int zb_trace_read_averaging(const cJSON *json, zb_averaging *averaging)
{
    const cJSON *absent = member(json, "absent"), *inside = member(json, "inside"),
                *before = member(json, "before");
    averaging->absent = cJSON_IsTrue(absent);
    averaging->inside = cJSON_IsTrue(inside);
    return cJSON_IsBool(absent) && cJSON_IsBool(inside) && cJSON_IsArray(before) &&
           cJSON_GetArraySize(before) == 2 && read_factor(member(json, "in_bucket"), &averaging->in_bucket) &&
           read_factor(cJSON_GetArrayItem(before, 0), &averaging->before[0]) &&
           read_factor(cJSON_GetArrayItem(before, 1), &averaging->before[1]) &&
           read_factor(member(json, "after"), &averaging->after);
}
