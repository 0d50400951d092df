/* NCCL's numbers, as its documentation gives them: both headers have to have them. */
#include <limits.h>
#include <nccl.h>
#include <stddef.h>

_Static_assert(ncclSuccess == 0 && ncclUnhandledCudaError == 1 && ncclSystemError == 2 &&
                   ncclInternalError == 3 && ncclInvalidArgument == 4 && ncclInvalidUsage == 5 &&
                   ncclRemoteError == 6 && ncclInProgress == 7,
               "results");
_Static_assert(ncclInt8 == 0 && ncclUint8 == 1 && ncclInt32 == 2 && ncclUint32 == 3 && ncclInt64 == 4 &&
                   ncclUint64 == 5 && ncclFloat16 == 6 && ncclFloat32 == 7 && ncclFloat64 == 8 &&
                   ncclBfloat16 == 9,
               "types");
_Static_assert(ncclSum == 0 && ncclProd == 1 && ncclMax == 2 && ncclMin == 3 && ncclAvg == 4 &&
                   ncclNumOps == 5,
               "operators");
_Static_assert(ncclScalarDevice == 0 && ncclScalarHostImmediate == 1, "residences");
_Static_assert(sizeof(ncclUniqueId) == NCCL_UNIQUE_ID_BYTES && NCCL_UNIQUE_ID_BYTES == 128, "ids");
_Static_assert(NCCL_SPLIT_NOCOLOR == -1, "no color");
_Static_assert(offsetof(ncclConfig_t, blocking) == 16, "the beginning of a configuration");
