/* The digits of the exact sum of squares; see <zerobit/kernels.h> for their weights. */
#ifndef ZB_KERNELS_SUM_SQUARES_H
#define ZB_KERNELS_SUM_SQUARES_H

#include <zerobit/kernels.h>

/**
 * Squares by the exponent of what was squared: bin e, for the fp32 exponent field e (0 counts as 1), holds
 * the sum of mantissa^2 in units of 2^(2e - 300). A square is below 2^48, so a bin takes 2^16 of them. Bin
 * 255 is unused.
 */
enum { ZB_SQUARE_BINS = 256, ZB_SQUARE_BIN_ADDS_MAX = 1 << 16 };

/** Carries, so that every digit but the highest lies in 0..2^32-1. */
void zb_sum_squares_normalise(int64_t *digits);
/** digits += what the bins hold. Digits must be normalised; they are again afterwards. */
void zb_sum_squares_add_bins(int64_t *digits, const uint64_t *bins);

#endif
