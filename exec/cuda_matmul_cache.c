/*
 * tandem matmul 1
 * gpu NVIDIA H200
 * cublaslt 130002
 * bf16 fwd 2048 12288 4096 bias 0 align 16 16 16 limit 67108864 fused 0 ms 0.291200 first ...
 * end 1 5c2e01f7
 */
#include "exec/cuda_matmul_cache.h"

#include "exec/numbers.h"
#include "model/part.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* Longest line, with room to spare; more records than any plan has products. */
enum { LINE = 512, MAX_RECORDS = 1 << 16 };

bool td_matmul_key_equal(const td_matmul_key *x, const td_matmul_key *y)
{
    return x->rows == y->rows && x->n == y->n && x->k == y->k && x->limit == y->limit &&
           x->pass == y->pass && x->fp32 == y->fp32 && x->bias == y->bias &&
           memcmp(x->align, y->align, sizeof x->align) == 0;
}

/* ---- a line ---- */

static void record_text(const td_matmul_record *r, char line[LINE])
{
    const td_matmul_key *key = &r->key;
    int at = snprintf(line, LINE,
                      "%s %s %" PRId64 " %" PRId64 " %" PRId64 " bias %d align %d %d %d limit "
                      "%" PRId64 " fused %d ms %.6f first %.6f algo ",
                      key->fp32 ? "fp32" : "bf16", td_pass_names[key->pass], key->rows, key->n,
                      key->k, key->bias, key->align[0], key->align[1], key->align[2], key->limit,
                      r->fused, r->ms, r->ms_first);
    for (int i = 0; i < TD_MATMUL_ALGO_WORDS && at < LINE; i++)
        at += snprintf(line + at, (size_t)(LINE - at), "%016" PRIx64, r->algo[i]);
    if (at < LINE)
        snprintf(line + at, (size_t)(LINE - at), "\n");
}

/* Only what record_text() would write, to the letter. */
static bool record_parse(const char *line, td_matmul_record *out)
{
    td_matmul_record r = {0};
    char type[8] = "", pass[8] = "", again[LINE];
    int bias = 0, fused = 0, align[3] = {0}, end = 0;
    uint64_t *const w = r.algo;
    sscanf(line,
           "%7s %7s %" SCNd64 " %" SCNd64 " %" SCNd64 " bias %d align %d %d %d limit %" SCNd64
           " fused %d ms %lf first %lf algo %n",
           type, pass, &r.key.rows, &r.key.n, &r.key.k, &bias, &align[0], &align[1], &align[2],
           &r.key.limit, &fused, &r.ms, &r.ms_first, &end);
    bool good = end > 0 && sscanf(line + end,
                                  "%16" SCNx64 "%16" SCNx64 "%16" SCNx64 "%16" SCNx64 "%16" SCNx64
                                  "%16" SCNx64 "%16" SCNx64 "%16" SCNx64,
                                  &w[0], &w[1], &w[2], &w[3], &w[4], &w[5], &w[6],
                                  &w[7]) == TD_MATMUL_ALGO_WORDS;
    while (r.key.pass < TD_PASS_BACKWARD && strcmp(pass, td_pass_names[r.key.pass]) != 0)
        r.key.pass++;
    for (int i = 0; i < 3; i++) {
        good = good && (align[i] == 2 || align[i] == 4 || align[i] == 8 || align[i] == 16);
        r.key.align[i] = (uint8_t)align[i];
    }
    r.key.fp32 = strcmp(type, "fp32") == 0;
    r.key.bias = bias != 0;
    r.fused = fused != 0;
    if (!good || r.key.pass == TD_PASS_BACKWARD || r.key.rows < 1 || r.key.n < 1 || r.key.k < 1 ||
        !(r.ms > 0 && r.ms_first > 0) || (r.fused && !r.key.bias))
        return false;
    record_text(&r, again);
    if (strcmp(line, again) != 0)
        return false;
    *out = r;
    return true;
}

/* The last line counts the records and has a sum of them: an algorithm that lost a bit might still
 * be one, that nobody measured. */
static void end_text(int32_t n, uint32_t sum, char text[LINE])
{
    snprintf(text, LINE, "end %d %08" PRIx32 "\n", (int)n, sum);
}

static uint32_t add_line(uint32_t sum, const char *line)
{
    return sum * 31 + td_fnv1a(line);
}

static void head_text(const char *gpu, uint64_t version, char text[LINE])
{
    snprintf(text, LINE, "tandem matmul 1\ngpu %s\ncublaslt %" PRIu64 "\n", gpu, version);
}

/* ---- the file ---- */

/* Does the file begin with our head? Leaves it behind the head. */
static bool head_matches(FILE *file, const char *gpu, uint64_t version)
{
    char expected[LINE], found[LINE];
    head_text(gpu, version, expected);
    const size_t size = strlen(expected);
    return fread(found, 1, size, file) == size && memcmp(found, expected, size) == 0;
}

