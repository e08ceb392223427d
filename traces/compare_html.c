/* Writes the page: the comparison as JSON, and the median step of both sides as bare numbers. */
#include "traces/compare_json.h"
#include "traces/compare_side.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_RANKS = 64, MOST_OPS = 100000 }; /* of a page that stays quick */

/* Colours of the page, in its order. */
enum { FORWARD, BACKWARD, OPTIMIZER, TRANSFER, SHAPE, COLLECTIVE };

static int group_of(int kind)
{
    static const int groups[TD_N_OPS] = {
        [TD_OP_ZERO_GRADS] = OPTIMIZER, [TD_OP_FORWARD] = FORWARD,      [TD_OP_BACKWARD] = BACKWARD,
        [TD_OP_SEND_SHAPE] = SHAPE,     [TD_OP_RECV_SHAPE] = SHAPE,     [TD_OP_SEND] = TRANSFER,
        [TD_OP_RECV] = TRANSFER,        [TD_OP_GRAD_STATS] = OPTIMIZER, [TD_OP_ADAM] = OPTIMIZER,
        [TD_OP_CAST] = OPTIMIZER};
    return td_op_table[kind].role == TD_ROLE_GROUP ? COLLECTIVE : groups[kind];
}

/* ---- data ---- */

static json_t *words_json(const char *const *words, int n)
{
    json_t *all = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(all, json_string(words[i]));
    return all;
}

/* First start of the median step on any rank: the zero of a side's axis. */
static int64_t zero_of(const td_side *s)
{
    int64_t zero = INT64_MAX;
    for (int64_t i = 0; i < s->n_ops; i++) {
        const int64_t start = td_side_step(s, s->median)[i].start_ns;
        zero = start < zero ? start : zero;
    }
    return zero;
}

static int64_t last_of(const td_side *s)
{
    int64_t last = 0;
    for (int64_t i = 0; i < s->n_ops; i++) {
        const int64_t end = td_side_step(s, s->median)[i].end_ns;
        last = end > last ? end : last;
    }
    return last;
}

/* Start after the start before, wait and work of every op: small numbers. */
static json_t *times_json(const td_side *s, int64_t first, int64_t last)
{
    json_t *all = json_array();
    int64_t before = zero_of(s);
    for (int64_t i = first; i < last; i++) {
        const td_span *span = &td_side_step(s, s->median)[i];
        json_array_append_new(all, json_integer(span->start_ns - before));
        json_array_append_new(all, json_integer(span->begin_ns - span->start_ns));
        json_array_append_new(all, json_integer(span->end_ns - span->begin_ns));
        before = span->start_ns;
    }
    return all;
}

static json_t *rank_json(const td_comparison *c, int32_t rank, int64_t most)
{
    const td_side *p = c->side[TD_PREDICTED];
    const int64_t first = p->first[rank], n = p->first[rank + 1] - first,
                  last = first + (n < most ? n : most);
    json_t *facts = json_array();
    for (int64_t i = first; i < last; i++) {
        const td_side_op *op = &p->ops[i];
        json_array_append_new(facts, json_integer(op->kind));
        json_array_append_new(facts, json_integer(op->lane));
        json_array_append_new(facts, json_integer(op->mb));
        json_array_append_new(facts, json_integer(op->peer));
    }
    return json_pack("{s:i, s:o, s:o, s:o}", "rank", (int)rank, "f", facts, "p",
                     times_json(p, first, last), "m",
                     times_json(c->side[TD_MEASURED], first, last));
}

