/* A whole step of a dense decoder in float, layer by layer: what a step costs beside its products is then small.
 *
 * A step is rows, one per token, of several segments: sequences, each with some successive tokens of it, one where it
 * decodes. Activations of ROWS rows at a time stay in cache from one product to the next.
 */
struct layer {
    const float *input_norm, *qkv_bias, *q_norm, *k_norm, *post_norm; /* NULL where the model has none */
    struct matrix qkv, o, gate_up, down;
};

struct decoder {
    const float *embedding, *norm, *frequencies; /* of rotation: [size / 2] */
    const struct layer *layers;
    struct matrix head;
    float *pool;
    int64_t num_layers, hidden, inner, layer_stride, window; /* numbers; 0: no window */
    struct paging paging;
    float eps, magnitude; /* of rotated vectors */
    int num_threads;
};

struct segment {
    int64_t row, num_rows, start, table; /* its first row, its first position, where in `tables` its blocks begin */
};

struct step {
    int64_t num_rows, num_segments, num_samples;
    const int64_t *tokens, *tables, *sampled; /* [num_rows]; block ids; rows whose logits are wanted */
    const struct segment *segments;
    float *x, *qkv, *attended, *angles; /* [num_rows, ...]: hidden; queries, keys, values; heads; size: cosines, sines */
    float *normed, *inner, *gated; /* [ROWS, ...]: hidden; 2 * inner; inner */
    float *last, *logits; /* [num_samples, ...]: hidden; vocabulary */
};

static int64_t fewer(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t qkv_width(const struct paging *p) { return (p->num_heads + 2 * p->num_kv_heads) * p->size; }

/* Hidden states of the tokens; cosines and sines, [num_rows, 2, size / 2], of their positions. */
static void begin_step(const struct decoder *d, const struct step *s)
{
    const int64_t half = d->paging.size / 2;
    for (int64_t row = 0; row < s->num_rows; row++)
        memcpy(s->x + row * d->hidden, d->embedding + s->tokens[row] * d->hidden, sizeof(float) * (size_t)d->hidden);
    for (const struct segment *each = s->segments; each < s->segments + s->num_segments; each++)
        for (int64_t i = 0; i < each->num_rows * half; i++) {
            float *cosine = s->angles + (each->row + i / half) * 2 * half + i % half;
            const float angle = (float)(each->start + i / half) * d->frequencies[i % half];
            cosine[0] = cosf(angle) * d->magnitude, cosine[half] = sinf(angle) * d->magnitude;
        }
}

/* Keys and values of every row go to their tokens' places. */
static void store(const struct decoder *d, const struct step *s, float *pool)
{
    const struct paging *p = &d->paging;
    const int64_t width = qkv_width(p);
    const size_t num_bytes = sizeof(float) * (size_t)p->size;
    for (const struct segment *each = s->segments; each < s->segments + s->num_segments; each++)
        for (int64_t i = 0; i < each->num_rows; i++) {
            const int64_t at = each->start + i, block = s->tables[each->table + at / p->block_size];
            float *to = pool + block * p->block_stride + at % p->block_size * p->token_stride;
            const float *key = s->qkv + (each->row + i) * width + p->num_heads * p->size;
            for (int64_t kv = 0; kv < p->num_kv_heads; kv++, to += p->head_stride, key += p->size) {
                memcpy(to, key, num_bytes);
                memcpy(to + p->plane_stride, key + p->num_kv_heads * p->size, num_bytes);
            }
        }
}

/* Queries, keys and values of every row, normed where the model does that, and rotated. */
static void project(const struct decoder *d, const struct layer *layer, const struct step *s)
{
    const struct paging *p = &d->paging;
    const int64_t width = qkv_width(p), rotated = p->num_heads + p->num_kv_heads;
    for (int64_t row = 0; row < s->num_rows; row += ROWS) {
        const int64_t n = fewer(ROWS, s->num_rows - row);
        float *qkv = s->qkv + row * width;
        norm_float(s->x + row * d->hidden, layer->input_norm, s->normed, n, d->hidden, d->eps);
        multiply(&layer->qkv, s->normed, d->hidden, n, qkv, width, 0, d->num_threads);
        for (int64_t i = 0; i < n * width && layer->qkv_bias; i++) qkv[i] += layer->qkv_bias[i % width];
        for (int64_t i = 0; i < n && layer->q_norm; i++) {
            float *q = qkv + i * width, *k = q + p->num_heads * p->size;
            norm_float(q, layer->q_norm, q, p->num_heads, p->size, d->eps);
            norm_float(k, layer->k_norm, k, p->num_kv_heads, p->size, d->eps);
        }
        const float *angles = s->angles + row * p->size;
        rotate_float(qkv, angles, angles + p->size / 2, n, width, rotated, p->size);
    }
}

static void attend_decode(const struct decoder *d, const struct step *s, const struct segment *each, const float *layer,
                          float *room)
{
    const struct paging *p = &d->paging;
    const int64_t end = each->start + 1, begin = d->window && end > d->window ? end - d->window : 0;
    const float *q = s->qkv + each->row * qkv_width(p);
    float *out = s->attended + each->row * p->num_heads * p->size;
    attend_one_float(q, layer, out, s->tables + each->table, begin, end, room, p);
}

/* Returns whether memory ran out. */
static int attend_decodes(const struct decoder *d, const struct step *s, const float *layer)
{
    const struct paging *p = &d->paging;
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed) num_threads(d->num_threads) if (d->num_threads > 1)
    for (int64_t i = 0; i < s->num_segments; i++) {
        const struct segment *each = s->segments + i;
        if (each->num_rows > 1) continue;
        float *room = malloc(sizeof(float) * (size_t)attend_room(each->start + 1, p));
        if (room != NULL) attend_decode(d, s, each, layer, room);
        failed |= room == NULL;
        free(room);
    }
    return failed;
}

