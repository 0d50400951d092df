/*
 * The matrix product: each output is one chain of fma over k, ascending.
 *
 * Blocks of k; for each, a block of A's rows is packed (it stays in the second-level cache), then one panel
 * of B's columns at a time (first level), and tiles of C are computed in registers from both. A tile loads
 * its partial sums from C and goes on, so that blocking does not change the chain. Packing takes any strides.
 * See Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008.
 */

#if defined(ZB_LEVEL_AVX512) /* 32 registers: 14 x 2 accumulators, 2 of B, 1 of A */
enum { TILE_ROWS = 14, TILE_VECS = 2, WIDE_ROWS = 4, WIDE_VECS = 6 };
#define ZB_TILES(X)                                                                                          \
    X(1, 1)                                                                                                  \
    X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(1, 6) X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(2, 5) X(2, 6) X(3, 1) X(3, 2)  \
        X(3, 3) X(3, 4) X(3, 5) X(3, 6) X(4, 1) X(4, 2) X(4, 3) X(4, 4) X(4, 5) X(4, 6) X(5, 1) X(5, 2)      \
            X(6, 1) X(6, 2) X(7, 1) X(7, 2) X(8, 1) X(8, 2) X(9, 1) X(9, 2) X(10, 1) X(10, 2) X(11, 1)       \
                X(11, 2) X(12, 1) X(12, 2) X(13, 1) X(13, 2) X(14, 1) X(14, 2)
#else /* 16 registers: 6 x 2 accumulators, 2 of B, 1 of A */
enum { TILE_ROWS = 6, TILE_VECS = 2, WIDE_ROWS = 2, WIDE_VECS = 5 };
#define ZB_TILES(X)                                                                                          \
    X(1, 1)                                                                                                  \
    X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(2, 5) X(3, 1) X(3, 2) X(4, 1) X(4, 2)  \
        X(5, 1) X(5, 2) X(6, 1) X(6, 2)
#endif

enum { K_BLOCK = 256, M_BLOCK = 768, PACKED_B_FLOATS = K_BLOCK * WIDE_VECS * VL };
_Static_assert(K_BLOCK *M_BLOCK + PACKED_B_FLOATS <= ZB_SCRATCH_FLOATS,
               "the panels must fit into the scratch");

typedef struct tile_args {
    size_t k;
    const float *a; /* packed: a[p * rows + i]                                 */
    const float *b;
    size_t b_row; /* b[p * b_row + j]; readable up to a whole last vector    */
    float *c;
    size_t c_row;
    size_t last_count; /* columns that exist in the last vector                   */
    int resume;        /* go on from c; else from +0                              */
    const float *bias; /* added at the end of the chain, or NULL                  */
} tile_args;

static inline __attribute__((always_inline)) void tile(const int rows, const int vecs, const tile_args *t)
{
    vec acc[TILE_ROWS][WIDE_VECS], b_vec[WIDE_VECS];
    const int last = vecs - 1;
    float *const c = t->c;
    const size_t c_row = t->c_row, b_row = t->b_row, last_count = t->last_count;
    if (t->resume) {
        ZB_UNROLL
        for (int i = 0; i < rows; i++) {
            ZB_UNROLL
            for (int v = 0; v < last; v++) acc[i][v] = vec_load(c + (size_t)i * c_row + v * VL);
            acc[i][last] = vec_load_part(c + (size_t)i * c_row + last * VL, last_count);
        }
    } else {
        ZB_UNROLL
        for (int i = 0; i < rows; i++) {
            ZB_UNROLL
            for (int v = 0; v < vecs; v++) acc[i][v] = vec_zero();
        }
    }
    const float *a = t->a, *b = t->b;
    for (size_t p = t->k; p > 0; p--, a += rows, b += b_row) {
        ZB_UNROLL
        for (int v = 0; v < vecs; v++) b_vec[v] = vec_load(b + v * VL);
        ZB_UNROLL
        for (int i = 0; i < rows; i++) {
            const vec a_vec = vec_all(a[i]);
            ZB_UNROLL
            for (int v = 0; v < vecs; v++) acc[i][v] = vec_fma(a_vec, b_vec[v], acc[i][v]);
        }
    }
    if (t->bias != NULL) {
        ZB_UNROLL
        for (int v = 0; v < last; v++) b_vec[v] = vec_load(t->bias + v * VL);
        b_vec[last] = vec_load_part(t->bias + last * VL, last_count);
        ZB_UNROLL
        for (int i = 0; i < rows; i++) {
            ZB_UNROLL
            for (int v = 0; v < vecs; v++) acc[i][v] = vec_add(acc[i][v], b_vec[v]);
        }
    }
    ZB_UNROLL
    for (int i = 0; i < rows; i++) {
        ZB_UNROLL
        for (int v = 0; v < last; v++) vec_store(c + (size_t)i * c_row + v * VL, acc[i][v]);
        vec_store_part(c + (size_t)i * c_row + last * VL, acc[i][last], last_count);
    }
}

#define ZB_TILE_FUNCTION(rows, vecs)                                                                         \
    static void tile_##rows##x##vecs(const tile_args *t)                                                     \
    {                                                                                                        \
        tile(rows, vecs, t);                                                                                 \
    }
ZB_TILES(ZB_TILE_FUNCTION)
#undef ZB_TILE_FUNCTION

