/* Small text helpers that several readers share; none of them knows what the words mean. */
#include "model/text.h"

#include <string.h>

enum { MAX_WORD = 40, MAX_SHOWN = 60 };

/* ASCII only, whatever the locale. */
static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Optimal string alignment distance (Damerau 1964, restricted); both words at most MAX_WORD long.
 */
static int distance(const char *a, int n, const char *b, int m)
{
    int d[3][MAX_WORD + 1]; /* row i - 2, i - 1 and i, in turn */
    for (int j = 0; j <= m; j++)
        d[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *row = d[i % 3], *above = d[(i + 2) % 3], *above2 = d[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            const char x = lower(a[i - 1]), y = lower(b[j - 1]);
            row[j] = least(least(above[j], row[j - 1]) + 1, above[j - 1] + (x != y));
            if (i > 1 && j > 1 && x == lower(b[j - 2]) && lower(a[i - 2]) == y)
                row[j] = least(row[j], above2[j - 2] + 1);
        }
    }
    return d[n % 3][m];
}

const char *td_text_nearest(const char *word, const char *const *known)
{
    const size_t length = strlen(word);
    if (length == 0 || length > MAX_WORD)
        return NULL;
    const int n = (int)length;
    const char *best = NULL;
    int limit = n < 6 ? 1 : n / 3;
    for (; *known != NULL; known++) {
        const size_t m = strlen(*known);
        if (m > MAX_WORD)
            continue;
        const int d = distance(word, n, *known, (int)m);
        if (d <= limit) {
            best = *known;
            limit = d - 1;
        }
    }
    return best;
}

const char *td_text_show(td_arena *a, const char *text, size_t size)
{
    size_t kept = size;
    if (size > MAX_SHOWN) {
        kept = MAX_SHOWN;
        while (kept > 0 && ((unsigned char)text[kept] & 0xC0) == 0x80)
            kept--;
    }
    char *shown = td_arena_alloc(a, 4 * kept + 4, 1);
    if (shown == NULL)
        return "?";
    size_t n = 0;
    for (size_t i = 0; i < kept; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c < 0x20 || c == 0x7F) {
            static const char hex[] = "0123456789abcdef";
            const char escape[4] = {'\\', 'x', hex[c >> 4], hex[c & 15]};
            memcpy(shown + n, escape, 4);
            n += 4;
        } else {
            shown[n++] = (char)c;
        }
    }
    memcpy(shown + n, kept < size ? "..." : "", kept < size ? 4 : 1);
    return shown;
}

const char *td_text_list(td_arena *a, const char *const *known)
{
    size_t size = 1;
    for (const char *const *w = known; *w != NULL; w++)
        size += strlen(*w) + 2;
    char *list = td_arena_alloc(a, size, 1);
    if (list == NULL)
        return "?";
    size_t n = 0;
    for (const char *const *w = known; *w != NULL; w++) {
        const size_t length = strlen(*w);
        memcpy(list + n, w == known ? "" : ", ", w == known ? 0 : 2);
        n += w == known ? 0 : 2;
        memcpy(list + n, *w, length);
        n += length;
    }
    return list;
}

const char *td_text_beside(td_arena *a, const char *file, const char *path)
{
    const char *slash = strrchr(file, '/');
    if (path[0] == '/' || slash == NULL)
        return td_arena_printf(a, "%s", path);
    return td_arena_printf(a, "%.*s/%s", (int)(slash - file), file, path);
}
