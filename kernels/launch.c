/* From an operation's number, or its name, to the code of the level in use. */
#include "kernels/kernels.h"
#include "kernels/level.h"

#define ZB_CPU_DEFINE(name)                                                                                  \
    zb_status zb_cpu_##name(const zb_##name##_args *args)                                                    \
    {                                                                                                        \
        const zb_cpu_level *level;                                                                           \
        ZB_TRY(zb_cpu_level_get(&level));                                                                    \
        return level->name(args);                                                                            \
    }
ZB_KERNEL_MAP(ZB_CPU_DEFINE)

static zb_status wrong_size(const char *name, size_t found, size_t expected)
{
    return zb_fail(ZB_INVALID_ARGUMENT, "launch of %s with %zu bytes of arguments, want %zu", name, found,
                   expected);
}

zb_status zb_cpu_launch(zb_kernel kernel, const void *args, size_t args_bytes)
{
    switch (kernel) {
#define ZB_CPU_CASE(name)                                                                                    \
    case ZB_KERNEL_##name:                                                                                   \
        if (args_bytes != sizeof(zb_##name##_args))                                                          \
            return wrong_size(#name, args_bytes, sizeof(zb_##name##_args));                                  \
        return zb_cpu_##name(args);
        ZB_KERNEL_MAP(ZB_CPU_CASE)
#undef ZB_CPU_CASE
    case ZB_KERNEL_COUNT:
        break;
    }
    return zb_fail(ZB_INVALID_ARGUMENT, "launch of operation %d; there are %d", (int)kernel,
                   (int)ZB_KERNEL_COUNT);
}
