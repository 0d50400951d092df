/* Whether all ranks have been given the same; see fingerprint.h. */
#include "tools/fingerprint.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/version.h>

#include "core/sha256.h"

typedef enum part { PART_CONFIG, PART_MODEL, PART_WEIGHTS, PART_DATA, PART_OPTIONS, PART_COUNT } part;
static const char *const part_names[PART_COUNT] = { "config", "model", "initial weights", "data set",
                                                    "options or version" };

/* A SHA-256 of each, in hexadecimal. */
typedef struct fingerprint {
    char digest[PART_COUNT][ZB_SHA256_TEXT_BYTES];
} fingerprint;

static zb_status add_file(const char *path, zb_sha256 *sha)
{
    unsigned char block[4096];
    FILE *file = fopen(path, "rb");
    if (file == NULL) return zb_fail(ZB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    for (size_t bytes; (bytes = fread(block, 1, sizeof block, file)) > 0;) zb_sha256_add(sha, block, bytes);
    const int failed = ferror(file);
    fclose(file);
    return failed ? zb_fail(ZB_IO, "%s: cannot be read", path) : ZB_OK;
}

static void add_text(const char *text, zb_sha256 *sha)
{
    zb_sha256_add(sha, text, strlen(text) + 1);
}

static void add_model(const zb_model *model, zb_sha256 *sha)
{
    for (int m = 0; m < model->module_count; m++) {
        const zb_module *module = &model->modules[m];
        const int64_t numbers[] = { (int64_t)module->kind, module->inputs[0], module->inputs[1],
                                    module->kernel,        module->stride,    module->padding,
                                    module->weight,        module->bias };
        add_text(module->name, sha);
        zb_sha256_add(sha, numbers, sizeof numbers);
        zb_sha256_add(sha, module->out.extent, (size_t)module->out.dims * sizeof module->out.extent[0]);
    }
    for (int p = 0; p < model->param_count; p++) {
        const uint64_t numbers[] = { model->params[p].numel, (uint64_t)model->params[p].requires_grad };
        add_text(model->params[p].name, sha);
        zb_sha256_add(sha, numbers, sizeof numbers);
    }
}

static void add_weights(const inputs *in, zb_sha256 *sha)
{
    for (int p = 0; p < in->model->param_count; p++)
        zb_sha256_add(sha, in->weights.values[p], in->model->params[p].numel * sizeof(float));
}

/* Its size, and samples all over it: a data set may be far larger than what a run looks at. */
static zb_status add_dataset(const zb_dataset *dataset, zb_sha256 *sha)
{
    enum { SAMPLES = 64 };
    const size_t numel = zb_shape_numel(&dataset->input);
    float *input = zb_alloc_array(numel, sizeof *input);
    float *target = zb_alloc_array(dataset->target_numel, sizeof *target);
    zb_status status = input != NULL && target != NULL ? ZB_OK : ZB_NO_MEMORY;
    zb_sha256_add(sha, &dataset->size, sizeof dataset->size);
    const int64_t step = dataset->size > SAMPLES ? dataset->size / SAMPLES : 1;
    for (int64_t i = 0; status == ZB_OK && i < dataset->size; i += step) {
        int32_t label = 0;
        zb_dataset_fetch(dataset, i, input, &label, target);
        zb_sha256_add(sha, input, numel * sizeof *input);
        zb_sha256_add(sha, &label, sizeof label);
        zb_sha256_add(sha, target, dataset->target_numel * sizeof *target);
    }
    zb_free(input);
    zb_free(target);
    return status;
}

static zb_status add_part(const inputs *in, const char *options, part which, zb_sha256 *sha)
{
    switch (which) {
    case PART_CONFIG:
        return add_file(in->config->path, sha);
    case PART_MODEL:
        add_model(in->model, sha);
        return ZB_OK;
    case PART_WEIGHTS:
        add_weights(in, sha);
        return ZB_OK;
    case PART_DATA:
        return add_dataset(in->dataset, sha);
    default:
        add_text(options, sha);
        add_text(ZB_VERSION, sha);
        return ZB_OK;
    }
}

static zb_status take(const inputs *in, const char *options, fingerprint *own)
{
    memset(own, 0, sizeof *own);
    for (int which = 0; which < PART_COUNT; which++) {
        zb_sha256 sha;
        zb_sha256_init(&sha);
        ZB_TRY(add_part(in, options, (part)which, &sha));
        zb_sha256_finish(&sha, own->digest[which]);
    }
    return ZB_OK;
}

static zb_status find_difference(const fingerprint *all, int world_size)
{
    for (int rank = 1; rank < world_size; rank++)
        for (int which = 0; which < PART_COUNT; which++)
            if (strcmp(all[0].digest[which], all[rank].digest[which]) != 0)
                return zb_fail(
                    ZB_INVALID_ARGUMENT,
                    "rank %d was given another %s than rank 0 (SHA-256 %.12s..., rank 0 has %.12s...); "
                    "every rank must be given the same",
                    rank, part_names[which], all[rank].digest[which], all[0].digest[which]);
    return ZB_OK;
}

zb_status fingerprint_compare(zb_comm *comm, const inputs *in, const char *options)
{
    fingerprint own;
    ZB_TRY(take(in, options, &own));
    fingerprint *all = zb_alloc_array((size_t)comm->world_size, sizeof *all);
    if (all == NULL) return ZB_NO_MEMORY;
    zb_status status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_GATHER, .send = &own,
                                         .recv = all, .numel = sizeof own, .dtype = ZB_UINT8,
                                         .what = "what every rank was given");
    if (status == ZB_OK) status = find_difference(all, comm->world_size);
    zb_free(all);
    return status;
}
