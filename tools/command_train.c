/* zerobit train: a training run on simulated ranks, with a trace and weights to keep. */
#include "tools/command.h"
#include "tools/inputs.h"
#include "tools/interrupt.h"
#include "tools/options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/engine.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/sim.h>
#include <zerobit/trace.h>

static const char command_name[] = "train";

typedef struct train_settings {
    input_options input;
    int64_t world_size, steps, stage /* -1: the config's */, workers, print_every;
    dtype_list dtypes;
    const char *comm, *device, *trace, *save_weights;
    int force;
} train_settings;

/* One rank's part; only its own thread touches it. */
typedef struct train_rank {
    struct train_run *run;
    zb_device *device;
    zb_engine *engine;
    double loss_sum; /* of this step */
    int64_t loss_count;
} train_rank;

typedef struct train_run {
    const train_settings *settings;
    const inputs *in;
    zb_sim *sim;
    train_rank *ranks;
    int rank_count;
    zb_trace_writer *trace; /* NULL: none wanted */
    zb_weights gathered;    /* rank 0's */
    double lr;              /* of the step under way */
} train_run;

/* --- what a rank does --- */

static zb_status observe_rank(void *user, const zb_observation *observation)
{
    train_rank *rank = user;
    if (observation->quantity == ZB_Q_LOSS) {
        rank->loss_sum += (double)*(const float *)observation->data;
        rank->loss_count++;
    }
    return rank->run->trace != NULL ? zb_trace_write(rank->run->trace, observation) : ZB_OK;
}

static zb_status start_rank(void *user, zb_comm *comm)
{
    train_run *run = user;
    train_rank *rank = &run->ranks[comm->rank];
    rank->run = run;
    ZB_TRY(zb_device_cpu_create(&rank->device));
    zb_engine_options options = { .config = run->in->config,
                                  .model = run->in->model,
                                  .weights = &run->in->weights,
                                  .dataset = run->in->dataset,
                                  .device = rank->device,
                                  .comm = comm,
                                  .stage = (int)run->settings->stage,
                                  .dtype = (int)run->settings->dtypes.values[0],
                                  .sampler_seed = (uint64_t)run->settings->input.seed };
    ZB_TRY(zb_initialize(&options, &rank->engine));
    zb_observer observer = { observe_rank, rank };
    return run->trace != NULL ? zb_engine_observe(rank->engine, &observer) : ZB_OK;
}

static zb_status step_rank(void *user, zb_comm *comm)
{
    train_run *run = user;
    train_rank *rank = &run->ranks[comm->rank];
    rank->loss_sum = 0;
    rank->loss_count = 0;
    if (comm->rank == 0) run->lr = zb_schedule_lr(&zb_engine_lr_scheduler(rank->engine)->group[0]);
    zb_observer observer = { observe_rank, rank };
    ZB_TRY(zb_engine_train_step(rank->engine, &observer));
    return run->trace != NULL ? zb_engine_observe(rank->engine, &observer) : ZB_OK;
}

static zb_status gather_rank(void *user, zb_comm *comm)
{
    train_run *run = user;
    zb_weights weights;
    /* The seed's values are overwritten; this is how weights of the right sizes come to be. */
    ZB_TRY(zb_weights_from_seed(run->in->model, 0, &weights));
    zb_status status = zb_engine_gather_weights(run->ranks[comm->rank].engine, weights.values);
    if (status == ZB_OK && comm->rank == 0)
        run->gathered = weights;
    else
        zb_weights_destroy(&weights);
    return status;
}

/* --- the run --- */

