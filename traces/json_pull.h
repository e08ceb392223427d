/*
 * A pull tokenizer for JSON (RFC 8259) that holds one token at a time, so that a file of any size
 * is read in the memory of its longest text. Strict: no comments, no trailing commas, UTF-8 only.
 * Numbers stay decimal until the caller says what they should become, because a microsecond with
 * three decimals is an exact integer of nanoseconds and a double is not.
 */
#ifndef TANDEM_TRACES_JSON_PULL_H
#define TANDEM_TRACES_JSON_PULL_H

#include "model/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TD_JSON_MAX_TEXT =
        16384, /* bytes of a key or of a text that is kept; a skipped text may be longer */
    TD_JSON_MAX_DEPTH = 64 /* arrays and objects within one another */
};

/* token, what a message calls it */
#define TD_JSON_MAP(X)                                                                             \
    X(EOF, "the end")                                                                              \
    X(OBJECT, "an object")                                                                         \
    X(OBJECT_END, "the end of an object")                                                          \
    X(ARRAY, "an array")                                                                           \
    X(ARRAY_END, "the end of an array")                                                            \
    X(KEY, "a key")                                                                                \
    X(TEXT, "a text")                                                                              \
    X(NUMBER, "a number")                                                                          \
    X(TRUE, "true")                                                                                \
    X(FALSE, "false")                                                                              \
    X(NULL, "null")

typedef enum {
#define X(token, words) TD_JSON_##token,
    TD_JSON_MAP(X)
#undef X
        TD_N_JSON_TOKENS
} td_json_token;
extern const char *const td_json_words[TD_N_JSON_TOKENS];

/* mantissa * 10^exponent; `dropped`: digits other than 0 followed that the mantissa had no room
 * for. */
typedef struct {
    uint64_t mantissa;
    int64_t exponent;
    bool negative, dropped;
} td_json_number;

/* Gives the next bytes of the text, which stay valid until the next call; *size == 0 at its end. */
typedef td_status (*td_json_fill)(void *self, const unsigned char **data, size_t *size,
                                  td_err *err);

typedef enum {
    TD_JSON_AT_VALUE,
    TD_JSON_AT_FIRST,
    TD_JSON_AT_NEXT,
    TD_JSON_AT_COMMA
} td_json_state;

/* Read `token_at`, `text`, `n_text` and `number`; the rest belongs to the tokenizer. */
typedef struct {
    uint64_t token_at;     /* byte offset at which the last token began */
    td_json_number number; /* of a NUMBER */
    size_t n_text;         /* bytes of a KEY or TEXT */
    char text[TD_JSON_MAX_TEXT +
              1]; /* of a KEY or TEXT: valid UTF-8 without NUL inside, closed by NUL */

    const char *place; /* begins every message: the file's name */
    td_json_fill fill;
    void *self;
    const unsigned char *begin, *at, *end; /* what fill() gave and how far it is read */
    uint64_t before;                       /* bytes given by earlier fills */
    bool ended, skipping;
    td_json_state state;
    int32_t depth;
    uint64_t objects; /* bit d: the container at depth d is an object */
} td_json;

/* `place` and `self` must outlive `j`, which owns nothing. */
void td_json_start(td_json *j, const char *place, td_json_fill fill, void *self);

/* The next token. Commas and colons are checked and not reported. After the value EOF, again and
 * again. Fails with TD_FILE. */
td_status td_json_next(td_json *j, td_json_token *out, td_err *err);

/* Reads over the next value, whatever it is and however long its texts are; call it after a KEY. */
td_status td_json_skip(td_json *j, td_err *err);

/* Reads to the end of the container that the last token, `token`, opened; nothing to do if it
 * opened none. */
td_status td_json_leave(td_json *j, td_json_token token, td_err *err);

/* Fails with TD_FILE: `PLACE: byte OFFSET: ` and the printf-like sentence. */
td_status td_json_fail(const td_json *j, uint64_t offset, td_err *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/*
 * |number| * 10^scale as an integer; false if it does not fit 64 bits. Whatever lies behind the
 * unit is rounded to the nearest (halves away from zero) and clears *exact.
 */
bool td_json_integer(td_json_number number, int32_t scale, uint64_t *magnitude, bool *exact);

/* The nearest double, infinite when out of range. */
double td_json_double(td_json_number number);

/* Bytes of the UTF-8 character at `s` (1..4), 0 if it is not valid. Reads behind the first byte
 * only while all is valid, so a closing NUL is protection enough. */
int td_utf8_length(const unsigned char *s);

#endif
