/* zerobit train: a training run on simulated ranks, with a trace and weights to keep. */
#include "tools/command.h"
#include "tools/devices.h"
#include "tools/inputs.h"
#include "tools/interrupt.h"
#include "tools/launch.h"
#include "tools/options.h"
#include "tools/processes.h"
#include "tools/processes_nccl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/trace.h>

#include "verify/seat.h"
#include "verify/world.h"

static const char command_name[] = "train";

typedef struct train_settings {
    const command_spec *spec;
    input_options input;
    processes processes;
    int64_t gpus; /* 0: nothing is started */
    int64_t world_size /* 0: 1, or as many as there are processes */, steps, stage /* -1: the config's */,
        workers, print_every;
    dtype_list dtypes;
    const char *device, *trace, *save_weights;
    const zb_device_factory *devices; /* what `device` names */
    int force, contributions;
} train_settings;

typedef struct train_run {
    const train_settings *settings;
    const inputs *in;
    zb_comm *comm; /* NULL: the ranks are simulated; otherwise they are processes, and this is one of them */
    zb_world *world;
    zb_seat *seats; /* [rank_count], like engines: of the ranks that run here */
    zb_engine **engines;
    int rank_count;
    zb_route route;         /* empty where neither trace nor order wants it */
    zb_trace_writer *trace; /* NULL: none wanted, or written elsewhere */
    zb_weights gathered;    /* where rank 0 runs */
    double lr;              /* likewise: of the step under way */
    double *loss_sum;       /* [rank_count] of this step, where everything arrives */
    int64_t *loss_count;
} train_run;

static int is_judge(const train_run *run)
{
    return run->comm == NULL || run->comm->rank == 0;
}

/* --- what a rank does --- */

static zb_status start_rank(void *user, zb_comm *comm, const zb_observer *observer)
{
    train_run *run = user;
    zb_seat *seat = &run->seats[comm->rank];
    ZB_TRY(zb_seat_create(run->settings->devices, comm, run->comm == NULL, seat));
    zb_engine_options options = { .config = run->in->config,
                                  .model = run->in->model,
                                  .weights = &run->in->weights,
                                  .dataset = run->in->dataset,
                                  .device = seat->device,
                                  .comm = seat->comm,
                                  .stage = (int)run->settings->stage,
                                  .dtype = (int)run->settings->dtypes.values[0],
                                  .sampler_seed = (uint64_t)run->settings->input.seed };
    ZB_TRY(zb_initialize(&options, &run->engines[comm->rank]));
    return run->settings->trace != NULL ? zb_engine_observe(run->engines[comm->rank], observer) : ZB_OK;
}

static zb_status step_rank(void *user, zb_comm *comm, const zb_observer *observer)
{
    train_run *run = user;
    zb_engine *engine = run->engines[comm->rank];
    if (run->settings->contributions) zb_engine_observe_contributions(engine, observer);
    if (comm->rank == 0) run->lr = zb_schedule_lr(&zb_engine_lr_scheduler(engine)->group[0]);
    ZB_TRY(zb_engine_train_step(engine, observer));
    return run->settings->trace != NULL ? zb_engine_observe(engine, observer) : ZB_OK;
}

static zb_status gather_rank(void *user, zb_comm *comm, const zb_observer *observer)
{
    train_run *run = user;
    zb_weights weights;
    (void)observer;
    /* The seed's values are overwritten; this is how weights of the right sizes come to be. */
    ZB_TRY(zb_weights_from_seed(run->in->model, 0, &weights));
    zb_status status = zb_engine_gather_weights(run->engines[comm->rank], weights.values);
    if (status == ZB_OK && comm->rank == 0)
        run->gathered = weights;
    else
        zb_weights_destroy(&weights);
    return status;
}

/* --- where everything arrives --- */

/* Ranks come from several threads, but each from one. */
static zb_status observe(void *user, const zb_observation *observation)
{
    train_run *run = user;
    if (observation->quantity == ZB_Q_LOSS) {
        float loss;
        memcpy(&loss, observation->data, sizeof loss);
        run->loss_sum[observation->rank] += (double)loss;
        run->loss_count[observation->rank]++;
    }
    return run->trace != NULL ? zb_trace_write(run->trace, observation) : ZB_OK;
}

static zb_status run_ranks(train_run *run, zb_world_main *main)
{
    const zb_observer observer = { observe, run };
    return zb_world_run(run->world, main, run, &observer);
}

/* --- the run --- */

