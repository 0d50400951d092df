/* The stand-in as a run-time: order, memory, errors, faults, leaks. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zerobit/sim.h>

#include "kernels/kernels.h"
#include "tests/standin/support.h"

/* --- order --- */

/* An operation that notes that it has run. */
typedef struct note {
    int *notes, *count, id;
} note;

static zb_standin_progress write_note(void *user)
{
    const note *n = user;
    n->notes[(*n->count)++] = n->id;
    return ZB_STANDIN_DONE;
}

static void queue_note(cudaStream_t stream, note *n)
{
    const zb_standin_operation operation = { .name = "note", .try_run = write_note, .user = n };
    OK(zb_standin_enqueue(stream, &operation));
}

/* Streams a: 0 1, b: 2 3, and 3 waits for 0 if `event`. Returns the order as digits. */
static int order_of_four(uint64_t seed, int event)
{
    int notes[4], count = 0;
    note n[4];
    for (int i = 0; i < 4; i++) n[i] = (note){ .notes = notes, .count = &count, .id = i };
    begin(seed);
    cudaStream_t a = new_stream(), b = new_stream();
    cudaEvent_t e = new_event();
    queue_note(a, &n[0]);
    if (event) OK(cudaEventRecord(e, a));
    queue_note(a, &n[1]);
    queue_note(b, &n[2]);
    if (event) OK(cudaStreamWaitEvent(b, e, 0));
    queue_note(b, &n[3]);
    OK(cudaStreamSynchronize(seed % 2 ? a : b));
    OK(cudaDeviceSynchronize());
    assert_int_equal(count, 4);
    OK(cudaEventDestroy(e));
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
    end_clean();
    return notes[0] * 1000 + notes[1] * 100 + notes[2] * 10 + notes[3];
}

static int is_in(const int *list, int count, int value)
{
    for (int i = 0; i < count; i++)
        if (list[i] == value) return 1;
    return 0;
}

/* Each of the legal orders comes within some seeds, and no other one. */
static void check_orders(const int *legal, int legal_count, int event)
{
    int seen[8] = { 0 }, seen_count = 0;
    for (uint64_t seed = 0; seed < 400; seed++) {
        const int order = order_of_four(seed, event);
        if (!is_in(legal, legal_count, order)) fail_msg("seed %d: %04d is no legal order", (int)seed, order);
        if (!is_in(seen, seen_count, order)) seen[seen_count++] = order;
    }
    assert_int_equal(seen_count, legal_count);
}

static void streams_are_not_ordered(void **state)
{
    (void)state;
    const int legal[] = { 123, 213, 231, 2013, 2031, 2301 };
    check_orders(legal, 6, 0);
}

static void events_order(void **state)
{
    (void)state;
    const int legal[] = { 123, 213, 231, 2013, 2031 }; /* not 2301: 3 before 0 */
    check_orders(legal, 5, 1);
}

/* A wait is for the recording that was the latest at the call, not for one that comes after. */
static void a_wait_is_for_the_recording_before_it(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        int notes[2], count = 0;
        note first = { notes, &count, 1 }, second = { notes, &count, 2 };
        begin(seed);
        cudaStream_t a = new_stream(), b = new_stream();
        cudaEvent_t e = new_event();
        queue_note(a, &first);
        OK(cudaEventRecord(e, a));
        OK(cudaStreamWaitEvent(b, e, 0));
        queue_note(b, &second);
        OK(cudaEventRecord(e, b));
        OK(cudaEventSynchronize(e));
        assert_int_equal(count, 2);
        assert_int_equal(notes[0], 1);
        OK(cudaEventDestroy(e));
        OK(cudaStreamDestroy(a));
        OK(cudaStreamDestroy(b));
        end_clean();
    }
}

static void a_destroyed_stream_finishes(void **state)
{
    (void)state;
    int notes[1], count = 0;
    note n = { notes, &count, 0 };
    begin(1);
    cudaStream_t a = new_stream();
    queue_note(a, &n);
    OK(cudaStreamDestroy(a));
    OK(cudaDeviceSynchronize());
    assert_int_equal(count, 1);
    end_clean();
}

/* A poll ends, and says "not ready" on some seed before. */
static void queries_make_progress(void **state)
{
    (void)state;
    int not_ready = 0;
    for (uint64_t seed = 0; seed < 50; seed++) {
        int notes[2], count = 0;
        note n = { notes, &count, 0 };
        begin(seed);
        cudaStream_t a = new_stream();
        cudaEvent_t e = new_event();
        OK(cudaEventQuery(e)); /* never recorded */
        queue_note(a, &n);
        OK(cudaEventRecord(e, a));
        cudaError_t answer;
        while ((answer = cudaEventQuery(e)) == cudaErrorNotReady) not_ready++;
        OK(answer);
        assert_int_equal(count, 1);
        queue_note(a, &n);
        while ((answer = cudaStreamQuery(a)) == cudaErrorNotReady) not_ready++;
        OK(answer);
        assert_int_equal(count, 2);
        OK(cudaGetLastError());
        OK(cudaEventDestroy(e));
        OK(cudaStreamDestroy(a));
        end_clean();
    }
    assert_true(not_ready > 0);
}