static int attend_chunks(const struct decoder *d, const struct step *s, const float *layer)
{
    const struct paging *p = &d->paging;
    const int64_t width = qkv_width(p), heads = p->num_heads * p->size;
    int failed = 0;
    for (const struct segment *each = s->segments; each < s->segments + s->num_segments; each++) {
        if (each->num_rows == 1) continue;
        const int64_t begin = d->window && each->start + 1 > d->window ? each->start + 1 - d->window : 0;
        const struct chunk chunk = {each->start, each->num_rows, begin, s->tables + each->table,
                                    s->qkv + each->row * width, s->attended + each->row * heads, width, heads};
#pragma omp parallel for schedule(dynamic) reduction(| : failed) num_threads(d->num_threads) if (d->num_threads > 1)
        for (int64_t kv = 0; kv < p->num_kv_heads; kv++) {
            float *room = malloc(sizeof(float) * (size_t)chunk_room(&chunk, p));
            if (room != NULL) attend_chunk(&chunk, layer, kv, d->window, room, p);
            failed |= room == NULL;
            free(room);
        }
    }
    return failed;
}

/* What follows on attention in a layer: both are added to x. */
static void finish(const struct decoder *d, const struct layer *layer, const struct step *s)
{
    const int64_t heads = d->paging.num_heads * d->paging.size, threads = d->num_threads;
    for (int64_t row = 0; row < s->num_rows; row += ROWS) {
        const int64_t n = fewer(ROWS, s->num_rows - row);
        float *x = s->x + row * d->hidden;
        multiply(&layer->o, s->attended + row * heads, heads, n, x, d->hidden, 1, threads);
        norm_float(x, layer->post_norm, s->normed, n, d->hidden, d->eps);
        multiply(&layer->gate_up, s->normed, d->hidden, n, s->inner, 2 * d->inner, 0, threads);
        gate_float(s->inner, s->gated, n, d->inner);
        multiply(&layer->down, s->gated, d->inner, n, x, d->hidden, 1, threads);
    }
}

/* The next piece of a step: all of layer - 1 that follows on its keys and values, then those of `layer` into the pool.
 * Pieces are run in order, 0 to num_layers; the last one makes the logits. Returns 1 when memory ran out, else 0. */
