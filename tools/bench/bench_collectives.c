/*
 * The simulated world against Open MPI: all_reduce (in place) and reduce_scatter of 1 KiB to 64 MiB, given by
 * each rank, on 2 and 4 ranks, in the order of ranks and in those of libraries. Start it as
 *
 *   mpirun -n 4 --bind-to none --mca coll_tuned_use_dynamic_rules 1 bench_collectives [SAMPLES]
 *
 * (as root also --allow-run-as-root, on fewer than four cores --oversubscribe). Open MPI's ranks are the four
 * processes, two of them for a world of 2. The simulation runs in the first process, while the others sleep.
 * They take turns, so that a noisy machine hits both, and every number is a median; what else runs slows
 * processes that wait for each other down more than one that does not, so that the shortest times are
 * compared too.
 *
 * Before it is measured, every pair that should give the same bits is compared. Contributions are positive:
 * repeated in place they grow to infinity, which takes no longer to add.
 */
#include <mpi.h>

#include <stdbool.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#include <zerobit/sim.h>

#include "tools/bench/bench.h"

enum { WORLD_MAX = 4, BYTES_MAX = 64 << 20, POLL_NANOSECONDS = 200000 };

static int process;

static void die(const char *what)
{
    fprintf(stderr, "process %d: %s\n", process, what);
    MPI_Abort(MPI_COMM_WORLD, 3);
}

/* --- what is measured --- */

typedef struct job {
    zb_collective_kind kind;
    zb_dtype dtype;
    int world;
    size_t bytes; /* that each rank gives */
    int rounds;   /* in one sample */
} job;

static size_t job_numel(const job *j)
{
    const size_t numel = j->bytes / zb_dtype_bytes(j->dtype);
    return j->kind == ZB_COLLECTIVE_REDUCE_SCATTER ? numel / (size_t)j->world : numel;
}

/* Read and written by all ranks together, if nothing is touched twice. */
static double job_traffic(const job *j)
{
    const double given = (double)j->world * (double)j->bytes;
    return j->kind == ZB_COLLECTIVE_REDUCE_SCATTER ? given + (double)j->bytes : 2 * given;
}

typedef struct contestant {
    const char *name;
    int forced;        /* Open MPI: whether its ring is; the simulation has an order instead */
    const char *order; /* NULL: Open MPI */
    int workers;
    zb_order_source source;
} contestant;

#define NCCL_RING "nccl-ring version=2.28 protocol=simple channels=2"
static contestant contestants[] = {
    { .name = "Open MPI, its default" },
    { .name = "Open MPI, ring", .forced = 1 },
    { .name = "rank", .order = "rank", .workers = 1 },
    { .name = "rank, 2 workers", .order = "rank", .workers = 2 },
    { .name = "mpi-default", .order = "mpi-default", .workers = 1 },
    { .name = "mpi-default, 2 workers", .order = "mpi-default", .workers = 2 },
    { .name = "mpi-ring", .order = "mpi-ring", .workers = 1 },
    { .name = "mpi-ring, 2 workers", .order = "mpi-ring", .workers = 2 },
    { .name = "mpi-recursive-doubling", .order = "mpi-recursive-doubling", .workers = 1 },
    { .name = "mpi-recursive-doubling, 2 w.", .order = "mpi-recursive-doubling", .workers = 2 },
    { .name = "nccl-ring, 2 channels", .order = NCCL_RING, .workers = 1 },
    { .name = "nccl-ring, 2 channels, 2 w.", .order = NCCL_RING, .workers = 2 },
};
enum { COPY = sizeof contestants / sizeof contestants[0], CONTESTANT_COUNT = COPY, ROWS };

/* --- Open MPI --- */

/* Its processes, by world (0: of two, 1: of four) and by whether the ring is forced; MPI_COMM_NULL outside.
 */
static MPI_Comm comms[2][2];

static MPI_T_cvar_handle open_variable(const char *name)
{
    int index, count;
    MPI_T_cvar_handle handle;
    if (MPI_T_cvar_get_index(name, &index) != MPI_SUCCESS ||
        MPI_T_cvar_handle_alloc(index, NULL, &handle, &count) != MPI_SUCCESS)
        die(name);
    return handle;
}

