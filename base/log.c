/* One line a call: formatted into a buffer and written with a single write(2), so lines of threads never mix. */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static _Atomic int current_level = LK_LOG_INFO;

static const char *const level_words[] = {"error", "warn", "info", "debug"};

void lk_log_set_level(lk_log_level level) { atomic_store(&current_level, (int)level); }

int lk_log_parse_level(const char *word, lk_log_level *level)
{
    for (int i = 0; i < 4; i++) {
        if (!strcmp(word, level_words[i])) {
            *level = (lk_log_level)i;
            return 0;
        }
    }
    return -1;
}

void lk_log(lk_log_level level, const char *format, ...)
{
    if ((int)level > atomic_load(&current_level)) return;
    char line[2048];
    /* Ordinary news carries no tag: it is what the user asked to see. */
    int n = level == LK_LOG_INFO ? 0 : snprintf(line, sizeof line, "%s: ", level_words[level]);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
    va_end(args);
    size_t length = strnlen(line, sizeof line - 2);
    (void)m;
    line[length++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, length);
    (void)written; /* nowhere left to report to */
}
