/*
 * The two generators of the contract.
 *
 * Philox4x32-10: counter based, where the engine itself draws. A number depends only on (seed, tensor,
 * element), never on rank, stage or the order of drawing. Source: Salmon et al., SC 2011.
 * MT19937 and PyTorch's randperm: where the sampler shuffles. Source: aten/src/ATen/native/TensorFactories
 * and ATen/core/MT19937RNGEngine.h.
 */
#ifndef ZEROBIT_RANDOM_H
#define ZEROBIT_RANDOM_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/** One Philox4x32-10 block: counter (4 words), key (2 words) -> 4 words. */
ZB_API void zb_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/**
 * 32 random bits for one element: word (element mod 4) of the block whose key is the seed (low, high word)
 * and whose counter is (element / 4 low, element / 4 high, stream, 0). `stream` names the tensor.
 */
ZB_API uint32_t zb_random_bits(uint64_t seed, uint32_t stream, uint64_t element);
/** Uniform in [0, 1): the upper 24 bits times 2^-24, exact in fp32. */
ZB_API float zb_random_uniform(uint64_t seed, uint32_t stream, uint64_t element);

typedef struct zb_mt19937 {
    uint32_t state[624];
    int next;
} zb_mt19937;

/** Only the low 32 bits of the seed count, as in PyTorch. */
ZB_API void zb_mt19937_seed(zb_mt19937 *generator, uint64_t seed);
ZB_API uint32_t zb_mt19937_random(zb_mt19937 *generator);
/** First draw in the upper half. */
ZB_API uint64_t zb_mt19937_random64(zb_mt19937 *generator);

/**
 * torch.randperm(n, generator): out has n elements. For n < 214748364 the forward Fisher-Yates with a
 * plain modulo of a 32-bit draw; from there on PyTorch >= 2.7's inside-out shuffle with 64-bit draws.
 */
ZB_API void zb_randperm(zb_mt19937 *generator, int64_t n, int64_t *out);

#ifdef __cplusplus
}
#endif
#endif
