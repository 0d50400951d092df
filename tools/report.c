/* What `zerobit verify` has to say. */
#include "tools/report.h"

#include "verify/json_writer.h"
#include "core/output_file.h"

#include <inttypes.h>
#include <string.h>
#include <zerobit/version.h>

int report_all_equal(const verify_report *report)
{
    for (int i = 0; i < report->case_count; i++)
        if (report->cases[i].status != ZB_OK) return 0;
    return 1;
}

const char *report_result_word(zb_status status)
{
    switch (status) {
    case ZB_OK:
        return "equal";
    case ZB_DIFFERENT:
        return "different";
    default:
        return "failed";
    }
}

/* --- table --- */

const char *report_grouped(uint64_t value, char text[REPORT_NUMBER_BYTES])
{
    char digits[24];
    int count = snprintf(digits, sizeof digits, "%" PRIu64, value);
    char *to = text;
    for (int i = 0; i < count; i++) {
        if (i > 0 && (count - i) % 3 == 0) *to++ = ',';
        *to++ = digits[i];
    }
    *to = '\0';
    return text;
}

static const char *device_of(const zb_verify_case *c)
{
    return c->device != NULL ? c->device : "cpu";
}

/* The table's word: where ranks run, and of simulated ones what they share. */
static const char *rung_of(const zb_verify_case *c)
{
    const char *ranks = c->ranks != NULL ? c->ranks : "sim";
    return strcmp(ranks, "sim") == 0 && strcmp(device_of(c), "cpu") != 0 ? device_of(c) : ranks;
}

/* Simulated ranks on CPUs go without saying. */
static const char *ranks_of(const zb_verify_case *c)
{
    if (strcmp(rung_of(c), "sim") == 0) return "";
    if (strcmp(rung_of(c), "cuda") == 0) return ", CUDA";
    return strcmp(c->ranks, "mpi") == 0 ? ", Open MPI" : ", NCCL";
}

void report_unequal(const verify_report *report, FILE *to)
{
    for (int i = 0; i < report->case_count; i++) {
        const zb_verify_case *c = &report->cases[i];
        if (c->status == ZB_OK) continue;
        fprintf(to, "stage %d, world %d, %s%s: %s: %s%s\n", c->stage, c->world_size, zb_dtype_name(c->dtype),
                ranks_of(c), zb_status_string(c->status), c->message,
                c->difference.found && !c->difference.missing ? " (oracle against engine)" : "");
        if (c->explanation[0] != '\0') fprintf(to, "    %s\n", c->explanation);
    }
}

/* Stages of one class are equal to the bit; what holds between classes is said here. */
static void report_relations(const verify_report *report, FILE *to)
{
    for (int i = 0; i < report->relation_count; i++) {
        const zb_verify_relation *r = &report->relations[i];
        fprintf(to, "world %d, %s, classes %c and %c: ", r->world_size, zb_dtype_name(r->dtype),
                'A' + r->class_a, 'A' + r->class_b);
        if (!r->is_bounded)
            fprintf(to, "not comparable: %s\n", r->message);
        else if (r->status != ZB_OK)
            fprintf(to, "%s: %s\n", zb_status_string(r->status), r->message);
        else
            fprintf(
                to,
                "they round in different places; %" PRIu64 " of %" PRIu64
                " elements of the first reduced gradients differ, within %.0f %% of the %d roundings that "
                "they may\n",
                r->elements_differ, r->elements, 100 * r->largest, r->roundings);
    }
    if (report->relation_count > 0) fputc('\n', to);
}

void report_table(const verify_report *report, FILE *to)
{
    char text[48], number[REPORT_NUMBER_BYTES];
    for (size_t i = 0; i < report->config->note_count; i++)
        fprintf(to, "note: %s\n", report->config->notes[i]);
    fprintf(to, "%s on %s, %" PRId64 " steps, seed %" PRId64 ": the engine against the oracle%s%s\n\n",
            report->model, report->data, report->steps, report->seed,
            report->order != NULL ? ", adding in the order " : "",
            report->order != NULL ? report->order : "");
    fprintf(to, "%-5s %5s %6s  %-5s  %5s  %-14s %9s  %-9s %17s %9s\n", "ranks", "stage", "world", "dtype",
            "class", "batch per rank", "steps", "result", "values compared", "time");
    uint64_t values = 0;
    int unequal = 0;
    for (int i = 0; i < report->case_count; i++) {
        const zb_verify_case *c = &report->cases[i];
        values += c->values_compared;
        unequal += c->status != ZB_OK;
        snprintf(text, sizeof text, "%" PRId64 " x %" PRId64, c->plan.micro_batch_size,
                 c->plan.accumulation_steps);
        fprintf(to, "%-5s %5d %6d  %-5s  %5c  %-14s %9" PRId64 "  %-9s %17s %7.2f s\n", rung_of(c), c->stage,
                c->world_size, zb_dtype_name(c->dtype), 'A' + c->equality_class, text, c->steps_done,
                report_result_word(c->status), report_grouped(c->values_compared, number), c->seconds);
    }
    fputc('\n', to);
    report_relations(report, to);
    for (int i = 0; i < report->case_count; i++) {
        const zb_verify_case *c = &report->cases[i];
        if (c->ended)
            fprintf(to, "stage %d, world %d, %s: %s\n", c->stage, c->world_size, zb_dtype_name(c->dtype),
                    c->message);
    }
    report_unequal(report, to);
    if (unequal == 0)
        fprintf(to, "%d cases, all equal to the bit: %s values in %.2f s\n", report->case_count,
                report_grouped(values, number), report->seconds);
    else
        fprintf(to, "%d of %d cases not equal\n", unequal, report->case_count);
}

