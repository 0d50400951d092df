/* A file that is either whole or not there; see output_file.h. */
#include "core/output_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zerobit/memory.h>

enum { NAME_ATTEMPTS = 1000 };

/*
 * The names of temporary files, where a signal handler can read them: in memory that is never freed, since
 * the handler may run on another thread. A name that is just being given up is one of a file that is gone, so
 * that removing it does nothing.
 */
static struct named {
    atomic_int taken, whole; /* whole: `path` can be read */
    char path[PATH_MAX];
} named[ZB_OUTPUT_NAMED_MAX];

static int name_keep(const char *path)
{
    for (int i = 0; i < ZB_OUTPUT_NAMED_MAX; i++) {
        if (atomic_exchange(&named[i].taken, 1)) continue;
        snprintf(named[i].path, sizeof named[i].path, "%s", path);
        atomic_store(&named[i].whole, 1);
        return i;
    }
    return -1;
}

static void name_forget(int index)
{
    if (index < 0) return;
    atomic_store(&named[index].whole, 0);
    atomic_store(&named[index].taken, 0);
}

void zb_output_files_remove(void)
{
    for (int i = 0; i < ZB_OUTPUT_NAMED_MAX; i++)
        if (atomic_load(&named[i].whole)) unlink(named[i].path);
}

static zb_status cannot_be_written(const char *path, int reason)
{
    return zb_fail(ZB_IO, "%s: cannot be written: %s", path, strerror(reason));
}

static zb_status check_place(const zb_output_file *file)
{
    struct stat info;
    if (file->existing == ZB_OUTPUT_KEEP && lstat(file->path, &info) == 0)
        return zb_fail(ZB_IO, "%s: exists already, and is not overwritten; remove it or choose another name",
                       file->path);
    if (stat(file->path, &info) != 0 || S_ISREG(info.st_mode)) return ZB_OK;
    if (S_ISDIR(info.st_mode)) return cannot_be_written(file->path, EISDIR);
    /* rename would put a plain file in the place of the device or the pipe. */
    return zb_fail(ZB_IO, "%s: cannot be written: not a regular file", file->path);
}

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
        if (file->stream != NULL) {
            file->named = name_keep(file->temporary_path);
            return ZB_OK;
        }
        int reason = errno;
        close(descriptor);
        unlink(file->temporary_path);
        errno = reason;
        break;
    }
    return cannot_be_written(file->path, errno);
}

zb_status zb_output_file_open(zb_output_file *file, const char *path, zb_output_existing existing)
{
    *file = (zb_output_file){ .existing = existing, .named = -1 };
    file->path = zb_strdup(path);
    zb_status status = file->path != NULL ? check_place(file) : ZB_NO_MEMORY;
    if (status == ZB_OK) status = open_temporary(file);
    if (status != ZB_OK) zb_output_file_discard(file);
    return status;
}

zb_status zb_output_file_write(zb_output_file *file, const void *data, size_t bytes)
{
    if (bytes == 0 || fwrite(data, 1, bytes, file->stream) == bytes) return ZB_OK;
    return cannot_be_written(file->path, errno);
}

/* Flushed to disk before the name says that it is whole. Closes the stream in every case. */
static zb_status close_stream(zb_output_file *file)
{
    /* An earlier write that failed, and was not looked at, has left no errno: EIO stands for it. */
    int reason = ferror(file->stream) ? EIO : 0;
    if (reason == 0 && (fflush(file->stream) != 0 || fsync(fileno(file->stream)) != 0)) reason = errno;
    if (fclose(file->stream) != 0 && reason == 0) reason = errno;
    file->stream = NULL;
    return reason == 0 ? ZB_OK : cannot_be_written(file->path, reason);
}

zb_status zb_output_file_finish(zb_output_file *file)
{
    zb_status status = close_stream(file);
    /* Again: the work in between may have taken hours. */
    if (status == ZB_OK) status = check_place(file);
    if (status == ZB_OK && rename(file->temporary_path, file->path) != 0)
        status = cannot_be_written(file->path, errno);
    if (status != ZB_OK) unlink(file->temporary_path);
    name_forget(file->named);
    zb_output_file_discard(file);
    return status;
}

void zb_output_file_discard(zb_output_file *file)
{
    if (file->stream != NULL) {
        fclose(file->stream);
        unlink(file->temporary_path);
        name_forget(file->named);
    }
    zb_free(file->temporary_path);
    zb_free(file->path);
    *file = (zb_output_file){ 0 };
}
