#include "cli/args.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

int cli_fail(const cli_command *command, int code, const char *format, ...)
{
    char text[1500];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "lorikeet %s: %s\n", command->name, text);
    if (code == CLI_USAGE) fprintf(stderr, "Try 'lorikeet %s --help'.\n", command->name);
    return code;
}

int cli_distance(const char *a, const char *b)
{
    enum { MOST = 64 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= MOST || m >= MOST) return MOST;
    int row[MOST];
    for (size_t j = 0; j <= m; j++) row[j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= m; j++) {
            int up = row[j], best = diagonal + (a[i - 1] != b[j - 1]);
            if (up + 1 < best) best = up + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = up;
            row[j] = best;
        }
    }
    return row[m];
}

static void print_option(const cli_option *o)
{
    char left[64];
    snprintf(left, sizeof left, "%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
    printf("  %-28s %s\n", left, o->help);
}

static void print_help(const cli_command *command, const cli_option *options, const cli_option *common)
{
    printf("lorikeet %s - %s\n\nUsage: lorikeet %s %s\n", command->name, command->summary, command->name, command->arguments);
    if (command->details) printf("\n%s\n", command->details);
    printf("\nOptions:\n");
    for (const cli_option *o = options; o->name; o++) print_option(o);
    for (const cli_option *o = common; o->name; o++) print_option(o);
    print_option(&(cli_option){"--help", CLI_FLAG, NULL, NULL, "this text"});
}

static bool parse_bytes(const char *text, int64_t *out)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    double unit = 1;
    if (*end == 'k' || *end == 'K')
        unit = 1024, end++;
    else if (*end == 'm' || *end == 'M')
        unit = 1 << 20, end++;
    else if (*end == 'g' || *end == 'G')
        unit = 1 << 30, end++;
    else if (*end == 't' || *end == 'T')
        unit = 1099511627776.0, end++;
    if (end != text && (!strcmp(end, "iB") || !strcmp(end, "B"))) end += strlen(end);
    if (end == text || *end || errno || !(value >= 0) || value * unit > 9e18) return false;
    *out = (int64_t)(value * unit);
    return true;
}

static int take_value(const cli_command *command, const cli_option *o, const char *value)
{
    char *end;
    errno = 0;
    switch (o->kind) {
    case CLI_FLAG: break;
    case CLI_STRING: *(const char **)o->target = value; break;
    case CLI_INT: {
        long long number = strtoll(value, &end, 10);
        if (errno || end == value || *end) return cli_fail(command, CLI_USAGE, "%s wants a whole number, not '%s'", o->name, value);
        *(int64_t *)o->target = number;
        break;
    }
    case CLI_NUMBER: {
        double number = strtod(value, &end);
        if (errno || end == value || *end) return cli_fail(command, CLI_USAGE, "%s wants a number, not '%s'", o->name, value);
        *(double *)o->target = number;
        break;
    }
    case CLI_BYTES:
        if (!parse_bytes(value, o->target))
            return cli_fail(command, CLI_USAGE, "%s wants a size like 2G or 512M, not '%s'", o->name, value);
        break;
    case CLI_LIST: {
        cli_list *list = o->target;
        if (list->n == CLI_MAX_LIST) return cli_fail(command, CLI_USAGE, "%s is given more than %d times", o->name, CLI_MAX_LIST);
        list->items[list->n++] = value;
        break;
    }
    }
    return -1;
}

static const cli_option *find(const cli_option *options, const char *name, size_t length)
{
    for (const cli_option *o = options; o->name; o++)
        if (strlen(o->name) == length && !strncmp(o->name, name, length)) return o;
    return NULL;
}

static int unknown(const cli_command *command, const cli_option *options, const cli_option *common, const char *argument)
{
    const char *nearest = NULL;
    int best = 4;
    for (int table = 0; table < 2; table++) {
        for (const cli_option *o = table ? common : options; o->name; o++) {
            int d = cli_distance(argument, o->name);
            if (d < best) best = d, nearest = o->name;
        }
    }
    return cli_fail(command, CLI_USAGE, nearest ? "unknown option %s; did you mean %s?" : "unknown option %s", argument, nearest);
}

int cli_parse(const cli_command *command, const cli_option *options, cli_common *common, int argc, char **argv, const char **positional,
              int min, int max, int *n)
{
    *common = (cli_common){.device = "auto", .log_level = "info", .dtype = "bf16"};
    const cli_option shared[] = {
        {"--device", CLI_STRING, &common->device, "cpu|cuda|cuda:N|auto", "where to compute (auto: a GPU if there is one)"},
        {"--threads", CLI_INT, &common->threads, "N", "CPU threads (all)"},
        {"--dtype", CLI_STRING, &common->dtype, "bf16|f32", "type of the factors in products (bf16)"},
        {"--log-level", CLI_STRING, &common->log_level, "L", "error, warn, info or debug (info)"},
        {0},
    };
    *n = 0;
    bool only_positional = false;
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (!only_positional && !strcmp(argument, "--")) {
            only_positional = true;
            continue;
        }
        if (!only_positional && (!strcmp(argument, "--help") || !strcmp(argument, "-h"))) {
            print_help(command, options, shared);
            return CLI_DONE;
        }
        if (only_positional || argument[0] != '-' || !argument[1]) {
            if (*n == max) return cli_fail(command, CLI_USAGE, "one argument too many: %s", argument);
            positional[(*n)++] = argument;
            continue;
        }
        const char *equals = argument[1] == '-' ? strchr(argument, '=') : NULL;
        size_t length = equals ? (size_t)(equals - argument) : strlen(argument);
        const cli_option *o = find(options, argument, length);
        if (!o) o = find(shared, argument, length);
        if (!o) return unknown(command, options, shared, argument);
        if (o->kind == CLI_FLAG) {
            if (equals) return cli_fail(command, CLI_USAGE, "%s takes no value", o->name);
            *(bool *)o->target = true;
            continue;
        }
        if (!equals && i + 1 == argc) return cli_fail(command, CLI_USAGE, "%s wants a value (%s)", o->name, o->value);
        int rc = take_value(command, o, equals ? equals + 1 : argv[++i]);
        if (rc >= 0) return rc;
    }
    if (*n < min) return cli_fail(command, CLI_USAGE, "usage: lorikeet %s %s", command->name, command->arguments);
    lk_log_level level;
    if (lk_log_parse_level(common->log_level, &level))
        return cli_fail(command, CLI_USAGE, "--log-level is error, warn, info or debug, not '%s'", common->log_level);
    lk_log_set_level(level);
    if (common->threads < 0 || common->threads > 256) return cli_fail(command, CLI_USAGE, "--threads is 1 to 256, or 0 for all");
    return -1;
}

bool cli_compute(const cli_command *command, const cli_common *common, lk_dtype *type)
{
    if (!strcmp(common->dtype, "bf16"))
        *type = LK_BF16;
    else if (!strcmp(common->dtype, "f32"))
        *type = LK_F32;
    else {
        cli_fail(command, CLI_USAGE, "--dtype is bf16 or f32, not '%s'", common->dtype);
        return false;
    }
    return true;
}
