/* Ranks as forked processes of a test, what each returns and says, and a free port for them. */
#ifndef ZB_TESTS_NCCL_PROCESSES_H
#define ZB_TESTS_NCCL_PROCESSES_H

#include <zerobit/status.h>

enum { PROCESSES_MAX = 8 };

typedef zb_status process_main(void *user, int index);

/* How each process has ended: its status and its zb_error_message(); killed: by that signal. */
typedef struct process_end {
    zb_status status;
    int killed;
    char message[ZB_ERROR_MESSAGE_BYTES];
} process_end;

/* Runs `main` in `count` processes at once and waits for all. */
void run_processes(int count, process_main *main, void *user, process_end *ends);
/* A port on which nobody listens now. */
int find_free_port(void);

#endif
