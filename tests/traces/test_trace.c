/* Laws of trace files: what is written is read back exactly, and nothing broken is read. */
#include "traces/json_pull.h"
#include "traces/trace.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

static td_arena *arena;
static char folder[] = "/tmp/tandem-trace-XXXXXX", path[256];

static void set_up(void)
{
    arena = td_arena_new();
    cr_assert_not_null(mkdtemp(folder));
}

static int files_in_folder(void)
{
    DIR *dir = opendir(folder);
    int n = 0;
    for (const struct dirent *d; (d = readdir(dir)) != NULL;)
        n += d->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void tear_down(void)
{
    DIR *dir = opendir(folder);
    for (const struct dirent *d; (d = readdir(dir)) != NULL;) {
        char file[512];
        snprintf(file, sizeof file, "%s/%s", folder, d->d_name);
        if (d->d_name[0] != '.')
            unlink(file);
    }
    closedir(dir);
    rmdir(folder);
    td_arena_free(arena);
}

static const char *in_folder(const char *name)
{
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static td_trace_meta some_meta(int32_t world_size, int32_t n_steps)
{
    td_trace_meta m = {.backend = "ideal",
                       .plan = "tiny",
                       .profile = "h200",
                       .trust = "measured",
                       .version = "0.1.0",
                       .clock_error_s = 1.25e-7,
                       .world_size = world_size,
                       .n_steps = n_steps};
    memset(m.digest, 'a', 64);
    return m;
}

/* Unlike each other in every field, and at the ends of every range; a row per lane, so that none
 * overlap. */
static const td_event samples[] = {
    {.rank = 0,
     .lane = TD_LANE_COMPUTE,
     .op = 0,
     .part = -1,
     .stage = 0,
     .mb = 3,
     .start_ns = 1234567,
     .duration_ns = 1,
     .kind = "forward",
     .module = "language",
     .name = "F3"},
    {.rank = 0,
     .lane = TD_LANE_COMPUTE,
     .op = 0,
     .part = 7,
     .stage = 0,
     .mb = 3,
     .start_ns = 1234567,
     .kind = "gemm",
     .module = "language",
     .name = "layer 3 qkv"},
    {.rank = 1,
     .lane = TD_LANE_FWD,
     .step = 4,
     .op = INT32_MAX,
     .part = -1,
     .stage = INT32_MAX,
     .mb = INT32_MAX,
     .start_ns = 0,
     .duration_ns = INT64_MAX,
     .bytes = UINT64_MAX,
     .kind = "send",
     .module = "images",
     .name = "send \"x\\y\""},
    {.rank = 1,
     .lane = TD_LANE_CTRL,
     .op = 2,
     .part = -1,
     .stage = -1,
     .mb = -1,
     .start_ns = INT64_MAX,
     .bytes = 4,
     .kind = "success",
     .module = "",
     .name = "tab\t bell\a größe 語 \xf0\x9f\x98\x80 \x7f"},
};
enum { N_SAMPLES = sizeof samples / sizeof *samples };

static void write_samples(const char *file, const td_trace_meta *meta)
{
    td_trace_writer *w = NULL;
    td_err err = {0};
    cr_assert_eq(td_trace_create(file, meta, &w, &err), TD_OK, "%s", err.text);
    for (int32_t r = 0; r < 2; r++)
        cr_assert_eq(td_trace_rank(w, r, "rank \"r\"", &err), TD_OK, "%s", err.text);
    for (int i = 0; i < N_SAMPLES; i++)
        cr_assert_eq(td_trace_event(w, &samples[i], &err), TD_OK, "%s", err.text);
    cr_assert_eq(td_trace_close(w, &err), TD_OK, "%s", err.text);
}

static void assert_same_event(const td_event *a, const td_event *b)
{
    cr_assert(a->rank == b->rank && a->lane == b->lane && a->step == b->step && a->op == b->op &&
              a->part == b->part);
    cr_assert(a->stage == b->stage && a->mb == b->mb && a->bytes == b->bytes);
    cr_assert(a->start_ns == b->start_ns && a->duration_ns == b->duration_ns,
              "%" PRId64 " + %" PRId64 ", %" PRId64 " + %" PRId64, a->start_ns, a->duration_ns,
              b->start_ns, b->duration_ns);
    cr_assert_str_eq(a->kind, b->kind);
    cr_assert_str_eq(a->module, b->module);
    cr_assert_str_eq(a->name, b->name);
}

/* A whole file in the arena. */
static unsigned char *slurp(const char *file, size_t *size)
{
    FILE *in = fopen(file, "rb");
    cr_assert_not_null(in, "%s", file);
    unsigned char *data = td_arena_alloc(arena, 1 << 20, 1);
    *size = fread(data, 1, 1 << 20, in);
    cr_assert_lt(*size, 1 << 20);
    fclose(in);
    return data;
}

static void spill(const char *file, const void *data, size_t size)
{
    FILE *out = fopen(file, "wb");
    cr_assert_not_null(out, "%s", file);
    cr_assert_eq(fwrite(data, 1, size, out), size);
    cr_assert_eq(fclose(out), 0);
}

static const td_trace *parse(const char *text)
{
    const td_trace *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_trace_parse(arena, text, strlen(text), &t, &err), TD_OK, "%s\n%s", err.text,
                 text);
    return t;
}

struct text {
    char text[64];
};

TestSuite(trace, .init = set_up, .fini = tear_down);

/* ---- writing and reading back ---- */

#define FILES(suite, test)                                                                         \
    ParameterizedTestParameters(suite, test)                                                       \
    {                                                                                              \
        static struct text table[] = {{"t.json"}, {"t.json.gz"}};                                  \
        return cr_make_param_array(struct text, table, 2);                                         \
    }                                                                                              \
    ParameterizedTest(struct text *file, suite, test)

FILES(trace, is_read_back_as_it_was_written)
{
    const char *const extra[] = {"nccl", "2.27.3", "driver \"x\"", "", "\xc3\xa4", "\n"};
    td_trace_meta m = some_meta(2, 5);
    const td_trace *t;
    td_err err = {0};
    m.n_extra = 3;
    m.extra = extra;
    write_samples(in_folder(file->text), &m);
    cr_assert_eq(td_trace_load(arena, path, &t, &err), TD_OK, "%s", err.text);
    cr_assert_eq(t->n_events, N_SAMPLES);
    for (int i = 0; i < N_SAMPLES; i++)
        assert_same_event(&t->events[i], &samples[i]);
    cr_assert_str_eq(t->meta.digest, m.digest);
    cr_assert_str_eq(t->meta.backend, m.backend);
    cr_assert_str_eq(t->meta.plan, m.plan);
    cr_assert_str_eq(t->meta.profile, m.profile);
    cr_assert_str_eq(t->meta.trust, m.trust);
    cr_assert_str_eq(t->meta.version, m.version);
    cr_assert_eq(t->meta.clock_error_s, m.clock_error_s);
    cr_assert_eq(t->meta.world_size, 2);
    cr_assert_eq(t->meta.n_steps, 5);
    cr_assert_eq(t->meta.n_extra, 3);
    for (int i = 0; i < 6; i++)
        cr_assert_str_eq(t->meta.extra[i], extra[i]);
}

FILES(trace, of_the_same_events_is_the_same_bytes)
{
    const td_trace_meta m = some_meta(2, 5);
    size_t n_a, n_b;
    write_samples(in_folder(file->text), &m);
    const unsigned char *a = slurp(path, &n_a);
    sleep(1); /* a time stamp in the file would differ now */
    write_samples(path, &m);
    const unsigned char *b = slurp(path, &n_b);
    cr_assert_eq(n_a, n_b);
    cr_assert_eq(memcmp(a, b, n_a), 0);
    cr_assert_eq(a[0], strstr(path, ".gz") == NULL ? '{' : 0x1f);
}

FILES(trace, appears_only_when_it_is_whole)
{
    const td_trace_meta m = some_meta(1, 1);
    td_trace_writer *w;
    td_err err = {0};
    cr_assert_eq(td_trace_create(in_folder(file->text), &m, &w, &err), TD_OK);
    cr_assert_neq(access(path, F_OK), 0);
    cr_assert_eq(files_in_folder(), 1);
    td_trace_abandon(w);
    cr_assert_eq(files_in_folder(), 0);
    write_samples(path, &(td_trace_meta){.digest = "d", .world_size = 2, .n_steps = 5});
    cr_assert_eq(files_in_folder(), 1);
    cr_assert_eq(access(path, F_OK), 0);
}

FILES(trace, cut_off_anywhere_is_refused)
{
    const td_trace_meta m = some_meta(2, 5);
    const td_trace *t;
    size_t size;
    write_samples(in_folder(file->text), &m);
    const unsigned char *data = slurp(path, &size);
    const size_t last = data[0] == '{' ? 2 : 1; /* without the last line feed it is whole */
    for (size_t n = 0; n <= size - last; n++) {
        td_err err = {0};
        cr_assert_eq(td_trace_parse(arena, data, n, &t, &err), TD_FILE, "%zu of %zu bytes", n,
                     size);
        cr_assert_neq(err.text[0], '\0');
    }
}

FILES(trace, is_sound_to_an_independent_reader)
{
    const td_trace_meta m = some_meta(2, 5);
    char command[1024];
    write_samples(in_folder(file->text), &m);
    snprintf(command, sizeof command, "python3 '%s/tests/traces/read_trace.py' '%s' >/dev/null",
             TD_SOURCE_DIR, path);
    cr_assert_eq(system(command), 0);
    size_t size;
    char *text = (char *)slurp(path, &size);
    if (text[0] != '{')
        return;
    text[size] = '\0';
    *strstr(text, "1234.567") = '9'; /* the part now lies behind its op, across the lane's end */
    memcpy(strstr(text, "\"ph\":\"X\""), "\"ph\":\"B\"", 8);
    spill(path, text, size);
    snprintf(command, sizeof command, "python3 '%s/tests/traces/read_trace.py' '%s' 2>/dev/null",
             TD_SOURCE_DIR, path);
    const int status = system(command);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 1);
}

