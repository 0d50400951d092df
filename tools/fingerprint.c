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
                                                    "version, or other options," };

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

/* Of which each rank may be given its own: files, whose content is looked at, and what only one rank says or
 * only its process does. */
static const char *const own_options[] = { "--model", "--data",  "--weights",     "--workers", "--json",
                                           "--junit", "--quiet", "--print-every", "--force",   NULL };

static int is_own(const option_spec *option)
{
    for (int i = 0; own_options[i] != NULL; i++)
        if (strcmp(option->name, own_options[i]) == 0) return 1;
    return 0;
}

static void add_option(const option_spec *option, zb_sha256 *sha)
{
    const char *text;
    add_text(option->name, sha);
    switch (option->kind) {
    case OPTION_FLAG:
        zb_sha256_add(sha, option->to, sizeof(int));
        return;
    case OPTION_TEXT:
        text = *(const char **)option->to;
        add_text(text != NULL ? text : "", sha); /* none can be given empty */
        return;
    case OPTION_INT:
        zb_sha256_add(sha, option->to, sizeof(int64_t));
        return;
    case OPTION_INTS: {
        const int_list *list = option->to;
        zb_sha256_add(sha, &list->count, sizeof list->count);
        zb_sha256_add(sha, list->values, (size_t)list->count * sizeof list->values[0]);
        return;
    }
    case OPTION_DTYPES: {
        const dtype_list *list = option->to;
        zb_sha256_add(sha, &list->count, sizeof list->count);
        zb_sha256_add(sha, list->values, (size_t)list->count * sizeof list->values[0]);
        return;
    }
    }
}

static void add_options(const command_spec *command, zb_sha256 *sha)
{
    add_text(command->name, sha);
    for (const option_spec *option = command->options; option->name != NULL; option++)
        if (!is_own(option)) add_option(option, sha);
}

static zb_status add_part(const inputs *in, const command_spec *command, part which, zb_sha256 *sha)
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
        add_options(command, sha);
        add_text(ZB_VERSION, sha);
        return ZB_OK;
    }
}

static zb_status take(const inputs *in, const command_spec *command, fingerprint *own)
{
    memset(own, 0, sizeof *own);
    for (int which = 0; which < PART_COUNT; which++) {
        zb_sha256 sha;
        zb_sha256_init(&sha);
        ZB_TRY(add_part(in, command, (part)which, &sha));
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

zb_status fingerprint_compare(zb_comm *comm, const inputs *in, const command_spec *command)
{
    fingerprint own;
    ZB_TRY(take(in, command, &own));
    fingerprint *all = zb_alloc_array((size_t)comm->world_size, sizeof *all);
    if (all == NULL) return ZB_NO_MEMORY;
    zb_status status = zb_collective_run(comm, NULL, .kind = ZB_COLLECTIVE_ALL_GATHER, .send = &own,
                                         .recv = all, .numel = sizeof own, .dtype = ZB_UINT8,
                                         .what = "what every rank was given");
    if (status == ZB_OK) status = find_difference(all, comm->world_size);
    zb_free(all);
    return status;
}
