/* zerobit verify: hold the engine against the oracle, and report. */
#include "tools/command.h"
#include "tools/inputs.h"
#include "tools/interrupt.h"
#include "tools/options.h"
#include "tools/report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/verify.h>

static const char command_name[] = "verify";

typedef struct verify_settings {
    input_options input;
    int_list stages, worlds;
    dtype_list dtypes; /* empty: the config's */
    int64_t steps, workers;
    const char *against, *json, *junit;
    int quiet;
} verify_settings;

/* --- what is told on the way --- */

typedef struct listener {
    int watched; /* a progress bar is shown */
    zb_verify_relation *relations;
    int relation_count, relation_capacity;
} listener;

static void note_relation(void *user, const zb_verify_relation *relation)
{
    listener *l = user;
    ZB_ASSERT(l->relation_count < l->relation_capacity);
    l->relations[l->relation_count++] = *relation;
}

static void show_progress(void *user, const zb_verify_case *current, int64_t done, int64_t total)
{
    const listener *l = user;
    if (!l->watched) return;
    enum { WIDTH = 30 };
    char bar[WIDTH + 1];
    int filled = (int)(done * WIDTH / total);
    memset(bar, '#', (size_t)filled);
    memset(bar + filled, '.', (size_t)(WIDTH - filled));
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r[%s] %3d%%  stage %d, world %d, %s   ", bar, (int)(done * 100 / total), current->stage,
            current->world_size, zb_dtype_name(current->dtype));
}

static void clear_progress(void)
{
    fprintf(stderr, "\r%79s\r", "");
}

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* --- what it is held against --- */

static exit_code check_against(const char *against)
{
    static const struct {
        const char *name, *lacks;
    } rungs[] = {
        { "ref", NULL },
        { "mpi", "MPI communicator" },
        { "cuda", "CUDA device" },
        { "nccl", "NCCL communicator" },
    };
    char word[16];
    for (const char *at = against;; at++) {
        size_t length = strcspn(at, ",");
        snprintf(word, sizeof word, "%.*s", (int)length, at);
        size_t i = 0;
        while (i < sizeof rungs / sizeof rungs[0] && strcmp(rungs[i].name, word) != 0) i++;
        if (i == sizeof rungs / sizeof rungs[0])
            return command_failed(
                command_name,
                zb_fail(ZB_INVALID_ARGUMENT, "--against %.*s: want ref, mpi, cuda or nccl", (int)length, at));
        if (rungs[i].lacks != NULL) return command_lacks(command_name, rungs[i].lacks);
        at += length;
        if (*at == '\0') return EXIT_EQUAL;
    }
}

/* --- the run --- */

/* A rank that failed for a reason of its own (memory, an internal error) is no verdict about the arithmetic.
 */
static exit_code code_of_cases(const verify_report *report)
{
    exit_code code = EXIT_EQUAL;
    for (int i = 0; i < report->case_count; i++) {
        exit_code of_case = exit_code_of(report->cases[i].status);
        if (of_case == EXIT_DIFFERENT) return EXIT_DIFFERENT;
        if (of_case != EXIT_EQUAL) code = of_case;
    }
    return code;
}

static exit_code give_report(const verify_settings *settings, const verify_report *report)
{
    int json_on_stdout = settings->json != NULL && strcmp(settings->json, "-") == 0;
    if (settings->quiet)
        report_unequal(report, stderr);
    else
        report_table(report, json_on_stdout ? stderr : stdout);
    if (settings->json != NULL) {
        zb_status status = report_json(report, settings->json);
        if (status != ZB_OK) return command_failed(command_name, status);
    }
    if (settings->junit != NULL) {
        zb_status status = report_junit(report, settings->junit);
        if (status != ZB_OK) return command_failed(command_name, status);
    }
    return code_of_cases(report);
}

static zb_status run_cases(const verify_settings *settings, const inputs *in, listener *l,
                           zb_verify_case *cases)
{
    const zb_verify_options options = { .config = in->config,
                                        .model = in->model,
                                        .weights = &in->weights,
                                        .dataset = in->dataset,
                                        .stages = settings->stages.values,
                                        .stage_count = settings->stages.count,
                                        .worlds = settings->worlds.values,
                                        .world_count = settings->worlds.count,
                                        .dtypes = settings->dtypes.values,
                                        .dtype_count = settings->dtypes.count,
                                        .steps = settings->steps,
                                        .workers = (int)settings->workers,
                                        .sim_seed = (uint64_t)settings->input.seed,
                                        .sampler_seed = (uint64_t)settings->input.seed,
                                        .interrupt = &interrupt_flag,
                                        .progress = show_progress,
                                        .relation = note_relation,
                                        .user = l };
    interrupt_watch();
    const zb_status status = zb_verify(&options, cases);
    if (l->watched) clear_progress();
    return status;
}

