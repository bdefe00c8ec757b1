/* Modules one after the other: gather the factors of those adapters that have it, combine, keep. PEFT works on tensors that are stacked;
 * here an element's values are read across the adapters, which is the same sum in the same order. */
#include "model/combine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "data/peft.h"
#include "kernels/philox.h"
#include "model/adapter_internal.h"
#include "model/low_rank.h"

static const char *const kind_names[LK_N_COMBINE] = {"cat", "linear", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"};

bool lk_combine_parse(const char *name, lk_combine_kind *kind)
{
    for (int i = 0; i < LK_N_COMBINE; i++) {
        if (strcmp(kind_names[i], name)) continue;
        *kind = (lk_combine_kind)i;
        return true;
    }
    return false;
}

/* One module of all adapters that have it. */
typedef struct stack {
    int n;
    int number[LK_COMBINE_MOST]; /* which adapter */
    const lk_peft_module *module[LK_COMBINE_MOST];
    float *a[LK_COMBINE_MOST], *b[LK_COMBINE_MOST]; /* as in the file */
    double weight[LK_COMBINE_MOST];                 /* times the module's scale */
    int64_t in, out, experts;                       /* experts 1: a linear layer, or A and B are of so many (lk_peft_module) */
} stack;

static void stack_free(stack *s)
{
    for (int i = 0; i < s->n; i++) {
        free(s->a[i]);
        free(s->b[i]);
    }
}

static lk_status stack_push(stack *s, int number, const lk_peft_module *m, double weight, lk_error *err)
{
    if (s->n == 0) {
        s->in = m->a->shape[1];
        s->out = m->b->shape[0];
        s->experts = m->experts ? m->experts : 1;
    }
    if (m->a->shape[1] != s->in || m->b->shape[0] != s->out || s->experts != (m->experts ? m->experts : 1))
        return lk_fail(err, LK_ERR_MISMATCH, "%s is [%lld,%lld] in one adapter and [%lld,%lld] in another: they are of different bases",
                       m->name, (long long)s->out, (long long)s->in, (long long)m->b->shape[0], (long long)m->a->shape[1]);
    int i = s->n++;
    s->number[i] = number;
    s->module[i] = m;
    s->weight[i] = weight * m->scale;
    s->a[i] = malloc((size_t)m->a->n_elements * 4);
    s->b[i] = malloc((size_t)m->b->n_elements * 4);
    if (!s->a[i] || !s->b[i]) return lk_fail(err, LK_ERR_MEMORY, "no memory for the factors of %s", m->name);
    LK_TRY(lk_st_read_f32(m->a, 0, m->a->n_elements, s->a[i], err));
    return lk_st_read_f32(m->b, 0, m->b->n_elements, s->b[i], err);
}

/* ---- sparsifying ---- */

static int compare_falling(const void *x, const void *y)
{
    float a = *(const float *)x, b = *(const float *)y;
    return a < b ? 1 : a > b ? -1 : 0;
}

/* Keeps the int(density * n) largest magnitudes. */
static lk_status prune(float *values, int64_t n, double density, lk_error *err)
{
    int64_t keep = (int64_t)(density * (double)n), above = 0;
    if (density >= 1) return LK_OK;
    float *sizes = malloc((size_t)n * sizeof *sizes);
    if (!sizes) return lk_fail(err, LK_ERR_MEMORY, "no memory to prune %lld values", (long long)n);
    for (int64_t i = 0; i < n; i++) sizes[i] = fabsf(values[i]);
    qsort(sizes, (size_t)n, sizeof *sizes, compare_falling);
    float least = keep > 0 ? sizes[keep - 1] : INFINITY;
    free(sizes);
    for (int64_t i = 0; i < n; i++) above += fabsf(values[i]) > least;
    int64_t ties = keep - above; /* of the values as large as the least, the first so many stay */
    for (int64_t i = 0; i < n; i++) {
        float size = fabsf(values[i]);
        if (size > least || (size == least && ties-- > 0)) continue;
        values[i] = 0;
    }
    return LK_OK;
}

/* DARE: drops all but a share of density, and rescales. */
static void drop(float *values, int64_t n, double density, uint64_t seed, uint64_t tensor)
{
    if (density >= 1) return;
    uint32_t word[4];
    lk_philox_key key = lk_philox_key_make(seed, LK_STREAM_INIT);
    for (int64_t i = 0; i < n; i++) {
        if (i % 4 == 0) lk_philox(key, tensor, (uint64_t)(i / 4), word);
        values[i] = lk_philox_uniform(word[i % 4]) < (float)density ? values[i] / (float)density : 0.0f;
    }
}

/* ---- joining ---- */

/* out[i] of the stacked values[s][i] times weights[s]; signs elected where elect. */
static void join(float *out, float *const *values, const float *weights, int n, int64_t size, bool elect, bool by_frequency)
{
    for (int64_t i = 0; i < size; i++) {
        float sum = 0, vote = 0;
        int agree = 0;
        for (int s = 0; s < n; s++) {
            float v = values[s][i];
            vote += by_frequency ? (float)((v > 0) - (v < 0)) : v;
        }
        float sign = vote >= 0 ? 1.0f : -1.0f;
        for (int s = 0; s < n; s++) {
            float v = values[s][i];
            if (elect && (float)((v > 0) - (v < 0)) != sign) continue;
            sum += v * weights[s];
            agree++;
        }
        out[i] = elect ? sum / (float)(agree > 1 ? agree : 1) : sum;
    }
}

static bool is_random(lk_combine_kind kind) { return kind == LK_COMBINE_DARE_LINEAR || kind == LK_COMBINE_DARE_TIES; }
static bool is_elected(lk_combine_kind kind) { return kind == LK_COMBINE_TIES || kind == LK_COMBINE_DARE_TIES; }

/* On the factors: the square root of each weight goes into A, with its sign, and into B. */
static lk_status combine_factors(const stack *s, const lk_combine_options *o, uint64_t module, float *a, float *b, lk_error *err)
{
    float weight_a[LK_COMBINE_MOST], weight_b[LK_COMBINE_MOST];
    int32_t rank = s->module[0]->rank;
    int64_t size_a = rank * s->in, size_b = rank * s->out;
    for (int i = 0; i < s->n; i++) {
        weight_b[i] = (float)sqrt(fabs(s->weight[i]));
        weight_a[i] = s->weight[i] < 0 ? -weight_b[i] : weight_b[i];
        if (s->module[i]->rank != rank)
            return lk_fail(err, LK_ERR_ARGUMENT, "%s has rank %d in one adapter and %d in another: %s wants equal ranks; use cat or svd",
                           s->module[0]->name, rank, s->module[i]->rank, kind_names[o->kind]);
        uint64_t tensor = (module * LK_COMBINE_MOST + (uint64_t)s->number[i]) * 2;
        if (is_random(o->kind)) {
            drop(s->a[i], size_a, o->density, o->seed, tensor);
            drop(s->b[i], size_b, o->density, o->seed, tensor + 1);
        } else if (o->kind != LK_COMBINE_LINEAR) {
            LK_TRY(prune(s->a[i], size_a, o->density, err));
            LK_TRY(prune(s->b[i], size_b, o->density, err));
        }
    }
    join(a, s->a, weight_a, s->n, size_a, is_elected(o->kind), o->by_frequency);
    join(b, s->b, weight_b, s->n, size_b, is_elected(o->kind), o->by_frequency);
    return LK_OK;
}

/* The factors side by side; the weights go into A. Of stacked experts each has its rows of A and its columns of B. */
static void concatenate(const stack *s, int32_t rank, float *a, float *b)
{
    int64_t E = s->experts;
    int32_t at = 0;
    for (int i = 0; i < s->n; at += s->module[i++]->rank) {
        int32_t r = s->module[i]->rank;
        for (int64_t e = 0; e < E; e++)
            for (int64_t j = 0; j < r * s->in; j++) a[(e * rank + at) * s->in + j] = s->a[i][e * r * s->in + j] * (float)s->weight[i];
        for (int64_t n = 0; n < s->out; n++) memcpy(b + (n * rank + at) * E, s->b[i] + n * r * E, (size_t)(r * E) * 4);
    }
}

static int32_t total_rank(const stack *s)
{
    int32_t sum = 0;
    for (int i = 0; i < s->n; i++) sum += s->module[i]->rank;
    return sum;
}

static int32_t rank_of(const stack *s, const lk_combine_options *o)
{
    int32_t most = 0;
    for (int i = 0; i < s->n; i++)
        if (s->module[i]->rank > most) most = s->module[i]->rank;
    if (o->kind == LK_COMBINE_CAT) return total_rank(s);
    return o->kind == LK_COMBINE_SVD && o->rank ? o->rank : most;
}

static lk_status combine_svd(const stack *s, int32_t rank, float *a, float *b, lk_error *err)
{
    int32_t all = total_rank(s);
    float *wide_a = malloc((size_t)(all * s->in) * 4), *wide_b = malloc((size_t)(all * s->out) * 4);
    lk_status status = wide_a && wide_b ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "no memory for factors of rank %d", all);
    if (!status) {
        concatenate(s, all, wide_a, wide_b);
        status = lk_low_rank(a, b, rank, wide_a, wide_b, s->out, s->in, all, err);
    }
    free(wide_a);
    free(wide_b);
    return status;
}

