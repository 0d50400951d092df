/* Ranks that are processes; see processes.h. */
#include "tools/processes.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/memory.h>
#include <zerobit/orders.h>
#if ZB_WITH_MPI
#include <zerobit/mpi.h>
#endif

#include "core/output_file.h"
#include "tools/fingerprint.h"
#include "tools/interrupt.h"
#include "tools/processes_nccl.h"

static int are_processes(const processes *p)
{
    return strcmp(p->comm_name, "mpi") == 0;
}

int processes_on_gpus(const processes *p)
{
    return strcmp(p->comm_name, "nccl") == 0;
}

static int wants_native(const input_options *input)
{
    return input->order != NULL && strcmp(input->order, "native") == 0;
}

exit_code processes_check(const char *command, const processes *p, const input_options *input)
{
    if (p->shared_gpu && !processes_on_gpus(p))
        return command_failed(command, zb_fail(ZB_INVALID_ARGUMENT, "--shared-gpu without --comm nccl"));
    if (processes_on_gpus(p)) return processes_nccl_check(command, p, input, 0);
    if (are_processes(p)) return ZB_WITH_MPI ? EXIT_EQUAL : command_lacks(command, "MPI communicator");
    if (strcmp(p->comm_name, "sim") != 0)
        return command_failed(command,
                              zb_fail(ZB_INVALID_ARGUMENT, "--comm %s: want sim, mpi or nccl", p->comm_name));
    const char *needless = p->native             ? "--native"
                           : wants_native(input) ? "--order native"
                           : p->timeout != 0     ? "--timeout"
                                                 : NULL;
    if (needless == NULL) return EXIT_EQUAL;
    return command_failed(
        command, zb_fail(ZB_INVALID_ARGUMENT, "%s without --comm mpi: there is no MPI to ask", needless));
}

int processes_speaks(const processes *p)
{
    return p->comm == NULL || p->comm->rank == 0;
}

#if ZB_WITH_MPI

/* --- when mpirun ends this process --- */

static char rank_text[64];

static void write_text(const char *text)
{
    /* Nothing can be done about an error here. */
    if (write(STDERR_FILENO, text, strlen(text)) < 0) return;
}

/* mpirun does this when another rank has died, or when it is stopped itself. */
static void on_end(int number)
{
    const char *place = zb_mpi_place();
    write_text(rank_text);
    write_text(" is ended by the launcher: another rank has died, or the job was stopped. It ");
    write_text(place != NULL ? place : "had begun no collective");
    write_text("\n");
    zb_output_files_remove();
    signal(number, SIG_DFL);
    raise(number);
}

static void watch_end(const zb_comm *comm)
{
    struct sigaction action = { .sa_handler = on_end };
    sigemptyset(&action.sa_mask);
    snprintf(rank_text, sizeof rank_text, "zerobit: rank %d of %d", comm->rank, comm->world_size);
    sigaction(SIGTERM, &action, NULL);
}

/* --- start, end --- */

zb_status processes_read_native(processes *p, input_options *input)
{
    zb_orders orders;
    if (!are_processes(p) || !wants_native(input)) return ZB_OK;
    if (zb_mpi_read_native(&orders) != ZB_OK) return zb_fail_context("--order native");
    p->native = 1;
    p->order = zb_orders_text(&orders);
    zb_orders_destroy(&orders);
    input->order = p->order;
    return p->order != NULL ? ZB_OK : ZB_NO_MEMORY;
}

/* Whether Open MPI has an algorithm for any of them. */
static int has_native(const zb_orders *orders)
{
    for (int kind = 0; orders != NULL && kind < ZB_COLLECTIVE_COUNT; kind++)
        if (strncmp(zb_algorithm_name(orders->of[kind].algorithm), "mpi-", 4) == 0) return 1;
    return 0;
}

static zb_status check_native(const zb_orders *orders)
{
    char text[128];
    if (has_native(orders)) return ZB_OK;
    zb_orders_describe(orders, text, sizeof text);
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "--native: Open MPI has no algorithm for the order %s; name one of mpi-... by --order",
                   text);
}

static zb_status start_on_mpi(processes *p, const inputs *in)
{
    if (p->native) ZB_TRY(check_native(in->config->orders));
    const zb_mpi_options mpi_options = { .native = p->native ? in->config->orders : NULL,
                                         .timeout_seconds = (double)p->timeout };
    ZB_TRY(zb_comm_mpi_create(&mpi_options, &p->comm));
    watch_end(p->comm);
    return ZB_OK;
}

static exit_code end_on_mpi(exit_code code, int orderly)
{
    signal(SIGTERM, SIG_DFL); /* this one has said what it had to say */
    const int ended = zb_mpi_end(orderly ? 0 : (int)code);
    return orderly ? code : (exit_code)ended;
}

#else

zb_status processes_read_native(processes *p, input_options *input)
{
    (void)p;
    (void)input;
    return ZB_OK;
}

static zb_status start_on_mpi(processes *p, const inputs *in)
{
    (void)p;
    (void)in;
    return ZB_OK;
}

static exit_code end_on_mpi(exit_code code, int orderly)
{
    (void)orderly;
    return code;
}

#endif

zb_status processes_start(processes *p, const inputs *in, const command_spec *command)
{
    if (are_processes(p)) ZB_TRY(start_on_mpi(p, in));
    if (processes_on_gpus(p)) {
        ZB_TRY(processes_nccl_start(p, in));
        interrupt_watch(); /* not before: who waits for ranks that do not come ends at once */
    }
    return p->comm != NULL ? fingerprint_compare(p->comm, in, command) : ZB_OK;
}

exit_code processes_end(processes *p, exit_code code, int orderly)
{
    zb_free(p->order);
    p->order = NULL;
    fflush(stdout);
    fflush(stderr);
    if (processes_on_gpus(p)) processes_nccl_end(p, orderly);
    return are_processes(p) ? end_on_mpi(code, orderly) : code;
}
