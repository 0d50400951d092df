/* The route of gradients and the averaging in the header of a trace: written and read. */
#ifndef VERIFY_TRACE_ROUTE_H
#define VERIFY_TRACE_ROUTE_H

#include <stddef.h>
#include <cjson/cJSON.h>
#include <zerobit/model.h>
#include <zerobit/plan.h>
#include <zerobit/route.h>

#include "verify/json_writer.h"

/** "route": an array of {"kind", "numel", "counts", "dtype", "op", "factor", "root", "pieces"}. */
void zb_trace_put_route(zb_json_writer *json, const zb_route *route);
/** "averaging": {"absent", "in_bucket", "before", "inside", "after"}; a factor is [kind, by]. */
void zb_trace_put_averaging(zb_json_writer *json, const zb_averaging *averaging);

/**
 * What "route" says: calls and pieces; the reductions and what norms are added up with stay empty. Returns
 * what is not as it should be, or NULL; *status_p is ZB_NO_MEMORY where that is all that is wrong. The caller
 * owns *route_p in either case.
 */
const char *zb_trace_read_route(const cJSON *json, const zb_param *params, int param_count, int world_size,
                                zb_route *route_p, zb_status *status_p);
/** Whether "averaging" is as it should be. */
int zb_trace_read_averaging(const cJSON *json, zb_averaging *averaging);

/** A whole number of an object, within bounds. Returns 0 when it is none. */
int zb_trace_get_integer(const cJSON *item, int64_t min, int64_t max, int64_t *value);
/** Likewise an element type by name. */
int zb_trace_get_dtype(const cJSON *item, zb_dtype *dtype);

/** Elements of a rank's contribution. */
size_t zb_trace_call_numel(const zb_reduction_call *call);

#endif
