/* The subcommands of `zerobit`, and what they share: exit codes and the way an error is told. */
#ifndef TOOLS_COMMAND_H
#define TOOLS_COMMAND_H

#include <zerobit/status.h>
#include <zerobit/verify.h>

typedef enum exit_code {
    EXIT_EQUAL = 0,
    EXIT_DIFFERENT = 1, /* or a run that cannot go on */
    EXIT_USAGE = 2,     /* bad usage, config or input */
    EXIT_LACKING = 3,   /* something that this machine or this build lacks */
    EXIT_INTERNAL = 4
} exit_code;

exit_code exit_code_of(zb_status status);

/** Of a verification. A rank that failed for a reason of its own (memory, an internal error) is no verdict
 * about the arithmetic. */
exit_code exit_code_of_cases(const zb_verify_case *cases, int case_count);

/** "zerobit COMMAND: <zb_error_message()>" on standard error; returns the exit code of status. */
exit_code command_failed(const char *command, zb_status status);

/** Says on standard error that this build has no such thing. Returns EXIT_LACKING. */
exit_code command_lacks(const char *command, const char *what);

/** That a file can be put at `path` (NULL: none is wanted), found out before the work rather than after it.
 */
zb_status check_writable(const char *path);

/* argv[0] is the command's own name. */
exit_code command_verify(int argc, char **argv);
exit_code command_train(int argc, char **argv);
exit_code command_diff(int argc, char **argv);
exit_code command_explain(int argc, char **argv);
exit_code command_replay(int argc, char **argv);
exit_code command_inspect(int argc, char **argv);
exit_code command_info(int argc, char **argv);
exit_code command_generate_cifar10(int argc, char **argv);
exit_code command_launch(int argc, char **argv);

#endif
