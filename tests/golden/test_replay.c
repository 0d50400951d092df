/*
 * Runs of real DeepSpeed, replayed by the oracle and by the engine without a differing bit or collective;
 * what is said when one does differ; what the reader refuses.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <zerobit/memory.h>
#include <zerobit/replay.h>

#include "core/sha256.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define RUNS         ZB_SOURCE_DIR "/fixtures/deepspeed-runs/runs.json"
#define LAYERS       ZB_SOURCE_DIR "/fixtures/deepspeed-runs/layers.json"
#define GROWTH       ZB_SOURCE_DIR "/fixtures/deepspeed-runs/growth.json"

static zb_replay_file *load(const char *path)
{
    zb_replay_file *file = NULL;
    if (zb_replay_load(path, &file) != ZB_OK) fail_msg("%s", zb_error_message());
    return file;
}

static zb_replay_run *find(const zb_replay_file *file, const char *name)
{
    for (size_t i = 0; i < file->run_count; i++)
        if (strcmp(file->runs[i].name, name) == 0) return &file->runs[i];
    fail_msg("no run %s", name);
    return NULL;
}

/* Who plays: every test of playing runs once for each. */
static int by_engine;

static zb_status play(const zb_replay_run *run, zb_replay_result *result)
{
    zb_replay_player player;
    if (by_engine)
        ZB_TRY(zb_replay_engine_create(run, 2, &player));
    else
        ZB_TRY(zb_replay_oracle_create(run, &player));
    const zb_status status = zb_replay_play(run, &player, result);
    player.destroy(player.self);
    return status;
}

static zb_replay_result replay(const zb_replay_run *run)
{
    zb_replay_result result;
    if (play(run, &result) != ZB_OK) fail_msg("%s", zb_error_message());
    return result;
}

/* --- equal --- */

static uint64_t recorded_calls(const zb_replay_run *run)
{
    uint64_t calls = 0;
    for (int r = 0; r < run->world_size; r++)
        for (size_t e = 0; e < run->entry_count; e++) calls += run->ranks[r].entries[e].call_count;
    return calls;
}

/* What is in the files is part of what is claimed: a run that went missing must be noticed. */
static const struct recorded {
    const char *file, *name;
    uint64_t values; /* that are compared, beside collectives */
} recorded_runs[] = {
    { RUNS, "fp32-s0-w2-gas2", 200 },     { RUNS, "fp16-s0-w2", 252 },
    { RUNS, "fp32-s1-w2", 147 },          { RUNS, "fp32-s1-w3-gas2", 132 },
    { RUNS, "fp16-s1-w3-dynamic", 276 },  { RUNS, "bf16-s1-w2", 116 },
    { RUNS, "fp32-s1-w4-noclip-l2", 92 }, { RUNS, "fp32-s1-w2-torchadam", 116 },
    { RUNS, "fp32-s2-w2", 147 },          { RUNS, "fp32-s2-w3-gas2", 132 },
    { RUNS, "fp16-s2-w3-dynamic", 276 },  { RUNS, "bf16-s2-w2", 116 },
    { RUNS, "fp32-s2-w4-noclip-l2", 92 }, { RUNS, "fp32-s2-w2-roundrobin", 116 },
    { RUNS, "fp32-s3-w2", 147 },          { RUNS, "fp32-s3-w3-gas2", 132 },
    { RUNS, "fp16-s3-w3-dynamic", 276 },  { RUNS, "bf16-s3-w2", 116 },
    { RUNS, "fp32-s3-w4-noclip-l2", 92 }, { RUNS, "fp32-s3-w2-subgroups", 116 },
    { GROWTH, "fp32-s0-w2-formula", 96 }, { GROWTH, "fp32-s1-w2-formula", 64 },
    { GROWTH, "fp32-s2-w2-formula", 64 }, { GROWTH, "fp32-s3-w2-formula", 64 },
    { LAYERS, "s3-layers", 347 },         { LAYERS, "s3-layers-noreuse", 347 },
    { LAYERS, "s3-layers-gas", 347 },     { LAYERS, "fp16-s1-wide", 132 },
    { LAYERS, "s3-w3-noscatter", 132 },   { LAYERS, "bf16opt-w2", 116 },
    { GROWTH, "fp16-s1-w2-growth", 100 }, { GROWTH, "fp16-s3-w2-growth", 100 },
};

