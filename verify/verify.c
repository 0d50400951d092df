/*
 * The ladder's first rung: for every precision and world, one oracle run per arithmetic plan, and in lockstep
 * with it the engines of all stages that follow this plan, each on a simulated world of its own. After every
 * step each engine is held against the oracle; one that differs stops there, the others go on.
 */
#include <zerobit/verify.h>

#include "verify/compare.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <zerobit/engine.h>
#include <zerobit/kernels.h>
#include <zerobit/memory.h>
#include <zerobit/ref.h>
#include <zerobit/sim.h>

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* --- one engine on its simulated world --- */

typedef struct runner {
    const zb_verify_options *options;
    zb_verify_case *result;
    zb_sim *sim;
    zb_compare *compare;
    zb_device **devices; /* [world_size], like engines */
    zb_engine **engines;
    const int *group_of;   /* [param_count] the parameter group of each */
    const zb_route *route; /* NULL: rank order */
    uint64_t *owned_numel; /* [world_size] */
    int *has_ended;        /* [world_size]: the rank's engine has ended training */
    zb_step_past past;
} runner;

static int is_running(const runner *r)
{
    return r->result->status == ZB_OK && !r->result->ended;
}

static zb_status start_rank(void *user, zb_comm *comm)
{
    runner *r = user;
    const zb_verify_options *options = r->options;
    ZB_TRY(zb_device_cpu_create_poisoning(&r->devices[comm->rank]));
    zb_engine_options engine_options = { .config = options->config,
                                         .model = options->model,
                                         .weights = options->weights,
                                         .dataset = options->dataset,
                                         .device = r->devices[comm->rank],
                                         .comm = comm,
                                         .stage = r->result->stage,
                                         .dtype = (int)r->result->dtype,
                                         .sampler_seed = options->sampler_seed };
    ZB_TRY(zb_initialize(&engine_options, &r->engines[comm->rank]));
    zb_observer observer = zb_compare_observer(r->compare);
    return zb_engine_observe(r->engines[comm->rank], &observer);
}

static zb_status step_rank(void *user, zb_comm *comm)
{
    runner *r = user;
    zb_observer observer = zb_compare_observer(r->compare);
    ZB_TRY(zb_engine_train_step(r->engines[comm->rank], &observer));
    return zb_engine_observe(r->engines[comm->rank], &observer);
}

/* The step in which the oracle has ended training. */
static zb_status end_rank(void *user, zb_comm *comm)
{
    runner *r = user;
    zb_observer observer = zb_compare_observer(r->compare);
    const zb_status status = zb_engine_train_step(r->engines[comm->rank], &observer);
    r->has_ended[comm->rank] = status == ZB_LOSS_SCALE;
    return status == ZB_LOSS_SCALE ? ZB_OK : status;
}

/* Whatever goes wrong on a case's own world is that case's result, not the end of the others. */
static void fail_case(zb_verify_case *result, zb_status status)
{
    result->status = status;
    memcpy(result->message, zb_error_message(), sizeof result->message);
    result->message[sizeof result->message - 1] = '\0';
}

static void judge(zb_verify_case *result, zb_status status, const zb_difference *difference)
{
    /* A difference found before a rank failed is the cause to name: it is the earlier event. */
    const int is_value = difference->found && difference->missing == ZB_MISSING_NONE;
    if (status != ZB_OK && !is_value) {
        fail_case(result, status);
    } else if (difference->found) {
        result->status = ZB_DIFFERENT;
        result->difference = *difference;
        memcpy(result->message, difference->text, sizeof difference->text);
    }
}

/* Run `main` on all ranks while the reference holds the matching step; then judge. */
static void runner_advance(runner *r, zb_rank_main *main, const zb_traffic *traffic)
{
    double begin = seconds_now();
    zb_difference difference;
    zb_compare_begin(r->compare, traffic);
    zb_status status = zb_sim_run(r->sim, main, r);
    zb_compare_finish(r->compare, &difference);
    judge(r->result, status, &difference);
    r->result->values_compared = zb_compare_value_count(r->compare);
    r->result->seconds += seconds_now() - begin;
}

