/* zerobit launch: starts ranks as processes of this machine, as mpirun and torchrun do. */
#include "tools/command.h"
#include "tools/interrupt.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zerobit/memory.h>

static const char command_name[] = "launch";
enum { RANKS_MAX = 1024 };

static const char usage[] =
    "usage: zerobit launch -n N PROGRAM [ARGUMENT...]\n\n"
    "Starts N processes of PROGRAM, each with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT\n"
    "in its environment, and waits for them. Exit status: 0, or that of the first to end otherwise.\n";

/* A port that nobody has now: rank 0 listens there in a moment. */
static zb_status find_port(int *port_p)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t bytes = sizeof address;
    const int s = socket(AF_INET, SOCK_STREAM, 0);
    const int found = s >= 0 && bind(s, (struct sockaddr *)&address, bytes) == 0 &&
                      getsockname(s, (struct sockaddr *)&address, &bytes) == 0;
    const int error = errno;
    if (s >= 0) close(s);
    if (!found) return zb_fail(ZB_IO, "no port to meet at: %s", strerror(error));
    *port_p = ntohs(address.sin_port);
    return ZB_OK;
}

static void set_number(const char *name, int value)
{
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    setenv(name, text, 1);
}

static _Noreturn void become(char **argv, int rank, int count, int port, pid_t launcher)
{
    char job[64];
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    set_number("RANK", rank);
    set_number("LOCAL_RANK", rank);
    set_number("WORLD_SIZE", count);
    set_number("MASTER_PORT", port);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    snprintf(job, sizeof job, "zerobit-launch-%d-%d", (int)launcher, port);
    setenv("TORCHELASTIC_RUN_ID", job, 1);
    execvp(argv[0], argv);
    fprintf(stderr, "zerobit launch: %s cannot be started: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static zb_status start_all(char **argv, int count, pid_t *children, int *started_p)
{
    const pid_t self = getpid();
    int port = 0;
    ZB_TRY(find_port(&port));
    fflush(NULL);
    for (*started_p = 0; *started_p < count; ++*started_p) {
        const pid_t child = fork();
        if (child == 0) become(argv, *started_p, count, port, self);
        if (child < 0)
            return zb_fail(ZB_IO, "%s cannot be started as rank %d: %s", argv[0], *started_p,
                           strerror(errno));
        children[*started_p] = child;
    }
    return ZB_OK;
}

static void tell_all(const pid_t *children, int count, int number)
{
    for (int r = 0; r < count; r++)
        if (children[r] > 0) kill(children[r], number);
}

/* The ranks find out by themselves that another one has failed; an interruption is passed on to them. */
static int wait_for_all(pid_t *children, int count)
{
    int code = 0, told = 0;
    for (int left = count; left > 0;) {
        int how;
        if (interrupt_flag != 0 && !told) {
            told = 1;
            tell_all(children, count, SIGTERM);
        }
        const pid_t ended = waitpid(-1, &how, WNOHANG);
        if (ended <= 0) {
            usleep(10000);
            continue;
        }
        for (int r = 0; r < count; r++) {
            if (children[r] != ended) continue;
            children[r] = -1;
            left--;
        }
        if (code == 0) code = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
    }
    return code;
}

static int run_ranks(char **argv, int count, zb_status *status_p)
{
    int started = 0;
    pid_t *children = zb_alloc_array((size_t)count, sizeof *children);
    *status_p = children != NULL ? ZB_OK : ZB_NO_MEMORY;
    if (children == NULL) return 0;
    interrupt_watch();
    *status_p = start_all(argv, count, children, &started);
    if (*status_p != ZB_OK) tell_all(children, started, SIGTERM);
    const int code = wait_for_all(children, started);
    zb_free(children);
    return code;
}

exit_code command_launch(int argc, char **argv)
{
    char *end = NULL;
    zb_status status;
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(usage, stdout);
        return EXIT_EQUAL;
    }
    const long count = argc > 2 && strcmp(argv[1], "-n") == 0 ? strtol(argv[2], &end, 10) : 0;
    if (argc < 4 || end == NULL || *end != '\0' || count < 1 || count > RANKS_MAX)
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT, "want -n N PROGRAM, N from 1 to %d", RANKS_MAX));
    const int code = run_ranks(argv + 3, (int)count, &status);
    return status != ZB_OK ? command_failed(command_name, status) : (exit_code)code;
}