static void the_default_stream_waits_for_blocking_ones(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        int notes[3], count = 0;
        note n[3] = { { notes, &count, 0 }, { notes, &count, 1 }, { notes, &count, 2 } };
        cudaStream_t a;
        begin(seed);
        OK(cudaStreamCreateWithFlags(&a, cudaStreamDefault));
        queue_note(a, &n[0]);
        queue_note(NULL, &n[1]);
        queue_note(a, &n[2]);
        OK(cudaStreamSynchronize(a));
        assert_int_equal(notes[0] * 100 + notes[1] * 10 + notes[2], 12);
        OK(cudaStreamDestroy(a));
        end_clean();
    }
}

/* --- memory --- */

static void copies_and_kernels_compute(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        float x[100], y[100], result[100];
        for (int i = 0; i < 100; i++) x[i] = (float)i, y[i] = 1000;
        begin(seed);
        cudaStream_t a = new_stream();
        float *dx = new_memory(sizeof x), *dy = new_memory(sizeof y);
        OK(cudaMemcpyAsync(dx, x, sizeof x, cudaMemcpyHostToDevice, a));
        OK(cudaMemcpyAsync(dy, y, sizeof y, cudaMemcpyDefault, a));
        launch_add(a, dy, dx, 100);
        OK(cudaMemcpyAsync(result, dy, sizeof y, cudaMemcpyDeviceToHost, a));
        OK(cudaStreamSynchronize(a));
        for (int i = 0; i < 100; i++) assert_true(result[i] == (float)(1000 + i));
        OK(cudaFree(dx));
        OK(cudaFree(dy));
        OK(cudaStreamDestroy(a));
        end_clean();
    }
}

/* Fresh memory and pinned memory hold no zeros; what is copied out is poison until the copy has run. */
static void memory_is_poisoned(void **state)
{
    (void)state;
    unsigned char out[16] = { 0 }, *pinned;
    const zb_standin_options lazy = { .device_count = 1, .schedule = ZB_STANDIN_LAZY };
    assert_int_equal(zb_standin_begin(&lazy), ZB_OK);
    cudaStream_t a = new_stream();
    void *memory;
    OK(cudaMallocAsync(&memory, 16, a));
    OK(cudaMallocHost((void **)&pinned, 16));
    assert_int_equal(pinned[15], 0xff);
    OK(cudaMemcpyAsync(out, memory, 16, cudaMemcpyDeviceToHost, a));
    OK(cudaStreamSynchronize(a));
    assert_int_equal(out[0], 0xff);
    out[0] = 1;
    OK(cudaMemsetAsync(memory, 7, 16, a));
    OK(cudaMemcpyAsync(out, memory, 16, cudaMemcpyDeviceToHost, a));
    assert_int_equal(out[0], 0xff);
    OK(cudaStreamSynchronize(a));
    assert_int_equal(out[0], 7);
    OK(cudaFreeAsync(memory, a));
    OK(cudaFreeHost(pinned));
    OK(cudaStreamDestroy(a));
    end_clean();
}

/* Pageable memory that changes after the call: the copy may take it as it was or as it is. Pinned memory: as
 * it is. */
static int copied_value(uint64_t seed, int pinned)
{
    int pageable = 1, result = 0, *from = &pageable;
    const zb_standin_options lazy = { .seed = seed, .device_count = 1, .schedule = ZB_STANDIN_LAZY };
    assert_int_equal(zb_standin_begin(&lazy), ZB_OK);
    cudaStream_t a = new_stream();
    void *memory = new_memory(sizeof *from);
    if (pinned) OK(cudaMallocHost((void **)&from, sizeof *from));
    *from = 1;
    OK(cudaMemcpyAsync(memory, from, sizeof *from, cudaMemcpyHostToDevice, a));
    *from = 2;
    OK(cudaMemcpyAsync(&result, memory, sizeof *from, cudaMemcpyDeviceToHost, a));
    OK(cudaStreamSynchronize(a));
    if (pinned) OK(cudaFreeHost(from));
    OK(cudaFree(memory));
    OK(cudaStreamDestroy(a));
    end_clean();
    return result;
}

static void the_host_changes_what_is_being_copied(void **state)
{
    (void)state;
    int seen[3] = { 0 };
    for (uint64_t seed = 0; seed < 50; seed++) {
        seen[copied_value(seed, 0)]++;
        assert_int_equal(copied_value(seed, 1), 2);
    }
    assert_true(seen[1] > 0 && seen[2] > 0);
}

