/*
 * Builds the tree from libfyaml's events. The event parser is used, not its documents, because its
 * depth, its memory and its aliases can be bounded while they come in. What its scanner gathers
 * before the first event is bounded beforehand.
 */
#include "model/yaml.h"

#include "model/text.h"

#include <errno.h>
#include <libfyaml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TAG = 256, MAX_SCALAR = 65536 };

typedef struct {
    td_arena *arena;
    const char *file;
    td_diags *diags;
    td_yaml *root;
    td_yaml *open[TD_YAML_MAX_DEPTH]; /* from the root to where the next node goes */
    td_yaml *last[TD_YAML_MAX_DEPTH]; /* the youngest child of each */
    int32_t n_open, n_nodes, n_anchors;
    struct {
        const char *name;
        const td_yaml *node;
    } anchors[TD_YAML_MAX_ANCHORS];
    int32_t line, column; /* of the last event that had a place */
} builder;

const td_yaml *td_yaml_value(const td_yaml *node)
{
    return node->kind == TD_YAML_ALIAS ? node->aliased : node;
}

static td_pos here(const builder *b)
{
    return (td_pos){.file = b->file, .line = b->line, .column = b->column};
}

/* One sentence about why the file cannot be used; always TD_FILE. */
static td_status refuse(td_diags *diags, td_pos at, const char *sentence)
{
    td_diag_error(diags, at, "", "unreadable", "%s", sentence);
    return TD_FILE;
}

/* Text of a token in the arena; NULL without memory. */
static const char *token_text(builder *b, struct fy_token *token, size_t *size)
{
    const char *text = token == NULL ? "" : fy_token_get_text(token, size);
    if (token == NULL)
        *size = 0;
    char *copy = text == NULL ? NULL : td_arena_alloc(b->arena, *size + 1, 1);
    if (copy != NULL)
        memcpy(copy, text, *size);
    return copy;
}

/* ---- nodes ---- */

static td_status count_into_parent(builder *b, const td_yaml *node)
{
    if (b->n_open == 0)
        return TD_OK;
    td_yaml *parent = b->open[b->n_open - 1];
    parent->weight += node->weight;
    if (parent->depth <= node->depth)
        parent->depth = node->depth + 1;
    if (parent->weight > TD_YAML_MAX_NODES)
        return refuse(b->diags, here(b),
                      "aliases make this more than 131072 nodes when written out");
    return TD_OK;
}

static td_status add_node(builder *b, td_yaml_kind kind, td_yaml **out)
{
    if (++b->n_nodes > TD_YAML_MAX_NODES)
        return refuse(b->diags, here(b), "more than 131072 nodes; that is no plan");
    td_yaml *node = TD_NEW(b->arena, td_yaml, 1);
    if (node == NULL)
        return TD_NOMEM;
    *node = (td_yaml){.kind = kind, .at = here(b), .text = "", .depth = 1, .weight = 1};
    if (b->n_open == 0) {
        b->root = node;
    } else {
        const int32_t top = b->n_open - 1;
        if (b->last[top] == NULL)
            b->open[top]->first = node;
        else
            b->last[top]->next = node;
        b->last[top] = node;
        b->open[top]->n++;
    }
    *out = node;
    return TD_OK;
}

static td_status add_anchor(builder *b, struct fy_token *token, const td_yaml *node)
{
    if (token == NULL)
        return TD_OK;
    if (b->n_anchors == TD_YAML_MAX_ANCHORS)
        return refuse(b->diags, here(b), "more than 256 anchors");
    size_t size;
    const char *name = token_text(b, token, &size);
    if (name == NULL)
        return TD_NOMEM;
    b->anchors[b->n_anchors].name = name;
    b->anchors[b->n_anchors++].node = node;
    return TD_OK;
}

static td_status check_tag(builder *b, struct fy_token *tag)
{
    return tag == NULL ? TD_OK
                       : refuse(b->diags, here(b), "a tag (`!...`); expected a value without one");
}