static void (*const tiles[TILE_ROWS + 1][WIDE_VECS + 1])(const tile_args *) = {
#define ZB_TILE_ENTRY(rows, vecs) [rows][vecs] = tile_##rows##x##vecs,
    ZB_TILES(ZB_TILE_ENTRY)
#undef ZB_TILE_ENTRY
};
#undef ZB_TILES

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}
static inline size_t divide_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

/* to[p * width + i] = from[i * step + p * stride] for i < count; +0 for the rest of the width */
static void pack_rows(float *to, size_t width, const float *from, size_t count, size_t stride, size_t k)
{
    for (size_t p = 0; p < k; p++, to += width, from += stride) { /* step == 1 */
        size_t i = 0;
        for (; i + VL <= count; i += VL) vec_store(to + i, vec_load(from + i));
        if (i < count) vec_store_part(to + i, vec_load_part(from + i, count - i), count - i);
        for (i = count; i < width; i++) to[i] = 0;
    }
}

static void pack_transposed(float *to, size_t width, const float *from, size_t count, size_t step, size_t k)
{
    for (size_t i = 0; i < width; i += VL) { /* stride == 1 */
        const size_t store_count = smaller(VL, width - i);
        for (size_t p = 0; p < k; p += VL) {
            const size_t p_count = smaller(VL, k - p);
            vec rows[VL];
            for (size_t l = 0; l < VL; l++)
                rows[l] = i + l < count ? vec_load_part(from + (i + l) * step + p, p_count) : vec_zero();
            vec_transpose(rows);
            for (size_t l = 0; l < p_count; l++)
                vec_store_part(to + (p + l) * width + i, rows[l], store_count);
        }
    }
}

static void pack(float *to, size_t width, const float *from, size_t count, size_t step, size_t stride,
                 size_t k)
{
    if (step == 1) {
        pack_rows(to, width, from, count, stride, k);
    } else if (stride == 1) {
        pack_transposed(to, width, from, count, step, k);
    } else {
        for (size_t p = 0; p < k; p++)
            for (size_t i = 0; i < width; i++)
                to[p * width + i] = i < count ? from[i * step + p * stride] : 0;
    }
}

/* One block of k and of rows, all columns. */
typedef struct matmul_block {
    size_t row, rows, tile_rows; /* rows of C, and how many of them a tile takes */
    size_t p, k;
    int resume, last;
} matmul_block;

static void multiply_block(const zb_matmul_args *args, const matmul_block *block, size_t tile_vecs,
                           float *packed_a, float *packed_b)
{
    const size_t tile_columns = tile_vecs * VL;
    const float *a = args->a + block->row * args->a_row + block->p * args->a_col;
    for (size_t i = 0; i < block->rows; i += block->tile_rows) {
        const size_t rows = smaller(block->tile_rows, block->rows - i);
        pack(packed_a + i * block->k, rows, a + i * args->a_row, rows, args->a_row, args->a_col, block->k);
    }
    for (size_t j = 0; j < args->n; j += tile_columns) {
        const size_t columns = smaller(tile_columns, args->n - j), vecs = divide_up(columns, VL);
        const float *b = args->b + j * args->b_col + block->p * args->b_row;
        tile_args t = {
            .k = block->k,
            .b = b,
            .b_row = args->b_row,
            .c_row = args->c_row,
            .last_count = columns - (vecs - 1) * VL,
            .resume = block->resume,
            .bias = args->bias != NULL && block->last ? args->bias + j : NULL,
        };
        /* A panel that is used once and whose rows are whole vectors already can stay where it is. */
        if (block->rows > block->tile_rows || args->b_col != 1 || columns % VL != 0) {
            pack(packed_b, vecs * VL, b, columns, args->b_col, args->b_row, block->k);
            t.b = packed_b;
            t.b_row = vecs * VL;
        }
        for (size_t i = 0; i < block->rows; i += block->tile_rows) {
            t.a = packed_a + i * block->k;
            t.c = args->c + (block->row + i) * args->c_row + j;
            tiles[smaller(block->tile_rows, block->rows - i)][vecs](&t);
        }
    }
}

static zb_status op_matmul(const zb_matmul_args *args)
{
    if (args->m == 0 || args->n == 0) return ZB_OK;
    float *packed_a = zb_scratch_claim(), *packed_b = packed_a + K_BLOCK * M_BLOCK;
    const size_t tile_rows = divide_up(args->m, divide_up(args->m, TILE_ROWS)); /* even tiles */
    const size_t tile_vecs = args->m <= WIDE_ROWS ? WIDE_VECS : TILE_VECS;
    const size_t row_step = M_BLOCK / tile_rows * tile_rows;
    const size_t k_step = args->k == 0 ? 1 : divide_up(args->k, divide_up(args->k, K_BLOCK));
    size_t p = 0;
    do { /* once even for k = 0, which still writes C */
        matmul_block block = { .tile_rows = tile_rows, .p = p, .k = smaller(k_step, args->k - p) };
        block.resume = p > 0 || args->accumulate;
        block.last = p + block.k == args->k;
        for (block.row = 0; block.row < args->m; block.row += row_step) {
            block.rows = smaller(row_step, args->m - block.row);
            multiply_block(args, &block, tile_vecs, packed_a, packed_b);
        }
        p += block.k;
    } while (p < args->k);
    zb_scratch_release(packed_a);
    return ZB_OK;
}
