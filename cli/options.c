/* Reads options by table, so that every command answers a wrong word with the right ones. */
#include "cli/cli.h"
#include "model/text.h"

#include <stdio.h>
#include <string.h>

static void help(const td_command *c, const td_option *options)
{
    printf("usage: tandem %s %s\n\n%s\n\n", c->name, c->usage, c->summary);
    for (const td_option *o = options; o->help != NULL; o++) {
        char left[48];
        snprintf(left, sizeof left, "%s%s%s", o->name == NULL ? "" : o->name,
                 o->name == NULL || o->value == NULL ? "" : " ", o->value == NULL ? "" : o->value);
        printf("  %-22s %s\n", left, o->help);
    }
    printf("\nexample: %s\n", c->example);
}

static const td_option *named(const td_option *options, const char *word, size_t length)
{
    for (const td_option *o = options; o->help != NULL; o++)
        if (o->name != NULL && strlen(o->name) == length && strncmp(o->name, word, length) == 0)
            return o;
    return NULL;
}

static int unknown(const td_command *c, const td_option *options, const char *word)
{
    fprintf(stderr, "tandem %s: there is no option `%s`; the options are", c->name, word);
    for (const td_option *o = options; o->help != NULL; o++)
        if (o->name != NULL)
            fprintf(stderr, " %s", o->name);
    fprintf(stderr, "\n");
    return TD_EXIT_USAGE;
}

static int usage(const td_command *c, const char *what, const char *word)
{
    fprintf(stderr, "tandem %s: %s%s%s\nusage: tandem %s %s\n", c->name, what,
            word == NULL ? "" : " ", word == NULL ? "" : word, c->name, c->usage);
    return TD_EXIT_USAGE;
}

int td_options_read(const td_command *c, const td_option *options, int argc, char **argv,
                    bool *helped)
{
    const td_option *position = options;
    *helped = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i], *equals = strchr(word, '=');
        const size_t length = equals == NULL ? strlen(word) : (size_t)(equals - word);
        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            help(c, options);
            *helped = true;
            return TD_EXIT_DONE;
        }
        if (word[0] == '-' && word[1] != '\0') {
            const td_option *o = named(options, word, length);
            if (o == NULL)
                return unknown(c, options, word);
            if (o->on != NULL && equals != NULL)
                return usage(c, "takes no value:", o->name);
            if (o->on != NULL)
                *o->on = true;
            else if (equals != NULL)
                *o->text = equals + 1;
            else if (++i < argc)
                *o->text = argv[i];
            else
                return usage(c, "a value is missing after", o->name);
            continue;
        }
        while (position->help != NULL && position->name != NULL)
            position++;
        if (position->help == NULL)
            return usage(c, "one argument too many:", word);
        *position->text = word;
        position++;
    }
    for (const td_option *o = options; o->help != NULL; o++)
        if (o->required && *o->text == NULL)
            return usage(c, "missing", o->value);
    return TD_EXIT_DONE;
}
