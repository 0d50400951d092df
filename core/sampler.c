/*
 * Which samples a rank sees in an epoch, as torch's DistributedSampler deals them: the data set is shuffled
 * (or not), filled up from its own beginning to a multiple of the world size (drop_last: cut to one), and
 * dealt like cards, place p to rank p mod W.
 */
#include "core/sampler.h"

#include <inttypes.h>
#include <zerobit/memory.h>
#include "core/random.h"

/* An order is stored as 32-bit indices: half the memory, and a data set beyond is far beyond this tool. */
#define DATASET_SIZE_MAX (INT64_C(1) << 32)

zb_status zb_sampler_check(const zb_sampler_config *config)
{
    if (config->world_size < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "sampler: world_size is %d, want >= 1", config->world_size);
    if (config->rank < 0 || config->rank >= config->world_size)
        return zb_fail(ZB_INVALID_ARGUMENT, "sampler: rank is %d, want 0..%d", config->rank,
                       config->world_size - 1);
    if (config->dataset_size < 0 || config->dataset_size > DATASET_SIZE_MAX)
        return zb_fail(ZB_INVALID_ARGUMENT, "sampler: dataset_size is %" PRId64 ", want 0..%" PRId64,
                       config->dataset_size, DATASET_SIZE_MAX);
    return ZB_OK;
}

int64_t zb_sampler_length(const zb_sampler_config *config)
{
    if (zb_sampler_check(config) != ZB_OK) return -1;
    int64_t whole_rounds = config->dataset_size / config->world_size;
    int has_rest = config->dataset_size % config->world_size != 0;
    return whole_rounds + (has_rest && !config->drop_last);
}

void zb_sampler_shuffle(const zb_sampler_config *config, int64_t epoch, uint32_t *order)
{
    zb_mt19937 generator;
    zb_mt19937_seed(&generator, config->seed + (uint64_t)epoch);
    zb_randperm_u32(&generator, config->dataset_size, ZB_RANDPERM_LARGE_N, order);
}

int64_t zb_sampler_pick(const zb_sampler_config *config, const uint32_t *order, int64_t k)
{
    int64_t place = config->rank + k * config->world_size;
    /* Places past the end are the padding: the order again from its beginning, as often as it takes. */
    place %= config->dataset_size;
    return order != NULL ? order[place] : place;
}

zb_status zb_sampler_indices(const zb_sampler_config *config, int64_t epoch, int64_t *indices)
{
    ZB_TRY(zb_sampler_check(config));
    uint32_t *order = NULL;
    if (config->shuffle) {
        order = zb_alloc_array((size_t)config->dataset_size, sizeof *order);
        if (order == NULL) return ZB_NO_MEMORY;
        zb_sampler_shuffle(config, epoch, order);
    }
    int64_t length = zb_sampler_length(config);
    for (int64_t k = 0; k < length; k++) indices[k] = zb_sampler_pick(config, order, k);
    zb_free(order);
    return ZB_OK;
}