static td_status on_scalar(builder *b, struct fy_event_scalar_data *e)
{
    td_status st = TD_OK;
    td_yaml *node = NULL;
    size_t size;
    const struct fy_mark *start = fy_token_start_mark(e->value), *end = fy_token_end_mark(e->value);
    TD_TRY(st, check_tag(b, e->tag));
    if (start != NULL && end != NULL && end->input_pos - start->input_pos > MAX_SCALAR)
        TD_TRY(st, refuse(b->diags, here(b), "text of more than 65536 bytes"));
    TD_TRY(st, add_node(b, TD_YAML_SCALAR, &node));
    TD_TRY(st, add_anchor(b, e->anchor, node));
    node->plain = fy_token_scalar_style(e->value) == FYSS_PLAIN;
    node->text = token_text(b, e->value, &size);
    if (node->text == NULL)
        TD_TRY(st, TD_NOMEM);
    if (strlen(node->text) != size)
        TD_TRY(st, refuse(b->diags, here(b), "text with a NUL character in it"));
    TD_TRY(st, count_into_parent(b, node));
done:
    return st;
}

static td_status on_alias(builder *b, struct fy_token *token)
{
    td_status st = TD_OK;
    td_yaml *node = NULL;
    size_t size;
    const char *name = token_text(b, token, &size);
    if (name == NULL)
        return TD_NOMEM;
    int32_t i = b->n_anchors - 1; /* the youngest of the name counts */
    while (i >= 0 && strcmp(b->anchors[i].name, name) != 0)
        i--;
    char text[160];
    snprintf(text, sizeof text, "alias `*%.80s` has no anchor before it",
             td_text_show(b->arena, name, size));
    if (i < 0)
        TD_TRY(st, refuse(b->diags, here(b), text));
    const td_yaml *aliased = b->anchors[i].node;
    for (int32_t k = 0; k < b->n_open; k++) {
        if (b->open[k] == aliased)
            TD_TRY(st, refuse(b->diags, here(b), "an alias of what it stands in: it never ends"));
    }
    if (b->n_open + aliased->depth > TD_YAML_MAX_DEPTH)
        TD_TRY(st,
               refuse(b->diags, here(b), "nested more than 32 deep when aliases are written out"));
    TD_TRY(st, add_node(b, TD_YAML_ALIAS, &node));
    node->aliased = aliased;
    node->weight = aliased->weight;
    node->depth = aliased->depth;
    TD_TRY(st, count_into_parent(b, node));
done:
    return st;
}

static td_status on_open(builder *b, td_yaml_kind kind, struct fy_token *anchor,
                         struct fy_token *tag)
{
    td_status st = TD_OK;
    td_yaml *node = NULL;
    TD_TRY(st, check_tag(b, tag));
    if (b->n_open == TD_YAML_MAX_DEPTH)
        TD_TRY(st, refuse(b->diags, here(b), "nested more than 32 deep"));
    TD_TRY(st, add_node(b, kind, &node));
    TD_TRY(st, add_anchor(b, anchor, node));
    b->open[b->n_open] = node;
    b->last[b->n_open++] = NULL;
done:
    return st;
}

static td_status on_close(builder *b)
{
    td_yaml *node = b->open[--b->n_open];
    if (node->kind == TD_YAML_MAPPING)
        node->n /= 2;
    return count_into_parent(b, node);
}

/* ---- events ---- */

/* libfyaml counts from 0 and puts quoted text and aliases behind their first character. */
static void keep_place(builder *b, struct fy_event *e)
{
    const struct fy_mark *mark = fy_event_start_mark(e);
    if (mark == NULL || mark->line < 0)
        return;
    enum fy_scalar_style style =
        e->type == FYET_SCALAR ? fy_token_scalar_style(e->scalar.value) : FYSS_PLAIN;
    const bool behind =
        e->type == FYET_ALIAS || style == FYSS_SINGLE_QUOTED || style == FYSS_DOUBLE_QUOTED;
    b->line = mark->line + 1;
    b->column = mark->column + (behind ? 0 : 1);
    if (b->column < 1)
        b->column = 1;
}

