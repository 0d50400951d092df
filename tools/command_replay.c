/* zerobit replay: recorded runs of real DeepSpeed against the oracle and the engine. */
#include "tools/command.h"
#include "tools/options.h"
#include "tools/replay_report.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <zerobit/memory.h>
#include <zerobit/replay.h>

static const char command_name[] = "replay";

typedef struct replay_settings {
    const char *run; /* NULL: all */
    const char *by;  /* "oracle", "engine" or "both" */
    const char *json;
    int64_t workers;
} replay_settings;

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* --- one run --- */

static zb_status play(const replay_settings *settings, const zb_replay_run *run, replay_by by,
                      zb_replay_result *result)
{
    zb_replay_player player;
    if (by == REPLAY_BY_ORACLE)
        ZB_TRY(zb_replay_oracle_create(run, &player));
    else
        ZB_TRY(zb_replay_engine_create(run, (int)settings->workers, &player));
    const zb_status status = zb_replay_play(run, &player, result);
    player.destroy(player.self);
    return status;
}

static void play_case(const replay_settings *settings, const zb_replay_run *run, replay_by by, replay_case *c)
{
    zb_replay_result result = { 0 };
    const double begin = seconds_now();
    c->played = 1;
    c->status = play(settings, run, by, &result);
    c->seconds = seconds_now() - begin;
    c->steps_equal = result.steps_equal;
    c->values_compared = result.values_compared;
    if (c->status != ZB_OK) {
        snprintf(c->message, sizeof c->message, "%s", zb_error_message());
    } else if (result.different) {
        c->status = ZB_DIFFERENT;
        snprintf(c->message, sizeof c->message, "%s", result.text);
    }
}

static int wants(const replay_settings *settings, replay_by by)
{
    return strcmp(settings->by, "both") == 0 || strcmp(settings->by, replay_by_name(by)) == 0;
}

/* --- all of them --- */

/* A run that cannot be replayed does not hide what the others show; the worst outcome is the exit code. */
static exit_code code_of_rows(const replay_row *rows, size_t count)
{
    exit_code worst = EXIT_EQUAL;
    for (size_t i = 0; i < count; i++)
        for (int by = 0; by < REPLAY_BY_COUNT; by++) {
            const exit_code code = exit_code_of(rows[i].by[by].status);
            if (code > worst) worst = code;
        }
    return worst;
}

static exit_code give_report(const replay_settings *settings, const replay_report *report)
{
    const int json_on_stdout = settings->json != NULL && strcmp(settings->json, "-") == 0;
    replay_report_table(report, json_on_stdout ? stderr : stdout);
    if (settings->json != NULL) {
        const zb_status status = replay_report_json(report, settings->json);
        if (status != ZB_OK) return command_failed(command_name, status);
    }
    return code_of_rows(report->rows, report->row_count);
}

/* What can be asked for instead of a name that no run has. */
static exit_code unknown_run(const char *path, const char *name, const zb_replay_file *file)
{
    fprintf(stderr, "zerobit replay: --run %s: %s has no such run, want one of:", name, path);
    for (size_t i = 0; i < file->run_count; i++) fprintf(stderr, " %s", file->runs[i].name);
    fputc('\n', stderr);
    return EXIT_USAGE;
}

static exit_code replay_file(const replay_settings *settings, const zb_replay_file *file, const char *path)
{
    replay_row *rows = zb_alloc_array(file->run_count, sizeof *rows);
    if (rows == NULL) return command_failed(command_name, ZB_NO_MEMORY);
    replay_report report = { .path = path, .rows = rows };
    const double begin = seconds_now();
    for (size_t i = 0; i < file->run_count; i++) {
        const zb_replay_run *run = &file->runs[i];
        if (settings->run != NULL && strcmp(run->name, settings->run) != 0) continue;
        replay_row *row = &rows[report.row_count++];
        row->run = run;
        for (int by = 0; by < REPLAY_BY_COUNT; by++)
            if (wants(settings, (replay_by)by)) play_case(settings, run, (replay_by)by, &row->by[by]);
    }
    report.seconds = seconds_now() - begin;
    const exit_code code = report.row_count == 0 && settings->run != NULL
                               ? unknown_run(path, settings->run, file)
                               : give_report(settings, &report);
    zb_free(rows);
    return code;
}

static zb_status check_settings(const replay_settings *settings)
{
    if (!wants(settings, REPLAY_BY_ORACLE) && !wants(settings, REPLAY_BY_ENGINE))
        return zb_fail(ZB_INVALID_ARGUMENT, "--by %s: want oracle, engine or both", settings->by);
    return settings->json == NULL || strcmp(settings->json, "-") == 0 ? ZB_OK
                                                                      : check_writable(settings->json);
}

exit_code command_replay(int argc, char **argv)
{
    replay_settings settings = { .by = "both" };
    int help = 0;
    const option_spec options[] = {
        { "--run", OPTION_TEXT, &settings.run, "NAME", "this run only", 0, 0 },
        { "--by", OPTION_TEXT, &settings.by, "WHO", "who replays: oracle, engine or both (both)", 0, 0 },
        { "--workers", OPTION_INT, &settings.workers, "N", "threads of the simulation; 0: one per core (0)",
          0, 1024 },
        { "--json", OPTION_TEXT, &settings.json, "FILE", "write a report as JSON; -: to standard output", 0,
          0 },
        { 0 },
    };
    const command_spec spec = {
        command_name,
        "Feeds the gradients of recorded DeepSpeed runs through the oracle and through the engine on "
        "simulated\nranks, and compares everything after backward, to the bit.",
        { "RUNS.json" },
        options
    };
    const char *paths[OPERAND_MAX];
    zb_status status = options_parse(&spec, argc, argv, paths, &help);
    if (status != ZB_OK) return command_failed(command_name, status);
    if (help) {
        options_print_help(&spec);
        return EXIT_EQUAL;
    }
    status = check_settings(&settings);
    if (status != ZB_OK) return command_failed(command_name, status);
    zb_replay_file *file;
    status = zb_replay_load(paths[0], &file);
    if (status != ZB_OK) return command_failed(command_name, status);
    const exit_code code = replay_file(&settings, file, paths[0]);
    zb_replay_destroy(file);
    return code;
}
