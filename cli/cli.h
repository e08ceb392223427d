/* The command line: a table of commands, each with a table of options. */
#ifndef TANDEM_CLI_CLI_H
#define TANDEM_CLI_CLI_H

#include "model/diag.h"
#include "model/plan.h"
#include "model/status.h"

#include <stdbool.h>
#include <stdint.h>

/* What the shell sees. */
enum {
    TD_EXIT_DONE = 0,
    TD_EXIT_NO = 1,
    TD_EXIT_USAGE = 2,
    TD_EXIT_FILE = 3,
    TD_EXIT_ABSENT = 4,
    TD_EXIT_RUN = 5
};

typedef struct {
    const char *name;  /* `--json`; an argument that is not an option has none */
    const char *value; /* placeholder of the value in help, NULL for a switch */
    const char *help;
    bool *on;          /* a switch */
    const char **text; /* a value, or a positional argument */
    bool required;     /* positional only */
} td_option;

typedef struct {
    const char *name, *usage, *summary;
    const char *example; /* a real one; the last line of --help */
    int (*run)(int argc, char **argv);
} td_command;

extern const td_command td_command_check, td_command_show, td_command_predict, td_command_run,
    td_command_compare, td_command_calibrate, td_command_list;
extern const td_command *const td_commands[]; /* ends with NULL */

/*
 * Reads argv[1..] by a table that ends with a row without help. Returns TD_EXIT_DONE to go on, else
 * the exit code after having said why (or having printed help: then *helped is true and the code is
 * 0).
 */
int td_options_read(const td_command *c, const td_option *options, int argc, char **argv,
                    bool *helped);

/* Prints `tandem: text` on stderr and returns the exit code of a status. */
int td_exit(td_status st, const td_err *err);

/* Runs the command line. */
int td_main(int argc, char **argv);

/*
 * Loads a plan for a command that needs a valid one: prints its errors and warnings on stderr.
 * TD_PLAN or TD_FILE with `err` left empty when everything has been said already.
 */
td_status td_cli_load(td_arena *a, const char *path, td_diags *diags, const td_plan **out,
                      td_err *err);

/* `12.3 ms`, `456 µs`, `1.20 s`; `12.34 GiB`, `56 MiB`. Written to `text`, which is returned. */
const char *td_text_seconds(double s, char *text, int size);
const char *td_text_bytes(double bytes, char *text, int size);

#endif
