/*
 * The numbers of CUDA's constants. This file is compiled against the stand-in's header, and, where the
 * toolkit is present, against its own: both have these.
 */
#include <cuda_runtime_api.h>

#define IS(name, number) _Static_assert((name) == (number), #name " is " #number)

IS(cudaSuccess, 0);
IS(cudaErrorInvalidValue, 1);
IS(cudaErrorMemoryAllocation, 2);
IS(cudaErrorInitializationError, 3);
IS(cudaErrorInvalidConfiguration, 9);
IS(cudaErrorInvalidDevicePointer, 17);
IS(cudaErrorInvalidMemcpyDirection, 21);
IS(cudaErrorInsufficientDriver, 35);
IS(cudaErrorInvalidDeviceFunction, 98);
IS(cudaErrorNoDevice, 100);
IS(cudaErrorInvalidDevice, 101);
IS(cudaErrorNoKernelImageForDevice, 209);
IS(cudaErrorECCUncorrectable, 214);
IS(cudaErrorInvalidResourceHandle, 400);
IS(cudaErrorNotReady, 600);
IS(cudaErrorSystemNotReady, 802);
IS(cudaErrorSystemDriverMismatch, 803);
IS(cudaErrorCompatNotSupportedOnDevice, 804);
IS(cudaErrorIllegalAddress, 700);
IS(cudaErrorLaunchOutOfResources, 701);
IS(cudaErrorLaunchTimeout, 702);
IS(cudaErrorMisalignedAddress, 716);
IS(cudaErrorLaunchFailure, 719);
IS(cudaErrorNotSupported, 801);
IS(cudaErrorTimeout, 909);
IS(cudaErrorUnknown, 999);
IS(cudaMemcpyHostToHost, 0);
IS(cudaMemcpyHostToDevice, 1);
IS(cudaMemcpyDeviceToHost, 2);
IS(cudaMemcpyDeviceToDevice, 3);
IS(cudaMemcpyDefault, 4);
IS(cudaDevAttrMaxThreadsPerBlock, 1);
IS(cudaDevAttrMaxGridDimX, 5);
IS(cudaDevAttrWarpSize, 10);
IS(cudaDevAttrMultiProcessorCount, 16);
IS(cudaDevAttrComputeCapabilityMajor, 75);
IS(cudaDevAttrComputeCapabilityMinor, 76);
IS(cudaDevAttrMemoryPoolsSupported, 115);
IS(cudaMemoryTypeUnregistered, 0);
IS(cudaMemoryTypeHost, 1);
IS(cudaMemoryTypeDevice, 2);
IS(cudaMemoryTypeManaged, 3);
IS(cudaMemPoolReuseFollowEventDependencies, 1);
IS(cudaMemPoolReuseAllowOpportunistic, 2);
IS(cudaMemPoolReuseAllowInternalDependencies, 3);
IS(cudaMemPoolAttrReleaseThreshold, 4);
IS(cudaMemPoolAttrReservedMemCurrent, 5);
IS(cudaMemPoolAttrReservedMemHigh, 6);
IS(cudaMemPoolAttrUsedMemCurrent, 7);
IS(cudaMemPoolAttrUsedMemHigh, 8);
IS(cudaMemAllocationTypeInvalid, 0);
IS(cudaMemAllocationTypePinned, 1);
IS(cudaMemHandleTypeNone, 0);
IS(cudaMemLocationTypeInvalid, 0);
IS(cudaMemLocationTypeDevice, 1);
IS(cudaStreamDefault, 0x00);
IS(cudaStreamNonBlocking, 0x01);
IS(cudaEventDefault, 0x00);
IS(cudaEventBlockingSync, 0x01);
IS(cudaEventDisableTiming, 0x02);
IS(cudaEventInterprocess, 0x04);
IS(cudaEventWaitDefault, 0x00);
IS(cudaEventWaitExternal, 0x01);
