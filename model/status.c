/* Turns a failure into a value with a sentence. */
#include "model/status.h"

#include <stdarg.h>
#include <stdio.h>

td_status td_fail(td_err *err, td_status status, const char *format, ...)
{
    if (err != NULL && err->status == TD_OK) {
        va_list args;
        err->status = status;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return status;
}
