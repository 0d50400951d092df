/* Random runs; see random_run.h. */
#include "tests/equivalence/random_run.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/memory.h>

#include "tests/equivalence/draw.h"

enum { PARAMS_MAX = 6, STEPS_MAX = 5, WORLD_MAX = 5 };

/* --- config --- */

typedef struct writer {
    draw *d;
    char *text;
    size_t room, used;
    const char *arithmetic; /* of the optimizer */
} writer;

static void put(writer *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(writer *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    w->used += (size_t)vsnprintf(w->text + w->used, w->room - w->used, format, args);
    va_end(args);
    ZB_ASSERT(w->used < w->room);
}

static const char *pick(draw *d, const char *const *list, int count)
{
    return list[between(d, 0, count - 1)];
}
#define PICK(d, ...)                                                                                         \
    pick((d), (const char *const[]){ __VA_ARGS__ },                                                          \
         (int)(sizeof((const char *const[]){ __VA_ARGS__ }) / sizeof(const char *)))

static const char *boolean(draw *d)
{
    return one_in(d, 2) ? "true" : "false";
}

static void put_precision(writer *w, zb_dtype dtype)
{
    draw *d = w->d;
    if (dtype == ZB_BF16) put(w, ", \"bf16\": {\"enabled\": true, \"check_grad_overflow\": %s}", boolean(d));
    if (dtype != ZB_FP16) return;
    if (one_in(d, 4))
        put(w, ", \"fp16\": {\"enabled\": true, \"loss_scale\": %s}", PICK(d, "1", "8", "100"));
    else
        put(w,
            ", \"fp16\": {\"enabled\": true, \"initial_scale_power\": %d, \"loss_scale_window\": %d, "
            "\"hysteresis\": %d, \"consecutive_hysteresis\": %s, \"min_loss_scale\": %d}",
            between(d, 0, 6), between(d, 1, 3), between(d, 1, 3), boolean(d), 1 << between(d, 0, 2));
}

static void put_zero(writer *w, int stage)
{
    draw *d = w->d;
    put(w, ", \"zero_optimization\": {\"stage\": %d, \"overlap_comm\": %s", stage, boolean(d));
    if (!one_in(d, 3)) put(w, ", \"reduce_bucket_size\": %d", between(d, 1, 40));
    if (one_in(d, 3)) put(w, ", \"reduce_scatter\": %s", boolean(d));
    if (one_in(d, 3)) put(w, ", \"contiguous_gradients\": %s", boolean(d));
    if (stage == 1 || stage == 2) {
        if (one_in(d, 2)) put(w, ", \"use_multi_rank_bucket_allreduce\": %s", boolean(d));
        if (one_in(d, 2)) put(w, ", \"round_robin_gradients\": %s", boolean(d));
    }
    if (stage == 3) {
        if (one_in(d, 2)) put(w, ", \"sub_group_size\": %d", between(d, 1, 30));
        if (one_in(d, 2)) put(w, ", \"stage3_param_persistence_threshold\": %d", between(d, 0, 20));
        if (one_in(d, 3)) put(w, ", \"stage3_prefetch_bucket_size\": %d", between(d, 0, 30));
        if (one_in(d, 3)) put(w, ", \"stage3_max_reuse_distance\": %d", between(d, 0, 30));
    }
    put(w, "}");
}

static void put_averaging(writer *w)
{
    draw *d = w->d;
    if (one_in(d, 8)) put(w, ", \"gradient_allreduce_op\": \"sum\"");
    if (one_in(d, 8)) put(w, ", \"prescale_gradients\": true");
    if (one_in(d, 8)) put(w, ", \"gradient_predivide_factor\": %s", PICK(d, "2", "3", "0.5"));
    if (one_in(d, 6)) put(w, ", \"communication_data_type\": \"%s\"", PICK(d, "fp32", "fp16", "bf16"));
    if (one_in(d, 6)) put(w, ", \"data_types\": {\"grad_accum_dtype\": \"fp32\"}");
}

/* Of several, since the tensors that DeepSpeed cuts matter to some. */
static void put_optimizer(writer *w)
{
    draw *d = w->d;
    const char *rate = PICK(d, "0.01", "0.3"), *decay = PICK(d, "0", "0.01", "0.5");
    const int kind = between(d, 0, 7);
    put(w, ", \"optimizer\": {\"type\": \"%s\", \"params\": {\"lr\": %s, \"weight_decay\": %s",
        kind == 0   ? "SGD"
        : kind == 1 ? "Adagrad"
        : kind == 2 ? "Lion"
                    : PICK(d, "Adam", "AdamW"),
        rate, decay);
    if (kind == 0) {
        put(w, "%s}}, \"zero_allow_untested_optimizer\": true", PICK(d, "", ", \"momentum\": 0.9"));
        w->arithmetic = PICK(d, "torch-1.13", "torch-2", "plain");
    } else if (kind == 1) {
        put(w, "}}");
        w->arithmetic = PICK(d, "torch-2", "plain", "deepspeed-cpu");
    } else {
        put(w, ", \"betas\": [0.9, 0.99]%s", kind > 2 && one_in(d, 3) ? ", \"adam_w_mode\": false" : "");
        if (kind == 3) put(w, ", \"torch_adam\": true");
        put(w, "}}");
        w->arithmetic = kind == 3 ? PICK(d, "torch-1.13", "torch-2") : PICK(d, "plain", "deepspeed-cpu");
    }
    if (one_in(d, 3))
        put(w,
            ", \"scheduler\": {\"type\": \"WarmupLR\", \"params\": {\"warmup_min_lr\": 0.002, "
            "\"warmup_max_lr\": 0.03, \"warmup_num_steps\": %d, \"warmup_type\": \"linear\"}}",
            between(d, 1, 5));
}

static void put_quirks(writer *w)
{
    put(w, ", \"zerobit\": {\"semantics\": \"deepspeed-0.19.6\", \"optimizer_arithmetic\": \"%s\"",
        w->arithmetic);
    if (one_in(w->d, 2)) put(w, ", \"optimizer_vector_width\": 16");
    const char *separator = ", \"quirks\": {";
    int any = 0;
    for (int q = 0; q < ZB_QUIRK_COUNT; q++) {
        if (!one_in(w->d, 10) || q == ZB_QUIRK_optimizer_sees_flat_tensors) continue; /* needed to compare */
        put(w, "%s\"%s\": %s", separator, zb_quirk_name((zb_quirk)q), boolean(w->d));
        separator = ", ";
        any = 1;
    }
    put(w, "%s}", any ? "}" : "");
}

static void write_config(random_run *r, draw *d)
{
    static const zb_dtype dtypes[] = { ZB_FP32, ZB_FP16, ZB_BF16 };
    writer w = { .d = d, .text = r->config_text, .room = sizeof r->config_text };
    put(&w,
        "{\"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": %d, \"gradient_clipping\": "
        "%s",
        between(d, 1, 3), PICK(d, "0", "1.0", "0.1"));
    put_zero(&w, between(d, 0, 3));
    put_precision(&w, dtypes[between(d, 0, 2)]);
    put_averaging(&w);
    put_optimizer(&w);
    put_quirks(&w);
    put(&w, "}");
}

/* --- the run --- */

static zb_status create_params(zb_replay_run *run, draw *d)
{
    run->param_count = between(d, 1, PARAMS_MAX);
    const size_t count = (size_t)run->param_count;
    run->param_numel = zb_alloc_array(count, sizeof *run->param_numel);
    run->param_names = zb_alloc_array(count, sizeof *run->param_names);
    run->frozen = zb_alloc_array(count, sizeof *run->frozen);
    if (run->param_numel == NULL || run->param_names == NULL || run->frozen == NULL) return ZB_NO_MEMORY;
    for (size_t p = 0; p < count; p++) {
        char name[16];
        snprintf(name, sizeof name, "p%zu", p);
        if ((run->param_names[p] = zb_strdup(name)) == NULL) return ZB_NO_MEMORY;
        run->param_numel[p] = (size_t)between(d, 1, one_in(d, 3) ? 30 : 8);
        run->frozen[p] = p > 0 && one_in(d, 8);
        run->numel += run->param_numel[p];
        if (!run->frozen[p]) run->trainable_numel += run->param_numel[p];
    }
    return ZB_OK;
}

static float random_value(draw *d)
{
    return ldexpf((float)between(d, -4096, 4096), between(d, -14, -10));
}

static zb_status create_values(zb_replay_run *run, draw *d, float **out)
{
    *out = zb_alloc_array(run->numel, sizeof **out);
    if (*out == NULL) return ZB_NO_MEMORY;
    for (size_t i = 0; i < run->numel; i++) (*out)[i] = random_value(d);
    return ZB_OK;
}

/* Now and then one rank's gradient overflows in one element. */
static zb_status create_gradients(zb_replay_run *run, draw *d)
{
    const size_t contributions = (size_t)run->accumulation_steps * (size_t)run->world_size;
    const int spoils = one_in(d, 2);
    run->grads = zb_alloc_array(STEPS_MAX, sizeof *run->grads);
    if (run->grads == NULL) return ZB_NO_MEMORY;
    run->step_count = (size_t)between(d, 1, STEPS_MAX);
    for (size_t s = 0; s < run->step_count; s++) {
        run->grads[s] = zb_alloc_array(contributions, sizeof **run->grads);
        if (run->grads[s] == NULL) return ZB_NO_MEMORY;
        for (size_t c = 0; c < contributions; c++) ZB_TRY(create_values(run, d, &run->grads[s][c]));
        if (spoils && one_in(d, 3))
            run->grads[s][next(d) % contributions][next(d) % run->numel] = one_in(d, 4) ? NAN : INFINITY;
    }
    return ZB_OK;
}

static zb_status create_run(random_run *r, draw *d, zb_replay_run *run)
{
    zb_batch_triangle batch;
    if ((run->name = zb_strdup("random")) == NULL) return ZB_NO_MEMORY;
    run->ranks = zb_alloc_array(WORLD_MAX, sizeof *run->ranks);
    if (run->ranks == NULL) return ZB_NO_MEMORY;
    run->world_size = between(d, 1, WORLD_MAX);
    ZB_TRY(create_params(run, d));
    ZB_TRY(zb_config_parse(r->config_text, strlen(r->config_text), "random.json", &run->config));
    ZB_TRY(zb_batch_resolve(&run->config->batch, run->world_size, &batch));
    run->accumulation_steps = batch.accumulation_steps;
    ZB_TRY(create_values(run, d, &run->init));
    return create_gradients(run, d);
}

zb_status random_run_create(uint64_t number, random_run *r)
{
    draw d = { .state = number };
    *r = (random_run){ .number = number };
    write_config(r, &d);
    if ((r->file = zb_alloc(sizeof *r->file)) == NULL) return ZB_NO_MEMORY;
    if ((r->file->runs = zb_alloc(sizeof *r->file->runs)) == NULL) return ZB_NO_MEMORY;
    r->file->run_count = 1;
    return create_run(r, &d, &r->file->runs[0]);
}

void random_run_destroy(random_run *r)
{
    zb_replay_destroy(r->file);
}

/* --- recording --- */

static zb_status copy_masters(const zb_replay_state *state, zb_replay_entry *entry)
{
    entry->masters = zb_alloc_array(state->tensor_count, sizeof *entry->masters);
    if (entry->masters == NULL) return ZB_NO_MEMORY;
    for (; entry->master_count < state->tensor_count; entry->master_count++) {
        zb_replay_tensor *tensor = &entry->masters[entry->master_count];
        tensor->numel = state->tensor_numel[entry->master_count];
        tensor->data = zb_alloc_array(tensor->numel, sizeof *tensor->data);
        if (tensor->data == NULL) return ZB_NO_MEMORY;
    }
    for (size_t i = 0; i < state->piece_count; i++) {
        const zb_replay_piece *piece = &state->pieces[i];
        memcpy(entry->masters[piece->tensor].data + piece->at, piece->data, piece->numel * sizeof(float));
    }
    return ZB_OK;
}

static zb_status copy_state(const zb_replay_state *state, zb_replay_entry *entry)
{
    entry->has_norm = state->has_norm;
    entry->norm = state->norm;
    entry->has_scale = state->has_scale;
    entry->scale = state->scale;
    entry->skipped = state->skipped;
    entry->lr = zb_alloc_array(state->lr_count, sizeof *entry->lr);
    if (entry->lr == NULL) return ZB_NO_MEMORY;
    entry->lr_count = state->lr_count;
    memcpy(entry->lr, state->lr, state->lr_count * sizeof *entry->lr);
    return copy_masters(state, entry);
}

/* One entry of every rank. */
static zb_status record_entry(zb_replay_run *run, const zb_replay_player *player, size_t index, int gave_up)
{
    for (int rank = 0; rank < run->world_size; rank++) {
        zb_replay_entry *entry = &run->ranks[rank].entries[index];
        zb_replay_state state = { 0 };
        if (gave_up) {
            if ((entry->error = zb_strdup(zb_error_message())) == NULL) return ZB_NO_MEMORY;
            continue;
        }
        player->state(player->self, rank, &state);
        ZB_TRY(copy_state(&state, entry));
    }
    return ZB_OK;
}

zb_status random_run_record(random_run *r, const zb_replay_player *player)
{
    zb_replay_run *run = &r->file->runs[0];
    for (int rank = 0; rank < run->world_size; rank++) {
        run->ranks[rank].entries = zb_alloc_array(run->step_count + 1, sizeof(zb_replay_entry));
        if (run->ranks[rank].entries == NULL) return ZB_NO_MEMORY;
    }
    run->entry_count = 1;
    ZB_TRY(record_entry(run, player, 0, 0));
    for (size_t step = 0; step < run->step_count; step++) {
        const zb_status status = player->step(player->self, step);
        if (status != ZB_OK && status != ZB_LOSS_SCALE) return status;
        run->entry_count++;
        ZB_TRY(record_entry(run, player, step + 1, status == ZB_LOSS_SCALE));
        if (status == ZB_LOSS_SCALE) break;
    }
    return ZB_OK;
}
