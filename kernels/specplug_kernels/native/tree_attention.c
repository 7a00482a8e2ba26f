/* Tree attention on a CPU in one pass over the KV cache (flash decoding: arXiv 2205.14135; split and merged by log-sum-exp).

   The query heads of a KV head times the nodes are its packed rows. They go in tiles of R = 1, 2, 4 or 8, with AVX-512 also of 16;
   a block of columns serves all tiles while it is in the cache, so that K and V come from memory once. A tile's scores lie column
   after column, [column][row]: a vector of eight holds 8 / R columns, and running maximum and sum are vectors in which a
   row stands in every R-th lane. In a tile of 16 every row has a lane of its own from the dot products on: nothing is added up over
   lanes, which for short heads takes longer than the products. Where the processor multiplies blocks, such a tile's products of
   bfloat16 are blocks (blocks.h).

   Threads share all blocks of all KV heads evenly. A KV head that several threads had a part of is merged at the end. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "ahead.h"
#include "blocks.h"

#ifdef __AVX512F__
#define SUMS 16 /* vectors of sums at a time: half of the registers */
#else
#define SUMS 8
#endif
#define WIDE 16         /* rows of the largest tile, and floats that a tile's maxima and sums have room for */
#define PART 64         /* numbers of a head that such a tile adds up one after another */

/* Rows of a tile that go together, so that what is read of the cache is converted for all of them at once. */
INLINE int rows_together(int rows) { return smaller(rows, SUMS / 2); }

/* What Python gives, in this order (`attention_library.py`); strides count elements. */
struct call {
    const char *query, *key, *value, *bias; /* bias may be NULL */
    char *out;                              /* [B, n, Hq, Dv], contiguous */
    int64_t batch, kv_heads, groups, nodes, columns, prefix, dim, value_dim;
    int64_t query_strides[3];                 /* batch, head, node; elements lie side by side, here and below */
    int64_t key_strides[3], value_strides[3]; /* batch, head, column */
    int64_t bias_strides[3];                  /* batch, node, column */
    int64_t dtype, threads;
    double scale;
};

/* Whether a call's wide tiles are multiplied in blocks. */
static int in_blocks(const struct call *call) {
    const int fits = call->dtype == BFLOAT16 && call->dim % DEEP == 0 && call->value_dim % DEEP == 0;
    return fits && blocks_permitted();
}

/* A call's sizes: packed rows, tiles of them, columns a block, blocks a KV head, and KV heads of all rows of the batch. */
struct shape {
    int64_t rows, padded_rows, tiles, block, blocks, pairs;
    int in_blocks;
};

/* Where a part of a KV head stands: sums of weighted values [padded_rows][Dv], and [tiles][WIDE] maxima and sums of weights. */
struct state {
    float *values, *max, *sum;
};

/* A thread's own memory. Its first KV head may be one that another thread began, its last one that another goes on with:
   each has a state of its own. */
struct scratch {
    int in_blocks;
    float *queries; /* [padded_rows][D], scaled; not scaled of a tile of 16 [D][16] or bfloat16 [D / 2][16][2], of 8 bfloat16 [D / 4][8][4] */
    float *scores;  /* [block][WIDE] */
    struct state first, later;
};

/* Rows of the next tile: thirteen to fifteen, seven and three are padded; what lies between goes in several. Of bfloat16 that is
   multiplied in blocks five and more are. */
INLINE int64_t tile_rows(int64_t left, int64_t dtype) {
    if (WIDTH == WIDE && left >= (BLOCKS && dtype == BFLOAT16 ? 5 : 13)) return WIDE;
    return left >= 7 ? 8 : left >= 3 ? 4 : left;
}

/* Whether the rows of such a tile lie in lanes from the dot products on: sixteen in one each, eight of bfloat16 that is multiplied in
   pairs in two each. */
INLINE int in_lanes(int64_t rows, int64_t dtype) { return rows == WIDE || (PAIRS && rows == LANES && dtype == BFLOAT16); }

/* ---- Arithmetic on vectors. ---- */

/* e^x for x <= 0, to 3e-7 of it; exactly 0 below -87 (so that what is hidden has no weight), NaN for NaN. The coefficients are
   those of a polynomial in r^2 (..) + r + 1 whose largest relative error for |r| <= ln(2) / 2 is least: 1.1e-7. */
