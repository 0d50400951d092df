/*
 * Fibers with mapped stacks, guard pages, and the annotations that the sanitizers need. Switching is a few
 * instructions on x86-64; elsewhere it is swapcontext(), which asks the kernel for the signal mask each time.
 */
#include "sim/fiber.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define FIBER_TSAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define FIBER_ASAN 1
#endif
#ifdef __SANITIZE_THREAD__
#define FIBER_TSAN 1
#endif

#ifdef FIBER_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef FIBER_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* Linux 6.13 and later: a guard that does not split the mapping, so that vm.max_map_count does not limit the
 * number of stacks. */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

/* A new fiber finds itself here: nothing is passed to enter_fiber(). */
static _Thread_local sim_fiber *starting_fiber;

static void announce_switch(sim_fiber *from, sim_fiber *to)
{
    to->resumed_by = from;
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef FIBER_TSAN
    __tsan_switch_to_fiber(to->tsan_fiber, 0);
#endif
}

static void announce_arrival(sim_fiber *self)
{
#ifdef FIBER_ASAN
    /* Tells where an adopted fiber's stack lies, which nobody knew before. */
    sim_fiber *previous = self->resumed_by;
    __sanitizer_finish_switch_fiber(self->fake_stack, &previous->stack, &previous->stack_bytes);
#else
    (void)self;
#endif
}

static void enter_fiber(void)
{
    sim_fiber *self = starting_fiber;
    announce_arrival(self);
    self->entry(self->argument);
    ZB_ASSERT(!"a fiber's entry returned");
}

/* --- the switch itself --- */

#ifdef SIM_FIBER_X86_64
/*
 * What a function must leave as it was: six registers and the two control words of floating point. They lie
 * on the suspended fiber's stack, below the address that it goes on from.
 */
void sim_fiber_swap(void **from_stack_pointer, void *to_stack_pointer);
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden sim_fiber_swap\n"
        ".globl sim_fiber_swap\n"
        ".type sim_fiber_swap, @function\n"
        "sim_fiber_swap:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    subq $8, %rsp\n"
        "    stmxcsr (%rsp)\n"
        "    fnstcw 4(%rsp)\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    ldmxcsr (%rsp)\n"
        "    fldcw 4(%rsp)\n"
        "    addq $8, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size sim_fiber_swap, . - sim_fiber_swap\n");

/* A stack as if enter_fiber() had been called, from nowhere, and had been suspended before its first
 * instruction. */
static void prepare_entry(sim_fiber *fiber)
{
    enum { WORDS = 9, CONTROL = 0, ENTRY = 7 };
    uint64_t *top = (uint64_t *)(((uintptr_t)fiber->stack + fiber->stack_bytes) & ~(uintptr_t)15);
    uint64_t *words = top - WORDS; /* at the entry the stack pointer is 8 short of a multiple of 16 */
    memset(words, 0, WORDS * sizeof *words);
    uint32_t mxcsr;
    uint16_t control;
    __asm__("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(control));
    words[CONTROL] = mxcsr | (uint64_t)control << 32;
    words[ENTRY] = (uint64_t)(uintptr_t)enter_fiber;
    fiber->stack_pointer = words;
}

static void swap(sim_fiber *from, const sim_fiber *to)
{
    sim_fiber_swap(&from->stack_pointer, to->stack_pointer);
}
#else
static void prepare_entry(sim_fiber *fiber)
{
    ZB_ASSERT(getcontext(&fiber->context) == 0);
    fiber->context.uc_stack.ss_sp = (void *)fiber->stack;
    fiber->context.uc_stack.ss_size = fiber->stack_bytes;
    makecontext(&fiber->context, enter_fiber, 0);
}

static void swap(sim_fiber *from, const sim_fiber *to)
{
    ZB_ASSERT(swapcontext(&from->context, &to->context) == 0);
}
#endif

void sim_fiber_switch(sim_fiber *from, sim_fiber *to)
{
    /* Nothing thread-local is read after the swap: between two runs of a world the thread may be another. */
    starting_fiber = to;
    announce_switch(from, to);
    swap(from, to);
    announce_arrival(from);
}

void sim_fiber_adopt(sim_fiber *fiber)
{
    memset(fiber, 0, sizeof *fiber);
#ifdef FIBER_TSAN
    fiber->tsan_fiber = __tsan_get_current_fiber();
#endif
}

static zb_status map_stack(sim_fiber *fiber, size_t stack_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = (stack_bytes + page - 1) / page * page + page;
    void *mapping = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                         0);
    if (mapping == MAP_FAILED)
        return zb_fail(ZB_NO_MEMORY, "a stack of %zu bytes: mmap: %s", stack_bytes, strerror(errno));
    if (madvise(mapping, page, MADV_GUARD_INSTALL) != 0 && mprotect(mapping, page, PROT_NONE) != 0) {
        int error = errno;
        munmap(mapping, bytes);
        return zb_fail(ZB_NO_MEMORY, "the guard page of a stack: mprotect: %s (see vm.max_map_count)",
                       strerror(error));
    }
    fiber->mapping = mapping;
    fiber->mapping_bytes = bytes;
    fiber->stack = (char *)mapping + page;
    fiber->stack_bytes = bytes - page;
    return ZB_OK;
}

zb_status sim_fiber_create(sim_fiber *fiber, size_t stack_bytes, sim_fiber_entry *entry, void *argument)
{
    memset(fiber, 0, sizeof *fiber);
    fiber->entry = entry;
    fiber->argument = argument;
    ZB_TRY(map_stack(fiber, stack_bytes));
    prepare_entry(fiber);
#ifdef FIBER_TSAN
    fiber->tsan_fiber = __tsan_create_fiber(0);
#endif
    return ZB_OK;
}

void sim_fiber_destroy(sim_fiber *fiber)
{
    if (fiber->mapping == NULL) return;
#ifdef FIBER_TSAN
    __tsan_destroy_fiber(fiber->tsan_fiber);
#endif
#ifdef FIBER_ASAN
    ASAN_UNPOISON_MEMORY_REGION(fiber->stack, fiber->stack_bytes);
#endif
    munmap(fiber->mapping, fiber->mapping_bytes);
    fiber->mapping = NULL;
}
