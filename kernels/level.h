/* What a SIMD level is: a name and one function per operation. */
#ifndef ZB_KERNELS_LEVEL_H
#define ZB_KERNELS_LEVEL_H

#include <zerobit/kernels.h>

typedef struct zb_cpu_level {
    const char *name;
#define ZB_LEVEL_MEMBER(operation) zb_status (*operation)(const zb_##operation##_args *args);
    ZB_KERNEL_MAP(ZB_LEVEL_MEMBER)
#undef ZB_LEVEL_MEMBER
} zb_cpu_level;

extern const zb_cpu_level zb_cpu_level_portable;
#if defined(__x86_64__)
extern const zb_cpu_level zb_cpu_level_avx2;
extern const zb_cpu_level zb_cpu_level_avx512;
#endif

/** The level in use; fails when ZEROBIT_SIMD names one that is not offered here. */
zb_status zb_cpu_level_get(const zb_cpu_level **level_p);

#endif