static zb_status create_run(train_run *run)
{
    const train_settings *settings = run->settings;
    zb_plan plan;
    int stage = settings->stage >= 0 ? (int)settings->stage : run->in->config->zero.stage;
    ZB_TRY(
        zb_plan_derive(run->in->config, stage, settings->dtypes.values[0], (int)settings->world_size, &plan));
    run->ranks = zb_alloc_array((size_t)run->rank_count, sizeof *run->ranks);
    if (run->ranks == NULL) return ZB_NO_MEMORY;
    zb_sim_options sim_options = { .world_size = run->rank_count,
                                   .workers = (int)settings->workers,
                                   .seed = (uint64_t)settings->input.seed };
    ZB_TRY(zb_sim_create(&sim_options, &run->sim));
    if (settings->trace == NULL) return ZB_OK;
    char *orders = zb_orders_text(plan.orders);
    if (orders == NULL) return ZB_NO_MEMORY;
    zb_trace_header header = { .model = run->in->model,
                               .plan = plan,
                               .stage = stage,
                               .comm = settings->comm,
                               .device = settings->device,
                               .order = orders,
                               .steps = settings->steps };
    const zb_status status = zb_trace_writer_create(settings->trace, &header, &run->trace);
    zb_free(orders);
    return status;
}

static void destroy_run(train_run *run)
{
    for (int i = 0; run->ranks != NULL && i < run->rank_count; i++) {
        zb_engine_destroy(run->ranks[i].engine);
        if (run->ranks[i].device != NULL) zb_device_destroy(run->ranks[i].device);
    }
    if (run->sim != NULL) zb_sim_destroy(run->sim);
    zb_trace_writer_destroy(run->trace);
    zb_weights_destroy(&run->gathered);
    zb_free(run->ranks);
}

static void print_step(const train_run *run, int64_t step)
{
    int64_t every = run->settings->print_every;
    if ((step + 1) % every != 0 && step + 1 != run->settings->steps) return;
    double sum = 0;
    int64_t count = 0;
    for (int i = 0; i < run->rank_count; i++) {
        sum += run->ranks[i].loss_sum;
        count += run->ranks[i].loss_count;
    }
    printf("step %6" PRId64 "  loss %.9g  lr %.9g\n", step + 1, sum / (double)count, run->lr);
    fflush(stdout);
}

static zb_status train(train_run *run)
{
    const train_settings *settings = run->settings;
    ZB_TRY(create_run(run));
    ZB_TRY(zb_sim_run(run->sim, start_rank, run));
    /* Once more after the last step: when it came in time, nothing is written. */
    for (int64_t step = 0;; step++) {
        if (interrupt_flag != 0)
            return zb_fail(ZB_INTERRUPTED,
                           "interrupted before step %" PRId64 " of %" PRId64 "; nothing was written", step,
                           settings->steps);
        if (step == settings->steps) break;
        ZB_TRY(zb_sim_run(run->sim, step_rank, run));
        print_step(run, step);
    }
    if (settings->save_weights != NULL) {
        ZB_TRY(zb_sim_run(run->sim, gather_rank, run));
        ZB_TRY(zb_weights_save(run->in->model, &run->gathered, settings->save_weights));
        printf("%s: the weights\n", settings->save_weights);
    }
    if (run->trace != NULL) {
        ZB_TRY(zb_trace_writer_finish(run->trace));
        printf("%s: the trace\n", settings->trace);
    }
    return ZB_OK;
}

/* --- the command --- */

static zb_status check_output(const train_settings *settings, const char *path)
{
    if (path == NULL || settings->force || access(path, F_OK) != 0) return check_writable(path);
    return zb_fail(ZB_INVALID_ARGUMENT, "%s exists; --force replaces it", path);
}

static zb_status check_outputs(const train_settings *settings)
{
    ZB_TRY(check_output(settings, settings->trace));
    ZB_TRY(check_output(settings, settings->save_weights));
    if (settings->trace != NULL && settings->save_weights != NULL &&
        strcmp(settings->trace, settings->save_weights) == 0)
        return zb_fail(ZB_INVALID_ARGUMENT, "--trace and --save-weights are both %s", settings->trace);
    return ZB_OK;
}

