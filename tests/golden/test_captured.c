/*
 * Runs of real DeepSpeed and PyTorch that tools/capture recorded, all of them by the oracle and by the
 * engine: no differing bit, or one clear refusal that concerns the run and no other.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <zerobit/replay.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* What is in the files is part of what is claimed: a run that went missing must be noticed. */
static const struct captured {
    const char *name;
    size_t runs;
    const char *damaged; /* a run in which one bit is flipped */
} files[] = {
    { "knobs", 44, "fp16-s3-w3-comm-fp32" },
    { "precision", 26, "bf16-s1-accumulate-fp32-clip" },
    { "scaling", 18, "fp16-s0-unfused-growth" },
    { "gather", 20, "fp32-s3-layers-subgroups" },
    { "optimizers", 42, "fp32-s2-deepspeed-adam-one-cycle" },
    { "cifar", 20, "fp16-s0-cifar-gas4" },
    { "torch", 12, "ddp-fp32-buckets" },
};

static const struct refused {
    const char *run, *words;
} refusals[] = {
    { "fp32-s3-layers-all-reduce-fetch", "stage3_use_all_reduce_for_fetch_params: is true, want false" },
};

static const char *refusal_of(const char *run)
{
    if (strncmp(run, "fsdp2-", 6) == 0) return "framework: is \"fsdp2\", want \"deepspeed\" or \"ddp\"";
    for (size_t i = 0; i < COUNT(refusals); i++)
        if (strcmp(refusals[i].run, run) == 0) return refusals[i].words;
    return NULL;
}

static zb_replay_file *load(const struct captured *c)
{
    char path[512];
    zb_replay_file *file = NULL;
    snprintf(path, sizeof path, ZB_SOURCE_DIR "/fixtures/captured/%s.json", c->name);
    if (zb_replay_load(path, &file) != ZB_OK) fail_msg("%s", zb_error_message());
    return file;
}

static zb_status play(const zb_replay_run *run, int by_engine, zb_replay_result *result)
{
    zb_replay_player player;
    ZB_TRY(by_engine ? zb_replay_engine_create(run, 2, &player) : zb_replay_oracle_create(run, &player));
    const zb_status status = zb_replay_play(run, &player, result);
    player.destroy(player.self);
    return status;
}

static void check_refused(const zb_replay_run *run, const char *words, zb_status status)
{
    assert_int_equal(status, ZB_UNSUPPORTED);
    if (strstr(zb_error_message(), words) == NULL) fail_msg("%s", zb_error_message());
    if (strstr(zb_error_message(), run->name) == NULL) fail_msg("%s", zb_error_message());
}

/* Where DeepSpeed gave up there are gradients without an entry, and the entry with its error agrees too. */
static void check_run(const zb_replay_run *run, int by_engine)
{
    zb_replay_result result = { 0 };
    const char *words = refusal_of(run->name);
    const zb_status status = play(run, by_engine, &result);
    if (words != NULL) {
        check_refused(run, words, status);
        return;
    }
    if (status != ZB_OK) fail_msg("%s: %s", run->name, zb_error_message());
    if (result.different) fail_msg("%s: %s", run->name, result.text);
    assert_int_equal(result.steps_equal, run->entry_count - 1);
    assert_true(result.values_compared > 0);
}

static void check_equal(void **state)
{
    const struct captured *c = *state;
    zb_replay_file *file = load(c);
    assert_int_equal(file->run_count, c->runs);
    for (size_t i = 0; i < file->run_count; i++)
        for (int by_engine = 0; by_engine < 2; by_engine++) check_run(&file->runs[i], by_engine);
    zb_replay_destroy(file);
}

/* The last bit of the first weight, or of a digest where weights were not kept. */
static void flip(zb_replay_tensor *tensor)
{
    if (tensor->data == NULL) {
        tensor->digest[0] = tensor->digest[0] == '0' ? '1' : '0';
        return;
    }
    uint32_t bits;
    memcpy(&bits, tensor->data, sizeof bits);
    bits ^= 1;
    memcpy(tensor->data, &bits, sizeof bits);
}

