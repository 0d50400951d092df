/* Ranks that are processes with a GPU each: what --comm nccl means. A build without NCCL says so. */
#ifndef TOOLS_PROCESSES_NCCL_H
#define TOOLS_PROCESSES_NCCL_H

#include "tools/processes.h"

/**
 * EXIT_EQUAL, or what this build or machine lacks, or is wrong with the options or a rank's environment, has
 * been said. ranks: how many are started here at once; 0: this process is one, of a job that a launcher has
 * started.
 */
exit_code processes_nccl_check(const char *command, const processes *p, const input_options *input,
                               int64_t ranks);
/** p->comm, over this process's GPU, which devices_find's "cuda" is from here on. */
zb_status processes_nccl_start(processes *p, const inputs *in);
/** orderly: waits for the other ranks; otherwise they are told. */
void processes_nccl_end(processes *p, int orderly);

#endif
