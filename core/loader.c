/*
 * An endless stream of one rank's micro batches: the sampler's indices in runs of micro_batch_size, fetched
 * into one buffer. As DeepSpeed's engine loader does, the sampler always pads; drop_last only says whether a
 * short last batch is given out.
 *
 * All memory is taken at creation. The largest part is the order of the whole data set, 4 bytes per sample
 * and rank: it has to be made anew at every epoch, in place, and a rank shares nothing with others.
 */
#include <zerobit/data.h>

#include <inttypes.h>
#include <zerobit/memory.h>
#include "core/sampler.h"

struct zb_loader {
    const zb_dataset *dataset; /* borrowed */
    zb_sampler_config sampler;
    int reshuffle;
    int64_t micro_batch_size;
    int64_t samples_per_epoch, batches_per_epoch; /* this rank's */
    int64_t epoch, next_batch;                    /* next_batch: 0..batches_per_epoch, within epoch */
    size_t input_numel;

    uint32_t *order;  /* [dataset size], or NULL when not shuffled */
    int64_t *indices; /* the batch; these four have room for rows_max rows */
    float *inputs;
    int32_t *labels; /* NULL for regression     */
    float *targets;  /* NULL for classification */
};

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static zb_status set_lengths(zb_loader *loader, const zb_loader_config *config)
{
    if (config->micro_batch_size < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "loader: micro_batch_size is %" PRId64 ", want >= 1",
                       config->micro_batch_size);
    ZB_TRY(zb_sampler_check(&loader->sampler));

    int64_t samples = zb_sampler_length(&loader->sampler);
    int64_t whole_batches = samples / config->micro_batch_size;
    int has_rest = samples % config->micro_batch_size != 0;
    loader->samples_per_epoch = samples;
    loader->micro_batch_size = config->micro_batch_size;
    loader->batches_per_epoch = whole_batches + (has_rest && !config->drop_last);
    if (loader->batches_per_epoch > 0) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "loader: no batch in an epoch: %" PRId64 " samples among %d ranks are %" PRId64
                   " for each, want at least %" PRId64 "%s",
                   loader->sampler.dataset_size, config->world_size, samples,
                   config->drop_last ? config->micro_batch_size : (int64_t)1,
                   config->drop_last ? " (one full micro batch, since drop_last is set)" : "");
}

static zb_status allocate_buffers(zb_loader *loader)
{
    const zb_dataset *dataset = loader->dataset;
    size_t rows_max = (size_t)min_i64(loader->micro_batch_size, loader->samples_per_epoch);
    if (loader->sampler.shuffle) {
        loader->order = zb_alloc_array((size_t)dataset->size, sizeof *loader->order);
        if (loader->order == NULL) return ZB_NO_MEMORY;
    }
    loader->indices = zb_alloc_array(rows_max, sizeof *loader->indices);
    if (loader->indices == NULL) return ZB_NO_MEMORY;
    loader->inputs = zb_alloc_array(rows_max, loader->input_numel * sizeof *loader->inputs);
    if (loader->inputs == NULL) return ZB_NO_MEMORY;
    if (dataset->classes > 0) {
        loader->labels = zb_alloc_array(rows_max, sizeof *loader->labels);
        return loader->labels != NULL ? ZB_OK : ZB_NO_MEMORY;
    }
    loader->targets = zb_alloc_array(rows_max, dataset->target_numel * sizeof *loader->targets);
    return loader->targets != NULL ? ZB_OK : ZB_NO_MEMORY;
}

zb_status zb_loader_create(const zb_dataset *dataset, const zb_loader_config *config, zb_loader **loader_p)
{
    zb_loader *loader = zb_alloc(sizeof *loader);
    if (loader == NULL) return ZB_NO_MEMORY;
    loader->dataset = dataset;
    loader->input_numel = zb_shape_numel(&dataset->input);
    loader->reshuffle = config->reshuffle;
    loader->sampler = (zb_sampler_config){ .dataset_size = dataset->size,
                                           .world_size = config->world_size,
                                           .rank = config->rank,
                                           .shuffle = config->shuffle,
                                           .drop_last = 0,
                                           .seed = config->seed };
    zb_status status = set_lengths(loader, config);
    if (status == ZB_OK) status = allocate_buffers(loader);
    if (status != ZB_OK) {
        zb_loader_destroy(loader);
        return status;
    }
    if (config->shuffle) zb_sampler_shuffle(&loader->sampler, 0, loader->order);
    *loader_p = loader;
    return ZB_OK;
}

void zb_loader_destroy(zb_loader *loader)
{
    if (loader == NULL) return;
    zb_free(loader->targets);
    zb_free(loader->labels);
    zb_free(loader->inputs);
    zb_free(loader->indices);
    zb_free(loader->order);
    zb_free(loader);
}

int64_t zb_loader_length(const zb_loader *loader)
{
    return loader->batches_per_epoch;
}

int64_t zb_loader_epoch(const zb_loader *loader)
{
    return loader->epoch;
}

static void start_next_epoch(zb_loader *loader)
{
    loader->epoch++;
    loader->next_batch = 0;
    if (loader->sampler.shuffle && loader->reshuffle)
        zb_sampler_shuffle(&loader->sampler, loader->epoch, loader->order);
}

zb_status zb_loader_next(zb_loader *loader, zb_batch *batch)
{
    if (loader->next_batch == loader->batches_per_epoch) start_next_epoch(loader);

    const zb_dataset *dataset = loader->dataset;
    int64_t first = loader->next_batch * loader->micro_batch_size;
    int64_t rows = min_i64(loader->micro_batch_size, loader->samples_per_epoch - first);
    for (int64_t row = 0; row < rows; row++) {
        int64_t index = zb_sampler_pick(&loader->sampler, loader->order, first + row);
        loader->indices[row] = index;
        zb_dataset_fetch(dataset, index, loader->inputs + (size_t)row * loader->input_numel,
                         loader->labels != NULL ? loader->labels + row : NULL,
                         loader->targets != NULL ? loader->targets + (size_t)row * dataset->target_numel
                                                 : NULL);
    }
    loader->next_batch++;
    *batch = (zb_batch){ .rows = rows,
                         .indices = loader->indices,
                         .inputs = loader->inputs,
                         .labels = loader->labels,
                         .targets = loader->targets };
    return ZB_OK;
}