/* One place on the host, through which two values pass in the order of a stream. */
static void a_place_on_the_host_is_passed_through(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        int place = 5, results[2];
        begin(seed);
        cudaStream_t a = new_stream();
        int *memory = new_memory(3 * sizeof(int));
        for (int i = 0; i < 2; i++) {
            OK(cudaMemcpyAsync(memory + 1 + i, &place, sizeof place, cudaMemcpyHostToDevice, a));
            OK(cudaMemsetAsync(memory, 7, sizeof place, a));
            OK(cudaMemcpyAsync(&place, memory, sizeof place, cudaMemcpyDeviceToHost, a));
        }
        OK(cudaMemcpyAsync(results, memory + 1, sizeof results, cudaMemcpyDeviceToHost, a));
        OK(cudaStreamSynchronize(a));
        assert_int_equal(results[0], 5);
        assert_int_equal(results[1], 0x07070707);
        OK(cudaFree(memory));
        OK(cudaStreamDestroy(a));
        end_clean();
    }
}

/* The output of a child that runs `body`, which must be killed by a signal. */
static void dies_saying(void (*body)(void), const char *words)
{
    int ends[2], status;
    char text[2048];
    size_t length = 0;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        body();
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t got; (got = read(ends[0], text + length, sizeof text - 1 - length)) > 0;)
        length += (size_t)got;
    text[length] = '\0';
    close(ends[0]);
    waitpid(child, &status, 0);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSEGV || strstr(text, words) == NULL)
        fail_msg("status %x, said \"%s\", want \"...%s...\"", (unsigned)status, text, words);
}

static void touch_device_memory(void)
{
    begin(1);
    (void)new_memory(100);
    volatile char *memory = new_memory(64);
    memory[5] = 1;
}

static zb_standin_progress touch(void *user)
{
    *(volatile char *)user = 1;
    return ZB_STANDIN_DONE;
}

/* With the address that hosts have, in place of zb_standin_memory. */
static void touch_in_an_operation(void)
{
    begin(1);
    const zb_standin_operation operation = { .name = "touch", .try_run = touch, .user = new_memory(64) };
    (void)zb_standin_enqueue(new_stream(), &operation);
    (void)cudaDeviceSynchronize();
}

static void a_host_cannot_touch_device_memory(void **state)
{
    (void)state;
    dies_saying(touch_device_memory, "byte 5 of allocation 1 (64 bytes, device 0); last call: cudaMalloc");
    dies_saying(touch_in_an_operation, "byte 0 of allocation 0 (64 bytes, device 0); while this ran: touch");
}

static void memory_runs_out_and_comes_back(void **state)
{
    (void)state;
    size_t free_bytes, total_bytes;
    void *big, *more;
    begin(3);
    cudaStream_t a = new_stream();
    OK(cudaMallocAsync(&big, 3 << 20, a));
    assert_int_equal(cudaMallocAsync(&more, 2 << 20, a), cudaErrorMemoryAllocation);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    OK(cudaGetLastError());
    OK(cudaMemGetInfo(&free_bytes, &total_bytes));
    assert_int_equal(free_bytes, 1 << 20);
    assert_int_equal(total_bytes, 4 << 20);
    OK(cudaFreeAsync(big, a));
    for (int i = 0; i < 20; i++) { /* around the circle of addresses several times */
        OK(cudaMallocAsync(&more, 2 << 20, a));
        OK(cudaFreeAsync(more, a));
    }
    OK(cudaStreamDestroy(a));
    end_clean();
}

/* --- misuse: each row is found, and named --- */

static float *device_floats, *host_floats;
static cudaStream_t misuse_stream;

static void launch_on_host_memory(void)
{
    const zb_scale_args args = { .dtype = ZB_FP32, .y = host_floats, .factor = 2, .numel = 4 };
    assert_int_equal(zb_cuda_launch(misuse_stream, ZB_KERNEL_scale, &args, sizeof args), ZB_INVALID_ARGUMENT);
    assert_non_null(strstr(zb_error_message(), "scale (y)"));
}

static void launch_beyond(void)
{
    const zb_scale_args args = { .dtype = ZB_FP32, .y = device_floats + 1, .factor = 2, .numel = 16 };
    assert_int_equal(zb_cuda_launch(misuse_stream, ZB_KERNEL_scale, &args, sizeof args), ZB_INVALID_ARGUMENT);
}

static void copy_in_from_device(void)
{
    assert_int_equal(
        cudaMemcpyAsync(device_floats, device_floats + 4, 16, cudaMemcpyHostToDevice, misuse_stream),
        cudaErrorInvalidValue);
}

static void copy_out_to_device(void)
{
    assert_int_equal(
        cudaMemcpyAsync(device_floats, device_floats + 4, 16, cudaMemcpyDeviceToHost, misuse_stream),
        cudaErrorInvalidValue);
}

static void memset_host(void)
{
    assert_int_equal(cudaMemsetAsync(host_floats, 0, 4, misuse_stream), cudaErrorInvalidValue);
}

