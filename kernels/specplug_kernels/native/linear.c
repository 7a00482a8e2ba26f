/* y = x W^T + b on a CPU for a few rows of x: W comes from memory once, and every vector of it that is loaded serves all rows of a tile.

   A tile is up to six rows of x times some rows of W, a vector of sums for each pair along K; their lanes are added up at the
   end. That makes twelve vectors of sums at most, which with their operands fill the sixteen registers of AVX. All tiles of x pass over
   a few rows of W while those are in the first level of the cache.

   Threads share the rows of W evenly. W is read as it lies. x is copied only where its elements are no floats or no whole vectors. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "lanes.h"

#define SUMS 12     /* vectors of sums a tile */
#define MOST_ROWS 6 /* of x a tile */
#define PAGE 4096   /* bytes, within which the processor sees ahead by itself */
#define BLOCK 12    /* rows of W that all tiles of x pass over: whole tiles of two to six rows */

/* What Python gives, in this order (`linear_library.py`). */
struct call {
    const char *x, *weight, *bias; /* [M, K], [N, K], [N] or NULL: contiguous */
    char *y;                       /* [M, N], contiguous */
    int64_t rows, outputs, inputs; /* M, N, K */
    int64_t dtype, threads;
};

/* Rows of the next tile of x: as few tiles as can be, of about equal rows. */
INLINE int64_t tile_rows(int64_t left) {
    int64_t tiles = (left + MOST_ROWS - 1) / MOST_ROWS;
    return (left + tiles - 1) / tiles;
}

/* Rows of W that a tile of x takes at a time: SUMS / rows, and one row has eight. */
INLINE int tile_outputs(int rows) { return rows == 1 ? 8 : SUMS / rows; }

/* ---- A tile. `rows`, `outputs` and `dtype` are constants wherever these are used. ---- */

/* sums[output][row] += x[row] * weight[output], for eight elements. */
INLINE void multiply(lanes sum[SUMS], lanes weight[SUMS], const float *x, int64_t stride, int rows, int outputs) {
    if (outputs <= rows) {
        for (int o = 0; o < outputs; o++) IN_REGISTER(weight[o]);
        for (int r = 0; r < rows; r++) {
            lanes one = *(const lanes_at *)(x + r * stride);
            IN_REGISTER(one);
            for (int o = 0; o < outputs; o++) sum[o * rows + r] += weight[o] * one;
        }
    } else {
        lanes some[MOST_ROWS];
        for (int r = 0; r < rows; r++) {
            some[r] = *(const lanes_at *)(x + r * stride);
            IN_REGISTER(some[r]);
        }
        for (int o = 0; o < outputs; o++) {
            IN_REGISTER(weight[o]);
            for (int r = 0; r < rows; r++) sum[o * rows + r] += weight[o] * some[r];
        }
    }
}

/* Eight elements of W at `at`: in half precision the first or the second vector that `load16` makes of sixteen. */
INLINE lanes half_of(const char *at, int dtype, int second) {
    if (dtype != BFLOAT16) return load8(at + second * LANES * element_bytes(dtype), dtype);
    lanes_bits pairs = *(const lanes_bits_at *)at;
    return second ? (lanes)(pairs & 0xffff0000u) : (lanes)(pairs << 16);
}

/* Ask for a part of the next tile's rows of W, into the second level of the cache: a tile reads some rows at once, of which the
   processor foresees little. Short rows are asked for as they lie, which is how memory is fastest: both together take half
   the time of five rows of 256 numbers. */
INLINE void ask_for(const char *const weight[SUMS], int64_t at, int64_t row_bytes, int outputs) {
    if (at % LINE) return;
    for (int o = 0; o < outputs; o++)
        __builtin_prefetch(row_bytes <= PAGE ? weight[0] + outputs * (row_bytes + at) + o * LINE
                                             : weight[o] + outputs * row_bytes + at, 0, 2);
}

/* sums[output][row] += x[row] * weight[output], for the elements of a step from k on. */
INLINE void multiply_step(lanes sum[SUMS], const char *const weight[SUMS], int64_t k, const float *x, int64_t stride,
                          int rows, int outputs, int dtype) {
    for (int half = 0; half < (dtype == FLOAT32 ? 1 : 2); half++) {
        lanes loaded[SUMS];
        for (int o = 0; o < outputs; o++) loaded[o] = half_of(weight[o] + k * element_bytes(dtype), dtype, half);
        multiply(sum, loaded, x + k + half * LANES, stride, rows, outputs);
    }
}