static size_t runs_expected_in(const char *path)
{
    size_t count = 0;
    for (size_t i = 0; i < COUNT(recorded_runs); i++) count += strcmp(recorded_runs[i].file, path) == 0;
    return count;
}

static void check_equal(void **state)
{
    const struct recorded *c = *state;
    zb_replay_file *file = load(c->file);
    assert_int_equal(file->run_count, runs_expected_in(c->file));
    const zb_replay_run *run = find(file, c->name);
    const zb_replay_result result = replay(run);
    if (result.different) fail_msg("%s", result.text);
    assert_string_equal(result.text, "");
    assert_int_equal(result.steps_equal, run->step_count);
    assert_int_equal(result.values_compared, c->values + (by_engine ? recorded_calls(run) : 0));
    zb_replay_destroy(file);
}

/* --- different --- */

static void flip(float *x)
{
    uint32_t bits;
    memcpy(&bits, x, sizeof bits);
    bits ^= 1;
    memcpy(x, &bits, sizeof bits);
}

static zb_replay_entry *entry(zb_replay_run *run, int rank, int64_t step)
{
    return &run->ranks[rank].entries[step + 1];
}

static void damage_initial(zb_replay_run *run)
{
    flip(&entry(run, 0, -1)->masters[0].data[1]);
}
static void damage_part(zb_replay_run *run) /* stage 3, two ranks: p0 has 6 elements, p1 3 */
{
    flip(&entry(run, 1, 2)->masters[0].data[3]);
}
static void damage_padding(zb_replay_run *run) /* p1 leaves rank 1 one element and one of padding */
{
    flip(&entry(run, 1, 2)->masters[0].data[4]);
}
static void damage_flat_part(zb_replay_run *run) /* stage 1, three ranks: 8 elements each */
{
    flip(&entry(run, 2, 5)->masters[0].data[0]);
}
static void damage_norm(zb_replay_run *run)
{
    entry(run, 1, 0)->norm *= 1.0 + 0x1p-52;
}
static void damage_norm_away(zb_replay_run *run)
{
    entry(run, 1, 0)->has_norm = 0;
}
static void damage_scale(zb_replay_run *run)
{
    entry(run, 0, 1)->scale = 64.0;
}
static void damage_rate(zb_replay_run *run)
{
    entry(run, 0, 3)->lr[0] = 0.5;
}
static void damage_skipped(zb_replay_run *run)
{
    entry(run, 2, 1)->skipped = 0;
}
static void damage_layout(zb_replay_run *run)
{
    entry(run, 0, 0)->masters[0].numel--;
}
static void damage_tensor_count(zb_replay_run *run)
{
    zb_replay_entry *damaged = entry(run, 0, 0);
    zb_free(damaged->masters[--damaged->master_count].data);
}
static void damage_gradient(zb_replay_run *run)
{
    run->grads[2][1][20] += 1.0f; /* rank 1's last element in the first micro-batch */
}
/* Only the digest of rank 1's tensor is kept; at stage 1 padding is recorded as zeros. */
static void keep_digest(zb_replay_run *run)
{
    zb_replay_tensor *tensor = &entry(run, 1, 2)->masters[0];
    zb_sha256 sha;
    zb_sha256_init(&sha);
    zb_sha256_add(&sha, tensor->data, tensor->numel * sizeof *tensor->data);
    zb_sha256_finish(&sha, tensor->digest);
    zb_free(tensor->data);
    tensor->data = NULL;
}
static void damage_digest(zb_replay_run *run)
{
    flip(&entry(run, 1, 2)->masters[0].data[5]);
    keep_digest(run);
}
/* The oracle knows of no collectives. */
static void damage_call(zb_replay_run *run)
{
    entry(run, 1, 2)->calls[1].text[0] = 'A';
}
static void damage_call_away(zb_replay_run *run)
{
    entry(run, 1, 2)->call_count--;
}
static void damage_with_call(zb_replay_run *run) /* the step was skipped */
{
    zb_replay_entry *skipped = entry(run, 0, 1);
    zb_replay_call *calls = zb_realloc(skipped->calls, (skipped->call_count + 1) * sizeof *calls);
    assert_non_null(calls);
    snprintf(calls[skipped->call_count++].text, sizeof calls->text, "barrier");
    skipped->calls = calls;
}
static void damage_with_error(zb_replay_run *run)
{
    entry(run, 1, 2)->error = zb_strdup("CUDA out of memory");
}
static void damage_minimum(zb_replay_run *run)
{
    run->config->fp16.min_loss_scale = 32;
}

