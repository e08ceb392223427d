/* Writes a trace event by event: text is built in one buffer, packed if asked for, and published by
 * a rename. */
#include "traces/json_pull.h"
#include "traces/trace.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum {
    MAX_TEXT = TD_TRACE_MAX_TEXT,
    MAX_ESCAPED = 6 * MAX_TEXT + 2, /* \u001f for every byte, and the quotes */
    MAX_LINE = 4 * MAX_ESCAPED + 1024,
    BUFFER_BYTES = 1 << 19,
    PACKED_BYTES = 1 << 16,
    GZIP_LEVEL = 3, /* three times the speed of level 6 for files a sixth larger */
    NAMED = 1 << 7  /* in rows[]: td_trace_rank() was called; bit `lane`: the lane has its name */
};
/* An invalid byte grows to three when it is replaced; the reader still takes it. */
static_assert(4 * MAX_TEXT <= TD_JSON_MAX_TEXT, "what is written can be read");
_Static_assert((int)TD_N_LANES < 8, "a rank's lanes and NAMED fit a byte");

struct td_trace_writer {
    char *path, *temp;
    int fd;
    bool packed, failed, first;
    int32_t world_size, n_steps;
    unsigned char *rows; /* [world_size] */
    size_t used;
    z_stream z;
    unsigned char out[PACKED_BYTES];
    char buffer[BUFFER_BYTES];
};

/* Chrome's reserved colour of each kind of op: computation, waiting for a peer, collectives, the
 * optimizer. */
static const char *const colours[TD_N_OPS] = {
    [TD_OP_ZERO_GRADS] = "grey",
    [TD_OP_FORWARD] = "rail_response",
    [TD_OP_BACKWARD] = "good",
    [TD_OP_SEND_SHAPE] = "grey",
    [TD_OP_RECV_SHAPE] = "grey",
    [TD_OP_SEND] = "thread_state_iowait",
    [TD_OP_RECV] = "thread_state_iowait",
    [TD_OP_BROADCAST] = "rail_animation",
    [TD_OP_GRAD_REDUCE_SCATTER] = "rail_animation",
    [TD_OP_GRAD_ALL_REDUCE] = "rail_animation",
    [TD_OP_TP_GRAD_ALL_REDUCE] = "rail_animation",
    [TD_OP_TOKEN_COUNT] = "generic_work",
    [TD_OP_GRAD_STATS] = "rail_load",
    [TD_OP_FOUND_INF] = "generic_work",
    [TD_OP_MODULE_NORM] = "generic_work",
    [TD_OP_GLOBAL_NORM] = "generic_work",
    [TD_OP_ADAM] = "rail_load",
    [TD_OP_CAST] = "rail_load",
    [TD_OP_PARAM_ALL_GATHER] = "rail_animation",
    [TD_OP_SUCCESS] = "generic_work",
};

static const char *colour(const td_event *e)
{
    for (int kind = 0; e->part < 0 && kind < TD_N_OPS; kind++)
        if (strcmp(td_op_table[kind].name, e->kind) == 0)
            return colours[kind];
    return NULL; /* of a part: the viewer chooses one by name */
}

/* ---- bytes to the file ---- */

