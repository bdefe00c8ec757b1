/* Progress for people, on standard error: a bar that redraws itself on a terminal, a plain line now and then elsewhere.
 *
 *     lk_progress p;
 *     lk_progress_begin(&p, "training", total, first, every, quiet);
 *     lk_progress_step(&p, done, loss, tokens_per_s);
 *     lk_progress_say(&p, "step 50: held-out loss %.4f", loss);      -- a line of its own, above the bar
 *     lk_progress_end(&p); */
#ifndef LK_TRAIN_PROGRESS_H
#define LK_TRAIN_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct lk_progress {
    const char *what;
    int64_t total, first, every;
    bool quiet, terminal, drawn;
    double began, drawn_at;
} lk_progress;

/* first: what was done before this process; every: steps between plain lines. */
void lk_progress_begin(lk_progress *p, const char *what, int64_t total, int64_t first, int64_t every, bool quiet);
void lk_progress_step(lk_progress *p, int64_t done, double loss, double tokens_per_s);
void lk_progress_say(lk_progress *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
void lk_progress_end(lk_progress *p);

#endif
