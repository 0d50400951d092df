/*
 * See simt.h. A thread is READY, waits at the block's barrier or for lanes of its warp, or has LEFT. The
 * scheduler resumes READY threads round after round. The last lane to arrive computes what all lanes of an
 * exchange receive. When nobody is READY, the barrier opens if everybody waits there at one place; otherwise
 * nobody could ever go on, and the launch fails.
 */
#include "sim/simt/simt.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim/fiber.h"

enum {
    THREADS_MAX = 1024,
    WARP = 32,
    STACK_BYTES = 256 * 1024,
    SHARED_MAX = 16,
    SHARED_STATIC_BYTES_MAX = 48 * 1024,
    SHARED_BYTES_MAX = 227 * 1024, /* of compute capability 9.0; others have less */
    SHARED_ALIGNMENT = 128,
    POISON = 0xff,
    GUARD = 0xa5,
    GUARD_BYTES = 128
};

typedef enum thread_state { READY, AT_BARRIER, AT_EXCHANGE, LEFT } thread_state;

typedef struct async_copy {
    void *to;
    const void *from;
    size_t bytes, room;
    unsigned group;
} async_copy;

struct sim_simt_thread {
    sim_simt_place place;
    unsigned number; /* in the block */
    thread_state state;
    const char *file; /* where it waits */
    int line;
    sim_simt_exchange exchange;
    unsigned mask, from;
    uint64_t value; /* given to the exchange, then received from it */
    async_copy *copies;
    size_t copy_count, copy_room;
    unsigned copy_group; /* the one that the next commit closes */
    sim_fiber fiber;
};

typedef struct shared_variable {
    const void *tag;
    unsigned char *data;
    size_t bytes;
} shared_variable;

static struct simt {
    pthread_mutex_t mutex; /* held during a launch */
    pthread_t owner;       /* the OS thread that the fibers belong to */
    uint64_t random;
    const sim_simt_launch *launch;
    sim_simt_thread *threads[THREADS_MAX];
    unsigned pool_count; /* threads with a fiber */
    unsigned thread_count, left_count;
    sim_simt_thread *self; /* the running one; NULL: the scheduler */
    sim_fiber scheduler;
    shared_variable shared[SHARED_MAX]; /* the first is the dynamic one, where there is one */
    size_t shared_count, shared_bytes;
    zb_status status;
} simt = { .mutex = PTHREAD_MUTEX_INITIALIZER, .random = 1 };

const sim_simt_place *sim_simt_here;

/* --- random orders (xorshift64*) --- */

void sim_simt_set_seed(uint64_t seed)
{
    pthread_mutex_lock(&simt.mutex);
    simt.random = seed * 2 + 1; /* never 0 */
    pthread_mutex_unlock(&simt.mutex);
}

static uint64_t random_below(uint64_t bound)
{
    simt.random ^= simt.random >> 12;
    simt.random ^= simt.random << 25;
    simt.random ^= simt.random >> 27;
    return (simt.random * 0x2545f4914f6cdd1d >> 32) * bound >> 32;
}

/* --- threads --- */

static void suspend(sim_simt_thread *thread)
{
    sim_fiber_switch(&thread->fiber, &simt.scheduler);
}

static void check_copies_arrived(const sim_simt_thread *thread)
{
    if (thread->copy_count > 0)
        sim_simt_fail(simt.launch->file, simt.launch->line,
                      "leaves %zu asynchronous copies that it has not waited for", thread->copy_count);
}

/* A fiber serves one thread of each block. */
static void thread_main(void *argument)
{
    sim_simt_thread *thread = argument;
    for (;;) {
        simt.launch->body(simt.launch->arguments);
        check_copies_arrived(thread);
        thread->state = LEFT;
        simt.left_count++;
        suspend(thread);
    }
}

static zb_status add_thread(unsigned number)
{
    sim_simt_thread *thread = calloc(1, sizeof *thread);
    if (thread == NULL) return zb_fail(ZB_NO_MEMORY, "a thread of a kernel: %zu bytes", sizeof *thread);
    thread->number = number;
    const zb_status status = sim_fiber_create(&thread->fiber, STACK_BYTES, thread_main, thread);
    if (status != ZB_OK) {
        free(thread);
        return status;
    }
    simt.threads[simt.pool_count++] = thread;
    return ZB_OK;
}

static void drop_threads(void)
{
    for (unsigned i = 0; i < simt.pool_count; i++) {
        sim_fiber_destroy(&simt.threads[i]->fiber);
        free(simt.threads[i]->copies);
        free(simt.threads[i]);
    }
    simt.pool_count = 0;
}

