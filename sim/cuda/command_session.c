/*
 * The whole command on the stand-in of CUDA: a session around main. ZEROBIT_STANDIN is its seed; without it
 * there is a machine without a GPU. What the session found is told at the end, and changes the exit code
 * to 5.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "sim/cuda/standin.h"

enum { EXIT_FOUND = 5, EXIT_SESSION = 6 };

static void end_session(void)
{
    if (zb_standin_end() == ZB_OK) return;
    fprintf(stderr, "stand-in: %s\n", zb_error_message());
    fflush(stdout);
    _exit(EXIT_FOUND);
}

__attribute__((constructor)) static void begin_session(void)
{
    const char *seed = getenv("ZEROBIT_STANDIN");
    zb_standin_options options = { .device_count = seed != NULL, .memory_bytes = (size_t)16 << 30 };
    if (seed != NULL) {
        char *end;
        errno = 0;
        options.seed = strtoull(seed, &end, 10);
        if (errno != 0 || end == seed || *end != '\0') {
            fprintf(stderr, "ZEROBIT_STANDIN is \"%s\", want a number\n", seed);
            _exit(EXIT_SESSION);
        }
    }
    if (zb_standin_begin(&options) != ZB_OK || atexit(end_session) != 0) {
        fprintf(stderr, "stand-in: %s\n", zb_error_message());
        _exit(EXIT_SESSION);
    }
}
