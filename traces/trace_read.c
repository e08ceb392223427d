/* Reads a trace event by event: bytes, unpacked if they are gzip, then tokens, then the few fields
 * that matter. */
#include "traces/json_pull.h"
#include "traces/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

enum { CHUNK_BYTES = 1 << 16 };

/* ---- where the bytes come from: a file or memory, plain or gzip ---- */

typedef struct {
    const char *place;
    int fd;                    /* -1: the bytes are in memory */
    const unsigned char *data; /* bytes in hand that are not read yet */
    size_t size;
    bool sniffed, packed, member_done;
    z_stream z;
    unsigned char raw[CHUNK_BYTES], unpacked[CHUNK_BYTES];
} source;

/* Makes sure that bytes are in hand unless there are no more; whole chunks, so that two bytes of
 * magic come together. */
static td_status refill(source *s, td_err *err)
{
    if (s->size > 0 || s->fd < 0)
        return TD_OK;
    s->data = s->raw;
    while (s->size < CHUNK_BYTES) {
        const ssize_t n = read(s->fd, s->raw + s->size, CHUNK_BYTES - s->size);
        if (n == 0)
            break;
        if (n < 0 && errno != EINTR)
            return td_fail(err, TD_FILE, "%s: cannot read the trace: %s", s->place,
                           strerror(errno));
        s->size += n < 0 ? 0 : (size_t)n;
    }
    return TD_OK;
}

static td_status sniff(source *s, td_err *err)
{
    td_status st = TD_OK;
    TD_TRY(st, refill(s, err));
    s->sniffed = true;
    if (s->size >= 2 && s->data[0] == 0x1f && s->data[1] == 0x8b) {
        if (inflateInit2(&s->z, 15 + 16) != Z_OK)
            TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to unpack the trace", s->place));
        s->packed = true;
    }
done:
    return st;
}

static td_status unpack(source *s, const unsigned char **data, size_t *size, td_err *err)
{
    td_status st = TD_OK;
    s->z.next_out = s->unpacked;
    s->z.avail_out = CHUNK_BYTES;
    while (s->z.avail_out == CHUNK_BYTES) {
        TD_TRY(st, refill(s, err));
        if (s->size == 0 && s->member_done)
            break;
        if (s->size == 0)
            TD_TRY(st, td_fail(err, TD_FILE, "%s: the gzip file is cut off", s->place));
        if (s->member_done) /* another member follows */
            inflateReset(&s->z);
        const uInt given = s->size > CHUNK_BYTES ? CHUNK_BYTES : (uInt)s->size;
        s->z.next_in = (unsigned char *)s->data;
        s->z.avail_in = given;
        const int code = inflate(&s->z, Z_NO_FLUSH);
        if (code == Z_MEM_ERROR)
            TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to unpack the trace", s->place));
        if (code != Z_OK && code != Z_STREAM_END)
            TD_TRY(st, td_fail(err, TD_FILE, "%s: broken gzip file: %s", s->place,
                               s->z.msg == NULL ? "unexpected data" : s->z.msg));
        s->member_done = code == Z_STREAM_END;
        s->data += given - s->z.avail_in;
        s->size -= given - s->z.avail_in;
    }
    *data = s->unpacked;
    *size = CHUNK_BYTES - s->z.avail_out;
done:
    return st;
}

/* td_json_fill */
static td_status source_fill(void *self, const unsigned char **data, size_t *size, td_err *err)
{
    td_status st = TD_OK;
    source *s = self;
    if (!s->sniffed)
        TD_TRY(st, sniff(s, err));
    if (s->packed) {
        TD_TRY(st, unpack(s, data, size, err));
    } else {
        TD_TRY(st, refill(s, err));
        *data = s->data;
        *size = s->size;
        s->size = 0;
    }
done:
    return st;
}

/* ---- fields: what is kept of an object, the rest is read over ---- */

/* One key's value as it stood in the file; texts are in reader.texts. */
typedef struct {
    bool present;
    td_json_token token;
    td_json_number number;
    uint64_t at;
} slot;

/* key; number or text; smallest and largest value; decimal places of the unit; may be null or
 * absent, then -1 or "" */
typedef struct {
    const char *key;
    bool number;
    bool optional;
    int32_t scale;
    int64_t min;
    uint64_t max;
} field;

