/* The route of a stage's gradients, read off its plan of buckets: what the engine sends, in data. */
#include <zerobit/engine.h>

#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>

#include "engine/bucket.h"
#include "engine/graph.h"
#include "engine/reducer.h"

/* What a route is made from; everything is owned. */
typedef struct sources {
    const zb_plan *plan;
    zb_graph graph;
    int *group_of; /* [param_count] */
    zb_layout layout;
    zb_buckets buckets;
    zb_route_piece *pieces; /* of one bucket, ascending */
    size_t piece_count;
} sources;

static void close_sources(sources *s)
{
    zb_free(s->pieces);
    zb_buckets_destroy(&s->buckets);
    zb_layout_destroy(&s->layout);
    zb_free(s->group_of);
    zb_graph_destroy(&s->graph);
}

static zb_status open_sources(const zb_config *config, const zb_model *model, int stage, sources *s)
{
    zb_layout_options options = zb_layout_options_of(s->plan, model, stage);
    s->group_of = zb_alloc_array((size_t)model->param_count, sizeof *s->group_of);
    if (s->group_of == NULL) return ZB_NO_MEMORY;
    ZB_TRY(zb_config_assign_groups(config, model, s->group_of));
    options.group_of = s->group_of;
    ZB_TRY(zb_layout_create(&options, &s->layout));
    const zb_stage_facts facts = {
        .config = config, .plan = s->plan, .graph = &s->graph, .layout = &s->layout
    };
    const zb_bucket_rule rule = zb_bucket_rule_of(config, s->plan, &s->layout);
    int order_count;
    const int *order = zb_reducer_order(&facts, &order_count);
    return zb_buckets_create(&s->layout, &rule, order, order_count, 0, &s->buckets);
}

/* --- pieces --- */

static int by_place(const void *a_pointer, const void *b_pointer)
{
    const zb_route_piece *a = a_pointer, *b = b_pointer;
    return a->at < b->at ? -1 : a->at > b->at;
}

static zb_status list_pieces(sources *s, const zb_bucket *bucket)
{
    size_t count = 0;
    for (int i = 0; i < bucket->param_count; i++) count += (size_t)s->buckets.piece_count[bucket->params[i]];
    zb_free(s->pieces);
    s->piece_count = 0;
    s->pieces = zb_alloc_array(count, sizeof *s->pieces);
    if (s->pieces == NULL) return ZB_NO_MEMORY;
    for (int i = 0; i < bucket->param_count; i++)
        for (int k = 0; k < s->buckets.piece_count[bucket->params[i]]; k++) {
            const zb_bucket_piece piece = zb_buckets_piece(&s->buckets, bucket->params[i], k);
            if (piece.numel > 0)
                s->pieces[s->piece_count++] = (zb_route_piece){
                    .param = bucket->params[i], .first = piece.first, .numel = piece.numel, .at = piece.at
                };
        }
    qsort(s->pieces, s->piece_count, sizeof *s->pieces, by_place);
    return ZB_OK;
}

/* Those of the bucket's pieces, or parts of them, that lie in its elements [begin, end). */
static zb_status take_pieces(const sources *s, size_t begin, size_t end, zb_route_collective *collective)
{
    collective->pieces = zb_alloc_array(s->piece_count, sizeof *collective->pieces);
    if (collective->pieces == NULL) return ZB_NO_MEMORY;
    for (size_t i = 0; i < s->piece_count; i++) {
        zb_route_piece piece = s->pieces[i];
        const size_t from = piece.at > begin ? piece.at : begin;
        const size_t to = piece.at + piece.numel < end ? piece.at + piece.numel : end;
        if (from >= to) continue;
        piece.first += from - piece.at;
        piece.numel = to - from;
        piece.at = from - begin;
        collective->pieces[collective->piece_count++] = piece;
    }
    return ZB_OK;
}

/* --- collectives --- */

static zb_status derive(const zb_plan *plan, const zb_reduction_call *call, zb_reduction *reduction_p)
{
    static const zb_order_source rank = { 0 };
    const zb_order_source *source = zb_orders_source(plan->orders, call->kind);
    return zb_reduction_derive(source != NULL ? source : &rank, call, reduction_p);
}

