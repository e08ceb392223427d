/* A chain of blocks that only grows; big requests get a block of their own. */
#include "model/arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK_BYTES = 64 * 1024, ALIGN = 16 };

typedef struct block {
    struct block *next;
    size_t size, used; /* of data[] */
    _Alignas(ALIGN) unsigned char data[];
} block;

struct td_arena {
    block *head; /* the block that is being filled; full and big ones follow it */
    size_t used;
};

td_arena *td_arena_new(void)
{
    return calloc(1, sizeof(td_arena));
}

void td_arena_free(td_arena *a)
{
    if (a == NULL)
        return;
    for (block *b = a->head, *next; b != NULL; b = next) {
        next = b->next;
        free(b);
    }
    free(a);
}

static block *block_new(size_t size)
{
    block *b = calloc(1, sizeof(block) +
                             size); /* fresh pages come zeroed: only what is touched costs memory */
    if (b != NULL)
        b->size = size;
    return b;
}

void *td_arena_alloc(td_arena *a, size_t n, size_t size)
{
    if (size != 0 && n > (SIZE_MAX / 2) / size)
        return NULL;
    const size_t want = (n * size + ALIGN - 1) / ALIGN * ALIGN;
    block *b = a->head;
    if (b == NULL || b->size - b->used < want) {
        const int own = want > BLOCK_BYTES / 4;
        block *fresh = block_new(own ? want : BLOCK_BYTES);
        if (fresh == NULL)
            return NULL;
        if (own && b != NULL) { /* keep filling the current block */
            fresh->next = b->next;
            b->next = fresh;
        } else {
            fresh->next = b;
            a->head = fresh;
        }
        b = fresh;
    }
    void *p = b->data + b->used;
    b->used += want;
    a->used += want;
    return p;
}

void td_arena_adopt(td_arena *a, td_arena *child)
{
    block **end = &a->head;
    while (*end != NULL)
        end = &(*end)->next;
    *end = child->head;
    a->used += child->used;
    free(child);
}

size_t td_arena_used(const td_arena *a)
{
    return a->used;
}

char *td_arena_printf(td_arena *a, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : td_arena_alloc(a, (size_t)n + 1, 1);
    if (text != NULL) {
        va_start(args, format);
        vsnprintf(text, (size_t)n + 1, format, args);
        va_end(args);
    }
    return text;
}
