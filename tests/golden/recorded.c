/* See recorded.h. */
#include "tests/golden/recorded.h"

#include <stdio.h>
#include <zerobit/memory.h>

#include "tests/kernels/support.h"

static recorded read_tensor(const zb_safetensors *file, const char *name)
{
    recorded made = { .found = zb_safetensors_find(file, name) };
    if (made.found == NULL) return made;
    made.values = zb_alloc_array(made.found->numel, sizeof *made.values);
    assert_non_null(made.values);
    assert_ok(zb_safetensors_read(file, made.found, made.values));
    return made;
}

recorded recorded_find(const zb_safetensors *file, const char *format, ...)
{
    char name[ZB_NAME_BYTES];
    va_list list;
    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    return read_tensor(file, name);
}

recorded recorded_get(const zb_safetensors *file, const char *format, ...)
{
    char name[ZB_NAME_BYTES];
    va_list list;
    va_start(list, format);
    vsnprintf(name, sizeof name, format, list);
    va_end(list);
    const recorded made = read_tensor(file, name);
    if (made.found == NULL) fail_msg("%s has no tensor %s", file->path, name);
    return made;
}

void recorded_destroy(recorded *made)
{
    zb_free(made->values);
    *made = (recorded){ 0 };
}
