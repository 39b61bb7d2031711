/* Products of rows with matrices, in float.
 *
 * A matrix of weights [out, in] is kept in panels: [ceil(out / COLUMNS), in, COLUMNS], zeros behind the last row. So a
 * step reads each weight once and in order, whatever its number of rows. Every row is summed up in the same order
 * whatever else is in the batch: its result does not depend on that.
 */
#define COLUMNS (2 * LANES)
#define MOST_ROWS 8 /* that are summed up at once, in registers */
#define DEPTH 256   /* so many products are summed up before memory is written: such a panel stays in cache */
#define ROWS 64     /* that share a panel while it is in cache */

struct matrix {
    const float *panels;
    int64_t num_out, num_in;
};

/* How many rows keep their sums in registers on this processor; 0: vectors are too short, or their number is unknown. */
static int rows_at_once(void)
{
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return MOST_ROWS;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 3;
#endif
    return 0;
}

/* out[num_rows, COLUMNS] = x[num_rows, depth] times b[depth, COLUMNS]; `adds`: to what is in out. Strides from row to
 * row. Meanwhile depth * fetched numbers from `next` on are fetched. */
static inline __attribute__((always_inline)) void tile_of(
    const int num_rows, const float *x, int64_t x_stride, const float *b, int64_t b_stride, int64_t depth, float *out,
    int64_t out_stride, int adds, const float *next, int64_t fetched)
{
    lanes sums[MOST_ROWS][2];
#pragma GCC unroll 8
    for (int row = 0; row < num_rows; row++) sums[row][0] = sums[row][1] = (lanes){0};
    for (int64_t k = 0; k < depth; k++, b += b_stride, next += fetched) {
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + LANES, 0, 2);
        const lanes left = *(const lanes *)b, right = *(const lanes *)(b + LANES);
#pragma GCC unroll 8
        for (int row = 0; row < num_rows; row++) {
            sums[row][0] += x[row * x_stride + k] * left;
            sums[row][1] += x[row * x_stride + k] * right;
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < num_rows; row++) {
        lanes *to = (lanes *)(out + row * out_stride);
        to[0] = adds ? to[0] + sums[row][0] : sums[row][0];
        to[1] = adds ? to[1] + sums[row][1] : sums[row][1];
    }
}

static CLONES void tile(
    int64_t num_rows, const float *x, int64_t x_stride, const float *b, int64_t b_stride, int64_t depth, float *out,
    int64_t out_stride, int adds, const float *next, int64_t fetched)
{
#define CASE(n) \
    case n: tile_of(n, x, x_stride, b, b_stride, depth, out, out_stride, adds, next, fetched); return;
    switch (num_rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

/* As tile, of any number of rows, in tiles of equal height; as much as is read of b is fetched from `next` on. */
static void tiles(
    int64_t num_rows, const float *x, int64_t x_stride, const float *b, int64_t b_stride, int64_t depth, float *out,
    int64_t out_stride, int adds, const float *next)
{
    const int64_t most = rows_at_once(), num_tiles = (num_rows + most - 1) / most;
    const int64_t height = (num_rows + num_tiles - 1) / num_tiles, fetched = (COLUMNS + num_tiles - 1) / num_tiles;
    for (int64_t row = 0; row < num_rows; row += height, next += depth * fetched) {
        const int64_t n = num_rows - row < height ? num_rows - row : height;
        const float *rows = x + row * x_stride;
        tile(n, rows, x_stride, b, b_stride, depth, out + row * out_stride, out_stride, adds, next, fetched);
    }
}

/* One panel's columns of ROWS rows at most; the last panel of a matrix may be narrower than what it computes. */
static void multiply_panel(
    const struct matrix *m, int64_t panel, const float *x, int64_t x_stride, int64_t num_rows, float *out,
    int64_t out_stride, int adds)
{
    const int64_t left = m->num_out - panel * COLUMNS, width = left < COLUMNS ? left : COLUMNS;
    float room[ROWS * COLUMNS];
    const int whole = width == COLUMNS;
    float *to = whole ? out + panel * COLUMNS : room;
    const int64_t stride = whole ? out_stride : COLUMNS;
    for (int64_t k = 0; k < m->num_in; k += DEPTH) {
        const int64_t depth = m->num_in - k < DEPTH ? m->num_in - k : DEPTH;
        const float *b = m->panels + (panel * m->num_in + k) * COLUMNS;
        tiles(num_rows, x + k, x_stride, b, COLUMNS, depth, to, stride, k || (whole && adds), b + depth * COLUMNS);
    }
    for (int64_t row = 0; row < num_rows && !whole; row++)
        for (int64_t i = 0; i < width; i++) {
            float *number = out + row * out_stride + panel * COLUMNS + i;
            *number = adds ? *number + room[row * COLUMNS + i] : room[row * COLUMNS + i];
        }
}

/* out[num_rows, num_out] = x[num_rows, num_in] times the transposed matrix; `adds`: to what is in out. */
static void multiply(
    const struct matrix *m, const float *x, int64_t x_stride, int64_t num_rows, float *out, int64_t out_stride, int adds,
    int num_threads)
{
    const int64_t num_panels = (m->num_out + COLUMNS - 1) / COLUMNS;
#pragma omp parallel for collapse(2) num_threads(num_threads) if (num_threads > 1)
    for (int64_t row = 0; row < num_rows; row += ROWS)
        for (int64_t panel = 0; panel < num_panels; panel++) {
            const int64_t n = num_rows - row < ROWS ? num_rows - row : ROWS;
            multiply_panel(m, panel, x + row * x_stride, x_stride, n, out + row * out_stride, out_stride, adds);
        }
}
