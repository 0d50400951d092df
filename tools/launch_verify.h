/*
 * `zerobit verify` started again as the processes of mpirun, or of `zerobit launch`, once for each world;
 * what they report is read back. How a job is started and ended is launch.h's.
 */
#ifndef TOOLS_LAUNCH_VERIFY_H
#define TOOLS_LAUNCH_VERIFY_H

#include "tools/inputs.h"
#include "tools/options.h"
#include "tools/report_read.h"

/* What every process is told, as the options of the command; borrowed. */
typedef struct launch_request {
    int on_gpus; /* --comm nccl, started by `zerobit launch`; else --comm mpi, by mpirun */
    int shared_gpu;
    const char *mpirun; /* the launcher's words; NULL: launch_begin's own */
    const input_options *input;
    const int_list *stages, *worlds; /* worlds: one start each */
    const dtype_list *dtypes;
    int64_t steps;
    int64_t timeout; /* seconds; 0: the processes' own */
    int is_native, with_contributions;
} launch_request;

/**
 * target->cases: those of each world after the other, [dtype][stage] in each, as zb_verify_plan fills them
 * in, but for `ranks`, which is NULL; case_count is worlds * dtypes * stages. What the processes say against
 * themselves becomes ZB_REMOTE in the cases of their world: that they ended without a report, or otherwise
 * than their report says. ZB_INTERRUPTED: a signal came (interrupt.h), and no process is left;
 * ZB_UNSUPPORTED: there is no launcher, or the processes lack something; ZB_INVALID_ARGUMENT, ZB_INTERNAL:
 * they ended without a report, saying that; ZB_CORRUPT: a report that is none.
 */
zb_status launch_verify(const launch_request *request, report_target *target);

#endif
