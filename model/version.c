/* Numbers with points, compared from the left. */
#include "model/version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const td_library_names[TD_N_LIBRARIES] = {
#define X(library, name, major, minor) [TD_LIBRARY_##library] = name,
    TD_LIBRARY_MAP(X)
#undef X
};

static const struct {
    long major, minor; /* of these in the library's own number; 0: it has texts only */
} units[TD_N_LIBRARIES] = {
#define X(library, name, a, b) [TD_LIBRARY_##library] = {a, b},
    TD_LIBRARY_MAP(X)
#undef X
};

const char *td_version_text(td_library library, const char *version, char *out, int size)
{
    char *end = NULL;
    const long number = strtol(version, &end, 10), major = units[library].major,
               minor = units[library].minor;
    if (major == 0 || *end != '\0' || number < major)
        snprintf(out, (size_t)size, "%s", version);
    else if (number % minor == 0 || minor == 10)
        snprintf(out, (size_t)size, "%ld.%ld", number / major, number % major / minor);
    else
        snprintf(out, (size_t)size, "%ld.%ld.%ld", number / major, number % major / minor,
                 number % minor);
    return out;
}

static bool tells(const char *version)
{
    return version != NULL && version[0] != '\0' && strcmp(version, "unknown") != 0;
}

bool td_version_same(td_library library, const char *a, const char *b)
{
    char one[64], other[64];
    if (!tells(a) || !tells(b))
        return true;
    td_version_text(library, a, one, sizeof one);
    td_version_text(library, b, other, sizeof other);
    const size_t n = strlen(one), m = strlen(other), shared = n < m ? n : m;
    const char next = n < m ? other[shared] : one[shared];
    return strncmp(one, other, shared) == 0 && (next == '\0' || next == '.');
}
