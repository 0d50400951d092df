/* What core/json adds to cJSON: leniency, positions, refusals, typed reads, and no leak when memory runs out.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/json.h"
#include <zerobit/memory.h>
#include "tests/cjson_memory.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const struct good_case {
    const char *text;
    double a; /* value of the member "a" */
} good_cases[] = {
    { "{\"a\": 1}", 1 },
    { "\xef\xbb\xbf{\"a\": 1}", 1 },
    { "{\"a\": 1,}", 1 },
    { "{\"a\": 2, \"b\": [1, 2,], }", 2 },
    { "{\"a\": 3} // end", 3 },
    { "# first\n{ /* in\nside */ \"a\": 4 }", 4 },
    { "{\"a\": 5, \"b\": \"// # /* kept */ ,}\"}", 5 },
    { "{\"a\": -1.5e2}", -150 },
    { "{\"a\": 6, \"b\": \"\\\\u0000\"}", 6 }, /* an escaped backslash, not a NUL */
    { "{\"a\": 7, \"b\": {}, \"c\": []}", 7 },
    { "{\"a\": 8, // trailing comma before a comment\n }", 8 },
};

static void accepts(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(good_cases); i++) {
        zb_json *json = NULL;
        zb_status status = zb_json_parse(good_cases[i].text, strlen(good_cases[i].text), NULL, &json);
        if (status != ZB_OK) fail_msg("%s: %s", good_cases[i].text, zb_error_message());
        zb_json_at root = zb_json_root(json), a = zb_json_member(&root, "a");
        double value = 0;
        assert_int_equal(zb_json_double(&a, &value), ZB_OK);
        assert_true(value == good_cases[i].a);
        zb_json_destroy(json);
    }
}

static const struct bad_case {
    const char *text;
    const char *want; /* part of the message */
} bad_cases[] = {
    { "", "f.json: is empty" },
    { " \n// only a comment\n", "f.json: is empty" },
    { "{", "f.json:1:2: the text ends too early" },
    { "{\"a\": 1\n \"b\": 2}", "f.json:2:2: JSON syntax error at '\"'" },
    { "{\"a\": 1}\n}", "f.json:2:1: JSON syntax error at '}'" },
    { "{\n  a: 1}",
      "f.json:2:3: 'a' is not true, false, null or a number; keys and strings need double quotes" },
    { "{'a': 1}", "f.json:1:2: ''a'' is not" },
    { "{\"a\": NaN}", "f.json:1:7: 'NaN' is not" },
    { "{\"a\": True}", "f.json:1:7: 'True' is not" },
    { "{\"a\": 01}", "f.json:1:7: '01' is not a number of JSON" },
    { "{\"a\": 1.}", "f.json:1:7: '1.' is not a number of JSON" },
    { "{\"a\": .5}", "f.json:1:7: '.5' is not a number of JSON" },
    { "{\"a\": +5}", "f.json:1:7: '+5' is not a number of JSON" },
    { "{\"a\": 1e}", "f.json:1:7: '1e' is not a number of JSON" },
    { "{\"a\": 0x10}", "f.json:1:7: '0x10' is not a number of JSON" },
    { "{\"a\": 1e999}", "f.json: a: is out of the range of a double, want a finite number" },
    { "{\"a\": 1111111111111111111111111111111111111111111111111111111111111111}",
      "1:7: number of 64 characters" },
    { "[,]", "f.json:1:2: unexpected ','" },
    { "{\"a\": 1,,}", "f.json:1:9: unexpected ','" },
    { "{\"a\": \"x\ny\"}", "f.json:1:7: string is not closed on its line" },
    { "{\"a\": \"x", "f.json:1:7: string is not closed" },
    { "{\"a\": \"x\\", "f.json:1:7: string is not closed" },
    { "{\"a\": \"x\\u0000y\"}", "f.json:1:9: string contains NUL" },
    { "{\"a\": 1} /* open", "f.json:1:10: comment is not closed" },
    { "{\"a\": 1} /*/", "f.json:1:10: comment is not closed" },
    { "{\"a\": 1, \"b\": 2, \"a\": 3}", "f.json: a: is given more than once" },
    { "{\"x\": [0, {\"y\": {\"b\": 2, \"c\": 1, \"b\": 2}}]}", "f.json: x[1].y.b: is given more than once" },
    { "{\"a\": \x01}", "f.json:1:7: unexpected byte 0x01" },
};

