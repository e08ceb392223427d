/* A table of faults, each a name and two or three numbers. */
#include "exec/inject.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FORMS "slow:RANK:FACTOR, nan:RANK:STEP, kill:RANK:STEP[:OP], or several joined by commas"

enum { MAX_NUMBERS = 3 };
typedef enum { SLOW, NAN_GRADIENT, KILL } fault;

static const struct {
    const char *name;
    fault fault;
    int least, most; /* numbers after the name */
} faults[] = {{"slow", SLOW, 2, 2}, {"nan", NAN_GRADIENT, 2, 2}, {"kill", KILL, 2, 3}};

static td_status wrong(const char *text, size_t length, const char *why, td_err *err)
{
    return td_fail(err, TD_USAGE, "--inject %.*s: %s; expected " FORMS, (int)length, text, why);
}

static bool whole(double x)
{
    return x >= 0 && x <= 2147483647 && x == floor(x);
}

/* One fault of `length` bytes. */
static td_status read_one(const char *text, size_t length, int64_t world, int64_t n_steps,
                          int32_t rank, td_inject *out, td_err *err)
{
    const char *colon = memchr(text, ':', length), *at = colon;
    double x[MAX_NUMBERS] = {0};
    int n = 0;
    size_t f = 0;
    while (f < sizeof faults / sizeof *faults &&
           (colon == NULL || strlen(faults[f].name) != (size_t)(colon - text) ||
            strncmp(faults[f].name, text, (size_t)(colon - text)) != 0))
        f++;
    if (f == sizeof faults / sizeof *faults)
        return wrong(text, length, "no such fault", err);
    while (at != text + length && n < MAX_NUMBERS && at[1] >= '0' && at[1] <= '9') {
        char *end;
        x[n++] = strtod(at + 1, &end);
        at = end;
        if (at != text + length && *at != ':')
            break;
    }
    if (at != text + length || n < faults[f].least || n > faults[f].most)
        return wrong(text, length, "cannot be read", err);
    if (!whole(x[0]) || x[0] >= (double)world)
        return td_fail(err, TD_USAGE, "--inject %.*s: the ranks are 0 to %lld", (int)length, text,
                       (long long)world - 1);
    if (faults[f].fault == SLOW && !(x[1] >= 1 && x[1] <= 1e6))
        return td_fail(err, TD_USAGE, "--inject %.*s: expected a factor of 1 to 1e6", (int)length,
                       text);
    if (faults[f].fault != SLOW && (!whole(x[1]) || x[1] >= (double)n_steps))
        return td_fail(err, TD_USAGE, "--inject %.*s: the steps are 0 to %lld, warm-up included",
                       (int)length, text, (long long)n_steps - 1);
    if (!whole(x[2]))
        return wrong(text, length, "OP is not the number of an op", err);
    if ((int32_t)x[0] != rank)
        return TD_OK;
    if (faults[f].fault == SLOW)
        out->slow = x[1];
    else if (faults[f].fault == NAN_GRADIENT)
        out->nan_step = (int64_t)x[1];
    else {
        out->kill_step = (int64_t)x[1];
        out->kill_op = n == 3 ? (int32_t)x[2] : -1;
    }
    return TD_OK;
}

td_status td_inject_read(const char *text, int64_t world, int64_t n_steps, int32_t rank,
                         td_inject *out, td_err *err)
{
    td_status st = TD_OK;
    *out = (td_inject){.slow = 1, .nan_step = -1, .kill_step = -1, .kill_op = -1};
    while (text != NULL) {
        const size_t length = strcspn(text, ",");
        TD_TRY(st, read_one(text, length, world, n_steps, rank, out, err));
        text = text[length] == ',' ? text + length + 1 : NULL;
    }
done:
    return st;
}