/* A new communicator obeys. */
static void set_variable(const char *name, int value)
{
    int got = -1;
    MPI_T_cvar_handle handle = open_variable(name);
    if (MPI_T_cvar_write(handle, &value) != MPI_SUCCESS) die(name);
    MPI_T_cvar_read(handle, &got);
    if (got != value) die(name);
    MPI_T_cvar_handle_free(&handle);
}

static void make_comms(void)
{
    bool dynamic = false;
    MPI_T_cvar_handle handle = open_variable("coll_tuned_use_dynamic_rules");
    MPI_T_cvar_read(handle, &dynamic);
    MPI_T_cvar_handle_free(&handle);
    if (!dynamic) die("start it with --mca coll_tuned_use_dynamic_rules 1");
    for (int w = 0; w < 2; w++) {
        for (int forced = 0; forced < 2; forced++) {
            set_variable("coll_tuned_allreduce_algorithm", forced ? 4 : 0);
            set_variable("coll_tuned_reduce_scatter_algorithm", forced ? 3 : 0);
            const int takes_part = process < 2 * (w + 1);
            MPI_Comm_split(MPI_COMM_WORLD, takes_part ? 0 : MPI_UNDEFINED, process, &comms[w][forced]);
        }
    }
}

/* Of reduce_scatters, MPI_Reduce_scatter_block is the one with equal shares; a ring has the other only. */
static void mpi_call(const job *j, int forced, void *send, void *recv)
{
    const MPI_Comm comm = comms[j->world == WORLD_MAX][forced];
    const int numel = (int)job_numel(j), counts[WORLD_MAX] = { numel, numel, numel, numel };
    if (j->kind == ZB_COLLECTIVE_ALL_REDUCE)
        MPI_Allreduce(MPI_IN_PLACE, send, numel, MPI_FLOAT, MPI_SUM, comm);
    else if (forced)
        MPI_Reduce_scatter(send, recv, counts, MPI_FLOAT, MPI_SUM, comm);
    else
        MPI_Reduce_scatter_block(send, recv, numel, MPI_FLOAT, MPI_SUM, comm);
}

/* Seconds of one call, of the rank that took longest; on every process of the world. */
static double time_mpi(const job *j, int forced, void *send, void *recv)
{
    const MPI_Comm comm = comms[j->world == WORLD_MAX][forced];
    double slowest;
    MPI_Barrier(comm);
    const double start = bench_seconds();
    for (int i = 0; i < j->rounds; i++) mpi_call(j, forced, send, recv);
    const double seconds = bench_seconds() - start;
    MPI_Allreduce(&seconds, &slowest, 1, MPI_DOUBLE, MPI_MAX, comm);
    return slowest / j->rounds;
}

/* Until all processes are here, without taking the processor from the one that is measured. */
static void meet(void)
{
    MPI_Request request;
    int done = 0;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    for (;;) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done) return;
        nanosleep(&(struct timespec){ .tv_nsec = POLL_NANOSECONDS }, NULL);
    }
}

/* --- the simulation, in process 0 --- */

static zb_sim *sims[2][2]; /* by world and workers */

typedef struct sim_job {
    const job *job;
    const zb_order_source *order;
    int rounds;
    char *send[WORLD_MAX], *recv[WORLD_MAX];
} sim_job;

static zb_status sim_main(void *user, zb_comm *comm)
{
    const sim_job *s = user;
    char *send = s->send[comm->rank];
    char *recv = s->job->kind == ZB_COLLECTIVE_ALL_REDUCE ? send : s->recv[comm->rank];
    for (int i = 0; i < s->rounds; i++)
        ZB_TRY(zb_collective_run(comm, NULL, .kind = s->job->kind, .send = send, .recv = recv,
                                 .numel = job_numel(s->job), .dtype = s->job->dtype, .order = s->order));
    return ZB_OK;
}