static td_status on_event(builder *b, struct fy_event *e)
{
    keep_place(b, e);
    switch (e->type) {
    case FYET_SCALAR:
        return on_scalar(b, &e->scalar);
    case FYET_ALIAS:
        return on_alias(b, e->alias.anchor);
    case FYET_SEQUENCE_START:
        return on_open(b, TD_YAML_SEQUENCE, e->sequence_start.anchor, e->sequence_start.tag);
    case FYET_MAPPING_START:
        return on_open(b, TD_YAML_MAPPING, e->mapping_start.anchor, e->mapping_start.tag);
    case FYET_SEQUENCE_END:
    case FYET_MAPPING_END:
        return on_close(b);
    case FYET_DOCUMENT_START:
        return b->root == NULL
                   ? TD_OK
                   : refuse(b->diags, here(b), "a second document; expected one in the file");
    case FYET_NONE:
    case FYET_STREAM_START:
    case FYET_STREAM_END:
    case FYET_DOCUMENT_END:
        break;
    }
    return TD_OK;
}

static void discard(struct fy_diag *diag, void *user, const char *text, size_t size)
{
    (void)diag, (void)user, (void)text, (void)size;
}

/* What libfyaml found wrong, as ours; its lines and columns count from 1 here. */
static td_status refuse_syntax(builder *b, struct fy_diag *fy)
{
    void *at = NULL;
    const struct fy_diag_error *e = fy_diag_errors_iterate(fy, &at);
    if (e == NULL || e->msg == NULL)
        return refuse(b->diags, here(b), "not YAML 1.2");
    const td_pos pos = {.file = b->file,
                        .line = e->line > 0 ? e->line : b->line,
                        .column = e->column > 0 ? e->column : 1};
    td_diag_error(b->diags, pos, "", "unreadable", "not YAML: %s",
                  td_text_show(b->arena, e->msg, strlen(e->msg)));
    return TD_FILE;
}

static td_status run(builder *b, const char *text, size_t size)
{
    td_status st = TD_OK;
    struct fy_parser *parser = NULL;
    bool ended = false;
    struct fy_diag_cfg quiet;
    fy_diag_cfg_default(&quiet);
    quiet.fp = NULL;
    quiet.output_fn = discard;
    quiet.colorize = false;
    struct fy_diag *fy = fy_diag_create(&quiet);
    if (fy == NULL)
        TD_TRY(st, TD_NOMEM);
    fy_diag_set_collect_errors(fy, true);
    const struct fy_parse_cfg cfg = {.flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG | FYPCF_JSON_NONE,
                                     .diag = fy};
    parser = fy_parser_create(&cfg);
    if (parser == NULL || fy_parser_set_string(parser, text, size) != 0)
        TD_TRY(st, TD_NOMEM);
    for (struct fy_event *e; st == TD_OK && (e = fy_parser_parse(parser)) != NULL;) {
        ended = e->type == FYET_STREAM_END;
        st = on_event(b, e);
        fy_parser_event_free(parser, e);
    }
    if (st == TD_OK && !ended)
        st = refuse_syntax(b, fy);
done:
    fy_parser_destroy(parser);
    fy_diag_destroy(fy);
    return st;
}

/* ---- before the parser ---- */

/* Bytes of the UTF-8 character at `s`, 0 if there is none (RFC 3629: no surrogates, nothing longer
 * than needed). */