static const struct damage {
    const char *run;
    void (*damage)(zb_replay_run *run);
    const char *text; /* NULL: no difference */
    int64_t steps_equal;
} damages[] = {
    { "bf16-s1-w2", damage_initial, "after initialize, rank 0, fp32 weight p0[1]: 0x", 0 },
    { "fp32-s3-w2", damage_part, "step 2, rank 1, fp32 weight p1[2]: 0x", 2 },
    { "fp32-s3-w2", damage_padding, NULL, 4 },
    { "fp16-s1-w3-dynamic", damage_flat_part, "step 5, rank 2, fp32 weight p2[7]: 0x", 5 },
    { "fp32-s2-w2", damage_norm, "step 0, rank 1, gradient norm: 0x", 0 },
    { "fp32-s2-w2", damage_norm_away, "step 0, rank 1, gradient norm: null recorded, a number by", 0 },
    { "fp16-s3-w3-dynamic", damage_scale, "step 1, rank 0, loss scale: 0x1p+6 recorded, 0x1p+5 by", 1 },
    { "fp32-s1-w2", damage_rate, "step 3, rank 0, learning rate: 0x1p-1 recorded, 0x", 3 },
    { "fp16-s2-w3-dynamic", damage_skipped, "step 1, rank 2, skipped steps: 0 recorded, 1 by", 1 },
    { "fp32-s1-w2", damage_layout, "step 0, rank 0, elements of fp32 tensor 0: 11 recorded, 12 by", 0 },
    { "fp32-s3-w2-subgroups", damage_tensor_count, "step 0, rank 0, fp32 tensors: 1 recorded, 2 by", 0 },
    { "fp32-s0-w2-gas2", damage_gradient, "step 2, rank 0, fp32 weight p0[0]: 0x", 2 },
    { "fp32-s2-w2", damage_call,
      "step 2, rank 1, collective 1: All_reduce float32 10 sum recorded, all_reduce float32 10 sum by", 2 },
    { "fp32-s3-w2", damage_call_away,
      "step 2, rank 1, collective 7: none recorded, all_gather_into_tensor float32 2 1 by", 2 },
    { "fp16-s1-w3-dynamic", damage_with_call, "step 1, rank 0, collective 4: barrier recorded, none by", 1 },
    { "fp32-s1-w2", keep_digest, NULL, 4 },
    { "fp32-s1-w2", damage_digest, "step 2, rank 1, SHA-256 of fp32 tensor 0: ", 2 },
    { "fp32-s1-w2", damage_with_error, "step 2, rank 1, CUDA out of memory recorded, no error by", 2 },
    { "fp16-s1-w3-dynamic", damage_minimum, "step 4, rank 0, no error recorded, ", 4 },
};

static void check_damage(void **state)
{
    const struct damage *c = *state;
    zb_replay_file *file = load(RUNS);
    zb_replay_run *run = find(file, c->run);
    c->damage(run);
    const zb_replay_result result = replay(run);
    const int of_calls = c->damage == damage_call || c->damage == damage_call_away ||
                         c->damage == damage_with_call;
    const int is_seen = c->text != NULL && (by_engine || !of_calls);
    assert_int_equal(result.different, is_seen);
    if (is_seen) {
        if (strncmp(result.text, c->text, strlen(c->text)) != 0) fail_msg("%s", result.text);
        if (strstr(result.text, by_engine ? "by the engine" : "by the oracle") == NULL)
            fail_msg("%s", result.text);
        assert_int_equal(result.steps_equal, c->steps_equal);
    }
    zb_replay_destroy(file);
}

/* DeepSpeed gives up where an overflow meets the smallest scale. */
static void check_run_that_gives_up(void **state)
{
    (void)state;
    zb_replay_file *file = load(RUNS);
    zb_replay_run *run = find(file, "fp16-s3-w3-dynamic");
    damage_minimum(run);
    for (int r = 0; r < run->world_size; r++)
        entry(run, r, 4)->error = zb_strdup("Current loss scale already at minimum");
    const size_t entries = run->entry_count;
    run->entry_count = 6;
    const zb_replay_result result = replay(run);
    if (result.different) fail_msg("%s", result.text);
    assert_int_equal(result.steps_equal, 5);
    run->entry_count = entries;
    zb_replay_destroy(file);
}

