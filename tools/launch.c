/* Starting this command again as the processes of mpirun; see launch.h. */
#include "tools/launch.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    return access(path, X_OK) == 0;
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

zb_status launch_begin(const char *mpirun, int world_size, word_list *list)
{
    char self[4096];
    const char *from_environment = getenv("ZEROBIT_MPIRUN");
    if (mpirun == NULL) mpirun = from_environment != NULL ? from_environment : "mpirun";
    ZB_TRY(add_launcher(mpirun, list));
    ZB_TRY(check_program(list->words[0]));
    ZB_TRY(words_add(list, "-n"));
    ZB_TRY(words_add(list, "%d", world_size));
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0) return zb_fail(ZB_IO, "/proc/self/exe cannot be read: %s", strerror(errno));
    return words_add(list, "%.*s", (int)length, self);
}

/* --- running --- */

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

static _Noreturn void become(const word_list *list, int output)
{
    set_environment();
    if (dup2(output, STDOUT_FILENO) >= 0) execvp(list->words[0], list->words);
    fprintf(stderr, "zerobit: %s cannot be started: %s\n", list->words[0], strerror(errno));
    _exit(127);
}

static zb_status read_all(int from, char **output_p, size_t *bytes_p)
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
        const ssize_t got = read(from, output + used, capacity - used - 1);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        used += (size_t)got;
    }
    output[used] = '\0';
    *output_p = output;
    *bytes_p = used;
    return ZB_OK;
}

zb_status launch_run(const word_list *list, char **output_p, size_t *bytes_p, int *exit_code_p)
{
    int ends[2], state = 0;
    if (pipe(ends) != 0) return zb_fail(ZB_IO, "no pipe to %s: %s", list->words[0], strerror(errno));
    fflush(stdout);
    fflush(stderr);
    const pid_t child = fork();
    if (child == 0) {
        close(ends[0]);
        become(list, ends[1]);
    }
    const int failure = errno;
    close(ends[1]);
    zb_status status = child < 0
                           ? zb_fail(ZB_IO, "%s cannot be started: %s", list->words[0], strerror(failure))
                           : read_all(ends[0], output_p, bytes_p);
    close(ends[0]);
    while (child > 0 && waitpid(child, &state, 0) < 0 && errno == EINTR) continue;
    *exit_code_p = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    return status;
}
