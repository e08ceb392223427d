/*
 * Words and paths in messages and files: the nearest known word, text made safe to print, a path
 * beside a file.
 */
#ifndef TANDEM_MODEL_TEXT_H
#define TANDEM_MODEL_TEXT_H

#include "model/arena.h"

/*
 * The one of `known` (ends with NULL) that `word` was probably meant to be: fewest insertions,
 * deletions, replacements and swaps of neighbours, case aside, at most a third of the word's length
 * (but at least one); the first of equals. NULL when nothing is near.
 */
const char *td_text_nearest(const char *word, const char *const *known);

/*
 * `size` bytes of UTF-8 as they may stand in a message: control characters as \xNN, cut after some
 * 60 bytes at a character's end, with `...`. Never NULL: "?" without memory.
 */
const char *td_text_show(td_arena *a, const char *text, size_t size);

/* The words joined by ", " (`known` ends with NULL), for `expected one of ...`. Never NULL: "?"
 * without memory. */
const char *td_text_list(td_arena *a, const char *const *known);

/* `path` as seen from the folder of `file` that names it; absolute paths stay. NULL without memory.
 */
const char *td_text_beside(td_arena *a, const char *file, const char *path);

#endif