int xpyd_advance(const struct decoder *d, const struct step *s, int64_t layer)
{
    if (layer == 0) {
        begin_step(d, s);
    } else {
        const float *before = d->pool + (layer - 1) * d->layer_stride;
        if (attend_decodes(d, s, before) | attend_chunks(d, s, before)) return 1;
        finish(d, d->layers + layer - 1, s);
    }
    if (layer < d->num_layers) {
        project(d, d->layers + layer, s);
        store(d, s, d->pool + layer * d->layer_stride);
        return 0;
    }
    for (int64_t i = 0; i < s->num_samples; i++)
        norm_float(s->x + s->sampled[i] * d->hidden, d->norm, s->last + i * d->hidden, 1, d->hidden, d->eps);
    multiply(&d->head, s->last, d->hidden, s->num_samples, s->logits, d->head.num_out, 0, d->num_threads);
    return 0;
}

/* A step all at once, for those who have nothing to do between its layers. */
int xpyd_run(const struct decoder *d, const struct step *s)
{
    for (int64_t layer = 0; layer <= d->num_layers; layer++)
        if (xpyd_advance(d, s, layer)) return 1;
    return 0;
}

/* A token as its message has it, which may lie at any address. */
struct emitted {
    int32_t request_id, index, token;
    float margin;
};

/* Steps that follow on one of decodes alone: what is kept of them, and the message that tells the last one's tokens. */
struct ledger {
    const struct decoder *decoder;
    const struct step *step;
    int64_t num_rows;
    int64_t *drawn; /* by the last step: [num_rows] */
    float *margins;
    int64_t *tokens; /* of the step to come, and its segments */
    struct segment *segments;
    int64_t *history, *stamps; /* of all steps: [num_steps, num_rows]; begin and end, [num_steps, 2] */
    char *message;             /* the last step's end, and what it drew */
    int64_t num_steps;
    int64_t offset_ns; /* of this rank's clock */
};

static int64_t now_ns(const struct ledger *l)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* which is Python's perf_counter */
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec + l->offset_ns;
}

/* Pack the step to come: it runs the tokens that the last one drew, each a position further. */
void xpyd_follow(struct ledger *l)
{
    memcpy(l->tokens, l->drawn, sizeof(int64_t) * (size_t)l->num_rows);
    for (int64_t i = 0; i < l->num_rows; i++) l->segments[i].start++;
}

/* Write down a step that was run, and pack the one to come. */
void xpyd_book(struct ledger *l, int64_t begin_ns, int64_t end_ns)
{
    const int64_t n = l->num_rows;
    int64_t *stamps = l->stamps + 2 * l->num_steps;
    stamps[0] = begin_ns, stamps[1] = end_ns;
    memcpy(l->history + n * l->num_steps++, l->drawn, sizeof(int64_t) * (size_t)n);
    memcpy(l->message, &end_ns, sizeof end_ns);
    for (int64_t i = 0; i < n; i++) {
        struct emitted each;
        char *at = l->message + sizeof end_ns + (size_t)i * sizeof each;
        memcpy(&each, at, sizeof each);
        each.index++, each.token = (int32_t)l->drawn[i], each.margin = l->margins[i];
        memcpy(at, &each, sizeof each);
    }
    xpyd_follow(l);
}

/* The step to come, all of it. Returns 1 when memory ran out, else 0. */
static int again(struct ledger *l)
{
    const int64_t begin_ns = now_ns(l), size = l->decoder->head.num_out;
    if (xpyd_run(l->decoder, l->step)) return 1;
    for (int64_t row = 0; row < l->num_rows; row++)
        largest(l->step->logits + row * size, size, l->drawn + row, l->margins + row);
    xpyd_book(l, begin_ns, now_ns(l));
    return 0;
}

/* The next `most` steps, each told by `tell`, if there is one: fewer where that says that somebody has to see to
 * something; it has to look for that before the next step, not behind the last. Returns the number of steps that were
 * run, or -1 when memory ran out. */
int xpyd_again(struct ledger *l, int (*tell)(void *message, int looks), void *message, int64_t most)
{
    for (int num = 1;; num++) {
        if (again(l)) return -1;
        if ((tell && tell(message, num < most)) || num >= most) return num;
    }
}
