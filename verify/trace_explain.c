/*
 * Which order of addition the reduced gradients of a trace show: what ranks sent is put into the collectives
 * of the route, the gradients that came of it are put beside it, and orders.h says how the one became the
 * other.
 */
#include <zerobit/trace.h>

#include "verify/explain_run.h"
#include "verify/trace_reader.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

/* --- one trace, at one step --- */

typedef struct side {
    const char *path;
    zb_trace_reader *reader;
    const zb_trace_info *info;
    zb_explained_run run; /* its step is the one under way; empty at the end */
} side;

static zb_status open_side(const char *path, side *s)
{
    s->path = path;
    ZB_TRY(zb_trace_reader_open(path, &s->reader));
    s->info = zb_trace_reader_info(s->reader);
    s->run = (zb_explained_run){ .name = path,
                                 .params = s->info->params,
                                 .world_size = s->info->world_size,
                                 .plan = &s->info->plan,
                                 .route = &s->info->route };
    return ZB_OK;
}

static int64_t step_of(const side *s)
{
    return zb_explained_step(&s->run);
}

/* On to the given step, or to the first after it. */
static zb_status go_to(side *s, int64_t step)
{
    do ZB_TRY(zb_trace_reader_next_step(s->reader, &s->run.step));
    while (step_of(s) < step);
    return ZB_OK;
}

static zb_status check_can_explain(const side *from)
{
    if (!from->info->has_route)
        return zb_fail(ZB_INVALID_ARGUMENT, "%s: holds no route of its gradients, so no order can be told",
                       from->path);
    if (from->info->plan.averaging.absent)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "%s: its plan sends no gradients, so that there is no sum to explain", from->path);
    if (zb_explained_contribution(&from->run) == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "%s: step %" PRId64 " holds no contributions, so no order can be told", from->path,
                       step_of(from));
    return ZB_OK;
}

static zb_status check_worlds(const side *a, const side *b)
{
    ZB_TRY(zb_trace_check_models(a->path, a->info, b->path, b->info));
    if (a->info->world_size == b->info->world_size) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "%s is of a world of %d, %s of %d: sums of other ranks cannot be explained", a->path,
                   a->info->world_size, b->path, b->info->world_size);
}

/* --- every collective of a step --- */

/* On to the step that is asked for, or to the first whose gradients differ. */
static zb_status find_step(side *a, side *b, int64_t step, int *found_p)
{
    *found_p = 0;
    ZB_TRY(go_to(a, step >= 0 ? step : 0));
    ZB_TRY(go_to(b, step >= 0 ? step : 0));
    while (step_of(a) != INT64_MAX || step_of(b) != INT64_MAX) {
        if (step_of(a) != step_of(b) || (step >= 0 && step_of(a) != step)) break;
        ZB_TRY(check_can_explain(a));
        *found_p = step >= 0;
        if (step < 0) ZB_TRY(zb_explained_gradients_differ(&a->run, &b->run, found_p));
        if (*found_p) return ZB_OK;
        ZB_TRY(go_to(a, 0));
        ZB_TRY(go_to(b, 0));
    }
    if (step < 0 && step_of(a) == step_of(b)) return ZB_OK; /* both have ended */
    const int a_lacks = step >= 0 ? step_of(a) != step : step_of(a) > step_of(b);
    if (step < 0) step = a_lacks ? step_of(b) : step_of(a);
    return zb_fail(ZB_INVALID_ARGUMENT, "%s: holds no step %" PRId64, a_lacks ? a->path : b->path, step);
}

static zb_status explain_step(const side *a, const side *b, zb_trace_explanation *out)
{
    zb_orders expected;
    ZB_TRY(zb_orders_parse(a->info->orders, &expected));
    out->step = step_of(a);
    out->collectives = zb_alloc_array(a->info->route.count, sizeof *out->collectives);
    zb_status status = out->collectives != NULL ? ZB_OK : ZB_NO_MEMORY;
    while (status == ZB_OK && out->count < a->info->route.count) {
        status = zb_explain_collective(&a->run, &b->run, &expected, out->count,
                                       &out->collectives[out->count]);
        if (status == ZB_OK) out->count++;
    }
    zb_orders_destroy(&expected);
    return status;
}

