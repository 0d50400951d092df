/*
 * Ranks that are processes, for `train` and `verify`: what --comm mpi means, started by mpirun, and --comm
 * nccl, by any launcher. Every process runs the same command with the same arguments. A build without MPI, or
 * NCCL, says so when it is asked for them.
 */
#ifndef TOOLS_PROCESSES_H
#define TOOLS_PROCESSES_H

#include <stdint.h>
#include <zerobit/comm.h>

#include "tools/command.h"
#include "tools/inputs.h"
#include "tools/options.h"

typedef struct processes {
    const char *comm_name; /* --comm */
    int native;            /* --native */
    int64_t timeout;       /* --timeout, seconds; 0: the back end's own */
    int shared_gpu;        /* --shared-gpu */
    char *order;           /* owned: what "--order native" was found to be */
    zb_comm *comm;         /* NULL: ranks are simulated */
    zb_device *device;     /* of NCCL's communicator */
} processes;

/* clang-format off */
#define PROCESSES_DEFAULT { .comm_name = "sim" }
/* Rows of an option table (options.h). */
#define OPTION_ROWS_PROCESSES(p)                                                                             \
    { "--comm", OPTION_TEXT, &(p).comm_name, "NAME",                                                         \
      "where ranks run: sim, in this process; mpi, one in each process of mpirun; nccl, likewise on GPUs "     \
      "(sim)", 0, 0 },                                                                                       \
    { "--native", OPTION_FLAG, &(p).native, NULL,                                                            \
      "with --comm mpi, nccl: Open MPI or NCCL itself adds, in the order that --order names", 0, 0 },        \
    { "--shared-gpu", OPTION_FLAG, &(p).shared_gpu, NULL,                                                    \
      "with --comm nccl: ranks may share a GPU", 0, 0 },                                                     \
    { "--timeout", OPTION_INT, &(p).timeout, "S",                                                            \
      "with --comm mpi, nccl: seconds without progress after which a rank gives up (300)", 1, INT32_MAX }
/* clang-format on */

/** EXIT_EQUAL, or what is wrong with the name and the options that go with it has been said. */
exit_code processes_check(const char *command, const processes *p, const input_options *input);
/** Before the config is read: "--order native" becomes the order of the algorithms that Open MPI is set to
 * use. */
zb_status processes_read_native(processes *p, input_options *input);
/**
 * After the inputs are read: the communicator of all processes. On every rank ZB_INVALID_ARGUMENT names what
 * one of them was given that rank 0 was not, of the inputs or the command's options.
 */
zb_status processes_start(processes *p, const inputs *in, const command_spec *command);
/** --comm nccl: ranks compute on their GPU. */
int processes_on_gpus(const processes *p);
/** Whether this is the process that speaks for all of them: the only one, or rank 0's. */
int processes_speaks(const processes *p);
/**
 * The end of a command: exits together with the other processes. orderly: all of them have come to this end,
 * with this code; otherwise they are told that this one has failed. Returns the process's exit code.
 */
exit_code processes_end(processes *p, exit_code code, int orderly);

#endif
