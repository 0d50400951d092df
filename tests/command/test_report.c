/* The three forms of a report, over cases that were equal, differed, lacked something and failed. */
#include "tests/verify/support.h"

#include "tools/report.h"
#include "verify/json_writer.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <zerobit/memory.h>

static char note[] = "a \"key\" with <marks> & more", config_path[] = "a.json";
static char *notes[] = { note };
static zb_config config = { .path = config_path, .notes = notes, .note_count = 1 };
static zb_verify_case cases[] = {
    { .stage = 0,
      .world_size = 2,
      .plan = { .micro_batch_size = 4, .accumulation_steps = 3 },
      .steps_done = 5,
      .values_compared = 1234567,
      .seconds = 0.25 },
    { .stage = 2,
      .world_size = 2,
      .steps_done = 3,
      .status = ZB_DIFFERENT,
      .message = "step 3, rank 1, <loss>",
      .difference = { .found = 1,
                      .quantity = ZB_Q_GRAD,
                      .step = 3,
                      .micro = -1,
                      .rank_a = -1,
                      .rank_b = 1,
                      .tensor = "fc1.weight",
                      .element = 4711,
                      .dtype = ZB_FP32,
                      .bits_a = 0x3dcccccd,
                      .bits_b = 0x3dccccce } },
    { .stage = 3,
      .world_size = 2,
      .status = ZB_DIFFERENT,
      .message = "not shown",
      .difference = { .found = 1, .missing = ZB_MISSING_B, .quantity = ZB_Q_COUNTERS, .dtype = ZB_INT64 } },
    { .stage = 3, .world_size = 4, .status = ZB_DEADLOCK, .message = "rank 0 waits\nrank 1 too" },
};

static verify_report report_of(int count)
{
    return (verify_report){ .config = &config,
                            .model = "m",
                            .data = "synthetic",
                            .steps = 5,
                            .seed = 9,
                            .cases = cases,
                            .case_count = count,
                            .seconds = 1.5 };
}

static const cJSON *member(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (item == NULL) fail_msg("no \"%s\"", key);
    return item;
}

static void json_says_it_all(void **state)
{
    (void)state;
    verify_report report = report_of(4);
    const char *path = in_folder("report.json");
    assert_int_equal(report_json(&report, path), ZB_OK);
    size_t bytes;
    char *text = (char *)read_whole(path, &bytes);
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    assert_non_null(json);
    assert_string_equal(member(json, "config")->valuestring, "a.json");
    assert_string_equal(member(json, "model")->valuestring, "m");
    assert_int_equal(member(json, "steps")->valuedouble, 5);
    assert_true(cJSON_IsFalse(member(json, "equal")));
    assert_string_equal(cJSON_GetArrayItem(member(json, "notes"), 0)->valuestring, notes[0]);
    const cJSON *list = member(json, "cases");
    assert_int_equal(cJSON_GetArraySize(list), 4);
    const cJSON *equal = cJSON_GetArrayItem(list, 0), *different = cJSON_GetArrayItem(list, 1);
    assert_string_equal(member(equal, "result")->valuestring, "equal");
    assert_int_equal(member(equal, "accumulation_steps")->valuedouble, 3);
    assert_int_equal(member(equal, "values_compared")->valuedouble, 1234567);
    assert_null(cJSON_GetObjectItem(equal, "difference"));
    const cJSON *d = member(different, "difference");
    assert_string_equal(member(d, "quantity")->valuestring, "reduced gradient");
    assert_string_equal(member(d, "tensor")->valuestring, "fc1.weight");
    assert_string_equal(member(d, "oracle")->valuestring, "0x3dcccccd");
    assert_string_equal(member(d, "engine")->valuestring, "0x3dccccce");
    assert_string_equal(member(member(cJSON_GetArrayItem(list, 2), "difference"), "missing_in")->valuestring,
                        "engine");
    assert_string_equal(member(cJSON_GetArrayItem(list, 3), "result")->valuestring, "failed");
    assert_string_equal(member(cJSON_GetArrayItem(list, 3), "message")->valuestring,
                        "rank 0 waits\nrank 1 too");
    cJSON_Delete(json);
    free(text);

    report.case_count = 1;
    assert_int_equal(report_json(&report, path), ZB_OK);
    text = (char *)read_whole(path, &bytes);
    json = cJSON_ParseWithLength(text, bytes);
    assert_true(cJSON_IsTrue(member(json, "equal")));
    cJSON_Delete(json);
    free(text);
}