enum {
    PH,
    NAME,
    PID,
    TID,
    TS,
    DUR,
    N_OUTER,
    STEP = N_OUTER,
    OP,
    PART,
    KIND,
    MODULE,
    STAGE,
    MB,
    BYTES,
    N_FIELDS
};

/* An event's keys, then those of its `args`. The bounds are the types'; the laws are
 * td_trace_check()'s. */
static const field event_fields[N_FIELDS] = {
    [PH] = {.key = "ph"},
    [NAME] = {.key = "name", .optional = true},
    [PID] = {.key = "pid", .number = true, .max = TD_MAX_RANKS - 1},
    [TID] = {.key = "tid", .number = true, .max = TD_N_LANES - 1},
    [TS] = {.key = "ts", .number = true, .scale = 3, .min = INT64_MIN, .max = INT64_MAX},
    [DUR] = {.key = "dur", .number = true, .scale = 3, .min = INT64_MIN, .max = INT64_MAX},
    [STEP] = {.key = "step", .number = true, .max = INT32_MAX},
    [OP] = {.key = "op", .number = true, .max = INT32_MAX},
    [PART] = {.key = "part", .number = true, .optional = true, .min = -1, .max = INT32_MAX},
    [KIND] = {.key = "kind"},
    [MODULE] = {.key = "module", .optional = true},
    [STAGE] = {.key = "stage", .number = true, .optional = true, .min = -1, .max = INT32_MAX},
    [MB] = {.key = "mb", .number = true, .optional = true, .min = -1, .max = INT32_MAX},
    [BYTES] = {.key = "bytes", .number = true, .max = UINT64_MAX},
};

enum { DIGEST, BACKEND, PLAN, PROFILE, TRUST, VERSION, CLOCK_ERROR, WORLD_SIZE, N_STEPS, N_META };

static const field meta_fields[N_META] = {
    [DIGEST] = {.key = "program_digest"},
    [BACKEND] = {.key = "backend", .optional = true},
    [PLAN] = {.key = "plan", .optional = true},
    [PROFILE] = {.key = "profile", .optional = true},
    [TRUST] = {.key = "trust", .optional = true},
    [VERSION] = {.key = "version", .optional = true},
    [CLOCK_ERROR] = {.key = "clock_error_s", .number = true, .optional = true},
    [WORLD_SIZE] = {.key = "world_size", .number = true, .min = 1, .max = TD_MAX_RANKS},
    [N_STEPS] = {.key = "n_steps", .number = true, .min = 1, .max = INT32_MAX},
};

typedef struct {
    td_arena *arena;
    td_event_visit visit;
    void *self;
    td_trace_meta *meta;
    bool has_meta, has_events;
    int32_t n_extra;
    const char *extra[2 * TD_TRACE_MAX_EXTRA];
    slot event[N_FIELDS];
    char texts[N_FIELDS][TD_JSON_MAX_TEXT + 1];
    td_json json;
    source source;
} reader;

/* Index of the key just read among fields [from, to), `to` if it is none of them. */
static int find_field(const td_json *j, const field *fields, int from, int to)
{
    int i = from;
    while (i < to && strcmp(fields[i].key, j->text) != 0)
        i++;
    return i;
}

/* The value of a known key, whatever its type: only an event that turns out to be ours is judged.
 */
static td_status read_slot(td_json *j, const field *f, slot *s, td_json_token *out, td_err *err)
{
    td_status st = TD_OK;
    if (s->present)
        TD_TRY(st, td_json_fail(j, j->token_at, err, "\"%s\" is given twice", f->key));
    TD_TRY(st, td_json_next(j, out, err));
    *s = (slot){.present = true, .token = *out, .number = j->number, .at = j->token_at};
done:
    return st;
}

static td_status wrong_type(const td_json *j, const field *f, const slot *s, uint64_t at,
                            td_err *err)
{
    if (!s->present)
        return td_json_fail(j, at, err, "\"%s\" is missing", f->key);
    return td_json_fail(j, s->at, err, "\"%s\" is %s, expected %s", f->key, td_json_words[s->token],
                        f->number ? "a number" : "a text");
}