/* The result has scale 1: its alpha is its rank. */
static lk_status combine_module(const stack *s, const lk_combine_options *o, uint64_t number, lk_peft_write_module *out, lk_error *err)
{
    int32_t rank = rank_of(s, o);
    if (rank > LK_ADAPTER_MAX_RANK)
        return lk_fail(err, LK_ERR_ARGUMENT, "the combined rank of %s is %d; the largest supported is %d: use svd with a rank",
                       s->module[0]->name, rank, LK_ADAPTER_MAX_RANK);
    if (s->module[0]->experts && o->kind != LK_COMBINE_CAT)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: factors on stacked experts (target_parameters) are only combined by cat, not by %s",
                       s->module[0]->name, kind_names[o->kind]);
    float *a = malloc((size_t)(rank * s->experts * s->in) * 4), *b = malloc((size_t)(rank * s->experts * s->out) * 4);
    *out = (lk_peft_write_module){.name = s->module[0]->name,
                                  .rank = rank,
                                  .alpha = rank,
                                  .in = s->in,
                                  .out = s->out,
                                  .a = a,
                                  .b = b,
                                  .experts = s->module[0]->experts};
    if (!a || !b) return lk_fail(err, LK_ERR_MEMORY, "no memory for the factors of %s", out->name);
    if (o->kind == LK_COMBINE_CAT) {
        concatenate(s, rank, a, b);
        return LK_OK;
    }
    return o->kind == LK_COMBINE_SVD ? combine_svd(s, rank, a, b, err) : combine_factors(s, o, number, a, b, err);
}