static td_status write_all(td_trace_writer *w, const void *data, size_t size, td_err *err)
{
    const char *p = data;
    while (size > 0) {
        const ssize_t n = write(w->fd, p, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return td_fail(err, TD_FILE, "%s: cannot write the trace: %s", w->path,
                           strerror(errno));
        p += n;
        size -= (size_t)n;
    }
    return TD_OK;
}

static td_status flush(td_trace_writer *w, bool last, td_err *err)
{
    td_status st = TD_OK;
    if (!w->packed) {
        TD_TRY(st, write_all(w, w->buffer, w->used, err));
    } else {
        w->z.next_in = (unsigned char *)w->buffer;
        w->z.avail_in = (uInt)w->used;
        do {
            w->z.next_out = w->out;
            w->z.avail_out = PACKED_BYTES;
            deflate(&w->z, last ? Z_FINISH
                                : Z_NO_FLUSH); /* cannot fail: the state is ours, there is room */
            TD_TRY(st, write_all(w, w->out, PACKED_BYTES - w->z.avail_out, err));
        } while (w->z.avail_out == 0);
    }
    w->used = 0;
done:
    return st;
}

/* Room for one line of at most MAX_LINE bytes, `*p` at its begin. */
static td_status begin_line(td_trace_writer *w, char **p, td_err *err)
{
    td_status st = TD_OK;
    if (w->failed)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: the trace is broken by an earlier failure", w->path));
    if (w->used > BUFFER_BYTES - MAX_LINE)
        TD_TRY(st, flush(w, false, err));
    *p = w->buffer + w->used;
done:
    return st;
}

static void end_line(td_trace_writer *w, const char *p)
{
    w->used = (size_t)(p - w->buffer);
}

/* ---- text; each function writes at p and returns the end ---- */

#define PUT_LITERAL(p, text) ((char *)memcpy((p), (text), sizeof(text) - 1) + (sizeof(text) - 1))

static char *put_raw(char *p, const char *text)
{
    const size_t n = strlen(text);
    memcpy(p, text, n);
    return p + n;
}

static char *put_u64(char *p, uint64_t value)
{
    char digits[20];
    int n = 0;
    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    while (n > 0)
        *p++ = digits[--n];
    return p;
}

/* Microseconds with three decimals: the exact nanoseconds. */
static char *put_us(char *p, int64_t ns)
{
    const unsigned rest = (unsigned)(ns % 1000);
    p = put_u64(p, (uint64_t)(ns / 1000));
    *p++ = '.';
    *p++ = (char)('0' + rest / 100);
    *p++ = (char)('0' + rest / 10 % 10);
    *p++ = (char)('0' + rest % 10);
    return p;
}

/* A JSON text; bytes that are not UTF-8 become U+FFFD. */
static char *put_text(char *p, const char *text)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *s = (const unsigned char *)text;
    *p++ = '"';
    while (*s != '\0') {
        if (*s >= 0x20 && *s < 0x80 && *s != '"' && *s != '\\') {
            *p++ = (char)*s++;
        } else if (*s == '"' || *s == '\\') {
            *p++ = '\\';
            *p++ = (char)*s++;
        } else if (*s < 0x20) {
            p = PUT_LITERAL(p, "\\u00");
            *p++ = hex[*s >> 4];
            *p++ = hex[*s++ & 15];
        } else {
            const int n = td_utf8_length(s);
            p = n == 0 ? PUT_LITERAL(p, "\xef\xbf\xbd") : (char *)memcpy(p, s, (size_t)n) + n;
            s += n == 0 ? 1 : n;
        }
    }
    *p++ = '"';
    return p;
}

/* null stands for a number or text that there is none of. */
static char *put_index_or_null(char *p, int32_t value)
{
    return value < 0 ? PUT_LITERAL(p, "null") : put_u64(p, (uint64_t)value);
}

static char *put_text_or_null(char *p, const char *text)
{
    return text == NULL || text[0] == '\0' ? PUT_LITERAL(p, "null") : put_text(p, text);
}

static bool fits(const char *text)
{
    return text == NULL || memchr(text, '\0', MAX_TEXT + 1) != NULL;
}

/* ---- the head of the file ---- */

static td_status put_pair(td_trace_writer *w, const char *key, const char *value, td_err *err)
{
    td_status st = TD_OK;
    char *p;
    if (!fits(key) || !fits(value))
        TD_TRY(st, td_fail(err, TD_USAGE, "%s: metadata %.40s is longer than %d bytes", w->path,
                           key, MAX_TEXT));
    TD_TRY(st, begin_line(w, &p, err));
    p = PUT_LITERAL(p, ",\n");
    p = put_text(p, key);
    p = PUT_LITERAL(p, ": ");
    p = value == NULL ? PUT_LITERAL(p, "null") : put_text(p, value);
    end_line(w, p);
done:
    return st;
}