/* --- what is not known --- */

static void ask_sgd(zb_replay_run *run)
{
    run->config->optimizer.kind = ZB_OPTIMIZER_SGD;
}
static void ask_no_optimizer(zb_replay_run *run)
{
    run->config->optimizer_given = 0;
}
static void ask_standard(zb_replay_run *run)
{
    run->config->semantics = ZB_SEMANTICS_STANDARD;
}
static void ask_unfused(zb_replay_run *run)
{
    run->config->optimizer.arithmetic = ZB_ARITHMETIC_TORCH_1;
}
static void ask_wide_gradients(zb_replay_run *run)
{
    run->config->grad_accum_dtype = ZB_FP32;
}
static void ask_wrapper(zb_replay_run *run)
{
    run->ranks[1].wrapper[0] = 'X';
}

static const struct unknown {
    const char *run;
    void (*ask)(zb_replay_run *run);
    zb_status status;
    const char *words;
} unknowns[] = {
    { "fp32-s0-w2-gas2", ask_sgd, ZB_UNSUPPORTED, "rank 0: wrapper is FusedAdam, want SGD" },
    { "fp32-s1-w2", ask_no_optimizer, ZB_INVALID_CONFIG, "optimizer: is missing" },
    { "fp32-s1-w2", ask_standard, ZB_INVALID_CONFIG, "zerobit.semantics: is \"standard\"" },
    { "fp16-s0-w2", ask_unfused, ZB_UNSUPPORTED, "wrapper is FP16_Optimizer, want FP16_UnfusedOptimizer" },
    { "bf16-s1-w2", ask_wide_gradients, ZB_UNSUPPORTED, "DeepSpeedZeroOptimizer, want BF16_Optimizer" },
    { "fp32-s3-w2", ask_wrapper, ZB_UNSUPPORTED, "rank 1: wrapper is XeepSpeedZeroOptimizer_Stage3, want" },
};

static void check_unknown(void **state)
{
    const struct unknown *c = *state;
    zb_replay_file *file = load(RUNS);
    zb_replay_run *run = find(file, c->run);
    zb_replay_result result = { .steps_equal = -7 };
    c->ask(run);
    assert_int_equal(play(run, &result), c->status);
    if (strstr(zb_error_message(), c->words) == NULL) fail_msg("%s", zb_error_message());
    assert_int_equal(result.steps_equal, -7);
    zb_replay_destroy(file);
}

/* --- the reader --- */

#define SMALL ZB_BINARY_DIR "/replay_small.json"

#define CALLS                                                                                                \
    "\"comm\": [[\"all_reduce\", \"float32\", 1, \"sum\"], [\"all_reduce\", \"float32\", 1, \"sum\"]]"

/* One parameter of one element, one rank, one step: lr 1/2, so that 1 becomes 1/2. */
static const char small_text[] =
    "[{\"name\": \"small\", \"world\": 1, \"sizes\": [1], \"init\": [[\"3f800000\"]],\n"
    "\"config\": {\"train_batch_size\": 1, \"gradient_clipping\": 0, \"zero_optimization\": {\"stage\": 1},\n"
    "  \"optimizer\": {\"type\": \"Adam\", \"params\": {\"lr\": 0.5, \"eps\": 0, \"betas\": [0, 0]}}},\n"
    "\"grads\": [[[[[\"40000000\"]]]]],\n"
    "\"ranks\": [{\"wrapper\": \"DeepSpeedZeroOptimizer\", \"steps\": [\n"
    "  {\"step\": -1, \"hp\": [[\"3f800000\", \"00000000\"]]},\n"
    "  {\"step\": 0, \"hp\": [[\"3f000000\", \"00000000\"]], \"norm\": \"0x1p+1\", \"scale\": 1.0,\n"
    "   \"lr\": [\"0x1p-1\"], \"skipped\": 0, \"error\": null, " CALLS "}]}]}]\n";

/* The text with the first `from` replaced. */
static void write_small(const char *from, const char *to)
{
    const char *at = strstr(small_text, from);
    assert_non_null(at);
    FILE *file = fopen(SMALL, "wb");
    assert_non_null(file);
    fprintf(file, "%.*s%s%s", (int)(at - small_text), small_text, to, at + strlen(from));
    assert_int_equal(fclose(file), 0);
}

