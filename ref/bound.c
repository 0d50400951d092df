/*
 * How far rounding can take a reduced gradient from what it would be without, whatever the order of addition.
 *
 * Without rounding an element is f * sum over micro-batches and ranks of g, with f the product of the plan's
 * factors. On the way from g to the result there are R roundings, each of which changes a value v by at most
 * u |v| + e / 2, with u the relative and e the smallest step of the coarsest type on the way. No partial sum,
 * seen with the factors that it still has to go through, is larger than f * S (1 + gamma), S being the sum of
 * all |g|. So the relative parts add up to gamma f S at most,
 *
 *     gamma = R u / (1 - R u)        (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1)
 *
 * and the absolute ones, of which each of the G W contributions meets R at most, to G W R e / 2, times the
 * largest product of factors that a value can still go through after it was rounded.
 *
 * All this as long as no number is too large for its type. Where one may be, the bound is infinite.
 */
#include "ref/oracle.h"

#include <math.h>
#include <zerobit/memory.h>
#include <zerobit/ref.h>

static double unit_of(zb_dtype dtype)
{
    return dtype == ZB_BF16 ? 0x1p-8 : dtype == ZB_FP16 ? 0x1p-11 : 0x1p-24;
}

static double smallest_of(zb_dtype dtype)
{
    return dtype == ZB_FP16 ? 0x1p-24 : dtype == ZB_BF16 ? 0x1p-133 : 0x1p-149;
}

static double largest_of(zb_dtype dtype)
{
    return dtype == ZB_FP16 ? 65504.0 : dtype == ZB_BF16 ? 0x1.fep127 : 0x1.fffffep127;
}

static double value_of(zb_factor factor)
{
    if (factor.kind == ZB_FACTOR_NONE) return 1.0;
    return factor.kind == ZB_FACTOR_MULTIPLY ? (double)factor.by : 1.0 / (double)factor.by;
}

/* The factors in the order in which a gradient meets them. */
enum { FACTORS = 5 };
static void list_factors(const zb_plan *plan, double *factors)
{
    const zb_averaging *averaging = &plan->averaging;
    factors[0] = value_of(averaging->in_bucket);
    factors[1] = value_of(averaging->before[0]);
    factors[2] = value_of(averaging->before[1]);
    factors[3] = averaging->inside ? 1.0 / plan->world_size : 1.0;
    factors[4] = value_of(averaging->after);
}

static int count_factors(const zb_averaging *averaging)
{
    return (averaging->in_bucket.kind != ZB_FACTOR_NONE) + (averaging->before[0].kind != ZB_FACTOR_NONE) +
           (averaging->before[1].kind != ZB_FACTOR_NONE) + (averaging->inside != 0) +
           (averaging->after.kind != ZB_FACTOR_NONE);
}

static int is_power_of_two(int number)
{
    return (number & (number - 1)) == 0;
}

/* Additions over ranks and over micro-batches, factors, and a change of type each at the bucket, the wire and
 * the end. One more for a 16-bit sum that is rounded before it is divided, or an average that multiplies by
 * 1 / world, itself rounded to the type: no library does both. */
int zb_ref_roundings(const zb_plan *plan)
{
    const zb_dtype way[] = { plan->local_dtype, plan->bucket_dtype, plan->comm_dtype, plan->grad_dtype };
    int count = plan->world_size - 1 + (int)plan->accumulation_steps - 1 + count_factors(&plan->averaging);
    const int rounds_inverse = plan->averaging.inside && !is_power_of_two(plan->world_size);
    count += plan->world_size > 1 && (plan->comm_dtype != ZB_FP32 || rounds_inverse);
    for (size_t i = 0; i < sizeof way / sizeof way[0]; i++)
        count += way[i] != (i > 0 ? way[i - 1] : plan->param_dtype);
    return count;
}

void zb_ref_bound_note(const zb_ref_tensors *gradient, double *magnitudes)
{
    for (size_t i = 0; i < gradient->numel; i++) magnitudes[i] += fabs((double)gradient->data[i]);
}

/* Whether a number on the way may be too large for its type: the sum of a rank's micro-batches, what goes
 * into a bucket and comes out of its factor, what is added over ranks and comes out of that, and the result.
 */
static int may_overflow(const zb_plan *plan, const double *factors, double sum)
{
    double after = sum;
    if (!(sum <= largest_of(plan->local_dtype)) || !(sum <= largest_of(plan->bucket_dtype))) return 1;
    after *= factors[0];
    if (after > largest_of(plan->bucket_dtype)) return 1;
    for (int i = 1; i < FACTORS; i++) {
        if (after > largest_of(plan->comm_dtype)) return 1;
        after *= factors[i];
    }
    return after > largest_of(plan->comm_dtype) || after > largest_of(plan->grad_dtype);
}

double zb_ref_bound_of(const zb_plan *plan, double magnitude)
{
    const zb_dtype way[] = { plan->local_dtype, plan->bucket_dtype, plan->comm_dtype, plan->grad_dtype };
    double factors[FACTORS], unit = 0, smallest = 0, factor = 1, still = 1;
    for (size_t i = 0; i < sizeof way / sizeof way[0]; i++) {
        unit = fmax(unit, unit_of(way[i]));
        smallest = fmax(smallest, smallest_of(way[i]));
    }
    list_factors(plan, factors);
    for (int i = FACTORS - 1; i >= 0; i--) {
        factor *= factors[i];
        still = fmax(still, factor);
    }
    const double roundings = zb_ref_roundings(plan), error = roundings * unit;
    if (error >= 0.5) return INFINITY; /* so many that nothing is left to say */
    /* No partial sum is larger, the roundings to the smallest step left out: those are far below any limit.
     */
    if (may_overflow(plan, factors, magnitude * (1 + error / (1.0 - error)))) return INFINITY;
    const double contributions = (double)plan->accumulation_steps * plan->world_size;
    /* The last factor is for this computation's own roundings in fp64. */
    return (error / (1.0 - error) * factor * magnitude + contributions * roundings * smallest / 2 * still) *
           (1 + 0x1p-30);
}
