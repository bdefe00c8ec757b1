#include "train/metrics.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"

/* The step of a line, or -1 for one that is torn or is none of ours. */
static int64_t step_of(const char *line, size_t size)
{
    cJSON *root;
    int64_t step = -1;
    if (lk_json_parse(&root, line, size, "metrics.jsonl", NULL)) return -1;
    const cJSON *item = cJSON_IsObject(root) ? lk_json_get(root, "step") : NULL;
    if (cJSON_IsNumber(item)) step = (int64_t)item->valuedouble;
    cJSON_Delete(root);
    return step;
}

static lk_status keep_until(const char *path, int64_t last_step, lk_error *err)
{
    lk_map map;
    lk_atomic_file out;
    if (!lk_path_exists(path)) return LK_OK;
    LK_TRY(lk_map_open(&map, path, err));
    lk_status status = lk_atomic_open(&out, path, err);
    const char *text = (const char *)map.data, *end = text + map.size;
    while (!status && text && text < end) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        if (!newline) break; /* torn */
        int64_t step = step_of(text, (size_t)(newline - text));
        if (step >= 0 && step <= last_step) status = lk_atomic_write(&out, text, (size_t)(newline + 1 - text), err);
        text = newline + 1;
    }
    if (status)
        lk_atomic_abort(&out);
    else
        status = lk_atomic_commit(&out, err);
    lk_map_close(&map);
    return status;
}

lk_status lk_metrics_open(lk_metrics *m, const char *path, int64_t last_step, lk_error *err)
{
    memset(m, 0, sizeof *m);
    snprintf(m->path, sizeof m->path, "%s", path);
    LK_TRY(keep_until(path, last_step, err));
    m->file = fopen(path, "ae");
    return m->file ? LK_OK : lk_fail_errno(err, "cannot write %s", path);
}

void lk_metrics_close(lk_metrics *m)
{
    if (m->file) fclose(m->file);
    m->file = NULL;
}

/* Takes the object. */
static lk_status write_line(lk_metrics *m, cJSON *object, lk_error *err)
{
    char *text = cJSON_PrintUnformatted(object);
    cJSON_Delete(object);
    if (!text) return lk_fail(err, LK_ERR_MEMORY, "no memory for a line of metrics");
    bool failed = fprintf(m->file, "%s\n", text) < 0 || fflush(m->file);
    lk_status status = failed ? lk_fail_errno(err, "cannot write %s", m->path) : LK_OK;
    cJSON_free(text);
    return status;
}

/* Six digits: enough for a plot, short enough to read. */
static void add_short(cJSON *object, const char *key, double value)
{
    char text[40];
    snprintf(text, sizeof text, "%.6g", value);
    lk_json_add_number(object, key, strtod(text, NULL));
}

lk_status lk_metrics_step_line(lk_metrics *m, const lk_metrics_step *s, lk_error *err)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "step", (double)s->step);
    lk_json_add_number(o, "loss", s->loss);
    lk_json_add_number(o, "grad_norm", s->grad_norm);
    lk_json_add_number(o, "lr", s->lr);
    cJSON_AddNumberToObject(o, "tokens", (double)s->tokens);
    cJSON_AddNumberToObject(o, "supervised", (double)s->supervised);
    add_short(o, "tokens_per_s", s->tokens_per_s);
    add_short(o, "epoch", s->epoch);
    add_short(o, "seconds", s->seconds);
    return write_line(m, o, err);
}

lk_status lk_metrics_eval_line(lk_metrics *m, int64_t step, double seconds, const lk_eval_result *r, lk_error *err)
{
    cJSON *o = cJSON_CreateObject();
    cJSON_AddNumberToObject(o, "step", (double)step);
    lk_json_add_number(o, "eval_loss", r->loss);
    lk_json_add_number(o, "eval_perplexity", r->perplexity);
    lk_json_add_number(o, "eval_accuracy", r->accuracy);
    cJSON_AddNumberToObject(o, "eval_tokens", (double)r->tokens);
    cJSON_AddNumberToObject(o, "eval_supervised", (double)r->supervised);
    add_short(o, "seconds", seconds);
    return write_line(m, o, err);
}
