/*
 * The future: a 4-ary heap of events by time, then by order of scheduling, so that equal times
 * never depend on chance. Events are not removed when they lose their meaning: whoever scheduled
 * one remembers its `seq` and skips the others.
 */
#ifndef TANDEM_SIM_HEAP_H
#define TANDEM_SIM_HEAP_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    double time;
    uint32_t seq; /* TD_LATE set: after every event of the same time that has it not */
    uint32_t id;
} td_heap_event;

#define TD_LATE 0x80000000u

typedef struct {
    td_heap_event *events;
    size_t n, cap;
} td_heap;

static inline bool td_heap_before(const td_heap_event *a, const td_heap_event *b)
{
    return a->time < b->time || (a->time == b->time && a->seq < b->seq);
}

/* False if the machine has no memory. */
static inline bool td_heap_push(td_heap *h, td_heap_event e)
{
    if (h->n == h->cap) {
        const size_t cap = h->cap == 0 ? 1024 : h->cap * 2;
        td_heap_event *events = realloc(h->events, cap * sizeof *events);
        if (events == NULL)
            return false;
        h->events = events;
        h->cap = cap;
    }
    size_t i = h->n++;
    while (i > 0) {
        const size_t up = (i - 1) / 4;
        if (!td_heap_before(&e, &h->events[up]))
            break;
        h->events[i] = h->events[up];
        i = up;
    }
    h->events[i] = e;
    return true;
}

/* h->n > 0; the next event is h->events[0] until this takes it away. */
static inline void td_heap_pop(td_heap *h)
{
    const td_heap_event last = h->events[--h->n];
    size_t i = 0;
    for (;;) {
        const size_t first = 4 * i + 1, end = first + 4 < h->n ? first + 4 : h->n;
        size_t best = first;
        if (first >= h->n)
            break;
        for (size_t c = first + 1; c < end; c++)
            if (td_heap_before(&h->events[c], &h->events[best]))
                best = c;
        if (!td_heap_before(&h->events[best], &last))
            break;
        h->events[i] = h->events[best];
        i = best;
    }
    h->events[i] = last;
}

#endif
