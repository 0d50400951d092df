/*
 * Small programs on two streams, some with a race and some without. A racy one must be reported, with both
 * operations, whatever the order was that it ran in; a clean one never.
 */
#include <stdio.h>

#include "tests/standin/support.h"

enum { BYTES = 256, NUMEL = BYTES / sizeof(float), SEEDS = 30 };

/* What the programs work with: two streams, two events, two arrays on the device and two in pinned memory. */
static cudaStream_t a, b;
static cudaEvent_t e, f;
static float *x, *y;
static char *pinned;

static void fill(cudaStream_t stream, void *memory, size_t bytes)
{
    OK(cudaMemsetAsync(memory, 0, bytes, stream));
}

static void record(cudaEvent_t event, cudaStream_t stream)
{
    OK(cudaEventRecord(event, stream));
}

static void wait(cudaStream_t stream, cudaEvent_t event)
{
    OK(cudaStreamWaitEvent(stream, event, 0));
}

/* y += x */
static void add(cudaStream_t stream)
{
    launch_add(stream, y, x, NUMEL);
}

static void read_after_write_with_event(void)
{
    fill(a, x, BYTES), record(e, a), wait(b, e), add(b);
}

static void missing_event(void)
{
    fill(a, x, BYTES), add(b);
}

static void missing_wait(void)
{
    fill(a, x, BYTES), record(e, a), add(b);
}

static void event_on_the_wrong_stream(void)
{
    fill(a, x, BYTES), record(e, b), wait(b, e), add(b);
}

static void event_too_early(void)
{
    record(e, a), fill(a, x, BYTES), wait(b, e), add(b);
}

static void wait_on_the_wrong_stream(void)
{
    fill(a, x, BYTES), record(e, a), wait(a, e), add(b);
}

static void wait_too_late(void)
{
    fill(a, x, BYTES), record(e, a), add(b), wait(b, e);
}

static void wait_before_the_record(void)
{
    wait(b, e), fill(a, x, BYTES), record(e, a), add(b);
}

static void wrong_event(void)
{
    fill(a, x, BYTES), record(e, a), wait(b, f), add(b);
}

static void recorded_again_before_the_wait(void)
{
    fill(a, x, BYTES), record(e, a), record(e, b), wait(b, e), add(b);
}

static void by_the_host(void)
{
    fill(a, x, BYTES);
    OK(cudaStreamSynchronize(a));
    add(b);
}

static void by_an_event_and_the_host(void)
{
    fill(a, x, BYTES), record(e, a);
    OK(cudaEventSynchronize(e));
    add(b);
}

static void host_waits_for_the_wrong_stream(void)
{
    fill(a, x, BYTES);
    OK(cudaStreamSynchronize(b));
    add(b);
}

static void host_polls(void)
{
    fill(a, x, BYTES), record(e, a);
    while (cudaEventQuery(e) == cudaErrorNotReady) {}
    add(b);
}

static void host_polls_the_stream(void)
{
    fill(a, x, BYTES);
    while (cudaStreamQuery(a) == cudaErrorNotReady) {}
    add(b);
}

static void host_polls_once(void)
{
    fill(a, x, BYTES), record(e, a);
    if (cudaEventQuery(e) == cudaErrorNotReady) OK(cudaStreamSynchronize(a));
    add(b);
}

static void through_a_third_stream(void)
{
    cudaStream_t c = new_stream();
    fill(a, x, BYTES), record(e, a), wait(c, e), record(f, c), wait(b, f), add(b);
    OK(cudaStreamSynchronize(c));
    OK(cudaStreamDestroy(c));
}

static void both_read(void)
{
    launch_add(a, y, x, NUMEL);
    OK(cudaMemcpyAsync(pinned, x, BYTES, cudaMemcpyDeviceToHost, b));
}

static void write_after_read(void)
{
    add(a), fill(b, x, BYTES);
}

static void write_after_read_with_event(void)
{
    add(a), record(e, a), wait(b, e), fill(b, x, BYTES);
}

static void write_after_two_reads(void)
{
    add(a);
    OK(cudaMemcpyAsync(pinned, x, BYTES, cudaMemcpyDeviceToHost, b));
    record(e, b), wait(a, e), fill(a, x, BYTES);
}

static void write_after_the_second_read_only(void)
{
    cudaStream_t c = new_stream();
    add(a);
    OK(cudaMemcpyAsync(pinned, x, BYTES, cudaMemcpyDeviceToHost, b));
    record(e, b), wait(c, e), fill(c, x, BYTES);
    OK(cudaStreamSynchronize(c));
    OK(cudaStreamDestroy(c));
}

static void write_after_write(void)
{
    fill(a, x, BYTES), fill(b, x, BYTES);
}