static exit_code check_back_ends(const train_settings *settings)
{
    if (strcmp(settings->comm, "mpi") == 0) return command_lacks(command_name, "MPI communicator");
    if (strcmp(settings->comm, "nccl") == 0) return command_lacks(command_name, "NCCL communicator");
    if (strcmp(settings->device, "cuda") == 0) return command_lacks(command_name, "CUDA device");
    zb_status status = ZB_OK;
    if (strcmp(settings->comm, "sim") != 0)
        status = zb_fail(ZB_INVALID_ARGUMENT, "--comm %s: want sim, mpi or nccl", settings->comm);
    else if (strcmp(settings->device, "cpu") != 0)
        status = zb_fail(ZB_INVALID_ARGUMENT, "--device %s: want cpu or cuda", settings->device);
    return status == ZB_OK ? EXIT_EQUAL : command_failed(command_name, status);
}

static zb_status train_inputs(train_settings *settings, const inputs *in)
{
    if (settings->dtypes.count == 0) settings->dtypes = (dtype_list){ { in->config->dtype }, 1 };
    if (settings->dtypes.count > 1)
        return zb_fail(ZB_INVALID_ARGUMENT, "--dtypes: a training run has one precision");
    if (settings->print_every == 0) settings->print_every = settings->steps >= 10 ? settings->steps / 10 : 1;
    train_run run = { .settings = settings, .in = in, .rank_count = (int)settings->world_size };
    interrupt_watch();
    zb_status status = train(&run);
    destroy_run(&run);
    return status;
}

exit_code command_train(int argc, char **argv)
{
    train_settings settings = { .input = INPUT_OPTIONS_DEFAULT,
                                .world_size = 1,
                                .steps = 20,
                                .stage = -1,
                                .comm = "sim",
                                .device = "cpu" };
    int help = 0;
    const option_spec options[] = {
        OPTION_ROW_SEMANTICS(settings.input),
        OPTION_ROW_MODEL(settings.input),
        OPTION_ROWS_DATA(settings.input),
        { "--comm", OPTION_TEXT, &settings.comm, "NAME", "how ranks talk: sim (sim)", 0, 0 },
        { "--device", OPTION_TEXT, &settings.device, "NAME", "what computes: cpu (cpu)", 0, 0 },
        { "--world", OPTION_INT, &settings.world_size, "W", "number of ranks (1)", 1, 65536 },
        { "--stage", OPTION_INT, &settings.stage, "S", "ZeRO stage (the config's)", 0, ZB_STAGE_COUNT - 1 },
        { "--dtypes", OPTION_DTYPES, &settings.dtypes, "DTYPE",
          "precision: fp32, fp16 or bf16 (the config's)", 0, 0 },
        { "--steps", OPTION_INT, &settings.steps, "N", "optimizer steps (20)", 1, INT32_MAX },
        OPTION_ROWS_BATCH(settings.input),
        { "--trace", OPTION_TEXT, &settings.trace, "FILE", "write everything the run shows, for zerobit diff",
          0, 0 },
        { "--save-weights", OPTION_TEXT, &settings.save_weights, "FILE",
          "write the fp32 weights, safetensors", 0, 0 },
        { "--force", OPTION_FLAG, &settings.force, NULL, "replace existing output files", 0, 0 },
        { "--print-every", OPTION_INT, &settings.print_every, "K", "steps between lines (a tenth of all)", 1,
          INT32_MAX },
        { "--workers", OPTION_INT, &settings.workers, "N", "threads of the simulation; 0: one per core (0)",
          0, 1024 },
        { 0 },
    };
    const command_spec spec = { command_name, "Trains on simulated ranks.", { "CONFIG" }, options };
    const char *operands[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, operands, &help);
    if (status != ZB_OK) return command_failed(command_name, status);
    if (help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    exit_code code = check_back_ends(&settings);
    if (code != EXIT_EQUAL) return code;
    status = check_outputs(&settings);
    if (status != ZB_OK) return command_failed(command_name, status);

    settings.input.config_path = operands[0];
    inputs in;
    status = inputs_open(&settings.input, &in);
    if (status == ZB_OK) {
        status = train_inputs(&settings, &in);
        inputs_close(&in);
    }
    return status == ZB_OK ? EXIT_EQUAL : command_failed(command_name, status);
}
