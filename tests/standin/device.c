/* The engine's device on CUDA (engine/cuda), unmodified, on the stand-in. */
#include <stdlib.h>
#include <zerobit/cuda.h>
#include <zerobit/memory.h>

#include "tests/standin/support.h"

enum { NUMEL = 100, BYTES = NUMEL * sizeof(float) };

/* y += x on the device, from and to the host. Gives back what it got, whatever fails; the first failure
 * counts. */
static zb_status add_on_device(zb_device *device, const float *x, float *y)
{
    zb_stream *compute = NULL, *copies = NULL;
    zb_event *arrived = NULL;
    void *on_device[2] = { NULL, NULL };
    zb_status status = zb_stream_create(device, "compute", &compute);
    if (status == ZB_OK) status = zb_stream_create(device, "copies", &copies);
    if (status == ZB_OK) status = zb_event_create(device, "arrived", &arrived);
    for (int i = 0; i < 2 && status == ZB_OK; i++)
        status = zb_device_alloc(device, ZB_MEM_GRAD, BYTES, &on_device[i]);
    if (status == ZB_OK) status = zb_copy_in(copies, on_device[0], x, BYTES);
    if (status == ZB_OK) status = zb_copy_in(copies, on_device[1], y, BYTES);
    if (status == ZB_OK) status = zb_event_record(arrived, copies);
    if (status == ZB_OK) status = zb_stream_wait_event(compute, arrived);
    if (status == ZB_OK)
        status = zb_launch_add(compute,
                               &(zb_add_args){ ZB_FP32, on_device[1], ZB_FP32, on_device[0], NUMEL });
    if (status == ZB_OK) status = zb_copy_out(compute, y, on_device[1], BYTES);
    if (status == ZB_OK) status = zb_stream_wait_idle(compute);
    for (int i = 0; i < 2; i++) zb_device_free(device, ZB_MEM_GRAD, BYTES, on_device[i]);
    if (arrived != NULL) zb_event_destroy(arrived);
    if (copies != NULL) zb_stream_destroy(copies);
    if (compute != NULL) zb_stream_destroy(compute);
    return status;
}

static zb_status whole_program(float *y)
{
    float x[NUMEL];
    zb_device *device;
    for (int i = 0; i < NUMEL; i++) x[i] = (float)i, y[i] = 1000;
    ZB_TRY(zb_device_cuda_create(0, &device));
    const zb_status status = add_on_device(device, x, y);
    zb_device_destroy(device);
    return status;
}

static void it_computes(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        float y[NUMEL];
        begin(seed);
        assert_int_equal(whole_program(y), ZB_OK);
        end_clean();
        for (int i = 0; i < NUMEL; i++) assert_true(y[i] == (float)(1000 + i));
    }
}

/* The program with the n-th call of this name failing; 0 when there are not so many. */
static int program_with_fault(const char *call, int64_t n, cudaError_t error, zb_status *status)
{
    float y[NUMEL];
    const uint64_t blocks = zb_alloc_get_stats().live;
    begin((uint64_t)n);
    zb_standin_fail_call(call, n, error);
    *status = whole_program(y);
    assert_int_equal(zb_alloc_get_stats().live, blocks);
    return zb_standin_fault_fired();
}

/* Where there is no more of something, nothing is lost. */
static void memory_may_run_out_anywhere(void **state)
{
    (void)state;
    static const char *const calls[] = { "cudaMallocFromPoolAsync", "cudaMemPoolCreate",
                                         "cudaStreamCreateWithFlags", "cudaEventCreateWithFlags",
                                         "zb_cuda_launch" };
    int failed = 0;
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        zb_status status;
        for (int64_t n = 0; program_with_fault(calls[i], n, cudaErrorMemoryAllocation, &status);
             n++, failed++) {
            if (strcmp(calls[i], "cudaMallocFromPoolAsync") != 0) assert_int_equal(status, ZB_NO_MEMORY);
            end_clean();
        }
        end_clean();
    }
    assert_true(failed >= 10);
}

/* Whatever call fails, it is said, nothing is left, and nothing races. */
static void every_call_may_fail(void **state)
{
    (void)state;
    int failed = 0;
    zb_status status;
    for (int64_t n = 0; program_with_fault(NULL, n, cudaErrorECCUncorrectable, &status); n++) {
        if (status == ZB_INTERNAL) {
            assert_non_null(strstr(zb_error_message(), "cudaErrorECCUncorrectable"));
            failed++;
        }
        end_clean();
    }
    end_clean();
    assert_true(failed > 30);
}

/* As above, with operations that fail when they run: every later call does too. */
static void every_operation_may_fail(void **state)
{
    (void)state;
    int fired = 1;
    for (int64_t n = 0; fired; n++) {
        float y[NUMEL];
        begin((uint64_t)n);
        zb_standin_fail_operation(n, cudaErrorIllegalAddress);
        const zb_status status = whole_program(y);
        fired = zb_standin_fault_fired();
        if (status != ZB_OK) assert_non_null(strstr(zb_error_message(), "cudaErrorIllegalAddress"));
        end_clean();
    }
}