/* Lane i of the result is the sum of all lanes of x[i]. */
INLINE quarter_at four_sums(const lanes x[4]) {
    lanes a = SHUFFLE(x[0], x[1], 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(x[0], x[1], 2, 10, 3, 11, 6, 14, 7, 15);
    lanes b = SHUFFLE(x[2], x[3], 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(x[2], x[3], 2, 10, 3, 11, 6, 14, 7, 15);
    lanes c = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    return (quarter_at){c[0] + c[4], c[1] + c[5], c[2] + c[6], c[3] + c[7]};
}

/* y[row][output] = x[row] . weight[output] + bias[output], of `count` outputs; a tile that is not whole repeats the last one. */
INLINE void tile(const struct call *call, const float *x, int64_t stride, int64_t row, int64_t output, int64_t count,
                 int rows, int dtype) {
    const int outputs = tile_outputs(rows);
    const int64_t size = element_bytes(dtype), step = dtype == FLOAT32 ? LANES : 2 * LANES, inputs = call->inputs;
    const char *weight[SUMS];
    for (int o = 0; o < outputs; o++)
        weight[o] = call->weight + (output + smaller(o, count - 1)) * inputs * size;
    lanes sum[SUMS] = {0};
    int64_t k = 0;
    x += row * stride;
    for (; k + step <= inputs; k += step) {
        if (row == 0) ask_for(weight, k * size, inputs * size, outputs);
        multiply_step(sum, weight, k, x, stride, rows, outputs, dtype);
    }
    if (k < inputs) {
        char rest[SUMS][4 * LANES] = {{0}};
        for (int o = 0; o < outputs; o++) {
            memcpy(rest[o], weight[o] + k * size, (inputs - k) * size);
            weight[o] = rest[o];
        }
        multiply_step(sum, weight, 0, x + k, stride, rows, outputs, dtype);
    }
    float found[SUMS];
    for (int i = 0; i < rows * outputs; i += 4) *(quarter_at *)(found + i) = four_sums(sum + i);
    for (int o = 0; o < outputs && o < count; o++) {
        float bias = call->bias ? load_one(call->bias + (output + o) * size, dtype) : 0.0f;
        for (int r = 0; r < rows; r++)
            store_one(call->y + ((row + r) * call->outputs + output + o) * size, dtype, found[o * rows + r] + bias);
    }
}

INLINE void tiles(const struct call *call, const float *x, int64_t stride, int64_t row, int64_t output, int64_t count,
                  int rows, int dtype) {
    const int together = tile_outputs(rows);
    for (int64_t o = 0; o < count; o += together)
        tile(call, x, stride, row, output + o, smaller(together, count - o), rows, dtype);
}

/* ---- A share of W. ---- */

#define SHARE_OF(DTYPE)                                                                                                \
    static void share_##DTYPE(const struct call *call, const float *x, int64_t stride, int64_t begin, int64_t end) {   \
        for (int64_t o = begin; o < end; o += BLOCK)                                                                   \
            for (int64_t row = 0; row < call->rows; row += tile_rows(call->rows - row)) {                              \
                int64_t count = smaller(BLOCK, end - o);                                                               \
                switch (tile_rows(call->rows - row)) {                                                                 \
                case 1: tiles(call, x, stride, row, o, count, 1, DTYPE); break;                                        \
                case 2: tiles(call, x, stride, row, o, count, 2, DTYPE); break;                                        \
                case 3: tiles(call, x, stride, row, o, count, 3, DTYPE); break;                                        \
                case 4: tiles(call, x, stride, row, o, count, 4, DTYPE); break;                                        \
                case 5: tiles(call, x, stride, row, o, count, 5, DTYPE); break;                                        \
                default: tiles(call, x, stride, row, o, count, 6, DTYPE);                                              \
                }                                                                                                      \
            }                                                                                                          \
    }
SHARE_OF(FLOAT32)
SHARE_OF(BFLOAT16)
SHARE_OF(FLOAT16)

static void share(const struct call *call, const float *x, int64_t stride, int64_t begin, int64_t end) {
    if (call->dtype == FLOAT32)
        share_FLOAT32(call, x, stride, begin, end);
    else if (call->dtype == BFLOAT16)
        share_BFLOAT16(call, x, stride, begin, end);
    else
        share_FLOAT16(call, x, stride, begin, end);
}

/* ---- x as floats. ---- */

INLINE int64_t whole(int64_t count, int64_t part) { return (count + part - 1) / part * part; }

/* Rows of whole steps, in the order in which W's elements are converted, with zeros at the end. */
static void unpack(const struct call *call, float *to, int64_t stride) {
    const int dtype = (int)call->dtype;
    const int64_t size = element_bytes(dtype);
    for (int64_t row = 0; row < call->rows; row++, to += stride) {
        const char *from = call->x + row * call->inputs * size;
        for (int64_t k = 0; k < stride; k += 2 * LANES) {
            char rest[2 * LANES * 4] = {0};
            const int64_t left = call->inputs - k;
            const char *at = from + k * size;
            if (left < 2 * LANES) memcpy(rest, at, left * size), at = rest;
            load16(at, dtype, (lanes *)(to + k), (lanes *)(to + k + LANES));
        }
    }
}

/* 0, or 1 if there is no memory. */
int specplug_linear(const struct call *call) {
    const int64_t products_worth_a_thread = 100000;
    const int64_t products = call->rows * call->outputs * call->inputs;
    float *memory = NULL;
    const float *x = (const float *)call->x;
    int64_t stride = call->inputs;
    if (call->dtype != FLOAT32 || call->inputs % LANES) {
        stride = whole(call->inputs, 2 * LANES);
        memory = aligned_alloc(LINE, larger(1, call->rows) * whole(larger(1, stride) * sizeof(float), LINE));
        if (!memory) return 1;
        unpack(call, memory, stride);
        x = memory;
    }
    const int64_t threads = larger(1, smaller(call->threads, products / products_worth_a_thread));
    if (threads == 1) {
        share(call, x, stride, 0, call->outputs);
    } else {
#pragma omp parallel num_threads(threads)
        {
            int64_t thread = 0, present = 1;
#ifdef _OPENMP
            thread = omp_get_thread_num(), present = omp_get_num_threads(); /* there may be fewer than were asked for */
#endif
            const int64_t blocks = (call->outputs + BLOCK - 1) / BLOCK;
            share(call, x, stride, smaller(call->outputs, blocks * thread / present * BLOCK),
                  smaller(call->outputs, blocks * (thread + 1) / present * BLOCK));
        }
    }
    free(memory);
    return 0;
}

/* What Python asks once: that both mean the same struct. */
int specplug_call_bytes(void) { return sizeof(struct call); }
