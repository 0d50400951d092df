/* The exact sum of squares: sorted by exponent into bins of integers first, which then become digits. */

/* Several tables, so that neighbours of equal exponent do not wait for one another. */
enum { SQUARE_TABLES = 4, SQUARE_BLOCK = SQUARE_TABLES * ZB_SQUARE_BIN_ADDS_MAX };

static inline void bin_square(uint64_t *bins, float x)
{
    const uint32_t bits = zb_float_bits(x), exponent = bits >> 23 & 255;
    const uint32_t mantissa = (bits & 0x7fffff) | (exponent != 0 ? 0x800000 : 0);
    bins[exponent] += (uint64_t)mantissa * mantissa;
}

/* Bins 0 (subnormals, which share their unit with exponent 1) and 255 (no numbers) are not meant for digits.
 */
static void count_special(const float *x, size_t numel, int64_t *accumulator)
{
    int64_t infinities = 0, nans = 0;
    for (size_t i = 0; i < numel; i++) {
        const uint32_t magnitude = zb_float_bits(x[i]) & 0x7fffffff;
        infinities += magnitude == 0x7f800000;
        nans += magnitude > 0x7f800000;
    }
    accumulator[ZB_SUM_SQUARES_INF] += infinities;
    accumulator[ZB_SUM_SQUARES_NAN] += nans;
}

static void bin_squares(uint64_t bins[SQUARE_TABLES][ZB_SQUARE_BINS], const float *x, size_t numel)
{
    size_t i = 0;
    for (; i + SQUARE_TABLES <= numel; i += SQUARE_TABLES)
        for (size_t t = 0; t < SQUARE_TABLES; t++) bin_square(bins[t], x[i + t]);
    for (; i < numel; i++) bin_square(bins[0], x[i]);
}

/* A sum under way. */
typedef struct square_bins {
    uint64_t table[SQUARE_TABLES][ZB_SQUARE_BINS];
    size_t count; /* squares in the tables */
    int64_t *accumulator;
} square_bins;

static void square_bins_open(square_bins *b, int64_t *accumulator)
{
    memset(b->table, 0, sizeof b->table);
    b->count = 0;
    b->accumulator = accumulator;
    zb_sum_squares_normalise(accumulator);
}

static void square_bins_flush(square_bins *b)
{
    for (size_t t = 0; t < SQUARE_TABLES; t++) {
        uint64_t subnormals[ZB_SQUARE_BINS] = { [1] = b->table[t][0] };
        zb_sum_squares_add_bins(b->accumulator, b->table[t]);
        if (b->table[t][0] != 0) zb_sum_squares_add_bins(b->accumulator, subnormals);
    }
    memset(b->table, 0, sizeof b->table);
    b->count = 0;
}

static void square_bins_close(square_bins *b)
{
    if (b->count > 0) square_bins_flush(b);
}

/* Until the last call `numel` is a multiple of SQUARE_TABLES, so that the tables fill evenly. */
static void square_bins_add(square_bins *b, const float *x, size_t numel)
{
    for (size_t first = 0, count; first < numel; first += count) {
        if (b->count == SQUARE_BLOCK) square_bins_flush(b);
        count = smaller(numel - first, SQUARE_BLOCK - b->count);
        bin_squares(b->table, x + first, count);
        b->count += count;
        uint64_t special = 0;
        for (size_t t = 0; t < SQUARE_TABLES; t++) special |= b->table[t][255], b->table[t][255] = 0;
        if (special != 0) count_special(x + first, count, b->accumulator);
    }
}

static zb_status op_sum_squares(const zb_sum_squares_args *args)
{
    ZB_TRY(check_dtype("sum_squares", args->dtype));
    float room[BLOCK];
    square_bins bins;
    square_bins_open(&bins, args->accumulator);
    ZB_EACH_BLOCK(first, count, args->numel, block_step(args->dtype == ZB_FP32, args->numel))
    {
        square_bins_add(&bins, block_read(args->dtype, args->x, first, count, room), count);
    }
    square_bins_close(&bins);
    return ZB_OK;
}
