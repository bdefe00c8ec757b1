/* Running the built program in tests: its exit code and what it printed. */
#ifndef LK_TESTS_PROGRAM_H
#define LK_TESTS_PROGRAM_H

#include <stddef.h>

typedef struct check_run {
    int code; /* exit code, or 128 + signal */
    char *out, *err;
} check_run;

/* arguments as a shell would take them, e.g. "tokenize %s --text 'a b'". Standard input is empty. */
check_run check_program(const char *format, ...) __attribute__((format(printf, 1, 2)));
void check_run_free(check_run *r);
/* Runs, demands the exit code and (when not NULL) a text in standard output or error. */
void check_program_says(int code, const char *text, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
