/* Vectors of eight floats and of the processor's own width, and numbers of all types to and from them: what the kernels have in common.

   Portable to any GCC or Clang with vector extensions; eight floats are one AVX register, sixteen one of AVX-512. Little endian only. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bfloat16 pairs are taken apart as little endian words"
#endif

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define LINE 64 /* bytes of a cache line */

typedef float lanes __attribute__((vector_size(32)));
typedef int32_t lanes_int __attribute__((vector_size(32)));
typedef uint32_t lanes_bits __attribute__((vector_size(32)));
typedef uint16_t halves __attribute__((vector_size(16)));
/* The same in memory: of any alignment, and whatever type the bytes were written as. */
typedef float lanes_at __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t lanes_bits_at __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint16_t halves_at __attribute__((vector_size(16), aligned(2), may_alias));
typedef float quarter_at __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lanes_int){__VA_ARGS__})
#endif

#ifdef __AVX512BF16__
#define PAIRS 1 /* products of bfloat16 in pairs */
#else
#define PAIRS 0
#endif

enum dtype { FLOAT32, BFLOAT16, FLOAT16 };

INLINE int64_t element_bytes(int64_t dtype) { return dtype == FLOAT32 ? 4 : 2; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE lanes all(float x) { return (lanes){x, x, x, x, x, x, x, x}; }
INLINE lanes choose(lanes_int where, lanes yes, lanes no) {
    return (lanes)((where & (lanes_int)yes) | (~where & (lanes_int)no));
}
INLINE lanes larger_lanes(lanes a, lanes b) {
#ifdef __AVX__
    return (lanes)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

/* ---- Vectors as wide as the processor's: sixteen floats or eight. ---- */

#ifdef __AVX512F__
#define WIDTH 16
typedef float vector __attribute__((vector_size(64)));
typedef uint32_t vector_bits __attribute__((vector_size(64)));
typedef float vector_at __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t vector_bits_at __attribute__((vector_size(64), aligned(2), may_alias));

INLINE vector joined(lanes first, lanes second) {
    return (vector)_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512((__m256)first)), _mm256_castps_pd((__m256)second), 1);
}
INLINE lanes first_lanes(vector x) { return (lanes)_mm512_castps512_ps256((__m512)x); }
INLINE lanes last_lanes(vector x) { return (lanes)_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)x), 1)); }
INLINE lanes folded(vector x) { /* the sum of both halves */
    return first_lanes(x) + last_lanes(x);
}
INLINE vector extended(lanes x) { return joined(x, (lanes){0}); }
INLINE vector all_wide(float x) { return (vector)_mm512_set1_ps(x); }
INLINE vector larger_wide(vector a, vector b) { return (vector)_mm512_max_ps((__m512)a, (__m512)b); }
/* sum + a . b, each lane of which is the sum of two products, of bfloat16 that lie side by side. */
#if PAIRS
INLINE vector add_pairs(vector sum, vector a, float pair) {
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)_mm512_set1_ps(pair));
}
/* The same of two pairs, one for the even lanes and one for the odd ones. */
INLINE vector add_two_pairs(vector sum, vector a, int64_t pairs) {
    return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)_mm512_set1_epi64(pairs));
}
/* The sums of neighbouring lanes, eight of `a` and eight of `b`. */
INLINE vector neighbours(vector a, vector b) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 first = _mm512_permutex2var_ps((__m512)a, even, (__m512)b);
    return (vector)first + (vector)_mm512_permutex2var_ps((__m512)a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), (__m512)b);
}
#endif
INLINE vector where_below(vector x, float bound, vector yes, vector no) {
    return (vector)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_LT_OQ), (__m512)no, (__m512)yes);
}
#else
#define WIDTH LANES
typedef lanes vector;
typedef lanes_bits vector_bits;
typedef lanes_at vector_at;
typedef lanes_bits_at vector_bits_at;

INLINE lanes folded(vector x) { return x; }
INLINE lanes first_lanes(vector x) { return x; }
INLINE vector extended(lanes x) { return x; }
INLINE vector all_wide(float x) { return all(x); }
INLINE vector larger_wide(vector a, vector b) { return larger_lanes(a, b); }
INLINE vector where_below(vector x, float bound, vector yes, vector no) { return choose(x < all(bound), yes, no); }
#endif

/* Load once: a compiler that thinks loads free fetches an operand again for every product, and loads are what limits them. */
#ifdef __AVX512F__
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(__AVX__)
#define IN_REGISTER(x) __asm__("" : "+x"(x))
#else
#define IN_REGISTER(x)
#endif

/* ---- Numbers of all types to float and back. ----

   Sixteen elements become two vectors. Of bfloat16 they are the even and the odd ones: a word is a pair of elements, and
   each a shift or a mask away from its float. Queries are packed and results written in the same order. */

INLINE lanes load8(const char *at, int dtype) {
    if (dtype == FLOAT32) return *(const lanes_at *)at;
    halves half = *(const halves_at *)at;
    if (dtype == BFLOAT16) return (lanes)(__builtin_convertvector(half, lanes_bits) << 16);
#ifdef __F16C__
    return (lanes)_mm256_cvtph_ps((__m128i)half);
#else
    return all(NAN); /* never asked for: see specplug_has_float16 */
#endif
}

