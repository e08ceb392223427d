/* An open-addressing table over tuples that lie one after the other in one growing buffer. */
#include "sim/intern.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static uint64_t hash(const int32_t *tuple, size_t n)
{
    uint64_t h = 0x9e3779b97f4a7c15u + n; /* splitmix64's finalizer as the mixing step */
    for (size_t i = 0; i < n; i++) {
        h = (h ^ (uint32_t)tuple[i]) * 0xbf58476d1ce4e5b9u;
        h ^= h >> 29;
    }
    return h ^ h >> 32;
}

void td_intern_clear(td_intern *t)
{
    t->n = 0;
    t->n_words = 0;
    if (t->slots != NULL)
        memset(t->slots, 0xff, t->n_slots * sizeof *t->slots);
}

void td_intern_free(td_intern *t)
{
    free(t->words);
    free(t->first);
    free(t->slots);
    *t = (td_intern){0};
}

static size_t find(const td_intern *t, const int32_t *tuple, size_t n)
{
    size_t s = (size_t)hash(tuple, n) & (t->n_slots - 1);
    for (; t->slots[s] >= 0; s = (s + 1) & (t->n_slots - 1)) {
        const size_t at = t->first[t->slots[s]], len = t->first[t->slots[s] + 1] - at;
        if (len == n && memcmp(t->words + at, tuple, n * sizeof *tuple) == 0)
            break;
    }
    return s;
}

static bool grow_slots(td_intern *t)
{
    const size_t n_slots = t->n_slots == 0 ? 1024 : t->n_slots * 2;
    int32_t *slots = malloc(n_slots * sizeof *slots);
    if (slots == NULL)
        return false;
    free(t->slots);
    t->slots = slots;
    t->n_slots = n_slots;
    memset(slots, 0xff, n_slots * sizeof *slots);
    for (int32_t i = 0; i < t->n; i++)
        slots[find(t, t->words + t->first[i], t->first[i + 1] - t->first[i])] = i;
    return true;
}

static bool reserve(td_intern *t, size_t n)
{
    bool ok = true;
    if (t->n_words + n > t->cap_words) {
        const size_t cap = (t->n_words + n) * 2;
        int32_t *words = realloc(t->words, cap * sizeof *words);
        ok = words != NULL;
        if (ok) {
            t->words = words;
            t->cap_words = cap;
        }
    }
    if (ok && t->n + 1 >= t->cap) {
        const int32_t cap = t->cap == 0 ? 256 : t->cap * 2;
        size_t *first = realloc(t->first, (size_t)cap * sizeof *first);
        ok = first != NULL;
        if (ok) {
            t->first = first;
            t->cap = cap;
        }
    }
    return ok && ((size_t)t->n * 2 < t->n_slots || grow_slots(t));
}

int32_t td_intern_get(td_intern *t, const int32_t *tuple, size_t n)
{
    if (!reserve(t, n))
        return -1;
    const size_t s = find(t, tuple, n);
    if (t->slots[s] < 0) {
        if (n > 0)
            memcpy(t->words + t->n_words, tuple, n * sizeof *tuple);
        t->first[t->n] = t->n_words;
        t->n_words += n;
        t->first[t->n + 1] = t->n_words;
        t->slots[s] = t->n++;
    }
    return t->slots[s];
}