static zb_status prepare_threads(const sim_simt_launch *launch)
{
    if (!pthread_equal(simt.owner, pthread_self())) drop_threads();
    simt.owner = pthread_self();
    simt.thread_count = launch->block.x * launch->block.y * launch->block.z;
    while (simt.pool_count < simt.thread_count) ZB_TRY(add_thread(simt.pool_count));
    for (unsigned i = 0; i < simt.thread_count; i++) {
        sim_simt_place *place = &simt.threads[i]->place;
        place->block_dim = launch->block, place->grid_dim = launch->grid;
        place->thread = (sim_simt_dim){ i % launch->block.x, i / launch->block.x % launch->block.y,
                                        i / launch->block.x / launch->block.y };
    }
    return ZB_OK;
}

void sim_simt_fail(const char *file, int line, const char *format, ...)
{
    char reason[512];
    va_list list;
    va_start(list, format);
    vsnprintf(reason, sizeof reason, format, list);
    va_end(list);
    sim_simt_thread *self = simt.self;
    simt.status = zb_fail(ZB_INTERNAL,
                          "kernel %s, launched at %s:%d: thread %u of block (%u, %u, %u), at %s:%d: %s",
                          simt.launch->kernel, simt.launch->file, simt.launch->line, self->number,
                          self->place.block.x, self->place.block.y, self->place.block.z, file, line, reason);
    suspend(self); /* for good: its fiber is dropped */
    ZB_ASSERT(!"a thread that failed has been resumed");
    abort();
}

/* --- waiting for one another --- */

static void wait_as(thread_state state, const char *file, int line)
{
    sim_simt_thread *self = simt.self;
    self->state = state;
    self->file = file;
    self->line = line;
    suspend(self);
}

void sim_simt_barrier(const char *file, int line)
{
    wait_as(AT_BARRIER, file, line);
}

static sim_simt_thread *lane_of(const sim_simt_thread *thread, unsigned lane)
{
    const unsigned number = thread->number / WARP * WARP + lane;
    return number < simt.thread_count ? simt.threads[number] : NULL;
}

static int takes_part(const sim_simt_thread *self, const sim_simt_thread *other)
{
    return other->state == AT_EXCHANGE && other->mask == self->mask && other->line == self->line &&
           other->exchange == self->exchange && strcmp(other->file, self->file) == 0;
}

/* Gives every lane its result, once all lanes of the mask that exist wait here. */
static void try_exchange(sim_simt_thread *self)
{
    uint64_t values[WARP], ballot = 0;
    unsigned present = 0;
    for (unsigned l = 0; l < WARP; l++) {
        const sim_simt_thread *other = lane_of(self, l);
        if (!(self->mask >> l & 1) || other == NULL) continue;
        if (!takes_part(self, other)) return;
        values[l] = other->value;
        ballot |= (uint64_t)(other->value != 0) << l;
        present |= 1u << l;
    }
    for (unsigned l = 0; l < WARP; l++) {
        if (!(present >> l & 1)) continue;
        sim_simt_thread *other = lane_of(self, l);
        const int found = present >> (other->from % WARP) & 1;
        other->value = self->exchange == SIM_SIMT_SYNC     ? 0
                       : self->exchange == SIM_SIMT_BALLOT ? ballot
                       : found                             ? values[other->from % WARP]
                                                           : UINT64_MAX;
        other->state = READY;
    }
}

uint64_t sim_simt_warp(sim_simt_exchange exchange, unsigned mask, uint64_t value, unsigned from,
                       const char *file, int line)
{
    sim_simt_thread *self = simt.self;
    if (!(mask >> (self->number % WARP) & 1))
        sim_simt_fail(file, line, "takes part in an exchange of the lanes %08x, which leave it out", mask);
    self->exchange = exchange, self->mask = mask, self->value = value, self->from = from;
    self->state = AT_EXCHANGE, self->file = file, self->line = line;
    try_exchange(self);
    if (self->state == AT_EXCHANGE) suspend(self);
    return self->value;
}

/* --- shared memory --- */

