/*
 * What the stages of one precision and world have to do with one another. Stages with equal plans that add
 * every element by the same tree are one class: they must agree to the bit at every step. Other stages round
 * elsewhere: the reduced gradients of their first step, made from the same weights, must agree within the
 * roundings of both; later steps begin from different weights.
 */
#ifndef VERIFY_CLASSES_H
#define VERIFY_CLASSES_H

#include <zerobit/ref.h>
#include <zerobit/route.h>
#include <zerobit/verify.h>

/** Sets equality_class of cases[0 .. count - 1], from 0 in the order in which classes come; routes are read
 * where a plan names an order. */
zb_status zb_classes_find(zb_verify_case *cases, const zb_route *routes, int count, int *class_count_p);

/** The reduced gradients of a class's first step. Zero is none. */
typedef struct zb_first_gradients {
    const zb_verify_case *of;    /* a case of the class; NULL: its oracle has taken no step */
    float *gradients;            /* [param_numel of the model], like the others */
    double *bounds, *magnitudes; /* zb_ref_first_gradient */
    int roundings;
} zb_first_gradients;
/** After the oracle's first step. `of` is borrowed. */
zb_status zb_first_gradients_take(const zb_ref *ref, const zb_model *model, const zb_verify_case *of,
                                  zb_first_gradients *first);
void zb_first_gradients_destroy(zb_first_gradients *first);
/** relation->status is ZB_DIFFERENT where some element of the two is farther apart than rounding can take it.
 */
void zb_classes_relate(const zb_model *model, const zb_first_gradients *a, const zb_first_gradients *b,
                       zb_verify_relation *relation);

#endif
