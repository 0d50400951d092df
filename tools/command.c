/* Exit codes and the way an error is told. */
#include "tools/command.h"

#include "core/output_file.h"

#include <stdio.h>

exit_code exit_code_of(zb_status status)
{
    switch (status) {
    case ZB_OK:
        return EXIT_EQUAL;
    case ZB_INVALID_ARGUMENT:
    case ZB_INVALID_CONFIG:
    case ZB_IO:
    case ZB_CORRUPT:
    /* Of the config's wishes; what the machine lacks is known before the library is asked. */
    case ZB_UNSUPPORTED:
        return EXIT_USAGE;
    /* What a wrong engine does. */
    case ZB_DIFFERENT:
    case ZB_REMOTE:
    case ZB_MISMATCH:
    case ZB_DEADLOCK:
    case ZB_RACE:
    /* What a run does whose gradients overflow at the smallest scale. */
    case ZB_LOSS_SCALE:
        return EXIT_DIFFERENT;
    case ZB_NO_MEMORY:
    case ZB_INTERRUPTED:
    case ZB_INTERNAL:
        break;
    }
    return EXIT_INTERNAL;
}

exit_code exit_code_of_cases(const zb_verify_case *cases, int case_count)
{
    exit_code code = EXIT_EQUAL;
    for (int i = 0; i < case_count; i++) {
        exit_code of_case = exit_code_of(cases[i].status);
        if (of_case == EXIT_DIFFERENT) return EXIT_DIFFERENT;
        if (of_case != EXIT_EQUAL) code = of_case;
    }
    return code;
}

exit_code command_failed(const char *command, zb_status status)
{
    fprintf(stderr, "zerobit %s: %s\n", command, zb_error_message());
    return exit_code_of(status);
}

exit_code command_lacks(const char *command, const char *what)
{
    fprintf(stderr, "zerobit %s: this build has no %s\n", command, what);
    return EXIT_LACKING;
}

zb_status check_writable(const char *path)
{
    if (path == NULL) return ZB_OK;
    zb_output_file file;
    ZB_TRY(zb_output_file_open(&file, path, ZB_OUTPUT_REPLACE));
    zb_output_file_discard(&file);
    return ZB_OK;
}
