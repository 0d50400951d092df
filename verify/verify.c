/*
 * The ladder's first rungs: for every precision and world one oracle run per class of stages, and in lockstep
 * with it the engines of the class, each on a world of its own. After every step each engine is held against
 * the oracle; one that differs stops there, the others go on.
 */
#include <zerobit/verify.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/engine.h>
#include <zerobit/kernels.h>
#include <zerobit/memory.h>
#include <zerobit/ref.h>

#include "verify/classes.h"
#include "verify/oracle.h"
#include "verify/runner.h"

/* --- one class of stages beside one oracle --- */

typedef struct group {
    const zb_verify_options *options;
    zb_ref *ref; /* like the next: NULL where nobody judges */
    zb_reference *reference;
    int *group_of; /* [param_count] the parameter group of each */
    zb_runner runners[ZB_STAGE_COUNT];
    int runner_count;
    const zb_route *route;     /* NULL: rank order */
    zb_first_gradients *first; /* to be taken from the oracle; NULL: not wanted */
    int64_t *done, total;      /* for the progress report */
} group;

static int judges(const zb_verify_options *options)
{
    return options->comm == NULL || options->comm->rank == 0;
}

static int is_interrupted(const zb_verify_options *options)
{
    return options->interrupt != NULL && *options->interrupt != 0;
}

static int any_running(const group *g)
{
    for (int i = 0; i < g->runner_count; i++)
        if (zb_runner_is_running(&g->runners[i])) return 1;
    return 0;
}

static void report(const group *g, const zb_verify_case *current)
{
    const zb_verify_options *options = g->options;
    if (options->progress != NULL) options->progress(options->user, current, *g->done, g->total);
}

static zb_status create_oracle(group *g)
{
    const zb_plan *plan = &g->runners[0].result->plan;
    const zb_oracle_options options = { .verify = g->options,
                                        .plan = plan,
                                        .group_of = g->group_of,
                                        .route = g->route,
                                        .with_contributions = g->options->contributions,
                                        .with_bounds = g->first != NULL };
    ZB_TRY(zb_oracle_create(&options, &g->ref));
    return zb_reference_create(g->options->model, plan, g->options->contributions, &g->reference);
}

static zb_status group_create(group *g)
{
    const zb_verify_options *options = g->options;
    g->group_of = zb_alloc_array((size_t)options->model->param_count, sizeof *g->group_of);
    if (g->group_of == NULL) return ZB_NO_MEMORY;
    ZB_TRY(zb_config_assign_groups(options->config, options->model, g->group_of));
    if (judges(options)) ZB_TRY(create_oracle(g));
    for (int i = 0; i < g->runner_count; i++) {
        g->runners[i].group_of = g->group_of;
        ZB_TRY(zb_runner_create(&g->runners[i], g->reference));
    }
    return ZB_OK;
}

static void group_destroy(group *g)
{
    for (int i = 0; i < g->runner_count; i++) zb_runner_destroy(&g->runners[i]);
    zb_reference_destroy(g->reference);
    if (g->ref != NULL) zb_ref_destroy(g->ref);
    zb_free(g->group_of);
}

static zb_status group_initialize(group *g)
{
    if (g->ref != NULL) {
        zb_observer observer = zb_reference_observer(g->reference);
        zb_reference_begin(g->reference, -1);
        ZB_TRY(zb_ref_observe_initial(g->ref, &observer));
    }
    for (int i = 0; i < g->runner_count; i++) {
        report(g, g->runners[i].result);
        ZB_TRY(zb_runner_start(&g->runners[i]));
    }
    return ZB_OK;
}

/* What the oracle says of a step, in every process of a spread world. */
typedef enum verdict { GOES_ON, SKIPS, ENDS, INTERRUPTED } verdict;

static zb_status run_oracle(group *g, int64_t step, verdict *verdict_p, char *end_reason, size_t reason_bytes)
{
    if (is_interrupted(g->options)) {
        *verdict_p = INTERRUPTED;
        return ZB_OK;
    }
    zb_observer observer = zb_reference_observer(g->reference);
    zb_reference_begin(g->reference, step);
    const zb_status status = zb_ref_step(g->ref, &observer);
    if (status != ZB_OK && status != ZB_LOSS_SCALE) return status;
    if (status == ZB_LOSS_SCALE) snprintf(end_reason, reason_bytes, "%s", zb_error_message());
    *verdict_p = status == ZB_LOSS_SCALE ? ENDS : zb_reference_is_skipped(g->reference) ? SKIPS : GOES_ON;
    if (*verdict_p == ENDS || step > 0 || g->first == NULL) return ZB_OK;
    return zb_first_gradients_take(g->ref, g->options->model, g->runners[0].result, g->first);
}

