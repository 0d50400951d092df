/* The pool of scratch.h. */
#include "kernels/scratch.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

enum { SLOT_BYTES = ZB_SCRATCH_FLOATS * sizeof(float) };

/* Pages of the system rather than blocks of memory.h, whose books say what is held for a computation. Made by
 * the first who claims the slot. */
static float *slots[ZB_SCRATCH_SLOTS];
static atomic_bool taken[ZB_SCRATCH_SLOTS];
/* Where to look first: a thread comes back to the slot that its caches know. */
static _Thread_local int favourite;

static void give_back(int slot)
{
    atomic_store_explicit(&taken[slot], false, memory_order_release);
}

/* A slot that is taken by the caller. */
static zb_status make(int slot)
{
    void *pages = mmap(NULL, SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return zb_fail(ZB_NO_MEMORY, "out of memory: %zu bytes wanted for a matrix product",
                       (size_t)SLOT_BYTES);
    slots[slot] = pages;
    return ZB_OK;
}

zb_status zb_scratch_claim(float **scratch_p)
{
    for (int i = favourite, tried = 1;; i = (i + 1) % ZB_SCRATCH_SLOTS, tried++) {
        if (!atomic_load_explicit(&taken[i], memory_order_relaxed) &&
            !atomic_exchange_explicit(&taken[i], true, memory_order_acquire)) {
            zb_status status = slots[i] != NULL ? ZB_OK : make(i);
            if (status != ZB_OK) {
                give_back(i);
                return status;
            }
            favourite = i;
            *scratch_p = slots[i];
            return ZB_OK;
        }
        if (tried % ZB_SCRATCH_SLOTS == 0) sched_yield();
    }
}

/* By the thread that claimed it, and before that claims another. */
void zb_scratch_release(float *scratch)
{
    ZB_ASSERT(slots[favourite] == scratch);
    give_back(favourite);
}
