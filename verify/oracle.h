/* The oracle of a verification, made from its options: whoever runs it for a class of stages, and again to
 * explain a difference. */
#ifndef VERIFY_ORACLE_H
#define VERIFY_ORACLE_H

#include <zerobit/ref.h>
#include <zerobit/verify.h>

typedef struct zb_oracle_options {
    const zb_verify_options *verify;
    const zb_plan *plan;
    const int *group_of;   /* [param_count] the parameter group of each */
    const zb_route *route; /* NULL: rank order */
    int with_contributions, with_bounds;
} zb_oracle_options;

zb_status zb_oracle_create(const zb_oracle_options *options, zb_ref **ref_p);

#endif
