/* zerobit verify: hold the engine against the oracle, and report. */
#include "tools/command.h"
#include "tools/inputs.h"
#include "tools/interrupt.h"
#include "tools/launch.h"
#include "tools/options.h"
#include "tools/processes.h"
#include "tools/report.h"
#include "tools/report_read.h"

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
    const command_spec *spec;
    input_options input;
    processes processes;
    int_list stages, worlds; /* worlds empty: 1, 2, 4, 8, or as many as there are processes */
    dtype_list dtypes;       /* empty: the config's */
    int64_t steps, workers;
    const char *against, *mpirun, *json, *junit;
    int against_ref, against_mpi, contributions;
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

static exit_code check_against(verify_settings *settings)
{
    const struct {
        const char *name, *lacks;
        int *wanted;
    } rungs[] = {
        { "ref", NULL, &settings->against_ref },
        { "mpi", ZB_WITH_MPI ? NULL : "MPI communicator", &settings->against_mpi },
        { "cuda", "CUDA device", NULL },
        { "nccl", "NCCL communicator", NULL },
    };
    char word[16];
    for (const char *at = settings->against;; at++) {
        size_t length = strcspn(at, ",");
        snprintf(word, sizeof word, "%.*s", (int)length, at);
        size_t i = 0;
        while (i < sizeof rungs / sizeof rungs[0] && strcmp(rungs[i].name, word) != 0) i++;
        if (i == sizeof rungs / sizeof rungs[0])
            return command_failed(
                command_name,
                zb_fail(ZB_INVALID_ARGUMENT, "--against %.*s: want ref, mpi, cuda or nccl", (int)length, at));
        if (rungs[i].lacks != NULL) return command_lacks(command_name, rungs[i].lacks);
        *rungs[i].wanted = 1;
        at += length;
        if (*at == '\0') return EXIT_EQUAL;
    }
}

/* Ranks started here are told what concerns MPI; simulated ones have nothing to do with it. */
static exit_code check_processes(const verify_settings *settings)
{
    const int is_native = settings->input.order != NULL && strcmp(settings->input.order, "native") == 0;
    if (!settings->against_mpi) return processes_check(command_name, &settings->processes, &settings->input);
    if (strcmp(settings->processes.comm_name, "sim") != 0)
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT,
                                      "--against mpi starts the processes itself; --comm %s is for "
                                      "processes that mpirun has started",
                                      settings->processes.comm_name));
    if (is_native && settings->against_ref)
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT,
                                      "--order native with --against ref: simulated ranks have no MPI to "
                                      "ask; leave ref out, or name the order"));
    return EXIT_EQUAL;
}

/* --- the run --- */

/* A rank that failed for a reason of its own (memory, an internal error) is no verdict about the arithmetic.
 */
static exit_code code_of_cases(const zb_verify_case *cases, int case_count)
{
    exit_code code = EXIT_EQUAL;
    for (int i = 0; i < case_count; i++) {
        exit_code of_case = exit_code_of(cases[i].status);
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
    return code_of_cases(report->cases, report->case_count);
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
                                        .contributions = settings->contributions,
                                        .comm = settings->processes.comm,
                                        .workers = (int)settings->workers,
                                        .sim_seed = (uint64_t)settings->input.seed,
                                        .sampler_seed = (uint64_t)settings->input.seed,
                                        .interrupt = &interrupt_flag,
                                        .progress = show_progress,
                                        .relation = note_relation,
                                        .user = l };
    const zb_status status = zb_verify(&options, cases);
    if (l->watched) clear_progress();
    return status;
}

/* --- the run on processes that are started here --- */

