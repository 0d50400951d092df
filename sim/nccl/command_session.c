/*
 * The whole command on the stand-ins of CUDA and NCCL: a session of NCCL's inside that of CUDA's (sim/cuda), which has
 * begun by its first call or begins beside it. One process is one rank, so that a world has one. What the session found
 * is told at the end, and changes the exit code to 5.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "sim/nccl/standin.h"

enum { EXIT_FOUND = 5, EXIT_SESSION = 6 };

static void end_session(void)
{
    if (zb_nccl_standin_end() == ZB_OK) return;
    fprintf(stderr, "stand-in of NCCL: %s\n", zb_error_message());
    fflush(stdout);
    _exit(EXIT_FOUND);
}

__attribute__((constructor)) static void begin_session(void)
{
    if (zb_nccl_standin_begin(&(zb_nccl_standin_options){ .seed = 1 }) == ZB_OK && atexit(end_session) == 0) return;
    fprintf(stderr, "stand-in of NCCL: %s\n", zb_error_message());
    _exit(EXIT_SESSION);
}
