/* Learning-rate schedules, as Hugging Face's Trainer computes them (transformers/optimization.py).
 *
 *     lk_schedule s = {.kind = LK_SCHEDULE_COSINE, .warmup_steps = lk_schedule_warmup(0, 0.03, total), .total_steps = total};
 *     double lr = base_lr * lk_schedule_factor(&s, step);     -- step counts from 0: the first update uses factor(0)
 *
 * During the warm-up of W steps the factor is s/W, so the very first update runs at rate 0 when W > 0. After it:
 * constant 1; linear max(0, (T-s)/max(1, T-W)); cosine max(0, (1 + cos(pi * (s-W)/max(1, T-W))) / 2). Pure functions. */
#ifndef LK_OPTIM_SCHEDULE_H
#define LK_OPTIM_SCHEDULE_H

#include <stdint.h>

typedef enum lk_schedule_kind { LK_SCHEDULE_CONSTANT, LK_SCHEDULE_LINEAR, LK_SCHEDULE_COSINE } lk_schedule_kind;

typedef struct lk_schedule {
    lk_schedule_kind kind;
    int64_t warmup_steps, total_steps;
} lk_schedule;

/* warmup_steps when it is above 0, else ceil(total_steps * warmup_ratio). */
int64_t lk_schedule_warmup(int64_t warmup_steps, double warmup_ratio, int64_t total_steps);

/* What the base rate is multiplied by for update number `step` (0 is the first). */
double lk_schedule_factor(const lk_schedule *schedule, int64_t step);

/* "constant", "linear", "cosine"; -1 for another word. */
int lk_schedule_parse(const char *name);

#endif
