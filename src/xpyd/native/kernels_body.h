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

/* Scores of n tokens of one block, [num_heads, width], from column `column` on: four tokens at a time, so that up to
 * three numbers behind them are overwritten. Blocks lie anywhere in memory: meanwhile `next`, the keys of another one,
 * are fetched little by little. */
static inline __attribute__((always_inline)) void NAME(score_block)(
    const int64_t size, const float *queries, const T *keys, const T *next, float *scores, int64_t column, int64_t width,
    int64_t n, const struct paging *p)
{
    const int64_t group = p->num_heads / p->num_kv_heads, share = (4 * size + group - 1) / group;
    for (int64_t t = 0; t < n; t += 4, keys += 4 * p->token_stride) {
        const int64_t second = t + 1 < n ? p->token_stride : 0, third = t + 2 < n ? 2 * p->token_stride : 0;
        const int64_t fourth = t + 3 < n ? 3 * p->token_stride : 0;
        for (int64_t head = 0; head < p->num_heads; head++, next += share) {
            const T *key = keys + head / group * p->head_stride;
            lanes a = {0}, b = {0}, c = {0}, d = {0};
            fetch(next, share * (int64_t)sizeof(T));
            for (int64_t i = 0; i < size; i += LANES) {
                const lanes query = *(const lanes *)(queries + head * size + i);
                a += query * NAME(lanes_of)(key + i);
                b += query * NAME(lanes_of)(key + second + i);
                c += query * NAME(lanes_of)(key + third + i);
                d += query * NAME(lanes_of)(key + fourth + i);
            }
            *(four *)(scores + head * width + column + t) = sums_of(a, b, c, d);
        }
    }
}

/* Adds to results, [num_heads, size], the values of n tokens of one block, weighted; fetches as score_block does. */
static inline __attribute__((always_inline)) void NAME(weigh_block)(
    const int64_t size, const float *weights, const T *values, const T *next, float *results, int64_t column,
    int64_t width, int64_t n, const struct paging *p)
{
    const int64_t group = p->num_heads / p->num_kv_heads, share = (4 * size + group - 1) / group;
    for (int64_t t = 0; t < n; t += 4, values += 4 * p->token_stride) {
        const int64_t second = t + 1 < n ? p->token_stride : 0, third = t + 2 < n ? 2 * p->token_stride : 0;
        const int64_t fourth = t + 3 < n ? 3 * p->token_stride : 0;
        for (int64_t head = 0; head < p->num_heads; head++, next += share) {
            const T *value = values + head / group * p->head_stride;
            const float *weight = weights + head * width + column + t;
            const float a = weight[0], b = second ? weight[1] : 0, c = third ? weight[2] : 0, d = fourth ? weight[3] : 0;
            fetch(next, share * (int64_t)sizeof(T));
            for (int64_t i = 0; i < size; i += LANES)
                *(lanes *)(results + head * size + i) +=
                    a * NAME(lanes_of)(value + i) + b * NAME(lanes_of)(value + second + i) +
                    c * NAME(lanes_of)(value + third + i) + d * NAME(lanes_of)(value + fourth + i);
        }
    }
}

/* One sequence: its query heads against its cached tokens [begin, end), read in place, block by block.
 * room: scores [num_heads, end - begin + 3], then queries and results [num_heads, size] each. */
static inline __attribute__((always_inline)) void NAME(attend_sized)(
    const int64_t size, const T *q, const T *layer, T *out, const int64_t *table, int64_t begin, int64_t end,
    float *room, const struct paging *p)
{
    const int64_t num_tokens = end - begin, width = num_tokens + 3, num_numbers = p->num_heads * size;
    float *queries = room + p->num_heads * width, *results = queries + num_numbers;
    for (int64_t i = 0; i < num_numbers; i++) queries[i] = LOAD(q[i]) * p->scale, results[i] = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t at = begin, n; at < end; at += n) {
            const int64_t offset = at % p->block_size, in_block = p->block_size - offset;
            n = in_block < end - at ? in_block : end - at;
            const T *keys = layer + table[at / p->block_size] * p->block_stride + offset * p->token_stride;
            const int64_t after = at + n < end ? at + n : begin;
            const T *next = layer + table[after / p->block_size] * p->block_stride;
            const int64_t plane = p->plane_stride;
            if (pass == 0) NAME(score_block)(size, queries, keys, next, room, at - begin, width, n, p);
            else NAME(weigh_block)(size, room, keys + plane, next + plane, results, at - begin, width, n, p);
        }
        for (int64_t head = 0; head < p->num_heads && pass == 0; head++) softmax(room + head * width, num_tokens);
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
