/*
 * CUDA devices: the engine's device table (<zerobit/device.h>) on a GPU. A library of its own, zerobit_cuda, so that the others do not
 * need CUDA. docs/cuda.md says how to build and check it.
 *
 *     zb_device *device;
 *     ZB_TRY(zb_device_cuda_create(0, &device));
 *     ... zb_initialize(&(zb_engine_options){ ..., .device = device, ... }, &engine) ...
 *
 * Memory comes from a pool of the device that CUDA keeps; it is given back in stream order and stays in the pool until the device
 * handle is destroyed. Every call sets the current device of the calling thread. One thread at a time may use a handle; handles of
 * the same GPU are independent of one another, so that several ranks can share it.
 *
 * Errors name the CUDA call, its place in the source and CUDA's words. A kernel that failed is reported by a later call, as CUDA
 * does; that call's message says so. Out of memory is ZB_NO_MEMORY with the bytes asked for and the bytes free; everything else can
 * still be freed and destroyed then.
 */
#ifndef ZEROBIT_CUDA_H
#define ZEROBIT_CUDA_H

#include <stddef.h>
#include <zerobit/device.h>
#include <zerobit/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/** How many GPUs this process can use. ZB_UNSUPPORTED, with CUDA's reason, where there is no driver or no GPU. */
ZB_API zb_status zb_cuda_device_count(int *count_p);

typedef struct zb_cuda_description {
    char name[256];
    int compute_capability; /* 10 * major + minor */
    int multiprocessors;
    size_t memory_bytes, free_bytes;
    int driver_version, runtime_version; /* 1000 * major + 10 * minor */
} zb_cuda_description;
/** ZB_INVALID_ARGUMENT where `ordinal` is none of them. */
ZB_API zb_status zb_cuda_describe(int ordinal, zb_cuda_description *description_p);

/** GPU number `ordinal`, as CUDA_VISIBLE_DEVICES counts. */
ZB_API zb_status zb_device_cuda_create(int ordinal, zb_device **device_p);
/** As above, and discarded memory is filled with 0xFF (NaNs), so that a read of it shows. */
ZB_API zb_status zb_device_cuda_create_poisoning(int ordinal, zb_device **device_p);

/** Whether this is a device of this library. */
ZB_API int zb_device_is_cuda(const zb_device *device);
ZB_API int zb_cuda_ordinal(const zb_device *device);
/** CUDA's own handle (cudaStream_t), for libraries that take one. */
ZB_API struct CUstream_st *zb_cuda_stream(zb_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