/* The integer in a slot, in the field's unit; -1 for an optional one that is not there. */
static td_status take_integer(const td_json *j, const field *f, const slot *s, uint64_t at,
                              uint64_t *out, td_err *err)
{
    uint64_t magnitude;
    bool exact;
    *out = UINT64_MAX; /* -1 */
    if (f->optional && (!s->present || s->token == TD_JSON_NULL))
        return TD_OK;
    if (!s->present || s->token != TD_JSON_NUMBER)
        return wrong_type(j, f, s, at, err);
    const bool negative = s->number.negative && s->number.mantissa != 0;
    if (!td_json_integer(s->number, f->scale, &magnitude, &exact) ||
        (negative && (f->min >= 0 || magnitude > UINT64_C(0) - (uint64_t)f->min)) ||
        (!negative && (magnitude > f->max || (f->min > 0 && magnitude < (uint64_t)f->min))))
        return td_json_fail(j, s->at, err, "\"%s\" is out of range, expected %lld to %llu%s",
                            f->key, (long long)f->min, (unsigned long long)f->max,
                            f->scale == 0 ? "" : " ns");
    if (!exact && f->scale == 0) /* a time is rounded to the trace's nanosecond */
        return td_json_fail(j, s->at, err, "\"%s\" is not a whole number", f->key);
    *out = negative ? UINT64_C(0) - magnitude : magnitude;
    return TD_OK;
}

/* ---- events ---- */

/* Reads the fields [from, to) of the object that was just opened; at depth 1 of an event that
 * includes `args`. */
static td_status read_fields(reader *r, int from, int to, bool *args, td_err *err)
{
    td_status st = TD_OK;
    td_json *j = &r->json;
    td_json_token token;
    for (;;) {
        TD_TRY(st, td_json_next(j, &token, err));
        if (token != TD_JSON_KEY)
            break;
        const int i = find_field(j, event_fields, from, to);
        if (i < to) {
            TD_TRY(st, read_slot(j, &event_fields[i], &r->event[i], &token, err));
            if (token == TD_JSON_TEXT && !event_fields[i].number)
                memcpy(r->texts[i], j->text, j->n_text + 1);
            TD_TRY(st, td_json_leave(j, token, err));
        } else if (args != NULL && strcmp(j->text, "args") == 0) {
            if (*args)
                TD_TRY(st, td_json_fail(j, j->token_at, err, "\"args\" is given twice"));
            *args = true;
            TD_TRY(st, td_json_next(j, &token, err));
            if (token == TD_JSON_OBJECT)
                TD_TRY(st, read_fields(r, N_OUTER, N_FIELDS, NULL, err));
            else
                TD_TRY(st, td_json_leave(j, token, err));
        } else {
            TD_TRY(st, td_json_skip(j, err));
        }
    }
done:
    return st;
}

static td_status deliver(reader *r, uint64_t at, td_err *err)
{
    td_status st = TD_OK;
    uint64_t value[N_FIELDS] = {0};
    for (int i = 0; i < N_FIELDS; i++) {
        const field *f = &event_fields[i];
        const slot *s = &r->event[i];
        if (f->number) {
            TD_TRY(st, take_integer(&r->json, f, s, at, &value[i], err));
        } else if (f->optional && (!s->present || s->token == TD_JSON_NULL)) {
            r->texts[i][0] = '\0';
        } else if (!s->present || s->token != TD_JSON_TEXT) {
            TD_TRY(st, wrong_type(&r->json, f, s, at, err));
        }
    }
    const td_event e = {
        .rank = (int32_t)value[PID],
        .lane = (int32_t)value[TID],
        .step = (int32_t)value[STEP],
        .op = (int32_t)value[OP],
        .part = (int32_t)value[PART],
        .stage = (int32_t)value[STAGE],
        .mb = (int32_t)value[MB],
        .start_ns = (int64_t)value[TS],
        .duration_ns = (int64_t)value[DUR],
        .bytes = value[BYTES],
        .kind = r->texts[KIND],
        .module = r->texts[MODULE],
        .name = r->texts[r->texts[NAME][0] == '\0' ? KIND : NAME],
    };
    TD_TRY(st, r->visit(r->self, &e, err));
done:
    return st;
}

