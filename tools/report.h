/* What `zerobit verify` has to say: as a table, as JSON (docs/command.md), as JUnit's XML. */
#ifndef TOOLS_REPORT_H
#define TOOLS_REPORT_H

#include <stdio.h>
#include <zerobit/verify.h>

typedef struct verify_report {
    const zb_config *config; /* for its path and notes */
    const char *model, *data;
    int64_t steps, seed;
    const char *order; /* of addition; NULL: that of ranks */
    const zb_verify_case *cases;
    int case_count;
    const zb_verify_relation *relations; /* between classes of stages */
    int relation_count;
    double seconds;
} verify_report;

int report_all_equal(const verify_report *report);
void report_table(const verify_report *report, FILE *to);
/** Only the cases that are not equal, one sentence each; the table ends with them. */
void report_unequal(const verify_report *report, FILE *to);
/** "equal", "different" or "failed". */
const char *report_result_word(zb_status status);
enum { REPORT_NUMBER_BYTES = 32 };
/** 1234567 as "1,234,567"; returns text. */
const char *report_grouped(uint64_t value, char text[REPORT_NUMBER_BYTES]);
/** The text and a line's end. "-": standard output; otherwise the file is replaced as a whole, or not at all.
 */
zb_status report_put_text(const char *path, const char *text, size_t bytes);
/** Likewise. */
zb_status report_json(const verify_report *report, const char *path);
zb_status report_junit(const verify_report *report, const char *path);

#endif
