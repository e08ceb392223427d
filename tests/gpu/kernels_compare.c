/* What a kernel gave against what was expected, and the words for it. */
#include "tests/gpu/kernels.h"

#include <math.h>
#include <string.h>

/* One element may be off by this many times what the whole may be on average. Rounding errors are
 * bounded, a wrong index is not. */
static const double element_factor = 16;

/* ---- what is said ---- */

static void add_number(char *text, size_t size, const char *name, int64_t value)
{
    const size_t n = strlen(text);
    if (value != 0)
        snprintf(text + n, size - n, "%s%s %lld", n > 0 ? " " : "", name, (long long)value);
}

static void add_word(char *text, size_t size, const char *word, bool present)
{
    const size_t n = strlen(text);
    if (present)
        snprintf(text + n, size - n, "%s%s", n > 0 ? " " : "", word);
}

void td_shape_text(const td_shape *s, char *text, size_t size)
{
    text[0] = '\0';
    add_number(text, size, "rows", s->rows);
    add_number(text, size, "h", s->h);
    add_number(text, size, "n", s->n);
    add_number(text, size, "samples", s->samples + s->s.samples);
    add_number(text, size, "seq", s->seq + s->s.seq);
    add_number(text, size, "first", s->first);
    add_number(text, size, "heads", s->s.heads);
    add_number(text, size, "kv_heads", s->s.kv_heads);
    add_number(text, size, "head_dim", s->s.head_dim);
    add_number(text, size, "variant", s->variant);
    add_word(text, size, "causal", s->s.causal);
    add_word(text, size, "rms", s->rms);
    add_word(text, size, "gated", s->gated);
    add_word(text, size, "back", s->back);
    add_word(text, size, "extra", s->extra);
    add_word(text, size, "frozen", s->frozen);
    add_word(text, size, "shifted", s->shifted);
}

void td_trial_say(const td_trial *t, const char *operand, const char *what)
{
    char text[256];
    td_shape_text(t->shape, text, sizeof text);
    printf("FAILED %s %s, %s: %s%s%s\n", t->row->name, t->bf16 ? "bf16" : "fp32", text,
           operand != NULL ? operand : "", operand != NULL ? ": " : "", what);
}

/* ---- what must hold ---- */

static double number_at(const td_trial *t, const td_operand *o, const unsigned char *device,
                        int64_t i)
{
    const unsigned char *at = device + (size_t)i * td_operand_size(t, o);
    uint16_t half;
    int32_t whole;
    float x;
    double d;
    switch (o->of) {
    case TD_OF_ACT:
        if (t->bf16) {
            memcpy(&half, at, sizeof half);
            return (double)td_bf16_value(half);
        }
        memcpy(&x, at, sizeof x);
        return (double)x;
    case TD_OF_FLOAT:
        memcpy(&x, at, sizeof x);
        return (double)x;
    case TD_OF_DOUBLE:
        memcpy(&d, at, sizeof d);
        return d;
    case TD_OF_INT:
        memcpy(&whole, at, sizeof whole);
        return whole;
    case TD_OF_BYTES:
        break;
    }
    return *at;
}

static double wanted_at(const td_operand *o, int64_t i)
{
    const void *w = o->want;
    switch (o->of) {
    case TD_OF_ACT:
    case TD_OF_FLOAT:
        return (double)((const float *)w)[i];
    case TD_OF_DOUBLE:
        return ((const double *)w)[i];
    case TD_OF_INT:
        return ((const int32_t *)w)[i];
    case TD_OF_BYTES:
        break;
    }
    return ((const unsigned char *)w)[i];
}

/* Columns [begin, end) of an output against what was expected of them. */
typedef struct {
    double off, want; /* sums of squares */
    int64_t n, at;    /* compared elements; -1, or the first wrong one */
} verdict;

