/* What a step does on a CPU beside its matrix products: norms, rotations, gates, and attention of decodes.
 *
 * Decodes attend to cached blocks in place. Tensor libraries have no such operation: they would copy all KV of a batch
 * into one tensor first, padded to the longest sequence. Every sequence is computed by itself, so that its result does
 * not depend on what else is in the batch. Sums are kept in float. Matrices are row-major; strides count numbers.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LANES 16 /* heads are this wide, or a multiple of it */

/* Compiled for several processors; the best is chosen on loading. (arch=skylake-avx512 would be Intel's alone.) */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t wide_bits __attribute__((vector_size(4 * LANES)));
typedef int32_t lane_numbers __attribute__((vector_size(4 * LANES)));
typedef float four __attribute__((vector_size(16), aligned(4)));
typedef uint16_t half_bits __attribute__((vector_size(2 * LANES), aligned(2)));

struct paging {
    int64_t num_heads, num_kv_heads, size, block_size, block_stride, plane_stride, token_stride, head_stride;
    float scale;
};

/* e^x within 2 units of the last place (Cephes' expf), written so that compilers make vectors of it. */
static inline __attribute__((always_inline)) float exp_of(float x)
{
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float turns = x * 1.44269504f;
    const int32_t n = (int32_t)(turns < 0 ? turns - 0.5f : turns + 0.5f);
    const float r = x - (float)n * 0.693359375f + (float)n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const int32_t bits = (n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}

/* x becomes e^(x - its largest); returns the sum. */
static inline __attribute__((always_inline)) float exponentials(float *x, int64_t n)
{
    float max = x[0], sum = 0;
    for (int64_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int64_t i = 0; i < n; i++) x[i] = exp_of(x[i] - max), sum += x[i];
    return sum;
}

static inline __attribute__((always_inline)) void softmax(float *x, int64_t n)
{
    const float scale = 1.0f / exponentials(x, n);
    for (int64_t i = 0; i < n; i++) x[i] *= scale;
}

static inline __attribute__((always_inline)) void fetch(const void *x, int64_t num_bytes)
{
    for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch((const char *)x + i, 0, 2); /* as far as L2 */
}

static inline float from_bfloat16(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

static inline __attribute__((always_inline)) lanes lanes_of_float(const float *x) { return *(const lanes *)x; }

static inline __attribute__((always_inline)) lanes lanes_of_bfloat16(const uint16_t *x)
{
    return (lanes)(__builtin_convertvector(*(const half_bits *)x, wide_bits) << 16);
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (lane_numbers){__VA_ARGS__})
#endif

/* The sums of four vectors: halves are added until each is one number. */
static inline __attribute__((always_inline)) four sums_of(lanes a, lanes b, lanes c, lanes d)
{
    const lanes ab = SHUFFLED(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                     SHUFFLED(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const lanes cd = SHUFFLED(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                     SHUFFLED(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    lanes all = SHUFFLED(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                SHUFFLED(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    all += SHUFFLED(all, all, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    all += SHUFFLED(all, all, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return (four){all[0], all[4], all[8], all[12]};
}

static inline uint16_t to_bfloat16(float x) /* to nearest, ties to even; no NaN comes here */
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Of two numbers at least: the place of the largest, the first one of equals, and what it exceeds the second by. */
static CLONES void largest(const float *x, int64_t size, int64_t *place, float *margin)
{
    float best[LANES], second[LANES];
    int32_t places[LANES];
    for (int i = 0; i < LANES; i++) best[i] = second[i] = -FLT_MAX, places[i] = 0;
    for (int64_t at = 0; at < size; at += LANES)
        for (int i = 0; i < LANES; i++) {
            const float number = at + i < size ? x[at + i] : -FLT_MAX;
            const int larger = number > best[i];
            second[i] = larger ? best[i] : number > second[i] ? number : second[i];
            places[i] = larger ? (int32_t)at + i : places[i];
            best[i] = larger ? number : best[i];
        }
    int at = 0;
    for (int i = 1; i < LANES; i++)
        if (best[i] > best[at] || (best[i] == best[at] && places[i] < places[at])) at = i;
    float next = second[at];
    for (int i = 0; i < LANES; i++)
        if (i != at && best[i] > next) next = best[i];
    *place = places[at], *margin = best[at] - next;
}

#define T float
#define LOAD(x) (x)
#define STORE(x) (x)
#define NAME(x) x##_float
#include "kernels_body.h"
#undef T
#undef LOAD
#undef STORE
#undef NAME

#define T uint16_t
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define NAME(x) x##_bfloat16
#include "kernels_body.h"

/* Numbers that attend_one needs beside its arguments, for so many tokens. */
static int64_t attend_room(int64_t num_tokens, const struct paging *p)
{
    return p->num_heads * (num_tokens + 3 + 2 * p->size);
}

#include "kernels_product.h"
#include "kernels_chunk.h"
#include "kernels_step.h"
#include "kernels_tell.h"

/* What else Python calls. `half`: numbers are bfloat16, not float. */

void xpyd_norm(int half, const void *x, const void *weight, void *out, int64_t num_rows, int64_t size, float eps)
{
    half ? norm_bfloat16(x, weight, out, num_rows, size, eps) : norm_float(x, weight, out, num_rows, size, eps);
}

void xpyd_gate(int half, const void *gate_up, void *out, int64_t num_rows, int64_t size)
{
    half ? gate_bfloat16(gate_up, out, num_rows, size) : gate_float(gate_up, out, num_rows, size);
}

void xpyd_rotate(
    int half, void *x, const void *cos, const void *sin, int64_t num_tokens, int64_t token_stride, int64_t num_heads,
    int64_t size)
{
    half ? rotate_bfloat16(x, cos, sin, num_tokens, token_stride, num_heads, size)
         : rotate_float(x, cos, sin, num_tokens, token_stride, num_heads, size);
}

/* Copies rows of `num_bytes`: a token's heads from x to its slot's place in one plane of the pool. Strides in bytes. */
void xpyd_store(
    const char *x, int64_t token_stride, char *plane, const int64_t *slots, int64_t num_tokens, int64_t num_heads,
    int64_t num_bytes, int64_t block_size, int64_t block_stride, int64_t slot_stride, int64_t head_stride)
{
    for (int64_t i = 0; i < num_tokens; i++) {
        char *to = plane + slots[i] / block_size * block_stride + slots[i] % block_size * slot_stride;
        for (int64_t head = 0; head < num_heads; head++)
            memcpy(to + head * head_stride, x + i * token_stride + head * num_bytes, (size_t)num_bytes);
    }
}

/* q: [batch, num_heads, size] with q_stride numbers from one sequence to the next; out the same without gaps;
 * tables: [batch, max_blocks]; ends: [batch], cached tokens of each sequence; window: 0 for all of them.
 * Returns 0, or 1 when memory ran out. */
int xpyd_attend(
    int half, const void *q, int64_t q_stride, const void *layer, void *out, const int64_t *tables, int64_t max_blocks,
    const int64_t *ends, int64_t batch, int64_t window, const struct paging *p)
{
    int failed = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : failed) if (batch > 1)
    for (int64_t i = 0; i < batch; i++) {
        const int64_t begin = window && ends[i] > window ? ends[i] - window : 0;
        float *room = malloc(sizeof(float) * (size_t)attend_room(ends[i] - begin, p));
        const int64_t *table = tables + i * max_blocks, from = i * q_stride, to = i * p->num_heads * p->size;
        if (room == NULL) {
            failed = 1;
            continue;
        }
        if (half)
            attend_one_bfloat16(
                (const uint16_t *)q + from, layer, (uint16_t *)out + to, table, begin, ends[i], room, p);
        else
            attend_one_float((const float *)q + from, layer, (float *)out + to, table, begin, ends[i], room, p);
        free(room);
    }
    return failed;
}

/* Whether products can be computed here, see multiply. */
int xpyd_multiplies(void) { return rows_at_once() > 0; }

void xpyd_multiply(
    const float *panels, int64_t num_out, int64_t num_in, const float *x, int64_t x_stride, int64_t num_rows, float *out,
    int num_threads)
{
    const struct matrix m = {panels, num_out, num_in};
    multiply(&m, x, x_stride, num_rows, out, num_out, 0, num_threads);
}

/* Of each row of x, [num_rows, size], the place of the largest number, and how much larger it is than the second. */
void xpyd_largest(const float *x, int64_t num_rows, int64_t size, int64_t *places, float *margins)
{
    for (int64_t row = 0; row < num_rows; row++) largest(x + row * size, size, places + row, margins + row);
}
