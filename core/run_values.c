/* Numbers of a recorded run; see run_values.h. */
#include "core/run_values.h"

#include <ctype.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zerobit/memory.h>

#include "core/safetensors.h"

struct zb_run_file {
    char *name; /* beside the JSON text */
    char *path;
    zb_safetensors tensors;
};

static void close_file(struct zb_run_file *file)
{
    zb_free(file->name);
    zb_free(file->path);
}

void zb_run_values_close(zb_run_values *values)
{
    for (size_t i = 0; i < values->count; i++) {
        zb_safetensors_close(&values->files[i].tensors);
        close_file(&values->files[i]);
    }
    zb_free(values->files);
    *values = (zb_run_values){ 0 };
}

/* --- tensors of files: "FILE#NAME" --- */

static zb_status path_beside(const char *path, const char *name, char **out)
{
    const char *slash = strrchr(path, '/');
    const size_t folder = slash != NULL ? (size_t)(slash - path) + 1 : 0, bytes = folder + strlen(name) + 1;
    char *made = zb_alloc(bytes);
    if (made == NULL) return ZB_NO_MEMORY;
    snprintf(made, bytes, "%.*s%s", (int)folder, path, name);
    *out = made;
    return ZB_OK;
}

static zb_status open_file(const zb_run_values *values, const char *name, struct zb_run_file *file)
{
    struct zb_run_file opened = { .name = zb_strdup(name) };
    zb_status status = opened.name == NULL ? ZB_NO_MEMORY : path_beside(values->path, name, &opened.path);
    if (status == ZB_OK) status = zb_safetensors_open(opened.path, &opened.tensors);
    if (status != ZB_OK)
        close_file(&opened);
    else
        *file = opened;
    return status;
}

static zb_status find_file(zb_run_values *values, const char *name, const zb_safetensors **out)
{
    for (size_t i = 0; i < values->count; i++)
        if (strcmp(values->files[i].name, name) == 0) {
            *out = &values->files[i].tensors;
            return ZB_OK;
        }
    struct zb_run_file *files = zb_realloc(values->files, (values->count + 1) * sizeof *files);
    if (files == NULL) return ZB_NO_MEMORY;
    values->files = files;
    ZB_TRY(open_file(values, name, &files[values->count]));
    *out = &files[values->count++].tensors;
    return ZB_OK;
}

static zb_status find_tensor(zb_run_values *values, const zb_json_at *at, const zb_safetensors **file,
                             const zb_safetensors_tensor **tensor)
{
    static const char want[] = "FILE#NAME, a tensor of a safetensors file in the same folder";
    char name[256];
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    const char *mark = strchr(text, '#');
    if (mark == NULL || mark == text || (size_t)(mark - text) >= sizeof name ||
        memchr(text, '/', (size_t)(mark - text)) != NULL)
        return zb_json_fail(at, ZB_INVALID_CONFIG, "%s", want);
    snprintf(name, sizeof name, "%.*s", (int)(mark - text), text);
    ZB_TRY(find_file(values, name, file));
    *tensor = zb_safetensors_find(*file, mark + 1);
    if (*tensor == NULL) return zb_json_fail(at, ZB_INVALID_CONFIG, "a tensor that %s has", (*file)->path);
    return ZB_OK;
}

/* --- bits in the text --- */

/* The 8 digits of an fp32 bit pattern. */
static zb_status read_bits(const zb_json_at *at, float *out)
{
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    size_t digits = 0;
    while (isxdigit((unsigned char)text[digits])) digits++;
    if (digits != 8 || text[8] != '\0')
        return zb_json_fail(at, ZB_INVALID_CONFIG, "the 8 hexadecimal digits of an fp32 bit pattern");
    const uint32_t bits = (uint32_t)strtoul(text, NULL, 16);
    memcpy(out, &bits, sizeof bits);
    return ZB_OK;
}

/* --- either --- */

static int is_text(const zb_json_at *at)
{
    return cJSON_IsString(at->value);
}

zb_status zb_run_values_count(zb_run_values *values, const zb_json_at *at, size_t *numel)
{
    const zb_safetensors *file;
    const zb_safetensors_tensor *tensor;
    if (!is_text(at)) return zb_json_array(at, numel);
    ZB_TRY(find_tensor(values, at, &file, &tensor));
    *numel = tensor->numel;
    return ZB_OK;
}

zb_status zb_run_values_expect(zb_run_values *values, const zb_json_at *at, size_t want)
{
    size_t numel = 0;
    ZB_TRY(zb_run_values_count(values, at, &numel));
    if (numel != want) return zb_json_fail(at, ZB_INVALID_CONFIG, "an array of %zu", want);
    return ZB_OK;
}

zb_status zb_run_values_read(zb_run_values *values, const zb_json_at *at, float *out)
{
    const zb_safetensors *file;
    const zb_safetensors_tensor *tensor;
    if (is_text(at)) {
        ZB_TRY(find_tensor(values, at, &file, &tensor));
        return zb_safetensors_read(file, tensor, out);
    }
    for (zb_json_at bits = zb_json_first(at); bits.value != NULL; bits = zb_json_next(&bits))
        ZB_TRY(read_bits(&bits, out++));
    return ZB_OK;
}
