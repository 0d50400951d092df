/*
 * Whether a route can be what it says: the engine publishes it, and the oracle plays it, so that what follows
 * from the plan alone is looked at first. Every trainable element is sent once, in the plan's type; every
 * rank is added once; an average is divided by the number of ranks, once, and a sum is not. Which element
 * lies where, and in which order ranks are added there, is what a route is free to say.
 */
#include "ref/oracle.h"

#include <string.h>
#include <zerobit/memory.h>

/* Where in the route something is wrong. */
typedef struct place {
    const zb_plan *plan;
    const char *what; /* "collective" */
    size_t index;
} place;

#define WRONG(place, ...) (zb_fail(ZB_INVALID_ARGUMENT, __VA_ARGS__), name_place(place))

static zb_status name_place(const place *at)
{
    return zb_fail_context("oracle: the route's %s %zu", at->what, at->index);
}

/* --- one record --- */

static zb_status check_tree(const place *at, const zb_reduction *reduction, int which, unsigned char *seen)
{
    const int32_t *tree = reduction->trees + (size_t)which * (2 * (size_t)reduction->world_size - 1);
    int open = 0;
    memset(seen, 0, (size_t)reduction->world_size);
    for (int k = 0; k < 2 * reduction->world_size - 1; k++) {
        if (tree[k] == ZB_TREE_ADD) {
            if (open < 2) return WRONG(at, "tree %d adds %d sums", which, open);
            open--;
        } else if (tree[k] < 0 || tree[k] >= reduction->world_size || seen[tree[k]]++) {
            return WRONG(at, "tree %d has position %d twice, or there is none such", which, (int)tree[k]);
        } else if (++open > ZB_TREE_DEPTH) {
            return WRONG(at, "tree %d keeps more than %d sums", which, ZB_TREE_DEPTH);
        }
    }
    return ZB_OK;
}

static zb_status check_order(const place *at, const zb_reduction *reduction, int which, unsigned char *seen)
{
    const int32_t *order = reduction->orders + (size_t)which * (size_t)reduction->world_size;
    memset(seen, 0, (size_t)reduction->world_size);
    for (int k = 0; k < reduction->world_size; k++)
        if (order[k] < 0 || order[k] >= reduction->world_size || seen[order[k]]++)
            return WRONG(at, "order %d has rank %d twice, or there is none such", which, (int)order[k]);
    return ZB_OK;
}

static zb_status check_ranges(const place *at, const zb_reduction *reduction)
{
    size_t next = 0;
    for (size_t i = 0; i < reduction->range_count; i++) {
        const zb_reduction_range *range = &reduction->ranges[i];
        if (range->first != next || range->numel > reduction->numel - next)
            return WRONG(at, "range %zu is elements %zu to %zu, want it to begin at %zu, of %zu", i,
                         range->first, range->first + range->numel, next, reduction->numel);
        if (range->tree < 0 || range->tree >= reduction->tree_count || range->order < 0 ||
            range->order >= reduction->order_count || range->start < 0 ||
            range->start >= reduction->world_size)
            return WRONG(at, "range %zu has tree %d, order %d, start %d", i, range->tree, range->order,
                         range->start);
        next += range->numel;
    }
    if (next != reduction->numel)
        return WRONG(at, "ranges end at element %zu of %zu", next, reduction->numel);
    return ZB_OK;
}

/* Once, before or after the sum; 1 / n may have been rounded to the type. */
static int divides_by_world(const zb_reduction *reduction)
{
    const zb_rounding *how = &reduction->rounding;
    const double world = reduction->world_size, inverse = 1.0 / world;
    switch (how->scaling) {
    case ZB_SCALING_NONE:
        return how->divisor == world || (how->divisor == 0 && reduction->world_size == 1);
    case ZB_SCALING_DIVIDE:
        return how->divisor == 0 && how->factor == world;
    case ZB_SCALING_MULTIPLY:
    case ZB_SCALING_FUSED:
    case ZB_SCALING_FUSED_LL128:
        return how->divisor == 0 && (how->factor == inverse ||
                                     how->factor == (double)zb_ref_round(reduction->dtype, (float)inverse));
    }
    return 0;
}

static zb_status check_scaling(const place *at, const zb_reduction *reduction, int is_average)
{
    const zb_rounding *how = &reduction->rounding;
    const int is_sum = how->scaling == ZB_SCALING_NONE && how->divisor == 0;
    if (is_average ? !divides_by_world(reduction) : !is_sum)
        return WRONG(at, "scaling %d, factor %g, divisor %g of %d ranks is not the plan's %s",
                     (int)how->scaling, how->factor, how->divisor, reduction->world_size,
                     is_average ? "average" : "sum");
    return ZB_OK;
}

/* seen: [world_size], scratch. */
static zb_status check_reduction(const place *at, const zb_reduction *reduction, zb_dtype dtype,
                                 int is_average, unsigned char *seen)
{
    if (reduction->world_size != at->plan->world_size || reduction->dtype != dtype)
        return WRONG(at, "adds %s of %d ranks, the plan %s of %d", zb_dtype_name(reduction->dtype),
                     reduction->world_size, zb_dtype_name(dtype), at->plan->world_size);
    for (int i = 0; i < reduction->tree_count; i++) ZB_TRY(check_tree(at, reduction, i, seen));
    for (int i = 0; i < reduction->order_count; i++) ZB_TRY(check_order(at, reduction, i, seen));
    ZB_TRY(check_ranges(at, reduction));
    return check_scaling(at, reduction, is_average);
}

/* --- what is sent --- */