/* --- JSON --- */

static void put_bits(zb_json_writer *json, const char *key, const zb_difference *d, uint64_t bits)
{
    char text[24];
    if (d->dtype == ZB_INT64) {
        zb_json_put_int(json, key, (int64_t)bits);
        return;
    }
    snprintf(text, sizeof text, "0x%0*" PRIx64, 2 * (int)zb_dtype_bytes(d->dtype), bits);
    zb_json_put_string(json, key, text);
}

static void put_difference(zb_json_writer *json, const zb_difference *d)
{
    zb_json_begin_object(json, "difference");
    zb_json_put_int(json, "step", d->step);
    zb_json_put_int(json, "micro", d->micro);
    zb_json_put_int(json, "rank", d->rank_b);
    zb_json_put_string(json, "quantity", zb_quantity_name(d->quantity));
    zb_json_put_string(json, "tensor", d->tensor[0] != '\0' ? d->tensor : NULL);
    zb_json_put_uint(json, "element", d->element);
    zb_json_put_string(json, "dtype", zb_dtype_name(d->dtype));
    if (d->missing == ZB_MISSING_NONE) {
        put_bits(json, "oracle", d, d->bits_a);
        put_bits(json, "engine", d, d->bits_b);
    } else {
        zb_json_put_string(json, "missing_in", d->missing == ZB_MISSING_A ? "oracle" : "engine");
    }
    zb_json_end_object(json);
}

static void put_case(zb_json_writer *json, const zb_verify_case *c)
{
    char plan[512];
    zb_plan_describe(&c->plan, plan, sizeof plan);
    zb_json_begin_object(json, NULL);
    zb_json_put_int(json, "stage", c->stage);
    zb_json_put_int(json, "world", c->world_size);
    zb_json_put_string(json, "dtype", zb_dtype_name(c->dtype));
    zb_json_put_string(json, "ranks", c->ranks);
    zb_json_put_string(json, "device", device_of(c));
    zb_json_put_int(json, "class", c->equality_class);
    zb_json_put_int(json, "micro_batch_size", c->plan.micro_batch_size);
    zb_json_put_int(json, "accumulation_steps", c->plan.accumulation_steps);
    zb_json_put_string(json, "plan", plan);
    zb_json_put_string(json, "result", report_result_word(c->status));
    zb_json_put_int(json, "steps_equal", c->steps_done);
    zb_json_put_uint(json, "values_compared", c->values_compared);
    zb_json_put_double(json, "seconds", c->seconds);
    if (c->status != ZB_OK) {
        zb_json_put_string(json, "status", zb_status_string(c->status));
        zb_json_put_string(json, "message", c->message);
    }
    if (c->ended) zb_json_put_string(json, "ended", c->message);
    if (c->is_explained) zb_json_put_string(json, "verdict", zb_verdict_name(c->verdict));
    if (c->explanation[0] != '\0') zb_json_put_string(json, "explanation", c->explanation);
    if (c->difference.found) put_difference(json, &c->difference);
    zb_json_end_object(json);
}

static void put_relation(zb_json_writer *json, const zb_verify_relation *r)
{
    zb_json_begin_object(json, NULL);
    zb_json_put_int(json, "world", r->world_size);
    zb_json_put_string(json, "dtype", zb_dtype_name(r->dtype));
    zb_json_put_int(json, "class_a", r->class_a);
    zb_json_put_int(json, "class_b", r->class_b);
    zb_json_put_bool(json, "bounded", r->is_bounded);
    zb_json_put_int(json, "roundings", r->roundings);
    zb_json_put_double(json, "largest", r->largest);
    zb_json_put_uint(json, "elements", r->elements);
    zb_json_put_uint(json, "elements_differ", r->elements_differ);
    zb_json_put_string(json, "result", report_result_word(r->status));
    if (r->message[0] != '\0') zb_json_put_string(json, "message", r->message);
    zb_json_end_object(json);
}

