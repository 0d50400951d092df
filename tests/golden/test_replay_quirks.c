/*
 * Recorded runs of real DeepSpeed need the quirks: with one of them left out, the runs that depend on it no
 * longer replay, and the first thing that depends on it is named.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/config.h>
#include <zerobit/replay.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char *const files[] = { ZB_SOURCE_DIR "/fixtures/deepspeed-runs/runs.json",
                                     ZB_SOURCE_DIR "/fixtures/deepspeed-runs/growth.json" };

/* How many of the 26 runs differ without it, and where one of them does first. */
static const struct needed {
    zb_quirk quirk;
    int runs;
    const char *run, *message;
} needed[] = {
    { ZB_QUIRK_loss_unscaled_at_stage_0, 1, "fp16-s0-w2", "step 0, rank 0, gradient norm: " },
    { ZB_QUIRK_hidden_first_step, 1, "fp16-s0-w2", "after initialize, rank 0, fp32 weight p0[0]: " },
    { ZB_QUIRK_scale_updated_before_unscaling, 3, "fp16-s1-w2-growth",
      "step 4, rank 0, fp32 weight p0[0]: " },
    { ZB_QUIRK_norm_by_updated_scale, 2, "fp16-s3-w2-growth", "step 3, rank 0, gradient norm: " },
    { ZB_QUIRK_norm_per_stage, 23, "fp32-s1-w2", "step 0, rank 0, gradient norm: " },
    { ZB_QUIRK_clip_per_stage, 5, "fp32-s0-w2-gas2", "fp32 weight p" },
    { ZB_QUIRK_average_outside_sum, 6, "fp32-s3-w3-gas2", "step 0, " },
};

static int differs(zb_replay_run *run, zb_quirk quirk, char *message, size_t message_bytes)
{
    zb_replay_player player;
    zb_replay_result result;
    int *on = zb_quirk_switch(&run->config->quirks, quirk);
    assert_int_equal(*on, 1);
    *on = 0;
    if (zb_replay_oracle_create(run, &player) != ZB_OK) fail_msg("%s: %s", run->name, zb_error_message());
    if (zb_replay_play(run, &player, &result) != ZB_OK) fail_msg("%s: %s", run->name, zb_error_message());
    player.destroy(player.self);
    *on = 1;
    snprintf(message, message_bytes, "%s", result.text);
    return result.different;
}

static void runs_need_their_quirks(void **state)
{
    (void)state;
    for (size_t n = 0; n < COUNT(needed); n++) {
        int runs = 0, named = 0;
        for (size_t f = 0; f < COUNT(files); f++) {
            zb_replay_file *file;
            if (zb_replay_load(files[f], &file) != ZB_OK) fail_msg("%s", zb_error_message());
            for (size_t i = 0; i < file->run_count; i++) {
                char message[512];
                runs += differs(&file->runs[i], needed[n].quirk, message, sizeof message);
                if (strcmp(file->runs[i].name, needed[n].run) != 0) continue;
                if (strstr(message, needed[n].message) == NULL)
                    fail_msg("%s without %s: \"%s\", want \"%s\"", needed[n].run,
                             zb_quirk_name(needed[n].quirk), message, needed[n].message);
                named = 1;
            }
            zb_replay_destroy(file);
        }
        assert_true(named);
        if (runs != needed[n].runs)
            fail_msg("%d runs differ without %s, want %d", runs, zb_quirk_name(needed[n].quirk),
                     needed[n].runs);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(runs_need_their_quirks) };
    return cmocka_run_group_tests_name("replay_quirks", tests, NULL, NULL);
}
