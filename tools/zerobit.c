/* The `zerobit` command: finds the subcommand. */
#include "tools/command.h"
#include "tools/interrupt.h"
#include "tools/options.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/version.h>

static const struct {
    const char *name;
    exit_code (*run)(int argc, char **argv); /* NULL: known, but not in this version */
    const char *summary;
} commands[] = {
    { "verify", command_verify, "hold the engine against the oracle, to the bit" },
    { "train", command_train, "train on simulated ranks; write a trace and weights" },
    { "diff", command_diff, "compare two traces; name the first difference" },
    { "explain", command_explain, "say in which order ranks were added, by contributions and a result" },
    { "replay", command_replay, "hold the oracle and the engine against recorded runs of real DeepSpeed" },
    { "inspect", command_inspect, "say what a config will mean, as JSON" },
    { "info", command_info, "say what this build and machine offer" },
    { "launch", command_launch, "start ranks as processes of this machine" },
    { "generate-cifar10", command_generate_cifar10, "write synthetic images in CIFAR-10's format" },
    { "explore", NULL, NULL },
    { "plan", NULL, NULL },
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void print_help(void)
{
    puts("usage: zerobit COMMAND [options]\n\n"
         "Tells whether a ZeRO training engine is right, to the last bit.\n");
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (commands[i].run != NULL) printf("  %-18s %s\n", commands[i].name, commands[i].summary);
    puts("\nzerobit COMMAND --help says more. Exit status: 0 all equal, 1 a difference, 2 bad usage,\n"
         "config or input, 3 something that this machine or build lacks, 4 an internal error.");
}

static exit_code unknown_command(const char *word)
{
    const char *names[COMMAND_COUNT + 1] = { 0 };
    for (int i = 0; i < COMMAND_COUNT; i++) names[i] = commands[i].name;
    const char *meant = closest_word(word, names);
    if (meant != NULL)
        fprintf(stderr, "zerobit: unknown command %s; did you mean %s?\n", word, meant);
    else
        fprintf(stderr, "zerobit: unknown command %s; see zerobit --help\n", word);
    return EXIT_USAGE;
}

static exit_code run(int argc, char **argv)
{
    if (argc < 2) {
        fputs("zerobit: which command? See zerobit --help\n", stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help();
        return EXIT_EQUAL;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("zerobit " ZB_VERSION);
        return EXIT_EQUAL;
    }
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(argv[1], commands[i].name) != 0) continue;
        if (commands[i].run != NULL) return commands[i].run(argc - 1, argv + 1);
        fprintf(stderr, "zerobit: %s is not in this version\n", argv[1]);
        return EXIT_LACKING;
    }
    return unknown_command(argv[1]);
}

/* A standard stream that the caller closed would be the next file that is opened, and what is printed would
 * end up in it. Stand-ins that can only be read, so that printing still fails. */
static void occupy_standard_streams(void)
{
    int file;
    do file = open("/dev/null", O_RDONLY);
    while (file >= 0 && file <= STDERR_FILENO);
    if (file >= 0) close(file);
}

int main(int argc, char **argv)
{
    occupy_standard_streams();
    /* So that a file above the caller's limit is an error that can be told. */
    signal(SIGXFSZ, SIG_IGN);
    exit_code code = run(argc, argv);
    /* A report that could not be written out (disk full, closed pipe) is no success. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == EXIT_EQUAL) {
        fputs("zerobit: standard output cannot be written\n", stderr);
        code = EXIT_USAGE;
    }
    if (interrupt_flag != 0) interrupt_end();
    return (int)code;
}
