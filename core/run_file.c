/*
 * Reads recorded runs (docs/replay.md). Nothing is trusted: every array must have the length that the sizes,
 * the world and the config ask for, and memory is taken only for arrays whose length has been seen.
 */
#include <zerobit/replay.h>

#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

#include "core/config_rules.h"
#include "core/json.h"

#define MAX_BYTES ((size_t)1 << 30)
enum { MAX_WORLD = 1 << 20 };

/* --- destroy --- */

static void destroy_entry(zb_replay_entry *entry)
{
    for (size_t t = 0; entry->masters != NULL && t < entry->master_count; t++)
        zb_free(entry->masters[t].data);
    zb_free(entry->masters);
    zb_free(entry->lr);
    zb_free(entry->calls);
    zb_free(entry->error);
}

static void destroy_rank(zb_replay_rank *rank, size_t entry_count)
{
    for (size_t e = 0; rank->entries != NULL && e < entry_count; e++) destroy_entry(&rank->entries[e]);
    zb_free(rank->entries);
    zb_free(rank->wrapper);
}

static void destroy_grads(zb_replay_run *run)
{
    const size_t contributions = (size_t)run->accumulation_steps * (size_t)run->world_size;
    for (size_t s = 0; run->grads != NULL && s < run->step_count; s++) {
        for (size_t c = 0; run->grads[s] != NULL && c < contributions; c++) zb_free(run->grads[s][c]);
        zb_free(run->grads[s]);
    }
    zb_free(run->grads);
}

static void destroy_run(zb_replay_run *run)
{
    destroy_grads(run);
    for (int r = 0; run->ranks != NULL && r < run->world_size; r++)
        destroy_rank(&run->ranks[r], run->entry_count);
    zb_free(run->ranks);
    zb_free(run->init);
    zb_free(run->param_numel);
    zb_config_destroy(run->config);
    zb_free(run->name);
}

void zb_replay_destroy(zb_replay_file *file)
{
    if (file == NULL) return;
    for (size_t i = 0; i < file->run_count; i++) destroy_run(&file->runs[i]);
    zb_free(file->runs);
    zb_free(file);
}

/* --- values --- */

static zb_status read_text(const zb_json_at *at, char **out)
{
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    *out = zb_strdup(text);
    return *out == NULL ? ZB_NO_MEMORY : ZB_OK;
}

static zb_status expect_count(const zb_json_at *at, size_t want)
{
    size_t count = 0;
    ZB_TRY(zb_json_array(at, &count));
    if (count != want) return zb_json_fail(at, ZB_INVALID_CONFIG, "an array of %zu", want);
    return ZB_OK;
}

/* The 8 digits of an fp32 bit pattern. */
static zb_status read_bits(const zb_json_at *at, float *out)
{
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    size_t digits = 0;
    while (isxdigit((unsigned char)text[digits])) digits++;
    if (digits != 8 || text[8] != '\0')
        return zb_json_fail(at, ZB_INVALID_CONFIG, "the 8 hexadecimal digits of an fp32 bit pattern");
    const uint32_t bits = (uint32_t)strtoul(text, NULL, 16);
    memcpy(out, &bits, sizeof bits);
    return ZB_OK;
}

/* Elements of an array whose length has been checked. */
static zb_status read_elements(const zb_json_at *array, float *out)
{
    size_t i = 0;
    for (zb_json_at at = zb_json_first(array); at.value != NULL; at = zb_json_next(&at))
        ZB_TRY(read_bits(&at, &out[i++]));
    return ZB_OK;
}

/* A double as Python's float.hex() prints it. */
static zb_status read_hex_double(const zb_json_at *at, double *out)
{
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    const char *number = text[0] == '-' ? text + 1 : text;
    char *end = NULL;
    const double value = strtod(text, &end);
    const int known = strncmp(number, "0x", 2) == 0 || strcmp(number, "inf") == 0 ||
                      strcmp(number, "nan") == 0;
    if (!known || *end != '\0')
        return zb_json_fail(at, ZB_INVALID_CONFIG, "a hexadecimal double, such as \"0x1.8p+1\"");
    *out = value;
    return ZB_OK;
}