/* Records up to the last line; -1: damaged. `out` NULL: only counts. */
static int32_t body_parse(FILE *file, td_matmul_record *out)
{
    char line[LINE] = "", end[LINE];
    td_matmul_record r;
    int32_t n = 0;
    uint32_t sum = 0;
    while (n < MAX_RECORDS && fgets(line, sizeof line, file) != NULL && record_parse(line, &r)) {
        sum = add_line(sum, line);
        if (out != NULL)
            out[n] = r;
        n++;
    }
    end_text(n, sum, end);
    return strcmp(line, end) == 0 && fgetc(file) == EOF ? n : -1;
}

td_status td_matmul_cache_read(td_arena *a, const char *path, const char *gpu, uint64_t version,
                               int32_t *n, const td_matmul_record **out, td_err *err)
{
    td_status st = TD_OK;
    td_matmul_record *records = NULL;
    int32_t n_found = 0;
    FILE *file = fopen(path, "r");
    *n = 0;
    *out = NULL;
    if (file == NULL || !head_matches(file, gpu, version))
        goto done;
    const long body = ftell(file);
    n_found = body_parse(file, NULL);
    if (n_found <= 0 || body < 0 || fseek(file, body, SEEK_SET) != 0)
        goto done;
    records = TD_NEW(a, td_matmul_record, n_found);
    if (records == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for %d algorithms", path, (int)n_found));
    if (body_parse(file, records) == n_found) { /* the open file is never written again */
        *n = n_found;
        *out = records;
    }
done:
    if (file != NULL)
        fclose(file);
    return st;
}

/* `old` but for what `records` know better, then `records`. */
static bool write_all(FILE *file, const char *head, int32_t n_old, const td_matmul_record *old,
                      int32_t n, const td_matmul_record *records)
{
    char line[LINE];
    int32_t n_written = 0;
    uint32_t sum = 0;
    bool good = fputs(head, file) >= 0;
    for (int32_t i = 0; i < n_old && good; i++) {
        bool known = false;
        for (int32_t j = 0; j < n; j++)
            known = known || td_matmul_key_equal(&old[i].key, &records[j].key);
        if (known)
            continue;
        record_text(&old[i], line);
        sum = add_line(sum, line);
        good = fputs(line, file) >= 0;
        n_written++;
    }
    for (int32_t i = 0; i < n && good; i++, n_written++) {
        record_text(&records[i], line);
        sum = add_line(sum, line);
        good = fputs(line, file) >= 0;
    }
    end_text(n_written, sum, line);
    return good && fputs(line, file) >= 0 && fflush(file) == 0 && fsync(fileno(file)) == 0;
}

/*
 * The folder, locked, so that ranks that end together do not lose each other's records; -1 where
 * folders cannot be locked (NFS), which may lose a record but never the file.
 */
static int lock_folder(td_arena *a, const char *path)
{
    char *folder = td_arena_printf(a, "%s", path);
    char *slash = folder == NULL ? NULL : strrchr(folder, '/');
    if (slash != NULL)
        slash[1] = '\0';
    const int fd = folder == NULL ? -1 : open(slash == NULL ? "." : folder, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && flock(fd, LOCK_EX) != 0 && errno == EINTR)
        ;
    return fd;
}

td_status td_matmul_cache_merge(const char *path, const char *gpu, uint64_t version, int32_t n,
                                const td_matmul_record *records, td_err *err)
{
    td_status st = TD_OK;
    td_arena *a = td_arena_new();
    char *draft = a == NULL ? NULL : td_arena_printf(a, "%s.XXXXXX", path);
    const td_matmul_record *old = NULL;
    int32_t n_old = 0;
    FILE *file = NULL;
    char head[LINE];
    int fd = -1, folder = -1;
    if (draft == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to write the algorithms", path));
    folder = lock_folder(a, path);
    TD_TRY(st, td_matmul_cache_read(a, path, gpu, version, &n_old, &old, err));
    fd = mkstemp(draft);
    file = fd < 0 ? NULL : fdopen(fd, "w");
    if (file == NULL)
        TD_TRY(st,
               td_fail(err, TD_FILE, "%s: cannot write the algorithms: %s", path, strerror(errno)));
    head_text(gpu, version, head);
    if (!write_all(file, head, n_old, old, n, records) || fchmod(fd, 0644) != 0 ||
        rename(draft, path) != 0)
        TD_TRY(st,
               td_fail(err, TD_FILE, "%s: cannot write the algorithms: %s", path, strerror(errno)));
done:
    if (file != NULL)
        fclose(file);
    else if (fd >= 0)
        close(fd);
    if (st != TD_OK && fd >= 0)
        unlink(draft);
    if (folder >= 0)
        close(folder);
    td_arena_free(a);
    return st;
}