static void junit_says_what_failed(void **state)
{
    (void)state;
    verify_report report = report_of(4);
    assert_int_equal(report_junit(&report, in_folder("report.xml")), ZB_OK);
    size_t bytes;
    char *text = (char *)read_whole(in_folder("report.xml"), &bytes);
    text[bytes] = '\0';
    static const char *const parts[] = {
        "tests=\"4\" failures=\"2\" errors=\"1\"",
        "<testcase classname=\"zerobit.verify.m\" name=\"stage 0, world 2, fp32\" time=\"0.250\"/>",
        "<failure type=\"results differ\" message=\"step 3, rank 1, &lt;loss&gt;\"/>",
        "<error type=\"no rank can go on\" message=\"rank 0 waits&#10;rank 1 too\"/>",
        "</testsuite>\n",
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (strstr(text, parts[i]) == NULL) fail_msg("no %s in:\n%s", parts[i], text);
    free(text);
}

/* Why a sum differs is told there as it is in the table and in JSON. */
static void junit_says_why(void **state)
{
    (void)state;
    verify_report report = report_of(4);
    zb_verify_case explained[2] = { cases[1], cases[3] };
    for (int i = 0; i < 2; i++)
        snprintf(explained[i].explanation, sizeof explained[i].explanation, "rank 1 is <missing>\n& \xff");
    report.cases = explained;
    report.case_count = 2;
    assert_int_equal(report_junit(&report, in_folder("report.xml")), ZB_OK);
    size_t bytes;
    char *text = (char *)read_whole(in_folder("report.xml"), &bytes);
    text[bytes] = '\0';
    static const char *const parts[] = {
        "<failure type=\"results differ\" message=\"step 3, rank 1, &lt;loss&gt;\">"
        "rank 1 is &lt;missing&gt;&#10;&amp; \xef\xbf\xbd</failure>\n  </testcase>\n",
        "message=\"rank 0 waits&#10;rank 1 too\">"
        "rank 1 is &lt;missing&gt;&#10;&amp; \xef\xbf\xbd</error>\n  </testcase>\n",
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (strstr(text, parts[i]) == NULL) fail_msg("no %s in:\n%s", parts[i], text);
    free(text);
}

/* A report that no reader of XML takes is worse than none. */
static void junit_is_well_formed_whatever_the_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *message, *xml;
    } messages[] = {
        { "caf\xc3\xa9 \xf0\x9f\x98\x80", "caf\xc3\xa9 \xf0\x9f\x98\x80" },
        { "caf\xe9.json: \x01", "caf\xef\xbf\xbd.json:  " },
        { "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd" },
        { "a\xef\xbf\xbf"
          "b\xef\xbf\xbe",
          "a\xef\xbf\xbd"
          "b\xef\xbf\xbd" },
        { "cut \xe2\x98", "cut \xef\xbf\xbd\xef\xbf\xbd" },
    };
    for (size_t i = 0; i < sizeof messages / sizeof messages[0]; i++) {
        verify_report report = report_of(4);
        zb_verify_case changed = report.cases[3];
        char want[128];
        snprintf(changed.message, sizeof changed.message, "%s", messages[i].message);
        report.cases = &changed;
        report.case_count = 1;
        report.model = messages[i].message;
        assert_int_equal(report_junit(&report, in_folder("report.xml")), ZB_OK);
        size_t bytes;
        char *text = (char *)read_whole(in_folder("report.xml"), &bytes);
        text[bytes] = '\0';
        snprintf(want, sizeof want, "message=\"%s\"/>", messages[i].xml);
        if (strstr(text, want) == NULL) fail_msg("no %s in:\n%s", want, text);
        snprintf(want, sizeof want, "classname=\"zerobit.verify.%s\"", messages[i].xml);
        if (strstr(text, want) == NULL) fail_msg("no %s in:\n%s", want, text);
        free(text);
    }
}

static void the_quiet_form_names_what_is_not_equal(void **state)
{
    (void)state;
    char text[1024] = "";
    FILE *to = fmemopen(text, sizeof text, "w");
    verify_report equal = report_of(1), unequal = report_of(2);
    report_unequal(&equal, to);
    report_unequal(&unequal, to);
    fclose(to);
    assert_string_equal(
        text, "stage 2, world 2, fp32: results differ: step 3, rank 1, <loss> (oracle against engine)\n");
}

