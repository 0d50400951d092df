/* Running the command, for the tests of it. */
#ifndef TESTS_COMMAND_RUN_H
#define TESTS_COMMAND_RUN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/folder.h"

typedef struct outcome {
    int exit;
    char *out, *err; /* owned */
} outcome;

/* Run with '@' standing for the test's folder. Output goes to hidden files, which folder_entries does not
 * count. */
static inline outcome run(const char *arguments)
{
    char line[2048];
    size_t used = (size_t)snprintf(line, sizeof line, "%s ", ZB_COMMAND);
    for (; *arguments != '\0'; arguments++)
        used += (size_t)snprintf(line + used, sizeof line - used, *arguments == '@' ? "%s" : "%.1s",
                                 *arguments == '@' ? folder : arguments);
    snprintf(line + used, sizeof line - used, " >%s/.out 2>%s/.err </dev/null", folder, folder);
    int status = system(line);
    assert_true(WIFEXITED(status));
    outcome o = { .exit = WEXITSTATUS(status) };
    size_t bytes;
    o.out = (char *)read_whole(in_folder(".out"), &bytes);
    o.out[bytes] = '\0';
    o.err = (char *)read_whole(in_folder(".err"), &bytes);
    o.err[bytes] = '\0';
    unlink(in_folder(".out"));
    unlink(in_folder(".err"));
    return o;
}

static inline void outcome_free(outcome *o)
{
    free(o->out);
    free(o->err);
}

static inline void expect(const char *arguments, int exit, const char *out, const char *err)
{
    outcome o = run(arguments);
    if (o.exit != exit || strstr(o.out, out) == NULL || strstr(o.err, err) == NULL)
        fail_msg("%s\nexit %d, want %d\nstdout: %s\nwant:   %s\nstderr: %s\nwant:   %s", arguments, o.exit,
                 exit, o.out, out, o.err, err);
    outcome_free(&o);
}

#endif
