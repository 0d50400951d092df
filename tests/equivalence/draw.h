/* Random choices from a seed, for set-ups. */
#ifndef ZB_TESTS_EQUIVALENCE_DRAW_H
#define ZB_TESTS_EQUIVALENCE_DRAW_H

#include <stdint.h>

typedef struct draw {
    uint64_t state;
} draw;

/* SplitMix64: small, and good enough to choose shapes with. */
static inline uint64_t next(draw *d)
{
    uint64_t z = d->state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static inline int between(draw *d, int low, int high)
{
    return low + (int)(next(d) % (uint64_t)(high - low + 1));
}

static inline int one_in(draw *d, int n)
{
    return next(d) % (uint64_t)n == 0;
}

#endif