static double time_sim(const contestant *c, sim_job *s)
{
    s->order = &c->source;
    zb_sim *sim = sims[s->job->world == WORLD_MAX][c->workers - 1];
    const double start = bench_seconds();
    bench_check(zb_sim_run(sim, sim_main, s));
    return (bench_seconds() - start) / s->rounds;
}

static void make_sims(void)
{
    for (int w = 0; w < 2; w++)
        for (int workers = 1; workers <= 2; workers++)
            bench_check(
                zb_sim_create(&(zb_sim_options){ .world_size = 2 * (w + 1), .workers = workers, .seed = 1 },
                              &sims[w][workers - 1]));
}

static double time_copy(const job *j, const sim_job *s)
{
    size_t left = (size_t)(job_traffic(j) / 2) * (size_t)j->rounds;
    const double start = bench_seconds();
    for (int i = 0; left > 0; i = (i + 1) % j->world) {
        const size_t bytes = left < j->bytes ? left : j->bytes;
        memcpy(s->recv[i], s->send[i], bytes);
        left -= bytes;
    }
    return (bench_seconds() - start) / j->rounds;
}

/* --- the same bits --- */

static void fill(const job *j, int rank, char *to)
{
    for (size_t i = 0; i < j->bytes / zb_dtype_bytes(j->dtype); i++) {
        const float x = 0.25f + (float)((i + 131 * (size_t)rank) % 1021) / 1021;
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        if (j->dtype == ZB_FP32) ((uint32_t *)to)[i] = bits;
        if (j->dtype == ZB_BF16) ((uint16_t *)to)[i] = (uint16_t)(bits >> 16);
    }
}

static void fill_all(const job *j, const sim_job *s)
{
    for (int rank = 0; rank < j->world; rank++) fill(j, rank, s->send[rank]);
}

/* Process 0: what rank 0 receives. It has been left in `got` by Open MPI. */
static void compare_with(const contestant *c, sim_job *s, const char *got)
{
    const job *j = s->job;
    fill_all(j, s);
    s->rounds = 1;
    time_sim(c, s);
    const char *want = j->kind == ZB_COLLECTIVE_ALL_REDUCE ? s->send[0] : s->recv[0];
    if (memcmp(got, want, job_numel(j) * zb_dtype_bytes(j->dtype)) != 0) {
        fprintf(stderr, "%s of %d ranks, %zu bytes: %s and Open MPI give different bits\n",
                zb_collective_name(j->kind), j->world, j->bytes, c->name);
        die("nothing to compare the speed of");
    }
    s->rounds = j->rounds;
}

static void compare_bits(const job *j, sim_job *s, char *send, char *recv)
{
    static const char *const orders[2] = { "mpi-default", "mpi-ring" };
    char *got = j->kind == ZB_COLLECTIVE_ALL_REDUCE ? send : recv;
    for (int forced = 0; forced < 2; forced++) {
        if (process < j->world) {
            fill(j, process, send);
            mpi_call(j, forced, send, recv);
        }
        meet();
        for (int i = 0; process == 0 && i < CONTESTANT_COUNT; i++)
            if (contestants[i].order != NULL && strcmp(contestants[i].order, orders[forced]) == 0)
                compare_with(&contestants[i], s, got);
        meet();
    }
}

/* --- one table --- */

static double samples_of[ROWS][BENCH_SAMPLES_MAX];

static double smaller_of(double a, double b)
{
    return a < b ? a : b;
}

