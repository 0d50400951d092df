/* Starting this command again as the processes of mpirun; see launch.h. */
#include "tools/launch.h"

#include "tools/interrupt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zerobit/memory.h>

/* --- words --- */

static zb_status take_word(word_list *list, char *word)
{
    if (word == NULL) return ZB_NO_MEMORY;
    if (list->count + 2 > list->capacity) {
        const size_t capacity = 2 * list->capacity + 16;
        char **grown = zb_realloc(list->words, capacity * sizeof *grown);
        if (grown == NULL) {
            zb_free(word);
            return ZB_NO_MEMORY;
        }
        list->words = grown;
        list->capacity = capacity;
    }
    list->words[list->count++] = word;
    list->words[list->count] = NULL;
    return ZB_OK;
}

zb_status words_add(word_list *list, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *word = zb_alloc((size_t)length + 1);
    if (word == NULL) return ZB_NO_MEMORY;
    va_start(args, format);
    vsnprintf(word, (size_t)length + 1, format, args);
    va_end(args);
    return take_word(list, word);
}

void words_destroy(word_list *list)
{
    for (size_t i = 0; i < list->count; i++) zb_free(list->words[i]);
    zb_free(list->words);
    *list = (word_list){ 0 };
}

/* --- the launcher --- */

static zb_status add_launcher(const char *text, word_list *list)
{
    while (*text != '\0') {
        const size_t blanks = strspn(text, " \t"), length = strcspn(text + blanks, " \t");
        if (length > 0) ZB_TRY(words_add(list, "%.*s", (int)length, text + blanks));
        text += blanks + length;
    }
    if (list->count > 0) return ZB_OK;
    return zb_fail(ZB_INVALID_ARGUMENT,
                   "--mpirun or ZEROBIT_MPIRUN is blank, want the command that starts processes");
}

static int is_program(const char *path)
{
    struct stat is;
    return stat(path, &is) == 0 && S_ISREG(is.st_mode) && access(path, X_OK) == 0;
}

/* As execvp looks for it. */
static zb_status check_program(const char *name)
{
    char path[4096];
    const char *folders = getenv("PATH");
    if (strchr(name, '/') != NULL && is_program(name)) return ZB_OK;
    for (const char *at = folders; strchr(name, '/') == NULL && at != NULL && *at != '\0';) {
        const size_t length = strcspn(at, ":");
        snprintf(path, sizeof path, "%.*s/%s", (int)length, at, name);
        if (is_program(path)) return ZB_OK;
        at += length + (at[length] == ':');
    }
    return zb_fail(
        ZB_UNSUPPORTED,
        "%s is not there: Open MPI's launcher is needed to start ranks (--mpirun or ZEROBIT_MPIRUN "
        "name another)",
        name);
}

/* This program. */
static zb_status add_self(word_list *list)
{
    char self[4096];
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0) return zb_fail(ZB_IO, "/proc/self/exe cannot be read: %s", strerror(errno));
    return words_add(list, "%.*s", (int)length, self);
}

zb_status launch_begin_ranks(int world_size, word_list *list)
{
    ZB_TRY(add_self(list));
    ZB_TRY(words_add(list, "launch"));
    ZB_TRY(words_add(list, "-n"));
    ZB_TRY(words_add(list, "%d", world_size));
    return add_self(list);
}

zb_status launch_begin(const char *mpirun, int world_size, word_list *list)
{
    const char *from_environment = getenv("ZEROBIT_MPIRUN");
    if (mpirun == NULL) mpirun = from_environment != NULL ? from_environment : "mpirun";
    ZB_TRY(add_launcher(mpirun, list));
    ZB_TRY(check_program(list->words[0]));
    ZB_TRY(words_add(list, "-n"));
    ZB_TRY(words_add(list, "%d", world_size));
    return add_self(list);
}

zb_status launch_check(const char *mpirun)
{
    word_list list = { 0 };
    const zb_status status = launch_begin(mpirun, 1, &list);
    words_destroy(&list);
    return status;
}

/* --- running --- */

enum { LISTEN_MS = 100, WAIT_MS = 5 }; /* how long a signal may go unnoticed that comes beside poll */

/* What Open MPI wants to be told when root starts it, and when there are more ranks than cores: a test
 * machine's everyday. What the user has set stays. */
static void set_environment(void)
{
    if (geteuid() == 0) {
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    }
    setenv("OMPI_MCA_rmaps_base_oversubscribe", "1", 0);
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none",
           0); /* containers forbid the other, with a warning */
}

/* A job of processes: the launcher, and what it starts. */
typedef struct job {
    pid_t launcher; /* of a process group of its own */
    int output;     /* the end of a pipe; what the processes write to standard output */
    int is_told, is_killed;
} job;

static void request_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
}

/* What execvp does, too late for a signal that comes before it. What is ignored stays so. */
static void forget_handlers(const sigset_t *mask)
{
    static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction now;
        if (sigaction(numbers[i], NULL, &now) == 0 && now.sa_handler != SIG_IGN) signal(numbers[i], SIG_DFL);
    }
    sigprocmask(SIG_SETMASK, mask, NULL);
}

