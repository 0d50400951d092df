/*
 * Internal to core/: the sampler in two parts, so that the loader can keep its memory: the order of the whole
 * data set in an epoch, and which places of that order are a rank's.
 */
#ifndef ZB_CORE_SAMPLER_H
#define ZB_CORE_SAMPLER_H

#include <zerobit/data.h>

/** Refuses, with the values, what no sampler can do. The functions below want a config that passed. */
zb_status zb_sampler_check(const zb_sampler_config *config);

/** How the epoch shuffles all dataset_size samples. Allocates nothing. Only for a config with `shuffle`. */
void zb_sampler_shuffle(const zb_sampler_config *config, int64_t epoch, uint32_t *order);

/** The rank's k-th sample, 0 <= k < zb_sampler_length(). order NULL: not shuffled. */
int64_t zb_sampler_pick(const zb_sampler_config *config, const uint32_t *order, int64_t k);

#endif
