/*
 * CIFAR-10's "binary version": records of one label byte and 3 x 32 x 32 pixel bytes (red, green and blue
 * planes, row by row), held in memory as they are in the file and widened when fetched.
 * Source: https://www.cs.toronto.edu/~kriz/cifar.html; Normalize((0.5,) * 3, (0.5,) * 3) of DeepSpeedExamples
 * training/cifar/cifar10_deepspeed.py.
 */
#include <zerobit/data.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <zerobit/memory.h>
#include "core/cifar10_synthetic.h"

typedef struct cifar10_dataset {
    zb_dataset base;
    float pixel_value[256];
    uint8_t *records; /* [size][ZB_CIFAR10_RECORD_BYTES] */
} cifar10_dataset;

static void cifar10_fetch(const zb_dataset *dataset, int64_t index, float *input, int32_t *label,
                          float *target)
{
    (void)target;
    const cifar10_dataset *self = (const cifar10_dataset *)dataset;
    const uint8_t *record = self->records + (size_t)index * ZB_CIFAR10_RECORD_BYTES;
    *label = record[0];
    for (int p = 0; p < ZB_CIFAR10_PIXELS; p++) input[p] = self->pixel_value[record[1 + p]];
}

static void cifar10_destroy(zb_dataset *dataset)
{
    cifar10_dataset *self = (cifar10_dataset *)dataset;
    zb_free(self->records);
    zb_free(self);
}

static const zb_dataset_ops cifar10_ops = { .fetch = cifar10_fetch, .destroy = cifar10_destroy };

/* With room for the records, still to be filled. */
static cifar10_dataset *cifar10_create(int64_t records)
{
    cifar10_dataset *self = zb_alloc(sizeof *self);
    if (self == NULL) return NULL;
    self->base = (zb_dataset){
        .ops = &cifar10_ops,
        .size = records,
        .input = { .dims = 3, .extent = { ZB_CIFAR10_CHANNELS, ZB_CIFAR10_SIDE, ZB_CIFAR10_SIDE } },
        .classes = ZB_CIFAR10_CLASSES,
    };
    /* ToTensor divides by 255, Normalize takes off the mean and divides by the deviation: three roundings. */
    for (int v = 0; v < 256; v++) self->pixel_value[v] = ((float)v / 255.0f - 0.5f) / 0.5f;
    self->records = zb_alloc_array((size_t)records, ZB_CIFAR10_RECORD_BYTES);
    if (self->records == NULL) {
        zb_free(self);
        return NULL;
    }
    return self;
}

/* --- from files --- */

enum { TRAIN_BATCHES = 5 };

typedef struct batch_file {
    char *path;
    FILE *stream;
    int64_t records;
} batch_file;

typedef struct batch_list {
    batch_file files[TRAIN_BATCHES];
    int count;
} batch_list;

static void batch_list_close(batch_list *list)
{
    for (int i = 0; i < list->count; i++) {
        if (list->files[i].stream != NULL) fclose(list->files[i].stream);
        zb_free(list->files[i].path);
    }
}

static zb_status batch_open(batch_file *file)
{
    struct stat info;
    /* Before it is opened: a pipe would wait for somebody to write. */
    if (stat(file->path, &info) == 0 && !S_ISREG(info.st_mode))
        return zb_fail(ZB_IO, "%s: not a regular file", file->path);
    file->stream = fopen(file->path, "rb");
    if (file->stream == NULL) return zb_fail(ZB_IO, "%s: cannot open: %s", file->path, strerror(errno));
    if (fstat(fileno(file->stream), &info) != 0)
        return zb_fail(ZB_IO, "%s: cannot read its size: %s", file->path, strerror(errno));
    if (info.st_size == 0 || info.st_size % ZB_CIFAR10_RECORD_BYTES != 0)
        return zb_fail(ZB_CORRUPT,
                       "%s: %" PRId64
                       " bytes, want a positive multiple of %d (a record); CIFAR-10's own batches "
                       "have %d records, %d bytes",
                       file->path, (int64_t)info.st_size, ZB_CIFAR10_RECORD_BYTES, ZB_CIFAR10_BATCH_RECORDS,
                       ZB_CIFAR10_BATCH_RECORDS * ZB_CIFAR10_RECORD_BYTES);
    file->records = info.st_size / ZB_CIFAR10_RECORD_BYTES;
    return ZB_OK;
}

/* Takes over `path` (NULL: out of memory, already said). */
static zb_status batch_list_add(batch_list *list, char *path)
{
    if (path == NULL) return ZB_NO_MEMORY;
    batch_file *file = &list->files[list->count++];
    file->path = path;
    return batch_open(file);
}

