/* Command lines: a table of options per command, parsed once, with help made from the same table.
 *
 *     cli_option options[] = {{"--seed", CLI_INT, &seed, "S", "random seed (0)"}, {0}};
 *     int rc = cli_parse(&cli_tokenize, options, &common, argc, argv, positional, 1, 1, &n);
 *
 * An unknown option is refused with the nearest known one. "--name=value" and "--name value" both work; "--" ends the options. */
#ifndef LK_CLI_ARGS_H
#define LK_CLI_ARGS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/tensor.h"

enum { CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 75 }; /* exit codes; 75 is sysexits' "try again" */

typedef enum cli_kind {
    CLI_FLAG,   /* bool, set to true */
    CLI_STRING, /* const char * */
    CLI_INT,    /* int64_t */
    CLI_NUMBER, /* double */
    CLI_BYTES,  /* int64_t: 2G, 512M, 4096 */
    CLI_LIST    /* cli_list: may be given several times */
} cli_kind;

enum { CLI_MAX_LIST = 1024 };
typedef struct cli_list {
    const char *items[CLI_MAX_LIST];
    int n;
} cli_list;

typedef struct cli_option {
    const char *name;
    cli_kind kind;
    void *target;
    const char *value; /* how the value is called in the help; NULL for flags */
    const char *help;
} cli_option;

typedef struct cli_command {
    const char *name;
    const char *arguments; /* "BASE [--adapter PATH]" */
    const char *summary;   /* one line */
    const char *details;   /* more for --help; may be NULL */
    int (*run)(const struct cli_command *self, int argc, char **argv);
} cli_command;

/* What every command takes. */
typedef struct cli_common {
    const char *device;
    int64_t threads;
    const char *log_level;
    const char *dtype; /* compute: "bf16" or "f32" */
} cli_common;

/* Parses argv[1..] into options and the common ones; positional arguments into `positional` (at least min, at most max). Returns -1 to go
 * on, or the exit code to leave with (help was asked for: 0; wrong usage: 2, with the message printed). */
int cli_parse(const cli_command *command, const cli_option *options, cli_common *common, int argc, char **argv, const char **positional,
              int min, int max, int *n);

/* Prints "lorikeet COMMAND: message" on standard error; returns code. */
int cli_fail(const cli_command *command, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The compute type of common, or usage error (returns false). */
bool cli_compute(const cli_command *command, const cli_common *common, lk_dtype *type);
/* How many single-character edits lead from a to b. */
int cli_distance(const char *a, const char *b);

#endif