static zb_status fail_interrupted(const group *g, int64_t step)
{
    const zb_verify_case *first = g->runners[0].result;
    return zb_fail(ZB_INTERRUPTED, "interrupted: stage %d, world %d, %s, before step %" PRId64 " of %" PRId64,
                   first->stage, first->world_size, zb_dtype_name(first->dtype), step, g->options->steps);
}

static zb_status group_step(group *g, int64_t step)
{
    char end_reason[ZB_ERROR_MESSAGE_BYTES / 2] = ""; /* with room for what is said around it */
    verdict oracle = GOES_ON;
    if (g->ref != NULL) ZB_TRY(run_oracle(g, step, &oracle, end_reason, sizeof end_reason));
    int64_t word = oracle;
    ZB_TRY(zb_world_agree(g->runners[0].world, &word, 1));
    if (word == INTERRUPTED) return fail_interrupted(g, step);
    for (int i = 0; i < g->runner_count; i++) {
        zb_runner *r = &g->runners[i];
        if (zb_runner_is_running(r))
            ZB_TRY(word == ENDS ? zb_runner_end(r, end_reason) : zb_runner_step(r, word == SKIPS));
        ++*g->done;
        report(g, r->result);
    }
    return ZB_OK;
}

static zb_status group_run(group *g)
{
    ZB_TRY(group_create(g));
    ZB_TRY(group_initialize(g));
    for (int64_t step = 0; step < g->options->steps && any_running(g); step++) ZB_TRY(group_step(g, step));
    return ZB_OK;
}

/* --- all stages of one precision and world --- */

typedef struct world {
    const zb_verify_options *options;
    zb_verify_case *cases; /* [stage_count] */
    zb_route routes[ZB_STAGE_COUNT];
    int class_count;
    zb_first_gradients first[ZB_STAGE_COUNT]; /* by class */
} world;

static group group_of_class(world *w, int equality_class)
{
    group g = { .options = w->options };
    for (int i = 0; i < w->options->stage_count; i++) {
        if (w->cases[i].equality_class != equality_class) continue;
        if (g.runner_count == 0 && w->cases[i].plan.orders != NULL) g.route = &w->routes[i];
        g.runners[g.runner_count++] = (zb_runner){ .options = w->options, .result = &w->cases[i] };
    }
    if (w->class_count > 1 && judges(w->options)) g.first = &w->first[equality_class];
    return g;
}

/* Where two classes are too far apart the later one is what differs. */
static void relate(world *w, int class_a, int class_b)
{
    zb_verify_relation relation;
    if (w->first[class_a].of == NULL || w->first[class_b].of == NULL) return;
    zb_classes_relate(w->options->model, &w->first[class_a], &w->first[class_b], &relation);
    if (w->options->relation != NULL) w->options->relation(w->options->user, &relation);
    for (int i = 0; relation.status != ZB_OK && i < w->options->stage_count; i++) {
        zb_verify_case *c = &w->cases[i];
        if (c->equality_class != class_b || c->status != ZB_OK) continue;
        c->status = relation.status;
        memcpy(c->message, relation.message, sizeof relation.message);
    }
}

/* Of a spread world only rank 0 relates, and no rank may call equal what another calls different. */
static zb_status share_relations(world *w)
{
    int64_t words[ZB_STAGE_COUNT];
    zb_comm *comm = w->options->comm;
    if (comm == NULL || w->class_count == 1) return ZB_OK;
    for (int i = 0; i < w->options->stage_count; i++) words[i] = w->cases[i].status;
    ZB_TRY(zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_BROADCAST, .recv = words,
                             .numel = (size_t)w->options->stage_count, .dtype = ZB_INT64,
                             .what = "what holds between the classes"));
    for (int i = 0; i < w->options->stage_count; i++) {
        zb_verify_case *c = &w->cases[i];
        if (c->status != ZB_OK || words[i] == ZB_OK) continue;
        zb_case_fail(c, zb_fail((zb_status)words[i], "rank 0 says how it stands to another class of stages"));
    }
    return ZB_OK;
}

static zb_status run_classes(world *w, int64_t *done, int64_t total)
{
    for (int k = 0; k < w->class_count; k++) {
        const int64_t done_before = *done;
        group g = group_of_class(w, k);
        g.done = done;
        g.total = total;
        const zb_status status = group_run(&g);
        group_destroy(&g);
        if (status != ZB_OK) return status;
        /* A group whose engines all stopped early is done all the same. */
        *done = done_before + g.runner_count * w->options->steps;
        for (int before = 0; before < k; before++) relate(w, before, k);
    }
    return share_relations(w);
}