Test(trace, keeps_every_nanosecond)
{
    td_trace_meta m = some_meta(1, 1);
    td_trace_writer *w;
    const td_trace *t;
    td_err err = {0};
    uint64_t x = 88172645463325252u; /* xorshift64 (Marsaglia 2003) */
    static int64_t start[4096];
    cr_assert_eq(td_trace_create(in_folder("t.json"), &m, &w, &err), TD_OK);
    cr_assert_eq(td_trace_rank(w, 0, "r", &err), TD_OK);
    for (int32_t i = 0; i < 4096; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        start[i] = (int64_t)(x >> (1 + i % 63));
        const td_event e = {.op = i,
                            .part = -1,
                            .start_ns = start[i],
                            .duration_ns = INT64_MAX - start[i],
                            .kind = "k"};
        cr_assert_eq(td_trace_event(w, &e, &err), TD_OK, "%s", err.text);
    }
    cr_assert_eq(td_trace_close(w, &err), TD_OK);
    cr_assert_eq(td_trace_load(arena, path, &t, &err), TD_OK, "%s", err.text);
    for (int32_t i = 0; i < 4096; i++)
        cr_assert(t->events[i].start_ns == start[i] &&
                  t->events[i].duration_ns == INT64_MAX - start[i]);
}

Test(trace, replaces_bytes_that_are_not_utf8)
{
    td_trace_meta m = some_meta(1, 1);
    td_trace_writer *w;
    const td_trace *t;
    td_err err = {0};
    cr_assert_eq(td_trace_create(in_folder("t.json"), &m, &w, &err), TD_OK);
    cr_assert_eq(td_trace_rank(w, 0, "\xff", &err), TD_OK);
    const td_event e = {.part = -1, .kind = "k", .name = "a\xff\xc3z\xed\xa0\x80 \xf0\x9f\x98"};
    cr_assert_eq(td_trace_event(w, &e, &err), TD_OK);
    cr_assert_eq(td_trace_close(w, &err), TD_OK);
    cr_assert_eq(td_trace_load(arena, path, &t, &err), TD_OK, "%s", err.text);
#define U "\xef\xbf\xbd"
    cr_assert_str_eq(t->events[0].name, "a" U U "z" U U U " " U U U);
#undef U
}

