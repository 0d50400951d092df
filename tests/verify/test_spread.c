/*
 * zb_verify with its ranks spread: every rank of a world calls it alike, and rank 0 judges. Here the world is
 * a simulated one, so that the protocol is seen in one process: the same verdicts as with simulated ranks,
 * failures that reach every rank, and none that hangs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/sim.h>
#include <zerobit/verify.h>

#include "tests/verify/fixture.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

enum { WORLD_MAX = 4, STAGES = 4, STACK_BYTES = 4 << 20 };

/* --- one run, on every rank --- */

typedef struct spread_run {
    zb_verify_options options;
    zb_verify_case cases[WORLD_MAX][STAGES]; /* of each rank */
    zb_status status[WORLD_MAX];
    int lying_rank; /* given other weights than the rest; -1: none */
    const zb_weights *lies;
} spread_run;

static zb_status verify_rank(void *user, zb_comm *comm)
{
    spread_run *run = user;
    zb_verify_options options = run->options;
    options.comm = comm;
    if (comm->rank == run->lying_rank) options.weights = run->lies;
    return run->status[comm->rank] = zb_verify(&options, run->cases[comm->rank]);
}

static const int all_stages[] = { 0, 1, 2, 3 };

static spread_run run_of(const fixture *f, const int *world, const zb_dtype *dtype)
{
    return (spread_run){ .options = { .config = f->config,
                                      .model = f->model,
                                      .weights = &f->weights,
                                      .dataset = f->dataset,
                                      .stages = all_stages,
                                      .stage_count = STAGES,
                                      .worlds = world,
                                      .world_count = 1,
                                      .dtypes = dtype,
                                      .dtype_count = 1,
                                      .steps = 3,
                                      .workers = 1 },
                         .lying_rank = -1 };
}

static zb_status run_on_world(spread_run *run, int world)
{
    const zb_sim_options sim_options = { .world_size = world, .workers = 2, .stack_bytes = STACK_BYTES };
    zb_sim *sim;
    assert_int_equal(zb_sim_create(&sim_options, &sim), ZB_OK);
    const zb_status status = zb_sim_run(sim, verify_rank, run);
    zb_sim_destroy(sim);
    return status;
}

/* --- equal --- */

static const struct equal_case {
    const char *name, *config;
    zb_dtype dtype;
    int world;
} equal_cases[] = {
    { "one rank", "{\"train_micro_batch_size_per_gpu\": 2, %s}", ZB_FP32, 1 },
    { "fp32, accumulation", "{\"train_micro_batch_size_per_gpu\": 2, \"gradient_accumulation_steps\": 2, %s}",
      ZB_FP32, 2 },
    { "an order that makes classes",
      "{\"train_micro_batch_size_per_gpu\": 2, \"zerobit\": {\"order\": \"mpi-ring\"}, %s}", ZB_BF16, 3 },
    { "steps that are skipped",
      "{\"train_micro_batch_size_per_gpu\": 1, \"fp16\": {\"enabled\": true, \"initial_scale_power\": 31, "
      "\"hysteresis\": 1}, %s}",
      ZB_FP16, 4 },
};

/* What rank 0 says is what zb_verify says of simulated ranks, and all ranks agree on each case. */
static void equal_as_simulated(void **state)
{
    const struct equal_case *c = *state;
    char config[512];
    fixture f;
    snprintf(config, sizeof config, c->config,
             "\"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.01}}");
    open_fixture(config, &f);
    spread_run run = run_of(&f, &c->world, &c->dtype);
    zb_verify_case simulated[STAGES];
    assert_int_equal(zb_verify(&run.options, simulated), ZB_OK);
    const zb_status status = run_on_world(&run, c->world);
    if (status != ZB_OK) fail_msg("%s", zb_error_message());
    for (int s = 0; s < STAGES; s++) {
        const zb_verify_case *judged = &run.cases[0][s];
        assert_string_equal(judged->ranks, "sim"); /* the name of the communicator */
        assert_int_equal(judged->steps_done, simulated[s].steps_done);
        assert_int_equal(judged->values_compared, simulated[s].values_compared);
        for (int rank = 0; rank < c->world; rank++) {
            assert_int_equal(run.cases[rank][s].status, ZB_OK);
            assert_int_equal(run.cases[rank][s].steps_done, simulated[s].steps_done);
            assert_int_equal(run.cases[rank][s].equality_class, simulated[s].equality_class);
        }
    }
    close_fixture(&f);
}

/* --- not equal --- */

