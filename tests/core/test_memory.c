/* Host allocation: aligned, zeroed, counted, and failing where a test asks it to. Also status words and
 * messages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <zerobit/memory.h>
#include <zerobit/status.h>
#include <zerobit/types.h>

static void blocks_are_aligned_and_zero(void **state)
{
    (void)state;
    static const size_t sizes[] = { 0, 1, 63, 64, 65, 4096, 1000003 };
    for (int round = 0; round < 2; round++) /* the second round gets used memory back */
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            unsigned char *block = zb_alloc(sizes[i]);
            assert_non_null(block);
            assert_int_equal((uintptr_t)block % 64, 0);
            for (size_t b = 0; b < sizes[i]; b++) assert_int_equal(block[b], 0);
            memset(block, 0xA5, sizes[i]);
            zb_free(block);
        }
}

static void realloc_keeps_and_zeroes(void **state)
{
    (void)state;
    unsigned char *block = zb_realloc(NULL, 3);
    memcpy(block, "abc", 3);
    block = zb_realloc(block, 100);
    assert_memory_equal(block, "abc", 3);
    for (int b = 3; b < 100; b++) assert_int_equal(block[b], 0);
    block = zb_realloc(block, 2);
    assert_memory_equal(block, "ab", 2);
    zb_alloc_fail_at(0);
    assert_null(zb_realloc(block, 1000));
    assert_memory_equal(block, "ab", 2); /* the old block stays */
    zb_free(block);
}

static void live_blocks_are_counted(void **state)
{
    (void)state;
    zb_alloc_stats before = zb_alloc_get_stats();
    void *a = zb_alloc(10), *b = zb_alloc_array(3, 7);
    char *c = zb_strdup("four");
    zb_alloc_stats during = zb_alloc_get_stats();
    assert_int_equal(during.live - before.live, 3);
    assert_int_equal(during.live_bytes - before.live_bytes, 10 + 21 + 5);
    assert_int_equal(during.calls - before.calls, 3);
    assert_string_equal(c, "four");
    zb_free(a);
    zb_free(b);
    zb_free(c);
    zb_free(NULL);
    assert_int_equal(zb_alloc_get_stats().live, before.live);
    assert_int_equal(zb_alloc_get_stats().live_bytes, before.live_bytes);
}

static void the_nth_allocation_fails_once(void **state)
{
    (void)state;
    zb_alloc_fail_at(2);
    void *first = zb_alloc(1), *second = zb_alloc(1);
    assert_non_null(first);
    assert_non_null(second);
    assert_false(zb_alloc_fault_fired());
    assert_null(zb_alloc(5));
    assert_true(zb_alloc_fault_fired());
    assert_string_equal(zb_error_message(), "out of memory: 5 bytes wanted");
    void *fourth = zb_alloc(1);
    assert_non_null(fourth);
    zb_alloc_fail_at(0);
    zb_alloc_fail_at(-1);
    void *fifth = zb_alloc(1);
    assert_non_null(fifth);
    zb_free(first);
    zb_free(second);
    zb_free(fourth);
    zb_free(fifth);
}

static void impossible_sizes_are_refused(void **state)
{
    (void)state;
    assert_null(zb_alloc(SIZE_MAX));
    assert_null(zb_alloc(SIZE_MAX - 100));
    assert_null(zb_alloc_array(SIZE_MAX / 2, 3));
    assert_non_null(strstr(zb_error_message(), "out of memory"));
}

static void messages_belong_to_who_failed(void **state)
{
    (void)state;
    zb_error own = { 0 };
    zb_fail(ZB_IO, "of the thread");
    assert_null(zb_error_bind(&own));
    assert_string_equal(zb_error_message(), "");
    assert_int_equal(zb_fail(ZB_CORRUPT, "%s and %d", "text", 7), ZB_CORRUPT);
    assert_int_equal(zb_fail_context("file %s", "a.bin"), ZB_CORRUPT);
    assert_string_equal(zb_error_message(), "file a.bin: text and 7");
    assert_ptr_equal(zb_error_bind(NULL), &own);
    assert_string_equal(zb_error_message(), "of the thread");
    assert_string_equal(own.message, "file a.bin: text and 7");
}

static void a_message_may_quote_itself(void **state)
{
    (void)state;
    zb_fail(ZB_IO, "inner");
    zb_fail(ZB_REMOTE, "rank 1 failed: %s", zb_error_message());
    assert_string_equal(zb_error_message(), "rank 1 failed: inner");
}

static void long_messages_are_cut(void **state)
{
    (void)state;
    char text[2 * ZB_ERROR_MESSAGE_BYTES];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    zb_fail(ZB_IO, "%s", text);
    assert_int_equal(strlen(zb_error_message()), ZB_ERROR_MESSAGE_BYTES - 1);
    zb_fail_context("%s", text);
    assert_int_equal(strlen(zb_error_message()), ZB_ERROR_MESSAGE_BYTES - 1);
}

static void every_status_has_words(void **state)
{
    (void)state;
    assert_string_equal(zb_status_string(ZB_OK), "success");
    assert_string_equal(zb_status_string(ZB_DEADLOCK), "no rank can go on");
    assert_string_equal(zb_status_string((zb_status)999), "unknown status");
}

static void types_have_sizes_and_names(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        zb_dtype dtype;
        size_t bytes;
    } rows[] = { { "fp32", ZB_FP32, 4 },    { "fp16", ZB_FP16, 2 },   { "bf16", ZB_BF16, 2 },
                 { "fp64", ZB_FP64, 8 },    { "int32", ZB_INT32, 4 }, { "int64", ZB_INT64, 8 },
                 { "uint8", ZB_UINT8, 1 },  { "half", ZB_FP16, 2 },   { "float", ZB_FP32, 4 },
                 { "bfloat16", ZB_BF16, 2 } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        zb_dtype dtype;
        assert_true(zb_dtype_parse(rows[i].text, &dtype));
        assert_int_equal(dtype, rows[i].dtype);
        assert_int_equal(zb_dtype_bytes(dtype), rows[i].bytes);
    }
    zb_dtype untouched = ZB_INT64;
    assert_false(zb_dtype_parse("FP32", &untouched));
    assert_false(zb_dtype_parse("", &untouched));
    assert_int_equal(untouched, ZB_INT64);
    assert_int_equal(zb_dtype_bytes(ZB_DTYPE_COUNT), 0);
    assert_string_equal(zb_dtype_name(ZB_BF16), "bf16");
    assert_string_equal(zb_dtype_name((zb_dtype)77), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_aligned_and_zero),  cmocka_unit_test(realloc_keeps_and_zeroes),
        cmocka_unit_test(live_blocks_are_counted),      cmocka_unit_test(the_nth_allocation_fails_once),
        cmocka_unit_test(impossible_sizes_are_refused), cmocka_unit_test(messages_belong_to_who_failed),
        cmocka_unit_test(a_message_may_quote_itself),   cmocka_unit_test(long_messages_are_cut),
        cmocka_unit_test(every_status_has_words),       cmocka_unit_test(types_have_sizes_and_names),
    };
    return cmocka_run_group_tests_name("memory and status", tests, NULL, NULL);
}