static zb_reduction_call call_of(const zb_plan *plan, const zb_bucket *bucket)
{
    return (zb_reduction_call){ .kind = zb_transport_collective(bucket),
                                .world_size = plan->world_size,
                                .dtype = plan->comm_dtype,
                                .op = plan->averaging.inside ? ZB_AVG : ZB_SUM };
}

/* The collective is in the route from the start, so that whoever destroys the route frees what there is of
 * it. */
static zb_status add_collective(const sources *s, zb_reduction_call call, size_t begin, size_t end,
                                zb_route *route)
{
    zb_route_collective *collective = &route->collectives[route->count++];
    collective->call = call;
    if (call.counts != NULL) {
        size_t *counts = zb_alloc_array((size_t)call.world_size, sizeof *counts);
        collective->call.counts = counts;
        if (counts == NULL) return ZB_NO_MEMORY;
        memcpy(counts, call.counts, (size_t)call.world_size * sizeof *counts);
    }
    ZB_TRY(take_pieces(s, begin, end, collective));
    return derive(s->plan, &collective->call, &collective->reduction);
}

static zb_status add_bucket(sources *s, const zb_bucket *bucket, zb_route *route)
{
    ZB_TRY(list_pieces(s, bucket));
    zb_reduction_call call = call_of(s->plan, bucket);
    for (int i = 0; i < bucket->send_count; i++) {
        const zb_bucket_send *send = &bucket->sends[i];
        call.numel = send->numel;
        call.root = send->root;
        ZB_TRY(add_collective(s, call, send->begin, send->begin + send->numel, route));
    }
    if (bucket->transport != ZB_TRANSPORT_REDUCE_SCATTER &&
        bucket->transport != ZB_TRANSPORT_REDUCE_SCATTER_V)
        return ZB_OK;
    call.numel = bucket->share_numel;
    call.counts = bucket->counts;
    return add_collective(s, call, 0, bucket->numel, route);
}

static size_t count_collectives(const zb_buckets *buckets)
{
    size_t count = 0;
    for (int b = 0; b < buckets->bucket_count; b++)
        count += buckets->buckets[b].send_count > 0 ? (size_t)buckets->buckets[b].send_count : 1;
    return count;
}

/* Norms that are put together from one number of each rank, where they are sent: norm.c. */
static zb_status derive_norm_sums(const zb_plan *plan, zb_route *route)
{
    const int fp32 = plan->norm == ZB_NORM_PARTITION_FP32 ||
                     (plan->norm == ZB_NORM_PARAMETERS_MEAN && plan->clip_norm > 0.0);
    zb_reduction_call call = { .kind = ZB_COLLECTIVE_ALL_REDUCE,
                               .world_size = plan->world_size,
                               .numel = 1,
                               .dtype = ZB_FP32,
                               .op = ZB_SUM };
    if (fp32) ZB_TRY(derive(plan, &call, &route->sum_fp32));
    call.dtype = ZB_FP64;
    return plan->norm == ZB_NORM_PARTITION_FP64 ? derive(plan, &call, &route->sum_fp64) : ZB_OK;
}

static zb_status fill(const zb_config *config, const zb_model *model, int stage, sources *s, zb_route *route)
{
    ZB_TRY(open_sources(config, model, stage, s));
    route->collectives = zb_alloc_array(count_collectives(&s->buckets), sizeof *route->collectives);
    if (route->collectives == NULL) return ZB_NO_MEMORY;
    for (int b = 0; b < s->buckets.bucket_count; b++) ZB_TRY(add_bucket(s, &s->buckets.buckets[b], route));
    return derive_norm_sums(s->plan, route);
}

zb_status zb_route_create(const zb_config *config, const zb_model *model, const zb_plan *plan, int stage,
                          zb_route *route_p)
{
    sources s = { .plan = plan };
    zb_route route = { .world_size = plan->world_size };
    ZB_TRY(zb_graph_create(model, &s.graph));
    const zb_status status = fill(config, model, stage, &s, &route);
    close_sources(&s);
    if (status == ZB_OK)
        *route_p = route;
    else
        zb_route_destroy(&route);
    return status;
}