static zb_status open_trace(train_run *run, const zb_plan *plan, int stage)
{
    const train_settings *settings = run->settings;
    if (settings->trace == NULL || !is_judge(run)) return ZB_OK;
    char *orders = zb_orders_text(plan->orders);
    if (orders == NULL) return ZB_NO_MEMORY;
    zb_trace_header header = { .model = run->in->model,
                               .plan = *plan,
                               .stage = stage,
                               .comm = settings->processes.comm_name,
                               .device = settings->device,
                               .order = orders,
                               .steps = settings->steps,
                               .route = &run->route };
    const zb_status status = zb_trace_writer_create(settings->trace, &header, &run->trace);
    zb_free(orders);
    return status;
}

static zb_status allocate(train_run *run)
{
    const size_t count = (size_t)run->rank_count;
    run->seats = zb_alloc_array(count, sizeof *run->seats);
    run->engines = zb_alloc_array(count, sizeof *run->engines);
    run->loss_sum = zb_alloc_array(count, sizeof *run->loss_sum);
    run->loss_count = zb_alloc_array(count, sizeof *run->loss_count);
    const int complete = run->seats != NULL && run->engines != NULL && run->loss_sum != NULL &&
                         run->loss_count != NULL;
    return complete ? ZB_OK : ZB_NO_MEMORY;
}

static zb_status create_world(train_run *run)
{
    if (run->comm != NULL) return zb_world_spread(run->comm, &run->world);
    const zb_sim_options sim_options = { .world_size = run->rank_count,
                                         .workers = (int)run->settings->workers,
                                         .seed = (uint64_t)run->settings->input.seed };
    return zb_world_simulate(&sim_options, &run->world);
}

static zb_status create_run(train_run *run)
{
    const train_settings *settings = run->settings;
    zb_plan plan;
    int stage = settings->stage >= 0 ? (int)settings->stage : run->in->config->zero.stage;
    ZB_TRY(zb_plan_derive(run->in->config, stage, settings->dtypes.values[0], run->rank_count, &plan));
    /* An order that the stage's collectives cannot have is found before anything runs. */
    if (plan.orders != NULL || settings->trace != NULL)
        ZB_TRY(zb_route_create(run->in->config, run->in->model, &plan, stage, &run->route));
    ZB_TRY(allocate(run));
    ZB_TRY(create_world(run));
    return open_trace(run, &plan, stage);
}

static void destroy_run(train_run *run)
{
    const int count = run->seats != NULL ? run->rank_count : 0;
    zb_seats_settle(run->seats, count);
    for (int i = 0; i < count; i++) {
        if (run->engines != NULL) zb_engine_destroy(run->engines[i]);
        zb_seat_destroy(&run->seats[i]);
    }
    zb_world_destroy(run->world);
    zb_route_destroy(&run->route);
    zb_trace_writer_destroy(run->trace);
    zb_weights_destroy(&run->gathered);
    zb_free(run->seats);
    zb_free(run->engines);
    zb_free(run->loss_sum);
    zb_free(run->loss_count);
}

static void print_step(const train_run *run, int64_t step)
{
    int64_t every = run->settings->print_every;
    if (!is_judge(run)) return;
    if ((step + 1) % every != 0 && step + 1 != run->settings->steps) return;
    double sum = 0;
    int64_t count = 0;
    for (int i = 0; i < run->rank_count; i++) {
        sum += run->loss_sum[i];
        count += run->loss_count[i];
    }
    printf("step %6" PRId64 "  loss %.9g  lr %.9g\n", step + 1, sum / (double)count, run->lr);
    fflush(stdout);
}

/* Every process stops before the same step. */
static zb_status check_interrupt(train_run *run, int64_t step)
{
    int64_t interrupted = interrupt_flag != 0;
    ZB_TRY(zb_world_agree(run->world, &interrupted, 1));
    if (!interrupted) return ZB_OK;
    return zb_fail(ZB_INTERRUPTED, "interrupted before step %" PRId64 " of %" PRId64 "; nothing was written",
                   step, run->settings->steps);
}

static zb_status step_all(train_run *run, int64_t step)
{
    memset(run->loss_sum, 0, (size_t)run->rank_count * sizeof *run->loss_sum);
    memset(run->loss_count, 0, (size_t)run->rank_count * sizeof *run->loss_count);
    ZB_TRY(run_ranks(run, step_rank));
    print_step(run, step);
    return ZB_OK;
}

static zb_status save(train_run *run)
{
    const train_settings *settings = run->settings;
    if (settings->save_weights != NULL) ZB_TRY(run_ranks(run, gather_rank));
    if (settings->save_weights != NULL && is_judge(run)) {
        ZB_TRY(zb_weights_save(run->in->model, &run->gathered, settings->save_weights));
        printf("%s: the weights\n", settings->save_weights);
    }
    if (run->trace == NULL) return ZB_OK;
    ZB_TRY(zb_trace_writer_finish(run->trace));
    printf("%s: the trace\n", settings->trace);
    return ZB_OK;
}

