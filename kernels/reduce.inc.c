/*
 * REDUCE, the one fixed shape for sums that are no chain: 32 lanes, then a binary tree over the lanes.
 *
 * Everything here may leave out additions of +0: a lane starts at +0 and so never holds -0, and x + 0 is x
 * for every other x.
 */

enum { LANES = 32 };

/* A sum in progress: `numel` elements have been added, in order. */
typedef struct reduction {
    float lanes[LANES];
    size_t numel;
} reduction;

static inline void reduction_add_one(reduction *r, float x)
{
    r->lanes[r->numel % LANES] += x;
    r->numel++;
}

/* Blocks of 32, with the lanes in registers. */
static inline void reduction_add_blocks(float *lanes, const float *x, size_t block_count)
{
    float sum[LANES];
    memcpy(sum, lanes, sizeof sum);
    for (size_t b = 0; b < block_count; b++, x += LANES)
        for (int l = 0; l < LANES; l++) sum[l] += x[l];
    memcpy(lanes, sum, sizeof sum);
}

static inline void reduction_add(reduction *r, const float *x, size_t numel)
{
    size_t i = 0;
    while (i < numel && r->numel % LANES != 0) reduction_add_one(r, x[i++]);
    size_t block_count = (numel - i) / LANES;
    reduction_add_blocks(r->lanes, x + i, block_count);
    r->numel += block_count * LANES;
    i += block_count * LANES;
    while (i < numel) reduction_add_one(r, x[i++]);
}

static inline float reduction_result(reduction *r)
{
    for (int s = LANES / 2; s > 0; s /= 2)
        for (int l = 0; l < s; l++) r->lanes[l] += r->lanes[l + s];
    return r->lanes[0];
}

/* sums[j] = REDUCE over i < rows of x[i * columns + j], for `width` <= COLUMN_BLOCK neighbouring columns at
 * once. */
enum { COLUMN_BLOCK = 64 };

static void reduce_columns(zb_dtype dtype, const void *x, size_t rows, size_t columns, size_t width,
                           void *sums)
{
    float lanes[LANES][COLUMN_BLOCK], room[COLUMN_BLOCK];
    int lane_count = rows < LANES ? (int)rows : LANES;
    memset(lanes, 0, sizeof lanes[0] * (size_t)(lane_count > 0 ? lane_count : 1));
    for (size_t i = 0; i < rows; i++) {
        float *lane = lanes[i % LANES];
        const float *row = block_read(dtype, x, i * columns, width, room);
        for (size_t j = 0; j < width; j++) lane[j] += row[j];
    }
    for (int s = LANES / 2; s > 0; s /= 2)
        for (int l = 0; l < s && l + s < lane_count; l++)
            for (size_t j = 0; j < width; j++) lanes[l][j] += lanes[l + s][j];
    narrow(dtype, sums, lanes[0], width);
}
