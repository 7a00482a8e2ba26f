/* Products of sixteen rows of bfloat16 with blocks of columns, on processors that multiply blocks (AMX).

   A tile register holds 16 lines of 64 bytes. One instruction adds to a block [16][16] of sums the products of [16][32] numbers and
   [32][16] others, the latter in pairs: [16][16][2]. Keys lie as the first of them, columns by their numbers. Of values, the second, the
   numbers of two columns are brought together first; weights are turned, each as two bfloat16, so that nothing of them is lost. */

#pragma once

#include "ahead.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && PAIRS && defined(__AVX512BW__) && defined(__linux__)
#define BLOCKS 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define BLOCKS 0
#endif

enum { SIDE = 16, DEEP = 32 }; /* rows and columns of a block of sums; numbers that one instruction adds up for each */

#if BLOCKS

/* Whether this process may use tile registers: asked of the system once, and granted for all threads. */
static int blocks_permitted(void) {
    enum { REQUEST = 0x1023, TILES = 18 }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
    static int permitted = -1;
    int known = __atomic_load_n(&permitted, __ATOMIC_RELAXED);
    if (known < 0) __atomic_store_n(&permitted, known = syscall(SYS_arch_prctl, REQUEST, TILES) == 0, __ATOMIC_RELAXED);
    return known;
}

struct tiles {
    uint8_t palette, start, unused[14];
    uint16_t line_bytes[16];
    uint8_t lines[16];
};

/* Compilers know neither that tile registers and their sizes are loaded from memory, nor how much of it. */
#define WRITTEN __asm__ volatile("" ::: "memory")

/* This thread's tile registers become ours, as large as they are; what they were is kept for `end_blocks`. */
static void begin_blocks(struct tiles *before) {
    struct tiles ours = {.palette = 1};
    for (int i = 0; i < 8; i++) ours.lines[i] = SIDE, ours.line_bytes[i] = LINE;
    _tile_storeconfig(before);
    WRITTEN;
    _tile_loadconfig(&ours);
}

static void end_blocks(const struct tiles *before) {
    WRITTEN;
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}

/* scores[column][16] = scale * queries . keys for the first columns, a multiple of sixteen, which is returned. `queries`: pairs [dim / 2][16]. */
static int64_t score_blocks(const float *queries, int64_t dim, float scale, const char *keys, int64_t stride,
                            int64_t count, float *scores, struct ahead *ahead) {
    int64_t column = 0;
    WRITTEN;
    for (; column + 2 * SIDE <= count; column += 2 * SIDE) {
        const char *at = keys + column * stride;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t d = 0; d < dim; d += DEEP) {
            ask_for(ahead, 2 * SIDE);
            _tile_loadd(2, queries + d / 2 * SIDE, LINE);
            _tile_loadd(3, at + d * 2, stride);
            _tile_dpbf16ps(0, 3, 2);
            _tile_loadd(4, at + SIDE * stride + d * 2, stride);
            _tile_dpbf16ps(1, 4, 2);
        }
        _tile_stored(0, scores + column * SIDE, LINE);
        _tile_stored(1, scores + (column + SIDE) * SIDE, LINE);
    }
    for (; column + SIDE <= count; column += SIDE) {
        _tile_zero(0);
        for (int64_t d = 0; d < dim; d += DEEP) {
            ask_for(ahead, SIDE);
            _tile_loadd(2, queries + d / 2 * SIDE, LINE);
            _tile_loadd(3, keys + column * stride + d * 2, stride);
            _tile_dpbf16ps(0, 3, 2);
        }
        _tile_stored(0, scores + column * SIDE, LINE);
    }
    for (int64_t c = 0; c < column; c++) *(vector_at *)(scores + c * SIDE) *= all_wide(scale);
    return column;
}

/* Sixteen columns of sixteen words, turned. */
INLINE void turn(__m512i x[SIDE]) {
    __m512i y[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + 2 + j]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + 2 + j]);
        }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88), y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88), x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
    }
}

/* Sixteen floats as words whose lower halves are the nearest bfloat16. */
INLINE __m512i halves_of(__m512 x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x)); }

