/*
 * A file that is either whole or not there: written beside its place, flushed to disk, and put into its place
 * by rename. Whatever breaks off in between, a crash included, what stood at `path` before stands there
 * still.
 */
#ifndef ZB_CORE_OUTPUT_FILE_H
#define ZB_CORE_OUTPUT_FILE_H

#include <stddef.h>
#include <stdio.h>
#include <zerobit/status.h>

typedef enum zb_output_existing {
    ZB_OUTPUT_REPLACE, /* a regular file at `path` is replaced */
    ZB_OUTPUT_KEEP     /* anything at `path` is refused        */
} zb_output_existing;

enum { ZB_OUTPUT_NAMED_MAX = 16 }; /* how many can be open at once and be found by zb_output_files_remove */

typedef struct zb_output_file {
    FILE *stream;                /* NULL: not open */
    char *path, *temporary_path; /* owned */
    zb_output_existing existing;
    int named; /* index of its name among those that zb_output_files_remove knows; -1: none was free */
} zb_output_file;

/** ZB_IO before anything is written when the result could not be put at `path`: no such folder, a folder, a
 * device, a pipe. */
zb_status zb_output_file_open(zb_output_file *file, const char *path, zb_output_existing existing);
zb_status zb_output_file_write(zb_output_file *file, const void *data, size_t bytes);
/** Whatever happens, the file is closed and nothing temporary is left. */
zb_status zb_output_file_finish(zb_output_file *file);
/** Without finish: removes what was written. Fine to repeat, on a zero file, and after finish. */
void zb_output_file_discard(zb_output_file *file);

/** For a signal that ends the process: removes what is temporary, of all files that are open. Calls nothing
 * that a signal handler must not call; no file may be used after it. */
void zb_output_files_remove(void);

#endif
