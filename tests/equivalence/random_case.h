/*
 * One random training set-up, made from a number: model, data, config and world, small but nasty on purpose.
 * Uneven and empty tensors, tied, frozen and unused parameters, buckets smaller than a parameter, ranks that
 * own nothing, short last batches, several epochs, clipping on both sides of the norm, both semantics with
 * single quirks switched, parameter groups, every way to average and every type to do it in, samples that
 * make one rank overflow.
 */
#ifndef ZB_TESTS_EQUIVALENCE_RANDOM_CASE_H
#define ZB_TESTS_EQUIVALENCE_RANDOM_CASE_H

#include <stdint.h>
#include <zerobit/config.h>
#include <zerobit/data.h>
#include <zerobit/model.h>

typedef struct random_case {
    uint64_t number;
    zb_model *model;
    zb_config *config;
    zb_dataset *dataset;
    zb_weights weights;
    int64_t dataset_size;
    int world_size;
    char order[512]; /* of addition; "": that of ranks */
    zb_semantics semantics;
    const char *arithmetic; /* of the optimizer; static */
    int group_count;        /* of parameters; 0: the config gives none */
    zb_dtype dtype;
    int stages[ZB_STAGE_COUNT]; /* that take the config and the order; none: there is nothing to compare */
    int stage_count;
    int64_t steps;
    char config_text[4096]; /* JSON, for the report of a failure */
    char model_text[2048];
} random_case;

/* Any number gives a valid case; a refusal is a bug and is returned with its message recorded. */
zb_status random_case_create(uint64_t number, random_case *c);
void random_case_destroy(random_case *c);

#endif
