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

/* At most SQUARE_BLOCK elements. */
static void sum_squares_block(zb_dtype dtype, const void *x, size_t numel, int64_t *accumulator)
{
    uint64_t bins[SQUARE_TABLES][ZB_SQUARE_BINS];
    float room[BLOCK];
    memset(bins, 0, sizeof bins);
    ZB_EACH_BLOCK(first, count, numel, block_step(dtype == ZB_FP32, numel))
    {
        bin_squares(bins, block_read(dtype, x, first, count, room), count);
    }
    int special = 0;
    for (size_t t = 0; t < SQUARE_TABLES; t++) {
        uint64_t subnormals[ZB_SQUARE_BINS] = { [1] = bins[t][0] };
        zb_sum_squares_add_bins(accumulator, bins[t]);
        if (bins[t][0] != 0) zb_sum_squares_add_bins(accumulator, subnormals);
        special |= bins[t][255] != 0;
    }
    if (!special) return;
    ZB_EACH_BLOCK(first, count, numel, block_step(dtype == ZB_FP32, numel))
    {
        count_special(block_read(dtype, x, first, count, room), count, accumulator);
    }
}

static zb_status op_sum_squares(const zb_sum_squares_args *args)
{
    ZB_TRY(check_dtype("sum_squares", args->dtype));
    zb_sum_squares_normalise(args->accumulator);
    ZB_EACH_BLOCK(first, count, args->numel, SQUARE_BLOCK)
    {
        sum_squares_block(args->dtype, const_element(args->dtype, args->x, first), count, args->accumulator);
    }
    return ZB_OK;
}
