/*
 * The matrix product: each output is one chain of fma over k, ascending.
 *
 * Blocks of columns, of k and of rows, in this nesting. A block of B is packed into panels as wide as a tile,
 * a block of A into panels as high; a block of A stays in the second-level cache, a panel of B in the first,
 * and tiles of C are computed in registers from two panels. A tile loads its partial sums from C and goes on,
 * so that blocking does not change the chain. Packing takes any strides. See Goto and van de Geijn, "Anatomy
 * of High-Performance Matrix Multiplication", 2008.
 */

/*
 * Tiles of `rows` x `vecs` vectors: as many accumulators as there are registers beside `vecs` of B and one of
 * A. Few rows make wide tiles, since an fma takes longer than two of them take to start.
 */
#if defined(ZB_LEVEL_AVX512) /* 32 registers */
enum { TILE_ROWS = 14, TILE_VECS = 6 };
static const unsigned char widest_tile[TILE_ROWS + 1] = { 0, 6, 6, 6, 6, 5, 4, 3, 3, 3, 2, 2, 2, 2, 2 };
/* clang-format off */
#define ZB_TILES(X) \
    X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(1, 6) X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(2, 5) X(2, 6) \
    X(3, 1) X(3, 2) X(3, 3) X(3, 4) X(3, 5) X(3, 6) X(4, 1) X(4, 2) X(4, 3) X(4, 4) X(4, 5) X(4, 6) \
    X(5, 1) X(5, 2) X(5, 3) X(5, 4) X(5, 5) X(6, 1) X(6, 2) X(6, 3) X(6, 4) X(7, 1) X(7, 2) X(7, 3) \
    X(8, 1) X(8, 2) X(8, 3) X(9, 1) X(9, 2) X(9, 3) X(10, 1) X(10, 2) X(11, 1) X(11, 2) X(12, 1) \
    X(12, 2) X(13, 1) X(13, 2) X(14, 1) X(14, 2)
/* clang-format on */
#else /* 16 registers */
enum { TILE_ROWS = 6, TILE_VECS = 5 };
static const unsigned char widest_tile[TILE_ROWS + 1] = { 0, 5, 5, 3, 3, 2, 2 };
/* clang-format off */
#define ZB_TILES(X) \
    X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(2, 5) X(3, 1) X(3, 2) \
    X(3, 3) X(4, 1) X(4, 2) X(4, 3) X(5, 1) X(5, 2) X(6, 1) X(6, 2)
/* clang-format on */
#endif

/* A block of A takes 600 kB of the second-level cache, one of B 790 kB, which may lie in the third. */
enum { K_BLOCK = 384, M_BLOCK = 392, N_BLOCK = 512, IN_PLACE_FLOATS = 16 * 1024 };
_Static_assert(ZB_SCRATCH_FLOATS >= K_BLOCK * (M_BLOCK + N_BLOCK) + M_BLOCK * N_BLOCK,
               "the panels and a block of C must fit into the scratch");
_Static_assert(N_BLOCK >= TILE_VECS * VL, "a block must hold the widest tile");
_Static_assert(K_BLOCK % VL == 0, "blocks of k are whole vectors");

typedef struct tile_args {
    size_t k;
    const float *a; /* packed: a[p * rows + i]                                 */
    const float *b;
    size_t b_row;      /* b[p * b_row + j]; readable up to a whole last vector    */
    float *c, *next_c; /* the tile that comes after this one is fetched meanwhile */
    size_t c_row;
    size_t last_count; /* columns that exist in the last vector                   */
    int resume;        /* go on from c; else from +0                              */
    const float *bias; /* added at the end of the chain, or NULL                  */
} tile_args;