/* The oracle has ended training in this step; so must every rank, after the same samples and losses. */
static void runner_end(runner *r, const char *reason)
{
    double begin = seconds_now();
    zb_verify_case *result = r->result;
    zb_difference difference;
    zb_compare_begin(r->compare, NULL);
    zb_status status = zb_sim_run(r->sim, end_rank, r);
    zb_compare_break_off(r->compare, &difference);
    judge(result, status, &difference);
    int ended = 0;
    for (int rank = 0; rank < result->world_size; rank++) ended += r->has_ended[rank];
    result->ended = result->status == ZB_OK && ended == result->world_size;
    if (result->ended)
        snprintf(result->message, sizeof result->message, "training ends in step %" PRId64 ": %s",
                 result->steps_done, reason);
    else if (result->status == ZB_OK)
        fail_case(result, zb_fail(ZB_DIFFERENT,
                                  "step %" PRId64 ": %d of %d ranks end training, where the oracle does: %s",
                                  result->steps_done, ended, result->world_size, reason));
    result->values_compared = zb_compare_value_count(r->compare);
    result->seconds += seconds_now() - begin;
}

static zb_status runner_step(runner *r, int skipped)
{
    zb_traffic traffic[ZB_COLLECTIVE_COUNT];
    ZB_TRY(zb_traffic_formula(r->options->config, r->options->model, &r->result->plan, r->result->stage,
                              &r->past, skipped, traffic));
    runner_advance(r, step_rank, traffic);
    if (r->past.steps++ == 0) r->past.first_skipped = skipped;
    r->past.previous_skipped = skipped;
    return ZB_OK;
}

/* What each rank owns of the trainable elements, from the public partition: not from what an engine shows. */
static zb_status runner_note_owners(runner *r)
{
    const zb_verify_case *result = r->result;
    r->owned_numel = zb_alloc_array((size_t)result->world_size, sizeof *r->owned_numel);
    if (r->owned_numel == NULL) return ZB_NO_MEMORY;
    for (int rank = 0; rank < result->world_size; rank++) {
        zb_partition partition;
        ZB_TRY(zb_partition_create(&(zb_partition_options){ .model = r->options->model,
                                                            .stage = result->stage,
                                                            .world_size = result->world_size,
                                                            .rank = rank,
                                                            .group_of = r->group_of,
                                                            .round_robin = result->plan.round_robin },
                                   &partition));
        r->owned_numel[rank] = partition.rank_numel - partition.padding;
        zb_partition_destroy(&partition);
    }
    return ZB_OK;
}

static zb_status runner_create(runner *r, const zb_reference *reference)
{
    const zb_verify_options *options = r->options;
    const zb_verify_case *result = r->result;
    size_t world_size = (size_t)result->world_size;
    r->devices = zb_alloc_array(world_size, sizeof *r->devices);
    if (r->devices == NULL) return ZB_NO_MEMORY;
    r->engines = zb_alloc_array(world_size, sizeof *r->engines);
    if (r->engines == NULL) return ZB_NO_MEMORY;
    r->has_ended = zb_alloc_array(world_size, sizeof *r->has_ended);
    if (r->has_ended == NULL) return ZB_NO_MEMORY;

    ZB_TRY(runner_note_owners(r));
    zb_compare_options compare_options = { .reference = reference,
                                           .whole_param_on_every_rank = result->stage < 3,
                                           .owned_numel = r->owned_numel };
    ZB_TRY(zb_memory_formula(options->config, options->model, &result->plan, result->stage,
                             compare_options.bytes_held));
    ZB_TRY(zb_compare_create(&compare_options, &r->compare));
    zb_sim_options sim_options = { .world_size = result->world_size,
                                   .workers = options->workers,
                                   .seed = options->sim_seed };
    return zb_sim_create(&sim_options, &r->sim);
}

static void runner_destroy(runner *r)
{
    for (int i = 0; i < r->result->world_size; i++) {
        if (r->engines != NULL) zb_engine_destroy(r->engines[i]);
        if (r->devices != NULL && r->devices[i] != NULL) zb_device_destroy(r->devices[i]);
    }
    if (r->sim != NULL) zb_sim_destroy(r->sim);
    zb_compare_destroy(r->compare);
    zb_free(r->engines);
    zb_free(r->devices);
    zb_free(r->owned_numel);
    zb_free(r->has_ended);
}