static td_status put_meta(td_trace_writer *w, const td_trace_meta *m, td_err *err)
{
    td_status st = TD_OK;
    const char *const own[][2] = {{"backend", m->backend},
                                  {"plan", m->plan},
                                  {"profile", m->profile},
                                  {"trust", m->trust},
                                  {"version", m->version}};
    const char *const numbers[] = {"program_digest", "clock_error_s", "world_size", "n_steps"};
    char *p;
    TD_TRY(st, begin_line(w, &p, err));
    p = PUT_LITERAL(p, "{\"displayTimeUnit\": \"ns\",\n\"metadata\": {\n\"program_digest\": ");
    p = put_text(p, m->digest);
    p += sprintf(p, ",\n\"clock_error_s\": %.17g,\n\"world_size\": %d,\n\"n_steps\": %d",
                 m->clock_error_s, (int)m->world_size, (int)m->n_steps);
    end_line(w, p);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        TD_TRY(st, put_pair(w, own[i][0], own[i][1], err));
    for (int32_t i = 0; i < m->n_extra; i++) {
        const char *key = m->extra[2 * i];
        bool taken = false;
        for (size_t k = 0; k < sizeof own / sizeof *own; k++)
            taken = taken || strcmp(key, own[k][0]) == 0;
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++)
            taken = taken || strcmp(key, numbers[k]) == 0;
        for (int32_t k = 0; k < i; k++)
            taken = taken || strcmp(key, m->extra[2 * k]) == 0;
        if (taken)
            TD_TRY(st, td_fail(err, TD_USAGE, "%s: metadata %.40s is given twice", w->path, key));
        TD_TRY(st, put_pair(w, key, m->extra[2 * i + 1], err));
    }
    TD_TRY(st, begin_line(w, &p, err));
    p = PUT_LITERAL(p, "\n},\n\"traceEvents\": [");
    end_line(w, p);
done:
    return st;
}

/* A fresh file beside the path, so that the rename stays within one file system. */
static td_status open_temp(td_trace_writer *w, td_err *err)
{
    const size_t size = strlen(w->path) + 64;
    struct stat s;
    if (stat(w->path, &s) == 0 && !S_ISREG(s.st_mode))
        return td_fail(err, TD_FILE, "%s: not a regular file, a trace cannot replace it", w->path);
    w->temp = malloc(size);
    if (w->temp == NULL)
        return td_fail(err, TD_NOMEM, "%s: no memory to write the trace", w->path);
    for (int i = 0; i < 100 && w->fd < 0; i++) {
        snprintf(w->temp, size, "%s.tmp-%ld-%d", w->path, (long)getpid(), i);
        w->fd = open(w->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd < 0 && errno != EEXIST)
            break;
    }
    if (w->fd < 0) {
        free(w->temp);
        w->temp = NULL; /* not ours to remove */
        return td_fail(err, TD_FILE, "%s: cannot create the trace: %s", w->path, strerror(errno));
    }
    return TD_OK;
}

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), k = strlen(end);
    return n > k && strcmp(text + n - k, end) == 0;
}

static td_status check_meta(const char *path, const td_trace_meta *m, td_err *err)
{
    if (memchr(m->digest, '\0', sizeof m->digest) == NULL || m->digest[0] == '\0')
        return td_fail(err, TD_USAGE, "%s: a trace needs the digest of its program", path);
    if (m->world_size < 1 || m->world_size > TD_MAX_RANKS || m->n_steps < 1)
        return td_fail(err, TD_USAGE,
                       "%s: a trace of %d steps on %d ranks, expected 1 to %d ranks and a step",
                       path, (int)m->n_steps, (int)m->world_size, TD_MAX_RANKS);
    if (!(m->clock_error_s >= 0 && m->clock_error_s <= 1e9))
        return td_fail(err, TD_USAGE, "%s: the clock error is %g s, expected 0 to 1e9", path,
                       m->clock_error_s);
    if (m->n_extra > TD_TRACE_MAX_EXTRA)
        return td_fail(err, TD_USAGE, "%s: %d further metadata, expected at most %d", path,
                       (int)m->n_extra, TD_TRACE_MAX_EXTRA);
    return TD_OK;
}

