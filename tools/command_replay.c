/* zerobit replay: recorded runs of real DeepSpeed against the oracle. */
#include "tools/command.h"
#include "tools/options.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <zerobit/replay.h>

/* What can be asked for instead of a name that no run has. */
static exit_code unknown_run(const char *path, const char *name, const zb_replay_file *file)
{
    fprintf(stderr, "zerobit replay: --run %s: %s has no such run, want one of:", name, path);
    for (size_t i = 0; i < file->run_count; i++) fprintf(stderr, " %s", file->runs[i].name);
    fputc('\n', stderr);
    return EXIT_USAGE;
}

static exit_code replay_one(const zb_replay_run *run)
{
    zb_replay_result result;
    const zb_status status = zb_replay_by_oracle(run, &result);
    if (status != ZB_OK) return command_failed("replay", status);
    printf("%-28s %3d %s %4" PRId64 " steps  ", run->name, run->world_size,
           run->world_size == 1 ? "rank " : "ranks", result.steps_equal);
    if (result.different) {
        printf("%s\n", result.text);
        return EXIT_DIFFERENT;
    }
    printf("equal, %" PRIu64 " values\n", result.values_compared);
    return EXIT_EQUAL;
}

/* A run that cannot be replayed does not hide what the others show; the worst outcome is the exit code. */
static exit_code replay_all(const zb_replay_file *file, const char *path, const char *name)
{
    exit_code worst = EXIT_EQUAL;
    size_t replayed = 0;
    for (size_t i = 0; i < file->run_count; i++) {
        if (name != NULL && strcmp(file->runs[i].name, name) != 0) continue;
        const exit_code code = replay_one(&file->runs[i]);
        if (code > worst) worst = code;
        replayed++;
    }
    if (replayed == 0 && name != NULL) return unknown_run(path, name, file);
    return worst;
}

exit_code command_replay(int argc, char **argv)
{
    const char *name = NULL;
    int help = 0;
    const option_spec options[] = {
        { "--run", OPTION_TEXT, &name, "NAME", "this run only", 0, 0 },
        { 0 },
    };
    const command_spec spec = {
        "replay",
        "Feeds the gradients of recorded DeepSpeed runs through the oracle, and compares "
        "everything after\nbackward, to the bit.",
        { "RUNS.json" },
        options
    };
    const char *paths[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, paths, &help);
    if (status != ZB_OK) return command_failed(spec.name, status);
    if (help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    zb_replay_file *file;
    status = zb_replay_load(paths[0], &file);
    if (status != ZB_OK) return command_failed(spec.name, status);
    const exit_code code = replay_all(file, paths[0], name);
    zb_replay_destroy(file);
    return code;
}
