/*
 * A YAML 1.2 (and therefore JSON) document as a tree in an arena, with the place of every node.
 * Aliases stay references: nothing is written out, and how much they stand for is bounded while
 * reading, so that a small file cannot grow.
 */
#ifndef TANDEM_MODEL_YAML_H
#define TANDEM_MODEL_YAML_H

#include "model/diag.h"

enum {
    TD_YAML_MAX_BYTES = 16 << 20,
    TD_YAML_MAX_NODES = 1 << 17, /* with every alias written out */
    TD_YAML_MAX_DEPTH = 32,      /* the same */
    TD_YAML_MAX_ANCHORS = 256
};

typedef enum { TD_YAML_SCALAR, TD_YAML_SEQUENCE, TD_YAML_MAPPING, TD_YAML_ALIAS } td_yaml_kind;

typedef struct td_yaml {
    td_yaml_kind kind;
    bool plain; /* scalar without quotes: may be a number, a boolean or nothing at all */
    td_pos at;
    const char *text;             /* scalar: NUL-terminated, holds no NUL, valid UTF-8; else "" */
    int32_t n;                    /* items of a sequence; keys of a mapping */
    int32_t depth;                /* levels below and with this node, aliases written out */
    int64_t weight;               /* nodes below and with this node, aliases written out */
    struct td_yaml *first, *next; /* children; those of a mapping are key, value, key, value, ... */
    const struct td_yaml *aliased; /* alias: the node it stands for, never an alias itself */
} td_yaml;

/* The node itself, or the one that an alias stands for. */
const td_yaml *td_yaml_value(const td_yaml *node);

/*
 * Reads the one document of a text. What is wrong with it goes to `diags` with its place and rule
 * `unreadable`, and the call fails with TD_FILE: empty, binary, not YAML, several documents,
 * explicit tags, beyond the bounds above. `file` must live as long as the arena. Prints nothing.
 */
td_status td_yaml_parse(td_arena *a, const char *file, const char *text, size_t size,
                        td_diags *diags, const td_yaml **root);

/* The same from a file; also TD_FILE when it cannot be read or is larger than TD_YAML_MAX_BYTES. */
td_status td_yaml_load(td_arena *a, const char *path, td_diags *diags, const td_yaml **root);

#endif