static void table_names_the_difference(void **state)
{
    (void)state;
    verify_report report = report_of(4);
    char text[4096] = "";
    FILE *to = fmemopen(text, sizeof text, "w");
    report_table(&report, to);
    fclose(to);
    static const char *const parts[] = {
        "note: a \"key\" with <marks> & more\n",
        "sim       0      2  fp32       A  4 x 3                  5  equal             1,234,567    0.25 s\n",
        "stage 2, world 2, fp32: results differ: step 3, rank 1, <loss> (oracle against engine)\n",
        "stage 3, world 4, fp32: no rank can go on: rank 0 waits\nrank 1 too\n",
        "3 of 4 cases not equal\n",
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (strstr(text, parts[i]) == NULL) fail_msg("no %s in:\n%s", parts[i], text);
}

static void training_that_ends_is_said(void **state)
{
    (void)state;
    zb_verify_case ended = {
        .stage = 1, .world_size = 2, .ended = 1, .message = "training ends in step 0: why"
    };
    verify_report report = report_of(1);
    report.cases = &ended;
    char table[4096] = "";
    FILE *to = fmemopen(table, sizeof table, "w");
    report_table(&report, to);
    fclose(to);
    assert_non_null(
        strstr(table, "\nstage 1, world 2, fp32: training ends in step 0: why\n1 cases, all equal"));

    assert_int_equal(report_json(&report, in_folder("report.json")), ZB_OK);
    size_t bytes;
    char *text = (char *)read_whole(in_folder("report.json"), &bytes);
    cJSON *json = cJSON_ParseWithLength(text, bytes);
    const cJSON *c = cJSON_GetArrayItem(member(json, "cases"), 0);
    assert_string_equal(member(c, "result")->valuestring, "equal");
    assert_string_equal(member(c, "ended")->valuestring, "training ends in step 0: why");
    cJSON_Delete(json);
    free(text);
}

static void failures_leave_no_file(void **state)
{
    (void)state;
    verify_report report = report_of(4);
    for (int64_t n = 0;; n++) {
        uint64_t live = zb_alloc_get_stats().live;
        zb_alloc_fail_at(n);
        zb_status status = report_json(&report, in_folder("report.json"));
        if (status == ZB_OK) status = report_junit(&report, in_folder("report.xml"));
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        assert_int_equal(zb_alloc_get_stats().live, live);
        assert_int_equal(status, fired ? ZB_NO_MEMORY : ZB_OK);
        if (!fired) break;
        assert_true(n < 1000);
    }
    assert_int_equal(folder_entries(), 2);
    assert_int_equal(report_json(&report, in_folder("no/such/folder")), ZB_IO);
    assert_int_equal(report_junit(&report, in_folder("no/such/folder")), ZB_IO);
}

/* What is written must read back as it was. */
static void json_reads_back(void **state)
{
    (void)state;
    static const double doubles[] = {
        0, 1, 0.1, 1e-310, 1.7976931348623157e308, -3e-7, 0.00010034333188799373
    };
    zb_json_writer json = { 0 };
    zb_json_begin_array(&json, NULL);
    for (size_t i = 0; i < sizeof doubles / sizeof doubles[0]; i++)
        zb_json_put_double(&json, NULL, doubles[i]);
    zb_json_put_double(&json, NULL, NAN);
    zb_json_put_uint(&json, NULL, UINT64_MAX);
    zb_json_put_string(&json, NULL, "\"\\\n\x01\xc3\xa9");
    zb_json_begin_object(&json, NULL);
    zb_json_end_object(&json);
    zb_json_begin_array(&json, NULL);
    zb_json_end_array(&json);
    zb_json_put_int(&json, NULL, INT64_MIN);
    zb_json_end_array(&json);
    assert_int_equal(zb_json_writer_finish(&json), ZB_OK);
    assert_non_null(strstr(json.text, ",null,18446744073709551615,\"\\\"\\\\\\u000a\\u0001\xc3\xa9\",{},[],"
                                      "-9223372036854775808]"));
    char *at = json.text + 1;
    for (size_t i = 0; i < sizeof doubles / sizeof doubles[0]; i++) {
        assert_true(strtod(at, &at) == doubles[i]);
        assert_int_equal(*at++, ',');
    }
    zb_json_writer_destroy(&json);
}

/* Paths and keys come as the user wrote them, in whatever encoding. */
static void odd_bytes_leave_valid_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text, *json;
    } rows[] = {
        { "caf\xc3\xa9 \xe2\x98\x83 \xf0\x9f\x98\x80", "\"caf\xc3\xa9 \xe2\x98\x83 \xf0\x9f\x98\x80\"" },
        { "caf\xe9.json", "\"caf\\ufffd.json\"" },
        { "\x80", "\"\\ufffd\"" },
        { "\xe2\x98", "\"\\ufffd\\ufffd\"" },
        { "\xc0\xaf", "\"\\ufffd\\ufffd\"" },                       /* longer than need be */
        { "\xe0\x80\xaf", "\"\\ufffd\\ufffd\\ufffd\"" },            /* likewise */
        { "\xed\xa0\x80", "\"\\ufffd\\ufffd\\ufffd\"" },            /* half a surrogate pair */
        { "\xf4\x90\x80\x80", "\"\\ufffd\\ufffd\\ufffd\\ufffd\"" }, /* above U+10FFFF */
        { "\xff\xfe", "\"\\ufffd\\ufffd\"" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        zb_json_writer json = { 0 };
        zb_json_put_string(&json, NULL, rows[i].text);
        assert_int_equal(zb_json_writer_finish(&json), ZB_OK);
        assert_string_equal(json.text, rows[i].json);
        zb_json_writer_destroy(&json);
    }
}

int main(void)
{
#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, folder_create, folder_remove)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(json_says_it_all),
        IN_FOLDER(junit_says_what_failed),
        IN_FOLDER(junit_says_why),
        IN_FOLDER(junit_is_well_formed_whatever_the_bytes),
        cmocka_unit_test(the_quiet_form_names_what_is_not_equal),
        cmocka_unit_test(table_names_the_difference),
        IN_FOLDER(training_that_ends_is_said),
        IN_FOLDER(failures_leave_no_file),
        cmocka_unit_test(json_reads_back),
        cmocka_unit_test(odd_bytes_leave_valid_utf8),
    };
    return cmocka_run_group_tests_name("report", tests, NULL, NULL);
}
