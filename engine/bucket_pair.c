/* Travelling buckets; see bucket_pair.h. */
#include "engine/bucket_pair.h"

#include "engine/graph.h"
#include "engine/state.h"

static size_t buffer_bytes(const zb_engine *engine, const zb_bucket_pair *pair)
{
    return pair->plan.capacity * zb_dtype_bytes(engine->plan.comm_dtype);
}

zb_status zb_bucket_pair_create(zb_engine *engine, zb_bucket_settle_fn *settle, const char *what,
                                zb_bucket_pair *pair)
{
    pair->settle = settle;
    pair->what = what;
    pair->open_bucket = -1;
    ZB_TRY(zb_buckets_create(&engine->layout, engine->graph.ready_order, engine->graph.ready_count,
                             engine->config->zero.reduce_bucket_numel, engine->comm->rank, &pair->plan));
    pair->buffer_count = zb_overlap_comm(engine->config, engine->layout.stage) ? 2 : 1;
    for (int i = 0; i < pair->buffer_count; i++) {
        void *data;
        ZB_TRY(zb_device_alloc(engine->device, ZB_MEM_BUCKET, buffer_bytes(engine, pair), &data));
        pair->buffers[i] = (zb_bucket_buffer){ .data = data, .bucket = -1 };
    }
    return ZB_OK;
}

void zb_bucket_pair_destroy(zb_engine *engine, zb_bucket_pair *pair)
{
    for (int i = 0; i < 2; i++) zb_engine_collective_abandon(engine, &pair->buffers[i].work);
    for (int i = 0; i < 2; i++)
        zb_device_free(engine->device, ZB_MEM_BUCKET, buffer_bytes(engine, pair), pair->buffers[i].data);
    zb_buckets_destroy(&pair->plan);
}

static zb_status settle_buffer(zb_stage *stage, zb_bucket_pair *pair, zb_bucket_buffer *buffer)
{
    zb_engine *engine = stage->engine;
    if (buffer->bucket < 0) return ZB_OK;
    const zb_bucket *bucket = &pair->plan.buckets[buffer->bucket];
    ZB_TRY(zb_engine_collective_wait(engine, &buffer->work));
    buffer->bucket = -1;
    ZB_TRY(pair->settle(stage, bucket, zb_at(buffer->data, bucket->share_begin, engine->plan.comm_dtype)));
    return zb_discard(engine->compute, buffer->data, buffer_bytes(engine, pair));
}

zb_status zb_bucket_pair_buffer(zb_stage *stage, zb_bucket_pair *pair, int param, void **data_p)
{
    int index = pair->plan.bucket_of[param];
    zb_bucket_buffer *buffer = &pair->buffers[index % pair->buffer_count];
    if (pair->open_bucket != index) {
        ZB_ASSERT(pair->open_bucket == -1);
        ZB_TRY(settle_buffer(stage, pair, buffer));
        pair->open_bucket = index;
        pair->missing = pair->plan.buckets[index].param_count;
    }
    *data_p = buffer->data;
    return ZB_OK;
}

static zb_status launch(zb_stage *stage, zb_bucket_pair *pair, zb_bucket_buffer *buffer,
                        const zb_bucket *bucket)
{
    zb_engine *engine = stage->engine;
    zb_work *work = pair->buffer_count > 1 ? &buffer->work : NULL;
    return zb_engine_collective_run(
        engine, work,
        .kind = bucket->counts != NULL ? ZB_COLLECTIVE_REDUCE_SCATTER_V : ZB_COLLECTIVE_REDUCE_SCATTER,
        .send = buffer->data, .recv = zb_at(buffer->data, bucket->share_begin, engine->plan.comm_dtype),
        .numel = bucket->share_numel, .counts = bucket->counts, .dtype = engine->plan.comm_dtype,
        .op = zb_engine_grad_op(engine), .order = engine->plan.order, .what = pair->what);
}

zb_status zb_bucket_pair_filled(zb_stage *stage, zb_bucket_pair *pair, int param)
{
    int index = pair->plan.bucket_of[param];
    ZB_ASSERT(index == pair->open_bucket);
    if (--pair->missing > 0) return ZB_OK;

    zb_bucket_buffer *buffer = &pair->buffers[index % pair->buffer_count];
    pair->open_bucket = -1;
    ZB_TRY(launch(stage, pair, buffer, &pair->plan.buckets[index]));
    buffer->bucket = index;
    return pair->buffer_count > 1 ? ZB_OK : settle_buffer(stage, pair, buffer);
}

zb_status zb_bucket_pair_finish(zb_stage *stage, zb_bucket_pair *pair)
{
    ZB_ASSERT(pair->open_bucket == -1);
    for (int i = 0; i < pair->buffer_count; i++) ZB_TRY(settle_buffer(stage, pair, &pair->buffers[i]));
    return ZB_OK;
}

static zb_bucket_measure measure(const zb_stage_facts *facts)
{
    return zb_buckets_measure(facts->layout, facts->graph->ready_order, facts->graph->ready_count,
                              facts->config->zero.reduce_bucket_numel);
}

uint64_t zb_bucket_pair_bytes(const zb_stage_facts *facts)
{
    uint64_t buffers = zb_overlap_comm(facts->config, facts->layout->stage) ? 2 : 1;
    return zb_dtype_bytes(facts->plan->comm_dtype) * measure(facts).capacity * buffers;
}

uint64_t zb_bucket_pair_count(const zb_stage_facts *facts)
{
    return measure(facts).bucket_count;
}
