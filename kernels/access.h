/*
 * Which memory an operation reads and writes: what a checker of streams needs to know of a launch, and what translates its
 * pointers from one address space to another.
 */
#ifndef ZB_KERNELS_ACCESS_H
#define ZB_KERNELS_ACCESS_H

#include <stddef.h>
#include <zerobit/kernels.h>
#include <zerobit/status.h>

typedef struct zb_access {
    const char *name; /* of the argument: "grad" */
    void **pointer;   /* where the arguments hold it; a visitor may put another in its place */
    size_t offset;    /* bytes from *pointer to the first one that is touched: tree_reduce begins inside its inputs */
    size_t bytes;     /* 0 is not shown */
    int reads, writes;
} zb_access;

typedef zb_status zb_access_visitor(void *user, const zb_access *access);

/**
 * Shows every array in device memory that an operation with these arguments touches, in the order of the struct; arrays of the host
 * (`inputs` itself, `tree`, `order`) are not shown, each input is. Optional arrays that are NULL are left out. An array that is written in
 * part only, or only where something holds (find_nonfinite's flag), counts as read and written whole.
 *
 * `args` is the visitor's to change, `inputs` the array that it points to as well: a caller who translates gives copies of both.
 * ZB_INVALID_ARGUMENT as zb_cpu_launch; else what the visitor returns.
 */
zb_status zb_kernel_accesses(zb_kernel kernel, void *args, size_t args_bytes, zb_access_visitor *visit, void *user);
/** "adam"; "?" for a number that is none. */
const char *zb_kernel_name(zb_kernel kernel);

#endif
