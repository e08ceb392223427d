/*
 * What shares a lifetime shares an arena: plans, programs and timelines are built in one and freed
 * with it.
 */
#ifndef TANDEM_MODEL_ARENA_H
#define TANDEM_MODEL_ARENA_H

#include <stddef.h>

typedef struct td_arena td_arena;

/* NULL if the machine has no memory. */
td_arena *td_arena_new(void);

/* Frees the arena and everything allocated from it; td_arena_free(NULL) is fine. */
void td_arena_free(td_arena *a);

/*
 * `n` zeroed objects of `size` bytes, aligned for any type; lives as long as the arena. NULL if
 * there is no memory or n * size overflows. n == 0 gives a valid pointer that must not be read.
 */
void *td_arena_alloc(td_arena *a, size_t n, size_t size);

/* Everything in `child` now lives as long as `a`; `child` itself is gone. */
void td_arena_adopt(td_arena *a, td_arena *child);

/* Bytes handed out so far, for reports. */
size_t td_arena_used(const td_arena *a);

/* A copy of the text in the arena, printf-like; NULL without memory. */
char *td_arena_printf(td_arena *a, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define TD_NEW(a, type, n) ((type *)td_arena_alloc((a), (size_t)(n), sizeof(type)))

#endif