/* [param][element] hex -> parameters behind one another. */
static zb_status read_model_values(const zb_json_at *at, const zb_replay_run *run, float **out)
{
    ZB_TRY(expect_count(at, (size_t)run->param_count));
    int p = 0;
    for (zb_json_at param = zb_json_first(at); param.value != NULL; param = zb_json_next(&param))
        ZB_TRY(expect_count(&param, run->param_numel[p++]));
    float *values = zb_alloc_array(run->numel, sizeof *values);
    if (values == NULL) return ZB_NO_MEMORY;
    *out = values; /* the run's, to be freed with it whatever follows */
    p = 0;
    for (zb_json_at param = zb_json_first(at); param.value != NULL; param = zb_json_next(&param)) {
        ZB_TRY(read_elements(&param, values));
        values += run->param_numel[p++];
    }
    return ZB_OK;
}

/* --- gradients --- */

static zb_status read_step_grads(const zb_json_at *step, const zb_replay_run *run, float ***out)
{
    const size_t world = (size_t)run->world_size;
    ZB_TRY(expect_count(step, (size_t)run->accumulation_steps));
    for (zb_json_at micro = zb_json_first(step); micro.value != NULL; micro = zb_json_next(&micro))
        ZB_TRY(expect_count(&micro, world));
    float **contributions = zb_alloc_array((size_t)run->accumulation_steps * world, sizeof *contributions);
    if (contributions == NULL) return ZB_NO_MEMORY;
    *out = contributions;
    size_t c = 0;
    for (zb_json_at micro = zb_json_first(step); micro.value != NULL; micro = zb_json_next(&micro))
        for (zb_json_at rank = zb_json_first(&micro); rank.value != NULL; rank = zb_json_next(&rank))
            ZB_TRY(read_model_values(&rank, run, &contributions[c++]));
    return ZB_OK;
}

static zb_status read_grads(const zb_json_at *root, zb_replay_run *run)
{
    zb_json_at grads = zb_json_member(root, "grads");
    size_t count = 0;
    ZB_TRY(zb_json_array(&grads, &count));
    run->grads = zb_alloc_array(count, sizeof *run->grads);
    if (run->grads == NULL) return ZB_NO_MEMORY;
    run->step_count = count;
    size_t s = 0;
    for (zb_json_at step = zb_json_first(&grads); step.value != NULL; step = zb_json_next(&step))
        ZB_TRY(read_step_grads(&step, run, &run->grads[s++]));
    return ZB_OK;
}

/* --- what the ranks held --- */

static zb_status read_masters(const zb_json_at *at, zb_replay_entry *entry)
{
    size_t count = 0;
    ZB_TRY(zb_json_array(at, &count));
    entry->masters = zb_alloc_array(count, sizeof *entry->masters);
    if (entry->masters == NULL) return ZB_NO_MEMORY;
    entry->master_count = count;
    zb_replay_tensor *tensor = entry->masters;
    for (zb_json_at values = zb_json_first(at); values.value != NULL;
         values = zb_json_next(&values), tensor++) {
        size_t numel = 0;
        ZB_TRY(zb_json_array(&values, &numel));
        tensor->data = zb_alloc_array(numel, sizeof *tensor->data);
        if (tensor->data == NULL) return ZB_NO_MEMORY;
        tensor->numel = numel;
        ZB_TRY(read_elements(&values, tensor->data));
    }
    return ZB_OK;
}

static zb_status read_rates(const zb_json_at *at, zb_replay_entry *entry)
{
    size_t count = 0;
    ZB_TRY(zb_json_array(at, &count));
    if (count == 0) return zb_json_fail(at, ZB_INVALID_CONFIG, "the rate of each parameter group");
    entry->lr = zb_alloc_array(count, sizeof *entry->lr);
    if (entry->lr == NULL) return ZB_NO_MEMORY;
    for (zb_json_at rate = zb_json_first(at); rate.value != NULL; rate = zb_json_next(&rate))
        ZB_TRY(read_hex_double(&rate, &entry->lr[entry->lr_count++]));
    return ZB_OK;
}