td_status td_trace_create(const char *path, const td_trace_meta *meta, td_trace_writer **out,
                          td_err *err)
{
    td_status st = TD_OK;
    td_trace_writer *w = NULL;
    TD_TRY(st, check_meta(path, meta, err));
    w = calloc(1, sizeof *w);
    if (w == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to write the trace", path));
    w->fd = -1;
    w->first = true;
    w->world_size = meta->world_size;
    w->n_steps = meta->n_steps;
    w->path = strdup(path);
    w->rows = calloc((size_t)meta->world_size, 1);
    if (w->path == NULL || w->rows == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to write the trace", path));
    if (ends_with(path, ".gz")) { /* zlib's own gzip header holds no time and no name */
        if (deflateInit2(&w->z, GZIP_LEVEL, Z_DEFLATED, 15 + 16, 9, Z_DEFAULT_STRATEGY) != Z_OK)
            TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to pack the trace", path));
        w->packed = true;
    }
    TD_TRY(st, open_temp(w, err));
    TD_TRY(st, put_meta(w, meta, err));
    *out = w;
    w = NULL;
done:
    td_trace_abandon(w);
    return st;
}

/* ---- events ---- */

static char *begin_event(td_trace_writer *w, char *p)
{
    p = w->first ? PUT_LITERAL(p, "\n") : PUT_LITERAL(p, ",\n");
    w->first = false;
    return p;
}

/* A metadata event: `{"ph":"M","name":NAME,"pid":RANK,"tid":LANE,"args":{KEY:` ... `}}` */
static char *put_naming(td_trace_writer *w, char *p, const char *name, int32_t rank, int32_t lane,
                        const char *key)
{
    p = begin_event(w, p);
    p = PUT_LITERAL(p, "{\"ph\":\"M\",\"name\":\"");
    p = put_raw(p, name);
    p = PUT_LITERAL(p, "\",\"pid\":");
    p = put_u64(p, (uint64_t)rank);
    p = PUT_LITERAL(p, ",\"tid\":");
    p = put_u64(p, (uint64_t)lane);
    p = PUT_LITERAL(p, ",\"args\":{\"");
    p = put_raw(p, key);
    return PUT_LITERAL(p, "\":");
}

td_status td_trace_rank(td_trace_writer *w, int32_t rank, const char *label, td_err *err)
{
    td_status st = TD_OK;
    char *p;
    TD_TRY(st, begin_line(w, &p, err));
    if (rank < 0 || rank >= w->world_size)
        TD_TRY(st, td_fail(err, TD_USAGE, "%s: rank %d is not one of the trace's %d", w->path,
                           (int)rank, (int)w->world_size));
    if ((w->rows[rank] & NAMED) != 0)
        TD_TRY(st, td_fail(err, TD_USAGE, "%s: rank %d is named twice", w->path, (int)rank));
    if (!fits(label))
        TD_TRY(st, td_fail(err, TD_USAGE, "%s: the name of rank %d is longer than %d bytes",
                           w->path, (int)rank, MAX_TEXT));
    w->rows[rank] |= NAMED;
    p = put_naming(w, p, "process_name", rank, 0, "name");
    p = put_text(p, label);
    p = PUT_LITERAL(p, "}}");
    p = put_naming(w, p, "process_sort_index", rank, 0, "sort_index");
    p = put_u64(p, (uint64_t)rank);
    p = PUT_LITERAL(p, "}}");
    end_line(w, p);
done:
    if (st != TD_OK)
        w->failed = true;
    return st;
}

/* A lane gets its name and its place with its first event, so that a viewer shows no empty rows. */
static char *name_lane(td_trace_writer *w, char *p, int32_t rank, int32_t lane)
{
    w->rows[rank] |= (unsigned char)(1u << lane);
    p = put_naming(w, p, "thread_name", rank, lane, "name");
    p = put_text(p, td_lane_names[lane]);
    p = PUT_LITERAL(p, "}}");
    p = put_naming(w, p, "thread_sort_index", rank, lane, "sort_index");
    p = put_u64(p, (uint64_t)lane);
    return PUT_LITERAL(p, "}}");
}

/* What td_trace_check() would refuse for an event alone is not written. */
static const char *fault(const td_trace_writer *w, const td_event *e)
{
    return e->rank < 0 || e->rank >= w->world_size       ? "its rank is outside the world"
           : (w->rows[e->rank] & NAMED) == 0             ? "its rank has no name yet"
           : e->lane < 0 || e->lane >= TD_N_LANES        ? "there is no such lane"
           : e->step < 0 || e->step >= w->n_steps        ? "there is no such step"
           : e->op < 0                                   ? "the op is negative"
           : e->part < -1 || e->stage < -1 || e->mb < -1 ? "part, stage or microbatch is below -1"
           : e->start_ns < 0 || e->duration_ns < 0       ? "it starts or lasts less than 0 ns"
           : e->duration_ns > INT64_MAX - e->start_ns ? "it ends after the last nanosecond there is"
           : e->kind == NULL || e->kind[0] == '\0'    ? "it has no kind"
           : !fits(e->kind) || !fits(e->module) || !fits(e->name) ? "a text is too long"
                                                                  : NULL;
}

td_status td_trace_event(td_trace_writer *w, const td_event *e, td_err *err)
{
    td_status st = TD_OK;
    char *p;
    TD_TRY(st, begin_line(w, &p, err));
    const char *why = fault(w, e);
    if (why != NULL)
        TD_TRY(st, td_fail(err, TD_USAGE,
                           "%s: rank %d, lane %d, step %d, op %d cannot be in a trace: %s", w->path,
                           (int)e->rank, (int)e->lane, (int)e->step, (int)e->op, why));
    if ((w->rows[e->rank] & 1u << e->lane) == 0)
        p = name_lane(w, p, e->rank, e->lane);
    p = begin_event(w, p);
    p = PUT_LITERAL(p, "{\"ph\":\"X\",\"name\":");
    p = put_text(p, e->name == NULL ? e->kind : e->name);
    p = PUT_LITERAL(p, ",\"cat\":");
    p = put_text(p, e->kind);
    const char *cname = colour(e);
    if (cname != NULL) {
        p = PUT_LITERAL(p, ",\"cname\":\"");
        p = put_raw(p, cname);
        *p++ = '"';
    }
    p = PUT_LITERAL(p, ",\"pid\":");
    p = put_u64(p, (uint64_t)e->rank);
    p = PUT_LITERAL(p, ",\"tid\":");
    p = put_u64(p, (uint64_t)e->lane);
    p = PUT_LITERAL(p, ",\"ts\":");
    p = put_us(p, e->start_ns);
    p = PUT_LITERAL(p, ",\"dur\":");
    p = put_us(p, e->duration_ns);
    p = PUT_LITERAL(p, ",\"args\":{\"step\":");
    p = put_u64(p, (uint64_t)e->step);
    p = PUT_LITERAL(p, ",\"op\":");
    p = put_u64(p, (uint64_t)e->op);
    if (e->part >= 0) {
        p = PUT_LITERAL(p, ",\"part\":");
        p = put_u64(p, (uint64_t)e->part);
    }
    p = PUT_LITERAL(p, ",\"kind\":");
    p = put_text(p, e->kind);
    p = PUT_LITERAL(p, ",\"module\":");
    p = put_text_or_null(p, e->module);
    p = PUT_LITERAL(p, ",\"stage\":");
    p = put_index_or_null(p, e->stage);
    p = PUT_LITERAL(p, ",\"mb\":");
    p = put_index_or_null(p, e->mb);
    p = PUT_LITERAL(p, ",\"bytes\":");
    p = put_u64(p, e->bytes);
    p = PUT_LITERAL(p, "}}");
    end_line(w, p);
done:
    if (st != TD_OK)
        w->failed = true;
    return st;
}

/* ---- the end ---- */

td_status td_trace_close(td_trace_writer *w, td_err *err)
{
    td_status st = TD_OK;
    char *p;
    TD_TRY(st, begin_line(w, &p, err));
    p = PUT_LITERAL(p, "\n]}\n");
    end_line(w, p);
    TD_TRY(st, flush(w, true, err));
    if (fsync(w->fd) != 0)
        TD_TRY(st,
               td_fail(err, TD_FILE, "%s: cannot write the trace: %s", w->path, strerror(errno)));
    const int closed = close(w->fd);
    w->fd = -1;
    if (closed != 0 || rename(w->temp, w->path) != 0)
        TD_TRY(st,
               td_fail(err, TD_FILE, "%s: cannot write the trace: %s", w->path, strerror(errno)));
    free(w->temp);
    w->temp = NULL; /* nothing is left to remove */
    td_trace_abandon(w);
done:
    if (st != TD_OK)
        w->failed = true;
    return st;
}

void td_trace_abandon(td_trace_writer *w)
{
    if (w == NULL)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (w->temp != NULL)
        unlink(w->temp);
    if (w->packed)
        deflateEnd(&w->z);
    free(w->temp);
    free(w->rows);
    free(w->path);
    free(w);
}