static td_status read_events(reader *r, td_err *err)
{
    td_status st = TD_OK;
    td_json *j = &r->json;
    td_json_token token;
    if (r->has_events)
        TD_TRY(st, td_json_fail(j, j->token_at, err, "\"traceEvents\" is given twice"));
    r->has_events = true;
    TD_TRY(st, td_json_next(j, &token, err));
    if (token != TD_JSON_ARRAY)
        TD_TRY(st, td_json_fail(j, j->token_at, err, "\"traceEvents\" is %s, expected an array",
                                td_json_words[token]));
    for (;;) {
        TD_TRY(st, td_json_next(j, &token, err));
        if (token == TD_JSON_ARRAY_END)
            break;
        const uint64_t at = j->token_at;
        if (token != TD_JSON_OBJECT)
            TD_TRY(st, td_json_fail(j, at, err, "an event is %s, expected an object",
                                    td_json_words[token]));
        memset(r->event, 0, sizeof r->event);
        bool args = false;
        TD_TRY(st, read_fields(r, 0, N_OUTER, &args, err));
        const slot *op = &r->event[OP];
        if (r->event[PH].token == TD_JSON_TEXT && strcmp(r->texts[PH], "X") == 0 && op->present &&
            op->token != TD_JSON_NULL)
            TD_TRY(st, deliver(r, at, err));
    }
done:
    return st;
}

/* ---- metadata ---- */

static td_status keep_text(reader *r, const char *text, const char **out, td_err *err)
{
    *out = td_arena_printf(r->arena, "%s", text);
    return *out == NULL ? td_fail(err, TD_NOMEM, "%s: no memory for the metadata", r->json.place)
                        : TD_OK;
}

/* A pair that tandem does not know itself; what is not a text was not written by it. */
static td_status read_extra(reader *r, td_err *err)
{
    td_status st = TD_OK;
    td_json *j = &r->json;
    td_json_token token;
    char *key = r->texts[0]; /* free between events */
    memcpy(key, j->text, j->n_text + 1);
    TD_TRY(st, td_json_next(j, &token, err));
    if (token == TD_JSON_TEXT) {
        if (r->n_extra == TD_TRACE_MAX_EXTRA)
            TD_TRY(st,
                   td_json_fail(j, j->token_at, err, "more than %d metadata", TD_TRACE_MAX_EXTRA));
        TD_TRY(st, keep_text(r, key, &r->extra[2 * r->n_extra], err));
        TD_TRY(st, keep_text(r, j->text, &r->extra[2 * r->n_extra + 1], err));
        r->n_extra++;
    }
    TD_TRY(st, td_json_leave(j, token, err));
done:
    return st;
}

static td_status take_numbers(reader *r, const slot *slots, uint64_t at, td_err *err)
{
    td_status st = TD_OK;
    uint64_t world_size, n_steps;
    const slot *clock = &slots[CLOCK_ERROR];
    TD_TRY(st, take_integer(&r->json, &meta_fields[WORLD_SIZE], &slots[WORLD_SIZE], at, &world_size,
                            err));
    TD_TRY(st, take_integer(&r->json, &meta_fields[N_STEPS], &slots[N_STEPS], at, &n_steps, err));
    r->meta->world_size = (int32_t)world_size;
    r->meta->n_steps = (int32_t)n_steps;
    if (clock->present && clock->token == TD_JSON_NUMBER)
        r->meta->clock_error_s = td_json_double(clock->number);
    else if (clock->present && clock->token != TD_JSON_NULL)
        TD_TRY(st, wrong_type(&r->json, &meta_fields[CLOCK_ERROR], clock, at, err));
    if (!(r->meta->clock_error_s >= 0 && r->meta->clock_error_s <= 1e9))
        TD_TRY(st, td_json_fail(&r->json, clock->at, err,
                                "\"clock_error_s\" is out of range, expected 0 to 1e9"));
done:
    return st;
}