static zb_status train(train_run *run)
{
    ZB_TRY(create_run(run));
    ZB_TRY(run_ranks(run, start_rank));
    /* Once more after the last step: when an interruption came in time, nothing is written. */
    for (int64_t step = 0;; step++) {
        ZB_TRY(check_interrupt(run, step));
        if (step == run->settings->steps) return save(run);
        ZB_TRY(step_all(run, step));
    }
}

/* --- the command --- */

static zb_status check_output(const train_settings *settings, const char *path)
{
    if (path == NULL || settings->force || access(path, F_OK) != 0) return check_writable(path);
    return zb_fail(ZB_INVALID_ARGUMENT, "%s exists; --force replaces it", path);
}

static zb_status check_outputs(const train_settings *settings)
{
    if (settings->contributions && settings->trace == NULL)
        return zb_fail(ZB_INVALID_ARGUMENT, "--contributions without --trace: there is nowhere to keep them");
    ZB_TRY(check_output(settings, settings->trace));
    ZB_TRY(check_output(settings, settings->save_weights));
    if (settings->trace != NULL && settings->save_weights != NULL &&
        strcmp(settings->trace, settings->save_weights) == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--trace and --save-weights are both %s", settings->trace);
    return ZB_OK;
}

static int is_cpu(const train_settings *settings)
{
    return settings->device != NULL && strcmp(settings->device, "cpu") == 0;
}

static exit_code check_back_ends(train_settings *settings)
{
    if (processes_on_gpus(&settings->processes) && is_cpu(settings))
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT, "--device cpu with --comm nccl: want cuda"));
    const exit_code code = processes_check(command_name, &settings->processes, &settings->input);
    if (code != EXIT_EQUAL) return code;
    if (settings->device == NULL) settings->device = processes_on_gpus(&settings->processes) ? "cuda" : "cpu";
    return devices_find(command_name, "--device", settings->device, 0, &settings->devices);
}

static zb_status resolve_world(train_settings *settings)
{
    const int process_count = settings->processes.comm != NULL ? settings->processes.comm->world_size : 0;
    if (process_count > 0 && settings->world_size != 0 && settings->world_size != process_count)
        return zb_fail(ZB_INVALID_ARGUMENT, "--world %" PRId64 " on %d processes; each of them is a rank",
                       settings->world_size, process_count);
    if (settings->world_size == 0) settings->world_size = process_count > 0 ? process_count : 1;
    return ZB_OK;
}

static zb_status train_inputs(train_settings *settings, const inputs *in)
{
    ZB_TRY(resolve_world(settings));
    if (settings->print_every == 0) settings->print_every = settings->steps >= 10 ? settings->steps / 10 : 1;
    train_run run = { .settings = settings,
                      .in = in,
                      .comm = settings->processes.comm,
                      .rank_count = (int)settings->world_size };
    zb_status status = train(&run);
    destroy_run(&run);
    return status;
}

static zb_status open_inputs(train_settings *settings, inputs *in)
{
    ZB_TRY(processes_read_native(&settings->processes, &settings->input));
    if (!processes_on_gpus(&settings->processes))
        interrupt_watch(); /* processes_start has its own way with SIGTERM */
    ZB_TRY(inputs_open(&settings->input, in));
    if (settings->dtypes.count == 0) settings->dtypes = (dtype_list){ { in->config->dtype }, 1 };
    const zb_status status = processes_start(&settings->processes, in, settings->spec);
    if (status != ZB_OK) inputs_close(in);
    return status;
}

/* One word for all where they stop together; else each has a failure of its own to tell. */
static exit_code conclude(const train_settings *settings, zb_status status)
{
    if (status == ZB_OK) return EXIT_EQUAL;
    if (status == ZB_INTERRUPTED && !processes_speaks(&settings->processes)) return exit_code_of(status);
    return command_failed(command_name, status);
}

/* The same command, as that many processes; it does not come back. */
static exit_code become_ranks(int64_t gpus, int argc, char **argv)
{
    word_list words = { 0 };
    zb_status status = launch_begin_ranks((int)gpus, &words);
    if (status == ZB_OK) status = words_add(&words, "train");
    for (int i = 1; i < argc && status == ZB_OK; i++) {
        if (strncmp(argv[i], "--gpus", 6) != 0)
            status = words_add(&words, "%s", argv[i]);
        else if (argv[i][6] == '\0')
            i++; /* its value */
    }
    if (status == ZB_OK) status = words_add(&words, "--comm=nccl");
    if (status == ZB_OK) {
        fflush(NULL);
        execv(words.words[0], words.words);
        status = zb_fail(ZB_IO, "%s cannot be started: %s", words.words[0], strerror(errno));
    }
    words_destroy(&words);
    return command_failed(command_name, status);
}