ZB_SPECIALISED void tile(const int rows, const int vecs, const tile_args *t)
{
    vec acc[TILE_ROWS][TILE_VECS], b_vec[TILE_VECS];
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
    if (t->k >= 32) { /* time enough for it to arrive */
        ZB_UNROLL
        for (int i = 0; i < rows; i++) {
            ZB_UNROLL
            for (int v = 0; v < vecs; v++) __builtin_prefetch(t->next_c + (size_t)i * c_row + v * VL, 1);
        }
    }
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

static void (*const tiles[TILE_ROWS + 1][TILE_VECS + 1])(const tile_args *) = {
#define ZB_TILE_ENTRY(rows, vecs) [rows][vecs] = tile_##rows##x##vecs,
    ZB_TILES(ZB_TILE_ENTRY)
#undef ZB_TILE_ENTRY
};
#undef ZB_TILES

/*
 * Packing, for one type of element: to[p * width + i] = from[i * step + p * stride] for i < count, +0 for the
 * rest of the width.
 */

/* step 1 */
ZB_SPECIALISED void pack_rows(const zb_dtype dtype, float *to, size_t width, const void *from, size_t count,
                              size_t stride, size_t k)
{
    for (size_t p = 0; p < k; p++, to += width, from = const_element(dtype, from, stride)) {
        size_t i = 0;
        for (; i + VL <= count; i += VL) {
            vec_store(to + i, load_vec(dtype, const_element(dtype, from, i)));
            /* the next panel: rows may be a page apart */
            __builtin_prefetch(const_element(dtype, from, width + i), 0, 2);
        }
        if (i < count)
            vec_store_part(to + i, load_vec_part(dtype, const_element(dtype, from, i), count - i), count - i);
        for (i = count; i < width; i++) to[i] = 0;
    }
}

/* A block of VL x VL, whole on both sides. Apart from the loops around it: a transpose needs the registers.
 */
static __attribute__((noinline)) void transpose_whole(const zb_dtype dtype, float *to, size_t width,
                                                      const void *from, size_t step)
{
    vec rows[VL];
    ZB_UNROLL
    for (int l = 0; l < VL; l++) rows[l] = load_vec(dtype, const_element(dtype, from, (size_t)l * step));
    vec_transpose(rows);
    ZB_UNROLL
    for (int l = 0; l < VL; l++) vec_store(to + (size_t)l * width, rows[l]);
}

/* Only `count` rows and `k` columns of the block exist; `stored` floats of each packed row may be written. */
static __attribute__((noinline)) void transpose_part(const zb_dtype dtype, float *to, size_t width,
                                                     const void *from, size_t step, size_t count, size_t k,
                                                     size_t stored)
{
    vec rows[VL];
    ZB_UNROLL
    for (size_t l = 0; l < VL; l++)
        rows[l] = l < count ? load_vec_part(dtype, const_element(dtype, from, l * step), k) : vec_zero();
    vec_transpose(rows);
    ZB_UNROLL
    for (size_t l = 0; l < VL; l++)
        if (l < k) vec_store_part(to + l * width, rows[l], stored);
}

/* stride 1 */
ZB_SPECIALISED void pack_columns(const zb_dtype dtype, float *to, size_t width, const void *from,
                                 size_t count, size_t step, size_t k)
{
    for (size_t i = 0; i < width; i += VL) {
        for (size_t p = 0; p < k; p += VL) {
            float *block_to = to + p * width + i;
            const void *block_from = const_element(dtype, from, i * step + p);
            if (i + VL <= count && p + VL <= k)
                transpose_whole(dtype, block_to, width, block_from, step);
            else
                transpose_part(dtype, block_to, width, block_from, step,
                               i < count ? smaller(VL, count - i) : 0, smaller(VL, k - p),
                               smaller(VL, width - i));
        }
    }
}

ZB_SPECIALISED void pack_any(const zb_dtype dtype, float *to, size_t width, const void *from, size_t count,
                             size_t step, size_t stride, size_t k)
{
    if (step == 1) {
        pack_rows(dtype, to, width, from, count, stride, k);
    } else if (stride == 1) {
        pack_columns(dtype, to, width, from, count, step, k);
    } else {
        for (size_t p = 0; p < k; p++)
            for (size_t i = 0; i < width; i++)
                to[p * width + i] = i < count ? load_one(dtype, from, i * step + p * stride) : 0;
    }
}

static void pack(zb_dtype dtype, float *to, size_t width, const void *from, size_t count, size_t step,
                 size_t stride, size_t k)
{
    if (dtype == ZB_FP32)
        pack_any(ZB_FP32, to, width, from, count, step, stride, k);
    else if (dtype == ZB_FP16)
        pack_any(ZB_FP16, to, width, from, count, step, stride, k);
    else
        pack_any(ZB_BF16, to, width, from, count, step, stride, k);
}

/* A product whose result is fp32, whatever a and b are. */
typedef struct product {
    zb_dtype dtype; /* of a and b */
    size_t m, n, k;
    const void *a;
    size_t a_row, a_col;
    const void *b;
    size_t b_row, b_col;
    float *c;
    size_t c_row;
    const float *bias;
    int accumulate;
} product;

/* A block of C and the part of the chains that it goes through. */
typedef struct matmul_block {
    size_t row, rows, column, columns; /* of C */
    size_t p, k;
    size_t tile_rows, tile_columns;
    size_t in_place;  /* columns of B that are not packed; the first ones */
    int resume, last; /* whether chains go on from C, and whether they end here */
} matmul_block;

/*
 * How many of the block's columns of B the tiles can read where they are: panels that are used once, or so
 * small that they stay in the first-level cache, and whose rows are whole vectors.
 */
static size_t columns_in_place(const product *args, const matmul_block *block)
{
    const int used_often = args->m > block->tile_rows && args->b_row * block->k > IN_PLACE_FLOATS;
    if (args->dtype != ZB_FP32 || args->b_col != 1 || used_often) return 0;
    return block->columns % VL == 0 ? block->columns
                                    : block->columns / block->tile_columns * block->tile_columns;
}

/* The other columns, panel after panel. */
static void pack_b(const product *args, const matmul_block *block, float *packed_b)
{
    const void *b = const_element(args->dtype, args->b, block->column * args->b_col + block->p * args->b_row);
    for (size_t j = block->in_place; j < block->columns; j += block->tile_columns) {
        const size_t columns = smaller(block->tile_columns, block->columns - j);
        pack(args->dtype, packed_b + j * block->k, divide_up(columns, VL) * VL,
             const_element(args->dtype, b, j * args->b_col), columns, args->b_col, args->b_row, block->k);
    }
}

static void multiply_block(const product *args, const matmul_block *block, float *packed_a,
                           const float *packed_b)
{
    const void *a = const_element(args->dtype, args->a, block->row * args->a_row + block->p * args->a_col);
    for (size_t i = 0; i < block->rows; i += block->tile_rows) {
        const size_t rows = smaller(block->tile_rows, block->rows - i);
        pack(args->dtype, packed_a + i * block->k, rows, const_element(args->dtype, a, i * args->a_row), rows,
             args->a_row, args->a_col, block->k);
    }
    for (size_t j = 0; j < block->columns; j += block->tile_columns) {
        const size_t columns = smaller(block->tile_columns, block->columns - j),
                     vecs = divide_up(columns, VL);
        float *c = args->c + block->row * args->c_row + block->column + j;
        tile_args t = {
            .k = block->k,
            .c_row = args->c_row,
            .last_count = columns - (vecs - 1) * VL,
            .resume = block->resume,
            .bias = args->bias != NULL && block->last ? args->bias + block->column + j : NULL,
        };
        if (j < block->in_place) {
            t.b = (const float *)args->b + (block->column + j) * args->b_col + block->p * args->b_row;
            t.b_row = args->b_row;
        } else {
            t.b = packed_b + j * block->k;
            t.b_row = vecs * VL;
        }
        for (size_t i = 0; i < block->rows; i += block->tile_rows) {
            const size_t rows = smaller(block->tile_rows, block->rows - i), rest = block->rows - i - rows;
            t.a = packed_a + i * block->k;
            t.c = c + i * args->c_row;
            t.next_c = rest > 0 ? t.c + rows * args->c_row : j + columns < block->columns ? c + columns : t.c;
            tiles[rows][vecs](&t);
        }
    }
}

static void multiply(const product *args, float *packed_a, float *packed_b)
{
    matmul_block block = { .tile_rows = divide_up(args->m, divide_up(args->m, TILE_ROWS)) }; /* even tiles */
    block.tile_columns = (size_t)widest_tile[block.tile_rows] * VL;
    const size_t row_step = M_BLOCK / block.tile_rows * block.tile_rows;
    const size_t column_step = N_BLOCK / block.tile_columns * block.tile_columns;
    /* Even blocks of k too, in whole vectors for the sake of packing. */
    const size_t k_step = args->k == 0 ? 1
                                       : divide_up(divide_up(args->k, divide_up(args->k, K_BLOCK)), VL) * VL;
    for (; block.column < args->n; block.column += column_step) {
        block.columns = smaller(column_step, args->n - block.column);
        block.p = 0;
        do { /* once even for k = 0, which still writes C */
            block.k = smaller(k_step, args->k - block.p);
            block.resume = block.p > 0 || args->accumulate;
            block.last = block.p + block.k == args->k;
            block.in_place = columns_in_place(args, &block);
            pack_b(args, &block, packed_b);
            for (block.row = 0; block.row < args->m; block.row += row_step) {
                block.rows = smaller(row_step, args->m - block.row);
                multiply_block(args, &block, packed_a, packed_b);
            }
            block.p += block.k;
        } while (block.p < args->k);
    }
}

/* c is fp32: the chains may rest in it. */
static void matmul_fp32(const zb_matmul_args *args, float *scratch)
{
    multiply(&(product){ .dtype = ZB_FP32,
                         .m = args->m,
                         .n = args->n,
                         .k = args->k,
                         .a = args->a,
                         .a_row = args->a_row,
                         .a_col = args->a_col,
                         .b = args->b,
                         .b_row = args->b_row,
                         .b_col = args->b_col,
                         .c = args->c,
                         .c_row = args->c_row,
                         .bias = args->bias,
                         .accumulate = args->accumulate },
             scratch, scratch + K_BLOCK * M_BLOCK);
}

/* c in blocks that fit the scratch as fp32: each is a product of its own, rounded when its chains are
 * complete. */
static void matmul_half(const zb_matmul_args *args, float *scratch)
{
    const zb_dtype dtype = args->dtype;
    float *packed_b = scratch + K_BLOCK * M_BLOCK, *c = packed_b + K_BLOCK * N_BLOCK;
    float bias[N_BLOCK];
    const size_t row_step = divide_up(args->m, divide_up(args->m, M_BLOCK));
    ZB_EACH_BLOCK(column, columns, args->n, N_BLOCK)
    {
        if (args->bias != NULL) widen(dtype, bias, const_element(dtype, args->bias, column), columns);
        ZB_EACH_BLOCK(row, rows, args->m, row_step)
        {
            multiply(&(product){ .dtype = dtype,
                                 .m = rows,
                                 .n = columns,
                                 .k = args->k,
                                 .a = const_element(dtype, args->a, row * args->a_row),
                                 .a_row = args->a_row,
                                 .a_col = args->a_col,
                                 .b = const_element(dtype, args->b, column * args->b_col),
                                 .b_row = args->b_row,
                                 .b_col = args->b_col,
                                 .c = c,
                                 .c_row = columns,
                                 .bias = args->bias != NULL ? bias : NULL },
                     scratch, packed_b);
            for (size_t i = 0; i < rows; i++)
                narrow(dtype, element(dtype, args->c, (row + i) * args->c_row + column), c + i * columns,
                       columns);
        }
    }
}

static zb_status op_matmul(const zb_matmul_args *args)
{
    ZB_TRY(check_dtype("matmul", args->dtype));
    if (args->accumulate && args->dtype != ZB_FP32)
        return zb_fail(ZB_UNSUPPORTED, "matmul of %s cannot accumulate; want fp32",
                       zb_dtype_name(args->dtype));
    if (args->m == 0 || args->n == 0) return ZB_OK;
    float *scratch;
    ZB_TRY(zb_scratch_claim(&scratch));
    if (args->dtype == ZB_FP32)
        matmul_fp32(args, scratch);
    else
        matmul_half(args, scratch);
    zb_scratch_release(scratch);
    return ZB_OK;
}
