/* zerobit diff: the first difference between two traces. */
#include "tools/command.h"
#include "tools/options.h"

#include <stdio.h>
#include <zerobit/trace.h>

exit_code command_diff(int argc, char **argv)
{
    int quiet = 0, help = 0;
    const option_spec options[] = {
        { "--quiet", OPTION_FLAG, &quiet, NULL, "say nothing when the traces are equal", 0, 0 },
        { 0 },
    };
    const command_spec spec = {
        "diff", "Compares two traces, to the bit, and names the first difference.", { "A", "B" }, options
    };
    const char *paths[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, paths, &help);
    if (status != ZB_OK) return command_failed(spec.name, status);
    if (help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    zb_difference difference;
    status = zb_trace_diff(paths[0], paths[1], &difference);
    if (status != ZB_OK) return command_failed(spec.name, status);
    char explanation[2 * ZB_COLLECTIVE_TEXT_BYTES];
    status = zb_trace_explain_difference(paths[0], paths[1], &difference, explanation, sizeof explanation);
    if (difference.found) {
        printf("%s\n", difference.text);
        /* The difference stands, whatever keeps it from being explained. */
        if (status != ZB_OK)
            printf("not explained: %s\n", zb_error_message());
        else if (explanation[0] != '\0')
            printf("%s\n", explanation);
    }
    if (!difference.found && !quiet) printf("equal: %s and %s\n", paths[0], paths[1]);
    return difference.found ? EXIT_DIFFERENT : EXIT_EQUAL;
}