/* ---- adapters ---- */

typedef struct combiner {
    lk_peft *peft[LK_COMBINE_MOST];
    int64_t at[LK_COMBINE_MOST]; /* the next module of each: modules are sorted by name */
    int n;
    lk_peft_write_module *modules;
    int64_t n_modules;
} combiner;

/* The first name that some adapter still has, or NULL. */
static const char *next_name(const combiner *c)
{
    const char *first = NULL;
    for (int i = 0; i < c->n; i++) {
        if (c->at[i] == lk_peft_count(c->peft[i])) continue;
        const char *name = lk_peft_at(c->peft[i], c->at[i])->name;
        if (!first || strcmp(name, first) < 0) first = name;
    }
    return first;
}

static lk_status combine_all(combiner *c, const lk_combine_options *o, lk_error *err)
{
    int64_t most = 0;
    for (int i = 0; i < c->n; i++) most += lk_peft_count(c->peft[i]);
    c->modules = calloc((size_t)most + 1, sizeof *c->modules);
    if (!c->modules) return lk_fail(err, LK_ERR_MEMORY, "no memory for %lld modules", (long long)most);
    for (const char *name; (name = next_name(c));) {
        stack s = {0};
        lk_status status = LK_OK;
        for (int i = 0; i < c->n && !status; i++) {
            if (c->at[i] == lk_peft_count(c->peft[i]) || strcmp(lk_peft_at(c->peft[i], c->at[i])->name, name)) continue;
            status = stack_push(&s, i, lk_peft_at(c->peft[i], c->at[i]++), o->weights ? o->weights[i] : 1, err);
        }
        if (!status) status = combine_module(&s, o, (uint64_t)c->n_modules, &c->modules[c->n_modules], err);
        c->n_modules++;
        stack_free(&s);
        if (status) return status;
    }
    return LK_OK;
}