static void check_small(void **state)
{
    (void)state;
    write_small("", "");
    zb_replay_file *file = load(SMALL);
    const zb_replay_result result = replay(&file->runs[0]);
    if (result.different) fail_msg("%s", result.text);
    assert_int_equal(result.steps_equal, 1);
    zb_replay_destroy(file);

    /* A run that ends with an error need not go on. */
    write_small("\"error\": null", "\"error\": \"out of memory\"");
    file = load(SMALL);
    assert_string_equal(file->runs[0].ranks[0].entries[1].error, "out of memory");
    zb_replay_destroy(file);
    write_small("[[[[[\"40000000\"]]]]]", "[[[[[\"40000000\"]]]], [[[[\"40000000\"]]]]]");
    assert_int_equal(zb_replay_load(SMALL, &file), ZB_INVALID_CONFIG);
}

static const struct refusal {
    const char *from, *to, *words;
} refusals[] = {
    { "\"name\": \"small\"", "\"name\": 3", "[0].name: is 3, want a string" },
    { "\"world\": 1", "\"world\": 0", "[0].world: is 0, want an integer from 1" },
    { "\"world\": 1", "\"world\": 2", "[0].ranks: is" },
    { "\"sizes\": [1]", "\"sizes\": []", "[0].sizes: is []" },
    { "\"sizes\": [1]", "\"sizes\": [-1]", "[0].sizes[0]: is -1" },
    { "\"sizes\": [1]", "\"sizes\": [2]", "[0].init[0]: is [\"3f800000\"], want an array of 2" },
    { "\"sizes\": [1]", "\"sizes\": [1, 0]", "[0].init: is" },
    { "[[\"3f800000\"]]", "[[\"3f80000\"]]", "[0].init[0][0]: is \"3f80000\", want the 8 hex" },
    { "[[\"3f800000\"]]", "[[\"3f80000g\"]]", "want the 8 hex" },
    { "[[\"3f800000\"]]", "[[\"3f8000000\"]]", "want the 8 hex" },
    { "[[\"3f800000\"]]", "[[1.0]]", "[0].init[0][0]: is 1, want a string" },
    { "\"train_batch_size\": 1", "\"train_batch_size\": 3, \"train_micro_batch_size_per_gpu\": 2",
      "run small: " },
    { "\"lr\": 0.5", "\"lrr\": 0.5", "[0].config.optimizer.params.lrr" },
    { "[[[[[\"40000000\"]]]]]", "7", "[0].grads: is 7, want an array" },
    { "[[[[[\"40000000\"]]]]]", "[[]]", "[0].grads[0]: is [], want an array of 1" },
    { "[[[[[\"40000000\"]]]]]", "[[[]]]", "[0].grads[0][0]: is [], want an array of 1" },
    { "[[[[[\"40000000\"]]]]]", "[[[[]]]]", "[0].grads[0][0][0]: is [], want an array of 1" },
    { "[[[[[\"40000000\"]]]]]", "[[[[[]]]]]", "[0].grads[0][0][0][0]: is [], want an array of 1" },
    { "[[[[[\"40000000\"]]]]]", "[]", "[0].grads: is [], want at least one step" },
    { "\"wrapper\": \"Deep", "\"wrap\": \"Deep", "[0].ranks[0].wrapper: is missing" },
    { "\"step\": -1, ", "", "[0].ranks[0].steps[0].step: is missing" },
    { "\"step\": 0", "\"step\": 1", "[0].ranks[0].steps[1].step: is 1, want 0" },
    { "\"step\": -1, ", "\"step\": -1, \"error\": \"early\", ", "nothing after the entry with an error" },
    { "{\"step\": -1, \"hp\"", "{\"step\": -1, \"hq\"", "[0].ranks[0].steps[0].hp: is missing" },
    { "\"0x1p+1\"", "\"2.0\"", "[0].ranks[0].steps[1].norm: is \"2.0\", want a hexadecimal double" },
    { "\"0x1p+1\"", "\"0x1p+1 \"", "want a hexadecimal double" },
    { "\"scale\": 1.0", "\"scale\": \"1\"", "[0].ranks[0].steps[1].scale: is \"1\", want a number" },
    { "[\"0x1p-1\"]", "[]", "[0].ranks[0].steps[1].lr: is [], want the rate of each" },
    { CALLS, "\"comm\": 7", "[0].ranks[0].steps[1].comm: is 7, want an array" },
    { CALLS, "\"comm\": [7]", "[0].ranks[0].steps[1].comm[0]: is 7, want an array" },
    { CALLS, "\"comm\": [[\"reduce\", 1.5]]", "steps[1].comm[0][1]: is 1.5, want an integer" },
    { CALLS, "\"comm\": [[\"0123456789012345678901234567890123456789012345678901234567890\", 12]]",
      "want a collective of at most 63 characters" },
    { "\"skipped\": 0", "\"skipped\": -1", "[0].ranks[0].steps[1].skipped: is -1" },
    { "\"world\": 1", "\"world\": ", "1:29: unexpected" },
};