static zb_status add_list(word_list *words, const char *name, const int *values, int count)
{
    char text[16 * OPTION_LIST_MAX] = "";
    for (int i = 0; i < count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", i > 0 ? "," : "", values[i]);
    ZB_TRY(words_add(words, "%s", name));
    return words_add(words, "%s", text);
}

static zb_status add_text(word_list *words, const char *name, const char *value)
{
    if (value == NULL) return ZB_OK;
    ZB_TRY(words_add(words, "%s", name));
    return words_add(words, "%s", value);
}

/* 0: not given. */
static zb_status add_number(word_list *words, const char *name, int64_t value)
{
    if (value == 0) return ZB_OK;
    ZB_TRY(words_add(words, "%s", name));
    return words_add(words, "%" PRId64, value);
}

static zb_status add_dtypes(word_list *words, const dtype_list *dtypes)
{
    ZB_TRY(words_add(words, "--dtypes"));
    char text[8 * ZB_DTYPE_COUNT] = "";
    for (int i = 0; i < dtypes->count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i > 0 ? "," : "",
                 zb_dtype_name(dtypes->values[i]));
    return words_add(words, "%s", text);
}

static zb_status add_inputs(const input_options *input, word_list *words)
{
    ZB_TRY(add_text(words, "--semantics", input->semantics));
    ZB_TRY(add_text(words, "--order", input->order));
    ZB_TRY(add_text(words, "--model", input->model));
    ZB_TRY(add_text(words, "--data", input->data));
    ZB_TRY(add_text(words, "--weights", input->weights));
    ZB_TRY(add_number(words, "--records", input->records));
    ZB_TRY(add_number(words, "--seed", input->seed));
    ZB_TRY(add_number(words, "--train-batch", input->train_batch));
    ZB_TRY(add_number(words, "--micro-batch", input->micro_batch));
    return add_number(words, "--accumulation", input->accumulation);
}

/* The same command on each process, which is told the world and writes its report to standard output. */
static zb_status list_words(const verify_settings *settings, int world_size, word_list *words)
{
    ZB_TRY(launch_begin(settings->mpirun, world_size, words));
    ZB_TRY(words_add(words, "verify"));
    ZB_TRY(words_add(words, "%s", settings->input.config_path));
    ZB_TRY(add_inputs(&settings->input, words));
    ZB_TRY(add_list(words, "--stages", settings->stages.values, settings->stages.count));
    ZB_TRY(add_list(words, "--worlds", &world_size, 1));
    ZB_TRY(add_dtypes(words, &settings->dtypes));
    ZB_TRY(add_number(words, "--steps", settings->steps));
    ZB_TRY(add_text(words, "--comm", "mpi"));
    if (settings->processes.native) ZB_TRY(words_add(words, "--native"));
    if (settings->contributions) ZB_TRY(words_add(words, "--contributions"));
    ZB_TRY(add_number(words, "--timeout", settings->processes.timeout));
    ZB_TRY(add_text(words, "--json", "-"));
    return words_add(words, "--quiet");
}

/* Without a report the processes have failed, and have said so on standard error. */
static void fail_world(zb_verify_case *cases, int case_count, int world_size, int ended_with)
{
    for (int i = 0; i < case_count; i++) {
        if (cases[i].world_size != world_size) continue;
        cases[i].ranks = "mpi";
        cases[i].status = ZB_REMOTE;
        snprintf(cases[i].message, sizeof cases[i].message,
                 "the %d processes ended without a report, with exit status %d; what they said stands above",
                 world_size, ended_with);
    }
}

/* Whoever ends otherwise than the report says has failed behind it, and what it calls equal is not shown. */
static void check_end(zb_verify_case *cases, int case_count, int world_size, int ended_with)
{
    const exit_code want = code_of_cases(cases, case_count);
    if (ended_with == (int)want) return;
    for (int i = 0; i < case_count; i++) {
        if (cases[i].status != ZB_OK) continue;
        cases[i].status = ZB_REMOTE;
        snprintf(cases[i].message, sizeof cases[i].message,
                 "the %d processes ended with exit status %d behind their report, want %d; what they said "
                 "stands above",
                 world_size, ended_with, (int)want);
    }
}

static zb_status check_interrupted(int world_size, const char *how_far)
{
    if (interrupt_flag == 0) return ZB_OK;
    return zb_fail(ZB_INTERRUPTED, "interrupted: world %d on Open MPI's processes, %s", world_size, how_far);
}

/* All cases of a world, in one start of its processes. */
static zb_status launch_world(const verify_settings *settings, int world_size, report_target *target)
{
    word_list words = { 0 };
    char *output = NULL, label[64];
    size_t bytes = 0;
    int ended_with = 0;
    zb_status status = check_interrupted(world_size, "before they were started");
    if (status == ZB_OK) status = list_words(settings, world_size, &words);
    if (status == ZB_OK) status = launch_run(&words, &output, &bytes, &ended_with);
    words_destroy(&words);
    /* Before what may be half a report is read. */
    if (status == ZB_OK) status = check_interrupted(world_size, "which have ended");
    snprintf(label, sizeof label, "the report of %d processes", world_size);
    if (status == ZB_OK && bytes > 0) {
        status = report_read(output, bytes, label, target);
        if (status == ZB_OK) check_end(target->cases, target->case_count, world_size, ended_with);
    } else if (status == ZB_OK) {
        fail_world(target->cases, target->case_count, world_size, ended_with);
    }
    zb_free(output);
    return status;
}

static void name_cases(const verify_settings *settings, int world_size, zb_verify_case *cases)
{
    for (int d = 0; d < settings->dtypes.count; d++)
        for (int s = 0; s < settings->stages.count; s++)
            *cases++ = (zb_verify_case){ .stage = settings->stages.values[s],
                                         .dtype = settings->dtypes.values[d],
                                         .world_size = world_size };
}

static zb_status launch_cases(const verify_settings *settings, listener *l, zb_verify_case *cases,
                              char *order, size_t order_bytes)
{
    const int of_world = settings->stages.count * settings->dtypes.count;
    for (int w = 0; w < settings->worlds.count; w++, cases += of_world) {
        report_target target = { .cases = cases,
                                 .case_count = of_world,
                                 .relations = l->relations,
                                 .relation_capacity = l->relation_capacity,
                                 .relation_count = l->relation_count };
        name_cases(settings, settings->worlds.values[w], cases);
        ZB_TRY(launch_world(settings, settings->worlds.values[w], &target));
        /* Relations are the oracle's, and have been told where it has run here. */
        if (!settings->against_ref) l->relation_count = target.relation_count;
        if (target.order[0] != '\0') snprintf(order, order_bytes, "%s", target.order);
    }
    return ZB_OK;
}

/* --- both --- */

static int any_difference(const verify_report *report)
{
    for (int i = 0; i < report->case_count; i++)
        if (report->cases[i].difference.found) return 1;
    return 0;
}

static exit_code conclude(const verify_settings *settings, zb_status status, const verify_report *report)
{
    const int speaks = processes_speaks(&settings->processes);
    if (status == ZB_INTERRUPTED) {
        if (speaks) fprintf(stderr, "zerobit verify: %s\n", zb_error_message());
        return EXIT_INTERNAL; /* main ends by the signal itself */
    }
    /* ZB_DIFFERENT is told by the cases; anything else kept them from running, or from going on. */
    if (status != ZB_OK && status != ZB_DIFFERENT) {
        const exit_code code = command_failed(command_name, status);
        if (speaks && any_difference(report)) report_unequal(report, stderr);
        return code;
    }
    return speaks ? give_report(settings, report) : code_of_cases(report->cases, report->case_count);
}

/* Everything that is to be filled in. */
typedef struct verify_results {
    zb_verify_case *cases;
    listener listener;
    char order[512];
} verify_results;

static zb_status run_rungs(verify_settings *settings, const inputs *in, int of_rung, verify_results *results)
{
    zb_verify_case *cases = results->cases;
    zb_status status = ZB_OK;
    if (settings->against_ref) status = run_cases(settings, in, &results->listener, cases);
    if (status != ZB_OK && status != ZB_DIFFERENT) return status;
    if (settings->against_ref) cases += of_rung;
    if (settings->against_mpi)
        status = launch_cases(settings, &results->listener, cases, results->order, sizeof results->order);
    return status;
}

static zb_status create_results(const verify_settings *settings, int case_count, verify_results *results)
{
    enum { PAIRS = ZB_STAGE_COUNT * (ZB_STAGE_COUNT - 1) / 2 };
    const int rungs = settings->against_ref + settings->against_mpi;
    listener *l = &results->listener;
    l->watched = !settings->quiet && isatty(STDERR_FILENO) && processes_speaks(&settings->processes);
    l->relation_capacity = PAIRS * rungs * settings->worlds.count * settings->dtypes.count;
    results->cases = zb_alloc_array((size_t)case_count, sizeof *results->cases);
    l->relations = zb_alloc_array((size_t)l->relation_capacity, sizeof *l->relations);
    return results->cases != NULL && l->relations != NULL ? ZB_OK : ZB_NO_MEMORY;
}

static exit_code verify_inputs(verify_settings *settings, const inputs *in, int *orderly)
{
    const int of_rung = settings->stages.count * settings->worlds.count * settings->dtypes.count;
    const int case_count = of_rung * (settings->against_ref + settings->against_mpi);
    const double begin = seconds_now();
    verify_results results = { 0 };
    zb_status status = create_results(settings, case_count, &results);
    zb_orders_describe(in->config->orders, results.order, sizeof results.order);
    if (status == ZB_OK) status = run_rungs(settings, in, of_rung, &results);
    const verify_report report = { .config = in->config,
                                   .model = in->model->name,
                                   .data = settings->input.data,
                                   .order = strcmp(results.order, "rank") != 0 ? results.order : NULL,
                                   .steps = settings->steps,
                                   .seed = settings->input.seed,
                                   .cases = results.cases,
                                   .case_count = results.cases != NULL ? case_count : 0,
                                   .relations = results.listener.relations,
                                   .relation_count = results.listener.relation_count,
                                   .seconds = seconds_now() - begin };
    const exit_code code = conclude(settings, status, &report);
    *orderly = status == ZB_OK || status == ZB_DIFFERENT || status == ZB_INTERRUPTED;
    zb_free(results.listener.relations);
    zb_free(results.cases);
    return code;
}

static void fill_defaults(verify_settings *settings, const inputs *in)
{
    static const int_list simulated = { { 1, 2, 4, 8 }, 4 };
    if (settings->dtypes.count == 0) settings->dtypes = (dtype_list){ { in->config->dtype }, 1 };
    if (settings->worlds.count > 0) return;
    settings->worlds = simulated;
    if (settings->processes.comm != NULL)
        settings->worlds = (int_list){ { settings->processes.comm->world_size }, 1 };
}

static zb_status open_inputs(verify_settings *settings, inputs *in)
{
    input_options own = settings->input;
    /* Which order that is only the processes know. */
    if (settings->against_mpi && own.order != NULL && strcmp(own.order, "native") == 0) own.order = NULL;
    ZB_TRY(inputs_open(&own, in));
    const zb_status status = processes_start(&settings->processes, in, settings->spec);
    if (status != ZB_OK) inputs_close(in);
    return status;
}

static exit_code verify(verify_settings *settings)
{
    inputs in;
    int orderly = 0;
    exit_code code;
    zb_status status = processes_read_native(&settings->processes, &settings->input);
    if (status == ZB_OK) {
        interrupt_watch(); /* processes_start has its own way with SIGTERM */
        status = open_inputs(settings, &in);
    }
    if (status == ZB_OK) {
        fill_defaults(settings, &in);
        code = verify_inputs(settings, &in, &orderly);
        inputs_close(&in);
    } else {
        code = command_failed(command_name, status);
    }
    return processes_end(&settings->processes, code, orderly);
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
                                 .processes = PROCESSES_DEFAULT,
                                 .stages = { { 0, 1, 2, 3 }, 4 },
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
        { "--against", OPTION_TEXT, &settings.against, "LIST",
          "ref: the engine on simulated ranks, mpi: on Open MPI's processes; each against the oracle (ref)",
          0, 0 },
        { "--mpirun", OPTION_TEXT, &settings.mpirun, "WORDS",
          "with --against mpi: what starts the processes (ZEROBIT_MPIRUN, or mpirun)", 0, 0 },
        OPTION_ROWS_PROCESSES(settings.processes),
        { "--contributions", OPTION_FLAG, &settings.contributions, NULL,
          "also compare what each rank sends of its gradients", 0, 0 },
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
    settings.spec = &spec;
    const char *operands[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, operands, &help);
    if (status != ZB_OK) return command_failed(command_name, status);
    if (help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    exit_code code = check_against(&settings);
    if (code == EXIT_EQUAL) code = check_processes(&settings);
    if (code != EXIT_EQUAL) return code;

    status = check_reports(&settings);
    if (status != ZB_OK) return command_failed(command_name, status);
    settings.input.config_path = operands[0];
    return verify(&settings);
}
