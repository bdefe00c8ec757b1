/* In double throughout: the rate is rounded to float once, where the update uses it, as torch does. */
#include "optim/schedule.h"

#include <math.h>
#include <string.h>

static const double pi = 3.14159265358979323846;

int64_t lk_schedule_warmup(int64_t warmup_steps, double warmup_ratio, int64_t total_steps)
{
    return warmup_steps > 0 ? warmup_steps : (int64_t)ceil((double)total_steps * warmup_ratio);
}

double lk_schedule_factor(const lk_schedule *schedule, int64_t step)
{
    int64_t warmup = schedule->warmup_steps, total = schedule->total_steps;
    if (step < warmup) return (double)step / (double)warmup;
    double after = (double)(total > warmup ? total - warmup : 1);
    double factor = 1.0;
    if (schedule->kind == LK_SCHEDULE_LINEAR) factor = (double)(total - step) / after;
    if (schedule->kind == LK_SCHEDULE_COSINE) factor = 0.5 * (1.0 + cos(pi * ((double)(step - warmup) / after)));
    return factor > 0.0 ? factor : 0.0;
}

int lk_schedule_parse(const char *name)
{
    if (!strcmp(name, "constant")) return LK_SCHEDULE_CONSTANT;
    if (!strcmp(name, "linear")) return LK_SCHEDULE_LINEAR;
    if (!strcmp(name, "cosine")) return LK_SCHEDULE_COSINE;
    return -1;
}