/* Stamps that all adapters share are the combination's too; adapters of different bases are refused. */
static lk_status shared_stamp(const combiner *c, const char *key, bool must, const char **value, lk_error *err)
{
    *value = lk_peft_metadata(c->peft[0], key);
    for (int i = 1; i < c->n; i++) {
        const char *other = lk_peft_metadata(c->peft[i], key);
        if (*value && other && strcmp(*value, other) && must)
            return lk_fail(err, LK_ERR_MISMATCH, "the adapters were trained on different bases (%.12s... and %.12s...)", *value, other);
        if (!*value || !other || strcmp(*value, other)) *value = NULL;
    }
    return LK_OK;
}

static lk_status write_result(const combiner *c, const char *out, lk_error *err)
{
    /* In a model of images and text the same leaves are in the images. */
    bool part = strstr(c->modules[0].name, "language_model.") != NULL;
    lk_peft_write_options options = {.base = lk_peft_base(c->peft[0]), .whole_paths = part};
    LK_TRY(shared_stamp(c, "lorikeet.base_identity", true, &options.base_identity, err));
    LK_TRY(shared_stamp(c, "lorikeet.base_digest", false, &options.base_digest, err));
    LK_TRY(shared_stamp(c, "lorikeet.quantization", false, &options.quantization, err));
    return lk_peft_write(out, c->modules, c->n_modules, &options, err);
}

static lk_status check_options(const lk_combine_options *o, int n, lk_error *err)
{
    if (n < 1 || n > LK_COMBINE_MOST)
        return lk_fail(err, LK_ERR_ARGUMENT, "from 1 to %d adapters can be combined, not %d", LK_COMBINE_MOST, n);
    bool sparse = o->kind == LK_COMBINE_TIES || o->kind == LK_COMBINE_PRUNE || is_random(o->kind);
    if (sparse && !(o->density > 0 && o->density <= 1))
        return lk_fail(err, LK_ERR_ARGUMENT, "%s wants a density above 0 and at most 1", kind_names[o->kind]);
    return LK_OK;
}

lk_status lk_combine(const char *out, const char *const *adapters, int n, const lk_combine_options *options, lk_error *err)
{
    combiner c = {0};
    LK_TRY(check_options(options, n, err));
    lk_status status = LK_OK;
    for (; c.n < n && !status; c.n++) {
        status = lk_peft_open(&c.peft[c.n], adapters[c.n], NULL, err);
        if (!status) status = lk_adapter_check_plain(c.peft[c.n], adapters[c.n], err);
        if (status) break;
    }
    if (!status) status = combine_all(&c, options, err);
    if (!status) status = write_result(&c, out, err);
    for (int64_t i = 0; i < c.n_modules; i++) {
        free((void *)(uintptr_t)c.modules[i].a);
        free((void *)(uintptr_t)c.modules[i].b);
    }
    free(c.modules);
    for (int i = 0; i < n; i++) lk_peft_close(c.peft[i]);
    return status;
}