static size_t utf8_length(const unsigned char *s, size_t left)
{
    static const struct {
        unsigned char first, last, second_from, second_to, length;
    } rows[] = {
        {0x00, 0x7F, 0, 0, 1},       {0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3},
        {0xE1, 0xEC, 0x80, 0xBF, 3}, {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3},
        {0xF0, 0xF0, 0x90, 0xBF, 4}, {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (s[0] < rows[i].first || s[0] > rows[i].last)
            continue;
        if (rows[i].length > left)
            return 0;
        if (rows[i].length > 1 && (s[1] < rows[i].second_from || s[1] > rows[i].second_to))
            return 0;
        for (size_t k = 2; k < rows[i].length; k++)
            if ((s[k] & 0xC0) != 0x80)
                return 0;
        return rows[i].length;
    }
    return 0;
}

static bool is_blank(unsigned char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The only directive that a plan may have, once: it says what is so anyway. */
static bool is_version(const char *text, size_t left)
{
    static const char version[] = "%YAML 1.2";
    const size_t n = sizeof version - 1;
    return left > n && memcmp(text, version, n) == 0 && is_blank((unsigned char)text[n]);
}

/*
 * What must not reach the scanner. It keeps every token of a line (any of them may turn out to be
 * in a key), some 400 bytes each, before it hands out the first; each needs one of `marks`, so
 * their number bounds its memory. Its time grows with the square of the length of a tag, and it
 * does not come back from a directive with bad UTF-8.
 */
static td_status prescan(builder *b, const char *text, size_t size)
{
    static const char marks[] = "[]{},:?&*!\"'", before_tag[] = " \t\r\n[{,";
    bool mark[256] = {false}, opens[256] = {false};
    for (const char *c = marks; *c != '\0'; c++)
        mark[(unsigned char)*c] = true;
    for (const char *c = before_tag; *c != '\0'; c++)
        opens[(unsigned char)*c] = true;
    int32_t n_marks = 0, n_directives = 0, tag = 0; /* length of the tag so far, 0 outside */
    unsigned char previous = '\n';
    b->line = b->column = 1;
    for (size_t i = 0, length; i < size; i += length, b->column++) {
        const unsigned char c = (unsigned char)text[i];
        length = utf8_length((const unsigned char *)text + i, size - i);
        n_marks += mark[c];
        tag = is_blank(c) ? 0 : tag + (tag > 0 || (c == '!' && opens[previous]));
        if (length == 0)
            return refuse(b->diags, here(b), "a byte that is not UTF-8; expected text");
        if ((c < ' ' && !is_blank(c)) || c == 0x7F)
            return refuse(b->diags, here(b),
                          c == 0 ? "a NUL byte: this is a binary file; expected text"
                                 : "a control character; expected text");
        if (n_marks > TD_YAML_MAX_NODES)
            return refuse(b->diags, here(b),
                          "more than 131072 of the characters []{},:?&*!\"'; that is no plan");
        if (c == '%' && b->column == 1 && (!is_version(text + i, size - i) || ++n_directives > 1))
            return refuse(b->diags, here(b), "a directive other than one `%YAML 1.2`");
        if (tag > MAX_TAG)
            return refuse(b->diags, here(b), "a tag of more than 256 characters");
        if (c == '\n' || (c == '\r' && (i + 1 == size || text[i + 1] != '\n'))) {
            b->line++;
            b->column = 0;
        }
        previous = c;
    }
    b->line = b->column = 1;
    return TD_OK;
}

td_status td_yaml_parse(td_arena *a, const char *file, const char *text, size_t size,
                        td_diags *diags, const td_yaml **root)
{
    td_status st = TD_OK;
    builder b = {.arena = a, .file = file, .diags = diags};
    const td_pos whole = {.file = file};
    if (size > TD_YAML_MAX_BYTES)
        TD_TRY(st, refuse(diags, whole, "larger than 16 MiB; that is no plan"));
    if (size == 0)
        TD_TRY(st, refuse(diags, whole, "the file is empty; expected YAML or JSON"));
    const size_t mark = size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0; /* byte order */
    TD_TRY(st, prescan(&b, text + mark, size - mark));
    TD_TRY(st, run(&b, text + mark, size - mark));
    if (b.root == NULL)
        TD_TRY(st, refuse(diags, whole,
                          "nothing in the file but comments and blanks; expected YAML or JSON"));
    *root = b.root;
done:
    return st;
}

td_status td_yaml_load(td_arena *a, const char *path, td_diags *diags, const td_yaml **root)
{
    td_status st = TD_OK;
    const td_pos whole = {.file = path};
    char *text = NULL;
    size_t size = 0, room = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        td_diag_error(diags, whole, "", "unreadable", "cannot open it: %s", strerror(errno));
        TD_TRY(st, TD_FILE);
    }
    for (size_t got = 1; got > 0 && size <= TD_YAML_MAX_BYTES; size += got) {
        if (size == room) {
            room = room == 0 ? 1 << 16 : 2 * room;
            char *more = realloc(text, room);
            if (more == NULL)
                TD_TRY(st, TD_NOMEM);
            text = more;
        }
        got = fread(text + size, 1, room - size, file);
    }
    if (ferror(file)) {
        td_diag_error(diags, whole, "", "unreadable", "cannot read it: %s", strerror(errno));
        TD_TRY(st, TD_FILE);
    }
    TD_TRY(st, td_yaml_parse(a, path, text, size, diags, root));
done:
    if (file != NULL)
        fclose(file);
    free(text);
    return st;
}
