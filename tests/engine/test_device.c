/* The device's front door keeps a ledger; the CPU device runs at once and can poison what is dead. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <zerobit/device.h>
#include <zerobit/memory.h>

#include "tests/engine/models.h"

typedef struct fixture {
    uint64_t live;
    zb_device *device;
    zb_stream *stream;
} fixture;

static fixture open_device(zb_status (*create)(zb_device **))
{
    fixture f = { .live = zb_alloc_get_stats().live };
    assert_int_equal(create(&f.device), ZB_OK);
    assert_int_equal(zb_stream_create(f.device, "compute", &f.stream), ZB_OK);
    return f;
}

static void close_device(fixture *f)
{
    zb_stream_destroy(f->stream);
    zb_device_destroy(f->device);
    assert_int_equal(zb_alloc_get_stats().live, f->live);
}

static void *take(zb_device *device, zb_memory_kind kind, size_t bytes)
{
    void *pointer = NULL;
    assert_int_equal(zb_device_alloc(device, kind, bytes, &pointer), ZB_OK);
    assert_non_null(pointer);
    assert_int_equal((uintptr_t)pointer % 64, 0);
    for (size_t i = 0; i < bytes; i++) assert_int_equal(((unsigned char *)pointer)[i], 0);
    return pointer;
}

static void the_ledger_books_by_kind(void **state)
{
    (void)state;
    fixture f = open_device(zb_device_cpu_create);
    const uint64_t *held = f.device->held_bytes, *peak = f.device->peak_bytes;
    void *p1 = take(f.device, ZB_MEM_PARAM, 100), *p2 = take(f.device, ZB_MEM_PARAM, 20);
    void *g = take(f.device, ZB_MEM_GRAD, 7), *nothing = take(f.device, ZB_MEM_BUCKET, 0);
    assert_int_equal(held[ZB_MEM_PARAM], 120);
    assert_int_equal(held[ZB_MEM_GRAD], 7);
    assert_int_equal(held[ZB_MEM_BUCKET], 0);
    zb_device_free(f.device, ZB_MEM_PARAM, 100, p1);
    assert_int_equal(held[ZB_MEM_PARAM], 20);
    assert_int_equal(peak[ZB_MEM_PARAM], 120);
    void *p3 = take(f.device, ZB_MEM_PARAM, 50);
    assert_int_equal(peak[ZB_MEM_PARAM], 120); /* 70 now: the peak is older */
    zb_device_free(f.device, ZB_MEM_PARAM, 20, p2);
    zb_device_free(f.device, ZB_MEM_PARAM, 50, p3);
    zb_device_free(f.device, ZB_MEM_GRAD, 7, g);
    zb_device_free(f.device, ZB_MEM_BUCKET, 0, nothing);
    zb_device_free(f.device, ZB_MEM_GRAD, 999, NULL);
    for (int kind = 0; kind < ZB_MEM_COUNT; kind++) assert_int_equal(held[kind], 0);
    close_device(&f);
}

static void an_allocation_that_fails_is_not_booked(void **state)
{
    (void)state;
    fixture f = open_device(zb_device_cpu_create);
    void *pointer = &f;
    zb_alloc_fail_at(0);
    assert_int_equal(zb_device_alloc(f.device, ZB_MEM_GRAD, 8, &pointer), ZB_NO_MEMORY);
    zb_alloc_fail_at(-1);
    assert_ptr_equal(pointer, &f);
    assert_int_equal(zb_device_alloc(f.device, ZB_MEM_GRAD, SIZE_MAX, &pointer), ZB_NO_MEMORY);
    assert_int_equal(f.device->held_bytes[ZB_MEM_GRAD], 0);
    assert_int_equal(f.device->peak_bytes[ZB_MEM_GRAD], 0);
    close_device(&f);
}

