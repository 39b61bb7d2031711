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

/* Scores of n tokens of one block, [num_heads, width], from column `column` on. */
static inline __attribute__((always_inline)) void NAME(score_block)(
    const float *queries, const T *keys, const T *next, float *scores, int64_t column, int64_t width, int64_t n,
    const struct paging *p)
{
    const int64_t group = p->num_heads / p->num_kv_heads;
    for (int64_t kv = 0; kv < p->num_kv_heads; kv++)
        for (int64_t t = 0; t < n; t++) {
            const T *key = keys + kv * p->head_stride + t * p->token_stride;
            fetch(next + (kv * p->block_size + t) * p->size, p->size * (int64_t)sizeof(T));
            for (int64_t head = kv * group; head < (kv + 1) * group; head++) {
                const float *query = queries + head * p->size;
                lanes part = {0};
                for (int64_t i = 0; i < p->size; i += LANES)
                    part += *(const lanes *)(query + i) * NAME(lanes_of)(key + i);
                scores[head * width + column + t] = sum_of(part);
            }
        }
}

/* Adds to results, [num_heads, size], the values of n tokens of one block, weighted. */
static inline __attribute__((always_inline)) void NAME(weigh_block)(
    const float *weights, const T *values, const T *next, float *results, int64_t column, int64_t width, int64_t n,
    const struct paging *p)
{
    const int64_t group = p->num_heads / p->num_kv_heads, share = p->block_size * p->size / group;
    for (int64_t head = 0; head < p->num_heads; head++) {
        fetch(next + head * share, share * (int64_t)sizeof(T));
        for (int64_t i = 0; i < p->size; i += LANES) {
            const T *value = values + head / group * p->head_stride + i;
            const float *weight = weights + head * width + column;
            lanes *result = (lanes *)(results + head * p->size + i), sum = *result;
            for (int64_t t = 0; t < n; t++) sum += weight[t] * NAME(lanes_of)(value + t * p->token_stride);
            *result = sum;
        }
    }
}

/* One sequence: its query heads against its cached tokens [begin, end), read in place, block by block.
 * room: scores [num_heads, end - begin], then queries and results [num_heads, size] each. */
static CLONES void NAME(attend_one)(
    const T *q, const T *layer, T *out, const int64_t *table, int64_t begin, int64_t end, float *room,
    const struct paging *p)
{
    const int64_t width = end - begin, num_numbers = p->num_heads * p->size;
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
            if (pass == 0) NAME(score_block)(queries, keys, next, room, at - begin, width, n, p);
            else NAME(weigh_block)(room, keys + plane, next + plane, results, at - begin, width, n, p);
        }
        for (int64_t head = 0; head < p->num_heads && pass == 0; head++) softmax(room + head * width, width);
    }
    for (int64_t i = 0; i < num_numbers; i++) out[i] = STORE(results[i]);
}