static td_status read_meta(reader *r, td_err *err)
{
    td_status st = TD_OK;
    td_json *j = &r->json;
    td_trace_meta *m = r->meta;
    slot slots[N_META] = {{0}};
    const char **const texts[N_META] = {[BACKEND] = &m->backend,
                                        [PLAN] = &m->plan,
                                        [PROFILE] = &m->profile,
                                        [TRUST] = &m->trust,
                                        [VERSION] = &m->version};
    td_json_token token;
    if (r->has_meta)
        TD_TRY(st, td_json_fail(j, j->token_at, err, "\"metadata\" is given twice"));
    r->has_meta = true;
    TD_TRY(st, td_json_next(j, &token, err));
    const uint64_t at = j->token_at;
    if (token != TD_JSON_OBJECT)
        TD_TRY(st, td_json_fail(j, at, err, "\"metadata\" is %s, expected an object",
                                td_json_words[token]));
    for (;;) {
        TD_TRY(st, td_json_next(j, &token, err));
        if (token != TD_JSON_KEY)
            break;
        const int i = find_field(j, meta_fields, 0, N_META);
        if (i == N_META) {
            TD_TRY(st, read_extra(r, err));
            continue;
        }
        const field *f = &meta_fields[i];
        TD_TRY(st, read_slot(j, f, &slots[i], &token, err));
        if (!f->number && token != TD_JSON_TEXT && !(f->optional && token == TD_JSON_NULL))
            TD_TRY(st, wrong_type(j, f, &slots[i], at, err));
        if (token == TD_JSON_TEXT && texts[i] != NULL)
            TD_TRY(st, keep_text(r, j->text, texts[i], err));
        if (i == DIGEST) {
            if (j->n_text == 0 || j->n_text >= sizeof m->digest)
                TD_TRY(st, td_json_fail(j, slots[i].at, err,
                                        "\"%s\" has %llu characters, expected 1 to 64", f->key,
                                        (unsigned long long)j->n_text));
            memcpy(m->digest, j->text, j->n_text + 1);
        }
        TD_TRY(st, td_json_leave(j, token, err));
    }
    if (!slots[DIGEST].present)
        TD_TRY(st, td_json_fail(j, at, err,
                                "not a tandem trace: its metadata has no \"program_digest\""));
    TD_TRY(st, take_numbers(r, slots, at, err));
done:
    return st;
}

/* ---- the file ---- */