static void copy_beyond(void)
{
    assert_int_equal(cudaMemcpyAsync(device_floats, host_floats, 65, cudaMemcpyHostToDevice, misuse_stream),
                     cudaErrorInvalidValue);
}

static void use_after_free(void)
{
    void *memory;
    OK(cudaMallocAsync(&memory, 64, misuse_stream));
    OK(cudaFreeAsync(memory, misuse_stream));
    assert_int_equal(cudaMemsetAsync(memory, 0, 4, misuse_stream), cudaErrorInvalidValue);
}

static void free_twice(void)
{
    void *memory = new_memory(64);
    OK(cudaFree(memory));
    assert_int_equal(cudaFree(memory), cudaErrorInvalidValue);
}

static void free_in_the_middle(void)
{
    assert_int_equal(cudaFree(device_floats + 1), cudaErrorInvalidValue);
}

static void free_async_of_malloc(void)
{
    assert_int_equal(cudaFreeAsync(device_floats, misuse_stream), cudaErrorInvalidValue);
}

static void destroyed_stream(void)
{
    cudaStream_t stream = new_stream();
    OK(cudaStreamDestroy(stream));
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
}

static void destroyed_event(void)
{
    cudaEvent_t event = new_event();
    OK(cudaEventDestroy(event));
    assert_int_equal(cudaEventRecord(event, misuse_stream), cudaErrorInvalidResourceHandle);
}

static void no_event(void)
{
    assert_int_equal(cudaEventSynchronize((cudaEvent_t)(void *)misuse_stream),
                     cudaErrorInvalidResourceHandle);
}

static void memory_of_another_device(void)
{
    OK(cudaSetDevice(1));
    cudaStream_t other = new_stream();
    const zb_scale_args args = { .dtype = ZB_FP32, .y = device_floats, .factor = 2, .numel = 4 };
    const zb_status status = zb_cuda_launch(other, ZB_KERNEL_scale, &args, sizeof args);
    OK(cudaStreamDestroy(other));
    OK(cudaSetDevice(0));
    assert_int_equal(status, ZB_INVALID_ARGUMENT);
}

static const struct misuse_case {
    const char *name;
    void (*body)(void);
    const char *words;
} misuses[] = {
    { "a kernel is given host memory", launch_on_host_memory, "scale (y): " },
    { "a kernel goes beyond an allocation", launch_beyond, "bytes 4..67 are beyond allocation 0 (64 bytes" },
    { "a copy in reads device memory", copy_in_from_device, "cudaMemcpyAsync (from)" },
    { "a copy out writes device memory", copy_out_to_device, "cudaMemcpyAsync (to)" },
    { "host memory is filled", memset_host, "is host memory, want memory of device 0" },
    { "a copy goes beyond an allocation", copy_beyond, "bytes 0..64 are beyond allocation 0" },
    { "memory is used after it was given back", use_after_free, "use after free of bytes 0..3" },
    { "memory is given back twice", free_twice, "has been given back by cudaFree on the host" },
    { "the middle of memory is given back", free_in_the_middle, "is not the beginning of an allocation" },
    { "memory of cudaMalloc goes to a pool", free_async_of_malloc, "does not come from a pool" },
    { "a stream is gone", destroyed_stream, "stream 1 has been destroyed" },
    { "an event is gone", destroyed_event, "has been destroyed" },
    { "a stream is no event", no_event, "is none" },
    { "a kernel is given another device's memory", memory_of_another_device, "is memory of device 0" },
};

static void check_misuse(void **state)
{
    const struct misuse_case *c = *state;
    float floats[32] = { 0 };
    begin(5);
    host_floats = floats;
    device_floats = new_memory(64);
    misuse_stream = new_stream();
    c->body();
    OK(cudaStreamSynchronize(misuse_stream));
    assert_int_equal(zb_standin_count().misuses, 1);
    OK(cudaFree(device_floats));
    OK(cudaStreamDestroy(misuse_stream));
    end_with(ZB_INVALID_ARGUMENT, c->words);
}

/* --- errors that CUDA reports --- */

