/*
 * The CPU implementation of every operation of <zerobit/kernels.h>.
 *
 * The operations are written once (*.inc.c) and compiled once per SIMD level; a table per level holds them.
 * The level (zb_simd_level() names it) is chosen at run time and changes speed only: every level gives the
 * same bits.
 */
#ifndef ZB_KERNELS_KERNELS_H
#define ZB_KERNELS_KERNELS_H

#include <zerobit/kernels.h>

/** Runs one operation at once, on the caller's thread. `args_bytes` must be the size of that operation's
 * struct. */
zb_status zb_cpu_launch(zb_kernel kernel, const void *args, size_t args_bytes);

/* zb_cpu_add(&args), zb_cpu_matmul(&args), ... */
#define ZB_CPU_DECLARE(name) zb_status zb_cpu_##name(const zb_##name##_args *args);
ZB_KERNEL_MAP(ZB_CPU_DECLARE)
#undef ZB_CPU_DECLARE

/** Changes the level for the whole process, for tests. ZB_INVALID_ARGUMENT: no such level; ZB_UNSUPPORTED:
 * not on this machine. */
zb_status zb_cpu_set_simd_level(const char *name);

#endif