static exit_code start_ranks(train_settings *settings, int argc, char **argv)
{
    if (strcmp(settings->processes.comm_name, "sim") != 0)
        return command_failed(command_name, zb_fail(ZB_INVALID_ARGUMENT,
                                                    "--gpus starts the processes itself; --comm %s is for "
                                                    "those that a launcher has started",
                                                    settings->processes.comm_name));
    if (is_cpu(settings))
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT, "--device cpu with --gpus: want cuda"));
    if (settings->world_size != 0 && settings->world_size != settings->gpus)
        return command_failed(command_name, zb_fail(ZB_INVALID_ARGUMENT,
                                                    "--world %" PRId64 " with --gpus %" PRId64
                                                    ": each of the processes is a rank",
                                                    settings->world_size, settings->gpus));
    const exit_code code = processes_nccl_check(command_name, &settings->processes, &settings->input,
                                                settings->gpus);
    return code == EXIT_EQUAL ? become_ranks(settings->gpus, argc, argv) : code;
}

exit_code command_train(int argc, char **argv)
{
    train_settings settings = {
        .input = INPUT_OPTIONS_DEFAULT, .processes = PROCESSES_DEFAULT, .steps = 20, .stage = -1
    };
    int help = 0;
    const option_spec options[] = {
        OPTION_ROW_SEMANTICS(settings.input),
        OPTION_ROW_ORDER(settings.input),
        OPTION_ROW_MODEL(settings.input),
        OPTION_ROWS_DATA(settings.input),
        OPTION_ROWS_PROCESSES(settings.processes),
        { "--device", OPTION_TEXT, &settings.device, "NAME",
          "what computes: cpu or cuda (cpu; with --comm nccl cuda)", 0, 0 },
        { "--world", OPTION_INT, &settings.world_size, "W",
          "number of ranks (1; with --comm mpi, nccl as many as there are processes)", 1, 65536 },
        { "--gpus", OPTION_INT, &settings.gpus, "N",
          "start N processes here, each with a GPU and --comm nccl", 1, 1024 },
        { "--stage", OPTION_INT, &settings.stage, "S", "ZeRO stage (the config's)", 0, ZB_STAGE_COUNT - 1 },
        { "--dtypes", OPTION_DTYPES, &settings.dtypes, "DTYPE",
          "precision: fp32, fp16 or bf16 (the config's)", 0, 0 },
        { "--steps", OPTION_INT, &settings.steps, "N", "optimizer steps (20)", 1, INT32_MAX },
        OPTION_ROWS_BATCH(settings.input),
        { "--trace", OPTION_TEXT, &settings.trace, "FILE", "write everything the run shows, for zerobit diff",
          0, 0 },
        { "--contributions", OPTION_FLAG, &settings.contributions, NULL,
          "with --trace: also what each rank sends, for explain and diff", 0, 0 },
        { "--save-weights", OPTION_TEXT, &settings.save_weights, "FILE",
          "write the fp32 weights, safetensors", 0, 0 },
        { "--force", OPTION_FLAG, &settings.force, NULL, "replace existing output files", 0, 0 },
        { "--print-every", OPTION_INT, &settings.print_every, "K", "steps between lines (a tenth of all)", 1,
          INT32_MAX },
        { "--workers", OPTION_INT, &settings.workers, "N", "threads of the simulation; 0: one per core (0)",
          0, 1024 },
        { 0 },
    };
    const command_spec spec = {
        command_name, "Trains on simulated ranks, or on those of mpirun.", { "CONFIG" }, options
    };
    settings.spec = &spec;
    const char *operands[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, operands, &help);
    if (status != ZB_OK) return command_failed(command_name, status);
    if (help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    if (settings.gpus > 0) return start_ranks(&settings, argc, argv);
    exit_code code = check_back_ends(&settings);
    if (code != EXIT_EQUAL) return code;
    if (settings.dtypes.count > 1)
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT, "--dtypes: a training run has one precision"));
    status = check_outputs(&settings);
    if (status != ZB_OK) return command_failed(command_name, status);

    settings.input.config_path = operands[0];
    inputs in;
    status = open_inputs(&settings, &in);
    if (status == ZB_OK) {
        status = train_inputs(&settings, &in);
        inputs_close(&in);
    }
    code = conclude(&settings, status);
    return processes_end(&settings.processes, code, status == ZB_OK || status == ZB_INTERRUPTED);
}
