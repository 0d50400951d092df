/* See safetensors.h. Nothing in a file is believed before it has been checked against the file's size. */
#include "core/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zerobit/memory.h>

#include "core/model_parts.h"
#include "core/output_file.h"

enum {
    LENGTH_BYTES = 8,
    FORMAT_HEADER_BYTES_MAX = 100000000, /* the format's own limit */
    CHUNK_BYTES = 32 * 1024
};

#define METADATA_KEY "__metadata__"

/* --- little-endian bytes, on any host --- */

static uint64_t load_le(const unsigned char *bytes, int count)
{
    uint64_t value = 0;
    for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

static void store_le(uint64_t value, unsigned char *bytes, int count)
{
    for (int i = 0; i < count; i++) bytes[i] = (unsigned char)(value >> (8 * i));
}

static uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Every fp16 value is an fp32 value: only the exponent's bias and the place of the mantissa change. */
static uint32_t widen_fp16(uint32_t half)
{
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 0x1fu, mantissa = half & 0x3ffu;
    if (exponent == 0x1f) return sign | 0x7f800000u | mantissa << 13;
    if (exponent != 0) return sign | (exponent + 112u) << 23 | mantissa << 13;
    if (mantissa == 0) return sign;
    /* subnormal: shift until the leading one is the hidden bit */
    exponent = 113u;
    while (!(mantissa & 0x400u)) {
        mantissa <<= 1;
        exponent--;
    }
    return sign | exponent << 23 | (mantissa & 0x3ffu) << 13;
}

static void decode(const unsigned char *bytes, zb_dtype dtype, size_t numel, float *values)
{
    switch (dtype) {
    case ZB_FP32:
        for (size_t i = 0; i < numel; i++) values[i] = float_from_bits((uint32_t)load_le(bytes + 4 * i, 4));
        return;
    case ZB_FP16:
        for (size_t i = 0; i < numel; i++)
            values[i] = float_from_bits(widen_fp16((uint32_t)load_le(bytes + 2 * i, 2)));
        return;
    default:
        for (size_t i = 0; i < numel; i++)
            values[i] = float_from_bits((uint32_t)load_le(bytes + 2 * i, 2) << 16);
        return;
    }
}

/* --- reading: the header --- */

/* Reads exactly `bytes` bytes. */
static zb_status read_at(int file, const char *path, uint64_t offset, void *buffer, size_t bytes)
{
    char *to = buffer;
    while (bytes > 0) {
        ssize_t got = pread(file, to, bytes, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return zb_fail(ZB_IO, "%s: cannot be read: %s", path, strerror(errno));
        if (got == 0)
            return zb_fail(ZB_CORRUPT, "%s: ends at byte %" PRIu64 ", expected %zu more", path, offset,
                           bytes);
        to += got;
        offset += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return ZB_OK;
}

/* What json.h refuses is a damaged file here, not somebody's config. */
static zb_status as_corrupt(zb_status status)
{
    return status == ZB_INVALID_CONFIG ? zb_fail(ZB_CORRUPT, "%s", zb_error_message()) : status;
}

static zb_status read_dtype(const zb_json_at *at, int takes_numbers, zb_dtype *dtype)
{
    enum { WEIGHTS = 3, NUMBERS = 6 };
    static const struct {
        const char *text;
        zb_dtype dtype;
    } dtypes[NUMBERS] = { { "F32", ZB_FP32 }, { "F16", ZB_FP16 },  { "BF16", ZB_BF16 },
                          { "F64", ZB_FP64 }, { "I32", ZB_INT32 }, { "I64", ZB_INT64 } };
    const char *text;
    ZB_TRY(zb_json_string(at, &text));
    for (int i = 0; i < (takes_numbers ? NUMBERS : WEIGHTS); i++) {
        if (strcmp(text, dtypes[i].text) == 0) {
            *dtype = dtypes[i].dtype;
            return ZB_OK;
        }
    }
    return zb_json_fail(at, ZB_UNSUPPORTED,
                        takes_numbers ? "F32, F16, BF16, F64, I32 or I64" : "F32, F16 or BF16");
}

static zb_status read_shape(const zb_json_at *at, zb_shape *shape, size_t *numel)
{
    size_t dims;
    ZB_TRY(zb_json_array(at, &dims));
    if (dims > ZB_MAX_DIMS) return zb_json_fail(at, ZB_UNSUPPORTED, "at most %d dimensions", ZB_MAX_DIMS);
    *shape = (zb_shape){ .dims = (int)dims };
    int64_t product = 1, *extent = shape->extent;
    for (zb_json_at child = zb_json_first(at); child.value != NULL; child = zb_json_next(&child)) {
        ZB_TRY(zb_json_int64(&child, 0, ZB_JSON_MAX_INTEGER, extent));
        if (__builtin_mul_overflow(product, *extent++, &product) || product > ZB_TENSOR_NUMEL_MAX)
            return zb_json_fail(at, ZB_CORRUPT, "at most %lld elements", (long long)ZB_TENSOR_NUMEL_MAX);
    }
    *numel = (size_t)product;
    return ZB_OK;
}

static zb_status read_offsets(const zb_json_at *at, zb_safetensors_tensor *tensor)
{
    if (!cJSON_IsArray(at->value) || cJSON_GetArraySize(at->value) != 2)
        return zb_json_fail(at, ZB_CORRUPT, "[first byte, end]");
    int64_t first, end;
    zb_json_at child = zb_json_first(at);
    ZB_TRY(zb_json_int64(&child, 0, ZB_JSON_MAX_INTEGER, &first));
    child = zb_json_next(&child);
    ZB_TRY(zb_json_int64(&child, 0, ZB_JSON_MAX_INTEGER, &end));
    uint64_t wanted = (uint64_t)tensor->numel * zb_dtype_bytes(tensor->dtype);
    if (end < first || (uint64_t)(end - first) != wanted)
        return zb_json_fail(at, ZB_CORRUPT, "%" PRIu64 " bytes for %zu elements of %s", wanted, tensor->numel,
                            zb_dtype_name(tensor->dtype));
    tensor->first_byte = (uint64_t)first;
    tensor->end_byte = (uint64_t)end;
    return ZB_OK;
}

static zb_status read_tensor(const zb_json_at *at, int takes_numbers, zb_safetensors_tensor *tensor)
{
    static const char *const keys[] = { "dtype", "shape", "data_offsets", NULL };
    ZB_TRY(zb_json_object(at));
    ZB_TRY(zb_json_check_keys(at, keys));
    zb_json_at dtype = zb_json_member(at, "dtype"), shape = zb_json_member(at, "shape"),
               offsets = zb_json_member(at, "data_offsets");
    tensor->name = at->name;
    ZB_TRY(read_dtype(&dtype, takes_numbers, &tensor->dtype));
    ZB_TRY(read_shape(&shape, &tensor->shape, &tensor->numel));
    return read_offsets(&offsets, tensor);
}

/* Free text, of strings only; nothing here uses it. */
static zb_status check_metadata(const zb_json_at *at)
{
    ZB_TRY(zb_json_object(at));
    const char *text;
    for (zb_json_at child = zb_json_first(at); child.value != NULL; child = zb_json_next(&child))
        ZB_TRY(zb_json_string(&child, &text));
    return ZB_OK;
}

static zb_status read_tensors(zb_safetensors *file)
{
    zb_json_at root = zb_json_root(file->header);
    ZB_TRY(zb_json_object(&root));
    file->tensors = zb_alloc_array((size_t)cJSON_GetArraySize(root.value), sizeof *file->tensors);
    if (file->tensors == NULL) return ZB_NO_MEMORY;
    for (zb_json_at at = zb_json_first(&root); at.value != NULL; at = zb_json_next(&at)) {
        if (strcmp(at.name, METADATA_KEY) == 0)
            ZB_TRY(check_metadata(&at));
        else
            ZB_TRY(read_tensor(&at, file->takes_numbers, &file->tensors[file->count++]));
    }
    return ZB_OK;
}

static int compare_places(const void *a, const void *b)
{
    const zb_safetensors_tensor *x = a, *y = b;
    if (x->first_byte != y->first_byte) return x->first_byte < y->first_byte ? -1 : 1;
    return x->end_byte < y->end_byte ? -1 : x->end_byte > y->end_byte;
}

/* The tensors must lie one behind the other from the first byte to the last. Sorts them so. */
static zb_status check_cover(zb_safetensors *file, uint64_t data_bytes)
{
    uint64_t end = 0;
    if (file->count > 0) qsort(file->tensors, file->count, sizeof *file->tensors, compare_places);
    for (size_t i = 0; i < file->count; i++) {
        const zb_safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->first_byte != end)
            return zb_fail(ZB_CORRUPT,
                           "%s: tensor \"%s\" begins at byte %" PRIu64 " of the data, expected %" PRIu64
                           ", where %s ends",
                           file->path, tensor->name, tensor->first_byte, end,
                           i > 0 ? file->tensors[i - 1].name : "the header");
        end = tensor->end_byte;
    }
    if (end != data_bytes)
        return zb_fail(ZB_CORRUPT,
                       "%s: the tensors take %" PRIu64 " bytes, the file has %" PRIu64 " behind its header",
                       file->path, end, data_bytes);
    return ZB_OK;
}

/* Reads the header's text into *json_p. */
static zb_status read_header(zb_safetensors *file, uint64_t file_bytes)
{
    unsigned char length_bytes[LENGTH_BYTES];
    if (file_bytes < sizeof length_bytes)
        return zb_fail(ZB_CORRUPT, "%s: has %" PRIu64 " bytes, a safetensors file has at least %d",
                       file->path, file_bytes, LENGTH_BYTES);
    ZB_TRY(read_at(file->file, file->path, 0, length_bytes, sizeof length_bytes));
    uint64_t header_bytes = load_le(length_bytes, LENGTH_BYTES);
    if (header_bytes > file_bytes - LENGTH_BYTES)
        return zb_fail(ZB_CORRUPT,
                       "%s: says that its header has %" PRIu64 " bytes, but only %" PRIu64 " follow",
                       file->path, header_bytes, file_bytes - LENGTH_BYTES);
    if (header_bytes > FORMAT_HEADER_BYTES_MAX || header_bytes > ZB_JSON_MAX_BYTES)
        return zb_fail(header_bytes > FORMAT_HEADER_BYTES_MAX ? ZB_CORRUPT : ZB_UNSUPPORTED,
                       "%s: has a header of %" PRIu64 " bytes, expected at most %d", file->path, header_bytes,
                       ZB_JSON_MAX_BYTES);

    char *text = zb_alloc((size_t)header_bytes);
    if (text == NULL) return ZB_NO_MEMORY;
    zb_status status = read_at(file->file, file->path, LENGTH_BYTES, text, (size_t)header_bytes);
    if (status == ZB_OK && (header_bytes == 0 || text[0] != '{'))
        status = zb_fail(ZB_CORRUPT, "%s: is no safetensors file: its header does not begin with {",
                         file->path);
    if (status == ZB_OK) status = zb_json_parse(text, (size_t)header_bytes, file->path, &file->header);
    zb_free(text);
    file->data_at = LENGTH_BYTES + header_bytes;
    return status;
}

static zb_status read_structure(zb_safetensors *file)
{
    struct stat info;
    if (fstat(file->file, &info) != 0)
        return zb_fail(ZB_IO, "%s: cannot be examined: %s", file->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return zb_fail(ZB_IO, "%s: is no regular file", file->path);
    ZB_TRY(as_corrupt(read_header(file, (uint64_t)info.st_size)));
    ZB_TRY(as_corrupt(read_tensors(file)));
    return check_cover(file, (uint64_t)info.st_size - file->data_at);
}

static zb_status open_file(const char *path, int takes_numbers, zb_safetensors *file)
{
    /* O_NONBLOCK: a pipe is refused by what it is, not waited for. */
    zb_safetensors opened = { .path = path,
                              .takes_numbers = takes_numbers,
                              .file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) };
    if (opened.file < 0) return zb_fail(ZB_IO, "%s: cannot be opened: %s", path, strerror(errno));
    zb_status status = read_structure(&opened);
    if (status != ZB_OK) {
        zb_safetensors_close(&opened);
        return status;
    }
    *file = opened;
    return ZB_OK;
}

zb_status zb_safetensors_open(const char *path, zb_safetensors *file)
{
    return open_file(path, 0, file);
}

zb_status zb_safetensors_open_numbers(const char *path, zb_safetensors *file)
{
    return open_file(path, 1, file);
}

void zb_safetensors_close(zb_safetensors *file)
{
    close(file->file); /* only read from: nothing to lose */
    zb_free(file->tensors);
    zb_json_destroy(file->header);
}

/* --- reading: tensors --- */

const zb_safetensors_tensor *zb_safetensors_find(const zb_safetensors *file, const char *name)
{
    for (size_t i = 0; i < file->count; i++)
        if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
    return NULL;
}

/* Elements of the file, little endian, to the host's. */
static void decode_as_is(const unsigned char *bytes, size_t element_bytes, size_t numel, void *values)
{
    for (size_t i = 0; i < numel; i++) {
        const uint64_t bits = load_le(bytes + i * element_bytes, (int)element_bytes);
        const uint32_t low = (uint32_t)bits;
        const uint16_t lowest = (uint16_t)bits;
        const void *from = element_bytes == 8   ? (const void *)&bits
                           : element_bytes == 4 ? (const void *)&low
                                                : &lowest;
        memcpy((unsigned char *)values + i * element_bytes, from, element_bytes);
    }
}

zb_status zb_safetensors_read_as_is(const zb_safetensors *file, const zb_safetensors_tensor *tensor,
                                    void *values)
{
    unsigned char chunk[CHUNK_BYTES];
    const size_t element_bytes = zb_dtype_bytes(tensor->dtype), chunk_numel = sizeof chunk / element_bytes;
    for (size_t first = 0; first < tensor->numel; first += chunk_numel) {
        const size_t numel = tensor->numel - first < chunk_numel ? tensor->numel - first : chunk_numel;
        ZB_TRY(read_at(file->file, file->path, file->data_at + tensor->first_byte + first * element_bytes,
                       chunk, numel * element_bytes));
        decode_as_is(chunk, element_bytes, numel, (unsigned char *)values + first * element_bytes);
    }
    return ZB_OK;
}

zb_status zb_safetensors_read(const zb_safetensors *file, const zb_safetensors_tensor *tensor, float *values)
{
    unsigned char chunk[CHUNK_BYTES];
    size_t element_bytes = zb_dtype_bytes(tensor->dtype), chunk_numel = sizeof chunk / element_bytes;
    for (size_t first = 0; first < tensor->numel; first += chunk_numel) {
        size_t numel = tensor->numel - first < chunk_numel ? tensor->numel - first : chunk_numel;
        ZB_TRY(read_at(file->file, file->path, file->data_at + tensor->first_byte + first * element_bytes,
                       chunk, numel * element_bytes));
        decode(chunk, tensor->dtype, numel, values + first);
    }
    return ZB_OK;
}

/* --- writing --- */

/* `name` as a JSON string; of printable ASCII only the quote and the backslash need a backslash. */
static const char *quote(const char *name, char text[2 * ZB_NAME_BYTES + 2])
{
    ZB_ASSERT(strlen(name) < ZB_NAME_BYTES);
    char *to = text;
    *to++ = '"';
    for (; *name != '\0'; name++) {
        if (*name == '"' || *name == '\\') *to++ = '\\';
        *to++ = *name;
    }
    *to++ = '"';
    *to = '\0';
    return text;
}

/* The header with the length in front of it. The caller frees *header_p. */
static zb_status make_header(const zb_safetensors_source *tensors, size_t count, char **header_p,
                             size_t *bytes_p)
{
    enum { ENTRY_BYTES = 2 * ZB_NAME_BYTES + ZB_SHAPE_TEXT_BYTES + 128 };
    if (count > FORMAT_HEADER_BYTES_MAX / ENTRY_BYTES)
        return zb_fail(ZB_UNSUPPORTED, "%zu tensors are too many for the header of one safetensors file",
                       count);
    size_t capacity = (count + 1) * ENTRY_BYTES, used = LENGTH_BYTES;
    char *header = zb_alloc(capacity);
    if (header == NULL) return ZB_NO_MEMORY;
    /* "pt" tells PyTorch's loaders whose tensors these are. */
    used += (size_t)snprintf(header + used, capacity - used, "{\"" METADATA_KEY "\":{\"format\":\"pt\"}");
    uint64_t at = 0;
    for (size_t i = 0; i < count; i++) {
        char name[2 * ZB_NAME_BYTES + 2], shape[ZB_SHAPE_TEXT_BYTES];
        uint64_t end = at + (uint64_t)tensors[i].numel * sizeof(float);
        used += (size_t)snprintf(
            header + used, capacity - used,
            ",%s:{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
            quote(tensors[i].name, name), zb_shape_format(tensors[i].shape, shape), at, end);
        at = end;
    }
    ZB_ASSERT(used + 1 + 8 < capacity);
    header[used++] = '}';
    while (used % 8 != 0) header[used++] = ' '; /* the format wants the data aligned */
    store_le(used - LENGTH_BYTES, (unsigned char *)header, LENGTH_BYTES);
    *header_p = header;
    *bytes_p = used;
    return ZB_OK;
}

static zb_status write_values(zb_output_file *file, const zb_safetensors_source *tensor)
{
    unsigned char chunk[CHUNK_BYTES];
    size_t chunk_numel = sizeof chunk / sizeof(float);
    for (size_t first = 0; first < tensor->numel; first += chunk_numel) {
        size_t numel = tensor->numel - first < chunk_numel ? tensor->numel - first : chunk_numel;
        for (size_t i = 0; i < numel; i++) store_le(float_bits(tensor->values[first + i]), chunk + 4 * i, 4);
        ZB_TRY(zb_output_file_write(file, chunk, numel * sizeof(float)));
    }
    return ZB_OK;
}

static zb_status write_content(zb_output_file *file, const zb_safetensors_source *tensors, size_t count)
{
    char *header = NULL;
    size_t header_bytes = 0;
    ZB_TRY(make_header(tensors, count, &header, &header_bytes));
    zb_status status = zb_output_file_write(file, header, header_bytes);
    zb_free(header);
    for (size_t i = 0; i < count && status == ZB_OK; i++) status = write_values(file, &tensors[i]);
    return status == ZB_OK ? zb_output_file_finish(file) : status;
}

zb_status zb_safetensors_write(const char *path, const zb_safetensors_source *tensors, size_t count)
{
    zb_output_file file;
    ZB_TRY(zb_output_file_open(&file, path, ZB_OUTPUT_REPLACE));
    zb_status status = write_content(&file, tensors, count);
    zb_output_file_discard(&file);
    return status;
}