static zb_status check_call(const place *at, const zb_route_collective *collective)
{
    const zb_reduction_call *call = &collective->call;
    const zb_redop op = at->plan->averaging.inside ? ZB_AVG : ZB_SUM;
    if (call->world_size != at->plan->world_size || call->dtype != at->plan->comm_dtype || call->op != op)
        return WRONG(at, "is of %d ranks, %s, operator %d; the plan is of %d, %s, %d", call->world_size,
                     zb_dtype_name(call->dtype), (int)call->op, at->plan->world_size,
                     zb_dtype_name(at->plan->comm_dtype), (int)op);
    size_t sent = call->numel;
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER) sent *= (size_t)call->world_size;
    if (call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V) {
        sent = 0;
        for (int r = 0; r < call->world_size; r++) sent += call->counts[r];
    }
    if (sent != collective->reduction.numel)
        return WRONG(at, "sends %zu elements and adds %zu", sent, collective->reduction.numel);
    return ZB_OK;
}

/* first_of: where each parameter begins in `sent`, which counts how often an element is. */
static zb_status mark_pieces(const place *at, const zb_model *model, const zb_route_collective *collective,
                             const size_t *first_of, unsigned char *sent)
{
    size_t end = 0;
    for (size_t i = 0; i < collective->piece_count; i++) {
        const zb_route_piece *piece = &collective->pieces[i];
        if (piece->param < 0 || piece->param >= model->param_count)
            return WRONG(at, "sends parameter %d, the model has %d", piece->param, model->param_count);
        const zb_param *param = &model->params[piece->param];
        if (!param->requires_grad || piece->first > param->numel ||
            piece->numel > param->numel - piece->first)
            return WRONG(at, "sends elements %zu to %zu of %s, which has %zu that train", piece->first,
                         piece->first + piece->numel, param->name,
                         param->requires_grad ? param->numel : (size_t)0);
        if (piece->at < end || piece->numel > collective->reduction.numel - piece->at)
            return WRONG(at, "has %s at elements %zu to %zu, behind %zu and of %zu", param->name, piece->at,
                         piece->at + piece->numel, end, collective->reduction.numel);
        end = piece->at + piece->numel;
        for (size_t k = 0; k < piece->numel; k++)
            if (sent[first_of[piece->param] + piece->first + k]++)
                return WRONG(at, "sends %s[%zu] once more", param->name, piece->first + k);
    }
    return ZB_OK;
}

static zb_status check_all_sent(const zb_model *model, const size_t *first_of, const unsigned char *sent)
{
    for (int p = 0; p < model->param_count; p++)
        for (size_t i = 0; model->params[p].requires_grad && i < model->params[p].numel; i++)
            if (!sent[first_of[p] + i])
                return zb_fail(ZB_INVALID_ARGUMENT, "oracle: the route sends no %s[%zu]",
                               model->params[p].name, i);
    return ZB_OK;
}

/* --- everything --- */

static zb_status check_gradients(const zb_plan *plan, const zb_model *model, const zb_route *route,
                                 unsigned char *seen, size_t *first_of, unsigned char *sent)
{
    size_t numel = 0;
    for (int p = 0; p < model->param_count; p++) {
        first_of[p] = numel;
        numel += model->params[p].numel;
    }
    for (size_t i = 0; i < route->count; i++) {
        const place at = { plan, "collective", i };
        const zb_route_collective *collective = &route->collectives[i];
        ZB_TRY(check_call(&at, collective));
        ZB_TRY(check_reduction(&at, &collective->reduction, plan->comm_dtype, plan->averaging.inside, seen));
        ZB_TRY(mark_pieces(&at, model, collective, first_of, sent));
    }
    return check_all_sent(model, first_of, sent);
}

static zb_status check_norm_sum(const zb_plan *plan, const zb_reduction *sum, zb_dtype dtype,
                                unsigned char *seen)
{
    const place at = { plan, "sum of norms, fp", dtype == ZB_FP32 ? 32 : 64 };
    if (sum->numel != 1) return WRONG(&at, "is of %zu numbers, want 1", sum->numel);
    return check_reduction(&at, sum, dtype, 0, seen);
}

static zb_status check(const zb_plan *plan, const zb_model *model, const zb_route *route, unsigned char *seen,
                       size_t *first_of, unsigned char *sent)
{
    if (!plan->averaging.absent) ZB_TRY(check_gradients(plan, model, route, seen, first_of, sent));
    if (plan->norm == ZB_NORM_PARTITION_FP64) return check_norm_sum(plan, &route->sum_fp64, ZB_FP64, seen);
    const int is_mean = plan->norm == ZB_NORM_PARAMETERS_MEAN && plan->clip_norm > 0.0;
    return plan->norm == ZB_NORM_PARTITION_FP32 || is_mean
               ? check_norm_sum(plan, &route->sum_fp32, ZB_FP32, seen)
               : ZB_OK;
}

zb_status zb_ref_route_check(const zb_plan *plan, const zb_model *model, const zb_route *route)
{
    if (route->world_size != plan->world_size)
        return zb_fail(ZB_INVALID_ARGUMENT, "oracle: the route is of %d ranks, the plan of %d",
                       route->world_size, plan->world_size);
    unsigned char *seen = zb_alloc_array((size_t)plan->world_size, 1);
    unsigned char *sent = zb_alloc_array(model->param_numel, 1);
    size_t *first_of = zb_alloc_array((size_t)model->param_count, sizeof *first_of);
    const zb_status status = seen == NULL || sent == NULL || first_of == NULL
                                 ? ZB_NO_MEMORY
                                 : check(plan, model, route, seen, first_of, sent);
    zb_free(seen);
    zb_free(sent);
    zb_free(first_of);
    return status;
}
