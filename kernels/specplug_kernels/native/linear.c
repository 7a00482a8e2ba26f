/* y = x W^T + b on a CPU for a few rows of x: W comes from memory once, and every vector of it that is loaded serves all rows of a tile.

   A tile is up to six rows of x times some rows of W, a vector of sums for each pair along K; their lanes are added up at the
   end. That makes twelve vectors of sums at most, which with their operands fill the sixteen registers of AVX, and twice as many, twice
   as wide, for AVX-512. All tiles of x pass over a few rows of W while those are in the first level of the cache.

   Threads share the rows of W evenly. W is read as it lies. x is copied only where its elements are no floats or no whole vectors. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "lanes.h"

#define MOST_ROWS 6 /* of x a tile */
#define PAGE 4096   /* bytes, within which the processor sees ahead by itself */
#define BLOCK SUMS  /* rows of W that all tiles of x pass over: whole tiles of two to six rows */

#ifdef __AVX512F__
#define SUMS 24 /* vectors of sums a tile */
#else
#define SUMS 12
#endif

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

/* Rows of W that a tile of x takes at a time: as many as have room for their sums, in fours if there is room for four; one row has eight. */
INLINE int tile_outputs(int rows) {
    const int outputs = rows == 1 ? 8 : SUMS / rows;
    return outputs >= 4 ? outputs / 4 * 4 : outputs;
}

/* ---- A tile. `rows`, `outputs` and `dtype` are constants wherever these are used. ---- */

/* sums[output][row] += x[row] * weight[output], for the elements of a vector. */
INLINE void multiply(vector sum[SUMS], vector weight[SUMS], const float *x, int64_t stride, int rows, int outputs) {
    if (outputs <= rows) {
        for (int o = 0; o < outputs; o++) IN_REGISTER(weight[o]);
        for (int r = 0; r < rows; r++) {
            vector one = *(const vector_at *)(x + r * stride);
            IN_REGISTER(one);
            for (int o = 0; o < outputs; o++) sum[o * rows + r] += weight[o] * one;
        }
    } else {
        vector some[MOST_ROWS];
        for (int r = 0; r < rows; r++) {
            some[r] = *(const vector_at *)(x + r * stride);
            IN_REGISTER(some[r]);
        }
        for (int o = 0; o < outputs; o++) {
            IN_REGISTER(weight[o]);
            for (int r = 0; r < rows; r++) sum[o * rows + r] += weight[o] * some[r];
        }
    }
}

/* A vector of elements at `at`: in half precision the first or the second of those that twice as many make. Of bfloat16 they are
   the even and the odd ones: a word is a pair of elements, and each a shift or a mask away from its float. */
