/* Classes of stages; see classes.h. */
#include "verify/classes.h"

#include <math.h>
#include <stdio.h>
#include <zerobit/memory.h>

/* --- which stages are one class --- */

static zb_status is_same_arithmetic(const zb_verify_case *a, const zb_route *route_a, const zb_verify_case *b,
                                    const zb_route *route_b, int *same_p)
{
    *same_p = zb_plan_equal(&a->plan, &b->plan);
    if (!*same_p || a->plan.orders == NULL) return ZB_OK;
    return zb_routes_add_alike(route_a, route_b, same_p);
}

zb_status zb_classes_find(zb_verify_case *cases, const zb_route *routes, int count, int *class_count_p)
{
    int class_count = 0;
    for (int i = 0; i < count; i++) {
        cases[i].equality_class = class_count;
        for (int k = 0; k < i && cases[i].equality_class == class_count; k++) {
            int same;
            ZB_TRY(is_same_arithmetic(&cases[k], &routes[k], &cases[i], &routes[i], &same));
            if (same) cases[i].equality_class = cases[k].equality_class;
        }
        class_count += cases[i].equality_class == class_count;
    }
    *class_count_p = class_count;
    return ZB_OK;
}

/* --- first gradients --- */

zb_status zb_first_gradients_take(const zb_ref *ref, const zb_model *model, const zb_verify_case *of,
                                  zb_first_gradients *first)
{
    zb_first_gradients taken = { .of = of, .roundings = zb_ref_gradient_roundings(ref) };
    taken.gradients = zb_alloc_array(model->param_numel, sizeof *taken.gradients);
    taken.bounds = zb_alloc_array(model->param_numel, sizeof *taken.bounds);
    taken.magnitudes = zb_alloc_array(model->param_numel, sizeof *taken.magnitudes);
    if (taken.gradients == NULL || taken.bounds == NULL || taken.magnitudes == NULL) {
        zb_first_gradients_destroy(&taken);
        return ZB_NO_MEMORY;
    }
    size_t at = 0;
    for (int p = 0; p < model->param_count; at += model->params[p++].numel)
        zb_ref_first_gradient(ref, p, taken.gradients + at, taken.bounds + at, taken.magnitudes + at);
    *first = taken;
    return ZB_OK;
}

void zb_first_gradients_destroy(zb_first_gradients *first)
{
    zb_free(first->gradients);
    zb_free(first->bounds);
    zb_free(first->magnitudes);
    *first = (zb_first_gradients){ 0 };
}

/* --- between classes --- */

static double total_factor(const zb_plan *plan)
{
    const zb_averaging *averaging = &plan->averaging;
    const zb_factor factors[] = { averaging->in_bucket, averaging->before[0], averaging->before[1],
                                  averaging->after };
    double total = averaging->inside ? 1.0 / plan->world_size : 1.0;
    for (size_t i = 0; i < sizeof factors / sizeof factors[0]; i++) {
        if (factors[i].kind == ZB_FACTOR_MULTIPLY) total *= (double)factors[i].by;
        if (factors[i].kind == ZB_FACTOR_DIVIDE) total /= (double)factors[i].by;
    }
    return total;
}

static double first_seed(const zb_plan *plan)
{
    return plan->loss_is_scaled ? plan->scaler.initial_scale : 1.0;
}

/* Why the gradients differ by more than rounding; NULL: they must not. Factors that were meant to be the same
 * may have been rounded to fp32 in different places: that much is in the bound. */
static const char *what_differs(const zb_plan *a, const zb_plan *b)
{
    if (a->averaging.absent || b->averaging.absent) return "gradients are not averaged in one of them";
    if (first_seed(a) != first_seed(b) || a->seed_dtype != b->seed_dtype)
        return "the losses are scaled differently";
    if (fabs(total_factor(a) / total_factor(b) - 1) > 1e-6)
        return "averages are divided by different numbers";
    return NULL;
}

static void describe_element(const zb_model *model, const zb_first_gradients *a, const zb_first_gradients *b,
                             size_t element, double bound, zb_verify_relation *relation)
{
    int param = 0;
    size_t first = 0;
    while (element >= first + model->params[param].numel) first += model->params[param++].numel;
    relation->status = ZB_DIFFERENT;
    snprintf(
        relation->message, sizeof relation->message,
        "stages %d and %d round differently, but the reduced gradient %s[%zu] of their first step is %.9g "
        "and %.9g, %.3g apart, where rounding gives %.3g at most",
        a->of->stage, b->of->stage, model->params[param].name, element - first, (double)a->gradients[element],
        (double)b->gradients[element], fabs((double)a->gradients[element] - (double)b->gradients[element]),
        bound);
}

void zb_classes_relate(const zb_model *model, const zb_first_gradients *a, const zb_first_gradients *b,
                       zb_verify_relation *relation)
{
    const char *differs = what_differs(&a->of->plan, &b->of->plan);
    *relation = (zb_verify_relation){ .dtype = a->of->dtype,
                                      .world_size = a->of->world_size,
                                      .class_a = a->of->equality_class,
                                      .class_b = b->of->equality_class,
                                      .is_bounded = differs == NULL,
                                      .roundings = a->roundings + b->roundings };
    if (differs != NULL) {
        snprintf(relation->message, sizeof relation->message, "%s", differs);
        return;
    }
    const double factors_apart = fabs(total_factor(&a->of->plan) - total_factor(&b->of->plan));
    for (size_t i = 0; i < model->param_numel; i++) {
        const double magnitude = fmax(a->magnitudes[i], b->magnitudes[i]);
        const double bound = a->bounds[i] + b->bounds[i] + factors_apart * magnitude * (1 + 0x1p-30);
        const double apart = fabs((double)a->gradients[i] - (double)b->gradients[i]);
        if (!isfinite(bound)) continue; /* one of them may have overflowed */
        relation->elements++;
        relation->elements_differ += apart != 0;
        /* Not within it: an infinity or a NaN that nothing explains is neither. */
        if (!(apart <= bound) && relation->status == ZB_OK) describe_element(model, a, b, i, bound, relation);
        if (bound > 0 && isfinite(apart) && apart / bound > relation->largest)
            relation->largest = apart / bound;
    }
}
