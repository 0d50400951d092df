/* The oracle as a player of recorded runs. Where ranks were not added in rank order it is given the route of
 * the run's gradients, as the engine has it. */
#include <zerobit/replay.h>

#include <zerobit/engine.h>
#include <zerobit/memory.h>
#include <zerobit/ref.h>

#include "verify/replay_model.h"

typedef struct oracle_player {
    zb_replay_player inner; /* of ref/ */
    zb_route route;         /* empty: rank order */
} oracle_player;

static zb_status step(void *self, size_t index)
{
    oracle_player *o = self;
    return o->inner.step(o->inner.self, index);
}

static void state(void *self, int rank, zb_replay_state *out)
{
    oracle_player *o = self;
    o->inner.state(o->inner.self, rank, out);
}

static void destroy(void *self)
{
    oracle_player *o = self;
    if (o->inner.destroy != NULL) o->inner.destroy(o->inner.self);
    zb_route_destroy(&o->route);
    zb_free(o);
}

static zb_status create_route(const zb_replay_run *run, zb_route *route)
{
    zb_plan plan;
    zb_model *model;
    ZB_TRY(zb_plan_derive(run->config, run->config->zero.stage, run->config->dtype, run->world_size, &plan));
    zb_status status = zb_replay_model_create(run, &model);
    if (status == ZB_OK) status = zb_route_create(run->config, model, &plan, run->config->zero.stage, route);
    zb_model_destroy(model);
    return status;
}

static zb_status fill(oracle_player *o, const zb_replay_run *run)
{
    const int has_order = run->config->orders != NULL;
    if (has_order) ZB_TRY(create_route(run, &o->route));
    return zb_ref_replay_create(run, has_order ? &o->route : NULL, &o->inner);
}

zb_status zb_replay_oracle_create(const zb_replay_run *run, zb_replay_player *player)
{
    ZB_TRY(zb_replay_check(run));
    oracle_player *o = zb_alloc(sizeof *o);
    if (o == NULL) return ZB_NO_MEMORY;
    const zb_status status = fill(o, run);
    if (status != ZB_OK) {
        destroy(o);
        return status;
    }
    *player = (zb_replay_player){
        .name = o->inner.name, .self = o, .step = step, .state = state, .destroy = destroy
    };
    return ZB_OK;
}