static const char adam[] =
    "{\"train_micro_batch_size_per_gpu\": 2, \"optimizer\": {\"type\": \"Adam\", \"params\": {}}}";

/* Another rank's weights are the first thing that it shows; every rank hears of it. */
static void a_difference_is_told_to_all(void **state)
{
    (void)state;
    static const int world = 3;
    static const zb_dtype dtype = ZB_FP32;
    fixture f;
    zb_weights lies;
    open_fixture(adam, &f);
    assert_int_equal(zb_weights_from_seed(f.model, 2, &lies), ZB_OK);
    spread_run run = run_of(&f, &world, &dtype);
    run.lying_rank = 1;
    run.lies = &lies;
    assert_int_equal(run_on_world(&run, world), ZB_DIFFERENT);
    assert_int_equal(run.cases[0][0].difference.step, -1);
    assert_int_equal(run.cases[0][0].difference.rank_b, 1);
    for (int rank = 0; rank < world; rank++)
        for (int s = 0; s < STAGES; s++) assert_int_equal(run.cases[rank][s].status, ZB_DIFFERENT);
    zb_weights_destroy(&lies);
    close_fixture(&f);
}

static void other_worlds_are_refused(void **state)
{
    (void)state;
    static const int two = 2;
    static const zb_dtype dtype = ZB_FP32;
    fixture f;
    open_fixture(adam, &f);
    spread_run run = run_of(&f, &two, &dtype);
    assert_int_equal(run_on_world(&run, 3), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "world 2 on 3 processes, want 3 and no other"));
    close_fixture(&f);
}

/* --- a sum that is wrong --- */

/* A communicator that spoils what rank 1 sends of its gradients. */
typedef struct evil_comm {
    zb_comm base; /* comes first */
    zb_comm *inner;
    float factor; /* that it multiplies them with */
} evil_comm;

static const zb_comm_ops evil_ops;

static zb_status evil_wrap(zb_comm *inner, float factor, zb_comm **out)
{
    evil_comm *evil = zb_alloc(sizeof *evil);
    if (evil == NULL) return ZB_NO_MEMORY;
    *evil = (evil_comm){ .base = { .ops = &evil_ops, .rank = inner->rank, .world_size = inner->world_size },
                         .inner = inner,
                         .factor = factor };
    *out = &evil->base;
    return ZB_OK;
}

static zb_status evil_start(zb_comm *comm, const zb_collective *call, zb_work *work)
{
    evil_comm *evil = (evil_comm *)comm;
    size_t numel = 0;
    for (int rank = 0; call->kind == ZB_COLLECTIVE_REDUCE_SCATTER_V && rank < comm->world_size; rank++)
        numel += call->counts[rank];
    float *sent = (float *)(uintptr_t)call->send;
    for (size_t i = 0; comm->rank == 1 && i < numel; i++) sent[i] *= evil->factor;
    return evil->inner->ops->start(evil->inner, call, work);
}

static zb_status evil_wait(zb_comm *comm, zb_work *work, zb_stream *stream)
{
    return ((evil_comm *)comm)->inner->ops->wait(((evil_comm *)comm)->inner, work, stream);
}

static zb_status evil_split(zb_comm *comm, int color, int key, zb_comm **out)
{
    evil_comm *evil = (evil_comm *)comm;
    zb_comm *inner;
    ZB_TRY(evil->inner->ops->split(evil->inner, color, key, &inner));
    return evil_wrap(inner, evil->factor, out);
}

static void evil_fail(zb_comm *comm, zb_status status, const char *message)
{
    zb_comm_fail(((evil_comm *)comm)->inner, status, message);
}

static void evil_destroy(zb_comm *comm)
{
    zb_comm_destroy(((evil_comm *)comm)->inner);
    zb_free(comm);
}

static const zb_comm_ops evil_ops = { .name = "evil",
                                      .start = evil_start,
                                      .wait = evil_wait,
                                      .split = evil_split,
                                      .fail = evil_fail,
                                      .destroy = evil_destroy };

static const struct spoiled_case {
    const char *name;
    float factor;
    zb_verdict verdict;
    const char *words;
} spoiled_cases[] = {
    { "nothing of a rank arrives", 0, ZB_VERDICT_VALUE, "rank 1 is missing" },
    { "twice of a rank arrives", 2, ZB_VERDICT_VALUE, "rank 1 is there twice" },
};

typedef struct spoiled_run {
    spread_run run;
    float factor;
} spoiled_run;

