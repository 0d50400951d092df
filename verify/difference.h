/* Where two runs disagree: bitwise comparison, the order of places, and the sentence that names one. */
#ifndef VERIFY_DIFFERENCE_H
#define VERIFY_DIFFERENCE_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/trace.h>

typedef struct zb_disagreement {
    int64_t step, micro;
    zb_quantity quantity;
    int param;
    const char *tensor; /* NULL when the quantity has no tensor */
    uint64_t element;
    int rank_a, rank_b;
    zb_missing missing;
    zb_dtype dtype; /* of the two values */
    uint64_t bits_a, bits_b;
    const char *name_a, *name_b; /* who they are, for the sentence: "the oracle", "b.trace" */
} zb_disagreement;

/** How many leading elements are equal: the same bits, or both NaN. */
size_t zb_equal_prefix(zb_dtype dtype, const void *a, const void *b, size_t numel);

/** The bits of one element, zero extended. */
uint64_t zb_element_bits(zb_dtype dtype, const void *data, size_t index);

/** True when a comes before b in what one step computes: (quantity, micro, param, element, rank). */
int zb_disagreement_before(const zb_disagreement *a, const zb_disagreement *b);

/** Fill in the public form, sentence included. */
void zb_difference_describe(const zb_disagreement *disagreement, zb_difference *difference);

#endif
