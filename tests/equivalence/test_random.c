/*
 * Rung E1 of the ladder over random set-ups: the engine at stages 0 to 3 on W simulated ranks against the
 * oracle, to the bit, at every step.
 *
 *   test_equivalence_random [--cases N] [--first K]     N cases from number K on (default 1000 from 0)
 *
 * A failure prints the case's number; `--first NUMBER --cases 1` runs it alone.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>
#include <zerobit/verify.h>

#include "tests/equivalence/random_case.h"

enum { STAGES = 4 };

static void report_case(const random_case *c)
{
    fprintf(stderr, "case %" PRIu64 ": world %d, %" PRId64 " steps\n  config %s\n  model  %s\n", c->number,
            c->world_size, c->steps, c->config_text, c->model_text);
}

static int case_is_equal(const random_case *c, uint64_t *values)
{
    static const int stages[STAGES] = { 0, 1, 2, 3 };
    zb_verify_case results[STAGES];
    /* Workers and scheduling seed vary with the case: neither may change a bit. */
    const zb_verify_options options = { .config = c->config,
                                        .model = c->model,
                                        .weights = &c->weights,
                                        .dataset = c->dataset,
                                        .stages = stages,
                                        .stage_count = STAGES,
                                        .worlds = &c->world_size,
                                        .world_count = 1,
                                        .dtypes = &c->dtype,
                                        .dtype_count = 1,
                                        .steps = c->steps,
                                        .workers = 1 + (int)(c->number % 2),
                                        .sim_seed = c->number,
                                        .sampler_seed = c->number % 3 };
    zb_status status = zb_verify(&options, results);
    if (status == ZB_OK) {
        for (int i = 0; i < STAGES; i++) *values += results[i].values_compared;
        return 1;
    }
    report_case(c);
    if (status != ZB_DIFFERENT) {
        fprintf(stderr, "  could not run: %s: %s\n", zb_status_string(status), zb_error_message());
        return 0;
    }
    for (int i = 0; i < STAGES; i++)
        if (results[i].status != ZB_OK)
            fprintf(stderr, "  stage %d after %" PRId64 " equal steps: %s\n", results[i].stage,
                    results[i].steps_done,
                    results[i].status == ZB_DIFFERENT ? results[i].difference.text : results[i].message);
    return 0;
}

static int run_case(uint64_t number, uint64_t *values)
{
    random_case c;
    if (random_case_create(number, &c) != ZB_OK) {
        fprintf(stderr, "case %" PRIu64 " could not be made: %s\n  config %s\n  model  %s\n", number,
                zb_error_message(), c.config_text, c.model_text);
        return 0;
    }
    int equal = case_is_equal(&c, values);
    random_case_destroy(&c);
    return equal;
}

static uint64_t number_argument(const char *text)
{
    char *end;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text == '\0' || *end != '\0') {
        fprintf(stderr, "'%s' is no number\n", text);
        exit(2);
    }
    return value;
}

int main(int argc, char **argv)
{
    uint64_t cases = 1000, first = 0, failed = 0, values = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--cases") == 0)
            cases = number_argument(argv[i + 1]);
        else if (strcmp(argv[i], "--first") == 0)
            first = number_argument(argv[i + 1]);
        else
            return fprintf(stderr, "unknown option %s\n", argv[i]), 2;
    }
    for (uint64_t number = first; number < first + cases && failed < 5; number++)
        failed += !run_case(number, &values);
    uint64_t leaked = zb_alloc_get_stats().live;
    if (leaked != 0) fprintf(stderr, "%" PRIu64 " blocks were not freed\n", leaked);
    if (values == 0) fprintf(stderr, "nothing was compared\n");
    printf("%" PRIu64 " passed, %" PRIu64 " failed (%" PRIu64 " values compared)\n", cases - failed, failed,
           values);
    return failed == 0 && leaked == 0 && values > 0 ? 0 : 1;
}
