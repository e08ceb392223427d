/*
 * Windows do not overlap, so that two of them are independent: with windows that slide by a step, a
 * drift would be called steady as soon as noise happened to hide it once.
 */
#include "exec/steady.h"
#include "exec/spread.h"

#include <math.h>
#include <stdbool.h>

const td_steady_rule td_steady_usual = {
    .window_s = 5, .tolerance = 0.003, .least_s = 10, .most_s = 60};

/* Every so manyth step of a window, twice as many apart when the room is full. */
static void keep(td_steady *s, double step_s)
{
    if (s->n_seen == 0)
        s->every = 1;
    if (s->n_kept == TD_STEADY_KEPT) {
        for (int32_t i = 0; i < TD_STEADY_KEPT / 2; i++)
            s->kept[i] = s->kept[2 * i];
        s->n_kept /= 2;
        s->every *= 2;
    }
    if (s->n_seen++ % s->every == 0)
        s->kept[s->n_kept++] = step_s;
}

/* The window is full: compares it with the one before, and begins the next. */
static bool agrees(td_steady *s, double tolerance)
{
    const double before_s = s->before_s, median_s = td_spread_median(s->kept, s->n_kept);
    s->last_s[0] = before_s;
    s->last_s[1] = s->before_s = median_s;
    s->window_s = 0;
    s->n_seen = s->n_kept = 0;
    return before_s > 0 && fabs(median_s - before_s) <= tolerance * before_s;
}

td_steadiness td_steady_add(td_steady *s, const td_steady_rule *rule, double step_s)
{
    s->n_steps++;
    if (!(step_s > 0) || !isfinite(step_s))
        return TD_STEADY_NEVER;
    s->seconds += step_s;
    s->window_s += step_s;
    keep(s, step_s);
    if (s->window_s >= rule->window_s && agrees(s, rule->tolerance) && s->seconds >= rule->least_s)
        return TD_STEADY_YES;
    return s->seconds >= rule->most_s ? TD_STEADY_NEVER : TD_STEADY_NOT_YET;
}
