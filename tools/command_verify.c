/* zerobit verify: hold the engine against the oracle, and report. */
#include "tools/command.h"
#include "tools/devices.h"
#include "tools/inputs.h"
#include "tools/interrupt.h"
#include "tools/launch.h"
#include "tools/launch_verify.h"
#include "tools/options.h"
#include "tools/processes.h"
#include "tools/processes_nccl.h"
#include "tools/report.h"

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
    int against_ref, against_cuda, against_mpi, against_nccl, contributions;
    const zb_device_factory *cuda; /* with against_cuda, --comm nccl */
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

static const int_list default_worlds = { { 1, 2, 4, 8 }, 4 };

static int largest_world(const verify_settings *settings)
{
    const int_list *worlds = settings->worlds.count > 0 ? &settings->worlds : &default_worlds;
    int largest = 0;
    for (int i = 0; i < worlds->count; i++)
        if (worlds->values[i] > largest) largest = worlds->values[i];
    return largest;
}

static exit_code check_against(verify_settings *settings)
{
    const struct {
        const char *name, *lacks;
        int *wanted;
    } rungs[] = {
        { "ref", NULL, &settings->against_ref },
        { "mpi", ZB_WITH_MPI ? NULL : "MPI communicator", &settings->against_mpi },
        { "cuda", NULL, &settings->against_cuda },
        { "nccl", ZB_WITH_NCCL ? NULL : "NCCL communicator", &settings->against_nccl },
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
        if (*at == '\0') break;
    }
    if (settings->against_mpi && settings->against_nccl)
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT,
                                      "--against mpi,nccl: want one of them, the other in a run of its own"));
    if (settings->against_nccl) {
        const exit_code code = processes_nccl_check(command_name, &settings->processes, &settings->input,
                                                    largest_world(settings));
        if (code != EXIT_EQUAL) return code;
    }
    if (!ZB_WITH_NCCL && processes_on_gpus(&settings->processes))
        return command_lacks(command_name, "NCCL communicator");
    if (!settings->against_cuda && !processes_on_gpus(&settings->processes)) return EXIT_EQUAL;
    return devices_find(command_name, settings->against_cuda ? "--against" : "--comm nccl: device", "cuda", 1,
                        &settings->cuda);
}

static int is_native_order(const verify_settings *settings)
{
    return settings->input.order != NULL && strcmp(settings->input.order, "native") == 0;
}

static int is_launched(const verify_settings *settings)
{
    return settings->against_mpi || settings->against_nccl;
}

/* Ranks started here are told what concerns MPI; simulated ones have nothing to do with it. */
static exit_code check_processes(const verify_settings *settings)
{
    if (settings->mpirun != NULL && !settings->against_mpi)
        return command_failed(command_name, zb_fail(ZB_INVALID_ARGUMENT, "--mpirun without --against mpi: "
                                                                         "nothing is started"));
    if (settings->processes.shared_gpu && settings->against_mpi)
        return command_failed(command_name, zb_fail(ZB_INVALID_ARGUMENT, "--shared-gpu with --against mpi: "
                                                                         "its ranks compute on the CPU"));
    if (settings->against_cuda && processes_on_gpus(&settings->processes))
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT,
                                      "--against cuda with --comm nccl: want --against ref, which is held "
                                      "against ranks on GPUs then"));
    if (!is_launched(settings)) return processes_check(command_name, &settings->processes, &settings->input);
    if (strcmp(settings->processes.comm_name, "sim") != 0)
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT,
                                      "--against %s starts the processes itself; --comm %s is for "
                                      "processes that a launcher has started",
                                      settings->against_mpi ? "mpi" : "nccl", settings->processes.comm_name));
    if (is_native_order(settings) && settings->against_ref)
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT,
                                      "--order native with --against ref: simulated ranks have no MPI to "
                                      "ask; leave ref out, or name the order"));
    return EXIT_EQUAL;
}

/* --- the run --- */

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
    return exit_code_of_cases(report->cases, report->case_count);
}