static void arguments_are_checked(void **state)
{
    (void)state;
    int value;
    cudaStream_t stream;
    cudaEvent_t event;
    void *memory;
    begin(1);
    OK(cudaGetDeviceCount(&value));
    assert_int_equal(value, 2);
    assert_int_equal(cudaSetDevice(2), cudaErrorInvalidDevice);
    assert_int_equal(cudaSetDevice(-1), cudaErrorInvalidDevice);
    assert_int_equal(cudaStreamCreateWithFlags(&stream, 2), cudaErrorInvalidValue);
    assert_int_equal(cudaEventCreateWithFlags(&event, 8), cudaErrorInvalidValue);
    assert_int_equal(cudaStreamDestroy(NULL), cudaErrorInvalidResourceHandle);
    stream = new_stream();
    assert_int_equal(cudaMallocAsync(&memory, 0, stream), cudaErrorInvalidValue);
    OK(cudaMalloc(&memory, 0));
    assert_null(memory);
    OK(cudaFree(NULL));
    memory = new_memory(64);
    assert_int_equal(cudaMemcpyAsync(memory, memory, 4, (enum cudaMemcpyKind)9, stream),
                     cudaErrorInvalidMemcpyDirection);
    OK(cudaSetDevice(1)); /* an event of one device does not go with a stream of another, nor does a launch */
    event = new_event();
    assert_int_equal(cudaEventRecord(event, stream), cudaErrorInvalidResourceHandle);
    const zb_scale_args args = { .dtype = ZB_FP32, .y = memory, .factor = 2, .numel = 4 };
    assert_int_equal(zb_cuda_launch(stream, ZB_KERNEL_scale, &args, sizeof args), ZB_INTERNAL);
    OK(cudaSetDevice(0));
    assert_int_equal(zb_cuda_launch(stream, ZB_KERNEL_scale, &args, 1), ZB_INVALID_ARGUMENT);
    const zb_scale_args wrong = { .dtype = ZB_INT32, .y = memory, .factor = 2, .numel = 4 };
    assert_int_equal(zb_cuda_launch(stream, ZB_KERNEL_scale, &wrong, sizeof wrong), ZB_UNSUPPORTED);
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(stream));
    OK(cudaFree(memory));
    end_clean();
}

/* What the CPU refuses is refused at the launch, in its words; nothing is queued. */
static void launches_are_checked_as_on_the_cpu(void **state)
{
    (void)state;
    begin(1);
    cudaStream_t stream = new_stream();
    float *x = new_memory(64);
    const void *const inputs[] = { x };
    const int32_t tree[] = { 0 }, order[] = { 0 };
    const zb_cast_args cast = { x, ZB_INT64, x + 8, ZB_FP32, 4 };
    const zb_matmul_args matmul = { ZB_FP16, 1, 1, 1, x, 1, 1, x + 4, 1, 1, x + 8, 1, NULL, 1 };
    const zb_conv2d_backward_bias_args bias = { ZB_INT32, { 1, 1, 1, 1, 1, 1, 1, 1, 1, 0 }, x, x + 4 };
    const zb_norm_args norm = { ZB_INT32, x, 4, 0, (double *)(void *)(x + 8) };
    const zb_sgd_args sgd = { .p = x, .grad_dtype = ZB_FP64, .grad = x + 4, .numel = 4 };
    const zb_ordered_reduce_args average = { inputs, 1, x, 4, ZB_INT32, ZB_AVG, 1 };
    const zb_ordered_reduce_args nobody = { inputs, 0, x, 4, ZB_FP32, ZB_SUM, 1 };
    const zb_tree_reduce_args fused = {
        inputs, 1, tree, order, 0, 0, 0, 4, x, ZB_FP16, { .scaling = ZB_SCALING_FUSED_LL128 }
    };
    const struct {
        zb_kernel kernel;
        const void *args;
        size_t bytes;
    } launches[] = {
        { ZB_KERNEL_cast, &cast, sizeof cast },
        { ZB_KERNEL_matmul, &matmul, sizeof matmul },
        { ZB_KERNEL_conv2d_backward_bias, &bias, sizeof bias },
        { ZB_KERNEL_norm, &norm, sizeof norm },
        { ZB_KERNEL_sgd, &sgd, sizeof sgd },
        { ZB_KERNEL_ordered_reduce, &average, sizeof average },
        { ZB_KERNEL_ordered_reduce, &nobody, sizeof nobody },
        { ZB_KERNEL_tree_reduce, &fused, sizeof fused },
        { ZB_KERNEL_COUNT, &fused, sizeof fused },
    };
    for (size_t i = 0; i < sizeof launches / sizeof launches[0]; i++) {
        char words[ZB_ERROR_MESSAGE_BYTES];
        const zb_status want = zb_cpu_launch(launches[i].kernel, launches[i].args, launches[i].bytes);
        strcpy(words, zb_error_message());
        assert_true(want == ZB_UNSUPPORTED || want == ZB_INVALID_ARGUMENT);
        assert_int_equal(zb_cuda_launch(stream, launches[i].kernel, launches[i].args, launches[i].bytes),
                         want);
        assert_string_equal(zb_error_message(), words);
    }
    OK(cudaStreamSynchronize(stream));
    assert_int_equal(zb_standin_count().operations, 0);
    OK(cudaFree(x));
    OK(cudaStreamDestroy(stream));
    end_clean();
}

static void without_a_gpu(void **state)
{
    (void)state;
    int count;
    const zb_standin_options none = { .device_count = 0 };
    assert_int_equal(cudaGetDeviceCount(&count), cudaErrorInitializationError);
    assert_int_equal(zb_standin_begin(&none), ZB_OK);
    assert_int_equal(zb_standin_begin(&none), ZB_INVALID_ARGUMENT);
    assert_int_equal(cudaGetDeviceCount(&count), cudaErrorNoDevice);
    end_clean();
    assert_int_equal(zb_standin_end(), ZB_INVALID_ARGUMENT);
}