static void memory_is_zeroed_and_runs_out(void **state)
{
    (void)state;
    zb_device *device;
    zb_stream *stream;
    void *all, *more;
    unsigned char *host = calloc(1, 3 << 20);
    assert_non_null(host);
    memset(host, 1, 3 << 20);
    begin(1);
    assert_int_equal(zb_device_cuda_create(0, &device), ZB_OK);
    assert_int_equal(zb_stream_create(device, "compute", &stream), ZB_OK);
    for (int i = 0; i < 5; i++) { /* what is freed can be had again */
        assert_int_equal(zb_device_alloc(device, ZB_MEM_GRAD, 3 << 20, &all), ZB_OK);
        assert_int_equal(zb_copy_out(stream, host, all, 3 << 20), ZB_OK);
        assert_int_equal(zb_stream_wait_idle(stream), ZB_OK);
        for (size_t j = 0; j < 3 << 20; j++) assert_int_equal(host[j], 0);
        assert_int_equal(zb_device_alloc(device, ZB_MEM_GRAD, 2 << 20, &more), ZB_NO_MEMORY);
        assert_non_null(
            strstr(zb_error_message(), "2097152 bytes on GPU 0, of whose 4194304 bytes 1048576 are free"));
        zb_device_free(device, ZB_MEM_GRAD, 3 << 20, all);
    }
    assert_int_equal(zb_device_alloc(device, ZB_MEM_GRAD, 0, &more), ZB_OK);
    zb_device_free(device, ZB_MEM_GRAD, 0, more);
    zb_stream_destroy(stream);
    zb_device_destroy(device);
    end_clean();
    free(host);
}

/* Memory may be freed while streams still use it: it goes behind them. */
static void free_goes_behind_all_streams(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        zb_device *device;
        zb_stream *streams[2];
        void *memory;
        begin(seed);
        assert_int_equal(zb_device_cuda_create(1, &device), ZB_OK);
        for (int i = 0; i < 2; i++) assert_int_equal(zb_stream_create(device, "s", &streams[i]), ZB_OK);
        assert_int_equal(zb_device_alloc(device, ZB_MEM_GRAD, 64, &memory), ZB_OK);
        for (int i = 0; i < 2; i++)
            assert_int_equal(
                zb_launch_fill_bytes(streams[i], &(zb_fill_bytes_args){ (char *)memory + 32 * i, 1, 32 }),
                ZB_OK);
        zb_device_free(device, ZB_MEM_GRAD, 64, memory);
        for (int i = 0; i < 2; i++) zb_stream_destroy(streams[i]);
        zb_device_destroy(device);
        end_clean();
    }
}

/* A failure that nobody could be told of keeps nobody from waiting, and is told by the next call that can. */
static void waiting_waits_after_a_failure(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        zb_device *device;
        zb_stream *stream;
        void *memory, *other;
        unsigned char host[256] = { 0 };
        begin(seed);
        assert_int_equal(zb_device_cuda_create(0, &device), ZB_OK);
        assert_int_equal(zb_stream_create(device, "compute", &stream), ZB_OK);
        assert_int_equal(zb_device_alloc(device, ZB_MEM_GRAD, sizeof host, &memory), ZB_OK);
        for (int whole_device = 0; whole_device < 2; whole_device++) {
            const zb_fill_bytes_args fill = { memory, (uint8_t)(7 + whole_device), sizeof host };
            assert_int_equal(zb_device_alloc(device, ZB_MEM_GRAD, 64, &other), ZB_OK);
            assert_int_equal(zb_launch_fill_bytes(stream, &fill), ZB_OK);
            assert_int_equal(zb_copy_out(stream, host, memory, sizeof host), ZB_OK);
            zb_standin_fail_call("cudaFreeAsync", 0, cudaErrorECCUncorrectable);
            zb_device_free(device, ZB_MEM_GRAD, 64, other);
            assert_true(zb_standin_fault_fired());
            if (whole_device) assert_int_equal(zb_device_wait_idle(device), ZB_OK);
            for (size_t i = 0; i < sizeof host && whole_device; i++) assert_int_equal(host[i], 8);
            assert_int_equal(zb_stream_wait_idle(stream), ZB_INTERNAL);
            assert_non_null(strstr(zb_error_message(), "cudaErrorECCUncorrectable"));
            for (size_t i = 0; i < sizeof host; i++) assert_int_equal(host[i], 7 + whole_device);
            assert_int_equal(zb_stream_wait_idle(stream), ZB_OK);
        }
        zb_device_free(device, ZB_MEM_GRAD, sizeof host, memory);
        zb_stream_destroy(stream);
        zb_device_destroy(device);
        end_clean();
    }
}

static void gpus_are_counted_and_described(void **state)
{
    (void)state;
    int count;
    zb_device *device;
    zb_cuda_description d;
    begin(1);
    assert_int_equal(zb_cuda_device_count(&count), ZB_OK);
    assert_int_equal(count, 2);
    assert_int_equal(zb_cuda_describe(1, &d), ZB_OK);
    assert_string_equal(d.name, "stand-in 1");
    assert_int_equal(d.memory_bytes, 4 << 20);
    assert_int_equal(zb_cuda_describe(2, &d), ZB_INVALID_ARGUMENT);
    assert_int_equal(zb_device_cuda_create(2, &device), ZB_INVALID_ARGUMENT);
    end_clean();
    const zb_standin_options none = { .device_count = 0 };
    assert_int_equal(zb_standin_begin(&none), ZB_OK);
    assert_int_equal(zb_device_cuda_create(0, &device), ZB_UNSUPPORTED);
    end_clean();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_computes),
        cmocka_unit_test(memory_may_run_out_anywhere),
        cmocka_unit_test(every_call_may_fail),
        cmocka_unit_test(every_operation_may_fail),
        cmocka_unit_test(memory_is_zeroed_and_runs_out),
        cmocka_unit_test(free_goes_behind_all_streams),
        cmocka_unit_test(waiting_waits_after_a_failure),
        cmocka_unit_test(gpus_are_counted_and_described),
    };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
