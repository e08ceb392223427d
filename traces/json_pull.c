/* JSON one token at a time: a state per container bit, no recursion, no allocation. */
#include "traces/json_pull.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const td_json_words[TD_N_JSON_TOKENS] = {
#define X(token, words) [TD_JSON_##token] = words,
    TD_JSON_MAP(X)
#undef X
};

void td_json_start(td_json *j, const char *place, td_json_fill fill, void *self)
{
    memset(j, 0, sizeof *j);
    j->place = place;
    j->fill = fill;
    j->self = self;
}

td_status td_json_fail(const td_json *j, uint64_t offset, td_err *err, const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return td_fail(err, TD_FILE, "%.300s: byte %llu: %s", j->place, (unsigned long long)offset,
                   text);
}

static uint64_t offset(const td_json *j)
{
    return j->before + (uint64_t)(j->at - j->begin);
}

/* ---- bytes ---- */

enum { NO_BYTE = -1 };

/* The next byte without taking it, NO_BYTE at the end of the text. */
static inline td_status peek(td_json *j, int *out, td_err *err)
{
    td_status st = TD_OK;
    if (j->at == j->end && !j->ended) {
        size_t size = 0;
        j->before += (uint64_t)(j->end - j->begin);
        j->begin = j->at = j->end = NULL;
        TD_TRY(st, j->fill(j->self, &j->begin, &size, err));
        j->at = j->begin;
        j->end = size == 0 ? j->begin : j->begin + size;
        j->ended = size == 0;
    }
    *out = j->at == j->end ? NO_BYTE : *j->at;
done:
    return st;
}

static inline td_status peek_visible(td_json *j, int *out, td_err *err)
{
    td_status st = TD_OK;
    for (;;) {
        TD_TRY(st, peek(j, out, err));
        if (*out != ' ' && *out != '\n' && *out != '\r' && *out != '\t')
            break;
        j->at++;
    }
done:
    return st;
}

static td_status unexpected(td_json *j, int found, const char *expected, td_err *err)
{
    if (found == NO_BYTE)
        return td_json_fail(j, offset(j), err, "the text ends here, expected %s", expected);
    if (found > 0x20 && found < 0x7f)
        return td_json_fail(j, offset(j), err, "found '%c', expected %s", found, expected);
    return td_json_fail(j, offset(j), err, "found byte 0x%02x, expected %s", (unsigned)found,
                        expected);
}

/* ---- texts ---- */

int td_utf8_length(const unsigned char *s)
{
    /* Unicode 15, table 3-7: the range of the second byte rules out overlong forms, surrogates and
     * beyond U+10FFFF. */
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    const int n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    const unsigned char low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    const unsigned char high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high)
        return 0;
    for (int i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xbf)
            return 0;
    return n;
}

static td_status keep(td_json *j, const void *bytes, size_t n, td_err *err)
{
    if (j->skipping)
        return TD_OK;
    if (n > TD_JSON_MAX_TEXT - j->n_text)
        return td_json_fail(j, j->token_at, err, "a text of more than %d bytes", TD_JSON_MAX_TEXT);
    memcpy(j->text + j->n_text, bytes, n);
    j->n_text += n;
    return TD_OK;
}