static td_status read_trace(reader *r, td_err *err)
{
    td_status st = TD_OK;
    td_json *j = &r->json;
    td_json_token token;
    TD_TRY(st, td_json_next(j, &token, err));
    if (token == TD_JSON_ARRAY)
        TD_TRY(
            st,
            td_json_fail(
                j, j->token_at, err,
                "not a tandem trace: an array of events, expected an object with \"metadata\" and "
                "\"traceEvents\""));
    if (token != TD_JSON_OBJECT)
        TD_TRY(st, td_json_fail(j, j->token_at, err, "not a trace: %s, expected an object",
                                td_json_words[token]));
    for (;;) {
        TD_TRY(st, td_json_next(j, &token, err));
        if (token != TD_JSON_KEY)
            break;
        if (strcmp(j->text, "traceEvents") == 0)
            TD_TRY(st, read_events(r, err));
        else if (strcmp(j->text, "metadata") == 0)
            TD_TRY(st, read_meta(r, err));
        else
            TD_TRY(st, td_json_skip(j, err));
    }
    if (!r->has_events || !r->has_meta)
        TD_TRY(st, td_json_fail(j, j->token_at, err, "not a tandem trace: there is no \"%s\"",
                                r->has_events ? "metadata" : "traceEvents"));
    TD_TRY(st, td_json_next(j, &token,
                            err)); /* nothing behind it, and a gzip check sum that is right */
    const char **extra = TD_NEW(r->arena, const char *, 2 * r->n_extra);
    if (extra == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for the metadata", j->place));
    memcpy(extra, r->extra, sizeof *extra * 2 * (size_t)r->n_extra);
    r->meta->n_extra = r->n_extra;
    r->meta->extra = extra;
done:
    return st;
}

/* From `fd`, or from memory if it is -1. */
static td_status visit_source(td_arena *a, const char *place, int fd, const void *data, size_t size,
                              td_trace_meta *meta, td_event_visit visit, void *self, td_err *err)
{
    td_status st = TD_OK;
    reader *r = malloc(sizeof *r); /* its buffers need no clearing */
    *meta = (td_trace_meta){.backend = "", .plan = "", .profile = "", .trust = "", .version = ""};
    if (r == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to read the trace", place));
    r->arena = a;
    r->visit = visit;
    r->self = self;
    r->meta = meta;
    r->has_meta = r->has_events = false;
    r->n_extra = 0;
    source *s = &r->source;
    s->place = place;
    s->fd = fd;
    s->data = data;
    s->size = size;
    s->sniffed = s->packed = s->member_done = false;
    memset(&s->z, 0, sizeof s->z);
    td_json_start(&r->json, place, source_fill, s);
    st = read_trace(r, err);
    if (s->packed)
        inflateEnd(&s->z);
done:
    free(r);
    return st;
}

td_status td_trace_visit(td_arena *a, const char *path, td_trace_meta *meta, td_event_visit visit,
                         void *self, td_err *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return td_fail(err, TD_FILE, "%s: cannot open the trace: %s", path, strerror(errno));
    const td_status st = visit_source(a, path, fd, NULL, 0, meta, visit, self, err);
    close(fd);
    return st;
}

/* ---- the whole trace in memory ---- */

typedef struct {
    td_arena *arena;
    td_event *events; /* grows by doubling, then moves into the arena */
    size_t n, room;
    const char *
        *texts; /* hash table of the texts seen; names repeat in every step and on every rank */
    size_t n_texts, n_slots;
} loader;

static size_t hash(const char *text)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
    for (; *text != '\0'; text++)
        h = (h ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    return (size_t)(h ^ h >> 32);
}

static const char **find_text(const char **texts, size_t n_slots, const char *text)
{
    size_t i = hash(text) & (n_slots - 1);
    while (texts[i] != NULL && strcmp(texts[i], text) != 0)
        i = (i + 1) & (n_slots - 1);
    return &texts[i];
}

/* The table stays at most half full. */
static bool grow_texts(loader *l)
{
    const size_t n_slots = l->n_slots == 0 ? 256 : l->n_slots * 2;
    if (2 * (l->n_texts + 1) <= l->n_slots)
        return true;
    const char **texts = calloc(n_slots, sizeof *texts);
    if (texts == NULL)
        return false;
    for (size_t i = 0; i < l->n_slots; i++)
        if (l->texts[i] != NULL)
            *find_text(texts, n_slots, l->texts[i]) = l->texts[i];
    free(l->texts);
    l->texts = texts;
    l->n_slots = n_slots;
    return true;
}

/* The arena's one copy of a text, NULL without memory. */
static const char *intern(loader *l, const char *text)
{
    if (!grow_texts(l))
        return NULL;
    const char **place = find_text(l->texts, l->n_slots, text);
    if (*place == NULL) {
        *place = td_arena_printf(l->arena, "%s", text);
        l->n_texts += *place != NULL;
    }
    return *place;
}

/* td_event_visit */
static td_status load_event(void *self, const td_event *e, td_err *err)
{
    td_status st = TD_OK;
    loader *l = self;
    if (l->n == l->room) {
        const size_t room = l->room == 0 ? 1024 : l->room * 2;
        td_event *events = realloc(l->events, room * sizeof *events);
        if (events == NULL)
            TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for more than %zu events", l->n));
        l->events = events;
        l->room = room;
    }
    td_event *own = &l->events[l->n];
    *own = *e;
    own->kind = intern(l, e->kind);
    own->module = intern(l, e->module);
    own->name = intern(l, e->name);
    if (own->kind == NULL || own->module == NULL || own->name == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "no memory for the texts of %zu events", l->n));
    l->n++;
done:
    return st;
}

static td_status load_source(td_arena *a, const char *place, int fd, const void *data, size_t size,
                             const td_trace **out, td_err *err)
{
    td_status st = TD_OK;
    loader l = {.arena = a};
    td_trace *t = TD_NEW(a, td_trace, 1);
    if (t == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory to read the trace", place));
    TD_TRY(st, visit_source(a, place, fd, data, size, &t->meta, load_event, &l, err));
    td_event *events = TD_NEW(a, td_event, l.n);
    if (events == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for %zu events", place, l.n));
    if (l.n > 0)
        memcpy(events, l.events, l.n * sizeof *events);
    t->events = events;
    t->n_events = (int64_t)l.n;
    *out = t;
done:
    free(l.events);
    free(l.texts);
    return st;
}

td_status td_trace_load(td_arena *a, const char *path, const td_trace **out, td_err *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return td_fail(err, TD_FILE, "%s: cannot open the trace: %s", path, strerror(errno));
    const td_status st = load_source(a, path, fd, NULL, 0, out, err);
    close(fd);
    return st;
}

td_status td_trace_parse(td_arena *a, const void *data, size_t size, const td_trace **out,
                         td_err *err)
{
    return load_source(a, "trace", -1, data, size, out, err);
}
