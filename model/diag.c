/* A list of what is wrong, bounded so that a hostile file cannot make it long. */
#include "model/diag.h"

#include <stdarg.h>
#include <stdio.h>

static void add(td_diags *d, bool warning, td_pos at, const char *path, const char *rule,
                const char *message)
{
    const bool first_error = !warning && d->n_errors == 0;
    const bool full = d->n_errors + d->n_warnings >= TD_DIAG_LIMIT;
    if (warning)
        d->n_warnings++;
    else
        d->n_errors++;
    if (full && !first_error) /* warnings alone must not hide that there is an error */
        return;
    td_diag *one = TD_NEW(d->arena, td_diag, 1);
    if (one == NULL || message == NULL)
        return; /* the count still tells that something was found */
    *one = (td_diag){.warning = warning, .at = at, .path = path, .rule = rule, .message = message};
    if (one->path == NULL)
        one->path = "";
    if (d->tail == NULL)
        d->head = one;
    else
        d->tail->next = one;
    d->tail = one;
}

static const char *sentence(td_diags *d, const char *format, va_list args)
{
    char text[768];
    vsnprintf(text, sizeof text, format, args);
    return td_arena_printf(d->arena, "%s", text);
}

void td_diag_error(td_diags *d, td_pos at, const char *path, const char *rule, const char *format,
                   ...)
{
    va_list args;
    va_start(args, format);
    add(d, false, at, path, rule, sentence(d, format, args));
    va_end(args);
}

void td_diag_warn(td_diags *d, td_pos at, const char *path, const char *rule, const char *format,
                  ...)
{
    va_list args;
    va_start(args, format);
    add(d, true, at, path, rule, sentence(d, format, args));
    va_end(args);
}

const char *td_diag_text(const td_diags *d, const td_diag *one)
{
    char place[64] = "";
    const bool file = one->at.file != NULL && one->at.file[0] != '\0';
    if (one->at.line > 0 && one->at.column > 0)
        snprintf(place, sizeof place, ":%d:%d", one->at.line, one->at.column);
    else if (one->at.line > 0)
        snprintf(place, sizeof place, ":%d", one->at.line);
    const char *text = td_arena_printf(d->arena, "%s%s%s%s%s%s", file ? one->at.file : "",
                                       file ? place : "", file ? ": " : "", one->path,
                                       one->path[0] != '\0' ? ": " : "", one->message);
    return text == NULL ? one->message : text;
}

td_status td_diag_status(const td_diags *d, td_err *err)
{
    if (d->n_errors == 0)
        return TD_OK;
    for (const td_diag *one = d->head; one != NULL; one = one->next) {
        if (!one->warning)
            return td_fail(err, TD_PLAN, "%s", td_diag_text(d, one));
    }
    return td_fail(err, TD_NOMEM, "no memory to say what is wrong with the plan");
}
