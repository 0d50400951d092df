/* Random launches of every operation: arguments that it takes, and what its arrays may hold. */
#ifndef ZB_TESTS_KERNELS_DRAW_H
#define ZB_TESTS_KERNELS_DRAW_H

#include "kernels/access.h"
#include "tests/kernels/support.h"

enum { DRAW_INPUTS_MAX = 5 };

typedef union any_args {
#define ARGS_MEMBER(name) zb_##name##_args name;
    ZB_KERNEL_MAP(ARGS_MEMBER)
#undef ARGS_MEMBER
} any_args;

typedef struct drawn_launch {
    zb_kernel kernel;
    int round; /* decides what is optional: six rounds see all of it */
    size_t args_bytes;
    any_args args; /* every pointer that is not NULL leads to `nowhere`, but those to arrays of the host */
    char *nowhere;
    rng r;
    zb_dtype dtype, second; /* of most arrays; of the other ones, where there are two */
    size_t limit;           /* of int32 indices: labels, argmax */
    int finite;             /* find_nonfinite finds nothing, and leaves its flag alone */
    const void *inputs[DRAW_INPUTS_MAX];
    int32_t tree[2 * DRAW_INPUTS_MAX], order[DRAW_INPUTS_MAX];
} drawn_launch;

/** The same for the same round; over_nothing: with sizes of zero. The arguments point into *s, which must
 * stay where it is. */
void draw_launch(drawn_launch *s, zb_kernel kernel, uint64_t round, int over_nothing, char *nowhere);
/** Bytes of an element of the array that zb_kernel_accesses shows under this name. */
size_t drawn_element_bytes(const drawn_launch *s, const char *name);
/** Something that this array may hold, [bytes] rounded up to whole 16-bit words. */
void draw_contents(drawn_launch *s, const char *name, size_t bytes, char *contents);

#endif