/* Eight elements as they lie, or sixteen where vectors are as wide. */
INLINE vector in_order(const char *at, int dtype) {
#ifdef __AVX512F__
    if (dtype == FLOAT32) return *(const vector_at *)at;
    const __m256i half = _mm256_loadu_si256((const __m256i *)at);
    if (dtype == FLOAT16) return (vector)_mm512_cvtph_ps(half);
    return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#else
    return load8(at, dtype);
#endif
}

INLINE void load16(const char *at, int dtype, lanes *first, lanes *second) {
    if (dtype == BFLOAT16) {
        lanes_bits pairs = *(const lanes_bits_at *)at;
        *first = (lanes)(pairs << 16), *second = (lanes)(pairs & 0xffff0000u);
    } else {
        *first = load8(at, dtype), *second = load8(at + LANES * element_bytes(dtype), dtype);
    }
}

/* Vectors that a number of elements needs; eight are one, of which the rest is zero. */
INLINE int vectors(int elements) { return (elements + WIDTH - 1) / WIDTH; }

/* Eight elements, or any multiple of sixteen, as vectors: in the order that `load16` gives each sixteen. */
INLINE void load(const char *at, int dtype, int elements, vector found[]) {
    if (elements == LANES) {
        found[0] = extended(load8(at, dtype));
        return;
    }
    for (int e = 0; e < elements; e += 16, at += 16 * element_bytes(dtype)) {
#ifdef __AVX512F__
        if (dtype == BFLOAT16) {
            lanes first, second;
            load16(at, dtype, &first, &second);
            found[e / WIDTH] = joined(first, second);
        } else {
            found[e / WIDTH] = in_order(at, dtype);
        }
#else
        load16(at, dtype, &found[e / WIDTH], &found[e / WIDTH + 1]);
#endif
    }
}

/* Floats as they lie: eight or any multiple of sixteen. */
INLINE vector floats_at(const float *at, int elements) {
    if (elements == LANES) return extended(*(const lanes_at *)at);
    return *(const vector_at *)at;
}
INLINE void put_floats(float *at, vector x, int elements) {
    if (elements == LANES)
        *(lanes_at *)at = first_lanes(x);
    else
        *(vector_at *)at = x;
}

/* The upper halves hold the nearest bfloat16, ties to even. */
INLINE lanes_bits rounded(lanes x) {
    lanes_bits bits = (lanes_bits)x;
    lanes_bits nearest = bits + 0x7fff + ((bits >> 16) & 1);
    return (lanes_bits)choose(x != x, (lanes)(bits | 0x400000), (lanes)nearest);
}

INLINE void store8(char *at, int dtype, lanes x) {
    if (dtype == FLOAT32) {
        *(lanes_at *)at = x;
    } else if (dtype == BFLOAT16) {
        *(halves_at *)at = __builtin_convertvector(rounded(x) >> 16, halves);
    } else {
#ifdef __F16C__
        *(halves_at *)at = (halves)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#endif
    }
}

INLINE void store16(char *at, int dtype, lanes first, lanes second) {
    if (dtype == BFLOAT16) {
        *(lanes_bits_at *)at = (rounded(first) >> 16) | (rounded(second) & 0xffff0000u);
    } else {
        store8(at, dtype, first), store8(at + LANES * element_bytes(dtype), dtype, second);
    }
}

/* As `in_order` reads. */
INLINE void put_in_order(char *at, int dtype, vector x) {
#ifdef __AVX512F__
    if (dtype == FLOAT32) {
        *(vector_at *)at = x;
    } else {
        store8(at, dtype, first_lanes(x)), store8(at + LANES * element_bytes(dtype), dtype, last_lanes(x));
    }
#else
    store8(at, dtype, x);
#endif
}

INLINE float load_one(const char *at, int64_t dtype) {
    if (dtype == FLOAT32) {
        float x;
        memcpy(&x, at, 4);
        return x;
    }
    uint16_t half;
    memcpy(&half, at, 2);
    if (dtype == BFLOAT16) {
        uint32_t bits = (uint32_t)half << 16;
        float x;
        memcpy(&x, &bits, 4);
        return x;
    }
#ifdef __F16C__
    return _cvtsh_ss(half);
#else
    return NAN;
#endif
}

INLINE void store_one(char *at, int64_t dtype, float x) {
    char eight[4 * LANES] = {0};
    store8(eight, dtype, all(x));
    memcpy(at, eight, element_bytes(dtype));
}

/* Lane i of the result is the sum of all lanes of x[i]. */
INLINE lanes sums(const lanes x[LANES]) {
    lanes pairs[4], fours[2];
    for (int i = 0; i < 4; i++) {
        lanes a = x[2 * i], b = x[2 * i + 1];
        pairs[i] = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13) + SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 2; i++) {
        lanes a = pairs[2 * i], b = pairs[2 * i + 1];
        fours[i] = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    return SHUFFLE(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           SHUFFLE(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

/* ---- What Python asks once of every library: what this build can do. ---- */

int specplug_has_float16(void) {
#ifdef __F16C__
    return 1;
#else
    return 0;
#endif
}

int specplug_has_threads(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* Vectors that this was measured with; elsewhere it is right, and torch may be faster. */
int specplug_has_vectors(void) {
#if defined(__AVX2__) && defined(__FMA__)
    return 1;
#else
    return 0;
#endif
}