INLINE vector half_of(const char *at, int dtype, int second) {
    if (dtype == FLOAT32) return *(const vector_at *)at;
    if (dtype == FLOAT16) {
        vector found[1];
        load(at + second * WIDTH * element_bytes(dtype), dtype, WIDTH, found);
        return found[0];
    }
    vector_bits pairs = *(const vector_bits_at *)at;
    return second ? (vector)(pairs & 0xffff0000u) : (vector)(pairs << 16);
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
INLINE void multiply_step(vector sum[SUMS], const char *const weight[SUMS], int64_t k, const float *x, int64_t stride,
                          int rows, int outputs, int dtype) {
    for (int half = 0; half < (dtype == FLOAT32 ? 1 : 2); half++) {
        vector loaded[SUMS];
        for (int o = 0; o < outputs; o++) loaded[o] = half_of(weight[o] + k * element_bytes(dtype), dtype, half);
        multiply(sum, loaded, x + k + half * WIDTH, stride, rows, outputs);
    }
}

/* Lane i of the result is the sum of all lanes of x[i]. */
INLINE quarter_at four_sums(const vector four[4]) {
    lanes x[4];
    for (int i = 0; i < 4; i++) x[i] = folded(four[i]);
    lanes a = SHUFFLE(x[0], x[1], 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(x[0], x[1], 2, 10, 3, 11, 6, 14, 7, 15);
    lanes b = SHUFFLE(x[2], x[3], 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(x[2], x[3], 2, 10, 3, 11, 6, 14, 7, 15);
    lanes c = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    return (quarter_at){c[0] + c[4], c[1] + c[5], c[2] + c[6], c[3] + c[7]};
}

/* The sums' lanes added up, and bias: to y. Four outputs of a row lie side by side there. */
INLINE void write_tile(const struct call *call, const vector sum[SUMS], int64_t row, int64_t output, int64_t count,
                       int rows, int dtype) {
    const int outputs = tile_outputs(rows);
    const int64_t size = element_bytes(dtype);
    const char *bias = call->bias ? call->bias + output * size : NULL;
    char *y = call->y + (row * call->outputs + output) * size;
    if (outputs % 4 == 0 && dtype == FLOAT32 && count >= outputs) {
        for (int r = 0; r < rows; r++, y += call->outputs * size)
            for (int o = 0; o < outputs; o += 4) {
                const vector four[4] = {sum[o * rows + r], sum[(o + 1) * rows + r], sum[(o + 2) * rows + r],
                                      sum[(o + 3) * rows + r]};
                quarter_at found = four_sums(four);
                if (bias) found += *(const quarter_at *)(bias + o * size);
                *(quarter_at *)(y + o * size) = found;
            }
        return;
    }
    float found[SUMS];
    for (int i = 0; i < rows * outputs; i += 4) *(quarter_at *)(found + i) = four_sums(sum + i);
    for (int o = 0; o < outputs && o < count; o++) {
        const float added = bias ? load_one(bias + o * size, dtype) : 0.0f;
        for (int r = 0; r < rows; r++)
            store_one(y + (r * call->outputs + o) * size, dtype, found[o * rows + r] + added);
    }
}

/* y[row][output] = x[row] . weight[output] + bias[output], of `count` outputs; a tile that is not whole repeats the last one. */
INLINE void tile(const struct call *call, const float *x, int64_t stride, int64_t row, int64_t output, int64_t count,
                 int rows, int dtype) {
    const int outputs = tile_outputs(rows);
    const int64_t size = element_bytes(dtype), step = dtype == FLOAT32 ? WIDTH : 2 * WIDTH, inputs = call->inputs;
    const char *weight[SUMS];
    for (int o = 0; o < outputs; o++)
        weight[o] = call->weight + (output + smaller(o, count - 1)) * inputs * size;
    vector sum[SUMS] = {0};
    int64_t k = 0;
    x += row * stride;
    for (; k + step <= inputs; k += step) {
        if (row == 0) ask_for(weight, k * size, inputs * size, outputs);
        multiply_step(sum, weight, k, x, stride, rows, outputs, dtype);
    }
    if (k < inputs) {
        char rest[SUMS][4 * WIDTH] = {{0}};
        for (int o = 0; o < outputs; o++) {
            memcpy(rest[o], weight[o] + k * size, (inputs - k) * size);
            weight[o] = rest[o];
        }
        multiply_step(sum, weight, 0, x + k, stride, rows, outputs, dtype);
    }
    write_tile(call, sum, row, output, count, rows, dtype);
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
        for (int64_t k = 0; k < stride; k += 2 * WIDTH) {
            char rest[2 * WIDTH * 4] = {0};
            const int64_t left = call->inputs - k;
            const char *at = from + k * size;
            if (left < 2 * WIDTH) memcpy(rest, at, larger(0, left) * size), at = rest;
            *(vector_at *)(to + k) = half_of(at, dtype, 0);
            *(vector_at *)(to + k + WIDTH) = half_of(dtype == FLOAT32 ? at + WIDTH * size : at, dtype, 1);
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
    if (call->dtype != FLOAT32 || call->inputs % WIDTH) {
        stride = whole(call->inputs, 2 * WIDTH);
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