static void print_table(const job *j, int samples, long cores)
{
    double medians[ROWS], least[ROWS];
    for (int row = 0; row < ROWS; row++) {
        medians[row] = bench_median(samples_of[row], samples); /* sorts them */
        least[row] = samples_of[row][0];
    }
    const int with_mpi = j->dtype == ZB_FP32;
    printf("\n%s of %zu KiB, %s, %d ranks", zb_collective_name(j->kind), j->bytes >> 10,
           zb_dtype_name(j->dtype), j->world);
    if (with_mpi)
        printf("; Open MPI has %d processes on %ld cores%s", j->world, cores,
               cores < j->world ? ", more than there are" : "");
    printf("\n  %-30s %12s %12s %8s %10s %17s %11s %17s\n", "", "us", "least us", "GB/s", "of memcpy",
           "x Open MPI's best", "x its ring", "x its best, least");
    for (int i = with_mpi ? 0 : 2; i < ROWS; i++) {
        printf("  %-30s %12.2f %12.2f %8.2f %10.2f", i == COPY ? "memcpy" : contestants[i].name,
               1e6 * medians[i], 1e6 * least[i], job_traffic(j) / medians[i] / 1e9,
               medians[COPY] / medians[i]);
        if (with_mpi)
            printf(" %17.2f %11.2f %17.2f", smaller_of(medians[0], medians[1]) / medians[i],
                   medians[1] / medians[i], smaller_of(least[0], least[1]) / least[i]);
        printf("\n");
    }
    fflush(stdout);
}

static void take_sample(const job *j, sim_job *s, char *send, char *recv, int at)
{
    for (int forced = 0; forced < 2 && j->dtype == ZB_FP32; forced++)
        if (process < j->world) samples_of[forced][at] = time_mpi(j, forced, send, recv);
    meet();
    if (process == 0) {
        for (int k = 0; k < CONTESTANT_COUNT - 2;
             k++) { /* whoever is first has cold caches: not always the same */
            const int i = 2 + (k + at) % (CONTESTANT_COUNT - 2);
            samples_of[i][at] = time_sim(&contestants[i], s);
        }
        samples_of[COPY][at] = time_copy(j, s);
    }
    meet();
}

static void run_job(const job *j, sim_job *s, char *send, char *recv, int samples)
{
    s->job = j;
    s->rounds = j->rounds;
    if (j->dtype == ZB_FP32) compare_bits(j, s, send, recv);
    if (process < j->world) fill(j, process, send);
    if (process == 0) fill_all(j, s);
    for (int at = -1; at < samples; at++) take_sample(j, s, send, recv, at < 0 ? 0 : at);
    if (process == 0) print_table(j, samples, sysconf(_SC_NPROCESSORS_ONLN));
}

static char *make_buffer(void)
{
    char *buffer = zb_alloc(BYTES_MAX);
    if (buffer == NULL) die(zb_error_message());
    memset(buffer, 1, BYTES_MAX); /* has pages of its own */
    return buffer;
}

int main(int argc, char **argv)
{
    int processes, provided;
    MPI_Init(&argc, &argv);
    MPI_T_init_thread(MPI_THREAD_SINGLE, &provided);
    MPI_Comm_size(MPI_COMM_WORLD, &processes);
    MPI_Comm_rank(MPI_COMM_WORLD, &process);
    if (processes != WORLD_MAX) die("start it with mpirun -n 4");
    const int samples = bench_samples(argc, argv);
    make_comms();
    char *send = make_buffer(), *recv = make_buffer();
    sim_job s = { 0 };
    for (int i = 0; process == 0 && i < WORLD_MAX; i++) s.send[i] = make_buffer(), s.recv[i] = make_buffer();
    if (process == 0) make_sims();
    for (int i = 2; i < CONTESTANT_COUNT; i++)
        bench_check(zb_order_source_parse(contestants[i].order, &contestants[i].source));

    static const struct {
        size_t bytes;
        int rounds;
    } sizes[] = { { 1 << 10, 2000 }, { 64 << 10, 200 }, { 1 << 20, 20 }, { BYTES_MAX, 1 } };
    static const zb_collective_kind kinds[] = { ZB_COLLECTIVE_ALL_REDUCE, ZB_COLLECTIVE_REDUCE_SCATTER };
    for (int world = WORLD_MAX; world >= 2; world -= 2)
        for (int k = 0; k < 2; k++)
            for (int size = 0; size < 4; size++)
                for (int bf16 = 0; bf16 < 2; bf16++)
                    run_job(&(job){ .kind = kinds[k],
                                    .dtype = bf16 ? ZB_BF16 : ZB_FP32,
                                    .world = world,
                                    .bytes = sizes[size].bytes,
                                    .rounds = sizes[size].rounds },
                            &s, send, recv, samples);
    MPI_Finalize();
    return 0;
}
