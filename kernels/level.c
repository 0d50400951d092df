/* Which SIMD level runs: asked of the processor once, or named by ZEROBIT_SIMD, or set by a test. */
#include "kernels/level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

static int has_any(void)
{
    return 1;
}
#if defined(__x86_64__)
/* Conversions of fp16; clang has no name for them in __builtin_cpu_supports. */
static int has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
#endif

/* Best first. */
static const struct {
    const zb_cpu_level *level;
    int (*available)(void);
} levels[] = {
#if defined(__x86_64__)
    { &zb_cpu_level_avx512, has_avx512 },
    { &zb_cpu_level_avx2, has_avx2 },
#endif
    { &zb_cpu_level_portable, has_any },
};
enum { LEVEL_COUNT = sizeof levels / sizeof levels[0] };

/* NULL until the first use. Two threads that choose at the same time choose alike. */
static _Atomic(const zb_cpu_level *) current;

static zb_status find(const char *name, const char *asked_by, const zb_cpu_level **level_p)
{
    for (size_t i = 0; i < LEVEL_COUNT; i++) {
        if (strcmp(name, levels[i].level->name) != 0) continue;
        if (!levels[i].available())
            return zb_fail(ZB_UNSUPPORTED, "%s asks for the SIMD level \"%s\", which this processor lacks",
                           asked_by, name);
        *level_p = levels[i].level;
        return ZB_OK;
    }
    return zb_fail(ZB_INVALID_ARGUMENT, "%s asks for the SIMD level \"%s\"; this build offers %s", asked_by,
                   name, LEVEL_COUNT == 1 ? "portable" : "avx512, avx2, portable");
}

static zb_status choose(const zb_cpu_level **level_p)
{
    const char *name = getenv("ZEROBIT_SIMD");
    if (name != NULL && name[0] != '\0') return find(name, "ZEROBIT_SIMD", level_p);
    size_t i = 0;
    while (!levels[i].available()) i++; /* the last one always is */
    *level_p = levels[i].level;
    return ZB_OK;
}

zb_status zb_cpu_level_get(const zb_cpu_level **level_p)
{
    const zb_cpu_level *level = atomic_load_explicit(&current, memory_order_acquire);
    if (level == NULL) {
        ZB_TRY(choose(&level));
        atomic_store_explicit(&current, level, memory_order_release);
    }
    *level_p = level;
    return ZB_OK;
}

const char *zb_simd_level(void)
{
    const zb_cpu_level *level;
    return zb_cpu_level_get(&level) == ZB_OK ? level->name : NULL;
}

zb_status zb_cpu_set_simd_level(const char *name)
{
    const zb_cpu_level *level;
    ZB_TRY(find(name, "the caller", &level));
    atomic_store_explicit(&current, level, memory_order_release);
    return ZB_OK;
}