static void two_kernels(void)
{
    add(a), add(b);
}

static void neighbours(void)
{
    fill(a, x, BYTES / 2), fill(b, (char *)x + BYTES / 2, BYTES / 2);
}

static void neighbours_that_overlap_by_a_byte(void)
{
    fill(a, x, BYTES / 2 + 1), fill(b, (char *)x + BYTES / 2, BYTES / 2);
}

static void a_part_of_what_is_written(void)
{
    fill(a, x, BYTES), fill(b, (char *)x + BYTES / 2, 1);
}

/* Stream a fills, stream b uses, two buffers in turn. Without the second event a refills what b still reads.
 */
static void ping_pong(int with_reuse_event)
{
    float *buffers[2] = { x, y };
    char *target = pinned;
    for (int i = 0; i < 4; i++) {
        float *buffer = buffers[i % 2];
        cudaEvent_t filled = new_event(), used = new_event();
        fill(a, buffer, BYTES), record(filled, a), wait(b, filled);
        OK(cudaMemcpyAsync(target, buffer, BYTES, cudaMemcpyDeviceToHost, b));
        record(used, b);
        if (with_reuse_event) wait(a, used);
        OK(cudaEventDestroy(filled));
        OK(cudaEventDestroy(used));
    }
}

static void ping_pong_with_both_events(void)
{
    ping_pong(1);
}

static void ping_pong_without_reuse_event(void)
{
    ping_pong(0);
}

static void early_free(void)
{
    float *memory = new_memory(BYTES);
    fill(a, memory, BYTES);
    OK(cudaFree(memory));
}

static void free_after_the_wait(void)
{
    float *memory = new_memory(BYTES);
    fill(a, memory, BYTES);
    OK(cudaStreamSynchronize(a));
    OK(cudaFree(memory));
}

static void free_in_another_stream(int with_event)
{
    void *memory;
    OK(cudaMallocAsync(&memory, BYTES, a));
    record(e, a), wait(b, e);
    fill(b, memory, BYTES);
    if (with_event) record(f, b), wait(a, f);
    OK(cudaFreeAsync(memory, a));
}

static void free_async_too_early(void)
{
    free_in_another_stream(0);
}

static void free_async_with_event(void)
{
    free_in_another_stream(1);
}

static void used_in_another_stream_than_allocated(void)
{
    void *memory;
    OK(cudaMallocAsync(&memory, BYTES, a));
    fill(b, memory, BYTES);
    record(e, b), wait(a, e);
    OK(cudaFreeAsync(memory, a));
}

static void host_copy_reuse(void)
{
    OK(cudaMemcpyAsync(pinned, x, BYTES, cudaMemcpyDeviceToHost, a));
    OK(cudaMemcpyAsync(pinned, y, BYTES, cudaMemcpyDeviceToHost, b));
}

static void host_copy_reuse_with_event(void)
{
    OK(cudaMemcpyAsync(pinned, x, BYTES, cudaMemcpyDeviceToHost, a));
    record(e, a), wait(b, e);
    OK(cudaMemcpyAsync(pinned, y, BYTES, cudaMemcpyDeviceToHost, b));
}

static void staging_is_refilled_while_it_is_sent(void)
{
    OK(cudaMemcpyAsync(x, pinned, BYTES, cudaMemcpyHostToDevice, a));
    OK(cudaMemcpyAsync(pinned, y, BYTES, cudaMemcpyDeviceToHost, b));
}

static void pinned_memory_freed_early(void)
{
    void *memory;
    OK(cudaMallocHost(&memory, BYTES));
    OK(cudaMemcpyAsync(x, memory, BYTES, cudaMemcpyHostToDevice, a));
    OK(cudaFreeHost(memory));
}

static zb_standin_progress run_at_once(void *user)
{
    (void)user;
    return ZB_STANDIN_DONE;
}

static void a_collective_beside_a_kernel(void)
{
    const zb_standin_access access = { .name = "recv", .pointer = x, .bytes = BYTES, .writes = 1 };
    const zb_standin_operation collective = {
        .name = "ncclBroadcast", .accesses = &access, .access_count = 1, .try_run = run_at_once
    };
    add(a);
    OK(zb_standin_enqueue(b, &collective));
}

typedef struct program {
    const char *name;
    void (*run)(void);
    const char *words; /* of the report; NULL: clean */
} program;

