/* Text for people; the answer proper goes to stdout. */
#include "exec/live.h"

#include <stdio.h>
#include <string.h>

enum { WIDTH = 12 }; /* so that the line fits into 80 columns */

void td_live_step(const td_live *l, int32_t i, const td_step_result *r)
{
    const bool open = l->n_warmup < 0, warm = open || i < l->n_warmup;
    const int32_t all = l->n_warmup + l->n_steps;
    const int done = open ? 0 : (int)((int64_t)WIDTH * (i + 1) / all);
    char bar[WIDTH + 1], begin[64];
    memset(bar, '.', WIDTH);
    memset(bar, '#', (size_t)done);
    bar[WIDTH] = '\0';
    if (l->terminal && open)
        snprintf(begin, sizeof begin, "\r\033[K[%s] warm-up %d", bar, (int)i + 1);
    else if (l->terminal)
        snprintf(begin, sizeof begin, "\r\033[K[%s] %d/%d", bar, (int)i + 1, (int)all);
    else
        snprintf(begin, sizeof begin, "step %lld", (long long)(l->first_step + i));
    fprintf(stderr, "%s%s: loss %.6f, grad norm %.4f%s, %.3f s, %.0f tokens/s%s", begin,
            warm && !l->terminal ? " (warm-up)" : "", r->loss, r->grad_norm,
            r->success ? "" : ", skipped", r->step_s, r->step_s > 0 ? l->tokens / r->step_s : 0,
            l->terminal && (open || i + 1 < all) ? "" : "\n");
}