/* As many ranks, evenly, as the page takes; says in `shown` what it shows. */
static json_t *timeline_json(const td_comparison *c, char *shown, size_t size)
{
    const td_side *p = c->side[TD_PREDICTED], *m = c->side[TD_MEASURED];
    json_t *ranks = json_array();
    int64_t n = p->world_size < MOST_RANKS ? p->world_size : MOST_RANKS, n_ops = 0;
    while (n > 1 && p->n_ops / p->world_size * n > MOST_OPS)
        n--;
    for (int64_t i = 0; i < n; i++) {
        const int32_t rank = n == 1 ? 0 : (int32_t)(i * (p->world_size - 1) / (n - 1));
        json_t *one = rank_json(c, rank, MOST_OPS);
        n_ops += (int64_t)json_array_size(json_object_get(one, "f")) / 4;
        json_array_append_new(ranks, one);
    }
    snprintf(shown, size,
             "Shown: step %d of %d predicted and step %d of %d measured (nearest to the median), "
             "%lld of %d ranks, %lld of %lld ops.",
             (int)p->examined[p->median] + 1, (int)p->n_steps, (int)m->examined[m->median] + 1,
             (int)m->n_steps, (long long)n, (int)p->world_size, (long long)n_ops,
             (long long)p->n_ops);
    return json_pack("{s:o, s:[I, I]}", "ranks", ranks, "span",
                     (json_int_t)(last_of(p) - zero_of(p)), (json_int_t)(last_of(m) - zero_of(m)));
}

static json_t *data_json(const td_comparison *c)
{
    char shown[256];
    json_t *data = json_object(), *causes = json_object(), *groups = json_array();
    const char *kinds[TD_N_OPS], *letters[TD_N_OPS];
    for (int k = 0; k < TD_N_OPS; k++) {
        kinds[k] = td_op_table[k].name;
        letters[k] = td_op_table[k].mnemonic;
        json_array_append_new(groups, json_integer(group_of(k)));
    }
    for (int i = 0; i < TD_N_CAUSES; i++)
        json_object_set_new(causes, td_cause_names[i], json_string(td_cause_words[i]));
    json_object_set_new(data, "comparison", td_comparison_json(c));
    json_object_set_new(data, "timeline", timeline_json(c, shown, sizeof shown));
    json_object_set_new(data, "shown", json_string(shown));
    json_object_set_new(data, "kinds", words_json(kinds, TD_N_OPS));
    json_object_set_new(data, "short", words_json(letters, TD_N_OPS));
    json_object_set_new(data, "groups", groups);
    json_object_set_new(data, "lanes", words_json(td_lane_names, TD_N_LANES));
    json_object_set_new(data, "causes", causes);
    return data;
}

/* ---- the file ---- */

/* A text in the data could end the script: `<` is written as JSON lets it be. */
static int put_data(const char *text, size_t n, void *self)
{
    FILE *out = self;
    for (size_t i = 0; i < n; i++)
        if (text[i] == '<')
            fputs("\\u003c", out);
        else
            fputc(text[i], out);
    return ferror(out) ? -1 : 0;
}

static void put_lines(FILE *out, const char *const *lines)
{
    for (; *lines != NULL; lines++)
        fputs(*lines, out);
}

td_status td_comparison_write_html(const td_comparison *c, const char *path, td_err *err)
{
    td_status st = TD_OK;
    const size_t room = strlen(path) + 32;
    char *temp = malloc(room);
    FILE *out = NULL;
    json_t *data = data_json(c);
    bool there = false;
    if (temp == NULL || data == NULL)
        TD_TRY(st, td_fail(err, TD_NOMEM, "%s: no memory for the page", path));
    snprintf(temp, room, "%s.%ld.tmp", path, (long)getpid());
    out = fopen(temp, "wx");
    if (out == NULL)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot write the page: %s", path, strerror(errno)));
    there = true;
    put_lines(out, td_page_head);
    json_dump_callback(data, put_data, out, JSON_COMPACT);
    put_lines(out, td_page_tail);
    const bool whole = fflush(out) == 0 && !ferror(out);
    if (!whole)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot write the page: %s", path, strerror(errno)));
    if (rename(temp, path) != 0)
        TD_TRY(st, td_fail(err, TD_FILE, "%s: cannot write the page: %s", path, strerror(errno)));
    there = false;
done:
    if (out != NULL)
        fclose(out);
    if (there)
        unlink(temp);
    json_decref(data);
    free(temp);
    return st;
}