static void check_damage(void **state)
{
    const struct captured *c = *state;
    zb_replay_file *file = load(c);
    zb_replay_run *run = NULL;
    for (size_t i = 0; i < file->run_count && run == NULL; i++)
        if (strcmp(file->runs[i].name, c->damaged) == 0) run = &file->runs[i];
    assert_non_null(run);
    flip(&run->ranks[1].entries[1].masters[0]);
    for (int by_engine = 0; by_engine < 2; by_engine++) {
        zb_replay_result result = { 0 };
        assert_int_equal(play(run, by_engine, &result), ZB_OK);
        assert_int_equal(result.different, 1);
        if (strncmp(result.text, "step 0, rank 1, ", 16) != 0) fail_msg("%s", result.text);
        assert_int_equal(result.steps_equal, 0);
    }
    zb_replay_destroy(file);
}

/* What is not known of a loop around DistributedDataParallel. */
static void ask_plain(zb_replay_run *run)
{
    run->config->optimizer.arithmetic = ZB_ARITHMETIC_PLAIN;
}
static void ask_schedule(zb_replay_run *run)
{
    run->config->groups[0].schedule.kind = ZB_SCHEDULE_WARMUP_LR;
}
static void ask_frozen(zb_replay_run *run)
{
    run->frozen[1] = 1;
}
static void ask_empty(zb_replay_run *run)
{
    run->param_numel[2] = 0;
}
static void ask_wrapper(zb_replay_run *run)
{
    run->ranks[1].wrapper[0] = 'X';
}
static void ask_stage(zb_replay_run *run)
{
    run->config->zero.stage = 1;
}

static void check_ddp_unknown(void **state)
{
    static const struct {
        void (*ask)(zb_replay_run *run);
        const char *words;
    } cases[] = {
        { ask_plain, "optimizer.arithmetic: is plain, want torch-1.13 or torch-2" },
        { ask_schedule, "scheduler: is given, want none" },
        { ask_frozen, "frozen: has layers.0.bias, want []" },
        { ask_empty, "sizes[2]: is 0, want elements" },
        { ask_wrapper, "rank 1: wrapper is XistributedDataParallel, want DistributedDataParallel" },
        { ask_stage, "stage is 1, want 0 under pytorch-ddp semantics" },
    };
    const struct captured *c = *state;
    for (size_t i = 0; i < 2 * COUNT(cases); i++) {
        zb_replay_file *file = load(c);
        zb_replay_result result = { .steps_equal = -7 };
        cases[i / 2].ask(&file->runs[0]);
        assert_int_not_equal(play(&file->runs[0], (int)(i % 2), &result), ZB_OK);
        if (strstr(zb_error_message(), cases[i / 2].words) == NULL) fail_msg("%s", zb_error_message());
        assert_int_equal(result.steps_equal, -7);
        zb_replay_destroy(file);
    }
}

/* Its collectives are not compared, and no others of the run go unread. */
static void check_ddp_calls(void **state)
{
    zb_replay_file *file = load(*state);
    const zb_replay_run *run = &file->runs[0];
    zb_replay_player player;
    zb_replay_state held = { .call_count = 7 };
    assert_true(run->ranks[0].entries[1].call_count > 0);
    assert_int_equal(zb_replay_engine_create(run, 2, &player), ZB_OK);
    assert_int_equal(player.step(player.self, 0), ZB_OK);
    player.state(player.self, 0, &held);
    assert_null(held.calls);
    assert_int_equal(held.call_count, 0);
    player.destroy(player.self);
    zb_replay_destroy(file);
}

int main(void)
{
    const struct captured *torch = &files[COUNT(files) - 1];
    struct CMUnitTest tests[2 * COUNT(files) + 2];
    size_t count = 0;
    for (size_t i = 0; i < COUNT(files); i++) {
        tests[count++] = (struct CMUnitTest){ files[i].name, check_equal, NULL, NULL, (void *)&files[i] };
        if (files[i].damaged != NULL)
            tests[count++] = (struct CMUnitTest){ files[i].damaged, check_damage, NULL, NULL,
                                                  (void *)&files[i] };
    }
    tests[count++] = (struct CMUnitTest){ "what DDP lacks", check_ddp_unknown, NULL, NULL, (void *)torch };
    tests[count++] = (struct CMUnitTest){ "DDP's collectives", check_ddp_calls, NULL, NULL, (void *)torch };
    return _cmocka_run_group_tests("golden_captured", tests, count, NULL, NULL);
}
