/* The kernels for one number type. The includer defines T, how it is stored; LOAD and STORE, to float and back; and
 * NAME, a suffix for names. */

static CLONES void NAME(norm)(const T *x, const T *weight, T *out, int64_t num_rows, int64_t size, float eps)
{
    for (int64_t row = 0; row < num_rows; row++, x += size, out += size) {
        float sum = 0;
        for (int64_t i = 0; i < size; i++) sum += LOAD(x[i]) * LOAD(x[i]);
        const float scale = 1.0f / sqrtf(sum / (float)size + eps);
        for (int64_t i = 0; i < size; i++) out[i] = STORE(LOAD(STORE(LOAD(x[i]) * scale)) * LOAD(weight[i]));
    }
}

static CLONES void NAME(gate)(const T *gate_up, T *out, int64_t num_rows, int64_t size)
{
    for (int64_t row = 0; row < num_rows; row++, gate_up += 2 * size, out += size)
        for (int64_t i = 0; i < size; i++) {
            const float gate = LOAD(gate_up[i]);
            out[i] = STORE(gate / (1.0f + exp_of(-gate)) * LOAD(gate_up[size + i]));
        }
}

static CLONES void NAME(rotate)(
    T *x, const T *cos, const T *sin, int64_t num_tokens, int64_t token_stride, int64_t num_heads, int64_t size)
{
    const int64_t half = size / 2;
    for (int64_t token = 0; token < num_tokens; token++, x += token_stride, cos += size, sin += size)
        for (int64_t head = 0; head < num_heads; head++) {
            T *first = x + head * size, *second = first + half;
            for (int64_t i = 0; i < half; i++) {
                const float a = LOAD(first[i]), b = LOAD(second[i]), c = LOAD(cos[i]), s = LOAD(sin[i]);
                first[i] = STORE(a * c - b * s);
                second[i] = STORE(b * c + a * s);
            }
        }
}

/* Scores of n tokens of one block, [num_heads, width], from column `column` on: four tokens at a time. */
static inline __attribute__((always_inline)) void NAME(score_block)(
    const int64_t size, const float *queries, const T *keys, const T *next, float *scores, int64_t column, int64_t width,
    int64_t n, const struct paging *p)
{
    const int64_t group = p->num_heads / p->num_kv_heads, step = p->token_stride;
    for (int64_t kv = 0; kv < p->num_kv_heads; kv++) {
        const T *key = keys + kv * p->head_stride;
        fetch(next + kv * p->block_size * size, p->block_size * size * (int64_t)sizeof(T));
        for (int64_t t = 0; t < n; t += 4, key += 4 * step)
            for (int64_t head = kv * group; head < (kv + 1) * group; head++) {
                const int64_t more[3] = {t + 1 < n ? step : 0, t + 2 < n ? 2 * step : 0, t + 3 < n ? 3 * step : 0};
                lanes a = {0}, b = {0}, c = {0}, d = {0};
                for (int64_t i = 0; i < size; i += LANES) {
                    const lanes query = *(const lanes *)(queries + head * size + i);
                    a += query * NAME(lanes_of)(key + i);
                    b += query * NAME(lanes_of)(key + more[0] + i);
                    c += query * NAME(lanes_of)(key + more[1] + i);
                    d += query * NAME(lanes_of)(key + more[2] + i);
                }
                const four sums = sums_of(a, b, c, d);
                memcpy(scores + head * width + column + t, &sums, sizeof(float) * (size_t)(n - t < 4 ? n - t : 4));
            }
    }
}

/* Adds to results, [num_heads, size], the values of n tokens of one block, weighted. */
static inline __attribute__((always_inline)) void NAME(weigh_block)(
    const int64_t size, const float *weights, const T *values, const T *next, float *results, int64_t column,
    int64_t width, int64_t n, const struct paging *p)
{
    const int64_t group = p->num_heads / p->num_kv_heads;
    for (int64_t kv = 0; kv < p->num_kv_heads; kv++) {
        fetch(next + kv * p->block_size * size, p->block_size * size * (int64_t)sizeof(T));
        for (int64_t head = kv * group; head < (kv + 1) * group; head++)
            for (int64_t i = 0; i < size; i += 2 * LANES) { /* two sums at a time wait for memory together */
                const int wide = i + LANES < size;
                const T *value = values + kv * p->head_stride + i;
                const float *weight = weights + head * width + column;
                lanes *result = (lanes *)(results + head * size + i), left = result[0], right = {0};
                for (int64_t t = 0; t < n; t++, value += p->token_stride) {
                    left += weight[t] * NAME(lanes_of)(value);
                    if (wide) right += weight[t] * NAME(lanes_of)(value + LANES);
                }
                result[0] = left;
                if (wide) result[1] += right;
            }
    }
}

/* One sequence: its query heads against its cached tokens [begin, end), read in place, block by block.
 * room: scores [num_heads, end - begin], then queries and results [num_heads, size] each. */
static inline __attribute__((always_inline)) void NAME(attend_sized)(
    const int64_t size, const T *q, const T *layer, T *out, const int64_t *table, int64_t begin, int64_t end,
    float *room, const struct paging *p)
{
    const int64_t width = end - begin, num_numbers = p->num_heads * size;
    float *queries = room + p->num_heads * width, *results = queries + num_numbers;
    for (int64_t i = 0; i < num_numbers; i++) queries[i] = LOAD(q[i]) * p->scale, results[i] = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t at = begin, n; at < end; at += n) {
            const int64_t offset = at % p->block_size, in_block = p->block_size - offset;
            n = in_block < end - at ? in_block : end - at;
            const T *keys = layer + table[at / p->block_size] * p->block_stride + offset * p->token_stride;
            const int64_t after = at + n < end ? at + n : begin; /* blocks lie anywhere: fetch the next one now */
            const T *next = layer + table[after / p->block_size] * p->block_stride;
            const int64_t plane = p->plane_stride;
            if (pass == 0) NAME(score_block)(size, queries, keys, next, room, at - begin, width, n, p);
            else NAME(weigh_block)(size, room, keys + plane, next + plane, results, at - begin, width, n, p);
        }
        for (int64_t head = 0; head < p->num_heads && pass == 0; head++) softmax(room + head * width, width);
    }
    for (int64_t i = 0; i < num_numbers; i++) out[i] = STORE(results[i]);
}

/* With the usual sizes of heads known to the compiler. */
static CLONES void NAME(attend_one)(
    const T *q, const T *layer, T *out, const int64_t *table, int64_t begin, int64_t end, float *room,
    const struct paging *p)
{
    switch (p->size) {
        case 32: NAME(attend_sized)(32, q, layer, out, table, begin, end, room, p); return;
        case 64: NAME(attend_sized)(64, q, layer, out, table, begin, end, room, p); return;
        case 128: NAME(attend_sized)(128, q, layer, out, table, begin, end, room, p); return;
        default: NAME(attend_sized)(p->size, q, layer, out, table, begin, end, room, p);
    }
}
