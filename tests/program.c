#include "tests/program.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "tests/check.h"

static check_run run_line(const char *arguments)
{
    char out[] = "/tmp/lk-test-out-XXXXXX", err[] = "/tmp/lk-test-err-XXXXXX";
    int fd = mkstemp(out);
    if (fd >= 0) close(fd);
    fd = mkstemp(err);
    if (fd >= 0) close(fd);
    const char *folder = check_build_folder();
    size_t size = strlen(arguments) + strlen(folder) + 300;
    char *line = malloc(size);
    assert_non_null(line);
    snprintf(line, size, "%s/lorikeet %s >%s 2>%s </dev/null", folder, arguments, out, err);
    int status = system(line);
    check_run r = {.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)};
    size_t n;
    lk_error error = {0};
    CHECK_OK(lk_file_read(out, 64 << 20, &r.out, &n, &error), &error);
    CHECK_OK(lk_file_read(err, 64 << 20, &r.err, &n, &error), &error);
    unlink(out);
    unlink(err);
    free(line);
    return r;
}

static char *format_line(const char *format, va_list args)
{
    char *line = malloc(1 << 16);
    assert_non_null(line);
    int n = vsnprintf(line, 1 << 16, format, args);
    assert_true(n > 0 && n < 1 << 16);
    return line;
}

check_run check_program(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *line = format_line(format, args);
    va_end(args);
    check_run r = run_line(line);
    free(line);
    return r;
}

void check_run_free(check_run *r)
{
    free(r->out);
    free(r->err);
    memset(r, 0, sizeof *r);
}

void check_program_says(int code, const char *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *line = format_line(format, args);
    va_end(args);
    check_run r = run_line(line);
    if (r.code != code || (text && !strstr(r.out, text) && !strstr(r.err, text)))
        fail_msg("lorikeet %s\n gave %d, wanted %d with '%s'\n stdout: %.1500s\n stderr: %.1500s", line, r.code, code, text ? text : "",
                 r.out, r.err);
    free(line);
    check_run_free(&r);
}