static void check_refusal(void **state)
{
    const struct refusal *c = *state;
    const uint64_t live = zb_alloc_get_stats().live;
    zb_replay_file *file = NULL;
    write_small(c->from, c->to);
    assert_int_equal(zb_replay_load(SMALL, &file), ZB_INVALID_CONFIG);
    if (strstr(zb_error_message(), c->words) == NULL) fail_msg("%s", zb_error_message());
    if (strstr(zb_error_message(), "replay_small.json") == NULL) fail_msg("%s", zb_error_message());
    assert_null(file);
    assert_int_equal(zb_alloc_get_stats().live, live);
}

static void check_no_runs(void **state)
{
    (void)state;
    zb_replay_file *file = NULL;
    assert_int_equal(zb_replay_load(ZB_BINARY_DIR "/no such file", &file), ZB_IO);
    assert_int_equal(zb_replay_load(ZB_SOURCE_DIR "/examples/configs/cifar10.json", &file),
                     ZB_INVALID_CONFIG);
    assert_non_null(strstr(zb_error_message(), "want an array"));
    zb_replay_destroy(NULL);
}

static void check_every_allocation(void **state)
{
    (void)state;
    const uint64_t live = zb_alloc_get_stats().live;
    write_small("", "");
    for (int64_t n = 0;; n++) {
        zb_replay_file *file = NULL;
        zb_replay_result result;
        zb_alloc_fail_at(n);
        zb_status status = zb_replay_load(SMALL, &file);
        if (status == ZB_OK) status = play(&file->runs[0], &result);
        const int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        zb_replay_destroy(file);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (!fired) {
            assert_int_equal(status, ZB_OK);
            assert_true(n > 30);
            break;
        }
        assert_int_equal(status, ZB_NO_MEMORY);
    }
}

/* What is played, by one of the players. */
static int run_players_tests(const char *name, int engine)
{
    const struct CMUnitTest single[] = {
        cmocka_unit_test(check_run_that_gives_up),
        cmocka_unit_test(check_small),
        cmocka_unit_test(check_every_allocation),
    };
    struct CMUnitTest tests[COUNT(single) + COUNT(recorded_runs) + COUNT(damages) + COUNT(unknowns)];
    size_t count = COUNT(single);
    by_engine = engine;
    memcpy(tests, single, sizeof single);
    for (size_t i = 0; i < COUNT(recorded_runs); i++)
        tests[count++] = (struct CMUnitTest){ recorded_runs[i].name, check_equal, NULL, NULL,
                                              (void *)&recorded_runs[i] };
    for (size_t i = 0; i < COUNT(damages); i++)
        tests[count++] = (struct CMUnitTest){ damages[i].run, check_damage, NULL, NULL, (void *)&damages[i] };
    for (size_t i = 0; i < COUNT(unknowns); i++)
        tests[count++] = (struct CMUnitTest){ unknowns[i].words, check_unknown, NULL, NULL,
                                              (void *)&unknowns[i] };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

static int run_reader_tests(void)
{
    struct CMUnitTest tests[1 + COUNT(refusals)] = { cmocka_unit_test(check_no_runs) };
    for (size_t i = 0; i < COUNT(refusals); i++)
        tests[i + 1] = (struct CMUnitTest){ refusals[i].words, check_refusal, NULL, NULL,
                                            (void *)&refusals[i] };
    return cmocka_run_group_tests_name("golden_replay, reader", tests, NULL, NULL);
}

int main(void)
{
    return run_players_tests("golden_replay, oracle", 0) + run_players_tests("golden_replay, engine", 1) +
           run_reader_tests();
}
