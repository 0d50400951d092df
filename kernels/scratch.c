/* The pool of scratch.h. */
#include "kernels/scratch.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

static _Alignas(4096) float slots[ZB_SCRATCH_SLOTS][ZB_SCRATCH_FLOATS];
static atomic_bool taken[ZB_SCRATCH_SLOTS];
/* Where to look first: a thread comes back to the slot that its caches know. */
static _Thread_local int favourite;

float *zb_scratch_claim(void)
{
    for (int i = favourite, tried = 1;; i = (i + 1) % ZB_SCRATCH_SLOTS, tried++) {
        if (!atomic_load_explicit(&taken[i], memory_order_relaxed) &&
            !atomic_exchange_explicit(&taken[i], true, memory_order_acquire)) {
            favourite = i;
            return slots[i];
        }
        if (tried % ZB_SCRATCH_SLOTS == 0) sched_yield();
    }
}

void zb_scratch_release(float *scratch)
{
    const ptrdiff_t slot = (scratch - slots[0]) / ZB_SCRATCH_FLOATS;
    atomic_store_explicit(&taken[slot], false, memory_order_release);
}