static char *join_path(const char *folder, const char *name)
{
    size_t bytes = strlen(folder) + strlen(name) + 2;
    char *path = zb_alloc(bytes);
    if (path != NULL) snprintf(path, bytes, "%s/%s", folder, name);
    return path;
}

/* Those of the five that are there. */
static zb_status add_train_batches(batch_list *list, const char *folder)
{
    for (int i = 1; i <= TRAIN_BATCHES; i++) {
        char name[32];
        snprintf(name, sizeof name, "data_batch_%d.bin", i);
        char *path = join_path(folder, name);
        if (path == NULL) return ZB_NO_MEMORY;
        struct stat info;
        if (lstat(path, &info) != 0 && errno == ENOENT) {
            zb_free(path);
            continue;
        }
        ZB_TRY(batch_list_add(list, path));
    }
    if (list->count > 0) return ZB_OK;
    return zb_fail(ZB_IO,
                   "%s: no data_batch_1.bin .. data_batch_%d.bin in this folder (CIFAR-10 binary version, "
                   "%d bytes each)",
                   folder, TRAIN_BATCHES, ZB_CIFAR10_BATCH_RECORDS * ZB_CIFAR10_RECORD_BYTES);
}

static zb_status batch_list_open(batch_list *list, const char *path, int test)
{
    struct stat info;
    if (stat(path, &info) != 0)
        return zb_fail(ZB_IO, "%s: %s; want a folder with CIFAR-10 batches or one .bin file", path,
                       strerror(errno));
    if (!S_ISDIR(info.st_mode)) return batch_list_add(list, zb_strdup(path));
    if (test) return batch_list_add(list, join_path(path, "test_batch.bin"));
    return add_train_batches(list, path);
}

static zb_status batch_read(const batch_file *file, uint8_t *records)
{
    size_t wanted = (size_t)file->records;
    size_t got = fread(records, ZB_CIFAR10_RECORD_BYTES, wanted, file->stream);
    if (got != wanted)
        return zb_fail(ferror(file->stream) ? ZB_IO : ZB_CORRUPT,
                       "%s: reading stopped after %zu of %zu records: %s", file->path, got, wanted,
                       ferror(file->stream) ? strerror(errno) : "the file became shorter");
    for (size_t i = 0; i < wanted; i++) {
        int label = records[i * ZB_CIFAR10_RECORD_BYTES];
        if (label >= ZB_CIFAR10_CLASSES)
            return zb_fail(ZB_CORRUPT, "%s: record %zu (byte %zu) has label %d, want 0..%d", file->path, i,
                           i * ZB_CIFAR10_RECORD_BYTES, label, ZB_CIFAR10_CLASSES - 1);
    }
    return ZB_OK;
}

static zb_status read_batches(const batch_list *list, zb_dataset **dataset_p)
{
    int64_t records = 0;
    for (int i = 0; i < list->count; i++) records += list->files[i].records;
    cifar10_dataset *self = cifar10_create(records);
    if (self == NULL) return ZB_NO_MEMORY;

    uint8_t *next = self->records;
    for (int i = 0; i < list->count; i++) {
        zb_status status = batch_read(&list->files[i], next);
        if (status != ZB_OK) {
            cifar10_destroy(&self->base);
            return status;
        }
        next += (size_t)list->files[i].records * ZB_CIFAR10_RECORD_BYTES;
    }
    *dataset_p = &self->base;
    return ZB_OK;
}

zb_status zb_dataset_open_cifar10(const char *path, int test, zb_dataset **dataset_p)
{
    batch_list list = { .count = 0 };
    zb_status status = batch_list_open(&list, path, test);
    if (status == ZB_OK) status = read_batches(&list, dataset_p);
    batch_list_close(&list);
    return status;
}

/* --- made in memory --- */

zb_status zb_dataset_synthetic_cifar10(int64_t records, uint64_t seed, zb_dataset **dataset_p)
{
    if (records < 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "synthetic CIFAR-10: %" PRId64 " records asked for, want >= 1",
                       records);
    zb_cifar10_patterns *patterns = zb_alloc(sizeof *patterns);
    if (patterns == NULL) return ZB_NO_MEMORY;
    zb_cifar10_patterns_init(patterns);
    cifar10_dataset *self = cifar10_create(records);
    if (self != NULL) {
        for (int64_t i = 0; i < records; i++)
            zb_cifar10_make_record(patterns, seed, i, self->records + (size_t)i * ZB_CIFAR10_RECORD_BYTES);
        *dataset_p = &self->base;
    }
    zb_free(patterns);
    return self != NULL ? ZB_OK : ZB_NO_MEMORY;
}