/* --- stages of one plan beside one oracle --- */

typedef struct group {
    const zb_verify_options *options;
    zb_ref *ref;
    zb_reference *reference;
    int *group_of; /* [param_count] the parameter group of each */
    runner runners[ZB_STAGE_COUNT];
    int runner_count;
    int64_t *done, total; /* for the progress report */
} group;

static int is_interrupted(const zb_verify_options *options)
{
    return options->interrupt != NULL && *options->interrupt != 0;
}

static int any_running(const group *g)
{
    for (int i = 0; i < g->runner_count; i++)
        if (is_running(&g->runners[i])) return 1;
    return 0;
}

static void report(const group *g, const zb_verify_case *current)
{
    const zb_verify_options *options = g->options;
    if (options->progress != NULL) options->progress(options->user, current, *g->done, g->total);
}

static zb_status create_oracle(group *g)
{
    const zb_verify_options *options = g->options;
    const zb_plan *plan = &g->runners[0].result->plan;
    zb_schedule_config schedules[ZB_PARAM_GROUP_MAX];
    zb_config_list_schedules(options->config, schedules);
    return zb_ref_create(&(zb_ref_options){ .plan = plan,
                                            .schedules = schedules,
                                            .group_of = g->group_of,
                                            .model = options->model,
                                            .weights = options->weights,
                                            .dataset = options->dataset,
                                            .route = g->runners[0].route,
                                            .sampler_seed = options->sampler_seed,
                                            .shuffle = 1,
                                            .drop_last = options->config->dataloader_drop_last,
                                            .reshuffle = plan->reshuffle },
                         &g->ref);
}

static zb_status group_create(group *g)
{
    const zb_verify_options *options = g->options;
    g->group_of = zb_alloc_array((size_t)options->model->param_count, sizeof *g->group_of);
    if (g->group_of == NULL) return ZB_NO_MEMORY;
    ZB_TRY(zb_config_assign_groups(options->config, options->model, g->group_of));
    ZB_TRY(create_oracle(g));
    ZB_TRY(zb_reference_create(options->model, &g->runners[0].result->plan, &g->reference));
    for (int i = 0; i < g->runner_count; i++) {
        g->runners[i].group_of = g->group_of;
        ZB_TRY(runner_create(&g->runners[i], g->reference));
    }
    return ZB_OK;
}

static void group_destroy(group *g)
{
    for (int i = 0; i < g->runner_count; i++) runner_destroy(&g->runners[i]);
    zb_reference_destroy(g->reference);
    if (g->ref != NULL) zb_ref_destroy(g->ref);
    zb_free(g->group_of);
}

static zb_status group_initialize(group *g)
{
    zb_observer observer = zb_reference_observer(g->reference);
    zb_reference_begin(g->reference, -1);
    ZB_TRY(zb_ref_observe_initial(g->ref, &observer));
    for (int i = 0; i < g->runner_count; i++) {
        report(g, g->runners[i].result);
        runner_advance(&g->runners[i], start_rank, NULL);
    }
    return ZB_OK;
}

static zb_status group_step(group *g, int64_t step)
{
    zb_observer observer = zb_reference_observer(g->reference);
    zb_reference_begin(g->reference, step);
    char end_reason[ZB_ERROR_MESSAGE_BYTES / 2]; /* with room for what is said around it */
    const zb_status status = zb_ref_step(g->ref, &observer);
    if (status == ZB_LOSS_SCALE)
        snprintf(end_reason, sizeof end_reason, "%s", zb_error_message());
    else if (status != ZB_OK)
        return status;
    for (int i = 0; i < g->runner_count; i++) {
        runner *r = &g->runners[i];
        if (is_running(r) && status == ZB_LOSS_SCALE) {
            runner_end(r, end_reason);
        } else if (is_running(r)) {
            ZB_TRY(runner_step(r, zb_reference_is_skipped(g->reference)));
            if (is_running(r)) r->result->steps_done++;
        }
        ++*g->done;
        report(g, r->result);
    }
    return ZB_OK;
}

