/*
 * An engine's observations held against the oracle's, one step at a time.
 *
 * zb_reference keeps what the oracle shows of a step. Any number of zb_compare share it, read only, each for
 * one engine: its ranks hand in what they hold, in any order and from any thread, and it is compared where it
 * lies. Afterwards zb_compare_finish tells the earliest difference in the order in which a step computes,
 * whichever rank came first, and sees to it that everything that must be shown was shown.
 */
#ifndef VERIFY_COMPARE_H
#define VERIFY_COMPARE_H

#include <stdint.h>
#include <zerobit/comm.h>
#include <zerobit/device.h>
#include <zerobit/model.h>
#include <zerobit/observe.h>
#include <zerobit/plan.h>
#include <zerobit/trace.h>

typedef struct zb_reference zb_reference;
/** model is borrowed. with_contributions: the oracle shows what ranks send, and so must the engine. */
zb_status zb_reference_create(const zb_model *model, const zb_plan *plan, int with_contributions,
                              zb_reference **reference_p);
void zb_reference_destroy(zb_reference *reference);
/** Forget the step before. */
void zb_reference_begin(zb_reference *reference, int64_t step);
/** For the oracle. */
zb_observer zb_reference_observer(zb_reference *reference);
/** It has skipped the step for an overflow. */
int zb_reference_is_skipped(const zb_reference *reference);

typedef struct zb_compare zb_compare;

typedef struct zb_compare_options {
    const zb_reference *reference; /* borrowed; must hold the step while observations come in */
    int whole_param_on_every_rank; /* stages 0-2: every rank shows the whole of every model weight */
    /* [world_size], borrowed: trainable elements whose gradients, masters and moments each rank must show, no
     * more and no fewer; NULL: it is enough that all ranks together show each element. */
    const uint64_t *owned_numel;
    /* What the oracle does not know, by the stage's formula. */
    uint64_t bytes_held[ZB_MEM_COUNT];
} zb_compare_options;

zb_status zb_compare_create(const zb_compare_options *options, zb_compare **compare_p);
void zb_compare_destroy(zb_compare *compare);
/** The step is the reference's. What every rank sends in it, by the stage's formula; NULL before training. */
void zb_compare_begin(zb_compare *compare, const zb_traffic *traffic);
/** For the engine, on every rank at once. Fails with ZB_DIFFERENT only for what no engine may show at all. */
zb_observer zb_compare_observer(zb_compare *compare);
/** difference->found tells. Left: the oracle, right: the engine. */
void zb_compare_finish(zb_compare *compare, zb_difference *difference);
/** The same for a step that training ends in: only what was shown counts. */
void zb_compare_break_off(zb_compare *compare, zb_difference *difference);
/** Since zb_compare_create. */
uint64_t zb_compare_value_count(const zb_compare *compare);

#endif
