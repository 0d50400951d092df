/*
 * The route of gradients: every trainable element lies in exactly one place of one collective, the engine
 * sends just those collectives, and two routes add alike when, and only when, every element is added by one
 * tree.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/sim.h>

#include "tests/engine/rig.h"

enum { WORLD_MAX = 8, CALLS_MAX = 400 };

#define LIBRARIES                                                                                            \
    "all_reduce: mpi-ring; reduce_scatter: mpi-ring; reduce_scatter_v: mpi-butterfly; reduce: mpi-linear"

static zb_plan plan_of(const zb_config *config, int stage, int world)
{
    zb_plan plan;
    if (zb_plan_derive(config, stage, config->dtype, world, &plan) != ZB_OK)
        fail_msg("%s", zb_error_message());
    return plan;
}

static zb_route route_of(const zb_config *config, const zb_model *model, int stage, int world)
{
    zb_route route;
    const zb_plan plan = plan_of(config, stage, world);
    if (zb_route_create(config, model, &plan, stage, &route) != ZB_OK) fail_msg("%s", zb_error_message());
    return route;
}

/* --- every element once --- */

static void check_collective(const zb_route_collective *c, const zb_model *model, const zb_plan *plan,
                             unsigned char **seen)
{
    const zb_order_source *source = zb_orders_source(plan->orders, c->call.kind), rank = { 0 };
    zb_reduction want;
    assert_int_equal(zb_reduction_derive(source != NULL ? source : &rank, &c->call, &want), ZB_OK);
    assert_int_equal(zb_reduction_check(&c->reduction), ZB_OK);
    assert_int_equal(c->call.dtype, plan->comm_dtype);
    assert_int_equal(c->call.op, plan->averaging.inside ? ZB_AVG : ZB_SUM);
    assert_int_equal(c->call.world_size, plan->world_size);
    assert_int_equal(c->reduction.numel, want.numel);
    assert_int_equal(c->reduction.range_count, want.range_count);
    assert_memory_equal(c->reduction.ranges, want.ranges, want.range_count * sizeof *want.ranges);
    zb_reduction_destroy(&want);

    size_t at = 0;
    for (size_t i = 0; i < c->piece_count; i++) {
        const zb_route_piece *piece = &c->pieces[i];
        assert_true(piece->param >= 0 && piece->param < model->param_count);
        assert_true(piece->numel > 0 && piece->at >= at && piece->at + piece->numel <= c->reduction.numel);
        assert_true(piece->first + piece->numel <= model->params[piece->param].numel);
        for (size_t e = 0; e < piece->numel; e++) seen[piece->param][piece->first + e]++;
        at = piece->at + piece->numel;
    }
}

/* absent: nothing is sent. */
static void check_coverage(const zb_route *route, const zb_model *model, const zb_plan *plan,
                           const char *what)
{
    unsigned char *seen[32];
    assert_true(model->param_count <= (int)COUNT(seen));
    for (int p = 0; p < model->param_count; p++) {
        seen[p] = calloc(model->params[p].numel + 1, 1);
        assert_non_null(seen[p]);
    }
    assert_int_equal(route->world_size, plan->world_size);
    for (size_t i = 0; i < route->count; i++) check_collective(&route->collectives[i], model, plan, seen);
    for (int p = 0; p < model->param_count; p++) {
        const int times = model->params[p].requires_grad && route->count > 0;
        for (size_t e = 0; e < model->params[p].numel; e++)
            if (seen[p][e] != times)
                fail_msg("%s, %d ranks: element %zu of %s is sent %d times, want %d", what, plan->world_size,
                         e, model->params[p].name, seen[p][e], times);
        free(seen[p]);
    }
}

/* Whether the stage sends gradients at all. */
static int is_sent(const zb_plan *plan, const zb_model *model)
{
    size_t numel = 0;
    for (int p = 0; p < model->param_count; p++)
        if (model->params[p].requires_grad) numel += model->params[p].numel;
    return numel > 0 && !plan->averaging.absent;
}