static zb_status verify_spoiled(void *user, zb_comm *comm)
{
    spoiled_run *spoiled = user;
    zb_comm *evil;
    ZB_TRY(evil_wrap(comm, spoiled->factor, &evil));
    zb_verify_options options = spoiled->run.options;
    options.comm = evil;
    const zb_status status = zb_verify(&options, spoiled->run.cases[comm->rank]);
    zb_free(evil); /* and not what belongs to the world */
    return status;
}

/* The stage that scatters differs, and rank 0 says how; the one that reduces to all is not touched. */
static void a_wrong_sum_is_explained(void **state)
{
    const struct spoiled_case *c = *state;
    static const int world = 3, stages[] = { 0, 2 };
    static const zb_dtype dtype = ZB_FP32;
    const zb_sim_options sim_options = { .world_size = world, .workers = 2, .stack_bytes = STACK_BYTES };
    fixture f;
    zb_sim *sim;
    open_fixture(adam, &f);
    spoiled_run spoiled = { .run = run_of(&f, &world, &dtype), .factor = c->factor };
    spoiled.run.options.stages = stages;
    spoiled.run.options.stage_count = 2;
    assert_int_equal(zb_sim_create(&sim_options, &sim), ZB_OK);
    assert_int_equal(zb_sim_run(sim, verify_spoiled, &spoiled), ZB_DIFFERENT);
    zb_sim_destroy(sim);
    const zb_verify_case *judged = spoiled.run.cases[0];
    assert_int_equal(judged[0].status, ZB_OK);
    assert_int_equal(judged[1].status, ZB_DIFFERENT);
    assert_int_equal(judged[1].difference.quantity, ZB_Q_GRAD);
    assert_true(judged[1].is_explained);
    assert_int_equal(judged[1].verdict, c->verdict);
    if (strstr(judged[1].explanation, c->words) == NULL) fail_msg("%s", judged[1].explanation);
    close_fixture(&f);
}

/* --- classes that are too far apart --- */

enum { RELATED_STEPS = 3 };

typedef struct related_rank {
    zb_weights weights, others;
    int is_changed, relations;
} related_rank;

typedef struct related_run {
    spread_run run;
    related_rank ranks[WORLD_MAX];
} related_run;

/* Behind the last step of the first class every rank is given other weights. So each class is equal to its
 * oracle, but what the two oracles began with is not the same. */
static void change_weights(void *user, const zb_verify_case *current, int64_t done, int64_t total)
{
    related_rank *rank = user;
    (void)current;
    assert_int_equal(total, 2 * RELATED_STEPS);
    if (done != RELATED_STEPS || rank->is_changed) return;
    rank->is_changed = 1;
    const zb_weights before = rank->weights;
    rank->weights = rank->others;
    rank->others = before;
}

static void count_relation(void *user, const zb_verify_relation *relation)
{
    related_rank *rank = user;
    assert_int_equal(relation->status, ZB_DIFFERENT);
    rank->relations++;
}

static zb_status verify_related(void *user, zb_comm *comm)
{
    related_run *related = user;
    spread_run *run = &related->run;
    zb_verify_options options = run->options;
    options.comm = comm;
    options.weights = &related->ranks[comm->rank].weights;
    options.user = &related->ranks[comm->rank];
    options.progress = change_weights;
    options.relation = count_relation;
    run->status[comm->rank] = zb_verify(&options, run->cases[comm->rank]);
    return ZB_OK;
}

/* Only rank 0 has both oracles; every rank hears that the later class differs. */
static void classes_apart_are_told_to_all(void **state)
{
    (void)state;
    static const int world = 3, stages[] = { 0, 2 };
    static const zb_dtype dtype = ZB_FP32;
    const zb_sim_options sim_options = { .world_size = world, .workers = 2, .stack_bytes = STACK_BYTES };
    static related_run related;
    fixture f;
    zb_sim *sim;
    open_fixture("{\"train_micro_batch_size_per_gpu\": 2, \"zerobit\": {\"order\": \"mpi-ring\"}, "
                 "\"optimizer\": {\"type\": \"Adam\", \"params\": {}}}",
                 &f);
    related = (related_run){ .run = run_of(&f, &world, &dtype) };
    related.run.options.stages = stages;
    related.run.options.stage_count = 2;
    related.run.options.steps = RELATED_STEPS;
    for (int rank = 0; rank < world; rank++) {
        related_rank *r = &related.ranks[rank];
        assert_int_equal(zb_weights_from_seed(f.model, 1, &r->weights), ZB_OK);
        assert_int_equal(zb_weights_from_seed(f.model, 2, &r->others), ZB_OK);
    }
    assert_int_equal(zb_sim_create(&sim_options, &sim), ZB_OK);
    const zb_status status = zb_sim_run(sim, verify_related, &related);
    if (status != ZB_OK) fail_msg("%s", zb_error_message());
    zb_sim_destroy(sim);
    for (int rank = 0; rank < world; rank++) {
        const zb_verify_case *cases = related.run.cases[rank];
        assert_int_equal(related.ranks[rank].relations, rank == 0);
        assert_int_equal(related.run.status[rank], ZB_DIFFERENT);
        assert_int_equal(cases[0].status, ZB_OK);
        assert_int_equal(cases[1].status, ZB_DIFFERENT);
        assert_int_equal(cases[1].steps_done, RELATED_STEPS);
        assert_string_not_equal(cases[1].message, "");
        zb_weights_destroy(&related.ranks[rank].weights);
        zb_weights_destroy(&related.ranks[rank].others);
    }
    close_fixture(&f);
}

