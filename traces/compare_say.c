/* The answer of a comparison in one sentence: how far apart, and through what. */
#include "traces/compare_side.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

enum { MOST = 4 }; /* items that are named */

const char *td_compare_seconds(double s, char *text, int size)
{
    const double size_of = fabs(s);
    if (size_of >= 1)
        snprintf(text, (size_t)size, "%.3f s", s);
    else if (size_of >= 1e-3)
        snprintf(text, (size_t)size, "%.*f ms", size_of >= 0.1 ? 1 : 2, s * 1e3);
    else
        snprintf(text, (size_t)size, "%.*f µs", size_of >= 1e-4 ? 0 : 1, s * 1e6);
    return text;
}

/* Grows a text in its room; what does not fit is left off. */
typedef struct {
    char *text;
    size_t size, n;
} page;

__attribute__((format(printf, 2, 3))) static void say(page *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(p->text + p->n, p->size - p->n, format, args);
    va_end(args);
    if (n > 0 && (size_t)n < p->size - p->n)
        p->n += (size_t)n;
    else
        p->text[p->n] = '\0';
}

static void say_ranks(page *p, const td_compare_item *i)
{
    const int32_t room = (int32_t)(sizeof i->ranks / sizeof *i->ranks);
    if (i->n_ranks == 0)
        return;
    say(p, " on rank%s ", i->n_ranks == 1 ? "" : "s");
    for (int32_t k = 0; k < i->n_ranks; k++)
        say(p, "%s%d", k == 0 ? "" : ", ", (int)i->ranks[k]);
    if (i->n_ranks == room)
        say(p, ", ...");
}

static void say_item(page *p, const td_compare_item *i, bool first)
{
    char by[32], each[TD_N_SIDES][32];
    const double d = i->path_s[TD_MEASURED] - i->path_s[TD_PREDICTED];
    say(p, "%s%s %s in %s", first ? " " : ", ", td_compare_seconds(fabs(d), by, sizeof by),
        d > 0 ? "more" : "less", i->what);
    say_ranks(p, i);
    if (!(i->each_s[TD_PREDICTED] > 0) && !(i->each_s[TD_MEASURED] > 0))
        return;
    say(p, " (predicted %s, measured %s each",
        td_compare_seconds(i->each_s[TD_PREDICTED], each[0], sizeof each[0]),
        td_compare_seconds(i->each_s[TD_MEASURED], each[1], sizeof each[1]));
    if (i->beside_forward + i->beside_backward >= 0.5)
        say(p, ", beside %s", i->beside_backward >= i->beside_forward ? "backward" : "forward");
    say(p, ")");
}

void td_compare_say(td_comparison *c)
{
    page p = {.text = c->text, .size = sizeof c->text};
    char predicted[32], measured[32], spread[32];
    int32_t said = 0;
    say(&p, "measured %s", td_compare_seconds(c->step.s[TD_MEASURED], measured, sizeof measured));
    if (c->n_steps[TD_MEASURED] > 1)
        say(&p, " ± %s", td_compare_seconds(c->step_mad_s, spread, sizeof spread));
    say(&p, ", predicted %s (%+.1f %%)",
        td_compare_seconds(c->step.s[TD_PREDICTED], predicted, sizeof predicted),
        c->step.rel_error == 0 ? 0 : 100 * c->step.rel_error);
    for (int32_t i = 0; i < c->n_items && said < MOST; i++) {
        const td_compare_item *item = &c->items[i];
        const double d = fabs(item->path_s[TD_MEASURED] - item->path_s[TD_PREDICTED]);
        if (!(d > 0) || (said > 0 && d < 0.002 * c->step.s[TD_MEASURED]))
            break;
        if (said == 0)
            say(&p, ": measured spends");
        say_item(&p, item, said++ == 0);
    }
}