#define EXPONENTIAL(X, TYPE, BITS, ALL, BELOW)                                                                         \
    const TYPE shift = ALL(12582912.0f);                /* 1.5 * 2^23: rounds to whole numbers */                      \
    TYPE shifted = X * ALL(1.44269504088896341f) + shift; /* 1 / ln(2); the low bits are the power of two */           \
    TYPE power = shifted - shift;                                                                                      \
    TYPE rest = X - power * ALL(0.693359375f) - power * ALL(-2.12194440e-4f); /* ln(2) in two parts, the first exact */\
    TYPE y = ALL(8.312477730e-3f);                                                                                     \
    y = y * rest + ALL(4.1890550405e-2f);                                                                              \
    y = y * rest + ALL(1.6667115688e-1f);                                                                              \
    y = y * rest + ALL(4.9999228120e-1f);                                                                              \
    y = y * (rest * rest) + rest + ALL(1.0f);                                                                          \
    TYPE scale = (TYPE)(((BITS)shifted << 23) + 0x3f800000u);                                                          \
    return BELOW(X, -87.0f, ALL(0.0f), y * scale);

INLINE lanes lanes_below(lanes x, float bound, lanes yes, lanes no) { return choose(x < all(bound), yes, no); }
INLINE lanes exponential(lanes x) { EXPONENTIAL(x, lanes, lanes_bits, all, lanes_below) }
INLINE vector exponential_wide(vector x) { EXPONENTIAL(x, vector, vector_bits, all_wide, where_below) }

