/* A file that is either whole or not there. */
#include "verify/output_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <zerobit/memory.h>

enum { NAME_ATTEMPTS = 1000 };

static zb_status open_temporary(zb_output_file *file)
{
    size_t bytes = strlen(file->path) + 48;
    file->temporary_path = zb_alloc(bytes);
    if (file->temporary_path == NULL) return ZB_NO_MEMORY;
    for (int attempt = 0; attempt < NAME_ATTEMPTS; attempt++) {
        snprintf(file->temporary_path, bytes, "%s.tmp-%ld-%d", file->path, (long)getpid(), attempt);
        /* Not mkstemp: that would give the finished file mode 0600, whatever the umask. */
        int descriptor = open(file->temporary_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor < 0 && errno == EEXIST) continue;
        if (descriptor < 0) break;
        file->stream = fdopen(descriptor, "wb");
        if (file->stream != NULL) return ZB_OK;
        int reason = errno;
        close(descriptor);
        unlink(file->temporary_path);
        errno = reason;
        break;
    }
    return zb_fail(ZB_IO, "%s: cannot be written: %s", file->path, strerror(errno));
}

zb_status zb_output_file_open(zb_output_file *file, const char *path)
{
    *file = (zb_output_file){ 0 };
    file->path = zb_strdup(path);
    zb_status status = file->path != NULL ? open_temporary(file) : ZB_NO_MEMORY;
    if (status != ZB_OK) zb_output_file_discard(file);
    return status;
}

zb_status zb_output_file_write(zb_output_file *file, const void *data, size_t bytes)
{
    if (fwrite(data, 1, bytes, file->stream) != bytes)
        return zb_fail(ZB_IO, "%s: cannot be written: %s", file->path, strerror(errno));
    return ZB_OK;
}

zb_status zb_output_file_finish(zb_output_file *file)
{
    int failed = fflush(file->stream) != 0 || ferror(file->stream) || fsync(fileno(file->stream)) != 0;
    int reason = errno;
    if (fclose(file->stream) != 0 && !failed) {
        failed = 1;
        reason = errno;
    }
    file->stream = NULL;
    if (!failed && rename(file->temporary_path, file->path) != 0) {
        failed = 1;
        reason = errno;
    }
    if (failed) {
        unlink(file->temporary_path);
        zb_fail(ZB_IO, "%s: cannot be written: %s", file->path, strerror(reason));
    }
    zb_output_file_discard(file);
    return failed ? ZB_IO : ZB_OK;
}

void zb_output_file_discard(zb_output_file *file)
{
    if (file->stream != NULL) {
        fclose(file->stream);
        unlink(file->temporary_path);
    }
    zb_free(file->temporary_path);
    zb_free(file->path);
    *file = (zb_output_file){ 0 };
}
