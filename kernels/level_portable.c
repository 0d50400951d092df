/* The operations in the instructions that every processor of the architecture has. */
#define ZB_LEVEL_PORTABLE 1
#define ZB_LEVEL_TABLE    zb_cpu_level_portable
#define ZB_LEVEL_NAME     "portable"
#include "kernels/operations.inc.c"