/* --- failures --- */

static int all_stopped(const spread_run *run, int world)
{
    for (int rank = 0; rank < world; rank++)
        if (run->status[rank] == ZB_OK) return 0;
    return 1;
}

/* The n-th collective fails on its rank, for every n in the beginning: nobody waits for ever, nobody says
 * "equal". */
static void a_failing_collective_stops_all(void **state)
{
    (void)state;
    static const int world = 3;
    static const zb_dtype dtype = ZB_FP32;
    fixture f;
    open_fixture(adam, &f);
    for (int n = 0; n < 120; n += 7) {
        spread_run run = run_of(&f, &world, &dtype);
        const zb_sim_options sim_options = { .world_size = world, .workers = 1, .stack_bytes = STACK_BYTES };
        zb_sim *sim;
        run.options.steps = 1;
        assert_int_equal(zb_sim_create(&sim_options, &sim), ZB_OK);
        zb_sim_fail_at(sim, n, ZB_REMOTE);
        assert_int_not_equal(zb_sim_run(sim, verify_rank, &run), ZB_OK);
        assert_true(zb_sim_fault_fired(sim));
        if (!all_stopped(&run, world)) fail_msg("collective %d: a rank says that all is equal", n);
        zb_sim_destroy(sim);
    }
    close_fixture(&f);
}

/* The same for allocations, which fail on whichever rank comes to the n-th. */
static void a_failing_allocation_stops_all(void **state)
{
    (void)state;
    static const int world = 2;
    static const zb_dtype dtype = ZB_FP32;
    fixture f;
    open_fixture(adam, &f);
    for (int64_t n = 60;; n += 13) { /* a few dozen make the world itself */
        spread_run run = run_of(&f, &world, &dtype);
        const uint64_t live = zb_alloc_get_stats().live;
        const zb_sim_options sim_options = { .world_size = world, .workers = 1, .stack_bytes = STACK_BYTES };
        zb_sim *sim;
        run.options.steps = 1;
        run.options.stage_count = 2;
        assert_int_equal(zb_sim_create(&sim_options, &sim), ZB_OK);
        zb_alloc_fail_at(n);
        const zb_status status = zb_sim_run(sim, verify_rank, &run);
        const int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        zb_sim_destroy(sim);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (!fired) {
            assert_int_equal(status, ZB_OK);
            break;
        }
        assert_int_not_equal(status, ZB_OK);
        if (!all_stopped(&run, world)) fail_msg("allocation %d: a rank says that all is equal", (int)n);
    }
    close_fixture(&f);
}

int main(void)
{
    struct CMUnitTest tests[COUNT(equal_cases) + COUNT(spoiled_cases) + 5];
    size_t count = 0;
    for (size_t i = 0; i < COUNT(equal_cases); i++)
        tests[count++] = (struct CMUnitTest){ equal_cases[i].name, equal_as_simulated, NULL, NULL,
                                              (void *)&equal_cases[i] };
    for (size_t i = 0; i < COUNT(spoiled_cases); i++)
        tests[count++] = (struct CMUnitTest){ spoiled_cases[i].name, a_wrong_sum_is_explained, NULL, NULL,
                                              (void *)&spoiled_cases[i] };
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(a_difference_is_told_to_all);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(other_worlds_are_refused);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(classes_apart_are_told_to_all);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(a_failing_collective_stops_all);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(a_failing_allocation_stops_all);
    return cmocka_run_group_tests_name("spread", tests, NULL, NULL);
}