/* Every row's maximum in all of its lanes, of which there are LANES / rows. */
INLINE lanes max_of_rows(lanes x, int rows) {
    if (rows <= 4) x = larger_lanes(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
    if (rows <= 2) x = larger_lanes(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
    if (rows <= 1) x = larger_lanes(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
    return x;
}

/* What is subtracted before the exponential: a row that has seen nothing yet has a maximum of -inf, and -inf - -inf is NaN. */
INLINE lanes finite_max(lanes max) { return choose(max == all(-INFINITY), all(0.0f), max); }

/* ---- A tile and a block of columns. `rows`, `dtype`, `part` and `wide` are constants wherever these are used. ---- */

/* dots[column][rows] += keys[column] * query, for eight elements or sixteen. */
INLINE void multiply(vector dots[SUMS], const char *const key[LANES], int64_t d, const float *query, int64_t dim,
                     int rows, int columns, int elements, int dtype) {
    vector keys[LANES][2];
    for (int c = 0; c < columns; c++) load(key[c] + d * element_bytes(dtype), dtype, elements, keys[c]);
    for (int e = 0; e < vectors(elements); e++) {
        if (rows > 1)
            for (int c = 0; c < columns; c++) IN_REGISTER(keys[c][e]);
        for (int r = 0; r < rows; r++) {
            vector one = floats_at(query + r * dim + d + e * WIDTH, elements);
            IN_REGISTER(one);
            for (int c = 0; c < columns; c++) dots[c * rows + r] += keys[c][e] * one;
        }
    }
}

/* scores[column][rows] = queries . keys. As many dot products at a time as stay in registers (of sixteen registers eight: twelve
   would leave none free, and one sum in memory costs more than they gain), of up to eight columns. A last group that is not whole
   repeats the last column. For every line that is read, one ahead is asked for. */
INLINE void score(const float *queries, int64_t dim, const char *keys, int64_t stride, int64_t count, float *scores,
                  struct ahead *ahead, int rows, int dtype) {
    const int part = rows_together(rows), together = smaller(LANES, SUMS / part), lines = together * part / rows;
    for (int64_t column = 0; column < count; column += together) {
        const char *key[LANES];
        for (int c = 0; c < together; c++) key[c] = keys + smaller(column + c, count - 1) * stride;
        for (int first = 0; first < rows; first += part) {
            const float *query = queries + first * dim;
            vector dots[SUMS] = {0};
            int64_t d = 0;
            for (; d + 16 <= dim; d += 16) {
                if (d * element_bytes(dtype) % LINE == 0) ask_for(ahead, lines);
                multiply(dots, key, d, query, dim, part, together, 16, dtype);
            }
            if (d < dim) {
                if (d * element_bytes(dtype) % LINE == 0) ask_for(ahead, lines);
                multiply(dots, key, d, query, dim, part, together, LANES, dtype);
            }
            for (int eight = 0; eight < part * together; eight += LANES) {
                lanes products[LANES];
                for (int i = 0; i < LANES; i++) products[i] = folded(dots[eight + i]);
                lanes found = sums(products);
                if (part == rows) {
                    *(lanes_at *)(scores + column * rows + eight) = found;
                } else {
                    quarter_at *to = (quarter_at *)(scores + column * rows + first);
                    to[0] = (quarter_at){found[0], found[1], found[2], found[3]};
                    to[2] = (quarter_at){found[4], found[5], found[6], found[7]};
                }
            }
        }
    }
}

/* dots[column] += queries . keys for a tile of 16, eight columns and up to 64 numbers of a head, which lie `offset` bytes behind its first one:
   each number of a key serves all rows at once. Eight sums are as many as the processor has products under way. */
INLINE void multiply_wide(vector dots[LANES], const float *queries, int64_t dim, const char *const key[LANES],
                          int64_t offset, struct ahead *ahead, int dtype) {
    float widened[LANES][PART];
    const float *numbers[LANES];
    for (int c = 0; c < LANES; c++) {
        const char *at = key[c] + offset;
        numbers[c] = dtype == FLOAT32 ? (const float *)at : widened[c];
        if (dtype == FLOAT32) continue;
        int64_t d = 0;
        for (; d + WIDTH <= dim; d += WIDTH)
            *(vector_at *)(widened[c] + d) = in_order(at + d * element_bytes(dtype), dtype);
        if (d < dim) *(lanes_at *)(widened[c] + d) = load8(at + d * element_bytes(dtype), dtype);
    }
    for (int64_t d = 0; d < dim; d += LANES) {
        if (d * element_bytes(dtype) % LINE == 0) ask_for(ahead, LANES);
        for (int e = 0; e < LANES; e++) {
            const vector query = *(const vector_at *)(queries + (d + e) * WIDE);
            for (int c = 0; c < LANES; c++) dots[c] += query * all_wide(numbers[c][d + e]);
        }
    }
}

#if PAIRS
/* The same of bfloat16, as it lies: two numbers of a key and of every query make one product. */
INLINE void multiply_pairs(vector dots[LANES], const float *queries, int64_t dim, const char *const key[LANES],
                           int64_t offset, struct ahead *ahead) {
    for (int64_t d = 0; d < dim; d += LANES) {
        if (d * 2 % LINE == 0) ask_for(ahead, LANES);
        for (int e = 0; e < LANES; e += 2) {
            const vector query = *(const vector_at *)(queries + (d + e) / 2 * WIDE);
            for (int c = 0; c < LANES; c++) {
                float pair;
                memcpy(&pair, key[c] + offset + (d + e) * 2, 4);
                dots[c] = add_pairs(dots[c], query, pair);
            }
        }
    }
}

/* The same for a tile of eight, whose rows have two lanes each: four numbers of a key and of every query make one product. */
INLINE void multiply_fours(vector dots[LANES], const float *queries, int64_t dim, const char *const key[LANES],
                           int64_t offset, struct ahead *ahead) {
    for (int64_t d = 0; d < dim; d += 4) {
        if (d * 2 % LINE == 0) ask_for(ahead, LANES);
        const vector query = *(const vector_at *)(queries + d / 4 * WIDE);
        for (int c = 0; c < LANES; c++) {
            int64_t pairs;
            memcpy(&pairs, key[c] + offset + d * 2, 8);
            dots[c] = add_two_pairs(dots[c], query, pairs);
        }
    }
}
#endif

/* scores[column][rows] = scale * queries . keys where rows lie in lanes. A last group that is not whole repeats the last column. A lane adds
   up all of a head, or half of it, by itself: not more than 64 numbers at a time, or long heads would be less exact than in the other tiles. */
INLINE void score_wide(const float *queries, int64_t dim, float scale, const char *keys, int64_t stride, int64_t count,
                       float *scores, struct ahead *ahead, int rows, int dtype) {
    for (int64_t column = 0; column < count; column += LANES) {
        const char *key[LANES];
        for (int c = 0; c < LANES; c++) key[c] = keys + smaller(column + c, count - 1) * stride;
        vector dots[LANES] = {0};
        for (int64_t d = 0; d < dim; d += PART) {
            vector some[LANES] = {0};
#if PAIRS
            if (rows == LANES)
                multiply_fours(some, queries + d / 4 * WIDE, smaller(PART, dim - d), key, d * 2, ahead);
            else if (dtype == BFLOAT16)
                multiply_pairs(some, queries + d / 2 * WIDE, smaller(PART, dim - d), key, d * 2, ahead);
            else
#endif
                multiply_wide(some, queries + d * WIDE, smaller(PART, dim - d), key, d * element_bytes(dtype), ahead, dtype);
            for (int c = 0; c < LANES; c++) dots[c] += some[c];
        }
#if PAIRS
        if (rows == LANES) /* two columns a vector */
            for (int c = 0; c < LANES / 2; c++) dots[c] = neighbours(dots[2 * c], dots[2 * c + 1]);
#endif
        for (int c = 0; c < LANES * rows / WIDE; c++)
            *(vector_at *)(scores + column * rows + c * WIDE) = dots[c] * all_wide(scale);
    }
}

/* sum[part][elements] += weights * a column's elements. */
INLINE void add_column(vector sum[SUMS], const char *at, const float *weights, int part, int elements, int dtype) {
    const int wide = vectors(elements);
    vector found[SUMS];
    load(at, dtype, elements, found);
    if (part > 1)
        for (int e = 0; e < wide; e++) IN_REGISTER(found[e]);
    for (int r = 0; r < part; r++)
        for (int e = 0; e < wide; e++) sum[r * wide + e] += weights[r] * found[e];
}

/* values[rows][Dv] = values * decay + weights . cache, for `part` rows from `first` on and `elements` from `d` on. Four
   columns a turn: with one, counting them takes as many instructions as the processor has room for beside the products. */
INLINE void gather(float *values, int64_t dim, int64_t d, const float *weights, const float *decay, const char *cache,
                   int64_t stride, int64_t count, struct ahead *ahead, int rows, int first, int part, int elements,
                   int dtype) {
    enum { TURN = 4 };
    const int wide = vectors(elements);
    const int64_t lines = TURN * elements * element_bytes(dtype) * part / rows / LINE;
    const char *at = cache + d * element_bytes(dtype);
    vector sum[SUMS];
    for (int r = 0; r < part; r++)
        for (int e = 0; e < wide; e++)
            sum[r * wide + e] = floats_at(values + (first + r) * dim + d + e * WIDTH, elements) * decay[first + r];
    weights += first;
    int64_t column = 0;
    for (; column + TURN <= count; column += TURN) {
        ask_for(ahead, lines);
        for (int c = 0; c < TURN; c++, at += stride, weights += rows)
            add_column(sum, at, weights, part, elements, dtype);
    }
    for (; column < count; column++, at += stride, weights += rows)
        add_column(sum, at, weights, part, elements, dtype);
    for (int r = 0; r < part; r++)
        for (int e = 0; e < wide; e++)
            put_floats(values + (first + r) * dim + d + e * WIDTH, sum[r * wide + e], elements);
}

/* The same for all elements and `used` rows, or some more: the rest of a tile is padding. */
INLINE void gather_all(float *values, int64_t dim, const float *weights, const float *decay, const char *cache,
                       int64_t stride, int64_t count, struct ahead *ahead, int64_t used, int rows, int dtype) {
    const int part = rows_together(rows), most = SUMS / part * WIDTH, half = most / 2 > 16 ? most / 2 : 16;
    int64_t d = 0;
    for (; d + most <= dim; d += most)
        for (int first = 0; first < used; first += part)
            gather(values, dim, d, weights, decay, cache, stride, count, ahead, rows, first, part, most, dtype);
    for (; d + half <= dim; d += half)
        for (int first = 0; first < used; first += part)
            gather(values, dim, d, weights, decay, cache, stride, count, ahead, rows, first, part, half, dtype);
    for (; d + 16 <= dim; d += 16)
        for (int first = 0; first < used; first += part)
            gather(values, dim, d, weights, decay, cache, stride, count, ahead, rows, first, part, 16, dtype);
    for (; d < dim; d += LANES)
        for (int first = 0; first < used; first += part)
            gather(values, dim, d, weights, decay, cache, stride, count, ahead, rows, first, part, LANES, dtype);
}

/* Whether bytes that lie side by side are all zero: most of a bias is. */
INLINE int all_zero(const char *at, int64_t bytes) {
    uint64_t seen = 0, word;
    int64_t i = 0;
    for (; i + 8 <= bytes; i += 8) memcpy(&word, at + i, 8), seen |= word;
    for (; i < bytes; i++) seen |= (unsigned char)at[i];
    return seen == 0;
}

/* Add the bias of columns [from, from + count) to the scores of rows [row, row + rows), those that are no padding. */
INLINE void add_bias(const struct call *call, int64_t batch, int64_t row, int64_t from, int64_t count, float *scores,
                     int rows) {
    const int64_t skipped = from < call->prefix ? call->prefix - from : 0, size = element_bytes(call->dtype);
    const int64_t *strides = call->bias_strides, left = call->groups * call->nodes - row;
    if (skipped >= count) return;
    for (int r = 0; r < rows && r < left; r++) {
        int64_t at =
            batch * strides[0] + (row + r) % call->nodes * strides[1] + (from + skipped - call->prefix) * strides[2];
        const char *bias = call->bias + at * size;
        if (strides[2] == 1 && all_zero(bias, (count - skipped) * size)) continue;
        for (int64_t c = skipped; c < count; c++, bias += strides[2] * size)
            scores[c * rows + r] += load_one(bias, call->dtype);
    }
}

/* Scores to weights in place; the new maximum and sum; and by what the old sums shrink, in `decay`. */
INLINE void weigh(float *scores, int64_t count, float *max, float *sum, float *decay, int rows) {
    const int64_t end = (count * rows + LANES - 1) / LANES * LANES;
    for (int64_t i = count * rows; i < end; i++) scores[i] = -INFINITY;
    lanes before = *(lanes_at *)max, top = before;
    for (int64_t i = 0; i < end; i += LANES) top = larger_lanes(*(lanes_at *)(scores + i), top);
    top = max_of_rows(top, rows);
    lanes base = finite_max(top), shrink = exponential(before - base), total = *(lanes_at *)sum * shrink;
    for (int64_t i = 0; i < end; i += LANES) {
        lanes weight = exponential(*(lanes_at *)(scores + i) - base);
        total += weight;
        *(lanes_at *)(scores + i) = weight;
    }
    *(lanes_at *)max = top, *(lanes_at *)sum = total, *(lanes_at *)decay = shrink;
}

/* The same for a tile of 16, each of whose rows has a lane. */
INLINE void weigh_wide(float *scores, int64_t count, float *max, float *sum, float *decay) {
    vector before = *(vector_at *)max, top = before;
    for (int64_t c = 0; c < count; c++) top = larger_wide(*(vector_at *)(scores + c * WIDE), top);
    vector base = where_below(top, -FLT_MAX, all_wide(0.0f), top); /* see `finite_max` */
    vector shrink = exponential_wide(before - base), total = *(vector_at *)sum * shrink;
    for (int64_t c = 0; c < count; c++) {
        vector weight = exponential_wide(*(vector_at *)(scores + c * WIDE) - base);
        total += weight;
        *(vector_at *)(scores + c * WIDE) = weight;
    }
    *(vector_at *)max = top, *(vector_at *)sum = total, *(vector_at *)decay = shrink;
}

/* A tile and the columns [from, from + count), whose keys and values these are. The first tile asks for what is read
   next: these values while it reads the keys, and the next keys while it reads the values. */
INLINE void attend_tile(const struct call *call, const struct scratch *scratch, struct state state, int64_t batch,
                        int64_t tile, int64_t row, const char *keys, const char *values, int64_t from, int64_t count,
                        int rows, int dtype) {
    const int64_t key_stride = call->key_strides[2] * element_bytes(dtype),
                  value_stride = call->value_strides[2] * element_bytes(dtype);
    const int more = from + count < call->columns;
    struct ahead next_values =
        ahead_from(tile == 0 ? values : NULL, call->value_dim * element_bytes(dtype), value_stride);
    struct ahead next_keys = ahead_from(tile == 0 && more ? keys + count * key_stride : NULL,
                                        call->dim * element_bytes(dtype), key_stride);
    float *scores = scratch->scores, decay[WIDE], *max = state.max + tile * WIDE, *sum = state.sum + tile * WIDE;
    const float *queries = scratch->queries + row * call->dim;
    int64_t scored = 0, gathered = 0;
#if BLOCKS
    if (rows == WIDE && dtype == BFLOAT16 && scratch->in_blocks)
        scored = score_blocks(queries, call->dim, (float)call->scale, keys, key_stride, count, scores, &next_values);
#endif
    if (in_lanes(rows, dtype))
        score_wide(queries, call->dim, (float)call->scale, keys + scored * key_stride, key_stride, count - scored,
                   scores + scored * rows, &next_values, rows, dtype);
    else
        score(queries, call->dim, keys, key_stride, count, scores, &next_values, rows, dtype);
    if (call->bias) add_bias(call, batch, row, from, count, scores, rows);
    if (rows == WIDE)
        weigh_wide(scores, count, max, sum, decay);
    else
        weigh(scores, count, max, sum, decay, rows);
    float *sums = state.values + row * call->value_dim;
#if BLOCKS
    if (rows == WIDE && dtype == BFLOAT16 && scratch->in_blocks)
        gathered = gather_blocks(sums, call->value_dim, scores, decay, values, value_stride, count, &next_keys);
    if (gathered)
        for (int r = 0; r < WIDE; r++) decay[r] = 1.0f;
#endif
    if (gathered < count)
        gather_all(sums, call->value_dim, scores + gathered * rows, decay, values + gathered * value_stride,
                   value_stride, count - gathered, &next_keys, smaller(rows, call->groups * call->nodes - row), rows,
                   dtype);
}

/* ---- A part of a KV head. ---- */

#ifdef __AVX512F__
#define WIDE_TILE(ATTEND) default: ATTEND;
#else
#define WIDE_TILE(ATTEND)
#endif
#define TILES_OF(DTYPE)                                                                                                \
    static void attend_block_##DTYPE(const struct call *call, const struct scratch *scratch, struct state state,       \
                                     int64_t batch, const char *keys, const char *values, int64_t from,                \
                                     int64_t count) {                                                                  \
        const int64_t rows = call->groups * call->nodes;                                                               \
        for (int64_t row = 0, tile = 0; row < rows; row += tile_rows(rows - row, DTYPE), tile++)                       \
            switch (tile_rows(rows - row, DTYPE)) {                                                                    \
            case 1: attend_tile(call, scratch, state, batch, tile, row, keys, values, from, count, 1, DTYPE); break;   \
            case 2: attend_tile(call, scratch, state, batch, tile, row, keys, values, from, count, 2, DTYPE); break;   \
            case 4: attend_tile(call, scratch, state, batch, tile, row, keys, values, from, count, 4, DTYPE); break;   \
            case 8: attend_tile(call, scratch, state, batch, tile, row, keys, values, from, count, 8, DTYPE); break;   \
            WIDE_TILE(attend_tile(call, scratch, state, batch, tile, row, keys, values, from, count, WIDE, DTYPE))     \
            }                                                                                                          \
    }
TILES_OF(FLOAT32)
TILES_OF(BFLOAT16)
TILES_OF(FLOAT16)

/* A query's elements, scaled, in the order in which keys are multiplied. */
INLINE void pack_query(const char *from, float *to, int64_t dim, lanes scale, int dtype) {
    int64_t d = 0;
    for (; d + 16 <= dim; d += 16) {
        lanes first, second;
        load16(from + d * element_bytes(dtype), dtype, &first, &second);
        *(lanes_at *)(to + d) = first * scale, *(lanes_at *)(to + d + LANES) = second * scale;
    }
    if (d < dim) *(lanes_at *)(to + d) = load8(from + d * element_bytes(dtype), dtype) * scale;
}

/* The same for a row of a tile of 16, whose queries `to` points to. */
INLINE void pack_query_wide(const char *from, float *to, int64_t dim, int64_t row, int dtype) {
    if (PAIRS && dtype == BFLOAT16)
        for (int64_t d = 0; d < dim; d += 2) memcpy(to + d / 2 * WIDE + row, from + d * 2, 4);
    else
        for (int64_t d = 0; d < dim; d++) to[d * WIDE + row] = load_one(from + d * element_bytes(dtype), dtype);
}

/* The same for a row of a tile of eight whose numbers are multiplied in pairs. */
INLINE void pack_query_eight(const char *from, float *to, int64_t dim, int64_t row) {
    for (int64_t d = 0; d < dim; d += 4) memcpy(to + d / 4 * WIDE + row * 2, from + d * 2, 8);
}

static void pack_queries(const struct call *call, const struct shape *shape, int64_t batch, int64_t head,
                         float *packed) {
    const int64_t *strides = call->query_strides, size = element_bytes(call->dtype);
    memset(packed, 0, shape->padded_rows * call->dim * sizeof(float));
    for (int64_t row = 0, r = 0; row < shape->rows; row++) {
        const int64_t query_head = head * call->groups + row / call->nodes, node = row % call->nodes;
        const char *from = call->query + (batch * strides[0] + query_head * strides[1] + node * strides[2]) * size;
        const int64_t rows = tile_rows(shape->rows - (row - r), call->dtype);
        if (!in_lanes(rows, call->dtype))
            pack_query(from, packed + row * call->dim, call->dim, all((float)call->scale), (int)call->dtype);
        else if (rows == LANES)
            pack_query_eight(from, packed + (row - r) * call->dim, call->dim, r);
        else
            pack_query_wide(from, packed + (row - r) * call->dim, call->dim, r, (int)call->dtype);
        r = r + 1 < rows ? r + 1 : 0;
    }
}

/* Blocks [first, last) of a KV head into a fresh state. */
static void attend_part(const struct call *call, const struct shape *shape, const struct scratch *scratch,
                        struct state state, int64_t pair, int64_t first, int64_t last) {
    const int64_t batch = pair / call->kv_heads, head = pair % call->kv_heads, size = element_bytes(call->dtype);
    const char *keys = call->key + (batch * call->key_strides[0] + head * call->key_strides[1]) * size;
    const char *values = call->value + (batch * call->value_strides[0] + head * call->value_strides[1]) * size;
    pack_queries(call, shape, batch, head, scratch->queries);
    memset(state.values, 0, shape->padded_rows * call->value_dim * sizeof(float));
    memset(state.sum, 0, shape->tiles * WIDE * sizeof(float));
    for (int64_t i = 0; i < shape->tiles * WIDE; i++) state.max[i] = -INFINITY;
    for (int64_t block = first; block < last; block++) {
        int64_t from = block * shape->block, count = smaller(shape->block, call->columns - from);
        const char *k = keys + from * call->key_strides[2] * size, *v = values + from * call->value_strides[2] * size;
        if (call->dtype == FLOAT32)
            attend_block_FLOAT32(call, scratch, state, batch, k, v, from, count);
        else if (call->dtype == BFLOAT16)
            attend_block_BFLOAT16(call, scratch, state, batch, k, v, from, count);
        else
            attend_block_FLOAT16(call, scratch, state, batch, k, v, from, count);
    }
}

/* `into` becomes the state of both parts' columns, for up to eight rows of a tile, from `first` on. */
INLINE void merge_rows(const struct call *call, struct state into, struct state other, int64_t tile, int64_t row,
                       int64_t first, int64_t rows) {
    const int64_t at = tile * WIDE + first;
    lanes_at *max = (lanes_at *)(into.max + at), *sum = (lanes_at *)(into.sum + at);
    lanes theirs = *(lanes_at *)(other.max + at), top = larger_lanes(*max, theirs), base = finite_max(top);
    lanes keep = exponential(*max - base), take = exponential(theirs - base);
    *sum = *sum * keep + *(lanes_at *)(other.sum + at) * take;
    *max = top;
    for (int64_t r = first; r < rows && r < first + LANES; r++) {
        float *own = into.values + (row + r) * call->value_dim, *added = other.values + (row + r) * call->value_dim;
        for (int64_t d = 0; d < call->value_dim; d++) own[d] = own[d] * keep[r - first] + added[d] * take[r - first];
    }
}

static void merge(const struct call *call, const struct shape *shape, struct state into, struct state other) {
    for (int64_t row = 0, tile = 0, rows; row < shape->rows; row += rows, tile++) {
        rows = tile_rows(shape->rows - row, call->dtype);
        for (int64_t first = 0; first < rows; first += LANES) merge_rows(call, into, other, tile, row, first, rows);
    }
}

/* Weighted values over weights, to their places in the output; zeros for a row without any weight. */
static void write_out(const struct call *call, const struct shape *shape, struct state state, int64_t pair) {
    const int64_t batch = pair / call->kv_heads, head = pair % call->kv_heads, dim = call->value_dim,
                  size = element_bytes(call->dtype);
    const int dtype = (int)call->dtype;
    for (int64_t row = 0, tile = 0, r = 0; row < shape->rows; row++) {
        int64_t rows = tile_rows(shape->rows - (row - r), call->dtype);
        float sum = 0.0f;
        for (int64_t lane = r; lane < larger(LANES, rows); lane += rows) sum += state.sum[tile * WIDE + lane];
        lanes share = all(sum == 0.0f ? 0.0f : 1.0f / sum);
        int64_t query_head = head * call->groups + row / call->nodes, node = row % call->nodes;
        char *to = call->out + ((batch * call->nodes + node) * call->kv_heads * call->groups + query_head) * dim * size;
        const float *from = state.values + row * dim;
        int64_t d = 0;
        for (; d + 16 <= dim; d += 16)
            store16(to + d * size, dtype, *(const lanes_at *)(from + d) * share,
                    *(const lanes_at *)(from + d + LANES) * share);
        if (d < dim) store8(to + d * size, dtype, *(const lanes_at *)(from + d) * share);
        if (++r == rows) r = 0, tile++;
    }
}

/* ---- Threads. ---- */

INLINE int64_t floats_a_state(const struct call *call, const struct shape *shape) {
    return shape->padded_rows * call->value_dim + 2 * shape->tiles * WIDE;
}

INLINE int64_t floats_a_thread(const struct call *call, const struct shape *shape) {
    int64_t floats = shape->padded_rows * call->dim + shape->block * WIDE + 2 * floats_a_state(call, shape);
    return (floats + 15) / 16 * 16; /* a cache line: no two threads write to the same */
}

static struct state state_at(const struct call *call, const struct shape *shape, float *memory) {
    float *max = memory + shape->padded_rows * call->value_dim;
    return (struct state){memory, max, max + shape->tiles * WIDE};
}

static struct scratch scratch_of(const struct call *call, const struct shape *shape, float *memory, int64_t thread) {
    float *own = memory + thread * floats_a_thread(call, shape),
          *states = own + shape->padded_rows * call->dim + shape->block * WIDE;
    return (struct scratch){shape->in_blocks, own, own + shape->padded_rows * call->dim, state_at(call, shape, states),
                            state_at(call, shape, states + floats_a_state(call, shape))};
}

INLINE int64_t begin_of(const struct shape *shape, int64_t thread, int64_t threads) {
    return shape->pairs * shape->blocks * thread / threads;
}

/* A thread's share. What it has of a KV head is written out if that is the whole, else left in its state. */
static void attend_share(const struct call *call, const struct shape *shape, float *memory, int64_t thread,
                         int64_t threads) {
    const int64_t begin = begin_of(shape, thread, threads), end = begin_of(shape, thread + 1, threads);
    struct scratch scratch = scratch_of(call, shape, memory, thread);
    for (int64_t at = begin; at < end;) {
        int64_t pair = at / shape->blocks, first = at % shape->blocks, last = smaller(shape->blocks, first + end - at);
        struct state state = at == begin ? scratch.first : scratch.later;
        attend_part(call, shape, &scratch, state, pair, first, last);
        if (first == 0 && last == shape->blocks) write_out(call, shape, state, pair);
        at += last - first;
    }
}

/* The KV head that this thread began and others went on with, if there is one. */
static void merge_last(const struct call *call, const struct shape *shape, float *memory, int64_t thread,
                       int64_t threads) {
    const int64_t begin = begin_of(shape, thread, threads), end = begin_of(shape, thread + 1, threads);
    if (begin == end || end % shape->blocks == 0) return;
    const int64_t pair = end / shape->blocks;
    if (begin > pair * shape->blocks) return;
    struct scratch own = scratch_of(call, shape, memory, thread);
    struct state state = begin == pair * shape->blocks ? own.first : own.later;
    for (int64_t other = thread + 1; other < threads && begin_of(shape, other, threads) < (pair + 1) * shape->blocks;
         other++)
        if (begin_of(shape, other, threads) < begin_of(shape, other + 1, threads))
            merge(call, shape, state, scratch_of(call, shape, memory, other).first);
    write_out(call, shape, state, pair);
}

static struct shape shape_of(const struct call *call) {
    /* Of keys, and as many of values: both stay in the first level of the cache while the tiles take turns. What is asked for lies
       as far ahead; half and twice as much measured alike. */
    struct shape shape = {.rows = call->groups * call->nodes, .pairs = call->batch * call->kv_heads};
    shape.in_blocks = tile_rows(shape.rows, call->dtype) == WIDE && in_blocks(call);
    const int64_t block_bytes = 8192, least_columns = shape.in_blocks ? 32 : 16;
    for (int64_t row = 0, rows; row < shape.rows; row += rows)
        rows = tile_rows(shape.rows - row, call->dtype), shape.tiles++, shape.padded_rows = row + rows;
    const int64_t column_bytes = larger(call->dim, call->value_dim) * element_bytes(call->dtype);
    shape.block = larger(least_columns, block_bytes / column_bytes / LANES * LANES);
    shape.blocks = larger(1, (call->columns + shape.block - 1) / shape.block);
    return shape;
}

/* 0, or 1 if there is no memory. */
int specplug_tree_attention(const struct call *call) {
    const int64_t blocks_worth_a_thread = 4;
    if (call->batch * call->kv_heads * call->groups * call->nodes == 0) return 0;
    const struct shape shape = shape_of(call);
    const int64_t threads = larger(1, smaller(call->threads, shape.pairs * shape.blocks / blocks_worth_a_thread));
    float *memory = aligned_alloc(64, threads * floats_a_thread(call, &shape) * sizeof(float));
    if (!memory) return 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int64_t thread = 0, present = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num(), present = omp_get_num_threads(); /* there may be fewer than were asked for */
#endif
#if BLOCKS
        struct tiles before;
        if (shape.in_blocks) begin_blocks(&before);
#endif
        attend_share(call, &shape, memory, thread, present);
#if BLOCKS
        if (shape.in_blocks) end_blocks(&before);
#endif
#pragma omp barrier
        merge_last(call, &shape, memory, thread, present);
    }
    free(memory);
    return 0;
}

/* What Python asks once: that both mean the same struct. */
int specplug_call_bytes(void) { return sizeof(struct call); }

/* Whether bfloat16 is multiplied in blocks, where heads have a multiple of 32 numbers. */
int specplug_multiplies_blocks(void) { return blocks_permitted(); }