static td_status keep_code(td_json *j, uint32_t code, td_err *err)
{
    unsigned char b[4];
    size_t n = 0;
    if (code == 0 && !j->skipping)
        return td_json_fail(j, offset(j), err, "a NUL character in a text");
    if (code < 0x80) {
        b[n++] = (unsigned char)code;
    } else if (code < 0x800) {
        b[n++] = (unsigned char)(0xc0 | code >> 6);
        b[n++] = (unsigned char)(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        b[n++] = (unsigned char)(0xe0 | code >> 12);
        b[n++] = (unsigned char)(0x80 | (code >> 6 & 0x3f));
        b[n++] = (unsigned char)(0x80 | (code & 0x3f));
    } else {
        b[n++] = (unsigned char)(0xf0 | code >> 18);
        b[n++] = (unsigned char)(0x80 | (code >> 12 & 0x3f));
        b[n++] = (unsigned char)(0x80 | (code >> 6 & 0x3f));
        b[n++] = (unsigned char)(0x80 | (code & 0x3f));
    }
    return keep(j, b, n, err);
}

static td_status hex4(td_json *j, uint32_t *out, td_err *err)
{
    td_status st = TD_OK;
    *out = 0;
    for (int i = 0; i < 4; i++) {
        int c;
        TD_TRY(st, peek(j, &c, err));
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        if (digit < 0)
            TD_TRY(st, unexpected(j, c, "four hexadecimal digits after \\u", err));
        *out = *out << 4 | (uint32_t)digit;
        j->at++;
    }
done:
    return st;
}

/* What stands behind a backslash. */
static td_status escape(td_json *j, td_err *err)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    td_status st = TD_OK;
    int c;
    TD_TRY(st, peek(j, &c, err));
    const char *simple = c <= 0 ? NULL : strchr(from, c);
    if (simple != NULL) {
        j->at++;
        TD_TRY(st, keep(j, &to[simple - from], 1, err));
        goto done;
    }
    if (c != 'u')
        TD_TRY(st, unexpected(j, c, "one of \" \\ / b f n r t u after a backslash", err));
    j->at++;
    uint32_t code, low = 0;
    TD_TRY(st, hex4(j, &code, err));
    if (code >= 0xd800 && code < 0xdc00) { /* the first half of a pair */
        for (const char *p = "\\u"; *p != '\0'; p++) {
            TD_TRY(st, peek(j, &c, err));
            if (c != *p)
                TD_TRY(st, unexpected(j, c, "the second half of a surrogate pair", err));
            j->at++;
        }
        TD_TRY(st, hex4(j, &low, err));
        if (low < 0xdc00 || low > 0xdfff)
            TD_TRY(st, td_json_fail(j, offset(j), err, "half a surrogate pair"));
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
        TD_TRY(st, td_json_fail(j, offset(j), err, "half a surrogate pair"));
    }
    TD_TRY(st, keep_code(j, code, err));
done:
    return st;
}

/* A character beyond ASCII; it may straddle two fills. */
static td_status wide(td_json *j, td_err *err)
{
    td_status st = TD_OK;
    const uint64_t start = offset(j);
    unsigned char b[5] = {0};
    int n = 0, c;
    TD_TRY(st, peek(j, &c, err));
    const int want = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    do {
        b[n++] = (unsigned char)c;
        j->at++;
        if (n == want)
            break;
        TD_TRY(st, peek(j, &c, err));
    } while (c >= 0x80 && c < 0xc0);
    if (td_utf8_length(b) != n)
        TD_TRY(st, td_json_fail(j, start, err, "not valid UTF-8"));
    TD_TRY(st, keep(j, b, (size_t)n, err));
done:
    return st;
}