static void check_route(const zb_model *model, const rig_options *o, int world, const char *order)
{
    const uint64_t live = zb_alloc_get_stats().live;
    zb_config *config = rig_config(o);
    if (order != NULL) assert_int_equal(zb_config_set_order(config, order), ZB_OK);
    const zb_plan plan = plan_of(config, o->stage, world);
    zb_route route = route_of(config, model, o->stage, world);
    check_coverage(&route, model, &plan, rig_name(o));
    if (is_sent(&plan, model) && route.count == 0)
        fail_msg("%s, %d ranks: nothing is sent", rig_name(o), world);
    zb_route_destroy(&route);
    assert_int_equal(route.count, 0);
    zb_route_destroy(&route); /* fine to repeat */
    zb_config_destroy(config);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

/* The standard plan, then those of the rig. */
static const rig_plan *plan_at(int i)
{
    return i == 0 ? NULL : &rig_plans[i - 1];
}

static int allows(const rig_plan *plan, int stage)
{
    return plan == NULL || plan->stages >> stage & 1;
}

static void check_routes_of(const zb_model *model, const char *name, uint64_t bucket, int overlap)
{
    for (int p = 0; p <= rig_plan_count; p++)
        for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
            for (int world = 1; world <= 5 && allows(plan_at(p), stage); world += 1 + (world == 3))
                check_route(model,
                            &(rig_options){ .model = name,
                                            .plan = plan_at(p),
                                            .stage = stage,
                                            .overlap = overlap,
                                            .bucket = bucket },
                            world, (world + stage) % 2 ? LIBRARIES : NULL);
}

static void every_element_is_sent_once(void **state)
{
    (void)state;
    for (int m = 0; m < test_model_count; m++) {
        zb_model *model = test_model(test_model_names[m]);
        for (int variant = 0; variant < 4; variant++)
            check_routes_of(model, test_model_names[m], variant & 1 ? 20 : 0, variant >> 1);
        zb_model_destroy(model);
    }
}

static void every_element_of_random_models(void **state)
{
    (void)state;
    uint64_t random = 7;
    for (int round = 0; round < 40; round++) {
        sizes s = { .count = 1 + (int)random_below(&random, SIZES_MAX),
                    .frozen = random_below(&random, 1u << 16) };
        for (int i = 0; i < s.count; i++)
            s.numel[i] = random_below(&random, 4) ? random_below(&random, 90) : 0;
        s.numel[0] = 1 + random_below(&random, 9); /* something trains */
        s.frozen &= round % 2 ? ~1u : 0;
        zb_model *model = sizes_model(&s);
        check_routes_of(model, "random sizes", 1 + random_below(&random, 150), round & 1);
        zb_model_destroy(model);
    }
}

/* --- what the engine sends --- */

typedef struct sent_call {
    zb_collective call;
    size_t counts[WORLD_MAX];
    int ordered; /* as the plan says */
} sent_call;

typedef struct recorder {
    const zb_orders *orders;
    int count;
    sent_call calls[CALLS_MAX];
} recorder;

typedef struct run {
    const rig_options *options;
    zb_config *config;
    zb_model *model;
    zb_dataset *dataset;
    probe_device devices[WORLD_MAX];
    recorder *recorders; /* [world] */
} run;

static zb_status note_call(void *user, const zb_comm *comm, const zb_collective *call)
{
    recorder *r = user;
    if (call->what == NULL || strstr(call->what, "average gradients") == NULL) return ZB_OK;
    if (r->count == CALLS_MAX) return zb_fail(ZB_INTERNAL, "more than %d collectives", CALLS_MAX);
    sent_call *sent = &r->calls[r->count++];
    sent->call = *call;
    if (call->counts != NULL) memcpy(sent->counts, call->counts, (size_t)comm->world_size * sizeof(size_t));
    sent->ordered = zb_order_source_equal(call->order, zb_orders_source(r->orders, call->kind));
    return ZB_OK;
}

static zb_status train_and_record(void *user, zb_comm *comm)
{
    run *r = user;
    zb_engine *engine = NULL;
    const zb_engine_options options = { .config = r->config,
                                        .model = r->model,
                                        .dataset = r->dataset,
                                        .device = &r->devices[comm->rank].base,
                                        .comm = comm,
                                        .stage = -1,
                                        .dtype = -1,
                                        .init_seed = 11 };
    ZB_TRY(zb_initialize(&options, &engine));
    recorder *own = &r->recorders[comm->rank];
    own->orders = zb_engine_plan(engine)->orders;
    const zb_comm_observer observer = { .starting = note_call, .user = own };
    comm->observer = &observer;
    const zb_status status = zb_engine_train_step(engine, NULL);
    comm->observer = NULL;
    zb_engine_destroy(engine);
    /* DeepSpeed's BF16_Optimizer stops at a norm of zero, when everything has been sent. */
    return status == ZB_LOSS_SCALE ? ZB_OK : status;
}

/* A scatter's numel is the rank's own share; the route has that of rank 0. */
static int same_call(const sent_call *sent, const zb_reduction_call *want, int rank)
{
    const zb_collective *got = &sent->call;
    if (got->kind != want->kind || got->dtype != want->dtype || got->op != want->op || !sent->ordered)
        return 0;
    if (want->kind == ZB_COLLECTIVE_REDUCE && got->root != want->root) return 0;
    if (want->kind != ZB_COLLECTIVE_REDUCE_SCATTER_V) return got->numel == want->numel;
    return memcmp(sent->counts, want->counts, (size_t)want->world_size * sizeof(size_t)) == 0 &&
           got->numel == want->counts[rank];
}

static void compare_calls(const rig_options *o, const recorder *got, const zb_route *route, int rank)
{
    const size_t times = o->stage < 2 || o->accumulation == 0 ? 1 : (size_t)o->accumulation;
    if ((size_t)got->count != times * route->count)
        fail_msg("%s, %d ranks: rank %d sends %d collectives, the route has %zu x %zu", rig_name(o),
                 route->world_size, rank, got->count, times, route->count);
    for (int i = 0; i < got->count; i++)
        if (!same_call(&got->calls[i], &route->collectives[(size_t)i % route->count].call, rank))
            fail_msg("%s, %d ranks: collective %d of rank %d is %s of %zu", rig_name(o), route->world_size, i,
                     rank, zb_collective_name(got->calls[i].call.kind), got->calls[i].call.numel);
}

static void check_sent(const rig_options *o, int world, const char *order)
{
    const uint64_t live = zb_alloc_get_stats().live;
    run r = { .options = o, .config = rig_config(o), .model = test_model(o->model) };
    zb_sim *sim;
    if (order != NULL) assert_int_equal(zb_config_set_order(r.config, order), ZB_OK);
    assert_int_equal(zb_dataset_synthetic(r.model, 23, 3, &r.dataset), ZB_OK);
    r.recorders = calloc((size_t)world, sizeof *r.recorders);
    assert_non_null(r.recorders);
    assert_int_equal(zb_sim_create(&(zb_sim_options){ .world_size = world, .workers = 1 }, &sim), ZB_OK);
    for (int rank = 0; rank < world; rank++) probe_device_init(&r.devices[rank]);
    if (zb_sim_run(sim, train_and_record, &r) != ZB_OK)
        fail_msg("%s, %d ranks: %s", rig_name(o), world, zb_error_message());
    zb_route route = route_of(r.config, r.model, o->stage, world);
    for (int rank = 0; rank < world; rank++) {
        compare_calls(o, &r.recorders[rank], &route, rank);
        probe_device_close(&r.devices[rank]);
    }
    zb_route_destroy(&route);
    zb_sim_destroy(sim);
    free(r.recorders);
    zb_dataset_destroy(r.dataset);
    zb_model_destroy(r.model);
    zb_config_destroy(r.config);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

static void the_engine_sends_the_route(void **state)
{
    (void)state;
    static const int worlds[] = { 1, 2, 5 };
    int run_count = 0;
    for (int m = 0; m < test_model_count; m++)
        for (int p = 0; p <= rig_plan_count; p++)
            for (int stage = 0; stage < ZB_STAGE_COUNT; stage++)
                for (size_t w = 0; w < COUNT(worlds) && allows(plan_at(p), stage); w++, run_count++)
                    check_sent(&(rig_options){ .model = test_model_names[m],
                                               .plan = plan_at(p),
                                               .stage = stage,
                                               .accumulation = run_count % 3 == 0 ? 2 : 0,
                                               .overlap = run_count & 1,
                                               .bucket = run_count & 2 ? 20 : 0 },
                               worlds[w], run_count % 5 < 3 ? LIBRARIES : NULL);
}

/* --- alike or not --- */

#define RING_OF_ONE_CHANNEL "nccl-ring version=2.28 protocol=simple channels=1"

static const struct alike_case {
    const char *name, *order; /* NULL: rank order */
    int stage_a, stage_b, world;
    const char *semantics; /* NULL: standard, which averages inside the sum */
    size_t numel[3];       /* of parameters, up to 0 */
    int alike;
} alike_cases[] = {
    { "rank order, 0 and 1", NULL, 0, 1, 4, NULL, { 33, 70, 5 }, 1 },
    { "rank order, 0 and 2", NULL, 0, 2, 5, NULL, { 33, 70, 5 }, 1 },
    { "rank order, 0 and 3", NULL, 0, 3, 4, NULL, { 33, 70, 5 }, 1 },
    { "rank order by name", "rank", 1, 3, 3, NULL, { 33, 70, 5 }, 1 },
#define RECURSIVE "all_reduce: mpi-recursive-doubling; reduce_scatter_v: mpi-butterfly"
    { "recursive doubling and butterfly, 2", RECURSIVE, 0, 2, 2, NULL, { 33, 70, 5 }, 1 },
    { "recursive doubling and butterfly, 3", RECURSIVE, 0, 2, 3, NULL, { 33, 70, 5 }, 1 },
    { "recursive doubling and butterfly, 4", RECURSIVE, 0, 2, 4, NULL, { 33, 70, 5 }, 1 },
    { "recursive doubling and butterfly, 7", RECURSIVE, 0, 2, 7, NULL, { 33, 70, 5 }, 1 },
    { "recursive doubling and butterfly, 8", RECURSIVE, 0, 2, 8, NULL, { 33, 70, 5 }, 1 },
#define HALVING "all_reduce: mpi-recursive-doubling; reduce_scatter_v: mpi-recursive-halving"
    { "doubling and halving, 2", HALVING, 0, 2, 2, NULL, { 33, 70, 5 }, 1 },
    { "doubling and halving, 4", HALVING, 0, 2, 4, NULL, { 33, 70, 5 }, 0 },
    { "ring, 2", "mpi-ring", 0, 2, 2, NULL, { 33, 70, 5 }, 1 },
    { "ring, 3", "mpi-ring", 0, 2, 3, NULL, { 33, 70, 5 }, 0 },
    { "ring, 4", "mpi-ring", 0, 2, 4, NULL, { 64 }, 0 },
    { "ring, equal shares", "mpi-ring", 0, 3, 4, NULL, { 64 }, 0 },
    { "ring, 0 and itself", "mpi-ring", 0, 0, 4, NULL, { 33, 70, 5 }, 1 },
    { "another order for one", "all_reduce: mpi-linear", 0, 2, 3, NULL, { 33, 70, 5 }, 0 },
    { "NCCL's ring, chunks are the shares", RING_OF_ONE_CHANNEL, 0, 3, 4, NULL, { 8192 }, 1 },
    { "NCCL's ring, chunks are not the shares", RING_OF_ONE_CHANNEL, 0, 3, 4, NULL, { 8200, 33 }, 0 },
    { "NCCL's ring, fused average of two", RING_OF_ONE_CHANNEL, 0, 3, 2, NULL, { 33, 70, 5 }, 0 },
    { "NCCL's ring, sum of two", RING_OF_ONE_CHANNEL, 0, 3, 2, "deepspeed-0.19.6", { 33, 70, 5 }, 1 },
    { "NCCL's ring, sum of three", RING_OF_ONE_CHANNEL, 0, 3, 3, "deepspeed-0.19.6", { 33, 70, 5 }, 0 },
};

static void check_alike(void **state)
{
    const struct alike_case *c = *state;
    const uint64_t live = zb_alloc_get_stats().live;
    const rig_plan plan = { .name = c->name, .semantics = c->semantics };
    sizes s = { .count = 0 };
    while (s.count < 3 && c->numel[s.count] > 0) s.numel[s.count] = c->numel[s.count], s.count++;
    zb_model *model = sizes_model(&s);
    zb_config *config = rig_config(&(rig_options){ .model = "sizes", .plan = &plan, .stage = 0 });
    if (c->order != NULL) assert_int_equal(zb_config_set_order(config, c->order), ZB_OK);
    zb_route a = route_of(config, model, c->stage_a, c->world),
             b = route_of(config, model, c->stage_b, c->world);
    int there = -1, back = -1;
    assert_int_equal(zb_routes_add_alike(&a, &b, &there), ZB_OK);
    assert_int_equal(zb_routes_add_alike(&b, &a, &back), ZB_OK);
    assert_int_equal(there, c->alike);
    assert_int_equal(back, c->alike);
    assert_int_equal(zb_routes_add_alike(&a, &a, &there), ZB_OK);
    assert_int_equal(there, 1);
    for (int64_t n = 0, fired = 1; fired; n++) { /* no memory at any place */
        zb_alloc_fail_at(n);
        const zb_status status = zb_routes_add_alike(&a, &b, &there);
        fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
    }
    zb_route_destroy(&a);
    zb_route_destroy(&b);
    zb_config_destroy(config);
    zb_model_destroy(model);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

/* --- failures --- */

static void what_is_not_offered_is_refused(void **state)
{
    (void)state;
    zb_model *model = test_model("mlp");
    zb_config *config = rig_config(&(rig_options){ .model = "mlp", .stage = 2 });
    assert_int_equal(zb_config_set_order(config, RING_OF_ONE_CHANNEL), ZB_OK);
    const uint64_t live = zb_alloc_get_stats().live;
    const zb_plan plan = plan_of(config, 2, 4);
    zb_route route = { .world_size = 77 };
    assert_int_equal(zb_route_create(config, model, &plan, 2, &route), ZB_UNSUPPORTED);
    assert_message_has("nccl-ring does not offer reduce_scatter_v of 4 ranks");
    assert_int_equal(route.world_size, 77);
    assert_int_equal(zb_alloc_get_stats().live, live);
    zb_config_destroy(config);
    zb_model_destroy(model);
}

static void every_allocation_fails(void **state)
{
    (void)state;
    zb_model *model = test_model("tied");
    for (int stage = 0; stage < ZB_STAGE_COUNT; stage++) {
        zb_config *config = rig_config(&(rig_options){ .model = "tied", .stage = stage, .bucket = 20 });
        assert_int_equal(zb_config_set_order(config, LIBRARIES), ZB_OK);
        const zb_plan plan = plan_of(config, stage, 3);
        int64_t n = 0;
        for (int fired = 1; fired; n++) {
            const uint64_t live = zb_alloc_get_stats().live;
            zb_route route = { 0 };
            zb_alloc_fail_at(n);
            const zb_status status = zb_route_create(config, model, &plan, stage, &route);
            fired = zb_alloc_fault_fired();
            zb_alloc_fail_at(-1);
            assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
            zb_route_destroy(&route);
            assert_int_equal(zb_alloc_get_stats().live, live);
        }
        assert_true(n > 15);
        zb_config_destroy(config);
    }
    zb_model_destroy(model);
}

int main(void)
{
    struct CMUnitTest alike[COUNT(alike_cases)];
    for (size_t i = 0; i < COUNT(alike_cases); i++)
        alike[i] = (struct CMUnitTest){ alike_cases[i].name, check_alike, NULL, NULL,
                                        (void *)&alike_cases[i] };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_element_is_sent_once), cmocka_unit_test(every_element_of_random_models),
        cmocka_unit_test(the_engine_sends_the_route), cmocka_unit_test(what_is_not_offered_is_refused),
        cmocka_unit_test(every_allocation_fails),
    };
    const int failed = cmocka_run_group_tests_name("routes that add alike", alike, NULL, NULL);
    return failed + cmocka_run_group_tests_name("route", tests, NULL, NULL);
}
