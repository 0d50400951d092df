/*
 * Fibers: stacks of their own that take turns on one OS thread. A fiber is created suspended and never
 * leaves the thread that resumes it while a function of its own is on its stack.
 */
#ifndef ZB_SIM_FIBER_H
#define ZB_SIM_FIBER_H

#include <stddef.h>
#include <zerobit/status.h>

/* Where the processor checks returns by a shadow stack, it is swapcontext() that changes that one too. */
#if defined(__x86_64__) && !(defined(__CET__) && (__CET__ & 2))
#define SIM_FIBER_X86_64 1
#else
#include <ucontext.h>
#endif

typedef void sim_fiber_entry(void *argument); /* must not return: it switches away for good */

typedef struct sim_fiber {
#ifdef SIM_FIBER_X86_64
    void *stack_pointer; /* while suspended */
#else
    ucontext_t context;
#endif
    void *mapping; /* guard page, then the stack; NULL for an adopted fiber */
    size_t mapping_bytes;
    const void *stack; /* as the sanitizers want to know it */
    size_t stack_bytes;
    sim_fiber_entry *entry;
    void *argument;
    struct sim_fiber *resumed_by;
    void *fake_stack; /* AddressSanitizer's, while suspended */
    void *tsan_fiber;
} sim_fiber;

/** ZB_NO_MEMORY when the stack cannot be mapped. */
zb_status sim_fiber_create(sim_fiber *fiber, size_t stack_bytes, sim_fiber_entry *entry, void *argument);
/** The fiber must be suspended. A zero fiber is fine. */
void sim_fiber_destroy(sim_fiber *fiber);

/** Make `fiber` stand for the calling thread, so that it can be switched away from and back to. */
void sim_fiber_adopt(sim_fiber *fiber);

/** Suspend `from` (the running one) and resume `to`. Returns when somebody resumes `from`. */
void sim_fiber_switch(sim_fiber *from, sim_fiber *to);

#endif