static inline bool is_plain(unsigned char c)
{
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* The text whose opening quote is next. */
static td_status read_text(td_json *j, td_err *err)
{
    td_status st = TD_OK;
    int c;
    j->n_text = 0;
    j->at++;
    for (;;) {
        TD_TRY(st, peek(j, &c, err));
        const unsigned char *p = j->at;
        while (p != j->end && is_plain(*p))
            p++;
        if (p != j->at) {
            TD_TRY(st, keep(j, j->at, (size_t)(p - j->at), err));
            j->at = p;
        } else if (c == '"') {
            j->at++;
            break;
        } else if (c == '\\') {
            j->at++;
            TD_TRY(st, escape(j, err));
        } else if (c >= 0x80) {
            TD_TRY(st, wide(j, err));
        } else {
            TD_TRY(st, unexpected(j, c, "the closing quote of a text", err));
        }
    }
    j->text[j->n_text] = '\0';
done:
    return st;
}

/* ---- numbers and words ---- */

enum { MAX_EXPONENT = 1000000 }; /* beyond it every number is 0 or infinite */

/* One digit more; a mantissa that is full counts the digits of the integer part in the exponent. */
static void add_digit(td_json_number *x, bool *full, int digit, bool fraction)
{
    const uint64_t d = (uint64_t)digit;
    *full = *full || x->mantissa > (UINT64_MAX - d) / 10;
    if (*full) {
        x->dropped |= digit != 0;
        x->exponent += !fraction;
    } else {
        x->mantissa = x->mantissa * 10 + d;
        x->exponent -= fraction;
    }
}

/* Digits while there are any, at least one. */
static td_status digits(td_json *j, td_json_number *x, bool *full, bool fraction, td_err *err)
{
    td_status st = TD_OK;
    int c;
    TD_TRY(st, peek(j, &c, err));
    if (c < '0' || c > '9')
        TD_TRY(st, unexpected(j, c, "a digit", err));
    const bool zero = c == '0' && !fraction; /* a leading zero stands alone */
    do {
        add_digit(x, full, c - '0', fraction);
        j->at++;
        TD_TRY(st, peek(j, &c, err));
    } while (!zero && c >= '0' && c <= '9');
done:
    return st;
}

static td_status exponent(td_json *j, int64_t *out, td_err *err)
{
    td_status st = TD_OK;
    int64_t value = 0;
    int c;
    j->at++; /* e or E */
    TD_TRY(st, peek(j, &c, err));
    const bool negative = c == '-';
    if (c == '-' || c == '+')
        j->at++;
    TD_TRY(st, peek(j, &c, err));
    if (c < '0' || c > '9')
        TD_TRY(st, unexpected(j, c, "a digit of the exponent", err));
    while (c >= '0' && c <= '9') {
        value = value < MAX_EXPONENT ? value * 10 + (c - '0') : value;
        j->at++;
        TD_TRY(st, peek(j, &c, err));
    }
    *out = negative ? -value : value;
done:
    return st;
}

static td_status read_number(td_json *j, td_err *err)
{
    td_status st = TD_OK;
    td_json_number x = {0};
    bool full = false;
    int64_t power = 0;
    int c;
    TD_TRY(st, peek(j, &c, err));
    x.negative = c == '-';
    if (x.negative)
        j->at++;
    TD_TRY(st, digits(j, &x, &full, false, err));
    TD_TRY(st, peek(j, &c, err));
    if (c == '.') {
        j->at++;
        TD_TRY(st, digits(j, &x, &full, true, err));
        TD_TRY(st, peek(j, &c, err));
    }
    if (c == 'e' || c == 'E')
        TD_TRY(st, exponent(j, &power, err));
    x.exponent += power;
    j->number = x;
done:
    return st;
}

static td_status read_word(td_json *j, const char *word, td_err *err)
{
    td_status st = TD_OK;
    int c;
    for (; *word != '\0'; word++) {
        TD_TRY(st, peek(j, &c, err));
        if (c != *word)
            TD_TRY(st, unexpected(j, c, "true, false or null", err));
        j->at++;
    }
done:
    return st;
}

bool td_json_integer(td_json_number number, int32_t scale, uint64_t *magnitude, bool *exact)
{
    uint64_t m = number.mantissa;
    int64_t e = number.exponent + scale;
    *exact = !number.dropped;
    if (e > 0 && number.dropped) /* the mantissa is full: with the next digit it did not fit */
        return false;
    for (; e > 0 && m != 0; e--) {
        if (m > UINT64_MAX / 10)
            return false;
        m *= 10;
    }
    if (e < -19) { /* less than half a unit: 2^64 < 10^20 / 2 */
        *exact = *exact && m == 0;
        m = 0;
    } else if (e < 0) {
        uint64_t unit = 1;
        for (; e < 0; e++)
            unit *= 10;
        const uint64_t rest = m % unit;
        *exact = *exact && rest == 0;
        m = m / unit + (rest >= unit - rest);
    }
    *magnitude = m;
    return true;
}

double td_json_double(td_json_number number)
{
    /* strtod rounds correctly, and a text without a decimal point means the same in every locale */
    char text[64];
    snprintf(text, sizeof text, "%s%llue%lld", number.negative ? "-" : "",
             (unsigned long long)number.mantissa, (long long)number.exponent);
    return strtod(text, NULL);
}

/* ---- structure ---- */

static bool in_object(const td_json *j)
{
    return j->depth > 0 && (j->objects >> (j->depth - 1) & 1) != 0;
}

static td_status open_container(td_json *j, bool object, td_err *err)
{
    if (j->depth == TD_JSON_MAX_DEPTH)
        return td_json_fail(j, j->token_at, err,
                            "more than %d objects and arrays within one another",
                            TD_JSON_MAX_DEPTH);
    const uint64_t bit = UINT64_C(1) << j->depth;
    j->objects = object ? j->objects | bit : j->objects & ~bit;
    j->depth++;
    j->at++;
    j->state = TD_JSON_AT_FIRST;
    return TD_OK;
}

static td_json_token close_container(td_json *j)
{
    const bool object = in_object(j);
    j->depth--;
    j->at++;
    j->state = TD_JSON_AT_COMMA;
    return object ? TD_JSON_OBJECT_END : TD_JSON_ARRAY_END;
}

static td_status read_key(td_json *j, int c, td_err *err)
{
    td_status st = TD_OK;
    if (c != '"')
        TD_TRY(st, unexpected(j, c, "a key in quotes", err));
    TD_TRY(st, read_text(j, err));
    TD_TRY(st, peek_visible(j, &c, err));
    if (c != ':')
        TD_TRY(st, unexpected(j, c, "':' after a key", err));
    j->at++;
    j->state = TD_JSON_AT_VALUE;
done:
    return st;
}

static td_status read_value(td_json *j, int c, td_json_token *out, td_err *err)
{
    td_status st = TD_OK;
    j->state = TD_JSON_AT_COMMA;
    if (c == '{' || c == '[') {
        *out = c == '{' ? TD_JSON_OBJECT : TD_JSON_ARRAY;
        TD_TRY(st, open_container(j, c == '{', err));
    } else if (c == '"') {
        *out = TD_JSON_TEXT;
        TD_TRY(st, read_text(j, err));
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        *out = TD_JSON_NUMBER;
        TD_TRY(st, read_number(j, err));
    } else if (c == 't' || c == 'f' || c == 'n') {
        *out = c == 't' ? TD_JSON_TRUE : c == 'f' ? TD_JSON_FALSE : TD_JSON_NULL;
        TD_TRY(st, read_word(j, td_json_words[*out], err));
    } else {
        TD_TRY(st, unexpected(j, c, "a value", err));
    }
done:
    return st;
}

td_status td_json_next(td_json *j, td_json_token *out, td_err *err)
{
    td_status st = TD_OK;
    const char close = in_object(j) ? '}' : ']';
    int c;
    TD_TRY(st, peek_visible(j, &c, err));
    j->token_at = offset(j);
    if (j->state == TD_JSON_AT_COMMA) {
        if (j->depth == 0) {
            if (c != NO_BYTE)
                TD_TRY(st, unexpected(j, c, "the end of the file", err));
            *out = TD_JSON_EOF;
            goto done;
        }
        if (c == ',') {
            j->at++;
            j->state = TD_JSON_AT_NEXT;
            TD_TRY(st, peek_visible(j, &c, err));
            j->token_at = offset(j);
        } else if (c != close) {
            TD_TRY(st, unexpected(j, c, in_object(j) ? "',' or '}'" : "',' or ']'", err));
        }
    }
    if (c == close && (j->state == TD_JSON_AT_FIRST || j->state == TD_JSON_AT_COMMA)) {
        *out = close_container(j);
    } else if (in_object(j) && j->state != TD_JSON_AT_VALUE) {
        *out = TD_JSON_KEY;
        TD_TRY(st, read_key(j, c, err));
    } else {
        TD_TRY(st, read_value(j, c, out, err));
    }
done:
    return st;
}

td_status td_json_leave(td_json *j, td_json_token token, td_err *err)
{
    td_status st = TD_OK;
    const bool inside = token == TD_JSON_OBJECT || token == TD_JSON_ARRAY;
    const int32_t outside = j->depth - 1;
    j->skipping = true;
    while (inside && j->depth > outside)
        TD_TRY(st, td_json_next(j, &token, err));
done:
    j->skipping = false;
    return st;
}

td_status td_json_skip(td_json *j, td_err *err)
{
    td_status st = TD_OK;
    td_json_token token;
    j->skipping = true;
    TD_TRY(st, td_json_next(j, &token, err));
    TD_TRY(st, td_json_leave(j, token, err));
done:
    j->skipping = false;
    return st;
}