/* --- faults --- */

/* A little of everything that can be undone; returns the first error, having given back all it got. */
static cudaError_t little_program(void)
{
    cudaStream_t stream = NULL;
    cudaEvent_t event = NULL;
    void *memory = NULL, *pinned = NULL;
    cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), late = cudaSuccess, e;
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&event, 0);
    if (error == cudaSuccess) error = cudaMallocAsync(&memory, 64, stream);
    if (error == cudaSuccess) error = cudaMallocHost(&pinned, 64);
    if (error == cudaSuccess) error = cudaMemcpyAsync(memory, pinned, 64, cudaMemcpyHostToDevice, stream);
    if (error == cudaSuccess) error = cudaEventRecord(event, stream);
    if (error == cudaSuccess) error = cudaEventSynchronize(event);
    if (memory != NULL && (e = cudaFreeAsync(memory, stream)) != cudaSuccess) late = e;
    if (pinned != NULL && (e = cudaStreamSynchronize(stream)) != cudaSuccess) late = e;
    if (pinned != NULL && (e = cudaFreeHost(pinned)) != cudaSuccess) late = e;
    if (event != NULL && (e = cudaEventDestroy(event)) != cudaSuccess) late = e;
    if (stream != NULL && (e = cudaStreamDestroy(stream)) != cudaSuccess) late = e;
    return error != cudaSuccess ? error : late;
}

static void every_call_can_fail(void **state)
{
    (void)state;
    int64_t n = 0;
    for (;; n++) {
        begin(7);
        zb_standin_fail_call(NULL, n, cudaErrorECCUncorrectable);
        const cudaError_t error = little_program();
        const int fired = zb_standin_fault_fired();
        assert_int_equal(error, fired ? cudaErrorECCUncorrectable : cudaSuccess);
        end_clean();
        if (!fired) break;
    }
    assert_int_equal(n, 12);
}

static void a_call_can_fail_by_name(void **state)
{
    (void)state;
    begin(7);
    zb_standin_fail_call("cudaMallocHost", 0, cudaErrorMemoryAllocation);
    assert_int_equal(little_program(), cudaErrorMemoryAllocation);
    assert_int_equal(little_program(), cudaSuccess);
    end_clean();
}

/* A kernel that fails is heard of later, and then always. */
static void a_failed_operation_stays(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        begin(seed);
        cudaStream_t stream = new_stream();
        void *memory = new_memory(64), *more;
        zb_standin_fail_operation(0, cudaErrorIllegalAddress);
        cudaError_t error = cudaMemsetAsync(memory, 0, 64, stream);
        if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
        assert_int_equal(error, cudaErrorIllegalAddress);
        assert_int_equal(cudaMalloc(&more, 64), cudaErrorIllegalAddress);
        assert_int_equal(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
        assert_int_equal(cudaFree(memory), cudaErrorIllegalAddress);
        assert_int_equal(cudaStreamDestroy(stream), cudaErrorIllegalAddress);
        end_clean();
    }
}

/* What was queued behind it does not run, on no stream of the device. */
static void nothing_runs_behind_a_failure(void **state)
{
    (void)state;
    int notes[2], count = 0;
    note n = { notes, &count, 0 };
    const zb_standin_options lazy = { .device_count = 1, .schedule = ZB_STANDIN_LAZY };
    assert_int_equal(zb_standin_begin(&lazy), ZB_OK);
    cudaStream_t a = new_stream(), b = new_stream();
    void *memory = new_memory(64);
    zb_standin_fail_operation(0, cudaErrorLaunchFailure);
    OK(cudaMemsetAsync(memory, 0, 64, a));
    queue_note(a, &n);
    queue_note(b, &n);
    assert_int_equal(cudaStreamSynchronize(a), cudaErrorLaunchFailure);
    assert_int_equal(cudaStreamSynchronize(b), cudaErrorLaunchFailure);
    (void)cudaFree(memory);
    (void)cudaStreamDestroy(a);
    (void)cudaStreamDestroy(b);
    end_clean();
    assert_int_equal(count, 0);
}

static void leaks_are_found(void **state)
{
    (void)state;
    begin(1);
    (void)new_memory(64);
    end_with(ZB_INTERNAL, "leak: allocation 0 (64 bytes, device 0)");
    begin(1);
    (void)new_stream();
    end_with(ZB_INTERNAL, "leak: stream 0");
    begin(1);
    (void)new_event();
    end_with(ZB_INTERNAL, "leak: event 0");
}

/* --- hosts --- */

static char *shared_memory;
static int shared_by_both;

