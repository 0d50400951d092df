/* Forked processes; see processes.h. */
#include "tests/nccl/processes.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void run_one(process_main *main, void *user, int index, int to_parent)
{
    process_end end = { .status = main(user, index) };
    snprintf(end.message, sizeof end.message, "%s", end.status != ZB_OK ? zb_error_message() : "");
    const ssize_t written = write(to_parent, &end, sizeof end);
    _exit(written == (ssize_t)sizeof end ? 0 : 1);
}

static void read_end(int from_child, process_end *end)
{
    size_t got = 0;
    while (got < sizeof *end) {
        const ssize_t n = read(from_child, (char *)end + got, sizeof *end - got);
        if (n <= 0) break;
        got += (size_t)n;
    }
    if (got == sizeof *end) return;
    end->status = ZB_INTERNAL;
    snprintf(end->message, sizeof end->message, "the process ended without a word");
}

void run_processes(int count, process_main *main, void *user, process_end *ends)
{
    pid_t children[PROCESSES_MAX];
    int pipes[PROCESSES_MAX][2];
    ZB_ASSERT(count <= PROCESSES_MAX);
    fflush(NULL);
    for (int i = 0; i < count; i++) {
        ZB_ASSERT(pipe(pipes[i]) == 0);
        children[i] = fork();
        ZB_ASSERT(children[i] >= 0);
        if (children[i] == 0) run_one(main, user, i, pipes[i][1]);
        close(pipes[i][1]);
    }
    for (int i = 0; i < count; i++) {
        int how;
        ends[i] = (process_end){ 0 };
        read_end(pipes[i][0], &ends[i]);
        close(pipes[i][0]);
        ZB_ASSERT(waitpid(children[i], &how, 0) == children[i]);
        ends[i].killed = WIFSIGNALED(how) ? WTERMSIG(how) : 0;
    }
}

int find_free_port(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t bytes = sizeof address;
    const int s = socket(AF_INET, SOCK_STREAM, 0);
    ZB_ASSERT(s >= 0 && bind(s, (struct sockaddr *)&address, bytes) == 0);
    ZB_ASSERT(getsockname(s, (struct sockaddr *)&address, &bytes) == 0);
    close(s);
    return ntohs(address.sin_port);
}
