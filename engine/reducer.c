/* Buckets of gradients, filled, sent and settled; see reducer.h. */
#include "engine/reducer.h"

#include <zerobit/memory.h>
#include <zerobit/orders.h>

#include "engine/graph.h"
#include "engine/state.h"

/* --- the facts of a run --- */

static zb_bucket_rule rule_of(const zb_stage_facts *facts)
{
    return zb_bucket_rule_of(facts->config, facts->plan, facts->layout);
}

int zb_reducer_as_ready(const zb_stage_facts *facts)
{
    if (facts->layout->stage >= 2) return 1;
    return facts->layout->stage == 1 && facts->plan->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6 &&
           zb_overlap_comm(facts->config, 1) && !rule_of(facts).whole_groups;
}

/* Source of DeepSpeed's: stage_1_and_2.py, reduce_gradients; engine.py, _get_gradients_for_reduction. */
const int *zb_reducer_order(const zb_stage_facts *facts, int *count_p)
{
    const zb_bucket_rule rule = rule_of(facts);
    *count_p = facts->graph->ready_count;
    if (zb_reducer_as_ready(facts)) return facts->graph->ready_order;
    if (rule.in_place || rule.whole_groups) return facts->layout->by_offset;
    return facts->layout->stage == 0 ? facts->graph->trainable : facts->layout->by_group;
}

static int buffer_count(const zb_stage_facts *facts)
{
    const zb_bucket_rule rule = rule_of(facts);
    if (rule.in_place) return 0;
    return zb_overlap_comm(facts->config, facts->layout->stage) ? 2 : 1;
}

static int converts(const zb_plan *plan)
{
    return plan->bucket_dtype != plan->comm_dtype;
}

static size_t data_bytes(const zb_reducer *r)
{
    return r->plan.capacity * zb_dtype_bytes(r->engine->plan.bucket_dtype);
}

static size_t wire_bytes(const zb_reducer *r)
{
    return r->plan.capacity * zb_dtype_bytes(r->engine->plan.comm_dtype);
}

/* --- create, destroy --- */

static zb_status create_buffer(zb_reducer *r, zb_reducer_buffer *buffer)
{
    void *memory;
    buffer->bucket = -1;
    buffer->works = zb_alloc_array((size_t)r->plan.send_capacity, sizeof *buffer->works);
    if (buffer->works == NULL) return ZB_NO_MEMORY;
    ZB_TRY(zb_device_alloc(r->engine->device, ZB_MEM_BUCKET, data_bytes(r), &memory));
    buffer->data = memory;
    if (converts(&r->engine->plan))
        ZB_TRY(zb_device_alloc(r->engine->device, ZB_MEM_BUCKET, wire_bytes(r), &memory));
    buffer->wire = memory;
    return ZB_OK;
}

zb_status zb_reducer_create(zb_engine *engine, void *averages, const char *what, zb_reducer *r)
{
    const zb_stage_facts facts = zb_engine_facts(engine);
    *r = (zb_reducer){
        .engine = engine, .rule = rule_of(&facts), .averages = averages, .open_bucket = -1, .what = what
    };
    r->order = zb_reducer_order(&facts, &r->order_count);
    ZB_TRY(
        zb_buckets_create(&engine->layout, &r->rule, r->order, r->order_count, engine->comm->rank, &r->plan));
    r->buffer_count = buffer_count(&facts);
    for (int i = 0; i < r->buffer_count; i++) ZB_TRY(create_buffer(r, &r->buffers[i]));
    if (r->buffer_count > 0) return ZB_OK;
    r->works = zb_alloc_array((size_t)r->plan.bucket_count, sizeof *r->works);
    return r->works != NULL ? ZB_OK : ZB_NO_MEMORY;
}

static void abandon_all(zb_reducer *r)
{
    for (int b = 0; r->works != NULL && b < r->plan.bucket_count; b++)
        zb_engine_collective_abandon(r->engine, &r->works[b]);
    for (int i = 0; i < r->buffer_count; i++)
        for (int s = 0; r->buffers[i].works != NULL && s < r->plan.send_capacity; s++)
            zb_engine_collective_abandon(r->engine, &r->buffers[i].works[s]);
}

void zb_reducer_destroy(zb_reducer *r)
{
    if (r->engine == NULL) return;
    abandon_all(r);
    zb_free(r->works);
    for (int i = 0; i < r->buffer_count; i++) {
        zb_reducer_buffer *buffer = &r->buffers[i];
        if (buffer->wire != buffer->data)
            zb_device_free(r->engine->device, ZB_MEM_BUCKET, wire_bytes(r), buffer->wire);
        zb_device_free(r->engine->device, ZB_MEM_BUCKET, data_bytes(r), buffer->data);
        zb_free(buffer->works);
    }
    zb_buckets_destroy(&r->plan);
}