/* Fills a half of the shared memory, or all of it, and waits for that. */
static zb_status rank_fills(void *user, zb_comm *comm)
{
    (void)user;
    cudaStream_t stream = new_stream();
    OK(cudaMemsetAsync(shared_memory + (shared_by_both ? 0 : 32 * comm->rank), 0, 32, stream));
    OK(cudaStreamSynchronize(stream));
    OK(cudaStreamDestroy(stream));
    return ZB_OK;
}

static void run_ranks(zb_rank_main *main_of_rank)
{
    zb_sim *sim;
    const zb_sim_options options = { .world_size = 2, .workers = 1 };
    assert_int_equal(zb_sim_create(&options, &sim), ZB_OK);
    assert_int_equal(zb_sim_run(sim, main_of_rank, NULL), ZB_OK);
    zb_sim_destroy(sim);
}

/* Whoever starts ranks and waits for them may give them memory, and free it afterwards. */
static void ranks_use_what_the_host_made(void **state)
{
    (void)state;
    begin(1);
    shared_memory = new_memory(64);
    shared_by_both = 0;
    run_ranks(rank_fills);
    run_ranks(rank_fills);
    OK(cudaFree(shared_memory));
    end_clean();
}

/* That one rank has waited is nothing that another one knows. */
static void ranks_are_not_ordered(void **state)
{
    (void)state;
    begin(1);
    shared_memory = new_memory(64);
    shared_by_both = 1;
    run_ranks(rank_fills);
    OK(cudaFree(shared_memory));
    end_with(ZB_RACE, "on stream 0 of rank ");
}

static void *thread_fills(void *user)
{
    (void)user;
    cudaStream_t stream = new_stream();
    OK(cudaMemsetAsync(shared_memory, 0, 32, stream));
    OK(cudaStreamSynchronize(stream));
    OK(cudaStreamDestroy(stream));
    return NULL;
}

static void run_thread(void)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, thread_fills, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* Nobody sees that a thread has been waited for, but who is told. */
static void threads_are_ordered_when_they_say_so(void **state)
{
    (void)state;
    begin(1);
    shared_memory = new_memory(64);
    run_thread();
    zb_standin_join_hosts();
    OK(cudaFree(shared_memory));
    end_clean();
    begin(1);
    shared_memory = new_memory(64);
    run_thread();
    OK(cudaFree(shared_memory));
    end_with(ZB_RACE, "and cudaFree on the host writes");
}

static const char *name_of_stream(void *user, cudaStream_t stream)
{
    return stream == *(cudaStream_t *)user ? "compute" : NULL;
}

static void streams_have_names(void **state)
{
    (void)state;
    cudaStream_t named = NULL;
    const zb_standin_options options = { .device_count = 1, .stream_name = name_of_stream, .user = &named };
    assert_int_equal(zb_standin_begin(&options), ZB_OK);
    cudaStream_t other = new_stream();
    named = new_stream();
    void *memory = new_memory(64);
    OK(cudaMemsetAsync(memory, 0, 8, named));
    OK(cudaMemsetAsync(memory, 0, 8, other));
    OK(cudaDeviceSynchronize());
    OK(cudaFree(memory));
    OK(cudaStreamDestroy(named));
    OK(cudaStreamDestroy(other));
    end_with(ZB_RACE,
             "cudaMemsetAsync (pointer) on compute writes and cudaMemsetAsync (pointer) on stream 0 writes");
}

/* --- operations that wait for one another, as collectives do --- */

typedef struct meeting {
    int came[2], done;
} meeting;
typedef struct part {
    meeting *meeting;
    int rank;
} part;

static zb_standin_progress meet(void *user)
{
    const part *p = user;
    p->meeting->came[p->rank] = 1;
    if (!p->meeting->came[1 - p->rank]) return ZB_STANDIN_NOT_YET;
    p->meeting->done++;
    return ZB_STANDIN_DONE;
}

static meeting the_meeting;
static int second_rank_comes;

static zb_status rank_main(void *user, zb_comm *comm)
{
    (void)user;
    part p = { .meeting = &the_meeting, .rank = comm->rank };
    cudaStream_t stream = new_stream();
    const zb_standin_operation operation = { .name = "meet", .try_run = meet, .user = &p };
    if (comm->rank == 0 || second_rank_comes) OK(zb_standin_enqueue(stream, &operation));
    const cudaError_t error = cudaStreamSynchronize(stream);
    const zb_status status = error == cudaSuccess ? ZB_OK
                                                  : zb_fail(ZB_DEADLOCK, "%s", cudaGetErrorString(error));
    OK(cudaStreamDestroy(stream));
    return status;
}

static zb_status run_meeting(uint64_t seed, int workers, int both)
{
    zb_sim *sim;
    const zb_sim_options options = { .world_size = 2, .workers = workers, .seed = seed };
    the_meeting = (meeting){ .done = 0 };
    second_rank_comes = both;
    assert_int_equal(zb_sim_create(&options, &sim), ZB_OK);
    const zb_status status = zb_sim_run(sim, rank_main, NULL);
    zb_sim_destroy(sim);
    return status;
}

