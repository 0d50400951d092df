/* Starting this command again as the processes of mpirun, for `zerobit verify --against mpi`. */
#ifndef TOOLS_LAUNCH_H
#define TOOLS_LAUNCH_H

#include <stddef.h>
#include <zerobit/status.h>

/* A list of words that grows; ends with NULL. Zero is an empty one. */
typedef struct word_list {
    char **words; /* owned, like each of them */
    size_t count, capacity;
} word_list;

/** printf's format, one word. */
zb_status words_add(word_list *list, const char *format, ...) __attribute__((format(printf, 2, 3)));
void words_destroy(word_list *list);

/**
 * The launcher's words up to the program: `mpirun` (NULL: the environment variable ZEROBIT_MPIRUN, else
 * "mpirun"; several words are split at blanks), "-n WORLD", and this program. ZB_UNSUPPORTED when the
 * launcher is not there.
 */
zb_status launch_begin(const char *mpirun, int world_size, word_list *list);

/** The same with `zerobit launch`, which is always there. */
zb_status launch_begin_ranks(int world_size, word_list *list);

/** Whether there is a launcher, as launch_begin looks for it. */
zb_status launch_check(const char *mpirun);

/**
 * Runs the words to their end. *output_p receives what the processes write to standard output, to be freed by
 * zb_free; standard error is this one's. *exit_code_p is the launcher's, 128 + N when signal N ended it.
 * When interrupt_flag is set the launcher is told to end (SIGTERM), and when the request comes again it is
 * killed with all that it has started; either way nothing of it is left, and what was read may be cut.
 */
zb_status launch_run(const word_list *list, char **output_p, size_t *bytes_p, int *exit_code_p);

#endif
