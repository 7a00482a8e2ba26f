/* Memory that will be read next, asked for while other memory is worked on. */

#pragma once

#include "lanes.h"

/* Lines that will be read next, in the order in which they will be: the next one, how many of its column are left with it, and
   what lies between two columns. None if `at` is NULL. */
struct ahead {
    const char *at;
    int64_t lines, left, skip; /* a column's lines; those left; bytes from behind a column's last line to the next column */
};

INLINE struct ahead ahead_from(const char *first, int64_t bytes, int64_t stride) {
    const int64_t lines = (bytes + LINE - 1) / LINE;
    return (struct ahead){first, lines, lines, stride - lines * LINE};
}

/* Ask for the next lines, into the second level of the cache: the first is full of what is used now. Two streams that take turns
   are too much for the processor's own foresight. A few lines at a time and in order: a burst, or one line of every column, has
   the memory wait for the arithmetic and then the arithmetic for the memory, and eight rows take the sum of both times. Lines
   behind the last one are asked for in vain, and do no harm. */
INLINE void ask_for(struct ahead *ahead, int64_t lines) {
    if (!ahead->at) return;
    for (int64_t i = 0; i < lines; i++) {
        __builtin_prefetch(ahead->at, 0, 2);
        ahead->at += LINE;
        if (--ahead->left == 0) ahead->at += ahead->skip, ahead->left = ahead->lines;
    }
}