static void ranks_meet(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 50; seed++) {
        begin(seed);
        assert_int_equal(run_meeting(seed, 1 + (int)(seed % 2), 1), ZB_OK);
        assert_int_equal(the_meeting.done, 2);
        end_clean();
    }
}

/* At once, long before the time is up after which any wait is taken for a deadlock. */
static void a_deadlock_is_reported(void **state)
{
    (void)state;
    const zb_standin_options options = { .device_count = 1, .stall_ms = 1000000 };
    assert_int_equal(zb_standin_begin(&options), ZB_OK);
    assert_int_equal(run_meeting(1, 1, 0), ZB_DEADLOCK);
    end_with(ZB_DEADLOCK, "stream 0 of rank 0 stands at meet");
}

static meeting yielded_meeting;

static void other_comes(void)
{
    yielded_meeting.came[1] = 1;
}

static int other_came(void *user)
{
    const meeting *m = user;
    return m->came[1];
}

/* A host that waits calls what it was told to; it waits for operations as for anything else. */
static void a_waiting_host_yields(void **state)
{
    (void)state;
    part p = { .meeting = &yielded_meeting, .rank = 0 };
    const zb_standin_operation operation = { .name = "meet", .try_run = meet, .user = &p };
    begin(1);
    zb_standin_set_yield(other_comes);
    cudaStream_t stream = new_stream();
    OK(zb_standin_enqueue(stream, &operation));
    OK(cudaStreamSynchronize(stream));
    assert_int_equal(yielded_meeting.done, 1);
    yielded_meeting = (meeting){ .done = 0 };
    OK(zb_standin_wait(other_came, &yielded_meeting, "the other one"));
    assert_true(zb_standin_count().yields > 0);
    OK(cudaStreamDestroy(stream));
    end_clean();
}

/* A thread outside cannot know whether somebody else will come. */
static void a_stall_is_reported(void **state)
{
    (void)state;
    meeting nobody_comes = { .done = 0 };
    part p = { .meeting = &nobody_comes, .rank = 0 };
    const zb_standin_operation operation = { .name = "meet", .try_run = meet, .user = &p };
    const zb_standin_options options = { .device_count = 1, .stall_ms = 50 };
    assert_int_equal(zb_standin_begin(&options), ZB_OK);
    cudaStream_t stream = new_stream();
    OK(zb_standin_enqueue(stream, &operation));
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorTimeout);
    OK(cudaStreamDestroy(stream));
    end_with(ZB_DEADLOCK, "cudaStreamSynchronize can never end: stream 0 stands at meet");
}

int main(void)
{
    enum { MISUSES = sizeof misuses / sizeof misuses[0] };
    const struct CMUnitTest plain[] = {
        cmocka_unit_test(streams_are_not_ordered),
        cmocka_unit_test(events_order),
        cmocka_unit_test(a_wait_is_for_the_recording_before_it),
        cmocka_unit_test(a_destroyed_stream_finishes),
        cmocka_unit_test(queries_make_progress),
        cmocka_unit_test(the_default_stream_waits_for_blocking_ones),
        cmocka_unit_test(copies_and_kernels_compute),
        cmocka_unit_test(memory_is_poisoned),
        cmocka_unit_test(the_host_changes_what_is_being_copied),
        cmocka_unit_test(a_place_on_the_host_is_passed_through),
        cmocka_unit_test(a_host_cannot_touch_device_memory),
        cmocka_unit_test(memory_runs_out_and_comes_back),
        cmocka_unit_test(arguments_are_checked),
        cmocka_unit_test(launches_are_checked_as_on_the_cpu),
        cmocka_unit_test(without_a_gpu),
        cmocka_unit_test(every_call_can_fail),
        cmocka_unit_test(a_call_can_fail_by_name),
        cmocka_unit_test(a_failed_operation_stays),
        cmocka_unit_test(nothing_runs_behind_a_failure),
        cmocka_unit_test(leaks_are_found),
        cmocka_unit_test(ranks_use_what_the_host_made),
        cmocka_unit_test(ranks_are_not_ordered),
        cmocka_unit_test(threads_are_ordered_when_they_say_so),
        cmocka_unit_test(streams_have_names),
        cmocka_unit_test(a_waiting_host_yields),
        cmocka_unit_test(ranks_meet),
        cmocka_unit_test(a_deadlock_is_reported),
        cmocka_unit_test(a_stall_is_reported),
    };
    struct CMUnitTest rows[MISUSES];
    for (size_t i = 0; i < MISUSES; i++)
        rows[i] = (struct CMUnitTest){ misuses[i].name, check_misuse, NULL, NULL,
                                       (void *)(uintptr_t)&misuses[i] };
    const int failed = cmocka_run_group_tests_name("runtime", plain, NULL, NULL);
    return failed + cmocka_run_group_tests_name("misuse", rows, NULL, NULL);
}