static const program programs[] = {
    { "write, event, read", read_after_write_with_event, NULL },
    { "missing event", missing_event,
      "race: cudaMemsetAsync (pointer) on stream 0 writes and add (x) on stream 1 reads bytes 0..255 of "
      "allocation 0" },
    { "missing wait", missing_wait, "add (x) on stream 1 reads" },
    { "event recorded on the wrong stream", event_on_the_wrong_stream, "add (x) on stream 1 reads" },
    { "event recorded too early", event_too_early, "add (x) on stream 1 reads" },
    { "wait placed on the wrong stream", wait_on_the_wrong_stream, "add (x) on stream 1 reads" },
    { "wait placed too late", wait_too_late, "add (x) on stream 1 reads" },
    { "wait before the event is recorded", wait_before_the_record, "add (x) on stream 1 reads" },
    { "wait for the wrong event", wrong_event, "add (x) on stream 1 reads" },
    { "event recorded again before the wait", recorded_again_before_the_wait, "add (x) on stream 1 reads" },
    { "ordered by the host", by_the_host, NULL },
    { "ordered by an event and the host", by_an_event_and_the_host, NULL },
    { "the host waits for the wrong stream", host_waits_for_the_wrong_stream, "add (x) on stream 1 reads" },
    { "ordered by a host that polls", host_polls, NULL },
    { "ordered by a host that polls the stream", host_polls_the_stream, NULL },
    { "ordered by a host that polls once, then waits", host_polls_once, NULL },
    { "ordered through a third stream", through_a_third_stream, NULL },
    { "both read", both_read, NULL },
    { "write after read", write_after_read,
      "add (x) on stream 0 reads and cudaMemsetAsync (pointer) on stream 1 writes" },
    { "write after read, with event", write_after_read_with_event, NULL },
    { "write after two reads, both waited for", write_after_two_reads, NULL },
    { "write after two reads, one waited for", write_after_the_second_read_only,
      "add (x) on stream 0 reads" },
    { "write after write", write_after_write,
      "cudaMemsetAsync (pointer) on stream 0 writes and cudaMemsetAsync" },
    { "two kernels", two_kernels, "add (y) on stream 0 writes and add (y) on stream 1 writes" },
    { "neighbours", neighbours, NULL },
    { "neighbours that overlap by a byte", neighbours_that_overlap_by_a_byte,
      "bytes 128..128 of allocation 0" },
    { "a part of what is written", a_part_of_what_is_written, "bytes 128..128 of allocation 0" },
    { "two buffers in turn", ping_pong_with_both_events, NULL },
    { "two buffers in turn, reused without event", ping_pong_without_reuse_event,
      "cudaMemcpyAsync (from) on stream 1 reads and cudaMemsetAsync (pointer) on stream 0 writes" },
    { "early free", early_free,
      "cudaMemsetAsync (pointer) on stream 0 writes and cudaFree on the host writes" },
    { "free after the wait", free_after_the_wait, NULL },
    { "free in stream order, too early", free_async_too_early, "and cudaFreeAsync on stream 0 writes" },
    { "free in stream order, with event", free_async_with_event, NULL },
    { "used in another stream than allocated", used_in_another_stream_than_allocated,
      "cudaMallocAsync on stream 0 writes and cudaMemsetAsync (pointer) on stream 1 writes" },
    { "two copies to one place on the host", host_copy_reuse,
      "cudaMemcpyAsync (to) on stream 1 writes bytes 0..255 of pinned" },
    { "two copies to one place on the host, with event", host_copy_reuse_with_event, NULL },
    { "host memory is overwritten while it is sent", staging_is_refilled_while_it_is_sent,
      "cudaMemcpyAsync (from) on stream 0 reads and cudaMemcpyAsync (to) on stream 1 writes" },
    { "a collective beside a kernel", a_collective_beside_a_kernel,
      "ncclBroadcast (recv) on stream 1 writes" },
    { "pinned memory is freed early", pinned_memory_freed_early, "and cudaFreeHost on the host writes" },
};

static void set_up(uint64_t seed)
{
    begin(seed);
    a = new_stream(), b = new_stream();
    e = new_event(), f = new_event();
    x = new_memory(BYTES), y = new_memory(BYTES);
    OK(cudaMallocHost((void **)&pinned, BYTES));
}

static void tear_down(void)
{
    OK(cudaDeviceSynchronize());
    OK(cudaFreeHost(pinned));
    OK(cudaFree(x));
    OK(cudaFree(y));
    OK(cudaEventDestroy(e));
    OK(cudaEventDestroy(f));
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
}

static void check_program(void **state)
{
    const program *p = *state;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        set_up(seed);
        p->run();
        tear_down();
        if (p->words == NULL)
            end_clean();
        else
            end_with(ZB_RACE, p->words);
    }
}

int main(void)
{
    enum { COUNT = sizeof programs / sizeof programs[0] };
    struct CMUnitTest tests[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        tests[i] = (struct CMUnitTest){ programs[i].name, check_program, NULL, NULL,
                                        (void *)(uintptr_t)&programs[i] };
    return cmocka_run_group_tests_name("races", tests, NULL, NULL);
}