static void refuses(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(bad_cases); i++) {
        zb_json *json = NULL;
        zb_status status = zb_json_parse(bad_cases[i].text, strlen(bad_cases[i].text), "f.json", &json);
        assert_int_equal(status, ZB_INVALID_CONFIG);
        assert_null(json);
        if (strstr(zb_error_message(), bad_cases[i].want) == NULL)
            fail_msg("%s\n  gives: %s\n  want:  %s", bad_cases[i].text, zb_error_message(),
                     bad_cases[i].want);
    }
}

static void refuses_nul_and_depth(void **state)
{
    (void)state;
    zb_json *json = NULL;
    assert_int_equal(zb_json_parse("{\0}", 3, "f", &json), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(), "f:1:2: unexpected byte 0x00, want JSON text");

    char deep[2 * (ZB_JSON_MAX_DEPTH + 1)];
    memset(deep, '[', ZB_JSON_MAX_DEPTH + 1);
    memset(deep + ZB_JSON_MAX_DEPTH + 1, ']', ZB_JSON_MAX_DEPTH + 1);
    assert_int_equal(zb_json_parse(deep + 1, 2 * ZB_JSON_MAX_DEPTH, "f", &json), ZB_OK);
    zb_json_destroy(json);
    assert_int_equal(zb_json_parse(deep, sizeof deep, "f", &json), ZB_INVALID_CONFIG);
    assert_non_null(strstr(zb_error_message(), "f:1:65: nested deeper than 64 levels"));
}

static void reads_with_types(void **state)
{
    (void)state;
    const char *text =
        "{\"s\": {\"n\": 5e8, \"f\": 1.5, \"b\": true, \"t\": \"x\", \"list\": [1, \"two\"], \"z\": null}}";
    zb_json *json = NULL;
    assert_int_equal(zb_json_parse(text, strlen(text), "f.json", &json), ZB_OK);
    zb_json_at root = zb_json_root(json), s = zb_json_member(&root, "s");
    zb_json_at n = zb_json_member(&s, "n"), f = zb_json_member(&s, "f"), b = zb_json_member(&s, "b");
    zb_json_at t = zb_json_member(&s, "t"), list = zb_json_member(&s, "list"), z = zb_json_member(&s, "z");
    zb_json_at none = zb_json_member(&s, "none"), below_none = zb_json_member(&none, "x");

    int64_t integer = -7;
    assert_int_equal(zb_json_int64(&n, 0, 500000000, &integer), ZB_OK);
    assert_int_equal(integer, 500000000);
    assert_int_equal(zb_json_int64(&n, 0, 499999999, &integer), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(), "f.json: s.n: is 500000000, want an integer from 0 to 499999999");
    assert_int_equal(zb_json_int64(&f, 0, 10, &integer), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(), "f.json: s.f: is 1.5, want an integer from 0 to 10");
    assert_int_equal(integer, 500000000);

    int boolean = 0;
    assert_int_equal(zb_json_bool(&b, &boolean), ZB_OK);
    assert_int_equal(boolean, 1);
    assert_int_equal(zb_json_bool(&n, &boolean), ZB_INVALID_CONFIG);

    const char *string = NULL;
    assert_int_equal(zb_json_string(&t, &string), ZB_OK);
    assert_string_equal(string, "x");
    assert_int_equal(zb_json_string(&z, &string), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(), "f.json: s.z: is null, want a string");
    assert_false(zb_json_given(&z));

    double number = 0;
    assert_int_equal(zb_json_double(&none, &number), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(), "f.json: s.none: is missing, want a number");
    assert_false(zb_json_given(&below_none));

    size_t count = 0;
    assert_int_equal(zb_json_array(&list, &count), ZB_OK);
    assert_int_equal(count, 2);
    zb_json_at first = zb_json_first(&list), second = zb_json_next(&first);
    assert_int_equal(zb_json_double(&second, &number), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(), "f.json: s.list[1]: is \"two\", want a number");
    assert_null(zb_json_next(&second).value);
    assert_int_equal(zb_json_object(&list), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(), "f.json: s.list: is [1,\"two\"], want an object");

    static const char *const all[] = { "n", "f", "b", "t", "list", "z", NULL }, *const some[] = { "n", "b",
                                                                                                  NULL };
    assert_int_equal(zb_json_check_keys(&s, all), ZB_OK);
    assert_int_equal(zb_json_check_keys(&s, some), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(),
                        "f.json: s.f: is not a key that is known here, want one of: n, b");
    zb_json_destroy(json);
}

