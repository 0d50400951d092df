/* What ranks compute on, by name: --device, and the rungs of `verify --against`. */
#ifndef TOOLS_DEVICES_H
#define TOOLS_DEVICES_H

#include <zerobit/device.h>

#include "tools/command.h"

/**
 * "cpu" or "cuda". EXIT_EQUAL and the factory, which is static; or it has been said why not: EXIT_USAGE for
 * another name, EXIT_LACKING where this build or this machine has no such thing. poisoning: reading dead
 * memory shows.
 */
exit_code devices_find(const char *command, const char *option, const char *name, int poisoning,
                       const zb_device_factory **devices_p);

/** The GPU that this process's ranks compute on; the first one, unless it is told. */
void devices_use_gpu(int ordinal);

#endif
