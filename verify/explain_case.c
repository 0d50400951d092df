/* Order or value; see explain_case.h. */
#include "verify/explain_case.h"

#include <stdio.h>
#include <string.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>

#include "verify/explain_run.h"
#include "verify/oracle.h"

int zb_case_is_explainable(const zb_verify_case *result)
{
    const zb_difference *d = &result->difference;
    return result->status == ZB_DIFFERENT && d->found && d->missing == ZB_MISSING_NONE &&
           d->quantity == ZB_Q_GRAD && !result->plan.averaging.absent && result->world_size > 1;
}

/* --- what ranks should have sent --- */

typedef struct collector {
    zb_record_list *list;
    int64_t step; /* that is wanted */
} collector;

static zb_status collect(void *user, const zb_observation *o)
{
    const collector *c = user;
    void *values;
    if (o->quantity != ZB_Q_CONTRIBUTION || o->step != c->step) return ZB_OK;
    ZB_TRY(zb_record_list_append(c->list, o, &values));
    memcpy(values, o->data, o->numel * zb_dtype_bytes(o->dtype));
    return ZB_OK;
}

static zb_status run_oracle(const zb_oracle_options *options, int64_t step, zb_record_list *list)
{
    zb_ref *ref;
    collector c = { list, step };
    const zb_observer observer = { collect, &c };
    ZB_TRY(zb_oracle_create(options, &ref));
    zb_status status = ZB_OK;
    for (int64_t s = 0; s <= step && status == ZB_OK; s++) status = zb_ref_step(ref, &observer);
    zb_ref_destroy(ref);
    if (status == ZB_OK) zb_record_list_seal(list);
    return status;
}

/* --- both sides --- */

/* Where several ranks hold an element, the one that differs is meant: it is put in front of all others. */
static void put_first(zb_record_list *gradients, int rank)
{
    for (size_t i = 0; i < gradients->count; i++)
        if (gradients->records[i].rank == rank) gradients->records[i].rank = ZB_EVERY_RANK;
    zb_record_list_seal(gradients);
}

static zb_status explain(const zb_verify_options *options, const zb_route *route, const zb_record_list *sent,
                         const zb_record_list *gradients, zb_verify_case *result)
{
    const zb_plan *plan = &result->plan;
    const zb_trace_plan of_trace = { .accumulation_steps = plan->accumulation_steps,
                                     .local_dtype = plan->local_dtype,
                                     .bucket_dtype = plan->bucket_dtype,
                                     .comm_dtype = plan->comm_dtype,
                                     .grad_dtype = plan->grad_dtype,
                                     .reduce_when = plan->reduce_when,
                                     .averaging = plan->averaging };
    const zb_explained_run oracle = { .name = "the oracle",
                                      .params = options->model->params,
                                      .world_size = plan->world_size,
                                      .plan = &of_trace,
                                      .route = route,
                                      .step = sent };
    zb_explained_run engine = oracle;
    engine.name = "the engine";
    engine.step = gradients;
    const size_t index = zb_explained_collective_of(&oracle, &result->difference);
    if (index == route->count)
        return zb_fail(ZB_INTERNAL, "%s is in no collective of the stage's route", result->difference.tensor);
    zb_trace_collective *told = zb_alloc(sizeof *told);
    if (told == NULL) return ZB_NO_MEMORY;
    const zb_status status = zb_explain_collective(&oracle, &engine, plan->orders, index, told);
    if (status == ZB_OK) {
        result->is_explained = 1;
        result->verdict = told->explanation.verdict;
        snprintf(result->explanation, sizeof result->explanation, "%s", told->text);
    }
    zb_free(told);
    return status;
}

zb_status zb_case_explain(const zb_verify_options *options, const int *group_of, zb_record_list *gradients,
                          zb_verify_case *result)
{
    zb_route route;
    zb_record_list sent = { 0 };
    ZB_TRY(zb_route_create(options->config, options->model, &result->plan, result->stage, &route));
    const zb_oracle_options oracle = { .verify = options,
                                       .plan = &result->plan,
                                       .group_of = group_of,
                                       .route = result->plan.orders != NULL ? &route : NULL,
                                       .with_contributions = 1 };
    put_first(gradients, result->difference.rank_b);
    zb_status status = run_oracle(&oracle, result->difference.step, &sent);
    if (status == ZB_OK) status = explain(options, &route, &sent, gradients, result);
    zb_record_list_destroy(&sent);
    zb_route_destroy(&route);
    return status;
}
