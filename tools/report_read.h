/* A report that another process has written as JSON (report.h), read back. */
#ifndef TOOLS_REPORT_READ_H
#define TOOLS_REPORT_READ_H

#include <zerobit/verify.h>

/* What is to be filled in. */
typedef struct report_target {
    const char *ranks;     /* what the cases are marked with; NULL: "mpi" */
    zb_verify_case *cases; /* [case_count]; stage, world_size and dtype are set, and every one must be in the
                              report, once */
    int case_count;
    zb_verify_relation *relations; /* those of the report are put behind what is there */
    int relation_capacity, relation_count;
    char order[512]; /* of addition; cut */
} report_target;

/** `label` names the text in messages. ZB_CORRUPT for anything else than such a report. */
zb_status report_read(const char *text, size_t bytes, const char *label, report_target *target);

#endif