static zb_status group_run(group *g)
{
    ZB_TRY(group_create(g));
    ZB_TRY(group_initialize(g));
    for (int64_t step = 0; step < g->options->steps && any_running(g); step++) {
        if (is_interrupted(g->options)) {
            const zb_verify_case *first = g->runners[0].result;
            return zb_fail(
                ZB_INTERRUPTED, "interrupted: stage %d, world %d, %s, before step %" PRId64 " of %" PRId64,
                first->stage, first->world_size, zb_dtype_name(first->dtype), step, g->options->steps);
        }
        ZB_TRY(group_step(g, step));
    }
    return ZB_OK;
}

/* --- all cases --- */

/* Whether both must give the same bits: equal plans, and where it matters every element added by the same
 * tree. */
static zb_status is_same_arithmetic(const zb_verify_case *a, const zb_route *route_a, const zb_verify_case *b,
                                    const zb_route *route_b, int *same_p)
{
    *same_p = zb_plan_equal(&a->plan, &b->plan);
    if (!*same_p || a->plan.orders == NULL) return ZB_OK;
    return zb_routes_add_alike(route_a, route_b, same_p);
}

/* The stages of one precision and world whose arithmetic is that of the first one not run yet. */
static zb_status take_group(group *g, zb_verify_case *cases, const zb_route *routes, int count, int *is_taken)
{
    int first = -1;
    g->runner_count = 0;
    for (int i = 0; i < count; i++) {
        int same = !is_taken[i];
        if (same && first >= 0)
            ZB_TRY(is_same_arithmetic(&cases[first], &routes[first], &cases[i], &routes[i], &same));
        if (!same) continue;
        if (first < 0) first = i;
        is_taken[i] = 1;
        g->runners[g->runner_count++] = (runner){ .options = g->options,
                                                  .result = &cases[i],
                                                  .route = cases[i].plan.orders != NULL ? &routes[i] : NULL };
    }
    return ZB_OK;
}

static zb_status run_groups(const zb_verify_options *options, zb_verify_case *cases, const zb_route *routes,
                            int64_t *done, int64_t total)
{
    int is_taken[ZB_STAGE_COUNT] = { 0 };
    group g = { .options = options, .done = done, .total = total };
    for (;;) {
        ZB_TRY(take_group(&g, cases, routes, options->stage_count, is_taken));
        if (g.runner_count == 0) return ZB_OK;
        int64_t done_before = *done;
        g.ref = NULL;
        g.reference = NULL;
        zb_status status = group_run(&g);
        group_destroy(&g);
        if (status != ZB_OK) return status;
        /* A group whose engines all stopped early is done all the same. */
        *done = done_before + g.runner_count * options->steps;
    }
}

static zb_status create_routes(const zb_verify_options *options, const zb_verify_case *cases,
                               zb_route *routes)
{
    for (int i = 0; i < options->stage_count; i++) {
        const zb_verify_case *c = &cases[i];
        if (c->plan.orders == NULL) continue;
        if (zb_route_create(options->config, options->model, &c->plan, c->stage, &routes[i]) != ZB_OK)
            return zb_fail_context("stage %d, world %d, %s", c->stage, c->world_size,
                                   zb_dtype_name(c->dtype));
    }
    return ZB_OK;
}

/* All stages of one precision and world. */
static zb_status run_world(const zb_verify_options *options, zb_verify_case *cases, int64_t *done,
                           int64_t total)
{
    zb_route routes[ZB_STAGE_COUNT] = { 0 };
    zb_status status = create_routes(options, cases, routes);
    if (status == ZB_OK) status = run_groups(options, cases, routes, done, total);
    for (int i = 0; i < options->stage_count; i++) zb_route_destroy(&routes[i]);
    return status;
}