/* Texts and integers, put behind one another. */
static zb_status read_call(const zb_json_at *at, zb_replay_call *call)
{
    size_t used = 0, count = 0;
    ZB_TRY(zb_json_array(at, &count));
    for (zb_json_at item = zb_json_first(at); item.value != NULL; item = zb_json_next(&item)) {
        const char *space = used > 0 ? " " : "", *text;
        int64_t number;
        int length;
        if (cJSON_IsString(item.value)) {
            ZB_TRY(zb_json_string(&item, &text));
            length = snprintf(call->text + used, sizeof call->text - used, "%s%s", space, text);
        } else {
            ZB_TRY(zb_json_int64(&item, -1, ZB_JSON_MAX_INTEGER, &number));
            length = snprintf(call->text + used, sizeof call->text - used, "%s%" PRId64, space, number);
        }
        used += (size_t)length;
        if (used >= sizeof call->text)
            return zb_json_fail(at, ZB_INVALID_CONFIG, "a collective of at most %zu characters",
                                sizeof call->text - 1);
    }
    return ZB_OK;
}

static zb_status read_calls(const zb_json_at *at, zb_replay_entry *entry)
{
    size_t count = 0;
    if (!zb_json_given(at)) return ZB_OK;
    ZB_TRY(zb_json_array(at, &count));
    entry->calls = zb_alloc_array(count, sizeof *entry->calls);
    if (entry->calls == NULL) return ZB_NO_MEMORY;
    for (zb_json_at call = zb_json_first(at); call.value != NULL; call = zb_json_next(&call))
        ZB_TRY(read_call(&call, &entry->calls[entry->call_count++]));
    return ZB_OK;
}

static zb_status read_scalars(const zb_json_at *at, zb_replay_entry *entry)
{
    zb_json_at norm = zb_json_member(at, "norm"), scale = zb_json_member(at, "scale");
    zb_json_at rates = zb_json_member(at, "lr"), skipped = zb_json_member(at, "skipped");
    zb_json_at calls = zb_json_member(at, "comm");
    entry->has_norm = zb_json_given(&norm);
    if (entry->has_norm) ZB_TRY(read_hex_double(&norm, &entry->norm));
    entry->has_scale = zb_json_given(&scale);
    if (entry->has_scale) ZB_TRY(zb_json_double(&scale, &entry->scale));
    ZB_TRY(read_rates(&rates, entry));
    ZB_TRY(read_calls(&calls, entry));
    return zb_json_int64(&skipped, 0, ZB_JSON_MAX_INTEGER, &entry->skipped);
}

static zb_status read_entry(const zb_json_at *at, int64_t want_step, zb_replay_entry *entry)
{
    zb_json_at step_at = zb_json_member(at, "step"), error = zb_json_member(at, "error");
    zb_json_at masters = zb_json_member(at, "hp");
    int64_t step;
    ZB_TRY(zb_json_int64(&step_at, -1, ZB_JSON_MAX_INTEGER, &step));
    if (step != want_step)
        return zb_json_fail(&step_at, ZB_INVALID_CONFIG, "%lld: entries count up from -1",
                            (long long)want_step);
    if (zb_json_given(&error)) return read_text(&error, &entry->error);
    if (step >= 0) ZB_TRY(read_scalars(at, entry));
    return read_masters(&masters, entry);
}

static zb_status check_entry_count(const zb_json_at *steps, const zb_replay_rank *rank, size_t count,
                                   size_t step_count)
{
    for (size_t e = 0; e + 1 < count; e++)
        if (rank->entries[e].error != NULL)
            return zb_json_fail(steps, ZB_INVALID_CONFIG, "nothing after the entry with an error");
    const int ended = rank->entries[count - 1].error != NULL;
    if (count > step_count + 1 || (count < step_count + 1 && !ended))
        return zb_json_fail(steps, ZB_INVALID_CONFIG,
                            "an entry for step -1 and for each of the %zu steps in grads", step_count);
    return ZB_OK;
}

static zb_status read_rank(const zb_json_at *at, zb_replay_run *run, zb_replay_rank *rank)
{
    zb_json_at wrapper = zb_json_member(at, "wrapper"), steps = zb_json_member(at, "steps");
    ZB_TRY(read_text(&wrapper, &rank->wrapper));
    size_t count = 0;
    ZB_TRY(zb_json_array(&steps, &count));
    if (run->entry_count == 0) run->entry_count = count;
    if (count == 0 || count != run->entry_count)
        return zb_json_fail(&steps, ZB_INVALID_CONFIG, "at least one entry, and as many on every rank");
    rank->entries = zb_alloc_array(count, sizeof *rank->entries);
    if (rank->entries == NULL) return ZB_NO_MEMORY;
    int64_t e = 0;
    for (zb_json_at entry = zb_json_first(&steps); entry.value != NULL; entry = zb_json_next(&entry), e++)
        ZB_TRY(read_entry(&entry, e - 1, &rank->entries[e]));
    return check_entry_count(&steps, rank, count, run->step_count);
}

