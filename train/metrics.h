/* metrics.jsonl: one line for every optimiser step and every evaluation, flushed as it is written.
 *
 *     {"step":12,"loss":1.2345,"grad_norm":0.61,"lr":0.0002,"tokens":1012,"supervised":310,"tokens_per_s":5120.3,"epoch":0.4,"seconds":2.31}
 *     {"step":12,"eval_loss":1.31,"eval_perplexity":3.7,"eval_accuracy":0.71,"eval_tokens":9120,"eval_supervised":2210,"seconds":2.9}
 *
 * step counts finished optimiser steps (an evaluation at step 0 is of the untrained adapter); seconds since this process began training. On
 * resume the lines after the checkpoint's step are dropped, so every step has one line. */
#ifndef LK_TRAIN_METRICS_H
#define LK_TRAIN_METRICS_H

#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "train/evaluate.h"

typedef struct lk_metrics {
    FILE *file;
    char path[4200];
} lk_metrics;

typedef struct lk_metrics_step {
    int64_t step, tokens, supervised;
    double loss, grad_norm, lr, tokens_per_s, epoch, seconds;
} lk_metrics_step;

/* Keeps the lines of steps up to last_step (-1: none) and opens the file for appending. */
lk_status lk_metrics_open(lk_metrics *m, const char *path, int64_t last_step, lk_error *err);
void lk_metrics_close(lk_metrics *m); /* safe on a zeroed struct */
lk_status lk_metrics_step_line(lk_metrics *m, const lk_metrics_step *s, lk_error *err);
lk_status lk_metrics_eval_line(lk_metrics *m, int64_t step, double seconds, const lk_eval_result *r, lk_error *err);

#endif
