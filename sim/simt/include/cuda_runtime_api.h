/* What kernels/cuda needs of CUDA's header of this name, where there is no toolkit. */
#ifndef ZB_SIM_SIMT_CUDA_RUNTIME_API_H
#define ZB_SIM_SIMT_CUDA_RUNTIME_API_H

typedef struct CUstream_st *cudaStream_t;

#endif