static zb_status explain_traces(side *a, side *b, int64_t step, zb_trace_explanation *out)
{
    int found;
    ZB_TRY(check_worlds(a, b));
    if (!a->info->has_route) return check_can_explain(a);
    ZB_TRY(find_step(a, b, step, &found));
    return found ? explain_step(a, b, out) : ZB_OK;
}

/* A damaged file gets no verdict, wherever the damage is. */
static zb_status read_to_end(side *s)
{
    while (step_of(s) != INT64_MAX) ZB_TRY(go_to(s, 0));
    return ZB_OK;
}

zb_status zb_trace_explain(const char *contributions_path, const char *gradients_path, int64_t step,
                           zb_trace_explanation *explanation_p)
{
    side a = { 0 }, b = { 0 };
    zb_trace_explanation made = { .step = -1 };
    zb_status status = open_side(contributions_path, &a);
    if (status == ZB_OK) status = open_side(gradients_path, &b);
    if (status == ZB_OK) status = explain_traces(&a, &b, step, &made);
    if (status == ZB_OK) status = read_to_end(&a);
    if (status == ZB_OK) status = read_to_end(&b);
    zb_trace_reader_destroy(a.reader);
    zb_trace_reader_destroy(b.reader);
    if (status == ZB_OK)
        *explanation_p = made;
    else
        zb_trace_explanation_destroy(&made);
    return status;
}

void zb_trace_explanation_destroy(zb_trace_explanation *explanation)
{
    zb_free(explanation->collectives);
    *explanation = (zb_trace_explanation){ .step = -1 };
}

/* --- the collective of a difference --- */

static int holds(const side *s, const zb_difference *difference)
{
    return s->info->has_route && !s->info->plan.averaging.absent &&
           zb_explained_contribution(&s->run) != NULL &&
           zb_explained_collective_of(&s->run, difference) < s->info->route.count;
}

/* The gradients of `of`, explained by what `from` holds, behind what is in the text. */
static zb_status add_explanation(const side *from, const side *of, const zb_orders *expected,
                                 const zb_difference *difference, char *text, size_t bytes,
                                 int *as_expected_p)
{
    zb_trace_collective *told = zb_alloc(sizeof *told);
    if (told == NULL) return ZB_NO_MEMORY;
    const size_t used = strlen(text);
    zb_status status = zb_explain_collective(&from->run, &of->run, expected,
                                             zb_explained_collective_of(&from->run, difference), told);
    *as_expected_p = told->explanation.as_expected;
    if (status == ZB_OK)
        snprintf(text + used, bytes - used, "%s%s: %s", used > 0 ? "\n" : "", of->path, told->text);
    zb_free(told);
    return status;
}

static zb_status explain_difference(side *a, side *b, const zb_difference *difference, char *text,
                                    size_t bytes)
{
    int as_expected;
    zb_orders expected;
    if (a->info->world_size != b->info->world_size) return ZB_OK;
    ZB_TRY(go_to(a, difference->step));
    ZB_TRY(go_to(b, difference->step));
    const int a_holds = holds(a, difference), b_holds = holds(b, difference);
    if (!a_holds && !b_holds) return ZB_OK;
    ZB_TRY(zb_orders_parse(a->info->orders, &expected));
    zb_status status = add_explanation(b_holds ? b : a, b, &expected, difference, text, bytes, &as_expected);
    /* Then it is the other one that is not as it should be. */
    if (status == ZB_OK && as_expected)
        status = add_explanation(a_holds ? a : b, a, &expected, difference, text, bytes, &as_expected);
    zb_orders_destroy(&expected);
    return status;
}

zb_status zb_trace_explain_difference(const char *path_a, const char *path_b, const zb_difference *difference,
                                      char *text, size_t text_bytes)
{
    side a = { 0 }, b = { 0 };
    ZB_ASSERT(text_bytes > 0);
    text[0] = '\0';
    if (!difference->found || difference->quantity != ZB_Q_GRAD || difference->missing != ZB_MISSING_NONE)
        return ZB_OK;
    zb_status status = open_side(path_a, &a);
    if (status == ZB_OK) status = open_side(path_b, &b);
    if (status == ZB_OK) status = explain_difference(&a, &b, difference, text, text_bytes);
    zb_trace_reader_destroy(a.reader);
    zb_trace_reader_destroy(b.reader);
    return status;
}
