/* Internal to core/: PyTorch's permutation with the storage and the switch point as arguments. */
#ifndef ZB_CORE_RANDOM_H
#define ZB_CORE_RANDOM_H

#include <stdint.h>
#include <zerobit/random.h>

/* (2^32 - 1) / 20: from this n on PyTorch judges the modulo of a 32-bit draw too uneven. */
enum { ZB_RANDPERM_LARGE_N = 214748364 };

/* torch.randperm(n), n <= 2^32, which the sampler keeps in half the memory. `large_n` is where the 64-bit
 * shuffle takes over: ZB_RANDPERM_LARGE_N, or something small in a test of that path. */
void zb_randperm_u32(zb_mt19937 *generator, int64_t n, int64_t large_n, uint32_t *out);
void zb_randperm_i64(zb_mt19937 *generator, int64_t n, int64_t large_n, int64_t *out);

#endif