static shared_variable *add_shared(const void *tag, size_t bytes)
{
    const size_t room = (bytes + GUARD_BYTES + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT;
    shared_variable *variable = &simt.shared[simt.shared_count];
    variable->data = aligned_alloc(SHARED_ALIGNMENT, room);
    if (variable->data == NULL) return NULL;
    memset(variable->data, POISON, bytes);
    memset(variable->data + bytes, GUARD, GUARD_BYTES);
    variable->tag = tag;
    variable->bytes = bytes;
    simt.shared_count++;
    simt.shared_bytes += bytes;
    return variable;
}

void *sim_simt_shared(const void *tag, size_t bytes)
{
    for (size_t i = 0; i < simt.shared_count; i++)
        if (simt.shared[i].tag == tag && simt.shared[i].bytes == bytes) return simt.shared[i].data;
    const size_t fixed_bytes = simt.shared_bytes - simt.launch->shared_bytes + bytes;
    if (simt.shared_count == SHARED_MAX)
        sim_simt_fail(simt.launch->file, simt.launch->line, "has more than %d shared variables", SHARED_MAX);
    if (fixed_bytes > SHARED_STATIC_BYTES_MAX || simt.shared_bytes + bytes > SHARED_BYTES_MAX)
        sim_simt_fail(simt.launch->file, simt.launch->line,
                      "has %zu bytes of shared variables; want at most %d, and %d with %zu dynamic bytes",
                      fixed_bytes, SHARED_STATIC_BYTES_MAX, SHARED_BYTES_MAX, simt.launch->shared_bytes);
    shared_variable *variable = add_shared(tag, bytes);
    if (variable == NULL)
        sim_simt_fail(simt.launch->file, simt.launch->line, "no memory for a shared variable of %zu bytes",
                      bytes);
    return variable->data;
}

void *sim_simt_dynamic_shared(void)
{
    if (simt.launch->shared_bytes == 0)
        sim_simt_fail(simt.launch->file, simt.launch->line,
                      "uses dynamic shared memory, of which the launch has none");
    return simt.shared[0].data;
}

static void poison_shared(void)
{
    for (size_t i = 0; i < simt.shared_count; i++) memset(simt.shared[i].data, POISON, simt.shared[i].bytes);
}

static zb_status check_shared_guards(sim_simt_dim block)
{
    for (size_t i = 0; i < simt.shared_count; i++)
        for (size_t b = 0; b < GUARD_BYTES; b++)
            if (simt.shared[i].data[simt.shared[i].bytes + b] != GUARD)
                return zb_fail(ZB_INTERNAL,
                               "kernel %s, launched at %s:%d: block (%u, %u, %u) wrote %zu bytes behind a "
                               "shared variable of %zu",
                               simt.launch->kernel, simt.launch->file, simt.launch->line, block.x, block.y,
                               block.z, b, simt.shared[i].bytes);
    return ZB_OK;
}

static void drop_shared(void)
{
    for (size_t i = 0; i < simt.shared_count; i++) free(simt.shared[i].data);
    simt.shared_count = simt.shared_bytes = 0;
}

/* --- asynchronous copies --- */

void sim_simt_copy_async(void *to, const void *from, size_t bytes, size_t room)
{
    sim_simt_thread *self = simt.self;
    if (self->copy_count == self->copy_room) {
        const size_t more = self->copy_room * 2 + 16;
        async_copy *copies = realloc(self->copies, more * sizeof *copies);
        if (copies == NULL)
            sim_simt_fail(simt.launch->file, simt.launch->line, "no memory for %zu asynchronous copies",
                          more);
        self->copies = copies, self->copy_room = more;
    }
    self->copies[self->copy_count++] = (async_copy){ to, from, bytes, room, self->copy_group };
}

void sim_simt_copy_commit(void)
{
    simt.self->copy_group++;
}

void sim_simt_copy_wait(unsigned groups)
{
    sim_simt_thread *self = simt.self;
    size_t kept = 0;
    for (size_t i = 0; i < self->copy_count; i++) {
        const async_copy copy = self->copies[i];
        if (copy.group + groups < self->copy_group) {
            if (copy.bytes > 0) memcpy(copy.to, copy.from, copy.bytes);
            memset((char *)copy.to + copy.bytes, 0, copy.room - copy.bytes);
        } else {
            self->copies[kept++] = copy;
        }
    }
    self->copy_count = kept;
}

/* --- the scheduler --- */

static void resume(sim_simt_thread *thread)
{
    simt.self = thread;
    sim_simt_here = &thread->place;
    sim_fiber_switch(&simt.scheduler, &thread->fiber);
    simt.self = NULL;
}

/* One round over the threads, from a random one on, up or down. Returns how many were READY. */
static unsigned run_round(const unsigned *order)
{
    const unsigned n = simt.thread_count, first = (unsigned)random_below(n), down = (unsigned)random_below(2);
    unsigned resumed = 0;
    for (unsigned i = 0; i < n && simt.status == ZB_OK; i++) {
        sim_simt_thread *thread = simt.threads[order[(first + (down ? n - i : i)) % n]];
        if (thread->state != READY) continue;
        resume(thread);
        resumed++;
    }
    return resumed;
}

/* Nobody is READY: opens the barrier, or says why nobody can go on. */
static zb_status open_barrier(void)
{
    const sim_simt_thread *one = NULL, *other = NULL;
    for (unsigned i = 0; i < simt.thread_count; i++) {
        const sim_simt_thread *thread = simt.threads[i];
        if (thread->state == LEFT) continue;
        if (one == NULL) one = thread;
        if (thread->state != one->state || thread->line != one->line || strcmp(thread->file, one->file) != 0)
            other = thread;
    }
    if (one->state == AT_BARRIER && other == NULL && simt.left_count == 0) {
        for (unsigned i = 0; i < simt.thread_count; i++) simt.threads[i]->state = READY;
        return ZB_OK;
    }
    if (other == NULL) other = one;
    return zb_fail(ZB_INTERNAL,
                   "kernel %s, launched at %s:%d: the threads of block (%u, %u, %u) diverge: %u of %u have "
                   "left, thread %u waits %s "
                   "at %s:%d, thread %u %s at %s:%d",
                   simt.launch->kernel, simt.launch->file, simt.launch->line, one->place.block.x,
                   one->place.block.y, one->place.block.z, simt.left_count, simt.thread_count, one->number,
                   one->state == AT_BARRIER ? "for the block" : "for its warp", one->file, one->line,
                   other->number, other->state == AT_BARRIER ? "for the block" : "for its warp", other->file,
                   other->line);
}

static zb_status run_block(sim_simt_dim block, const unsigned *order)
{
    poison_shared();
    simt.left_count = 0;
    for (unsigned i = 0; i < simt.thread_count; i++) {
        simt.threads[i]->state = READY;
        simt.threads[i]->place.block = block;
        simt.threads[i]->copy_group = 0;
    }
    while (simt.left_count < simt.thread_count) {
        const unsigned resumed = run_round(order);
        if (simt.status != ZB_OK) return simt.status;
        if (resumed == 0) ZB_TRY(open_barrier());
    }
    return check_shared_guards(block);
}

static void shuffle(unsigned *order, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        const unsigned j = (unsigned)random_below(i + 1);
        order[i] = order[j];
        order[j] = i;
    }
}

