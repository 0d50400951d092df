/* Devices and errors. */
#include "sim/cuda/state.h"

#include <stdio.h>

enum { VERSION = 13000, COMPUTE_MAJOR = 9, COMPUTE_MINOR = 0, MULTIPROCESSORS = 4 };

#define ERRORS(X)                                                                                            \
    X(cudaSuccess, "no error")                                                                               \
    X(cudaErrorInvalidValue, "invalid argument")                                                             \
    X(cudaErrorMemoryAllocation, "out of memory")                                                            \
    X(cudaErrorInitializationError, "initialization error")                                                  \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                                       \
    X(cudaErrorInvalidDevicePointer, "invalid device pointer")                                               \
    X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")                                  \
    X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version")           \
    X(cudaErrorInvalidDeviceFunction, "invalid device function")                                             \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                               \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                                      \
    X(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device")           \
    X(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered")                                      \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                             \
    X(cudaErrorNotReady, "device not ready")                                                                 \
    X(cudaErrorSystemNotReady, "system not yet initialized")                                                 \
    X(cudaErrorSystemDriverMismatch, "system has unsupported display driver / cuda driver combination")      \
    X(cudaErrorCompatNotSupportedOnDevice, "forward compatibility was attempted on non supported HW")        \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                                   \
    X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                              \
    X(cudaErrorLaunchTimeout, "the launch timed out and was terminated")                                     \
    X(cudaErrorMisalignedAddress, "misaligned address")                                                      \
    X(cudaErrorLaunchFailure, "unspecified launch failure")                                                  \
    X(cudaErrorNotSupported, "operation not supported")                                                      \
    X(cudaErrorTimeout, "wait operation timed out")                                                          \
    X(cudaErrorUnknown, "unknown error")

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
#define ERROR_TEXT(name, text)                                                                               \
    case name:                                                                                               \
        return text;
        ERRORS(ERROR_TEXT)
#undef ERROR_TEXT
    default:
        return "unrecognized error code";
    }
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
#define ERROR_NAME(name, text)                                                                               \
    case name:                                                                                               \
        return #name;
        ERRORS(ERROR_NAME)
#undef ERROR_NAME
    default:
        return "unrecognized error code";
    }
}

cudaError_t cudaGetLastError(void)
{
    return si_take_last_error(0);
}

cudaError_t cudaPeekAtLastError(void)
{
    return si_take_last_error(1);
}

/* --- */

static cudaError_t check_device(int device)
{
    return device >= 0 && device < si.options.device_count ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    cudaError_t error = si_enter("cudaGetDeviceCount");
    if (error == cudaSuccess && count == NULL) error = cudaErrorInvalidValue;
    if (error == cudaSuccess) *count = si.options.device_count;
    return si_leave(error);
}

cudaError_t cudaSetDevice(int device)
{
    cudaError_t error = si_enter("cudaSetDevice");
    if (error == cudaSuccess) error = check_device(device);
    if (error == cudaSuccess) si_set_current_device(device);
    return si_leave(error);
}

cudaError_t cudaGetDevice(int *device)
{
    cudaError_t error = si_enter("cudaGetDevice");
    if (error == cudaSuccess && device == NULL) error = cudaErrorInvalidValue;
    if (error == cudaSuccess) *device = si_current_device();
    return si_leave(error);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    cudaError_t error = si_enter("cudaGetDeviceProperties");
    if (error == cudaSuccess) error = check_device(device);
    if (error == cudaSuccess && properties == NULL) error = cudaErrorInvalidValue;
    if (error != cudaSuccess) return si_leave(error);
    *properties = (struct cudaDeviceProp){ .totalGlobalMem = si.options.memory_bytes,
                                           .major = COMPUTE_MAJOR,
                                           .minor = COMPUTE_MINOR,
                                           .multiProcessorCount = MULTIPROCESSORS };
    snprintf(properties->name, sizeof properties->name, "stand-in %d", device);
    return si_leave(cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    cudaError_t error = si_enter("cudaDeviceGetAttribute");
    if (error == cudaSuccess) error = check_device(device);
    if (error == cudaSuccess && value == NULL) error = cudaErrorInvalidValue;
    if (error != cudaSuccess) return si_leave(error);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = 1024;
        break;
    case cudaDevAttrMaxGridDimX:
        *value = 2147483647;
        break;
    case cudaDevAttrWarpSize:
        *value = 32;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = MULTIPROCESSORS;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = COMPUTE_MAJOR;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = COMPUTE_MINOR;
        break;
    case cudaDevAttrMemoryPoolsSupported:
        *value = 1;
        break;
    default:
        si_misuse("cudaDeviceGetAttribute: attribute %d is not one that the stand-in knows", (int)attribute);
        error = cudaErrorInvalidValue;
    }
    return si_leave(error);
}

static cudaError_t version(const char *call, int *version_p)
{
    cudaError_t error = si_enter(call);
    if (error == cudaSuccess && version_p == NULL) error = cudaErrorInvalidValue;
    if (error == cudaSuccess) *version_p = VERSION;
    return si_leave(error);
}

cudaError_t cudaDriverGetVersion(int *version_p)
{
    return version("cudaDriverGetVersion", version_p);
}

cudaError_t cudaRuntimeGetVersion(int *version_p)
{
    return version("cudaRuntimeGetVersion", version_p);
}
