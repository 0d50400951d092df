typedef int zb_kernels_empty;