/* `nearest` and `rest` [16 rows][32]: the weights of 32 columns [32][16] as two bfloat16 each, whose sum they are but for 2^-17 of them. */
INLINE void turn_weights(const float *weights, uint32_t *nearest, uint32_t *rest) {
    __m512i pairs[SIDE], left[SIDE];
    for (int p = 0; p < SIDE; p++) {
        const __m512 even = _mm512_loadu_ps(weights + 2 * p * SIDE), odd = _mm512_loadu_ps(weights + (2 * p + 1) * SIDE);
        const __m512i first = halves_of(even), second = _mm512_slli_epi32(halves_of(odd), 16);
        pairs[p] = _mm512_or_si512(first, second);
        left[p] = _mm512_or_si512(halves_of(even - (__m512)_mm512_slli_epi32(first, 16)),
                                  _mm512_slli_epi32(halves_of(odd - (__m512)second), 16));
    }
    turn(pairs), turn(left);
    for (int r = 0; r < SIDE; r++)
        _mm512_storeu_si512(nearest + r * SIDE, pairs[r]), _mm512_storeu_si512(rest + r * SIDE, left[r]);
}

/* `to` [2][16][16][2] = 32 numbers of 32 columns, those of two columns side by side; of sixteen numbers the even ones first, as `load16`
   has them. Shifts and masks: shuffles of halves of words take several times as long. */
INLINE void pair_values(const char *values, int64_t stride, uint32_t *to) {
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    for (int p = 0; p < SIDE; p++, values += 2 * stride, to += SIDE) {
        const __m512i one = _mm512_loadu_si512(values), two = _mm512_loadu_si512(values + stride);
        const __m512i even = _mm512_or_si512(_mm512_andnot_si512(upper, one), _mm512_slli_epi32(two, 16));
        const __m512i odd = _mm512_or_si512(_mm512_srli_epi32(one, 16), _mm512_and_si512(upper, two));
        _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(even));
        _mm256_storeu_si256((__m256i *)to + 1, _mm512_castsi512_si256(odd));
        _mm256_storeu_si256((__m256i *)(to + SIDE * SIDE), _mm512_extracti64x4_epi64(even, 1));
        _mm256_storeu_si256((__m256i *)(to + SIDE * SIDE) + 1, _mm512_extracti64x4_epi64(odd, 1));
    }
}

/* values[16][dim] = values * decay + weights . cache for the first columns, a multiple of 32, which is returned; if none, nothing is done. */
static int64_t gather_blocks(float *values, int64_t dim, const float *weights, const float *decay, const char *cache,
                             int64_t stride, int64_t count, struct ahead *ahead) {
    enum { MOST = 4 }; /* groups of 32 columns that go together */
    uint32_t nearest[MOST][SIDE * SIDE], rest[MOST][SIDE * SIDE], paired[MOST][2 * SIDE * SIDE];
    const int64_t groups = smaller(MOST, count / DEEP);
    if (!groups) return 0;
    for (int r = 0; r < SIDE; r++)
        if (decay[r] != 1.0f)
            for (int64_t d = 0; d < dim; d += WIDTH) *(vector_at *)(values + r * dim + d) *= all_wide(decay[r]);
    for (int64_t g = 0; g < groups; g++) turn_weights(weights + g * DEEP * SIDE, nearest[g], rest[g]);
    for (int64_t d = 0; d < dim; d += DEEP) {
        for (int64_t g = 0; g < groups; g++) {
            ask_for(ahead, DEEP);
            pair_values(cache + g * DEEP * stride + d * 2, stride, paired[g]);
        }
        WRITTEN;
        _tile_loadd(0, values + d, dim * 4);
        _tile_loadd(1, values + d + SIDE, dim * 4);
        for (int64_t g = 0; g < groups; g++) {
            _tile_loadd(2, nearest[g], LINE);
            _tile_loadd(3, rest[g], LINE);
            _tile_loadd(4, paired[g], LINE);
            _tile_loadd(5, paired[g] + SIDE * SIDE, LINE);
            _tile_dpbf16ps(0, 2, 4);
            _tile_dpbf16ps(1, 2, 5);
            _tile_dpbf16ps(0, 3, 4);
            _tile_dpbf16ps(1, 3, 5);
        }
        _tile_stored(0, values + d, dim * 4);
        _tile_stored(1, values + d + SIDE, dim * 4);
    }
    return groups * DEEP;
}
#else
static int blocks_permitted(void) { return 0; }
#endif
