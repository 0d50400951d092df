/* What the tests of the stand-in share. */
#ifndef ZB_TESTS_STANDIN_SUPPORT_H
#define ZB_TESTS_STANDIN_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/launch.h"
#include "sim/cuda/standin.h"

#define OK(call) assert_int_equal(call, cudaSuccess)

static inline void begin(uint64_t seed)
{
    const zb_standin_options options = { .seed = seed, .device_count = 2, .memory_bytes = 1 << 22 };
    assert_int_equal(zb_standin_begin(&options), ZB_OK);
}

static inline void end_clean(void)
{
    const zb_status status = zb_standin_end();
    if (status != ZB_OK) fail_msg("%s", zb_error_message());
}

/* Fails unless the session found this, and the message has these words. */
static inline void end_with(zb_status status, const char *words)
{
    const zb_status found = zb_standin_end();
    if (found == status && strstr(zb_error_message(), words) != NULL) return;
    fail_msg("found %s: \"%s\", want %s: \"...%s...\"", zb_status_string(found),
             found ? zb_error_message() : "", zb_status_string(status), words);
}

static inline cudaStream_t new_stream(void)
{
    cudaStream_t stream;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static inline cudaEvent_t new_event(void)
{
    cudaEvent_t event;
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
}

static inline void *new_memory(size_t bytes)
{
    void *pointer;
    OK(cudaMalloc(&pointer, bytes));
    return pointer;
}

static inline void launch_add(cudaStream_t stream, float *y, const float *x, size_t numel)
{
    const zb_add_args args = { .y_dtype = ZB_FP32, .y = y, .x_dtype = ZB_FP32, .x = x, .numel = numel };
    assert_int_equal(zb_cuda_launch(stream, ZB_KERNEL_add, &args, sizeof args), ZB_OK);
}

#endif
