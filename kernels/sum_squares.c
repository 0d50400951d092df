/* Digits of the exact sum of squares: from bins into digits, and from digits to a norm. */
#include "kernels/sum_squares.h"

#include <math.h>
#include <string.h>

enum { DIGITS = ZB_SUM_SQUARES_DIGITS };

void zb_sum_squares_normalise(int64_t *digits)
{
    int64_t carry = 0;
    for (int d = 0; d < DIGITS - 1; d++) {
        /* The carry is taken out of the digit first: together they might not fit. */
        int64_t low = (digits[d] & 0xffffffff) + (carry & 0xffffffff);
        carry = (digits[d] >> 32) + (carry >> 32) + (low >> 32);
        digits[d] = low & 0xffffffff;
    }
    digits[DIGITS - 1] += carry;
}

void zb_sum_squares_add_bins(int64_t *digits, const uint64_t *bins)
{
    for (int e = 1; e < 255; e++) {
        if (bins[e] == 0) continue;
        const int position = 2 * e - 300 + 320, d = position / 32, shift = position % 32;
        const uint64_t low = (bins[e] & 0xffffffff) << shift, high = (bins[e] >> 32) << shift;
        digits[d] += (int64_t)(low & 0xffffffff);
        digits[d + 1] += (int64_t)((low >> 32) + (high & 0xffffffff));
        digits[d + 2] += (int64_t)(high >> 32);
    }
    zb_sum_squares_normalise(digits);
}

/* The 64 bits of the normalised digits that begin at bit `position`, counted from the lowest of digit 0. */
static uint64_t bits_at(const int64_t *digits, int position)
{
    uint64_t bits = 0;
    for (int i = 0; i < 64; i++) {
        const int p = position + i;
        if (p >= 0 && p < 32 * DIGITS && (digits[p / 32] >> (p % 32) & 1)) bits |= 1ull << i;
    }
    return bits;
}

static int any_bit_below(const int64_t *digits, int position)
{
    for (int p = 0; p < position; p++)
        if (digits[p / 32] >> (p % 32) & 1) return 1;
    return 0;
}

/* Rounded once, to nearest even. The least square of an fp32 number, 2^-298, is a normal fp64 number. */
static double value_of(const int64_t *digits)
{
    int top = 32 * DIGITS - 1;
    while (top >= 0 && !(digits[top / 32] >> (top % 32) & 1)) top--;
    if (top < 0) return 0;
    const int lowest = top - 63; /* of the 64 bits that are looked at one by one; 53 stay */
    uint64_t bits = bits_at(digits, lowest);
    if (lowest > 0 && any_bit_below(digits, lowest)) bits |= 1;
    return ldexp((double)bits, lowest - 320); /* the conversion rounds; scaling is exact */
}

double zb_sum_squares_norm(const int64_t accumulator[ZB_SUM_SQUARES_WORDS])
{
    if (accumulator[ZB_SUM_SQUARES_NAN] != 0) return NAN;
    if (accumulator[ZB_SUM_SQUARES_INF] != 0) return INFINITY;
    int64_t digits[DIGITS];
    memcpy(digits, accumulator, sizeof digits);
    zb_sum_squares_normalise(digits);
    return sqrt(value_of(digits));
}