/* --- arithmetic on a range --- */

static zb_status apply(zb_engine *engine, zb_factor factor, void *x, zb_dtype dtype, size_t numel)
{
    if (numel == 0) return ZB_OK;
    switch (factor.kind) {
    case ZB_FACTOR_NONE:
        return ZB_OK;
    case ZB_FACTOR_MULTIPLY:
        return zb_launch_scale(
            engine->compute, &(zb_scale_args){ .dtype = dtype, .y = x, .factor = factor.by, .numel = numel });
    case ZB_FACTOR_DIVIDE:
        return zb_launch_divide(
            engine->compute,
            &(zb_divide_args){ .dtype = dtype, .y = x, .divisor = factor.by, .numel = numel });
    }
    return zb_fail(ZB_INTERNAL, "factor kind is %d", (int)factor.kind);
}

/* What this rank sends: from bucket_dtype at `data` to comm_dtype at `wire`. */
static zb_status prepare(zb_engine *engine, void *data, void *wire, size_t numel)
{
    const zb_plan *plan = &engine->plan;
    ZB_TRY(apply(engine, plan->averaging.in_bucket, data, plan->bucket_dtype, numel));
    ZB_TRY(zb_store(engine->compute, wire, plan->comm_dtype, data, plan->bucket_dtype, numel));
    ZB_TRY(apply(engine, plan->averaging.before[0], wire, plan->comm_dtype, numel));
    return apply(engine, plan->averaging.before[1], wire, plan->comm_dtype, numel);
}

/* --- sending --- */

static zb_status send_range(zb_reducer *r, const zb_bucket *bucket, const zb_bucket_send *send, void *wire,
                            zb_work *work)
{
    const zb_plan *plan = &r->engine->plan;
    void *range = zb_at(wire, send->begin, plan->comm_dtype);
    const zb_collective_kind kind = zb_transport_collective(bucket);
    return zb_engine_collective_run(r->engine, work, .kind = kind, .send = range, .recv = range,
                                    .numel = send->numel, .root = send->root, .dtype = plan->comm_dtype,
                                    .op = zb_engine_grad_op(r->engine),
                                    .order = zb_orders_source(plan->orders, kind), .what = r->what);
}

static zb_status scatter(zb_reducer *r, const zb_bucket *bucket, void *wire, zb_work *work)
{
    const zb_plan *plan = &r->engine->plan;
    const zb_collective_kind kind = zb_transport_collective(bucket);
    return zb_engine_collective_run(r->engine, work, .kind = kind, .send = wire,
                                    .recv = zb_at(wire, bucket->share_begin, plan->comm_dtype),
                                    .numel = bucket->share_numel, .counts = bucket->counts,
                                    .dtype = plan->comm_dtype, .op = zb_engine_grad_op(r->engine),
                                    .order = zb_orders_source(plan->orders, kind), .what = r->what);
}

/* For whoever wants to see what is sent; what comes to nothing contributes nothing. */
static zb_status show(const zb_reducer *r, const zb_bucket *bucket, const void *wire)
{
    zb_engine *engine = r->engine;
    if (engine->contributions.observe == NULL || engine->plan.averaging.absent) return ZB_OK;
    for (int i = 0; i < bucket->param_count; i++)
        for (int k = 0; k < r->plan.piece_count[bucket->params[i]]; k++) {
            const zb_bucket_piece piece = zb_buckets_piece(&r->plan, bucket->params[i], k);
            ZB_TRY(zb_engine_show_contribution(engine, bucket->params[i], piece.first, piece.numel,
                                               zb_at(wire, piece.at, engine->plan.comm_dtype)));
        }
    return ZB_OK;
}

/* works NULL: finished on return. */
static zb_status send_bucket(zb_reducer *r, const zb_bucket *bucket, void *wire, zb_work *works)
{
    for (int s = 0; s < bucket->send_count; s++)
        ZB_TRY(send_range(r, bucket, &bucket->sends[s], wire, works != NULL ? &works[s] : NULL));
    const int scatters = bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER ||
                         bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER_V;
    return scatters ? scatter(r, bucket, wire, works) : ZB_OK;
}

/* --- a bucket's life --- */

