/*
 * Data sets, and which sample goes to which rank when.
 * Source: torch.utils.data.distributed.DistributedSampler, deepspeed/runtime/dataloader.py.
 */
#ifndef ZEROBIT_DATA_H
#define ZEROBIT_DATA_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <zerobit/model.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* --- data sets --- */

typedef struct zb_dataset zb_dataset;
typedef struct zb_dataset_ops {
    void (*fetch)(const zb_dataset *dataset, int64_t index, float *input, int32_t *label, float *target);
    void (*destroy)(zb_dataset *dataset);
} zb_dataset_ops;
/** Read-only after creation, so that any number of ranks can share one. Back ends put this first. */
struct zb_dataset {
    const zb_dataset_ops *ops;
    int64_t size;
    zb_shape input;
    int64_t classes;      /* labels are 0..classes-1; 0 for regression */
    size_t target_numel;  /* per sample; 0 for classification */
};

/** input: [shape numel]; *label or target[target_numel] is written, the other may be NULL. */
ZB_API void zb_dataset_fetch(const zb_dataset *dataset, int64_t index, float *input, int32_t *label, float *target);
ZB_API void zb_dataset_destroy(zb_dataset *dataset);

enum { ZB_CIFAR10_RECORD_BYTES = 3073, ZB_CIFAR10_BATCH_RECORDS = 10000 };

/**
 * CIFAR-10 "binary version": `path` is a folder with data_batch_1.bin .. data_batch_5.bin (those present, at
 * least one, in order) or a single .bin file; with `test`, test_batch.bin. Refuses a size that is no multiple
 * of 3073 bytes, an empty file, and a label above 9, naming file and record. Pixels become
 * (v / 255 - 0.5) / 0.5 in fp32, as ToTensor and Normalize of the example do.
 */
ZB_API zb_status zb_dataset_open_cifar10(const char *path, int test, zb_dataset **dataset_p);
/**
 * Write `records` learnable synthetic records in CIFAR-10's format: a smooth picture per class, the same for every
 * seed, plus noise; labels and noise from the seed (docs/data.md). Refuses to overwrite; never leaves half a file.
 * interrupt: NULL, or stop between two records, with nothing written, when it becomes non-zero.
 */
ZB_API zb_status zb_cifar10_generate(const char *path, int64_t records, uint64_t seed,
                                     const volatile sig_atomic_t *interrupt);
/** The same records, in memory. */
ZB_API zb_status zb_dataset_synthetic_cifar10(int64_t records, uint64_t seed, zb_dataset **dataset_p);
/**
 * Random inputs in [-1, 1) of the model's input shape; labels or targets that a fixed random linear map of the input
 * gives. Made per fetch: holds only the map. The model is not needed afterwards.
 */
ZB_API zb_status zb_dataset_synthetic(const zb_model *model, int64_t size, uint64_t seed, zb_dataset **dataset_p);

/* --- sampler --- */

typedef struct zb_sampler_config {
    int64_t dataset_size;
    int world_size, rank;
    int shuffle, drop_last;
    uint64_t seed;
} zb_sampler_config;

/**
 * Samples per rank and epoch: ceil(N/W), or with drop_last and N mod W != 0 ceil((N-W)/W). -1 for a config
 * that zb_sampler_indices refuses (zb_fail has been called): world_size < 1, rank outside 0..world_size-1,
 * dataset_size outside 0..2^32.
 */
ZB_API int64_t zb_sampler_length(const zb_sampler_config *config);
/** This rank's indices of an epoch, in order; `indices` has zb_sampler_length() elements. Allocates N indices while it runs. */
ZB_API zb_status zb_sampler_indices(const zb_sampler_config *config, int64_t epoch, int64_t *indices);

/* --- loader --- */

typedef struct zb_batch {
    int64_t rows;
    const int64_t *indices; /* [rows], for traces */
    const float *inputs;    /* [rows, input] host memory */
    const int32_t *labels;  /* [rows], or NULL */
    const float *targets;   /* [rows, target_numel], or NULL */
} zb_batch;

typedef struct zb_loader_config {
    int64_t micro_batch_size;
    int world_size, rank;
    int shuffle, drop_last; /* drop_last: drop a short last batch; the sampler still pads, as in DeepSpeed */
    uint64_t seed;
    int reshuffle; /* standard semantics: epoch e shuffles with seed + e. 0: every epoch has the same order, as DeepSpeed 0.19.6 */
} zb_loader_config;

/** An endless (repeating) loader over a data set, which it borrows. */
typedef struct zb_loader zb_loader;
ZB_API zb_status zb_loader_create(const zb_dataset *dataset, const zb_loader_config *config, zb_loader **loader_p);
ZB_API void zb_loader_destroy(zb_loader *loader);
/** Batches per epoch. */
ZB_API int64_t zb_loader_length(const zb_loader *loader);
/** Of the batch that zb_loader_next gave last; 0 before the first. */
ZB_API int64_t zb_loader_epoch(const zb_loader *loader);
/** The next batch, valid until the next call. Crosses into the next epoch by itself. Allocates nothing. */
ZB_API zb_status zb_loader_next(zb_loader *loader, zb_batch *batch);

#ifdef __cplusplus
}
#endif
#endif
