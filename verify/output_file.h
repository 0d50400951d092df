/* A file that is either whole or not there: written beside its place, put into it by rename. */
#ifndef VERIFY_OUTPUT_FILE_H
#define VERIFY_OUTPUT_FILE_H

#include <stddef.h>
#include <stdio.h>
#include <zerobit/status.h>

typedef struct zb_output_file {
    FILE *stream;
    char *path, *temporary_path; /* owned */
} zb_output_file;

zb_status zb_output_file_open(zb_output_file *file, const char *path);
zb_status zb_output_file_write(zb_output_file *file, const void *data, size_t bytes);
/** Flushed to disk and renamed. Whatever happens, the file is closed and nothing temporary is left. */
zb_status zb_output_file_finish(zb_output_file *file);
/** Without finish: removes what was written. Fine to repeat, and after finish. */
void zb_output_file_discard(zb_output_file *file);

#endif