static exit_code conclude(const verify_settings *settings, const inputs *in, zb_status status,
                          verify_report *report)
{
    if (status == ZB_INTERRUPTED) {
        fprintf(stderr, "zerobit verify: %s\n", zb_error_message());
        return EXIT_INTERNAL; /* main ends by the signal itself */
    }
    /* ZB_DIFFERENT is told by the cases; anything else kept them from running. */
    if (status != ZB_OK && status != ZB_DIFFERENT) return command_failed(command_name, status);
    char *order = zb_orders_text(in->config->orders);
    if (order == NULL) return command_failed(command_name, ZB_NO_MEMORY);
    report->order = in->config->orders != NULL ? order : NULL;
    const exit_code code = give_report(settings, report);
    zb_free(order);
    return code;
}

static exit_code verify_inputs(verify_settings *settings, const inputs *in)
{
    if (settings->dtypes.count == 0) settings->dtypes = (dtype_list){ { in->config->dtype }, 1 };
    const int worlds = settings->worlds.count * settings->dtypes.count;
    const int case_count = settings->stages.count * worlds;
    enum { PAIRS = ZB_STAGE_COUNT * (ZB_STAGE_COUNT - 1) / 2 };
    listener l = { .watched = !settings->quiet && isatty(STDERR_FILENO),
                   .relation_capacity = PAIRS * worlds };
    const double begin = seconds_now();
    zb_verify_case *cases = zb_alloc_array((size_t)case_count, sizeof *cases);
    l.relations = zb_alloc_array((size_t)l.relation_capacity, sizeof *l.relations);
    zb_status status = cases != NULL && l.relations != NULL ? ZB_OK : ZB_NO_MEMORY;
    if (status == ZB_OK) status = run_cases(settings, in, &l, cases);
    verify_report report = { .config = in->config,
                             .model = in->model->name,
                             .data = settings->input.data,
                             .steps = settings->steps,
                             .seed = settings->input.seed,
                             .cases = cases,
                             .case_count = case_count,
                             .relations = l.relations,
                             .relation_count = l.relation_count,
                             .seconds = seconds_now() - begin };
    const exit_code code = conclude(settings, in, status, &report);
    zb_free(l.relations);
    zb_free(cases);
    return code;
}

static zb_status check_reports(const verify_settings *settings)
{
    if (settings->json != NULL && strcmp(settings->json, "-") != 0) ZB_TRY(check_writable(settings->json));
    if (settings->junit != NULL && strcmp(settings->junit, "-") == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--junit -: want a file; only --json goes to standard output");
    ZB_TRY(check_writable(settings->junit));
    if (settings->json != NULL && settings->junit != NULL && strcmp(settings->json, settings->junit) == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--json and --junit are both %s", settings->json);
    return ZB_OK;
}

exit_code command_verify(int argc, char **argv)
{
    verify_settings settings = { .input = INPUT_OPTIONS_DEFAULT,
                                 .stages = { { 0, 1, 2, 3 }, 4 },
                                 .worlds = { { 1, 2, 4, 8 }, 4 },
                                 .steps = 20,
                                 .against = "ref" };
    int help = 0;
    const option_spec options[] = {
        OPTION_ROW_SEMANTICS(settings.input),
        OPTION_ROW_ORDER(settings.input),
        OPTION_ROW_MODEL(settings.input),
        OPTION_ROWS_DATA(settings.input),
        { "--stages", OPTION_INTS, &settings.stages, "LIST", "ZeRO stages (0,1,2,3)", 0, ZB_STAGE_COUNT - 1 },
        { "--worlds", OPTION_INTS, &settings.worlds, "LIST", "numbers of ranks (1,2,4,8)", 1, 65536 },
        { "--dtypes", OPTION_DTYPES, &settings.dtypes, "LIST", "precisions: fp32, fp16, bf16 (the config's)",
          0, 0 },
        { "--steps", OPTION_INT, &settings.steps, "N", "optimizer steps (20)", 1, INT32_MAX },
        OPTION_ROWS_BATCH(settings.input),
        { "--against", OPTION_TEXT, &settings.against, "LIST", "what to hold the engine against: ref (ref)",
          0, 0 },
        { "--workers", OPTION_INT, &settings.workers, "N", "threads of the simulation; 0: one per core (0)",
          0, 1024 },
        { "--json", OPTION_TEXT, &settings.json, "FILE", "write a report as JSON; -: to standard output", 0,
          0 },
        { "--junit", OPTION_TEXT, &settings.junit, "FILE", "write a report as JUnit's XML", 0, 0 },
        { "--quiet", OPTION_FLAG, &settings.quiet, NULL, "no table, no progress bar; only what is not equal",
          0, 0 },
        { 0 },
    };
    const command_spec spec = {
        command_name,
        "Holds the engine at every stage and world size against an independent oracle, to the bit.",
        { "CONFIG" },
        options
    };
    const char *operands[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, operands, &help);
    if (status != ZB_OK) return command_failed(command_name, status);
    if (help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    exit_code code = check_against(settings.against);
    if (code != EXIT_EQUAL) return code;

    status = check_reports(&settings);
    if (status != ZB_OK) return command_failed(command_name, status);

    settings.input.config_path = operands[0];
    inputs in;
    status = inputs_open(&settings.input, &in);
    if (status != ZB_OK) return command_failed(command_name, status);
    code = verify_inputs(&settings, &in);
    inputs_close(&in);
    return code;
}