static verdict judge(const td_trial *t, const td_operand *o, const unsigned char *got,
                     int64_t begin, int64_t end)
{
    verdict v = {.at = -1};
    for (int64_t row = 0; row < o->rows; row++) {
        double squares = 0;
        for (int64_t i = row * o->width; i < (row + 1) * o->width; i++) {
            const double want = wanted_at(o, i);
            squares += isnan(want) ? 0 : want * want;
        }
        const double rms = fmax(sqrt(squares / (double)o->width), o->floor);
        for (int64_t i = row * o->width + begin; i < row * o->width + end; i++) {
            const double want = wanted_at(o, i), is = number_at(t, o, got, i), off = is - want;
            const bool looked = !isnan(want);
            const bool wrong =
                looked ? !(fabs(off) <= element_factor * o->tolerance * fmax(rms, fabs(want)))
                       : !(t->row->sampled && isfinite(is));
            if (wrong && v.at < 0)
                v.at = i;
            v.off += looked ? off * off : 0;
            v.want += looked ? want * want : 0;
            v.n += looked;
        }
    }
    return v;
}

bool td_operand_numbers_hold(const td_trial *t, const td_operand *o, const unsigned char *got,
                             td_tally *tally)
{
    char what[256];
    bool fine = true;
    const verdict whole = judge(t, o, got, 0, o->width);
    for (int32_t k = 0, begin = 0; k == 0 || (k < TD_PARTS && o->ends[k] != 0); k++) {
        const int64_t end = o->ends[k] != 0 ? o->ends[k] : o->width;
        const verdict v = o->ends[0] != 0 ? judge(t, o, got, begin, end) : whole;
        /* A part that is tiny beside the others is not asked to be exact beside them. */
        const double n = (double)(v.n > 0 ? v.n : 1);
        const double scale =
            fmax(fmax(v.want, n * o->floor * o->floor), whole.n > 0 ? 1e-4 * whole.want : 0);
        const double error = v.off == 0 ? 0 : sqrt(v.off / (scale > 0 ? scale : n));
        /* Among few elements one that is rounded the other way weighs more. */
        const double allowed = o->tolerance * (1 + 8 / sqrt(n));
        begin = (int32_t)end;
        if (o->tolerance > 0)
            tally->worst = fmax(tally->worst, error / allowed);
        if (v.at < 0 && error <= allowed)
            continue;
        const int64_t at = v.at >= 0 ? v.at : 0;
        snprintf(what, sizeof what,
                 "columns up to %lld are off by %.3g of their norm, at most %.3g allowed; %s row "
                 "%lld, column %lld is %.9g, expected %.9g",
                 (long long)end, error, allowed, v.at >= 0 ? "first wrong:" : "for example",
                 (long long)(at / o->width), (long long)(at % o->width), number_at(t, o, got, at),
                 wanted_at(o, at));
        td_trial_say(t, o->name, what);
        fine = false;
    }
    return fine;
}

static double field_at(const td_field *f, int32_t k, const unsigned char *object)
{
    const unsigned char *at = object + f->offset;
    double d;
    float x;
    int64_t wide;
    int32_t whole;
    switch (f->is) {
    case TD_FIELD_DOUBLE:
        memcpy(&d, at + (size_t)k * sizeof d, sizeof d);
        return d;
    case TD_FIELD_FLOAT:
        memcpy(&x, at + (size_t)k * sizeof x, sizeof x);
        return (double)x;
    case TD_FIELD_I64:
        memcpy(&wide, at + (size_t)k * sizeof wide, sizeof wide);
        return (double)wide;
    case TD_FIELD_I32:
        memcpy(&whole, at + (size_t)k * sizeof whole, sizeof whole);
        return whole;
    case TD_FIELD_BOOL:
        break;
    }
    return at[k];
}

static bool alike(double a, double b, double tolerance)
{
    return a == b || (isnan(a) && isnan(b)) || fabs(a - b) <= tolerance * fabs(b);
}

/* One struct a row. `want` is the reference, or what the first run gave, which must be the same. */
bool td_operand_fields_hold(const td_trial *t, const td_operand *o, const unsigned char *got,
                            const unsigned char *want, bool same)
{
    char what[256];
    bool fine = true;
    for (int64_t at = 0; at < td_operand_count(o); at += o->width)
        for (const td_field *f = o->fields; f->name != NULL; f++)
            for (int32_t k = 0; k < f->count; k++) {
                const double is = field_at(f, k, got + at), should = field_at(f, k, want + at);
                if (alike(is, should, same ? 0 : f->tolerance))
                    continue;
                snprintf(what, sizeof what, "%s[%d] of %lld is %.17g, %s %.17g", f->name, (int)k,
                         (long long)(at / o->width), is, same ? "the first run gave" : "expected",
                         should);
                td_trial_say(t, o->name, what);
                fine = false;
            }
    return fine;
}
