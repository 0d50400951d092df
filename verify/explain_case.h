/* Of a case whose first difference is a reduced gradient: was it added in another order, or is it another
 * value? */
#ifndef VERIFY_EXPLAIN_CASE_H
#define VERIFY_EXPLAIN_CASE_H

#include <zerobit/verify.h>

#include "verify/record_list.h"

/** Whether the difference is of the kind that can be explained. */
int zb_case_is_explainable(const zb_verify_case *result);

/**
 * Fills in explanation and verdict of *result. gradients: GRAD of all ranks at the step of the difference,
 * not sealed; it is changed. The oracle is run once more, up to that step, to see what ranks should have
 * sent.
 */
zb_status zb_case_explain(const zb_verify_options *options, const int *group_of, zb_record_list *gradients,
                          zb_verify_case *result);

#endif
