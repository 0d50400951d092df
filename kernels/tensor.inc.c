/*
 * Arrays of fp32, fp16 or bf16, seen as fp32 a block at a time.
 *
 * An operation's formula is written once, on floats. An fp32 array is used where it lies, in one block; one
 * of 16 bits is widened into room on the stack that stays in the first-level cache, and its results are
 * rounded on the way back.
 */

enum { BLOCK = 1024 }; /* elements; a few such arrays of floats stay in the first-level cache */

/* For each block of at most `step` elements: `count` of them, from `first` on. */
#define ZB_EACH_BLOCK(first, count, numel, step)                                                             \
    for (size_t first = 0, count; first < (numel) && (count = smaller(step, (numel)-first), 1);              \
         first += count)

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t divide_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static inline int is_tensor_dtype(zb_dtype dtype)
{
    return dtype == ZB_FP32 || dtype == ZB_FP16 || dtype == ZB_BF16;
}

static zb_status check_dtype(const char *operation, zb_dtype dtype)
{
    if (is_tensor_dtype(dtype)) return ZB_OK;
    return zb_fail(ZB_UNSUPPORTED, "%s of %s; want fp32, fp16 or bf16", operation, zb_dtype_name(dtype));
}

/* Where element `index` of an array lies. */
static inline const void *const_element(zb_dtype dtype, const void *data, size_t index)
{
    return (const char *)data + index * (dtype == ZB_FP32 ? sizeof(float) : sizeof(uint16_t));
}
static inline void *element(zb_dtype dtype, void *data, size_t index)
{
    return (char *)data + index * (dtype == ZB_FP32 ? sizeof(float) : sizeof(uint16_t));
}

/* One element. `dtype` is a constant wherever speed matters. */
ZB_SPECIALISED float load_one(const zb_dtype dtype, const void *data, size_t i)
{
    if (dtype == ZB_FP32) return ((const float *)data)[i];
    const uint16_t bits = ((const uint16_t *)data)[i];
    return dtype == ZB_FP16 ? zb_float_from_fp16(bits) : zb_float_from_bf16(bits);
}
ZB_SPECIALISED void store_one(const zb_dtype dtype, void *data, size_t i, float x)
{
    if (dtype == ZB_FP32)
        ((float *)data)[i] = x;
    else
        ((uint16_t *)data)[i] = dtype == ZB_FP16 ? zb_fp16_from_float(x) : zb_bf16_from_float(x);
}

/* A vector of neighbours. */
ZB_SPECIALISED vec load_vec(const zb_dtype dtype, const void *from)
{
    return dtype == ZB_FP32 ? vec_load(from) : dtype == ZB_FP16 ? vec_load_fp16(from) : vec_load_bf16(from);
}
ZB_SPECIALISED vec load_vec_part(const zb_dtype dtype, const void *from, size_t count)
{
    if (dtype == ZB_FP32) return vec_load_part(from, count);
    return dtype == ZB_FP16 ? vec_load_part_fp16(from, count) : vec_load_part_bf16(from, count);
}

ZB_SPECIALISED void store_vec(const zb_dtype dtype, void *to, vec x)
{
    if (dtype == ZB_FP32)
        vec_store(to, x);
    else if (dtype == ZB_FP16)
        vec_store_fp16(to, x);
    else
        vec_store_bf16(to, x);
}

/* An even number of vectors. Those of bf16 come in pairs, of the even and the odd elements; bf16 to be stored
 * has been rounded. */
ZB_SPECIALISED void load_vecs(const zb_dtype dtype, const int vecs, const void *from, vec *x)
{
    ZB_UNROLL
    for (int v = 0; v < vecs; v += 2) {
        const void *at = const_element(dtype, from, (size_t)v * VL);
        if (dtype == ZB_BF16) {
            vec_load_pair_bf16(at, x + v);
        } else {
            x[v] = load_vec(dtype, at);
            x[v + 1] = load_vec(dtype, const_element(dtype, at, VL));
        }
    }
}
ZB_SPECIALISED void store_vecs(const zb_dtype dtype, const int vecs, void *to, const vec *x)
{
    ZB_UNROLL
    for (int v = 0; v < vecs; v += 2) {
        void *at = element(dtype, to, (size_t)v * VL);
        if (dtype == ZB_BF16) {
            vec_store_pair_bf16(at, x + v);
        } else {
            store_vec(dtype, at, x[v]);
            store_vec(dtype, element(dtype, at, VL), x[v + 1]);
        }
    }
}

static void widen_fp16(float *restrict to, const uint16_t *restrict from, size_t numel)
{
    size_t i = 0;
    for (; i + VL <= numel; i += VL) vec_store(to + i, vec_load_fp16(from + i));
    for (; i < numel; i++) to[i] = zb_float_from_fp16(from[i]);
}
static void widen_bf16(float *restrict to, const uint16_t *restrict from, size_t numel)
{
    size_t i = 0;
    for (; i + VL <= numel; i += VL) vec_store(to + i, vec_load_bf16(from + i));
    for (; i < numel; i++) to[i] = zb_float_from_bf16(from[i]);
}
static void narrow_fp16(uint16_t *restrict to, const float *restrict from, size_t numel)
{
    size_t i = 0;
    for (; i + VL <= numel; i += VL) vec_store_fp16(to + i, vec_load(from + i));
    for (; i < numel; i++) to[i] = zb_fp16_from_float(from[i]);
}
static void narrow_bf16(uint16_t *restrict to, const float *restrict from, size_t numel)
{
    size_t i = 0;
    for (; i + VL <= numel; i += VL) vec_store_bf16(to + i, vec_load(from + i));
    for (; i < numel; i++) to[i] = zb_bf16_from_float(from[i]);
}

static void widen(zb_dtype dtype, float *to, const void *from, size_t numel)
{
    if (dtype == ZB_FP16)
        widen_fp16(to, from, numel);
    else if (dtype == ZB_BF16)
        widen_bf16(to, from, numel);
    else if (numel > 0)
        memcpy(to, from, numel * sizeof to[0]);
}
static void narrow(zb_dtype dtype, void *to, const float *from, size_t numel)
{
    if (dtype == ZB_FP16)
        narrow_fp16(to, from, numel);
    else if (dtype == ZB_BF16)
        narrow_bf16(to, from, numel);
    else if (numel > 0)
        memcpy(to, from, numel * sizeof from[0]);
}

/* How many elements to treat at a time: all of them, unless some go through a room of BLOCK floats. */
static inline size_t block_step(int all_fp32, size_t numel)
{
    return all_fp32 ? numel : BLOCK;
}

/* Elements first .. first+count-1 as floats: where they are, or widened into `room`. */
static inline const float *block_read(zb_dtype dtype, const void *data, size_t first, size_t count,
                                      float *room)
{
    if (dtype == ZB_FP32) return (const float *)data + first;
    widen(dtype, room, const_element(dtype, data, first), count);
    return room;
}

/* The same, for operations that change them; to be followed by block_write. */
static inline float *block_update(zb_dtype dtype, void *data, size_t first, size_t count, float *room)
{
    if (dtype == ZB_FP32) return (float *)data + first;
    widen(dtype, room, const_element(dtype, data, first), count);
    return room;
}

/* Where the results for elements from `first` on go before block_write: to their place, or into `room`. */
static inline float *block_target(zb_dtype dtype, void *data, size_t first, float *room)
{
    return dtype == ZB_FP32 ? (float *)data + first : room;
}
static inline void block_write(zb_dtype dtype, void *data, size_t first, size_t count, const float *room)
{
    if (dtype != ZB_FP32) narrow(dtype, element(dtype, data, first), room, count);
}