static zb_status create_routes(world *w)
{
    for (int i = 0; i < w->options->stage_count; i++) {
        const zb_verify_case *c = &w->cases[i];
        if (c->plan.orders == NULL) continue;
        if (zb_route_create(w->options->config, w->options->model, &c->plan, c->stage, &w->routes[i]) !=
            ZB_OK)
            return zb_fail_context("stage %d, world %d, %s", c->stage, c->world_size,
                                   zb_dtype_name(c->dtype));
    }
    return ZB_OK;
}

static void world_close(world *w)
{
    for (int i = 0; i < ZB_STAGE_COUNT; i++) {
        zb_route_destroy(&w->routes[i]);
        zb_first_gradients_destroy(&w->first[i]);
    }
}

/* What is known before anything runs: an order that some stage cannot have is found at once. */
static zb_status world_open(const zb_verify_options *options, zb_verify_case *cases, world *w)
{
    *w = (world){ .options = options, .cases = cases };
    zb_status status = create_routes(w);
    if (status == ZB_OK) status = zb_classes_find(cases, w->routes, options->stage_count, &w->class_count);
    if (status != ZB_OK) world_close(w);
    return status;
}

/* --- all cases --- */

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

static zb_status check_worlds(const zb_verify_options *options)
{
    ZB_TRY(check_list("world", options->worlds, options->world_count, 1, WORLD_SIZE_MAX));
    if (options->comm == NULL) return ZB_OK;
    if (options->world_count == 1 && options->worlds[0] == options->comm->world_size) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT, "world %d%s on %d processes, want %d and no other",
                   options->worlds[0], options->world_count > 1 ? " and others" : "",
                   options->comm->world_size, options->comm->world_size);
}

static zb_status check_options(const zb_verify_options *options)
{
    ZB_ASSERT(options->config != NULL && options->model != NULL && options->weights != NULL &&
              options->dataset != NULL);
    if (zb_simd_level() == NULL) return ZB_INVALID_ARGUMENT; /* said by zb_simd_level */
    ZB_TRY(check_model(options->model));
    ZB_TRY(check_list("stage", options->stages, options->stage_count, 0, ZB_STAGE_COUNT - 1));
    ZB_TRY(check_worlds(options));
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
                                       .world_size = options->worlds[w],
                                       .ranks = options->comm != NULL ? options->comm->ops->name : "sim",
                                       .device = options->devices != NULL ? options->devices->name : "cpu" };
                if (zb_plan_derive(options->config, c->stage, c->dtype, c->world_size, &c->plan) != ZB_OK)
                    return zb_fail_context("stage %d, world %d, %s", c->stage, c->world_size,
                                           zb_dtype_name(c->dtype));
            }
            world checked;
            ZB_TRY(world_open(options, c - options->stage_count, &checked));
            world_close(&checked);
        }
    }
    return ZB_OK;
}

static zb_status run_world(const zb_verify_options *options, zb_verify_case *cases, int64_t *done,
                           int64_t total)
{
    world w;
    ZB_TRY(world_open(options, cases, &w));
    const zb_status status = run_classes(&w, done, total);
    world_close(&w);
    return status;
}

static zb_status run_all(const zb_verify_options *options, zb_verify_case *cases, int case_count)
{
    int64_t done = 0, total;
    if (__builtin_mul_overflow(case_count, options->steps, &total))
        return zb_fail(ZB_INVALID_ARGUMENT, "%" PRId64 " steps of %d cases are more than can be counted",
                       options->steps, case_count);
    for (int first = 0; first < case_count; first += options->stage_count) {
        zb_status status = run_world(options, cases + first, &done, total);
        if (status == ZB_OK) continue;
        for (int i = 0; i < case_count; i++)
            if (cases[i].status == ZB_OK && !cases[i].ended && cases[i].steps_done < options->steps)
                zb_case_fail(&cases[i], status);
        return status;
    }
    for (int i = 0; i < case_count; i++)
        if (cases[i].status != ZB_OK)
            return zb_fail(ZB_DIFFERENT, "stage %d, world %d, %s: %s", cases[i].stage, cases[i].world_size,
                           zb_dtype_name(cases[i].dtype), cases[i].message);
    return ZB_OK;
}

zb_status zb_verify_plan(const zb_verify_options *options, zb_verify_case *cases)
{
    ZB_TRY(check_options(options));
    return plan_cases(options, cases);
}

zb_status zb_verify(const zb_verify_options *options, zb_verify_case *cases)
{
    const int case_count = options->dtype_count * options->world_count * options->stage_count;
    zb_status status = zb_verify_plan(options, cases);
    if (status == ZB_OK) status = run_all(options, cases, case_count);
    /* The others must not wait for this rank; a difference and an interruption they know of. */
    if (options->comm != NULL && status != ZB_OK && status != ZB_DIFFERENT && status != ZB_INTERRUPTED &&
        status != ZB_REMOTE)
        zb_comm_fail(options->comm, status, zb_error_message());
    return status;
}
