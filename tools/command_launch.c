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
#include <time.h>
#include <unistd.h>
#include <zerobit/memory.h>

static const char command_name[] = "launch";
enum { RANKS_MAX = 1024 };
enum { GRACE_SECONDS = 10, HURRY_SECONDS = 2 }; /* from a rank's failure, and between signals */

static const char usage[] =
    "usage: zerobit launch -n N PROGRAM [ARGUMENT...]\n\n"
    "Starts N processes of PROGRAM, each with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT\n"
    "in its environment, and waits for them. When one fails, the others have 10 s to end by themselves. Exit "
    "status: 0, or that\n"
    "of the first to end otherwise.\n";

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

/* The ranks of a job, and how it goes. */
typedef struct job {
    pid_t *pids; /* [count]; -1: has ended */
    int count, left;
    int code;        /* of the first rank that failed; 0: none has */
    int pushes;      /* how often all have been told to end */
    double push_at;  /* when they are told again; 0: not by time */
    char failed[96]; /* which rank, and how it ended */
} job;

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static zb_status start_all(char **argv, job *j, int count)
{
    const pid_t self = getpid();
    int port = 0;
    ZB_TRY(find_port(&port));
    fflush(NULL);
    for (; j->count < count; j->count++, j->left++) {
        const pid_t child = fork();
        if (child == 0) become(argv, j->count, count, port, self);
        if (child < 0)
            return zb_fail(ZB_IO, "%s cannot be started as rank %d: %s", argv[0], j->count, strerror(errno));
        j->pids[j->count] = child;
    }
    return ZB_OK;
}

/* First kindly; a second SIGTERM ends this command's own ranks at once, and they leave no files behind. */
static void push(job *j)
{
    const int number = j->pushes < 2 ? SIGTERM : SIGKILL;
    for (int r = 0; r < j->count; r++)
        if (j->pids[r] > 0) kill(j->pids[r], number);
    j->pushes++;
    j->push_at = j->pushes >= 2 || j->code != 0 ? seconds_now() + HURRY_SECONDS : 0;
}

/* An interruption is passed on. Ranks find out by themselves that another one has failed, but not before
 * they have met, and other programs never. */
static void attend(job *j)
{
    const int requests = interrupt_again ? 2 : interrupt_flag != 0;
    const int is_due = j->push_at != 0 && seconds_now() >= j->push_at;
    if (is_due && j->pushes == 0)
        fprintf(stderr, "zerobit launch: %s; %d other%s still there after %d s, and %s told to end\n",
                j->failed, j->left, j->left == 1 ? " is" : "s are", GRACE_SECONDS,
                j->left == 1 ? "is" : "are");
    if (is_due || j->pushes < requests) push(j);
}

static void note_end(job *j, pid_t pid, int how)
{
    int rank = 0;
    while (j->pids[rank] != pid) rank++;
    j->pids[rank] = -1;
    j->left--;
    if (how == 0 || j->code != 0) return;
    j->code = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
    if (WIFEXITED(how))
        snprintf(j->failed, sizeof j->failed, "rank %d ended with exit status %d", rank, j->code);
    else
        snprintf(j->failed, sizeof j->failed, "rank %d was ended by signal %d", rank, WTERMSIG(how));
    if (j->pushes > 0) return;
    j->push_at = seconds_now() + GRACE_SECONDS;
    if (WIFSIGNALED(how)) fprintf(stderr, "zerobit launch: %s\n", j->failed);
}

static void wait_for_all(job *j)
{
    while (j->left > 0) {
        int how;
        attend(j);
        const pid_t ended = waitpid(-1, &how, WNOHANG);
        if (ended > 0)
            note_end(j, ended, how);
        else
            usleep(10000);
    }
}

static int run_ranks(char **argv, int count, zb_status *status_p)
{
    job j = { .pids = zb_alloc_array((size_t)count, sizeof *j.pids) };
    *status_p = j.pids != NULL ? ZB_OK : ZB_NO_MEMORY;
    if (j.pids == NULL) return 0;
    interrupt_watch();
    interrupt_hold(1);
    *status_p = start_all(argv, &j, count);
    if (*status_p != ZB_OK) push(&j);
    wait_for_all(&j);
    interrupt_hold(0);
    zb_free(j.pids);
    return j.code;
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
    if (end == NULL)
        return command_failed(command_name, zb_fail(ZB_INVALID_ARGUMENT, "%s: want -n N PROGRAM",
                                                    argc > 1 ? argv[1] : "nothing is given"));
    if (end == argv[2] || *end != '\0' || count < 1 || count > RANKS_MAX)
        return command_failed(
            command_name,
            zb_fail(ZB_INVALID_ARGUMENT, "-n %s: want an integer from 1 to %d", argv[2], RANKS_MAX));
    if (argc < 4)
        return command_failed(command_name,
                              zb_fail(ZB_INVALID_ARGUMENT, "PROGRAM is missing behind -n %ld", count));
    const int code = run_ranks(argv + 3, (int)count, &status);
    return status != ZB_OK ? command_failed(command_name, status) : (exit_code)code;
}