static void load_says_what_is_wrong_with_the_file(void **state)
{
    (void)state;
    zb_json *json = NULL;
    assert_int_equal(zb_json_load("/nowhere/at/all.json", &json), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "/nowhere/at/all.json: cannot be opened: No such file"));
    assert_int_equal(zb_json_load("/", &json), ZB_IO);
    assert_string_equal(zb_error_message(), "/: is a directory, want a JSON file");
    assert_int_equal(zb_json_load("/dev/zero", &json), ZB_IO);
    assert_non_null(strstr(zb_error_message(), "/dev/zero: is longer than 16777216 bytes"));
    assert_int_equal(zb_json_load("/dev/null", &json), ZB_INVALID_CONFIG);
    assert_string_equal(zb_error_message(), "/dev/null: is empty, want a JSON object");

    /* Longer than the first buffer. */
    char path[] = "/tmp/zb_json_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    FILE *stream = fdopen(file, "w");
    fprintf(stream, "{%70000s\"a\": 9}", "");
    fclose(stream);
    assert_int_equal(zb_json_load(path, &json), ZB_OK);
    assert_string_equal(zb_json_path(json), path);
    zb_json_destroy(json);
    unlink(path);
}

static void survives_every_allocation_failure(void **state)
{
    (void)state;
    const char *text = "{\"a\": {\"x\": \"text\", \"y\": [1, 2, {\"k\": null, \"l\": 1}]}, \"b\": 1}";
    uint64_t live = zb_alloc_get_stats().live;
    for (int64_t n = 0;; n++) {
        zb_json *json = NULL;
        zb_alloc_fail_at(n);
        zb_status status = zb_json_parse(text, strlen(text), "f", &json);
        int fired = zb_alloc_fault_fired();
        zb_alloc_fail_at(-1);
        if (fired) {
            assert_int_equal(status, ZB_NO_MEMORY);
            assert_non_null(strstr(zb_error_message(), "out of memory"));
            assert_null(json);
        }
        zb_json_destroy(json);
        assert_int_equal(zb_alloc_get_stats().live, live);
        if (fired) continue;
        assert_int_equal(status, ZB_OK);
        assert_true(n > 15); /* cJSON's own allocations are reached */
        return;
    }
}

static int host_allocations;
static void *host_alloc(size_t bytes)
{
    host_allocations++;
    return malloc(bytes);
}

/* A program that uses cJSON itself: what it allocated before, it frees after; its hooks stay. */
static void leaves_the_hosts_cjson_alone(void **state)
{
    (void)state;
    cJSON_InitHooks(&(cJSON_Hooks){ .malloc_fn = host_alloc, .free_fn = free });
    cJSON *own = cJSON_Parse("{\"a\": 1}");
    zb_json *json;
    assert_int_equal(zb_json_parse("{}", 2, "f", &json), ZB_OK);
    zb_json_destroy(json);
    cJSON_Delete(own);
    int before = host_allocations;
    cJSON_Delete(cJSON_CreateNull());
    assert_int_equal(host_allocations, before + 1);
    cjson_allocates_here();
}

int main(void)
{
    cjson_allocates_here();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts),
        cmocka_unit_test(refuses),
        cmocka_unit_test(refuses_nul_and_depth),
        cmocka_unit_test(reads_with_types),
        cmocka_unit_test(load_says_what_is_wrong_with_the_file),
        cmocka_unit_test(survives_every_allocation_failure),
        cmocka_unit_test(leaves_the_hosts_cjson_alone),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