/* The world's size has been seen to be the length of `ranks`. */
static zb_status read_ranks(const zb_json_at *ranks, zb_replay_run *run)
{
    int r = 0;
    for (zb_json_at rank = zb_json_first(ranks); rank.value != NULL; rank = zb_json_next(&rank))
        ZB_TRY(read_rank(&rank, run, &run->ranks[r++]));
    return ZB_OK;
}

/* --- a run --- */

static zb_status read_sizes(const zb_json_at *root, zb_replay_run *run)
{
    zb_json_at sizes = zb_json_member(root, "sizes");
    size_t count = 0;
    ZB_TRY(zb_json_array(&sizes, &count));
    if (count == 0 || count > INT_MAX)
        return zb_json_fail(&sizes, ZB_INVALID_CONFIG, "the elements of each parameter, at least one");
    run->param_numel = zb_alloc_array(count, sizeof *run->param_numel);
    if (run->param_numel == NULL) return ZB_NO_MEMORY;
    run->param_count = (int)count;
    size_t p = 0;
    for (zb_json_at size = zb_json_first(&sizes); size.value != NULL; size = zb_json_next(&size)) {
        int64_t numel;
        ZB_TRY(zb_json_int64(&size, 0, (int64_t)MAX_BYTES,
                             &numel)); /* each takes more than a byte of the file */
        run->param_numel[p++] = (size_t)numel;
        run->numel += (size_t)numel;
    }
    return ZB_OK;
}

static zb_status read_config(const zb_json_at *root, const char *path, zb_replay_run *run)
{
    char label[512];
    snprintf(label, sizeof label, "%s: run %s", path, run->name);
    zb_json_at config = zb_json_member(root, "config");
    ZB_TRY(zb_config_read(&config, label, ZB_SEMANTICS_DEEPSPEED_0_19_6, &run->config));
    zb_batch_triangle batch;
    if (zb_batch_resolve(&run->config->batch, run->world_size, &batch) != ZB_OK)
        return zb_fail_context("%s", label);
    run->accumulation_steps = batch.accumulation_steps;
    return ZB_OK;
}

static zb_status read_run(const zb_json_at *at, const char *path, zb_replay_run *run)
{
    zb_json_at name = zb_json_member(at, "name"), world_at = zb_json_member(at, "world");
    zb_json_at init = zb_json_member(at, "init"), ranks = zb_json_member(at, "ranks");
    int64_t world;
    ZB_TRY(read_text(&name, &run->name));
    ZB_TRY(zb_json_int64(&world_at, 1, MAX_WORLD, &world));
    ZB_TRY(expect_count(&ranks, (size_t)world));
    run->ranks = zb_alloc_array((size_t)world, sizeof *run->ranks);
    if (run->ranks == NULL) return ZB_NO_MEMORY;
    run->world_size = (int)world;
    ZB_TRY(read_sizes(at, run));
    ZB_TRY(read_config(at, path, run));
    ZB_TRY(read_model_values(&init, run, &run->init));
    ZB_TRY(read_grads(at, run));
    return read_ranks(&ranks, run);
}

static zb_status read_runs(const zb_json *json, zb_replay_file *file)
{
    zb_json_at root = zb_json_root(json);
    size_t count = 0;
    ZB_TRY(zb_json_array(&root, &count));
    file->runs = zb_alloc_array(count, sizeof *file->runs);
    if (file->runs == NULL) return ZB_NO_MEMORY;
    file->run_count = count;
    size_t i = 0;
    for (zb_json_at run = zb_json_first(&root); run.value != NULL; run = zb_json_next(&run))
        ZB_TRY(read_run(&run, zb_json_path(json), &file->runs[i++]));
    return ZB_OK;
}

zb_status zb_replay_load(const char *path, zb_replay_file **file_p)
{
    zb_json *json;
    ZB_TRY(zb_json_load_up_to(MAX_BYTES, path, &json));
    zb_replay_file *file = zb_alloc(sizeof *file);
    zb_status status = file == NULL ? ZB_NO_MEMORY : read_runs(json, file);
    zb_json_destroy(json);
    if (status != ZB_OK) {
        zb_replay_destroy(file);
        return status;
    }
    *file_p = file;
    return ZB_OK;
}