static zb_status json_text(const verify_report *report, zb_json_writer *json)
{
    zb_json_begin_object(json, NULL);
    zb_json_put_string(json, "zerobit_version", ZB_VERSION);
    zb_json_put_string(json, "config", report->config->path);
    zb_json_put_string(json, "model", report->model);
    zb_json_put_string(json, "data", report->data);
    zb_json_put_string(json, "order", report->order != NULL ? report->order : "rank");
    zb_json_put_int(json, "steps", report->steps);
    zb_json_put_int(json, "seed", report->seed);
    zb_json_begin_array(json, "notes");
    for (size_t i = 0; i < report->config->note_count; i++)
        zb_json_put_string(json, NULL, report->config->notes[i]);
    zb_json_end_array(json);
    zb_json_begin_array(json, "cases");
    for (int i = 0; i < report->case_count; i++) put_case(json, &report->cases[i]);
    zb_json_end_array(json);
    zb_json_begin_array(json, "relations");
    for (int i = 0; i < report->relation_count; i++) put_relation(json, &report->relations[i]);
    zb_json_end_array(json);
    zb_json_put_double(json, "seconds", report->seconds);
    zb_json_put_bool(json, "equal", report_all_equal(report));
    zb_json_end_object(json);
    return zb_json_writer_finish(json);
}

static zb_status write_file(const char *path, const char *text, size_t bytes)
{
    zb_output_file file;
    ZB_TRY(zb_output_file_open(&file, path, ZB_OUTPUT_REPLACE));
    zb_status status = zb_output_file_write(&file, text, bytes);
    if (status == ZB_OK) status = zb_output_file_write(&file, "\n", 1);
    if (status == ZB_OK) return zb_output_file_finish(&file);
    zb_output_file_discard(&file);
    return status;
}

zb_status report_put_text(const char *path, const char *text, size_t bytes)
{
    if (strcmp(path, "-") != 0) return write_file(path, text, bytes);
    puts(text);
    return ZB_OK;
}

zb_status report_json(const verify_report *report, const char *path)
{
    zb_json_writer json = { .indented = 1 };
    zb_status status = json_text(report, &json);
    if (status == ZB_OK) status = report_put_text(path, json.text, json.bytes);
    zb_json_writer_destroy(&json);
    return status;
}

/* --- JUnit --- */

/* U+FFFE and U+FFFF are characters of UTF-8, but none of XML. */
static int is_xml_character(const char *text, size_t length)
{
    return length != 3 || (memcmp(text, "\xef\xbf\xbe", 3) != 0 && memcmp(text, "\xef\xbf\xbf", 3) != 0);
}

/* Names and paths are the user's, in any encoding: what XML cannot hold becomes U+FFFD, control characters
 * blanks. */
static void put_xml(FILE *to, const char *text)
{
    while (*text != '\0') {
        const size_t length = zb_utf8_length(text);
        if (*text == '&')
            fputs("&amp;", to);
        else if (*text == '<')
            fputs("&lt;", to);
        else if (*text == '>')
            fputs("&gt;", to);
        else if (*text == '"')
            fputs("&quot;", to);
        else if (*text == '\n')
            fputs("&#10;", to);
        else if ((unsigned char)*text < 0x20)
            fputc(' ', to);
        else if (length == 0 || !is_xml_character(text, length))
            fputs("\xef\xbf\xbd", to);
        else
            fwrite(text, 1, length, to);
        text += length > 0 ? length : 1;
    }
}

static void put_testcase(FILE *to, const char *model, const zb_verify_case *c)
{
    fputs("  <testcase classname=\"zerobit.verify.", to);
    put_xml(to, model);
    fprintf(to, "\" name=\"stage %d, world %d, %s%s\" time=\"%.3f\"", c->stage, c->world_size,
            zb_dtype_name(c->dtype), ranks_of(c), c->seconds);
    if (c->status == ZB_OK) {
        fputs("/>\n", to);
        return;
    }
    const char *element = c->status == ZB_DIFFERENT ? "failure" : "error";
    fprintf(to, ">\n    <%s type=\"%s\" message=\"", element, zb_status_string(c->status));
    put_xml(to, c->message);
    if (c->explanation[0] == '\0') {
        fputs("\"/>\n  </testcase>\n", to);
        return;
    }
    fputs("\">", to);
    put_xml(to, c->explanation);
    fprintf(to, "</%s>\n  </testcase>\n", element);
}

zb_status report_junit(const verify_report *report, const char *path)
{
    int failures = 0, errors = 0;
    for (int i = 0; i < report->case_count; i++) {
        failures += report->cases[i].status == ZB_DIFFERENT;
        errors += report->cases[i].status != ZB_DIFFERENT && report->cases[i].status != ZB_OK;
    }
    zb_output_file file;
    ZB_TRY(zb_output_file_open(&file, path, ZB_OUTPUT_REPLACE));
    fprintf(file.stream,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<testsuite name=\"zerobit verify\" tests=\"%d\" failures=\"%d\" errors=\"%d\" time=\"%.3f\">\n",
            report->case_count, failures, errors, report->seconds);
    for (int i = 0; i < report->case_count; i++) put_testcase(file.stream, report->model, &report->cases[i]);
    fputs("</testsuite>\n", file.stream);
    return zb_output_file_finish(&file);
}
