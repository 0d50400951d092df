/* Where ranks run; see world.h. */
#include "verify/world.h"

#include <string.h>
#include <zerobit/memory.h>

#include "verify/trace_format.h"

/* What a rank has shown, on its way to the process that judges: record heads as in a trace, each followed by
 * its padded values. */
typedef struct parcel {
    unsigned char *bytes;
    size_t used, capacity;
} parcel;

struct zb_world {
    zb_sim *sim;      /* NULL: spread */
    zb_comm *engine;  /* spread: what ranks talk over */
    zb_comm *harness; /* spread: what they tell the judge over, so that it is not counted as their traffic */
    parcel parcel;    /* spread: what was shown here in the run under way, or has been received */
};

/* --- create, destroy --- */

zb_status zb_world_simulate(const zb_sim_options *options, zb_world **world_p)
{
    zb_world *world = zb_alloc(sizeof *world);
    if (world == NULL) return ZB_NO_MEMORY;
    const zb_status status = zb_sim_create(options, &world->sim);
    if (status == ZB_OK)
        *world_p = world;
    else
        zb_free(world);
    return status;
}

zb_status zb_world_spread(zb_comm *comm, zb_world **world_p)
{
    zb_world *world = zb_alloc(sizeof *world);
    if (world == NULL) return ZB_NO_MEMORY;
    zb_status status = zb_comm_split(comm, 0, comm->rank, &world->engine);
    if (status == ZB_OK) status = zb_comm_split(comm, 0, comm->rank, &world->harness);
    if (status == ZB_OK)
        *world_p = world;
    else
        zb_world_destroy(world);
    return status;
}

void zb_world_destroy(zb_world *world)
{
    if (world == NULL) return;
    if (world->sim != NULL) zb_sim_destroy(world->sim);
    zb_comm_destroy(world->harness);
    zb_comm_destroy(world->engine);
    zb_free(world->parcel.bytes);
    zb_free(world);
}

int zb_world_judges(const zb_world *world)
{
    return world->sim != NULL || world->engine->rank == 0;
}

/* --- simulated --- */

typedef struct simulated_run {
    zb_world_main *main;
    void *user;
    const zb_observer *judge;
} simulated_run;

static zb_status simulated_main(void *user, zb_comm *comm)
{
    const simulated_run *run = user;
    return run->main(run->user, comm, run->judge);
}

/* --- spread: what is shown elsewhere --- */

static zb_status reserve(parcel *p, size_t bytes)
{
    if (bytes <= p->capacity) return ZB_OK;
    const size_t capacity = bytes + bytes / 2;
    unsigned char *grown = zb_realloc(p->bytes, capacity);
    if (grown == NULL) return ZB_NO_MEMORY;
    p->bytes = grown;
    p->capacity = capacity;
    return ZB_OK;
}

static zb_status pack(void *user, const zb_observation *o)
{
    parcel *p = user;
    const size_t bytes = o->numel * zb_dtype_bytes(o->dtype), padded = (size_t)zb_trace_padded(bytes);
    const zb_trace_record_head head = { .kind = ZB_TRACE_RECORD,
                                        .quantity = (uint32_t)o->quantity,
                                        .step = o->step,
                                        .micro = o->micro,
                                        .rank = o->rank,
                                        .param = o->param,
                                        .dtype = (uint32_t)o->dtype,
                                        .first = o->first,
                                        .numel = o->numel };
    ZB_TRY(reserve(p, p->used + sizeof head + padded));
    memcpy(p->bytes + p->used, &head, sizeof head);
    p->used += sizeof head;
    if (bytes > 0) memcpy(p->bytes + p->used, o->data, bytes);
    memset(p->bytes + p->used + bytes, 0, padded - bytes);
    p->used += padded;
    return ZB_OK;
}

static zb_status unpack(const parcel *p, const zb_observer *judge)
{
    for (size_t at = 0; at < p->used;) {
        zb_trace_record_head head;
        memcpy(&head, p->bytes + at, sizeof head);
        at += sizeof head;
        const zb_observation o = { .quantity = (zb_quantity)head.quantity,
                                   .step = head.step,
                                   .micro = head.micro,
                                   .rank = head.rank,
                                   .param = head.param,
                                   .dtype = (zb_dtype)head.dtype,
                                   .first = head.first,
                                   .numel = head.numel,
                                   .data = p->bytes + at };
        ZB_TRY(judge->observe(judge->user, &o));
        at += (size_t)zb_trace_padded(head.numel * zb_dtype_bytes(o.dtype));
    }
    return ZB_OK;
}

static zb_status send_parcel(zb_world *world)
{
    int64_t bytes = (int64_t)world->parcel.used;
    ZB_TRY(zb_collective_run(world->harness, NULL, .kind = ZB_COLLECTIVE_SEND, .send = &bytes, .numel = 1,
                             .dtype = ZB_INT64, .what = "how much was shown"));
    return zb_collective_run(world->harness, NULL, .kind = ZB_COLLECTIVE_SEND, .send = world->parcel.bytes,
                             .numel = world->parcel.used, .dtype = ZB_UINT8, .what = "what was shown");
}

static zb_status receive_parcel(zb_world *world, int rank, const zb_observer *judge)
{
    int64_t bytes;
    ZB_TRY(zb_collective_run(world->harness, NULL, .kind = ZB_COLLECTIVE_RECV, .recv = &bytes, .numel = 1,
                             .dtype = ZB_INT64, .root = rank, .what = "how much was shown"));
    ZB_TRY(reserve(&world->parcel, (size_t)bytes));
    world->parcel.used = (size_t)bytes;
    ZB_TRY(zb_collective_run(world->harness, NULL, .kind = ZB_COLLECTIVE_RECV, .recv = world->parcel.bytes,
                             .numel = (size_t)bytes, .dtype = ZB_UINT8, .root = rank,
                             .what = "what was shown"));
    return unpack(&world->parcel, judge);
}

static zb_status run_spread(zb_world *world, zb_world_main *main, void *user, const zb_observer *judge)
{
    const zb_observer packing = { pack, &world->parcel };
    world->parcel.used = 0;
    if (!zb_world_judges(world)) {
        ZB_TRY(main(user, world->engine, &packing));
        return send_parcel(world);
    }
    ZB_TRY(main(user, world->engine, judge));
    for (int rank = 1; rank < world->engine->world_size; rank++) ZB_TRY(receive_parcel(world, rank, judge));
    return ZB_OK;
}

/* --- both --- */

zb_status zb_world_run(zb_world *world, zb_world_main *main, void *user, const zb_observer *judge)
{
    if (world->sim != NULL) {
        simulated_run run = { main, user, judge };
        return zb_sim_run(world->sim, simulated_main, &run);
    }
    const zb_status status = run_spread(world, main, user, judge);
    if (status != ZB_OK && status != ZB_REMOTE) zb_comm_fail(world->engine, status, zb_error_message());
    return status;
}

zb_status zb_world_agree(zb_world *world, int64_t *words, size_t count)
{
    if (world->sim != NULL) return ZB_OK;
    return zb_collective_run(world->harness, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = words,
                             .numel = count, .dtype = ZB_INT64, .what = "how to go on");
}