static void creation_survives_out_of_memory(void **state)
{
    (void)state;
    fixture f = open_device(zb_device_cpu_create);
    zb_device *device = NULL;
    zb_stream *stream = NULL;
    zb_event *event = NULL;
    zb_alloc_fail_at(0);
    assert_int_equal(zb_device_cpu_create(&device), ZB_NO_MEMORY);
    zb_alloc_fail_at(0);
    assert_int_equal(zb_stream_create(f.device, "s", &stream), ZB_NO_MEMORY);
    zb_alloc_fail_at(0);
    assert_int_equal(zb_event_create(f.device, "e", &event), ZB_NO_MEMORY);
    zb_alloc_fail_at(-1);
    assert_true(device == NULL && stream == NULL && event == NULL);
    close_device(&f);
}

static void the_cpu_runs_at_once(void **state)
{
    (void)state;
    fixture f = open_device(zb_device_cpu_create);
    const float from[3] = { 1, 2, 3 };
    float back[3] = { 0 }, *data = take(f.device, ZB_MEM_GRAD, sizeof back);
    zb_event *event;
    assert_int_equal(zb_copy_in(f.stream, data, from, sizeof from), ZB_OK);
    assert_int_equal(zb_launch_scale(f.stream, &(zb_scale_args){ .y = data, .factor = 2, .numel = 3 }),
                     ZB_OK);
    assert_int_equal(zb_copy_out(f.stream, back, data, sizeof back), ZB_OK);
    assert_true(back[0] == 2 && back[1] == 4 && back[2] == 6);
    assert_int_equal(zb_copy_in(f.stream, NULL, NULL, 0), ZB_OK);
    assert_int_equal(zb_event_create(f.device, "e", &event), ZB_OK);
    assert_int_equal(zb_event_record(event, f.stream), ZB_OK);
    assert_int_equal(zb_stream_wait_event(f.stream, event), ZB_OK);
    assert_int_equal(zb_stream_wait_idle(f.stream), ZB_OK);
    zb_event_destroy(event);
    zb_event_destroy(NULL);
    zb_stream_destroy(NULL);
    zb_device_destroy(NULL);
    zb_device_free(f.device, ZB_MEM_GRAD, sizeof back, data);
    close_device(&f);
}

static const struct discard_case {
    const char *name;
    zb_status (*create)(zb_device **);
    int poisons;
} discards[] = {
    { "discard leaves memory alone", zb_device_cpu_create, 0 },
    { "discard poisons exactly the range", zb_device_cpu_create_poisoning, 1 },
};

static void check_discard(void **state)
{
    const struct discard_case *c = *state;
    fixture f = open_device(c->create);
    float *data = take(f.device, ZB_MEM_GATHER, 4 * sizeof *data);
    for (int i = 0; i < 4; i++) data[i] = 1;
    assert_int_equal(zb_discard(f.stream, data + 1, 2 * sizeof *data), ZB_OK);
    assert_int_equal(zb_discard(f.stream, data, 0), ZB_OK);
    assert_true(data[0] == 1 && data[3] == 1);
    for (int i = 1; i < 3; i++) {
        if (c->poisons)
            assert_true(data[i] != data[i]); /* a NaN */
        else
            assert_true(data[i] == 1);
    }
    zb_device_free(f.device, ZB_MEM_GATHER, 4 * sizeof *data, data);
    close_device(&f);
}

static void names(void **state)
{
    (void)state;
    assert_string_equal(zb_memory_kind_name(ZB_MEM_PARAM), "parameters");
    assert_string_equal(zb_memory_kind_name(ZB_MEM_WORKSPACE), "workspace");
    assert_string_equal(zb_memory_kind_name(ZB_MEM_COUNT), "?");
}

int main(void)
{
    struct CMUnitTest tests[COUNT(discards) + 5] = {
        cmocka_unit_test(the_ledger_books_by_kind),
        cmocka_unit_test(an_allocation_that_fails_is_not_booked),
        cmocka_unit_test(creation_survives_out_of_memory),
        cmocka_unit_test(the_cpu_runs_at_once),
        cmocka_unit_test(names),
    };
    for (size_t i = 0; i < COUNT(discards); i++)
        tests[i + 5] = (struct CMUnitTest){ discards[i].name, check_discard, NULL, NULL,
                                            (void *)&discards[i] };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