/* Where gradients cross ranks in every micro-batch they are added up here. */
static zb_status take(zb_reducer *r, const zb_bucket_own *own, const void *from, zb_dtype from_dtype)
{
    const zb_engine *engine = r->engine;
    const zb_dtype dtype = engine->plan.grad_dtype;
    void *to = zb_at(r->averages, own->to, dtype);
    if (engine->layout.stage < 2) return zb_store(engine->compute, to, dtype, from, from_dtype, own->numel);
    return zb_engine_take_gradient(r->engine, to, dtype, from, from_dtype, own->numel);
}

static zb_status settle_own(zb_reducer *r, const zb_reducer_buffer *buffer, const zb_bucket *bucket)
{
    const zb_plan *plan = &r->engine->plan;
    const int is_sent = bucket->transport != ZB_TRANSPORT_NONE;
    const zb_dtype dtype = is_sent ? plan->comm_dtype : plan->bucket_dtype;
    for (size_t i = 0; i < bucket->own_count; i++) {
        const zb_bucket_own *own = &bucket->own[i];
        void *from = zb_at(is_sent ? buffer->wire : buffer->data, own->at, dtype);
        if (is_sent) ZB_TRY(apply(r->engine, plan->averaging.after, from, dtype, own->numel));
        ZB_TRY(take(r, own, from, dtype));
    }
    return ZB_OK;
}

static zb_status settle_buffer(zb_reducer *r, zb_reducer_buffer *buffer)
{
    zb_engine *engine = r->engine;
    if (buffer->bucket < 0) return ZB_OK;
    const zb_bucket *bucket = &r->plan.buckets[buffer->bucket];
    for (int s = 0; s < r->plan.send_capacity; s++)
        ZB_TRY(zb_engine_collective_wait(engine, &buffer->works[s]));
    buffer->bucket = -1;
    if (!r->rule.in_vain) ZB_TRY(settle_own(r, buffer, bucket));
    if (buffer->wire != buffer->data) ZB_TRY(zb_discard(engine->compute, buffer->wire, wire_bytes(r)));
    return zb_discard(engine->compute, buffer->data, data_bytes(r));
}

static zb_status fill_zero(zb_engine *engine, void *data, size_t at, size_t numel)
{
    const zb_dtype dtype = engine->plan.bucket_dtype;
    return zb_launch_fill_bytes(
        engine->compute,
        &(zb_fill_bytes_args){ .data = zb_at(data, at, dtype), .bytes = numel * zb_dtype_bytes(dtype) });
}

static zb_status launch_full(zb_reducer *r);

static zb_status open_buffer(zb_reducer *r, int param, zb_reducer_buffer **buffer_p)
{
    const int index = r->plan.bucket_of[param];
    const zb_bucket *bucket = &r->plan.buckets[index];
    zb_reducer_buffer *buffer = &r->buffers[index % r->buffer_count];
    if (r->open_bucket != index) {
        ZB_TRY(launch_full(r));
        ZB_ASSERT(r->open_bucket == -1);
        ZB_TRY(settle_buffer(r, buffer));
        r->open_bucket = index;
        r->missing = bucket->param_count;
        /* At once: in a large world most ranks' parts of a small parameter are padding and nothing else. */
        if (bucket->padded) ZB_TRY(fill_zero(r->engine, buffer->data, 0, bucket->numel));
    }
    *buffer_p = buffer;
    return ZB_OK;
}

zb_status zb_reducer_target(zb_reducer *r, int param, void **target_p)
{
    zb_reducer_buffer *buffer;
    *target_p = NULL;
    if (r->plan.piece_count[param] != 1 || r->engine->plan.bucket_dtype != r->engine->plan.param_dtype)
        return ZB_OK;
    ZB_TRY(open_buffer(r, param, &buffer));
    *target_p = zb_at(buffer->data, zb_buckets_piece(&r->plan, param, 0).at, r->engine->plan.bucket_dtype);
    return ZB_OK;
}

static zb_status put_piece(zb_reducer *r, const zb_reducer_buffer *buffer, const zb_bucket_piece *piece,
                           const void *from, zb_dtype from_dtype)
{
    zb_engine *engine = r->engine;
    const zb_dtype dtype = engine->plan.bucket_dtype;
    ZB_TRY(zb_store(engine->compute, zb_at(buffer->data, piece->at, dtype), dtype,
                    zb_at(from, piece->first, from_dtype), from_dtype, piece->numel));
    if (piece->padding == 0 || r->plan.buckets[r->open_bucket].padded) return ZB_OK;
    return fill_zero(engine, buffer->data, piece->at + piece->numel, piece->padding);
}

