#include "train/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

void lk_progress_begin(lk_progress *p, const char *what, int64_t total, int64_t first, int64_t every, bool quiet)
{
    *p = (lk_progress){
        .what = what, .total = total, .first = first, .every = every > 0 ? every : 1, .quiet = quiet, .began = lk_clock_seconds()};
    p->terminal = !quiet && isatty(STDERR_FILENO);
}

static void time_text(char out[32], double seconds)
{
    int64_t s = (int64_t)(seconds + 0.5);
    if (s >= 3600)
        snprintf(out, 32, "%lld:%02lld:%02lld", (long long)(s / 3600), (long long)(s / 60 % 60), (long long)(s % 60));
    else
        snprintf(out, 32, "%lld:%02lld", (long long)(s / 60), (long long)(s % 60));
}

/* One write, so that the line does not flicker. */
static void put(const char *text)
{
    ssize_t n = write(STDERR_FILENO, text, strlen(text));
    (void)n; /* nowhere left to report to */
}

static void draw_bar(lk_progress *p, int64_t done, double loss, double rate, const char *left)
{
    enum { WIDTH = 28 };
    char bar[WIDTH + 1], line[256];
    int filled = p->total ? (int)(WIDTH * done / p->total) : WIDTH;
    for (int i = 0; i < WIDTH; i++) bar[i] = i < filled ? '#' : '.';
    bar[WIDTH] = 0;
    snprintf(line, sizeof line, "\r\x1b[K%s [%s] %lld/%lld  loss %.4f  %.0f tokens/s  %s left", p->what, bar, (long long)done,
             (long long)p->total, loss, rate, left);
    put(line);
    p->drawn = true;
}

void lk_progress_step(lk_progress *p, int64_t done, double loss, double tokens_per_s)
{
    if (p->quiet) return;
    double now = lk_clock_seconds(), each = done > p->first ? (now - p->began) / (double)(done - p->first) : 0;
    char left[32];
    time_text(left, each * (double)(p->total - done));
    if (!p->terminal) {
        if (done % p->every == 0 || done == p->total)
            lk_log(LK_LOG_INFO, "%s: step %lld/%lld, loss %.4f, %.0f tokens/s, %s left", p->what, (long long)done, (long long)p->total,
                   loss, tokens_per_s, left);
        return;
    }
    if (now - p->drawn_at < 0.1 && done < p->total) return;
    p->drawn_at = now;
    draw_bar(p, done, loss, tokens_per_s, left);
}

static void clear(lk_progress *p)
{
    if (p->drawn) put("\r\x1b[K");
    p->drawn = false;
}

void lk_progress_say(lk_progress *p, const char *format, ...)
{
    char text[600];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    clear(p);
    if (!p->quiet) lk_log(LK_LOG_INFO, "%s", text);
}

void lk_progress_end(lk_progress *p)
{
    if (p->drawn) put("\n");
    p->drawn = false;
}