struct bad_event {
    td_event e;
    char says[48];
};

ParameterizedTestParameters(trace, writer_refuses_what_no_trace_can_hold)
{
    static struct bad_event table[] = {
        {{.rank = 2, .part = -1}, "outside the world"},
        {{.rank = -1, .part = -1}, "outside the world"},
        {{.rank = 1, .part = -1}, "no name yet"},
        {{.lane = TD_N_LANES, .part = -1}, "no such lane"},
        {{.lane = -1, .part = -1}, "no such lane"},
        {{.step = 5, .part = -1}, "no such step"},
        {{.op = -1, .part = -1}, "the op is negative"},
        {{.part = -2}, "below -1"},
        {{.part = -1, .mb = -2}, "below -1"},
        {{.part = -1, .start_ns = -1}, "less than 0 ns"},
        {{.part = -1, .duration_ns = -1}, "less than 0 ns"},
        {{.part = -1, .start_ns = 1, .duration_ns = INT64_MAX}, "after the last nanosecond"},
    };
    return cr_make_param_array(struct bad_event, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct bad_event *bad, trace, writer_refuses_what_no_trace_can_hold)
{
    const td_trace_meta m = some_meta(2, 5);
    td_trace_writer *w;
    td_err err = {0}, later = {0};
    td_event e = bad->e;
    e.kind = "forward";
    cr_assert_eq(td_trace_create(in_folder("t.json"), &m, &w, &err), TD_OK);
    cr_assert_eq(td_trace_rank(w, 0, "r", &err), TD_OK);
    cr_assert_eq(td_trace_event(w, &e, &err), TD_USAGE);
    cr_assert_not_null(strstr(err.text, bad->says), "%s", err.text);
    cr_assert_neq(td_trace_close(w, &later), TD_OK, "a broken trace must not be published");
    td_trace_abandon(w);
    cr_assert_eq(files_in_folder(), 0);
}

Test(trace, writer_refuses_metadata_that_could_not_be_read_back)
{
    const char *const twice[] = {"a", "1", "a", "2"}, *const own[] = {"plan", "x"};
    char long_text[6000];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    const char *const lengthy[] = {"a", long_text};
    td_trace_meta bad[9];
    for (int i = 0; i < 9; i++)
        bad[i] = some_meta(2, 5);
    bad[0].n_extra = 2, bad[0].extra = twice;
    bad[1].n_extra = 1, bad[1].extra = own;
    bad[2].clock_error_s = NAN;
    bad[3].world_size = 0;
    bad[4].n_steps = 0;
    bad[5].digest[0] = '\0';
    bad[6].clock_error_s = -1;
    bad[7].n_extra = 1, bad[7].extra = lengthy;
    bad[8].n_extra = TD_TRACE_MAX_EXTRA + 1;
    for (int i = 0; i < 9; i++) {
        td_trace_writer *w = NULL;
        td_err err = {0};
        cr_assert_eq(td_trace_create(in_folder("t.json"), &bad[i], &w, &err), TD_USAGE, "%d", i);
        cr_assert_eq(files_in_folder(), 0);
    }
}

Test(trace, writer_names_the_path_that_it_cannot_write)
{
    const td_trace_meta m = some_meta(1, 1);
    td_trace_writer *w = NULL;
    td_err device = {0}, nowhere = {0};
    cr_assert_eq(td_trace_create("/dev/null", &m, &w, &device), TD_FILE);
    cr_assert_not_null(strstr(device.text, "/dev/null: not a regular file"), "%s", device.text);
    cr_assert_eq(td_trace_create(in_folder("none/t.json"), &m, &w, &nowhere), TD_FILE);
    cr_assert_not_null(strstr(nowhere.text, path), "%s", nowhere.text);
}

/* ---- reading what others wrote ---- */

#define DIGEST "\"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\""
#define META "\"metadata\":{\"program_digest\":" DIGEST ",\"world_size\":2,\"n_steps\":1}"
#define EVENT                                                                                      \
    "{\"ph\":\"X\",\"name\":\"F0\",\"pid\":1,\"tid\":2,\"ts\":1.5,\"dur\":2,\"args\":{\"step\":0," \
    "\"op\":3,"                                                                                    \
    "\"kind\":\"forward\",\"module\":null,\"stage\":null,\"mb\":null,\"bytes\":5}}"

Test(trace, reader_accepts_any_layout_of_the_same_values)
{
    const td_event expected = {.rank = 1,
                               .lane = 2,
                               .op = 3,
                               .part = -1,
                               .stage = -1,
                               .mb = -1,
                               .start_ns = 1500,
                               .duration_ns = 2000,
                               .bytes = 5,
                               .kind = "forward",
                               .module = "",
                               .name = "F0"};
    const char *const texts[] = {
        "{" META ",\"traceEvents\":[" EVENT "]}", "{\"traceEvents\":[" EVENT "]," META "}",
        /* blanks, order, what nobody asked for, escapes, exponents, what may be absent */
        " \t\r\n{ \"otherData\" : [ { } , [ ] , { \"a\" : [ \"\\ud83d\\ude00\" , -0.0e+00 , true , "
        "false , null ] } ] ,\n"
        "\"traceEvents\" : [ { \"args\" : { \"bytes\" : 0.5e1 , \"x\" : { \"op\" : 9 } , \"kind\" "
        ": "
        "\"\\u0066orw\\u0061rd\" , \"op\" : 30e-1 , \"step\" : 0.0 } ,\n \"dur\" : 0.2E1 , \"ts\" "
        ": 15e-1 , \"tid\" : 2 , "
        "\"s\" : [ 1 , { } ] , \"pid\" : 1.000 , \"name\" : \"F\\u0030\" , \"ph\" : \"X\" } ] ,\n "
        "\"metadata\" : { "
        "\"n_steps\" : 1e0 , \"host\" : { \"cores\" : 2 } , \"world_size\" : 2 , "
        "\"program_digest\" : " DIGEST " } } \n",
        /* further than a nanosecond, as sums of doubles are: the nearest one */
        "{" META ",\"traceEvents\":[{\"ph\":\"X\",\"pid\":1,\"tid\":2,\"ts\":1.5000000000000002,"
        "\"dur\":1.9999999999999998,"
        "\"name\":\"F0\",\"args\":{\"step\":0,\"op\":3,\"kind\":\"forward\",\"bytes\":5,\"part\":"
        "null,\"mb\":-1}}]}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const td_trace *t = parse(texts[i]);
        cr_assert_eq(t->n_events, 1);
        assert_same_event(&t->events[0], &expected);
        cr_assert_eq(t->meta.world_size, 2);
        cr_assert_str_eq(t->meta.backend, "");
        cr_assert_eq(t->meta.n_extra, 0);
    }
}

Test(trace, reader_passes_over_events_that_are_not_tandems)
{
    const td_trace *t = parse("{\"traceEvents\":[{\"ph\":\"M\",\"pid\":\"p\",\"name\":7,\"args\":{"
                              "\"name\":\"x\"}},{\"ph\":\"X\",\"args\":[1,[2]]},{},"
                              "{\"ph\":\"B\",\"args\":{\"op\":1}},{\"ph\":\"X\",\"ts\":-1,\"args\":"
                              "{\"op\":null}},{\"ph\":\"X\",\"args\":"
                              "{\"kind\":{\"a\":[{}]}}}," EVENT "]," META "}");
    cr_assert_eq(t->n_events, 1);
    cr_assert_eq(t->events[0].op, 3);
}

struct refused {
    char text[400], says[96];
};

#define WITH(what) "{" META ",\"traceEvents\":[" what "]}"
#define ARGS(what) "{\"ph\":\"X\",\"pid\":0,\"tid\":0,\"ts\":0,\"dur\":0,\"args\":{" what "}}"

ParameterizedTestParameters(trace, reader_refuses_with_place_and_fact)
{
    static struct refused table[] = {
        {"", "byte 0: the text ends here, expected a value"},
        {"hello", "byte 0: found 'h', expected a value"},
        {"\xef\xbb\xbf{}", "byte 0: found byte 0xef"},
        {"[" EVENT "]", "byte 0: not a tandem trace: an array of events"},
        {"7", "byte 0: not a trace: a number"},
        {"{}", "byte 1: not a tandem trace: there is no \"traceEvents\""},
        {"{\"traceEvents\":[]}", "there is no \"metadata\""},
        {"{\"metadata\":{},\"traceEvents\":[]}", "no \"program_digest\""},
        {"{\"metadata\":{\"program_digest\":\"d\"},\"traceEvents\":[]}",
         "byte 12: \"world_size\" is missing"},
        {"{\"metadata\":{\"program_digest\":\"d\",\"world_size\":0}}",
         "\"world_size\" is out of range, expected 1 to"},
        {"{\"metadata\":{\"program_digest\":\"\"}}", "0 characters, expected 1 to 64"},
        {"{\"metadata\":{\"program_digest\":null}}", "\"program_digest\" is null, expected a text"},
        {"{\"metadata\":[]}", "byte 12: \"metadata\" is an array"},
        {"{\"traceEvents\":{}}", "byte 15: \"traceEvents\" is an object"},
        {"{\"traceEvents\":[],\"traceEvents\":[]}", "byte 18: \"traceEvents\" is given twice"},
        {WITH(EVENT) "x", "found 'x', expected the end of the file"},
        {WITH("1"), "an event is a number, expected an object"},
        {WITH(ARGS("\"op\":0,\"kind\":\"k\",\"bytes\":0")), "\"step\" is missing"},
        {WITH(ARGS("\"op\":0,\"step\":0,\"bytes\":0")), "\"kind\" is missing"},
        {WITH(ARGS("\"op\":0,\"step\":0,\"kind\":\"k\"")), "\"bytes\" is missing"},
        {WITH(ARGS("\"op\":0,\"step\":0,\"kind\":7,\"bytes\":0")),
         "\"kind\" is a number, expected a text"},
        {WITH(ARGS("\"op\":\"0\",\"step\":0,\"kind\":\"k\"")),
         "\"op\" is a text, expected a number"},
        {WITH(ARGS("\"op\":0,\"op\":0")), "\"op\" is given twice"},
        {WITH(ARGS("\"op\":0.5,\"step\":0")), "\"op\" is not a whole number"},
        {WITH(ARGS("\"op\":2147483648,\"step\":0")),
         "\"op\" is out of range, expected 0 to 2147483647"},
        {WITH(ARGS("\"op\":-1,\"step\":0")), "\"op\" is out of range"},
        {WITH(ARGS("\"op\":1e400,\"step\":0")), "\"op\" is out of range"},
        {WITH(ARGS("\"op\":0,\"step\":0,\"kind\":\"k\",\"bytes\":18446744073709551616")),
         "\"bytes\" is out of range"},
        {WITH("{\"ph\":\"X\",\"pid\":1048576,\"tid\":0,\"ts\":0,\"dur\":0,\"args\":{\"op\":0,"
              "\"step\":0}}"),
         "\"pid\" is out of range"},
        {WITH("{\"ph\":\"X\",\"pid\":0,\"tid\":6,\"ts\":0,\"dur\":0,\"args\":{\"op\":0,\"step\":0}"
              "}"),
         "\"tid\" is out of range, expected 0 to 5"},
        {WITH("{\"ph\":\"X\",\"pid\":0,\"tid\":0,\"ts\":9223372036854775.808,\"dur\":0,\"args\":{"
              "\"op\":0}}"),
         "\"ts\" is out of range"},
        {WITH("{\"ph\":\"X\",\"pid\":0,\"tid\":0,\"ts\":NaN,"), "found 'N', expected a value"},
        {WITH("{\"ph\":\"X\",,}"), "found ',', expected a key in quotes"},
        {WITH("{\"ph\":\"X\",}"), "found '}', expected a key in quotes"},
        {WITH("{},"), "found ']', expected a value"},
        {WITH("{\"a\" 1}"), "expected ':' after a key"},
        {WITH("{\"a\":01}"), "found '1', expected ',' or '}'"},
        {WITH("{\"a\":1.}"), "expected a digit"},
        {WITH("{\"a\":-}"), "expected a digit"},
        {WITH("{\"a\":1e}"), "expected a digit of the exponent"},
        {WITH("{\"a\":tru}"), "expected true, false or null"},
        {WITH("{\"a\":\"\\x\"}"), "after a backslash"},
        {WITH("{\"a\":\"\\u12g4\"}"), "four hexadecimal digits"},
        {WITH("{\"a\":\"\\ud800\"}"), "second half of a surrogate pair"},
        {WITH("{\"a\":\"\\ud800\\u0041\"}"), "half a surrogate pair"},
        {WITH("{\"a\":\"\\udc00\"}"), "half a surrogate pair"},
        {WITH("{\"a\":\"\n\"}"), "found byte 0x0a, expected the closing quote"},
        {WITH("{\"a\":\"\xc0\x80\"}"), "not valid UTF-8"},
        {WITH("{\"a\":\"\xed\xa0\x80\"}"), "not valid UTF-8"},
        {WITH("{\"name\":\"\\u0000\"}"), "a NUL character in a text"},
    };
    return cr_make_param_array(struct refused, table, sizeof table / sizeof *table);
}

ParameterizedTest(struct refused *r, trace, reader_refuses_with_place_and_fact)
{
    const td_trace *t = NULL;
    td_err err = {0};
    cr_assert_eq(td_trace_parse(arena, r->text, strlen(r->text), &t, &err), TD_FILE, "%s", r->text);
    cr_assert_not_null(strstr(err.text, r->says), "%s\n%s", err.text, r->text);
    cr_assert_null(t, "published although broken");
}

Test(trace, reader_bounds_depth_and_the_texts_that_it_keeps)
{
    const size_t n = 4 << 20;
    char *text = malloc(n + 400);
    const td_trace *t = NULL;
    for (int named = 0; named < 2;
         named++) { /* a text of 4 MiB: read over under a foreign key, refused as a name */
        td_err err = {0};
        int at = sprintf(text, "{" META ",\"traceEvents\":[{\"%s\":\"", named ? "name" : "foreign");
        memset(text + at, 'x', n);
        strcpy(text + at + n, "\"}]}");
        const td_status st = td_trace_parse(arena, text, strlen(text), &t, &err);
        cr_assert_eq(st, named ? TD_FILE : TD_OK, "%s", err.text);
        cr_assert(!named || strstr(err.text, "more than 16384 bytes") != NULL, "%s", err.text);
    }
    td_err err = {0};
    memset(text, '[', n);
    memcpy(text, "{\"a\":", 5);
    cr_assert_eq(td_trace_parse(arena, text, n, &t, &err), TD_FILE);
    cr_assert_not_null(strstr(err.text, "byte 68: more than 64 objects and arrays"), "%s",
                       err.text);
    free(text);
}

static td_status count(void *self, const td_event *e, td_err *err)
{
    (void)e;
    (void)err;
    ++*(int64_t *)self;
    return TD_OK;
}

Test(trace, visit_takes_the_same_memory_for_any_number_of_events)
{
    enum { N = 150000 }; /* 30 MB of text in a few hundred KB of gzip */
    const td_trace_meta m = some_meta(1, 1);
    td_trace_meta read;
    td_trace_writer *w;
    td_err err = {0};
    struct rusage before, after;
    int64_t n = 0;
    cr_assert_eq(td_trace_create(in_folder("t.json.gz"), &m, &w, &err), TD_OK);
    cr_assert_eq(td_trace_rank(w, 0, "r", &err), TD_OK);
    for (int32_t i = 0; i < N; i++) {
        const td_event e = {
            .op = i, .part = -1, .start_ns = i, .duration_ns = 1, .kind = "forward", .name = "F"};
        cr_assert_eq(td_trace_event(w, &e, &err), TD_OK);
    }
    cr_assert_eq(td_trace_close(w, &err), TD_OK);
    getrusage(RUSAGE_SELF, &before);
    cr_assert_eq(td_trace_visit(arena, path, &read, count, &n, &err), TD_OK, "%s", err.text);
    getrusage(RUSAGE_SELF, &after);
    cr_assert_eq(n, N);
    cr_assert_lt(after.ru_maxrss - before.ru_maxrss, 4096, "%ld KiB",
                 after.ru_maxrss - before.ru_maxrss);
    cr_assert_lt(td_arena_used(arena), 4096u);
}

static td_status stop_at_second(void *self, const td_event *e, td_err *err)
{
    return ++*(int *)self == 2 ? td_fail(err, TD_RUN, "enough at op %d", (int)e->op) : TD_OK;
}

Test(trace, visit_stops_where_the_visitor_says)
{
    const td_trace_meta m = some_meta(2, 5);
    td_trace_meta read;
    td_err err = {0};
    int calls = 0;
    write_samples(in_folder("t.json"), &m);
    cr_assert_eq(td_trace_visit(arena, path, &read, stop_at_second, &calls, &err), TD_RUN);
    cr_assert_eq(calls, 2);
    cr_assert_str_eq(err.text, "enough at op 0");
}

Test(trace, reader_takes_several_gzip_members_and_no_garbage_behind_them)
{
    const char *const halves[] = {"{" META ",\"trace", "Events\":[" EVENT "]}"};
    const td_trace *t;
    td_err err = {0};
    in_folder("t.json.gz");
    for (int i = 0; i < 2; i++) {
        gzFile z = gzopen(path, "ab");
        cr_assert_gt(gzputs(z, halves[i]), 0);
        cr_assert_eq(gzclose(z), Z_OK);
    }
    cr_assert_eq(td_trace_load(arena, path, &t, &err), TD_OK, "%s", err.text);
    cr_assert_eq(t->n_events, 1);
    size_t size;
    unsigned char *data = slurp(path, &size);
    data[size] = 'x';
    cr_assert_eq(td_trace_parse(arena, data, size + 1, &t, &err), TD_FILE);
    td_err sum = {0};
    data[size - 5] ^= 1; /* the check sum of the second member */
    cr_assert_eq(td_trace_parse(arena, data, size, &t, &sum), TD_FILE);
    cr_assert_not_null(strstr(sum.text, "broken gzip file"), "%s", sum.text);
}

Test(trace, reader_names_a_file_that_it_cannot_open)
{
    td_trace_meta m;
    const td_trace *t;
    td_err none = {0}, dir = {0};
    int64_t n = 0;
    cr_assert_eq(td_trace_visit(arena, in_folder("none"), &m, count, &n, &none), TD_FILE);
    cr_assert_not_null(strstr(none.text, path), "%s", none.text);
    cr_assert_eq(td_trace_load(arena, folder, &t, &dir), TD_FILE);
    cr_assert_not_null(strstr(dir.text, folder), "%s", dir.text);
}
