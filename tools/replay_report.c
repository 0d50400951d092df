/* What `zerobit replay` has to say. */
#include "tools/replay_report.h"

#include "tools/report.h"
#include "verify/json_writer.h"

#include <inttypes.h>
#include <string.h>
#include <zerobit/version.h>

const char *replay_by_name(replay_by by)
{
    static const char *const names[] = { [REPLAY_BY_ORACLE] = "oracle", [REPLAY_BY_ENGINE] = "engine" };
    return names[by];
}

/* --- table --- */

static const char *result_cell(const replay_case *c)
{
    if (!c->played) return "-";
    return report_result_word(c->status);
}

static void put_row(const replay_row *row, FILE *to)
{
    char number[REPORT_NUMBER_BYTES];
    uint64_t values = 0;
    double seconds = 0;
    for (int by = 0; by < REPLAY_BY_COUNT; by++) {
        values += row->by[by].values_compared;
        seconds += row->by[by].seconds;
    }
    fprintf(to, "%-32s %6d %6zu  %-9s  %-9s %16s %7.2f s\n", row->run->name, row->run->world_size,
            row->run->step_count, result_cell(&row->by[REPLAY_BY_ORACLE]),
            result_cell(&row->by[REPLAY_BY_ENGINE]), report_grouped(values, number), seconds);
}

static void put_messages(const replay_report *report, FILE *to)
{
    for (size_t i = 0; i < report->row_count; i++)
        for (int by = 0; by < REPLAY_BY_COUNT; by++) {
            const replay_case *c = &report->rows[i].by[by];
            if (c->played && c->status != ZB_OK)
                fprintf(to, "%s, %s: %s\n", report->rows[i].run->name, replay_by_name((replay_by)by),
                        c->message);
        }
}

void replay_report_table(const replay_report *report, FILE *to)
{
    char number[REPORT_NUMBER_BYTES];
    uint64_t values = 0;
    size_t cases = 0, different = 0, refused = 0;
    fprintf(to, "%-32s %6s %6s  %-9s  %-9s %16s %9s\n", "run", "world", "steps", "oracle", "engine",
            "values compared", "time");
    for (size_t i = 0; i < report->row_count; i++) {
        put_row(&report->rows[i], to);
        for (int by = 0; by < REPLAY_BY_COUNT; by++) {
            const replay_case *c = &report->rows[i].by[by];
            values += c->values_compared;
            cases += c->played != 0;
            different += c->played && c->status == ZB_DIFFERENT;
            refused += c->played && c->status != ZB_OK && c->status != ZB_DIFFERENT;
        }
    }
    fputc('\n', to);
    put_messages(report, to);
    if (different + refused == 0)
        fprintf(to, "%zu replays, all equal to the bit: %s values in %.2f s\n", cases,
                report_grouped(values, number), report->seconds);
    else
        fprintf(to, "%zu of %zu replays not equal: %zu different, %zu that cannot be played\n",
                different + refused, cases, different, refused);
}

/* --- JSON --- */

static void put_case(zb_json_writer *json, const replay_row *row, replay_by by)
{
    const replay_case *c = &row->by[by];
    if (!c->played) return;
    zb_json_begin_object(json, NULL);
    zb_json_put_string(json, "run", row->run->name);
    zb_json_put_int(json, "world", row->run->world_size);
    zb_json_put_string(json, "by", replay_by_name(by));
    zb_json_put_string(json, "result", report_result_word(c->status));
    zb_json_put_int(json, "steps_equal", c->steps_equal);
    zb_json_put_uint(json, "values_compared", c->values_compared);
    zb_json_put_double(json, "seconds", c->seconds);
    if (c->status != ZB_OK) {
        zb_json_put_string(json, "status", zb_status_string(c->status));
        zb_json_put_string(json, "message", c->message);
    }
    zb_json_end_object(json);
}

static int all_equal(const replay_report *report)
{
    for (size_t i = 0; i < report->row_count; i++)
        for (int by = 0; by < REPLAY_BY_COUNT; by++)
            if (report->rows[i].by[by].status != ZB_OK) return 0;
    return 1;
}

zb_status replay_report_json(const replay_report *report, const char *path)
{
    zb_json_writer json = { .indented = 1 };
    zb_json_begin_object(&json, NULL);
    zb_json_put_string(&json, "zerobit_version", ZB_VERSION);
    zb_json_put_string(&json, "runs", report->path);
    zb_json_begin_array(&json, "cases");
    for (size_t i = 0; i < report->row_count; i++)
        for (int by = 0; by < REPLAY_BY_COUNT; by++) put_case(&json, &report->rows[i], (replay_by)by);
    zb_json_end_array(&json);
    zb_json_put_double(&json, "seconds", report->seconds);
    zb_json_put_bool(&json, "equal", all_equal(report));
    zb_json_end_object(&json);
    zb_status status = zb_json_writer_finish(&json);
    if (status == ZB_OK) status = report_put_text(path, json.text, json.bytes);
    zb_json_writer_destroy(&json);
    return status;
}
