/* Vector clocks. */
#include "sim/cuda/state.h"

#include <stdlib.h>
#include <string.h>

static void reserve(si_clock *clock, int length)
{
    if (length > clock->capacity) {
        clock->capacity = 2 * length;
        clock->epochs = si_grow(clock->epochs, (size_t)clock->capacity, sizeof *clock->epochs);
    }
    for (; clock->length < length; clock->length++) clock->epochs[clock->length] = 0;
}

uint32_t si_clock_get(const si_clock *clock, int slot)
{
    return slot < clock->length ? clock->epochs[slot] : 0;
}

void si_clock_set(si_clock *clock, int slot, uint32_t epoch)
{
    reserve(clock, slot + 1);
    clock->epochs[slot] = epoch;
}

void si_clock_join(si_clock *clock, const si_clock *other)
{
    reserve(clock, other->length);
    for (int i = 0; i < other->length; i++)
        if (other->epochs[i] > clock->epochs[i]) clock->epochs[i] = other->epochs[i];
}

void si_clock_destroy(si_clock *clock)
{
    free(clock->epochs);
    *clock = (si_clock){ .length = 0 };
}