static uint64_t greatest_common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        const uint64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

/* All blocks, from a random one on, in steps that have no divisor in common with their number. */
static zb_status run_blocks(const sim_simt_launch *launch)
{
    unsigned order[THREADS_MAX];
    const uint64_t plane = (uint64_t)launch->grid.x * launch->grid.y, count = plane * launch->grid.z;
    uint64_t step = 1 + random_below(count), at = random_below(count);
    while (greatest_common_divisor(step, count) != 1) step--;
    for (uint64_t i = 0; i < count; i++, at = (at + step) % count) {
        shuffle(order, simt.thread_count);
        const sim_simt_dim block = { (unsigned)(at % launch->grid.x), (unsigned)(at % plane / launch->grid.x),
                                     (unsigned)(at / plane) };
        ZB_TRY(run_block(block, order));
    }
    return ZB_OK;
}

static zb_status check_sizes(const sim_simt_launch *launch)
{
    const sim_simt_dim g = launch->grid, b = launch->block;
    if (g.x < 1 || g.x > 0x7fffffff || g.y < 1 || g.y > 65535 || g.z < 1 || g.z > 65535)
        return zb_fail(ZB_INVALID_ARGUMENT, "kernel %s, launched at %s:%d: a grid of %u x %u x %u blocks",
                       launch->kernel, launch->file, launch->line, g.x, g.y, g.z);
    if (b.x < 1 || b.x > THREADS_MAX || b.y < 1 || b.y > THREADS_MAX || b.z < 1 || b.z > 64 ||
        b.x * b.y * b.z > THREADS_MAX)
        return zb_fail(ZB_INVALID_ARGUMENT, "kernel %s, launched at %s:%d: a block of %u x %u x %u threads",
                       launch->kernel, launch->file, launch->line, b.x, b.y, b.z);
    if (launch->shared_bytes > SHARED_BYTES_MAX)
        return zb_fail(ZB_INVALID_ARGUMENT,
                       "kernel %s, launched at %s:%d: %zu bytes of dynamic shared memory; want at most %d",
                       launch->kernel, launch->file, launch->line, launch->shared_bytes, SHARED_BYTES_MAX);
    return ZB_OK;
}

static zb_status run_locked(const sim_simt_launch *launch)
{
    ZB_TRY(check_sizes(launch));
    ZB_TRY(prepare_threads(launch));
    sim_fiber_adopt(&simt.scheduler);
    simt.launch = launch;
    simt.status = ZB_OK;
    if (launch->shared_bytes > 0 && add_shared(&simt, launch->shared_bytes) == NULL)
        return zb_fail(ZB_NO_MEMORY, "%zu bytes of shared memory", launch->shared_bytes);
    const zb_status status = run_blocks(launch);
    if (status != ZB_OK) drop_threads(); /* they stand somewhere in the kernel */
    return status;
}

zb_status sim_simt_run(const sim_simt_launch *launch)
{
    pthread_mutex_lock(&simt.mutex);
    const zb_status status = run_locked(launch);
    drop_shared();
    pthread_mutex_unlock(&simt.mutex);
    return status;
}
