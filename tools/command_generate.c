/* zerobit generate-cifar10: learnable synthetic images in CIFAR-10's binary format. */
#include "tools/command.h"
#include "tools/interrupt.h"
#include "tools/options.h"

#include <inttypes.h>
#include <stdio.h>
#include <zerobit/data.h>

exit_code command_generate_cifar10(int argc, char **argv)
{
    int64_t records = ZB_CIFAR10_BATCH_RECORDS, seed = 0;
    int help = 0;
    const option_spec options[] = {
        { "--records", OPTION_INT, &records, "N", "how many records (10000)", 1, INT32_MAX },
        { "--seed", OPTION_INT, &seed, "S", "what they are made from (0)", 0, INT64_MAX },
        { 0 },
    };
    const command_spec spec = { "generate-cifar10",
                                "Writes learnable synthetic images in CIFAR-10's binary format.",
                                { "FILE" },
                                options };
    const char *operands[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, operands, &help);
    if (status != ZB_OK) return command_failed(spec.name, status);
    if (help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    interrupt_watch();
    status = zb_cifar10_generate(operands[0], records, (uint64_t)seed, &interrupt_flag);
    if (status != ZB_OK) return command_failed(spec.name, status);
    printf("%s: %" PRId64 " records\n", operands[0], records);
    return EXIT_EQUAL;
}
