/* Philox4x32-10, MT19937 and PyTorch's permutation. Integer arithmetic only, so the same on every machine. */
#include "core/random.h"

#include <zerobit/status.h>

/* --- Philox4x32-10 --- */

void zb_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    enum { ROUNDS = 10 };
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

uint32_t zb_random_bits(uint64_t seed, uint32_t stream, uint64_t element)
{
    uint64_t block = element / 4;
    const uint32_t counter[4] = { (uint32_t)block, (uint32_t)(block >> 32), stream, 0 };
    const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
    uint32_t words[4];
    zb_philox4x32(counter, key, words);
    return words[element % 4];
}

float zb_random_uniform(uint64_t seed, uint32_t stream, uint64_t element)
{
    return (float)(zb_random_bits(seed, stream, element) >> 8) * 0x1p-24f;
}

/* --- MT19937 --- */

enum { MT_WORDS = 624, MT_SHIFT = 397 };

void zb_mt19937_seed(zb_mt19937 *generator, uint64_t seed)
{
    uint32_t *state = generator->state;
    state[0] = (uint32_t)seed;
    for (uint32_t j = 1; j < MT_WORDS; j++)
        state[j] = 1812433253u * (state[j - 1] ^ (state[j - 1] >> 30)) + j;
    generator->next = MT_WORDS;
}

/* `high` gives the top bit, `low` the other 31, `far` is the word MT_SHIFT further on. */
static uint32_t mt_twist(uint32_t high, uint32_t low, uint32_t far)
{
    uint32_t mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
    return far ^ (mixed >> 1) ^ ((low & 1u) != 0 ? 0x9908b0dfu : 0u);
}

static void mt_next_state(zb_mt19937 *generator)
{
    uint32_t *state = generator->state;
    int j = 0;
    for (; j < MT_WORDS - MT_SHIFT; j++) state[j] = mt_twist(state[j], state[j + 1], state[j + MT_SHIFT]);
    for (; j < MT_WORDS - 1; j++) state[j] = mt_twist(state[j], state[j + 1], state[j + MT_SHIFT - MT_WORDS]);
    state[j] = mt_twist(state[j], state[0], state[MT_SHIFT - 1]);
    generator->next = 0;
}

uint32_t zb_mt19937_random(zb_mt19937 *generator)
{
    if (generator->next == MT_WORDS) mt_next_state(generator);
    uint32_t y = generator->state[generator->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

uint64_t zb_mt19937_random64(zb_mt19937 *generator)
{
    uint64_t high = zb_mt19937_random(generator);
    return high << 32 | zb_mt19937_random(generator);
}

/* --- permutation --- */

/* Both shuffles start from the identity; in the inside-out one the entry that is read before it is written
 * is that of element i itself, and it must then read i. */
#define DEFINE_RANDPERM(name, type)                                                                          \
    void name(zb_mt19937 *generator, int64_t n, int64_t large_n, type *out)                                  \
    {                                                                                                        \
        for (int64_t i = 0; i < n; i++) out[i] = (type)i;                                                    \
        if (n < large_n) {                                                                                   \
            for (int64_t i = 0; i < n - 1; i++) {                                                            \
                int64_t other = i + (int64_t)(zb_mt19937_random(generator) % (uint32_t)(n - i));             \
                type kept = out[i];                                                                          \
                out[i] = out[other];                                                                         \
                out[other] = kept;                                                                           \
            }                                                                                                \
        } else {                                                                                             \
            for (int64_t i = 0; i < n; i++) {                                                                \
                int64_t other = (int64_t)(zb_mt19937_random64(generator) % ((uint64_t)i + 1));               \
                out[i] = out[other];                                                                         \
                out[other] = (type)i;                                                                        \
            }                                                                                                \
        }                                                                                                    \
    }

DEFINE_RANDPERM(zb_randperm_u32, uint32_t)
DEFINE_RANDPERM(zb_randperm_i64, int64_t)
#undef DEFINE_RANDPERM

void zb_randperm(zb_mt19937 *generator, int64_t n, int64_t *out)
{
    ZB_ASSERT(n >= 0);
    zb_randperm_i64(generator, n, ZB_RANDPERM_LARGE_N, out);
}