static zb_status check_list(const char *what, const int *values, int count, int min, int max)
{
    if (count < 1) return zb_fail(ZB_INVALID_ARGUMENT, "no %s given", what);
    for (int i = 0; i < count; i++) {
        if (values[i] < min || values[i] > max)
            return zb_fail(ZB_INVALID_ARGUMENT, "%s %d, want %d to %d", what, values[i], min, max);
        for (int j = 0; j < i; j++)
            if (values[j] == values[i])
                return zb_fail(ZB_INVALID_ARGUMENT, "%s %d given twice", what, values[i]);
    }
    return ZB_OK;
}

enum { WORLD_SIZE_MAX = 65536 };

/* A precision that is none is zb_plan_derive's to refuse. */
static zb_status check_dtypes(const zb_dtype *dtypes, int count)
{
    if (count < 1) return zb_fail(ZB_INVALID_ARGUMENT, "no precision given");
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++)
            if (dtypes[j] == dtypes[i])
                return zb_fail(ZB_INVALID_ARGUMENT, "precision %s given twice", zb_dtype_name(dtypes[i]));
    return ZB_OK;
}

/* Each engine would refuse it; so would all of them, which is one bad input and not many failed cases. */
static zb_status check_model(const zb_model *model)
{
    for (int p = 0; p < model->param_count; p++)
        if (model->params[p].requires_grad && model->params[p].numel > 0) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "model %s has no trainable element: nothing to verify", model->name);
}

static zb_status check_options(const zb_verify_options *options)
{
    ZB_ASSERT(options->config != NULL && options->model != NULL && options->weights != NULL &&
              options->dataset != NULL);
    if (zb_simd_level() == NULL) return ZB_INVALID_ARGUMENT; /* said by zb_simd_level */
    ZB_TRY(check_model(options->model));
    ZB_TRY(check_list("stage", options->stages, options->stage_count, 0, ZB_STAGE_COUNT - 1));
    ZB_TRY(check_list("world", options->worlds, options->world_count, 1, WORLD_SIZE_MAX));
    ZB_TRY(check_dtypes(options->dtypes, options->dtype_count));
    if (options->workers < 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "%d workers, want 0 (one per core) or more", options->workers);
    if (options->steps < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "%" PRId64 " steps, want at least 1", options->steps);
    return ZB_OK;
}

/* Fill in what is known before anything runs; so a bad batch in the last case is found at once. */
static zb_status plan_cases(const zb_verify_options *options, zb_verify_case *cases)
{
    zb_verify_case *c = cases;
    for (int d = 0; d < options->dtype_count; d++) {
        for (int w = 0; w < options->world_count; w++) {
            for (int s = 0; s < options->stage_count; s++, c++) {
                *c = (zb_verify_case){ .stage = options->stages[s],
                                       .dtype = options->dtypes[d],
                                       .world_size = options->worlds[w] };
                if (zb_plan_derive(options->config, c->stage, c->dtype, c->world_size, &c->plan) != ZB_OK)
                    return zb_fail_context("stage %d, world %d, %s", c->stage, c->world_size,
                                           zb_dtype_name(c->dtype));
            }
        }
    }
    return ZB_OK;
}

zb_status zb_verify(const zb_verify_options *options, zb_verify_case *cases)
{
    ZB_TRY(check_options(options));
    ZB_TRY(plan_cases(options, cases));

    int case_count = options->dtype_count * options->world_count * options->stage_count;
    int64_t done = 0, total;
    if (__builtin_mul_overflow(case_count, options->steps, &total))
        return zb_fail(ZB_INVALID_ARGUMENT, "%" PRId64 " steps of %d cases are more than can be counted",
                       options->steps, case_count);
    for (int first = 0; first < case_count; first += options->stage_count) {
        zb_status status = run_world(options, cases + first, &done, total);
        if (status == ZB_OK) continue;
        for (int i = 0; i < case_count; i++)
            if (cases[i].status == ZB_OK && !cases[i].ended && cases[i].steps_done < options->steps)
                fail_case(&cases[i], status);
        return status;
    }
    for (int i = 0; i < case_count; i++)
        if (cases[i].status != ZB_OK)
            return zb_fail(ZB_DIFFERENT, "stage %d, world %d, %s: %s", cases[i].stage, cases[i].world_size,
                           zb_dtype_name(cases[i].dtype), cases[i].message);
    return ZB_OK;
}
