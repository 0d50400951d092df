/*
 * The engine against the oracle on gradients from outside, over random configs in both semantics, with any
 * quirk turned: weights, norm, loss scale, learning rate, skipped steps and giving up, after every step, to
 * the bit.
 *
 *   test_replay_random [--cases N] [--first K]     N cases from number K on (default 5000 from 0)
 *
 * A failure prints the case's number; `--first NUMBER --cases 1` runs it alone.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

#include "tests/equivalence/random_run.h"

typedef struct tally {
    uint64_t equal, refused, failed, values;
    uint64_t of_stage[ZB_STAGE_COUNT];
} tally;

static zb_status record_by_oracle(random_run *r)
{
    zb_replay_player player;
    ZB_TRY(zb_replay_oracle_create(&r->file->runs[0], &player));
    const zb_status status = random_run_record(r, &player);
    player.destroy(player.self);
    return status;
}

static zb_status play_by_engine(const random_run *r, zb_replay_result *result)
{
    zb_replay_player player;
    ZB_TRY(zb_replay_engine_create(&r->file->runs[0], 1 + (int)(r->number % 2), &player));
    const zb_status status = zb_replay_play(&r->file->runs[0], &player, result);
    player.destroy(player.self);
    return status;
}

static zb_status run_case(random_run *r, uint64_t number, zb_replay_result *result)
{
    ZB_TRY(random_run_create(number, r));
    ZB_TRY(record_by_oracle(r));
    ZB_TRY(play_by_engine(r, result));
    return result->different ? zb_fail(ZB_DIFFERENT, "%s", result->text) : ZB_OK;
}

/* A config that DeepSpeed would refuse is none of ours. */
static int is_refusal(zb_status status)
{
    return status == ZB_INVALID_CONFIG || status == ZB_UNSUPPORTED;
}

static void count_case(uint64_t number, tally *t)
{
    random_run r;
    zb_replay_result result = { 0 };
    const zb_status status = run_case(&r, number, &result);
    t->values += result.values_compared;
    if (status == ZB_OK) {
        t->equal++;
        t->of_stage[r.file->runs[0].config->zero.stage]++;
    } else if (is_refusal(status)) {
        t->refused++;
        if (getenv("SHOW_REFUSED") != NULL) printf("case %" PRIu64 ": %s\n", number, zb_error_message());
    } else {
        t->failed++;
        fprintf(stderr, "case %" PRIu64 ", world %d: %s: %s\n  %s\n", number, r.file->runs[0].world_size,
                zb_status_string(status), zb_error_message(), r.config_text);
    }
    random_run_destroy(&r);
}

static uint64_t number_argument(const char *text)
{
    char *end;
    const unsigned long long value = strtoull(text, &end, 10);
    if (*text == '\0' || *end != '\0') {
        fprintf(stderr, "'%s' is no number\n", text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    uint64_t cases = 5000, first = 0;
    tally t = { 0 };
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--cases") == 0)
            cases = number_argument(argv[i + 1]);
        else if (strcmp(argv[i], "--first") == 0)
            first = number_argument(argv[i + 1]);
        else
            return fprintf(stderr, "unknown option %s\n", argv[i]), 2;
    }
    for (uint64_t number = first; number < first + cases && t.failed < 5; number++) count_case(number, &t);
    const uint64_t leaked = zb_alloc_get_stats().live;
    if (leaked != 0) fprintf(stderr, "%" PRIu64 " blocks were not freed\n", leaked);
    printf("%" PRIu64 " equal (stages: %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "), %" PRIu64
           " refused, %" PRIu64 " failed (%" PRIu64 " values compared)\n",
           t.equal, t.of_stage[0], t.of_stage[1], t.of_stage[2], t.of_stage[3], t.refused, t.failed,
           t.values);
    return t.failed == 0 && leaked == 0 && t.equal > 0 ? 0 : 1;
}
