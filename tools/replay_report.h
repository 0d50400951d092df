/* What `zerobit replay` has to say: as a table, and as JSON (docs/command.md). */
#ifndef TOOLS_REPLAY_REPORT_H
#define TOOLS_REPLAY_REPORT_H

#include <stdio.h>
#include <zerobit/replay.h>

/* Those who can be fed a run. */
typedef enum replay_by { REPLAY_BY_ORACLE, REPLAY_BY_ENGINE, REPLAY_BY_COUNT } replay_by;

typedef struct replay_case {
    int played;       /* 0: it was not asked for, like the rest */
    zb_status status; /* OK, DIFFERENT, or why the run cannot be replayed */
    int64_t steps_equal;
    uint64_t values_compared;
    char message[ZB_ERROR_MESSAGE_BYTES]; /* the first difference, or what is in the way; "" when equal */
    double seconds;
} replay_case;

typedef struct replay_row {
    const zb_replay_run *run;
    replay_case by[REPLAY_BY_COUNT];
} replay_row;

typedef struct replay_report {
    const char *path; /* of the recorded runs */
    const replay_row *rows;
    size_t row_count;
    double seconds;
} replay_report;

const char *replay_by_name(replay_by by); /* "oracle", "engine" */
void replay_report_table(const replay_report *report, FILE *to);
/** "-": standard output; otherwise the file is replaced as a whole, or not at all. */
zb_status replay_report_json(const replay_report *report, const char *path);

#endif
