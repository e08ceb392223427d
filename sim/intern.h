/*
 * Gives equal tuples of integers equal numbers, counted from 0 in the order of first sight.
 * Compares the tuples themselves, so a hash collision costs time and never an answer.
 */
#ifndef TANDEM_SIM_INTERN_H
#define TANDEM_SIM_INTERN_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int32_t *words; /* all tuples one after the other */
    size_t n_words, cap_words;
    size_t *first; /* [n + 1]: tuple i is words[first[i] .. first[i + 1]) */
    int32_t n, cap;
    int32_t *slots; /* open addressing: tuple number or -1 */
    size_t n_slots;
} td_intern;

/* Empties it and keeps its memory; a zeroed td_intern is empty. */
void td_intern_clear(td_intern *t);

/* The number of a tuple; -1 if the machine has no memory. */
int32_t td_intern_get(td_intern *t, const int32_t *tuple, size_t n);

void td_intern_free(td_intern *t);

#endif
