/* Whether all ranks have been given the same: digests of what a run is made from, compared over a
 * communicator. */
#ifndef TOOLS_FINGERPRINT_H
#define TOOLS_FINGERPRINT_H

#include <zerobit/comm.h>

#include "tools/inputs.h"
#include "tools/options.h"

/**
 * Collective. ZB_INVALID_ARGUMENT, on every rank with the same words, names the first rank that has something
 * else than rank 0, and what: the inputs, or an option of the command, as its table has them now.
 */
zb_status fingerprint_compare(zb_comm *comm, const inputs *in, const command_spec *command);

#endif
