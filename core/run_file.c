/*
 * Reads recorded runs (docs/replay.md). Nothing is trusted: every array must have the length that the sizes,
 * the world and the config ask for, and memory is taken only for arrays whose length has been seen.
 */
#include <zerobit/replay.h>

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

#include "core/config_rules.h"
#include "core/json.h"
#include "core/run_values.h"

#define MAX_BYTES ((size_t)1 << 30)
enum { MAX_WORLD = 1 << 20 };

/* A run being read. */
typedef struct reader {
    zb_run_values *values;
    zb_replay_run *run;
} reader;

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

static void destroy_model(zb_replay_run *run)
{
    for (int p = 0; run->param_names != NULL && p < run->param_count; p++) zb_free(run->param_names[p]);
    for (int m = 0; run->order.layers != NULL && m < run->order.layer_count; m++)
        zb_free(run->order.layers[m].items);
    zb_free(run->param_names);
    zb_free(run->order.layers);
    zb_free(run->order.forward.items);
    zb_free(run->order.backward.items);
    zb_free(run->order.ready.items);
    zb_free(run->frozen);
    zb_free(run->param_numel);
}

static void destroy_run(zb_replay_run *run)
{
    destroy_grads(run);
    destroy_model(run);
    for (int r = 0; run->ranks != NULL && r < run->world_size; r++)
        destroy_rank(&run->ranks[r], run->entry_count);
    zb_free(run->ranks);
    zb_free(run->init);
    zb_config_destroy(run->config);
    zb_free(run->refusal);
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

/* [param] -> parameters behind one another. A frozen one may be null: zeros. */
static zb_status expect_param(const reader *in, const zb_json_at *at, int p, int may_be_null)
{
    if (may_be_null && cJSON_IsNull(at->value)) {
        if (in->run->frozen[p]) return ZB_OK;
        return zb_json_fail(
            at, ZB_UNSUPPORTED,
            "a gradient of %s, which is trained: a parameter without one is not supported yet",
            in->run->param_names[p]);
    }
    return zb_run_values_expect(in->values, at, in->run->param_numel[p]);
}

static zb_status read_params(const reader *in, const zb_json_at *at, int may_be_null, float **out)
{
    const zb_replay_run *run = in->run;
    ZB_TRY(expect_count(at, (size_t)run->param_count));
    int p = 0;
    for (zb_json_at param = zb_json_first(at); param.value != NULL; param = zb_json_next(&param))
        ZB_TRY(expect_param(in, &param, p++, may_be_null));
    float *values = zb_alloc_array(run->numel, sizeof *values);
    if (values == NULL) return ZB_NO_MEMORY;
    *out = values; /* the run's, to be freed with it whatever follows */
    p = 0;
    for (zb_json_at param = zb_json_first(at); param.value != NULL; param = zb_json_next(&param)) {
        if (!cJSON_IsNull(param.value)) ZB_TRY(zb_run_values_read(in->values, &param, values));
        values += run->param_numel[p++];
    }
    return ZB_OK;
}

/* --- gradients --- */

static zb_status read_step_grads(const reader *in, const zb_json_at *step, float ***out)
{
    const zb_replay_run *run = in->run;
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
            ZB_TRY(read_params(in, &rank, run->grads_are_local, &contributions[c++]));
    return ZB_OK;
}

static zb_status read_grads(const reader *in, const zb_json_at *root)
{
    zb_replay_run *run = in->run;
    zb_json_at local = zb_json_member(root, "local_grads"), x = zb_json_member(root, "grads");
    run->grads_are_local = zb_json_given(&local);
    if (run->grads_are_local && zb_json_given(&x))
        return zb_json_fail(&x, ZB_INVALID_CONFIG, "none beside local_grads");
    const zb_json_at grads = run->grads_are_local ? local : x;
    size_t count = 0;
    ZB_TRY(zb_json_array(&grads, &count));
    if (count == 0) return zb_json_fail(&grads, ZB_INVALID_CONFIG, "at least one step");
    run->grads = zb_alloc_array(count, sizeof *run->grads);
    if (run->grads == NULL) return ZB_NO_MEMORY;
    run->step_count = count;
    size_t s = 0;
    for (zb_json_at step = zb_json_first(&grads); step.value != NULL; step = zb_json_next(&step))
        ZB_TRY(read_step_grads(in, &step, &run->grads[s++]));
    return ZB_OK;
}

/* --- what the ranks held --- */

/* {"sha256": text, "numel": n} */
static zb_status read_digest(const zb_json_at *at, zb_replay_tensor *tensor)
{
    zb_json_at digest = zb_json_member(at, "sha256"), numel_at = zb_json_member(at, "numel");
    const char *text;
    int64_t numel;
    ZB_TRY(zb_json_string(&digest, &text));
    if (strlen(text) != sizeof tensor->digest - 1 || strspn(text, "0123456789abcdef") != strlen(text))
        return zb_json_fail(&digest, ZB_INVALID_CONFIG, "64 lower-case hexadecimal digits");
    ZB_TRY(zb_json_int64(&numel_at, 0, ZB_JSON_MAX_INTEGER, &numel));
    memcpy(tensor->digest, text, sizeof tensor->digest);
    tensor->numel = (size_t)numel;
    return ZB_OK;
}

static zb_status read_master(const reader *in, const zb_json_at *at, zb_replay_tensor *tensor)
{
    size_t numel = 0;
    if (cJSON_IsObject(at->value)) return read_digest(at, tensor);
    ZB_TRY(zb_run_values_count(in->values, at, &numel));
    tensor->data = zb_alloc_array(numel, sizeof *tensor->data);
    if (tensor->data == NULL) return ZB_NO_MEMORY;
    tensor->numel = numel;
    return zb_run_values_read(in->values, at, tensor->data);
}

static zb_status read_masters(const reader *in, const zb_json_at *at, zb_replay_entry *entry)
{
    size_t count = 0;
    ZB_TRY(zb_json_array(at, &count));
    entry->masters = zb_alloc_array(count, sizeof *entry->masters);
    if (entry->masters == NULL) return ZB_NO_MEMORY;
    for (zb_json_at tensor = zb_json_first(at); tensor.value != NULL; tensor = zb_json_next(&tensor))
        ZB_TRY(read_master(in, &tensor, &entry->masters[entry->master_count++]));
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

/* Texts and integers; all of a list likewise. */
static zb_status append_item(const zb_json_at *at, zb_replay_call *call, size_t *used)
{
    const char *space = *used > 0 ? " " : "", *text;
    const size_t room = sizeof call->text - *used;
    int64_t number;
    int length;
    if (cJSON_IsString(at->value)) {
        ZB_TRY(zb_json_string(at, &text));
        length = snprintf(call->text + *used, room, "%s%s", space, text);
    } else {
        ZB_TRY(zb_json_int64(at, -1, ZB_JSON_MAX_INTEGER, &number));
        length = snprintf(call->text + *used, room, "%s%" PRId64, space, number);
    }
    *used += (size_t)length;
    if ((size_t)length < room) return ZB_OK;
    return zb_json_fail(at, ZB_INVALID_CONFIG, "a collective of at most %zu characters",
                        sizeof call->text - 1);
}

/* {"ranks": [...]}: not all ranks took part. */
static zb_status append_ranks(const zb_json_at *at, zb_replay_call *call, size_t *used)
{
    zb_json_at ranks = zb_json_member(at, "ranks");
    size_t count;
    ZB_TRY(zb_json_array(&ranks, &count));
    for (zb_json_at rank = zb_json_first(&ranks); rank.value != NULL; rank = zb_json_next(&rank))
        ZB_TRY(append_item(&rank, call, used));
    return ZB_OK;
}

static zb_status read_call(const zb_json_at *at, zb_replay_call *call)
{
    size_t used = 0, count = 0;
    ZB_TRY(zb_json_array(at, &count));
    for (zb_json_at item = zb_json_first(at); item.value != NULL; item = zb_json_next(&item)) {
        if (cJSON_IsObject(item.value))
            ZB_TRY(append_ranks(&item, call, &used));
        else
            ZB_TRY(append_item(&item, call, &used));
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

static zb_status read_entry(const reader *in, const zb_json_at *at, int64_t want_step, zb_replay_entry *entry)
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
    return read_masters(in, &masters, entry);
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

static zb_status read_rank(const reader *in, const zb_json_at *at, zb_replay_rank *rank)
{
    zb_replay_run *run = in->run;
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
        ZB_TRY(read_entry(in, &entry, e - 1, &rank->entries[e]));
    return check_entry_count(&steps, rank, count, run->step_count);
}

/* The world's size has been seen to be the length of `ranks`. */
static zb_status read_ranks(const reader *in, const zb_json_at *ranks)
{
    int r = 0;
    for (zb_json_at rank = zb_json_first(ranks); rank.value != NULL; rank = zb_json_next(&rank))
        ZB_TRY(read_rank(in, &rank, &in->run->ranks[r++]));
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

/* --- the model --- */

static zb_status read_names(const zb_json_at *root, zb_replay_run *run)
{
    zb_json_at names = zb_json_member(root, "names");
    if (zb_json_given(&names)) ZB_TRY(expect_count(&names, (size_t)run->param_count));
    run->param_names = zb_alloc_array((size_t)run->param_count, sizeof *run->param_names);
    if (run->param_names == NULL) return ZB_NO_MEMORY;
    int p = 0;
    for (zb_json_at name = zb_json_first(&names); name.value != NULL; name = zb_json_next(&name))
        ZB_TRY(read_text(&name, &run->param_names[p++]));
    for (; p < run->param_count; p++) {
        char index[16];
        snprintf(index, sizeof index, "p%d", p);
        if ((run->param_names[p] = zb_strdup(index)) == NULL) return ZB_NO_MEMORY;
    }
    return ZB_OK;
}

/* Optional; indices below `limit`. */
static zb_status read_list(const zb_json_at *at, int limit, zb_index_list *list)
{
    size_t count = 0;
    if (!zb_json_given(at)) return ZB_OK;
    ZB_TRY(zb_json_array(at, &count));
    if (count > INT_MAX) return zb_json_fail(at, ZB_INVALID_CONFIG, "at most %d indices", INT_MAX);
    if (count > 0 && limit == 0) /* there is always a parameter */
        return zb_json_fail(at, ZB_INVALID_CONFIG, "[] or modules for it to list");
    list->items = zb_alloc_array(count, sizeof *list->items);
    if (list->items == NULL) return ZB_NO_MEMORY;
    for (zb_json_at item = zb_json_first(at); item.value != NULL; item = zb_json_next(&item)) {
        int64_t index;
        ZB_TRY(zb_json_int64(&item, 0, limit - 1, &index));
        list->items[list->count++] = (int)index;
    }
    return ZB_OK;
}

static zb_status read_frozen(const zb_json_at *root, zb_replay_run *run)
{
    zb_json_at frozen = zb_json_member(root, "frozen");
    zb_index_list list = { 0 };
    run->frozen = zb_alloc_array((size_t)run->param_count, sizeof *run->frozen);
    if (run->frozen == NULL) return ZB_NO_MEMORY;
    const zb_status status = read_list(&frozen, run->param_count, &list);
    for (int i = 0; status == ZB_OK && i < list.count; i++) run->frozen[list.items[i]] = 1;
    zb_free(list.items);
    for (int p = 0; p < run->param_count; p++)
        if (!run->frozen[p]) run->trainable_numel += run->param_numel[p];
    return status;
}

static zb_status read_modules(const zb_json_at *root, zb_replay_run *run)
{
    zb_json_at modules = zb_json_member(root, "modules");
    size_t count = 0;
    if (!zb_json_given(&modules)) return ZB_OK;
    ZB_TRY(zb_json_array(&modules, &count));
    if (count > INT_MAX) return zb_json_fail(&modules, ZB_INVALID_CONFIG, "at most %d modules", INT_MAX);
    run->order.layers = zb_alloc_array(count, sizeof *run->order.layers);
    if (run->order.layers == NULL) return ZB_NO_MEMORY;
    run->order.layer_count = (int)count;
    zb_index_list *list = run->order.layers;
    for (zb_json_at module = zb_json_first(&modules); module.value != NULL; module = zb_json_next(&module)) {
        zb_json_at params = zb_json_member(&module, "params");
        size_t own;
        ZB_TRY(zb_json_array(&params, &own)); /* here it is not optional */
        ZB_TRY(read_list(&params, run->param_count, list++));
    }
    return ZB_OK;
}

static zb_status read_model(const zb_json_at *root, zb_replay_run *run)
{
    zb_json_at forward = zb_json_member(root, "forward"), backward = zb_json_member(root, "backward");
    zb_json_at order = zb_json_member(root, "gradient_order");
    ZB_TRY(read_sizes(root, run));
    ZB_TRY(read_names(root, run));
    ZB_TRY(read_frozen(root, run));
    ZB_TRY(read_modules(root, run));
    ZB_TRY(read_list(&forward, run->order.layer_count, &run->order.forward));
    ZB_TRY(read_list(&backward, run->order.layer_count, &run->order.backward));
    return read_list(&order, run->param_count, &run->order.ready);
}

/* tools/capture's name of what zerobit calls plain: the CUDA kernels' formula, each operation rounded on its
 * own. */
static const char plain_arithmetic[] = "deepspeed-cuda-ieee";

static zb_status read_arithmetic(const zb_json_at *optimizer, zb_optimizer_kind kind,
                                 zb_optimizer_arithmetic *out)
{
    zb_json_at at = zb_json_member(optimizer, "arithmetic");
    zb_json_at capability = zb_json_member(optimizer, "cpu_capability");
    const char *text, *processor;
    ZB_TRY(zb_json_string(&at, &text));
    int found = strcmp(text, plain_arithmetic) == 0 ? (int)ZB_ARITHMETIC_PLAIN : -1;
    for (int a = ZB_ARITHMETIC_PLAIN + 1; a < ZB_ARITHMETIC_COUNT && found < 0; a++)
        if (strcmp(text, zb_optimizer_arithmetic_name((zb_optimizer_arithmetic)a)) == 0) found = a;
    if (found < 0 || !zb_optimizer_has_arithmetic(kind, (zb_optimizer_arithmetic)found))
        return zb_json_fail(&at, ZB_UNSUPPORTED, "an arithmetic that %s is known in here",
                            zb_optimizer_kind_name(kind));
    if (zb_json_given(&capability)) {
        ZB_TRY(zb_json_string(&capability, &processor));
        if (strcmp(processor, "AVX2") != 0)
            return zb_json_fail(&capability, ZB_UNSUPPORTED,
                                "AVX2, which torch.optim's arithmetic here is of");
    }
    *out = (zb_optimizer_arithmetic)found;
    return ZB_OK;
}

/* The implementation that really ran, whatever the config means by itself. */
static zb_status read_optimizer(const zb_json_at *root, zb_config *config)
{
    zb_json_at optimizer = zb_json_member(root, "optimizer"),
               width_at = zb_json_member(&optimizer, "simd_width");
    zb_optimizer_arithmetic arithmetic = ZB_ARITHMETIC_PLAIN;
    int64_t width = 0;
    if (!zb_json_given(&optimizer) || !config->optimizer_given) return ZB_OK;
    ZB_TRY(zb_json_object(&optimizer));
    ZB_TRY(read_arithmetic(&optimizer, config->optimizer.kind, &arithmetic));
    if (zb_json_given(&width_at)) ZB_TRY(zb_json_int64(&width_at, 0, ZB_JSON_MAX_INTEGER, &width));
    if (zb_json_given(&width_at) && width != 8 && width != 16)
        return zb_json_fail(&width_at, ZB_INVALID_CONFIG, "8 (AVX2) or 16 (AVX-512)");
    config->optimizer.arithmetic = arithmetic;
    if (width > 0) config->optimizer.vector_width = (int)width;
    for (int g = 0; g < config->group_count; g++) {
        config->groups[g].optimizer.arithmetic = arithmetic;
        config->groups[g].optimizer.vector_width = config->optimizer.vector_width;
    }
    return ZB_OK;
}

/* Who trained, and so what its config means. FSDP2 is recorded too, and nobody here plays it. */
static zb_status read_framework(const zb_json_at *root, zb_semantics *semantics)
{
    zb_json_at at = zb_json_member(root, "framework");
    const char *text;
    if (!zb_json_given(&at)) return ZB_OK;
    ZB_TRY(zb_json_string(&at, &text));
    const int is_ddp = strcmp(text, "ddp") == 0;
    if (!is_ddp && strcmp(text, "deepspeed") != 0)
        return zb_json_fail(&at, ZB_UNSUPPORTED, "\"deepspeed\" or \"ddp\"");
    if (is_ddp) *semantics = ZB_SEMANTICS_PYTORCH_DDP;
    return ZB_OK;
}

/* Who added. Two numbers have one sum. DistributedDataParallel's buckets are not known here, and with them
 * where in a collective an element lies. */
static zb_status read_collectives(const zb_json_at *root, const zb_replay_run *run)
{
    zb_json_at at = zb_json_member(root, "collectives");
    const char *text;
    if (!zb_json_given(&at)) return ZB_OK;
    ZB_TRY(zb_json_string(&at, &text));
    if (strcmp(text, "rank") != 0 && strcmp(text, "gloo") != 0)
        return zb_json_fail(&at, ZB_INVALID_CONFIG, "\"rank\" or \"gloo\"");
    if (strcmp(text, "rank") == 0 || run->world_size <= 2) return ZB_OK;
    if (run->config->semantics == ZB_SEMANTICS_DEEPSPEED_0_19_6)
        return zb_config_set_order(run->config, text);
    return zb_json_fail(
        &at, ZB_UNSUPPORTED,
        "\"rank\" with %d ranks: gloo's order depends on the buckets, which are the framework's own",
        run->world_size);
}

static zb_status read_config(const zb_json_at *root, const char *path, zb_semantics semantics,
                             zb_replay_run *run)
{
    char label[512];
    snprintf(label, sizeof label, "%s: run %s", path, run->name);
    zb_json_at config = zb_json_member(root, "config");
    ZB_TRY(zb_config_read(&config, label, semantics, &run->config));
    zb_batch_triangle batch;
    if (zb_batch_resolve(&run->config->batch, run->world_size, &batch) != ZB_OK)
        return zb_fail_context("%s", label);
    run->accumulation_steps = batch.accumulation_steps;
    ZB_TRY(read_collectives(root, run));
    return read_optimizer(root, run->config);
}

static zb_status read_run(const zb_json_at *at, zb_run_values *values, zb_replay_run *run)
{
    const reader in = { .values = values, .run = run };
    zb_json_at name = zb_json_member(at, "name"), world_at = zb_json_member(at, "world");
    zb_json_at init = zb_json_member(at, "init"), ranks = zb_json_member(at, "ranks");
    zb_semantics semantics = ZB_SEMANTICS_DEEPSPEED_0_19_6;
    int64_t world;
    ZB_TRY(read_text(&name, &run->name));
    ZB_TRY(zb_json_int64(&world_at, 1, MAX_WORLD, &world));
    ZB_TRY(expect_count(&ranks, (size_t)world));
    ZB_TRY(read_framework(at, &semantics));
    run->ranks = zb_alloc_array((size_t)world, sizeof *run->ranks);
    if (run->ranks == NULL) return ZB_NO_MEMORY;
    run->world_size = (int)world;
    ZB_TRY(read_model(at, run));
    ZB_TRY(read_config(at, values->path, semantics, run));
    ZB_TRY(read_params(&in, &init, 0, &run->init));
    ZB_TRY(read_grads(&in, at));
    return read_ranks(&in, &ranks);
}

/* What one run asks for that is not supported says nothing of the others. */
static zb_status note_refusal(zb_replay_run *run)
{
    run->refusal = zb_strdup(zb_error_message());
    return run->refusal == NULL ? ZB_NO_MEMORY : ZB_OK;
}

static zb_status read_runs(const zb_json *json, zb_run_values *values, zb_replay_file *file)
{
    zb_json_at root = zb_json_root(json);
    size_t count = 0;
    ZB_TRY(zb_json_array(&root, &count));
    if (count == 0) return zb_json_fail(&root, ZB_INVALID_CONFIG, "at least one run");
    file->runs = zb_alloc_array(count, sizeof *file->runs);
    if (file->runs == NULL) return ZB_NO_MEMORY;
    file->run_count = count;
    size_t i = 0;
    for (zb_json_at run = zb_json_first(&root); run.value != NULL; run = zb_json_next(&run), i++) {
        const zb_status status = read_run(&run, values, &file->runs[i]);
        if (status == ZB_UNSUPPORTED)
            ZB_TRY(note_refusal(&file->runs[i]));
        else if (status != ZB_OK)
            return status;
    }
    return ZB_OK;
}

zb_status zb_replay_load(const char *path, zb_replay_file **file_p)
{
    zb_json *json;
    ZB_TRY(zb_json_load_up_to(MAX_BYTES, path, &json));
    zb_replay_file *file = zb_alloc(sizeof *file);
    zb_run_values values = { .path = path };
    zb_status status = file == NULL ? ZB_NO_MEMORY : read_runs(json, &values, file);
    zb_run_values_close(&values);
    zb_json_destroy(json);
    if (status != ZB_OK) {
        zb_replay_destroy(file);
        return status;
    }
    *file_p = file;
    return ZB_OK;
}
