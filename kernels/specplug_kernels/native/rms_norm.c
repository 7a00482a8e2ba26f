/* y = w * (x / sqrt(mean(x^2) + epsilon)) of a few rows on a CPU, in one call where torch takes seven.

   Sums are in fp32. What comes out of the division is rounded to the dtype before it is multiplied, as models do that compute it in torch.
   One thread: a row is read twice, from the first level of the cache the second time. */

#include <stdint.h>

#include "lanes.h"

#define CHAINS 4 /* of sums, which wait for each other */

/* What Python gives, in this order (`norm_library.py`). */
struct call {
    const char *x, *weight; /* [M, D], [D]: contiguous */
    char *y;                /* [M, D], contiguous */
    int64_t rows, width;    /* M, D */
    int64_t dtype;
    double epsilon;
};

INLINE float total(vector x) {
    lanes both = folded(x);
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += both[lane];
    return sum;
}

/* `dtype` is a constant wherever these are used. */
INLINE float squares(const char *x, int64_t width, int dtype) {
    const int64_t size = element_bytes(dtype), step = CHAINS * WIDTH;
    vector sums[CHAINS] = {{0}};
    int64_t i = 0;
    for (; i + step <= width; i += step)
        for (int c = 0; c < CHAINS; c++) {
            const vector some = in_order(x + (i + c * WIDTH) * size, dtype);
            sums[c] += some * some;
        }
    float rest = 0;
    for (; i < width; i++) {
        const float one = load_one(x + i * size, dtype);
        rest += one * one;
    }
    return total((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

INLINE void scale(const char *x, const char *weight, char *y, int64_t width, float by, int dtype) {
    const int64_t size = element_bytes(dtype);
    int64_t i = 0;
    for (; i + WIDTH <= width; i += WIDTH) {
        char *at = y + i * size;
        put_in_order(at, dtype, in_order(x + i * size, dtype) * all_wide(by));
        put_in_order(at, dtype, in_order(at, dtype) * in_order(weight + i * size, dtype));
    }
    for (; i < width; i++) {
        char *at = y + i * size;
        store_one(at, dtype, load_one(x + i * size, dtype) * by);
        store_one(at, dtype, load_one(at, dtype) * load_one(weight + i * size, dtype));
    }
}

INLINE void rows(const struct call *call, int dtype) {
    const int64_t bytes = call->width * element_bytes(dtype);
    for (int64_t row = 0; row < call->rows; row++) {
        const char *x = call->x + row * bytes;
        const float mean = squares(x, call->width, dtype) / (float)call->width;
        scale(x, call->weight, call->y + row * bytes, call->width, 1.0f / sqrtf(mean + (float)call->epsilon), dtype);
    }
}

/* Always 0. */
int specplug_rms_norm(const struct call *call) {
    if (call->dtype == FLOAT32)
        rows(call, FLOAT32);
    else if (call->dtype == BFLOAT16)
        rows(call, BFLOAT16);
    else
        rows(call, FLOAT16);
    return 0;
}

/* What Python asks once: that both mean the same struct. */
int specplug_call_bytes(void) { return sizeof(struct call); }
