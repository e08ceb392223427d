/* Text for people; the answer proper goes to stdout. */
#include "exec/live.h"

#include <stdio.h>
#include <string.h>

enum { WIDTH = 12 }; /* so that the line fits into 80 columns */

void td_live_step(const td_live *l, int32_t i, const td_step_result *r)
{
    const int32_t all = l->n_warmup + l->n_steps;
    const int done = (int)((int64_t)WIDTH * (i + 1) / all);
    char bar[WIDTH + 1], begin[64];
    memset(bar, '.', WIDTH);
    memset(bar, '#', (size_t)done);
    bar[WIDTH] = '\0';
    if (l->terminal)
        snprintf(begin, sizeof begin, "\r\033[K[%s] %d/%d", bar, (int)i + 1, (int)all);
    else
        snprintf(begin, sizeof begin, "step %lld", (long long)(l->first_step + i));
    fprintf(stderr, "%s%s: loss %.6f, grad norm %.4f%s, %.3f s, %.0f tokens/s%s", begin,
            i < l->n_warmup && !l->terminal ? " (warm-up)" : "", r->loss, r->grad_norm,
            r->success ? "" : ", skipped", r->step_s, r->step_s > 0 ? l->tokens / r->step_s : 0,
            l->terminal && i + 1 < all ? "" : "\n");
}
