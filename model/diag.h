/*
 * What a reader of a file has to say about it: errors and warnings with their place, collected so
 * that one look at a plan shows everything that is wrong with it, not only the first thing.
 */
#ifndef TANDEM_MODEL_DIAG_H
#define TANDEM_MODEL_DIAG_H

#include "model/arena.h"
#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *file;     /* as it was named on the command line or in the plan */
    int32_t line, column; /* 1-based; 0 where the parser has none */
} td_pos;

typedef struct td_diag {
    struct td_diag *next;
    bool warning;
    td_pos at;
    const char *path; /* dotted key path, `modules.language.parallel.tp`; "" for the whole file */
    const char *rule; /* short stable name: `unknown_key`, `wrong_type`, `out_of_range`,
                         `missing_key`, ... */
    const char *message; /* fact and expectation, without place and path */
} td_diag;

/* In the order they were found. At most TD_DIAG_LIMIT are kept; n_errors and n_warnings count all.
 */
enum { TD_DIAG_LIMIT = 100 };
typedef struct {
    td_arena *arena;
    td_diag *head, *tail;
    int32_t n_errors, n_warnings;
} td_diags;

void td_diag_error(td_diags *d, td_pos at, const char *path, const char *rule, const char *format,
                   ...) __attribute__((format(printf, 5, 6)));
void td_diag_warn(td_diags *d, td_pos at, const char *path, const char *rule, const char *format,
                  ...) __attribute__((format(printf, 5, 6)));

/* One line, `file:line:column: path: message`, leaving out what is empty. Valid as long as the
 * diags' arena. */
const char *td_diag_text(const td_diags *d, const td_diag *one);

/* The first error as a failure with status TD_PLAN; TD_OK if there is none. */
td_status td_diag_status(const td_diags *d, td_err *err);

#endif
