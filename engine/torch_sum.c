/*
 * torch.sum; see torch_sum.h.
 *
 * The array is cut into vectors of as many elements as a register holds, or of one where it is shorter than
 * that. Vectors go round four accumulators. After 2^p rounds each is moved up one level and begins anew,
 * after 2^2p rounds that level is moved up as well, and so on. At the end levels, then accumulators, are
 * added from the first; then come the elements that fill no vector, and after them the lanes.
 */
#include "engine/torch_sum.h"

#include <string.h>

enum { LEVELS = 4, ACCUMULATORS = 4, REGISTER_BYTES = 32, LANES_MAX = 8 };

typedef struct vector {
    double lane[LANES_MAX];
} vector;

/* Adding in fp64 and rounding to fp32 rounds once: fp64 is wide enough for the sum of two fp32 numbers. */
static double add(double a, double b, int fp32)
{
    return fp32 ? (double)(float)(a + b) : a + b;
}

static void add_elements(vector *to, const double *from, size_t lanes, int fp32)
{
    for (size_t l = 0; l < lanes; l++) to->lane[l] = add(to->lane[l], from[l], fp32);
}

/* The lowest level that stays after this many rounds: those below are moved up into it. */
static int level_after(size_t rounds, unsigned power)
{
    int level = 0;
    while (level + 1 < LEVELS && rounds % ((size_t)1 << power * (unsigned)(level + 1)) == 0) level++;
    return level;
}

static unsigned power_of(size_t rounds)
{
    unsigned ceiling = 0;
    while (((size_t)1 << ceiling) < rounds) ceiling++;
    return ceiling / LEVELS > 4 ? ceiling / LEVELS : 4;
}

static vector sum_vectors(const double *x, size_t count, size_t lanes, int fp32)
{
    vector sums[LEVELS][ACCUMULATORS];
    const size_t rounds = count / ACCUMULATORS, per_round = ACCUMULATORS * lanes;
    const unsigned power = power_of(rounds);
    memset(sums, 0, sizeof sums);
    for (size_t round = 0; round < rounds; round++)
        for (int a = 0; a < ACCUMULATORS; a++) {
            add_elements(&sums[0][a], x + round * per_round + (size_t)a * lanes, lanes, fp32);
            const int top = level_after(round + 1, power);
            for (int level = 1; level <= top; level++) {
                add_elements(&sums[level][a], sums[level - 1][a].lane, lanes, fp32);
                memset(&sums[level - 1][a], 0, sizeof sums[level - 1][a]);
            }
        }
    for (int a = 0; a < ACCUMULATORS; a++)
        for (int level = 1; level < LEVELS; level++)
            add_elements(&sums[0][a], sums[level][a].lane, lanes, fp32);
    for (size_t i = rounds * ACCUMULATORS; i < count; i++)
        add_elements(&sums[0][0], x + i * lanes, lanes, fp32);
    for (int a = 1; a < ACCUMULATORS; a++) add_elements(&sums[0][0], sums[0][a].lane, lanes, fp32);
    return sums[0][0];
}

static double sum(const double *x, size_t count, size_t element_bytes, int fp32)
{
    const size_t width = REGISTER_BYTES / element_bytes, lanes = count < width ? 1 : width;
    const vector vectors = sum_vectors(x, count / lanes, lanes, fp32);
    double total = 0.0;
    for (size_t i = count - count % lanes; i < count; i++) total = add(total, x[i], fp32);
    for (size_t l = 0; l < lanes; l++) total = add(total, vectors.lane[l], fp32);
    return total;
}

double zb_torch_sum_fp64(const double *x, size_t count)
{
    return sum(x, count, sizeof(double), 0);
}

float zb_torch_sum_fp32(const double *x, size_t count)
{
    return (float)sum(x, count, sizeof(float), 1);
}
