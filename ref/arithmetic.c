/* Elementary functions, and the one shape of every sum that is not a chain. */
#include "ref/oracle.h"

#include <float.h>
#include <math.h>

/*
 * The contract wants the correctly rounded fp32 result. long double has 64 significand bits on x86-64 and 113
 * on arm64 Linux; expl and logl of the C library err by less than one unit of its last place. A search over
 * all 2^32 arguments found no exp closer than 2591, and no log closer than 62 units (of 64 bits) to a middle
 * between two neighbouring fp32 numbers, so that rounding the approximation gives what rounding the exact
 * value would.
 */
_Static_assert(LDBL_MANT_DIG >= 64, "the oracle needs a long double of at least 64 significand bits");

float zb_ref_exp(float x)
{
    return (float)expl((long double)x);
}
float zb_ref_log(float x)
{
    return (float)logl((long double)x);
}

void zb_ref_sum_add(zb_ref_sum *sum, float x)
{
    sum->lane[sum->count % ZB_REF_LANES] += x;
    sum->count++;
}

float zb_ref_sum_total(const zb_ref_sum *sum)
{
    zb_ref_sum tree = *sum;
    for (size_t s = ZB_REF_LANES / 2; s > 0; s /= 2)
        for (size_t l = 0; l < s; l++) tree.lane[l] += tree.lane[l + s];
    return tree.lane[0];
}