static zb_verify_options options_of(const verify_settings *settings, const inputs *in, listener *l)
{
    return (zb_verify_options){ .config = in->config,
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
}

/* On the CPU, or on the devices given. */
static zb_status run_cases(const verify_settings *settings, const inputs *in, listener *l,
                           const zb_device_factory *devices, zb_verify_case *cases)
{
    zb_verify_options options = options_of(settings, in, l);
    options.devices = devices;
    const zb_status status = zb_verify(&options, cases);
    if (l->watched) clear_progress();
    return status;
}

/* --- the run on processes that are started here --- */

/* Before anything runs; cases as launch_verify wants them. */
static zb_status plan_launched(const verify_settings *settings, const inputs *in, zb_verify_case *cases)
{
    zb_verify_options options = options_of(settings, in, NULL);
    const int of_world = options.stage_count * options.dtype_count;
    options.world_count = 1;
    for (int w = 0; w < settings->worlds.count; w++, cases += of_world) {
        options.worlds = &settings->worlds.values[w];
        ZB_TRY(zb_verify_plan(&options, cases));
        for (int i = 0; i < of_world; i++) {
            cases[i].ranks = NULL; /* as long as no process has told of it */
            if (settings->against_nccl) cases[i].device = "cuda";
        }
    }
    return ZB_OK;
}

/* The order that the processes have found to be Open MPI's own. */
static zb_status plan_again(const inputs *in, const char *order, zb_verify_case *cases, int case_count)
{
    ZB_TRY(zb_config_set_order(in->config, order));
    for (int i = 0; i < case_count; i++)
        ZB_TRY(
            zb_plan_derive(in->config, cases[i].stage, cases[i].dtype, cases[i].world_size, &cases[i].plan));
    return ZB_OK;
}

static zb_status launch_cases(const verify_settings *settings, const inputs *in, listener *l,
                              zb_verify_case *cases, int case_count, char *order, size_t order_bytes)
{
    const launch_request request = { .on_gpus = settings->against_nccl,
                                     .shared_gpu = settings->processes.shared_gpu,
                                     .mpirun = settings->mpirun,
                                     .input = &settings->input,
                                     .stages = &settings->stages,
                                     .worlds = &settings->worlds,
                                     .dtypes = &settings->dtypes,
                                     .steps = settings->steps,
                                     .timeout = settings->processes.timeout,
                                     .is_native = settings->processes.native,
                                     .with_contributions = settings->contributions };
    report_target target = { .ranks = settings->against_nccl ? "nccl" : "mpi",
                             .cases = cases,
                             .case_count = case_count,
                             .relations = l->relations,
                             .relation_capacity = l->relation_capacity,
                             .relation_count = l->relation_count };
    const zb_status status = launch_verify(&request, &target);
    /* Relations are the oracle's, and have been told where it has run here. */
    if (!settings->against_ref) l->relation_count = target.relation_count;
    if (target.order[0] == '\0') return status;
    snprintf(order, order_bytes, "%s", target.order);
    return status == ZB_OK && is_native_order(settings) ? plan_again(in, order, cases, case_count) : status;
}

/* --- both --- */

static int any_difference(const verify_report *report)
{
    for (int i = 0; i < report->case_count; i++)
        if (report->cases[i].difference.found) return 1;
    return 0;
}

static exit_code conclude(const verify_settings *settings, zb_status status, int is_lacking,
                          const verify_report *report)
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
        return is_lacking ? EXIT_LACKING : code;
    }
    return speaks ? give_report(settings, report) : exit_code_of_cases(report->cases, report->case_count);
}

/* Everything that is to be filled in. */
typedef struct verify_results {
    zb_verify_case *cases;
    listener listener;
    char order[512];
    int is_lacking; /* what is wrong is that this machine has no launcher, or no MPI */
} verify_results;

/* Both rungs on simulated ranks. A difference on the first leaves the second to be seen. */
static zb_status run_simulated(const verify_settings *settings, const inputs *in, int of_rung,
                               verify_results *results)
{
    zb_verify_case *cases = results->cases;
    zb_status status = ZB_OK;
    if (settings->against_ref) {
        const zb_device_factory *devices = processes_on_gpus(&settings->processes) ? settings->cuda : NULL;
        status = run_cases(settings, in, &results->listener, devices, cases);
        cases += of_rung;
    }
    if (!settings->against_cuda || (status != ZB_OK && status != ZB_DIFFERENT)) return status;
    const zb_status on_cuda = run_cases(settings, in, &results->listener, settings->cuda, cases);
    return on_cuda != ZB_OK ? on_cuda : status;
}

static zb_status run_rungs(verify_settings *settings, const inputs *in, int of_rung, verify_results *results)
{
    zb_verify_case *launched = results->cases + of_rung * (settings->against_ref + settings->against_cuda);
    zb_status status = settings->against_mpi ? launch_check(settings->mpirun) : ZB_OK;
    results->is_lacking = status == ZB_UNSUPPORTED;
    if (status == ZB_OK && is_launched(settings)) status = plan_launched(settings, in, launched);
    if (status == ZB_OK) status = run_simulated(settings, in, of_rung, results);
    if (!is_launched(settings) || (status != ZB_OK && status != ZB_DIFFERENT)) return status;
    status = launch_cases(settings, in, &results->listener, launched, of_rung, results->order,
                          sizeof results->order);
    results->is_lacking = status == ZB_UNSUPPORTED;
    return status;
}

static int rung_count(const verify_settings *settings)
{
    return settings->against_ref + settings->against_cuda + is_launched(settings);
}

static zb_status create_results(const verify_settings *settings, int case_count, verify_results *results)
{
    enum { PAIRS = ZB_STAGE_COUNT * (ZB_STAGE_COUNT - 1) / 2 };
    const int rungs = rung_count(settings);
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
    const int case_count = of_rung * rung_count(settings);
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
    const exit_code code = conclude(settings, status, results.is_lacking, &report);
    *orderly = status == ZB_OK || status == ZB_DIFFERENT || status == ZB_INTERRUPTED;
    zb_free(results.listener.relations);
    zb_free(results.cases);
    return code;
}

static void fill_defaults(verify_settings *settings, const inputs *in)
{
    if (settings->dtypes.count == 0) settings->dtypes = (dtype_list){ { in->config->dtype }, 1 };
    if (settings->worlds.count > 0) return;
    settings->worlds = default_worlds;
    if (settings->processes.comm != NULL)
        settings->worlds = (int_list){ { settings->processes.comm->world_size }, 1 };
}

static zb_status open_inputs(verify_settings *settings, inputs *in)
{
    input_options own = settings->input;
    /* Which order that is only the processes know. */
    if (settings->against_mpi && is_native_order(settings)) own.order = NULL;
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
        if (!processes_on_gpus(&settings->processes))
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
          "ref: the engine on simulated ranks, cuda: on ranks that share a GPU, mpi: on Open MPI's "
          "processes, nccl: on processes with a GPU each; each against the oracle (ref)",
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