/* In a process group of its own: a terminal's Ctrl-C then comes to the launcher only from here, and once.
 * Open MPI's mpirun takes a second one within five seconds for leave to abandon its ranks. Outside the
 * terminal's group it must not read from it; and whoever kills our group means the launcher too. */
static _Noreturn void become(const word_list *list, int output, const sigset_t *mask)
{
    const int nothing = open("/dev/null", O_RDONLY);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    forget_handlers(mask);
    set_environment();
    if (nothing >= 0) dup2(nothing, STDIN_FILENO);
    if (dup2(output, STDOUT_FILENO) >= 0) execvp(list->words[0], list->words);
    fprintf(stderr, "zerobit: %s cannot be started: %s\n", list->words[0], strerror(errno));
    _exit(127);
}

/* What the launcher leaves behind becomes ours, to be ended in end_orphans. */
static zb_status job_start(const word_list *list, job *started)
{
    int ends[2];
    sigset_t requests, mask;
    if (pipe(ends) != 0) return zb_fail(ZB_IO, "no pipe to %s: %s", list->words[0], strerror(errno));
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    fflush(stdout);
    fflush(stderr);
    request_signals(&requests);
    sigprocmask(SIG_BLOCK, &requests, &mask); /* one that is passed on at once must not find our handlers */
    const pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        become(list, ends[1], &mask);
    }
    const int failure = errno;
    if (child > 0) setpgid(child, child); /* whoever of the two comes first */
    sigprocmask(SIG_SETMASK, &mask, NULL);
    close(ends[1]);
    *started = (job){ .launcher = child, .output = ends[0] };
    if (child > 0) return ZB_OK;
    close(ends[0]);
    return zb_fail(ZB_IO, "%s cannot be started: %s", list->words[0], strerror(failure));
}

/* A first request is passed on, in the words that mpirun passes on itself; a second one asks nobody. */
static void job_attend(job *j)
{
    if (interrupt_flag != 0 && !j->is_told) {
        j->is_told = 1;
        kill(-j->launcher, SIGTERM);
    }
    if (interrupt_again && !j->is_killed) {
        j->is_killed = 1;
        kill(-j->launcher, SIGKILL);
    }
}

/* Returns 0 when nothing more comes. Unlike read, poll is not begun again after a signal. */
static int wait_for_output(job *j)
{
    struct pollfd from = { .fd = j->output, .events = POLLIN };
    int ready;
    do {
        job_attend(j);
        ready = poll(&from, 1, LISTEN_MS);
    } while (!j->is_killed && (ready == 0 || (ready < 0 && errno == EINTR)));
    return !j->is_killed && ready > 0;
}

static zb_status read_all(job *j, char **output_p, size_t *bytes_p)
{
    size_t used = 0, capacity = 0;
    char *output = NULL;
    for (;;) {
        if (used + 1 >= capacity) {
            capacity = 2 * capacity + 65536;
            char *grown = zb_realloc(output, capacity);
            if (grown == NULL) {
                zb_free(output);
                return ZB_NO_MEMORY;
            }
            output = grown;
        }
        if (!wait_for_output(j)) break;
        const ssize_t got = read(j->output, output + used, capacity - used - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        used += (size_t)got;
    }
    output[used] = '\0';
    *output_p = output;
    *bytes_p = used;
    return ZB_OK;
}

/* The parent in /proc/PID/stat, behind the name, which may have any bytes in it; 0: no such process. */
static pid_t parent_of(const char *pid)
{
    char path[300], text[512] = "";
    int parent = 0;
    snprintf(path, sizeof path, "/proc/%s/stat", pid);
    FILE *stat = fopen(path, "r");
    if (stat == NULL) return 0;
    text[fread(text, 1, sizeof text - 1, stat)] = '\0';
    fclose(stat);
    const char *name_end = strrchr(text, ')');
    if (name_end == NULL || sscanf(name_end + 1, " %*c %d", &parent) != 1) return 0;
    return parent;
}

/* The children that this process has now; how many. */
static int kill_children(void)
{
    int count = 0;
    const pid_t self = getpid();
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; processes != NULL && (entry = readdir(processes)) != NULL;) {
        const pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid <= 0 || parent_of(entry->d_name) != self) continue;
        kill(pid, SIGKILL);
        count++;
    }
    if (processes != NULL) closedir(processes);
    return count;
}

/* Each that ends may leave more of them; until it is waited for it counts as one. */
static void end_orphans(void)
{
    while (kill_children() > 0) {
        while (waitpid(-1, NULL, WNOHANG) > 0) continue;
        poll(NULL, 0, WAIT_MS);
    }
}

static int job_wait(job *j)
{
    int state = 0;
    pid_t ended;
    do {
        job_attend(j);
        ended = waitpid(j->launcher, &state, WNOHANG);
        if (ended == 0) poll(NULL, 0, WAIT_MS);
    } while (ended == 0 || (ended < 0 && errno == EINTR));
    if (j->is_told) end_orphans();
    return WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
}

zb_status launch_run(const word_list *list, char **output_p, size_t *bytes_p, int *exit_code_p)
{
    job j;
    interrupt_hold(1);
    zb_status status = job_start(list, &j);
    if (status == ZB_OK) {
        status = read_all(&j, output_p, bytes_p);
        close(j.output);
        *exit_code_p = job_wait(&j);
    }
    interrupt_hold(0);
    return status;
}
