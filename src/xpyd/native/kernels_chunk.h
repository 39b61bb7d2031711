/* Attention of a prompt chunk over its context in the pool, in float: one KV head and the query heads that share it.
 *
 * Keys are transposed and values copied out of their blocks once, into panels as products want them; then blocks of
 * queries score the panels that the causal mask leaves them, take exponentials row by row, and weigh the values.
 */
#define QUERIES 32 /* tokens that share a panel while it is in cache */

struct chunk {
    int64_t start, num_rows, begin; /* position of its first token; of the first token that it may see */
    const int64_t *table;
    const float *q; /* [num_rows, num_heads, size], q_stride from token to token */
    float *out;
    int64_t q_stride, out_stride;
};

static int64_t panels_of(int64_t n) { return (n + COLUMNS - 1) / COLUMNS; }

/* Numbers that attend_chunk needs beside its arguments. */
static int64_t chunk_room(const struct chunk *c, const struct paging *p)
{
    const int64_t width = panels_of(c->start + c->num_rows - c->begin) * COLUMNS;
    const int64_t size = panels_of(p->size) * COLUMNS;
    return width * (p->size + size) + QUERIES * (width + size + 1);
}

/* keys: [panels of tokens, size, COLUMNS], scaled; values: [tokens, padded size]. Zeros behind the last of each. */
static CLONES void gather(const struct chunk *c, const float *layer, int64_t kv, float *keys, float *values,
                          const struct paging *p)
{
    const int64_t context = c->start + c->num_rows - c->begin, padded = panels_of(p->size) * COLUMNS;
    const int64_t width = panels_of(context) * COLUMNS;
    for (int64_t token = 0; token < width; token++) {
        float *to = keys + token / COLUMNS * COLUMNS * p->size + token % COLUMNS, *value = values + token * padded;
        if (token >= context) {
            for (int64_t i = 0; i < p->size; i++) to[i * COLUMNS] = 0;
            memset(value, 0, sizeof(float) * (size_t)padded);
            continue;
        }
        const int64_t at = c->begin + token;
        const float *key = layer + c->table[at / p->block_size] * p->block_stride +
                           at % p->block_size * p->token_stride + kv * p->head_stride;
        for (int64_t i = 0; i < p->size; i++) to[i * COLUMNS] = key[i] * p->scale;
        memcpy(value, key + p->plane_stride, sizeof(float) * (size_t)p->size);
        for (int64_t i = p->size; i < padded; i++) value[i] = 0;
    }
}

/* Of scores [begin, end), exponentials; zeros from `low` to there, and from there to `high`. Returns their sum. */
static CLONES float weights_of(float *scores, int64_t low, int64_t begin, int64_t end, int64_t high)
{
    for (int64_t i = low; i < begin; i++) scores[i] = 0;
    for (int64_t i = end; i < high; i++) scores[i] = 0;
    return exponentials(scores + begin, end - begin);
}

/* Token `first` of the chunk and n - 1 behind it, one query head, with what `gather` made. room: [QUERIES, width + ...]. */
static void attend_queries(const struct chunk *c, int64_t first, int64_t n, int64_t head, int64_t window,
                           const float *keys, const float *values, float *room, const struct paging *p)
{
    const int64_t padded = panels_of(p->size) * COLUMNS, width = panels_of(c->start + c->num_rows - c->begin) * COLUMNS;
    const int64_t shown = c->start + first - c->begin; /* tokens before the first query's own */
    const int64_t low = window && shown + 1 > window ? (shown + 1 - window) / COLUMNS * COLUMNS : 0;
    const int64_t high = panels_of(shown + n) * COLUMNS;
    float *scores = room, *results = scores + QUERIES * width, *sums = results + QUERIES * padded;
    const float *queries = c->q + first * c->q_stride + head * p->size;
    for (int64_t at = low; at < high; at += COLUMNS)
        tiles(n, queries, c->q_stride, keys + at * p->size, COLUMNS, p->size, scores + at, width, 0,
              keys + (at + COLUMNS) * p->size);
    for (int64_t row = 0; row < n; row++) {
        const int64_t end = shown + row + 1, begin = window && end > window ? end - window : 0;
        sums[row] = weights_of(scores + row * width, low, begin, end, high);
    }
    for (int64_t column = 0; column < padded; column += COLUMNS)
        for (int64_t at = low; at < high; at += DEPTH) {
            const int64_t depth = high - at < DEPTH ? high - at : DEPTH;
            const float *b = values + at * padded + column;
            tiles(n, scores + at, width, b, padded, depth, results + column, padded, at > low, b + depth * padded);
        }
    for (int64_t row = 0; row < n; row++) {
        float *out = c->out + (first + row) * c->out_stride + head * p->size;
        for (int64_t i = 0; i < p->size; i++) out[i] = results[row * padded + i] / sums[row];
    }
}

/* room: chunk_room numbers. */
static void attend_chunk(const struct chunk *c, const float *layer, int64_t kv, int64_t window, float *room,
                         const struct paging *p)
{
    const int64_t width = panels_of(c->start + c->num_rows - c->begin) * COLUMNS, group = p->num_heads / p->num_kv_heads;
    float *values = room + width * p->size, *rest = values + width * panels_of(p->size) * COLUMNS;
    gather(c, layer, kv, room, values, p);
    for (int64_t first = 0; first < c->num_rows; first += QUERIES) {
        const int64_t n = c->num_rows - first < QUERIES ? c->num_rows - first : QUERIES;
        for (int64_t head = kv * group; head < (kv + 1) * group; head++)
            attend_queries(c, first, n, head, window, room, values, rest, p);
    }
}
