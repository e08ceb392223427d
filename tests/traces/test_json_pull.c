/* Laws of the JSON tokenizer that the trace reader alone would not show. */
#include "traces/json_pull.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *text;
    size_t left, piece;
} feed;

static td_status fill(void *self, const unsigned char **data, size_t *size, td_err *err)
{
    (void)err;
    feed *f = self;
    *size = f->left < f->piece ? f->left : f->piece;
    *data = (const unsigned char *)f->text;
    f->text += *size;
    f->left -= *size;
    return TD_OK;
}

/* Every token with its place and value in one line each. */
static void listing(const char *text, size_t piece, char *out, size_t room)
{
    static td_json j;
    td_json_token token;
    td_err err = {0};
    feed f = {text, strlen(text), piece};
    size_t n = 0;
    td_json_start(&j, "t", fill, &f);
    do {
        cr_assert_eq(td_json_next(&j, &token, &err), TD_OK, "%s", err.text);
        n += (size_t)snprintf(out + n, room - n, "%d %s %s %g\n", (int)j.token_at,
                              td_json_words[token],
                              token == TD_JSON_TEXT || token == TD_JSON_KEY ? j.text : "",
                              token == TD_JSON_NUMBER ? td_json_double(j.number) : 0.0);
        cr_assert_lt(n, room);
    } while (token != TD_JSON_EOF);
}

Test(json_pull, does_not_depend_on_how_the_bytes_arrive)
{
    static const char text[] =
        " {\"k\\u00e9y\\n\" : [1, -2.5e-3 ,0,true,false , null,\"\\ud83d\\ude00 \xf0\x9f\x98\x80 "
        "\xc3\xa9\"], \"\":{}, \"a\":[[],[{\"b\":\"\"}]]}\n ";
    char whole[4096], pieces[4096];
    listing(text, sizeof text, whole, sizeof whole);
    for (size_t piece = 1; piece < sizeof text; piece++) {
        listing(text, piece, pieces, sizeof pieces);
        cr_assert_str_eq(pieces, whole, "pieces of %zu bytes\n%s\n%s", piece, pieces, whole);
    }
}

Test(json_pull, skips_a_value_and_nothing_else)
{
    static const char *const values[] = {
        "1", "\"x\"", "null", "{}", "[]", "{\"a\":[1,{\"b\":2}]}", "[[],{}]"};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        static td_json j;
        td_json_token token;
        td_err err = {0};
        char text[128];
        snprintf(text, sizeof text, "{\"skip\":%s,\"next\":5}", values[i]);
        feed f = {text, strlen(text), 3};
        td_json_start(&j, "t", fill, &f);
        cr_assert(td_json_next(&j, &token, &err) == TD_OK && token == TD_JSON_OBJECT);
        cr_assert(td_json_next(&j, &token, &err) == TD_OK && token == TD_JSON_KEY);
        cr_assert_eq(td_json_skip(&j, &err), TD_OK);
        cr_assert(td_json_next(&j, &token, &err) == TD_OK && token == TD_JSON_KEY);
        cr_assert_str_eq(j.text, "next");
    }
}

struct integer {
    char text[48];
    int32_t scale;
    uint64_t magnitude;
    bool fits, exact;
};

ParameterizedTestParameters(json_pull, numbers_become_exact_integers_or_say_that_they_are_not)
{
    static struct integer table[] = {
        {"0", 0, 0, true, true},
        {"-0", 3, 0, true, true},
        {"1e3", 0, 1000, true, true},
        {"1E+3", 0, 1000, true, true},
        {"1000e-3", 0, 1, true, true},
        {"1.2345", 3, 1235, true, false},
        {"1.2344999", 3, 1234, true, false},
        {"0.0005", 3, 1, true, false},
        {"0.0004", 3, 0, true, false},
        {"-7.25", 3, 7250, true, true},
        {"18446744073709551615", 0, UINT64_MAX, true, true},
        {"18446744073709551616", 0, 0, false, false},
        {"184467440737095516.15", 2, UINT64_MAX, true, true},
        {"9223372036854775.807", 3, INT64_MAX, true, true},
        {"1.00000000000000000000000000000000000000", 0, 1, true, true},
        {"1.00000000000000000000000000000000000001", 0, 1, true, false},
        {"100000000000000000000000000000e-28", 0, 10, true, true},
        {"1e-400", 0, 0, true, false},
        {"0e999999999999999999999", 0, 0, true, true},
        {"1e999999999999999999999", 0, 0, false, false},
        {"1e-999999999999999999999", 0, 0, true, false},
    };
    return cr_make_param_array(struct integer, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct integer *want, json_pull,
                  numbers_become_exact_integers_or_say_that_they_are_not)
{
    static td_json j;
    td_json_token token;
    td_err err = {0};
    uint64_t magnitude = 0;
    bool exact = false;
    feed f = {want->text, strlen(want->text), 64};
    td_json_start(&j, "t", fill, &f);
    cr_assert_eq(td_json_next(&j, &token, &err), TD_OK, "%s", err.text);
    cr_assert_eq(token, TD_JSON_NUMBER);
    cr_assert_eq(td_json_integer(j.number, want->scale, &magnitude, &exact), want->fits);
    cr_assert(!want->fits || (magnitude == want->magnitude && exact == want->exact), "%s: %llu, %d",
              want->text, (unsigned long long)magnitude, exact);
}

Test(json_pull, doubles_survive_seventeen_digits)
{
    const double values[] = {
        0, 1.25e-7, 0.1, 1.0 / 3, 4.9e-324, 1.7976931348623157e308, 123456789.123456789};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        static td_json j;
        td_json_token token;
        td_err err = {0};
        char text[64];
        snprintf(text, sizeof text, "%.17g", values[i]);
        feed f = {text, strlen(text), 64};
        td_json_start(&j, "t", fill, &f);
        cr_assert_eq(td_json_next(&j, &token, &err), TD_OK, "%s", err.text);
        cr_assert_eq(td_json_double(j.number), values[i], "%s", text);
    }
}