static zb_status launch(zb_reducer *r, zb_reducer_buffer *buffer, int index)
{
    const zb_bucket *bucket = &r->plan.buckets[index];
    zb_work *works = r->buffer_count > 1 ? buffer->works : NULL;
    r->open_bucket = -1;
    buffer->bucket = index;
    if (bucket->transport != ZB_TRANSPORT_NONE) {
        ZB_TRY(prepare(r->engine, buffer->data, buffer->wire, bucket->numel));
        ZB_TRY(show(r, bucket, buffer->wire));
    }
    return send_bucket(r, bucket, buffer->wire, works);
}

/* The open bucket, if nothing is missing in it. */
static zb_status launch_full(zb_reducer *r)
{
    const int index = r->open_bucket;
    if (index < 0 || r->missing > 0) return ZB_OK;
    zb_reducer_buffer *buffer = &r->buffers[index % r->buffer_count];
    ZB_TRY(launch(r, buffer, index));
    return r->buffer_count > 1 ? ZB_OK : settle_buffer(r, buffer);
}

zb_status zb_reducer_put(zb_reducer *r, int param, const void *from, zb_dtype from_dtype)
{
    zb_reducer_buffer *buffer;
    ZB_TRY(open_buffer(r, param, &buffer));
    for (int i = 0; i < r->plan.piece_count[param]; i++) {
        const zb_bucket_piece piece = zb_buckets_piece(&r->plan, param, i);
        if (piece.numel == 0) break; /* and so are those of all ranks after */
        ZB_TRY(put_piece(r, buffer, &piece, from, from_dtype));
    }
    r->missing--;
    return r->rule.late ? ZB_OK : launch_full(r);
}

zb_status zb_reducer_finish(zb_reducer *r)
{
    if (r->buffer_count > 0) ZB_TRY(launch_full(r));
    ZB_ASSERT(r->open_bucket == -1);
    for (int i = 0; i < r->buffer_count; i++) ZB_TRY(settle_buffer(r, &r->buffers[i]));
    return ZB_OK;
}

/* --- in place --- */

static zb_status finish_in_place(zb_reducer *r, const zb_bucket *bucket, void *range, zb_work *work)
{
    const zb_plan *plan = &r->engine->plan;
    const int scatters = bucket->transport == ZB_TRANSPORT_REDUCE_SCATTER_V;
    ZB_TRY(zb_engine_collective_wait(r->engine, work));
    return apply(r->engine, plan->averaging.after,
                 zb_at(range, scatters ? bucket->share_begin : 0, plan->comm_dtype), plan->comm_dtype,
                 scatters ? bucket->share_numel : bucket->numel);
}

zb_status zb_reducer_run_in_place(zb_reducer *r, void *flat)
{
    const zb_dtype dtype = r->engine->plan.comm_dtype;
    const int overlap = zb_overlap_comm(r->engine->config, r->engine->layout.stage);
    for (int b = 0; b < r->plan.bucket_count; b++) {
        const zb_bucket *bucket = &r->plan.buckets[b];
        void *range = zb_at(flat, bucket->flat_offset, dtype);
        ZB_TRY(prepare(r->engine, range, range, bucket->numel));
        ZB_TRY(show(r, bucket, range));
        ZB_TRY(send_bucket(r, bucket, range, overlap ? &r->works[b] : NULL));
    }
    for (int b = 0; b < r->plan.bucket_count; b++) {
        const zb_bucket *bucket = &r->plan.buckets[b];
        ZB_TRY(finish_in_place(r, bucket, zb_at(flat, bucket->flat_offset, dtype), &r->works[b]));
    }
    return ZB_OK;
}

/* --- by formula --- */

static zb_bucket_measure measure(const zb_stage_facts *facts)
{
    int count;
    const zb_bucket_rule rule = rule_of(facts);
    const int *order = zb_reducer_order(facts, &count);
    return zb_buckets_measure(facts->layout, &rule, order, count);
}

uint64_t zb_reducer_bytes(const zb_stage_facts *facts)
{
    const zb_plan *plan = facts->plan;
    const uint64_t element = zb_dtype_bytes(plan->bucket_dtype) +
                             (converts(plan) ? zb_dtype_bytes(plan->comm_dtype) : 0);
    return element * measure(facts).capacity * (uint64_t)buffer_count(facts);
}

void zb_reducer_traffic(const zb_stage_facts *facts, zb_traffic traffic[ZB_COLLECTIVE_COUNT])
{
    const zb_bucket_measure m = measure(facts);
    const uint64_t times = facts->layout->stage < 2 ? 1 : (uint64_t)facts->plan->accumulation_steps;
    for (int kind = 0; kind < ZB_COLLECTIVE_COUNT; kind++) {
        traffic[kind].calls += m.calls[kind] * times;
        traffic[kind].bytes += m.numel[kind] * times * zb_dtype_bytes(facts->plan->comm_dtype);
    }
}
