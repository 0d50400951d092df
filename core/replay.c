/*
 * Plays a recorded run: lets a player take its steps and compares, after each of them, what every rank holds
 * with what was recorded. Who plays is not known here. Reading order: zb_replay_play, compare_entry.
 */
#include <zerobit/replay.h>

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/plan_optimizer.h"
#include "core/sha256.h"

/* Where a comparison is, and what has come of it. */
typedef struct place {
    const zb_replay_run *run;
    const zb_replay_player *player;
    int64_t step; /* -1: after initialize */
    int rank;
    zb_replay_result *result;
} place;

/* Returns whether to stop. */
static int differs(const place *at, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int differs(const place *at, const char *format, ...)
{
    zb_replay_result *result = at->result;
    const size_t room = sizeof result->text;
    int used = at->step < 0 ? snprintf(result->text, room, "after initialize, rank %d, ", at->rank)
                            : snprintf(result->text, room, "step %" PRId64 ", rank %d, ", at->step, at->rank);
    va_list args;
    va_start(args, format);
    used += vsnprintf(result->text + used, room - (size_t)used, format, args);
    va_end(args);
    if ((size_t)used < room) snprintf(result->text + used, room - (size_t)used, " by %s", at->player->name);
    result->different = 1;
    return 1;
}

static int same_double(double a, double b)
{
    return (isnan(a) && isnan(b)) || memcmp(&a, &b, sizeof a) == 0;
}

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static int same_float(float a, float b)
{
    return (isnan(a) && isnan(b)) || bits_of(a) == bits_of(b);
}

/* DeepSpeed's stage 0 in fp32 keeps the norm that it clips by to itself. A loop around
 * DistributedDataParallel has one where it clips. */
int zb_replay_tells_norm(const zb_plan *plan)
{
    if (plan->norm == ZB_NORM_PYTORCH) return plan->clip_norm > 0.0;
    return plan->norm != ZB_NORM_PARAMETERS_MEAN;
}

/* Stage 0 in fp32 has no optimizer wrapper to ask, and BF16_Optimizer no loss scale. */
int zb_replay_tells_scale(const zb_plan *plan)
{
    const int is_plain = plan->tensors == ZB_TENSORS_PARAMETERS && plan->param_dtype == ZB_FP32;
    return !is_plain && plan->overflow != ZB_OVERFLOW_STOP;
}

static int compare_count(const place *at, const char *what, size_t recorded, size_t played)
{
    if (recorded == played) return 0;
    return differs(at, "%s: %zu recorded, %zu", what, recorded, played);
}

static int compare_double(const place *at, const char *what, double recorded, double played)
{
    at->result->values_compared++;
    if (same_double(recorded, played)) return 0;
    return differs(at, "%s: %a recorded, %a", what, recorded, played);
}

/* A quantity that DeepSpeed may leave out: null. */
static int compare_optional(const place *at, const char *what, int has_recorded, double recorded,
                            int has_played, double played)
{
    if (has_recorded && has_played) return compare_double(at, what, recorded, played);
    at->result->values_compared++;
    if (!has_recorded == !has_played) return 0;
    return differs(at, "%s: %s recorded, %s", what, has_recorded ? "a number" : "null",
                   has_played ? "a number" : "null");
}

static int compare_skipped(const place *at, int64_t recorded, int64_t played)
{
    at->result->values_compared++;
    if (recorded == played) return 0;
    return differs(at, "skipped steps: %" PRId64 " recorded, %" PRId64, recorded, played);
}

static int compare_scalars(const place *at, const zb_replay_entry *entry, const zb_replay_state *state)
{
    if (compare_optional(at, "gradient norm", entry->has_norm, entry->norm, state->has_norm, state->norm) ||
        compare_optional(at, "loss scale", entry->has_scale, entry->scale, state->has_scale, state->scale) ||
        compare_count(at, "learning rates", entry->lr_count, state->lr_count))
        return 1;
    for (size_t group = 0; group < entry->lr_count; group++)
        if (compare_double(at, "learning rate", entry->lr[group], state->lr[group])) return 1;
    return 0;
}

static int compare_calls(const place *at, const zb_replay_entry *entry, const zb_replay_state *state)
{
    if (entry->calls == NULL || state->calls == NULL) return 0;
    for (size_t i = 0; i < entry->call_count || i < state->call_count; i++) {
        const char *recorded = i < entry->call_count ? entry->calls[i].text : "none";
        const char *played = i < state->call_count ? state->calls[i].text : "none";
        at->result->values_compared++;
        if (strcmp(recorded, played) != 0)
            return differs(at, "collective %zu: %s recorded, %s", i, recorded, played);
    }
    return 0;
}

static int compare_piece(const place *at, const zb_replay_piece *piece, const zb_replay_tensor *tensor)
{
    ZB_ASSERT(piece->at <= tensor->numel && piece->numel <= tensor->numel - piece->at);
    const float *recorded = tensor->data + piece->at, *played = piece->data;
    at->result->values_compared += piece->numel;
    for (size_t i = 0; i < piece->numel; i++)
        if (!same_float(recorded[i], played[i]))
            return differs(at, "fp32 weight %s[%zu]: 0x%08x (%.9g) recorded, 0x%08x (%.9g)",
                           at->run->param_names[piece->param], piece->first + i, bits_of(recorded[i]),
                           (double)recorded[i], bits_of(played[i]), (double)played[i]);
    return 0;
}

static void add_padding(zb_sha256 *sha, size_t numel)
{
    static const float zeros[256];
    while (numel > 0) {
        const size_t chunk = numel < 256 ? numel : 256;
        zb_sha256_add(sha, zeros, chunk * sizeof *zeros);
        numel -= chunk;
    }
}

/* Of a tensor of which only the digest was kept. Pieces come in the order in which they lie. */
static int compare_digest(const place *at, size_t t, const zb_replay_tensor *tensor,
                          const zb_replay_state *state)
{
    char digest[ZB_SHA256_TEXT_BYTES];
    size_t done = 0;
    zb_sha256 sha;
    zb_sha256_init(&sha);
    for (size_t i = 0; i < state->piece_count; i++) {
        const zb_replay_piece *piece = &state->pieces[i];
        if (piece->tensor != t) continue;
        ZB_ASSERT(piece->at >= done && piece->numel <= tensor->numel - piece->at);
        add_padding(&sha, piece->at - done);
        zb_sha256_add(&sha, piece->data, piece->numel * sizeof *piece->data);
        done = piece->at + piece->numel;
        at->result->values_compared += piece->numel;
    }
    add_padding(&sha, tensor->numel - done);
    zb_sha256_finish(&sha, digest);
    if (strcmp(digest, tensor->digest) == 0) return 0;
    return differs(at, "SHA-256 of fp32 tensor %zu: %.16s... recorded, %.16s...", t, tensor->digest, digest);
}

/* Padding is compared by its length only: at stage 3 it is whatever memory held. */
static int compare_masters(const place *at, const zb_replay_entry *entry, const zb_replay_state *state)
{
    if (compare_count(at, "fp32 tensors", entry->master_count, state->tensor_count)) return 1;
    for (size_t t = 0; t < state->tensor_count; t++)
        if (entry->masters[t].numel != state->tensor_numel[t])
            return differs(at, "elements of fp32 tensor %zu: %zu recorded, %zu", t, entry->masters[t].numel,
                           state->tensor_numel[t]);
    for (size_t i = 0; i < state->piece_count; i++) {
        const zb_replay_tensor *tensor = &entry->masters[state->pieces[i].tensor];
        if (tensor->data != NULL && compare_piece(at, &state->pieces[i], tensor)) return 1;
    }
    for (size_t t = 0; t < state->tensor_count; t++)
        if (entry->masters[t].data == NULL && compare_digest(at, t, &entry->masters[t], state)) return 1;
    return 0;
}

static int compare_entry(const place *at, const zb_replay_entry *entry, const zb_replay_state *state)
{
    if (at->step >= 0 && (compare_skipped(at, entry->skipped, state->skipped) ||
                          compare_calls(at, entry, state) || compare_scalars(at, entry, state)))
        return 1;
    return compare_masters(at, entry, state);
}

static int compare_outcome(const place *at, const zb_replay_entry *entry, int gave_up)
{
    at->result->values_compared++;
    if ((entry->error != NULL) == gave_up) return 0;
    return differs(at, "%s recorded, %s", gave_up ? "no error" : entry->error,
                   gave_up ? zb_error_message() : "no error");
}

/* Every trained element is somebody's: at stage 0 everybody's, else one rank's. What a player leaves out is
 * its bug, and would otherwise compare equal. */
static void check_covered(const place *at, size_t covered)
{
    const size_t copies = at->run->config->zero.stage == 0 ? (size_t)at->run->world_size : 1;
    ZB_ASSERT(covered == copies * at->run->trainable_numel);
}

/* Entry `index` of every rank. Returns whether to stop. */
static int compare(place at, size_t index, int gave_up)
{
    size_t covered = 0;
    at.step = (int64_t)index - 1;
    for (at.rank = 0; at.rank < at.run->world_size; at.rank++) {
        const zb_replay_entry *entry = &at.run->ranks[at.rank].entries[index];
        zb_replay_state state = { 0 };
        if (compare_outcome(&at, entry, gave_up)) return 1;
        if (gave_up) continue;
        at.player->state(at.player->self, at.rank, &state);
        if (compare_entry(&at, entry, &state)) return 1;
        for (size_t i = 0; i < state.piece_count; i++) covered += state.pieces[i].numel;
    }
    if (!gave_up) check_covered(&at, covered);
    return 0;
}

static const char *basic_optimizer_of(const zb_optimizer_config *optimizer)
{
    switch (optimizer->kind) {
    case ZB_OPTIMIZER_SGD:
        return "SGD";
    case ZB_OPTIMIZER_ADAGRAD:
        return "Adagrad";
    case ZB_OPTIMIZER_LION:
        return "FusedLion";
    case ZB_OPTIMIZER_LAMB:
        return "FusedLamb";
    case ZB_OPTIMIZER_ADAM:
    case ZB_OPTIMIZER_KIND_COUNT:
        break;
    }
    if (!zb_optimizer_is_of_torch(optimizer)) return "FusedAdam";
    return optimizer->decay_mode == ZB_DECAY_DECOUPLED ? "AdamW" : "Adam";
}

/* The class of which the plan is. Source of DeepSpeed's: runtime/engine.py, _configure_optimizer. */
static const char *wrapper_of(const zb_config *config)
{
    const int wide = config->grad_accum_dtype == ZB_FP32 && config->dtype == ZB_BF16;
    if (config->semantics == ZB_SEMANTICS_PYTORCH_DDP) return "DistributedDataParallel";
    if (config->zero.stage == 3) return "DeepSpeedZeroOptimizer_Stage3";
    if (config->zero.stage == 1 && wide) return "BF16_Optimizer";
    if (config->zero.stage > 0) return "DeepSpeedZeroOptimizer";
    const char *basic = basic_optimizer_of(&config->optimizer);
    if (config->dtype == ZB_FP32) return basic;
    return strcmp(basic, "FusedAdam") == 0 ? "FP16_Optimizer" : "FP16_UnfusedOptimizer";
}

static zb_status check_deepspeed(const zb_replay_run *run)
{
    if (run->config->semantics != ZB_SEMANTICS_DEEPSPEED_0_19_6)
        return zb_fail(ZB_INVALID_CONFIG, "%s: zerobit.semantics: is \"%s\", want \"%s\"", run->config->path,
                       zb_semantics_name(run->config->semantics),
                       zb_semantics_name(ZB_SEMANTICS_DEEPSPEED_0_19_6));
    if (!run->config->quirks.optimizer_sees_flat_tensors)
        return zb_fail(
            ZB_INVALID_CONFIG,
            "%s: zerobit.quirks.optimizer_sees_flat_tensors: is false, want true: flat tensors are "
            "what was recorded",
            run->config->path);
    return ZB_OK;
}

/* What the recorded loop does not do, or does in a way that is not written down here. */
static zb_status check_ddp(const zb_replay_run *run)
{
    const zb_config *config = run->config;
    if (!zb_optimizer_is_of_torch(&config->optimizer))
        return zb_fail(ZB_UNSUPPORTED,
                       "run %s: optimizer.arithmetic: is %s, want torch-1.13 or torch-2 beside "
                       "DistributedDataParallel",
                       run->name, zb_optimizer_arithmetic_name(config->optimizer.arithmetic));
    for (int g = 0; g < config->group_count; g++)
        if (config->groups[g].schedule.kind != ZB_SCHEDULE_CONSTANT)
            return zb_fail(ZB_UNSUPPORTED,
                           "%s: scheduler: is given, want none beside DistributedDataParallel", config->path);
    for (int p = 0; p < run->param_count; p++) {
        if (run->param_numel[p] == 0)
            return zb_fail(ZB_UNSUPPORTED,
                           "run %s: sizes[%d]: is 0, want elements beside DistributedDataParallel: the norm "
                           "counts it",
                           run->name, p);
        if (run->frozen[p])
            return zb_fail(ZB_UNSUPPORTED,
                           "run %s: frozen: has %s, want [] beside DistributedDataParallel, whose optimizer "
                           "was given all parameters",
                           run->name, run->param_names[p]);
    }
    return ZB_OK;
}

zb_status zb_replay_check(const zb_replay_run *run)
{
    if (run->refusal != NULL) return zb_fail(ZB_UNSUPPORTED, "run %s: %s", run->name, run->refusal);
    ZB_TRY(run->config->semantics == ZB_SEMANTICS_PYTORCH_DDP ? check_ddp(run) : check_deepspeed(run));
    const char *want = wrapper_of(run->config);
    for (int r = 0; r < run->world_size; r++)
        if (run->ranks[r].wrapper != NULL && strcmp(run->ranks[r].wrapper, want) != 0)
            return zb_fail(ZB_UNSUPPORTED,
                           "run %s: rank %d: wrapper is %s, want %s, whose arithmetic this config means",
                           run->name, r, run->ranks[r].wrapper, want);
    return ZB_OK;
}

zb_status zb_replay_play(const zb_replay_run *run, const zb_replay_player *player, zb_replay_result *result)
{
    ZB_TRY(zb_replay_check(run));
    zb_replay_result made = { 0 };
    const place at = { .run = run, .player = player, .result = &made };
    int stop = compare(at, 0, 0);
    for (size_t index = 1; index < run->entry_count && !stop; index++) {
        const zb_status status = player->step(player->self, index - 1);
        if (status != ZB_OK && status != ZB_LOSS_SCALE) return status;
        stop = compare(at, index, status == ZB_LOSS_SCALE);
        if (!stop) made.steps_equal++;
    }
    *result = made;
    return ZB_OK;
}
