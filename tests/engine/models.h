/* Small models and random numbers that the engine's tests share. */
#ifndef ZB_TESTS_ENGINE_MODELS_H
#define ZB_TESTS_ENGINE_MODELS_H

#include <stddef.h>
#include <stdint.h>
#include <zerobit/model.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum { SIZES_MAX = 16 };

/* A list of tensor sizes; ends at `count`. Those whose bit is set in `frozen` do not train. */
typedef struct sizes {
    int count;
    size_t numel[SIZES_MAX];
    unsigned frozen;
} sizes;

/* Parameters of these sizes and nothing else: enough for layouts and buckets, not for a run. */
zb_model *sizes_model(const sizes *s);

/* Each is one thing that an engine can get wrong; see models.c. */
extern const char *const test_model_names[];
extern const int test_model_count;
/* One of the above. */
zb_model *test_model(const char *name);

/* Uniform in [0, bound). */
uint32_t random_below(uint64_t *state, uint32_t bound);

void assert_message_has(const char *part);

#endif
