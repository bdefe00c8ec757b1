/* Reading PEFT LoRA adapters.
 *
 * The tensors say which modules are adapted; the config (peft_config.c) says with which rank and scale, and both must tell the same
 * story. Tensors are sorted by the module they belong to and then gathered module by module, so that a hostile file of a million names
 * costs no more than sorting it. */
#include "data/peft.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "base/file.h"
#include "base/sha256.h"
#include "data/bundle.h"
#include "data/peft_config.h"

enum { MAX_CONFIG_BYTES = 16 << 20 };

struct lk_peft {
    lk_arena arena;
    lk_safetensors *st;
    lk_bundle *bundle; /* holds the bytes, when it came from one */
    lk_peft_module *modules;
    lk_peft_value *values;
    int64_t n_modules, n_values;
    bool rslora, tie_tables;
    const char *base;
    char digest[65];
};

/* ---- the tensors ---- */

typedef enum part {
    PART_A,
    PART_B,
    PART_B_BIAS,
    PART_EMBEDDING_A,
    PART_EMBEDDING_B,
    PART_MAGNITUDE,
    PART_TOKENS,
    PART_BASE_WEIGHT,
    PART_BASE_BIAS,
    PART_WEIGHT,
    PART_BIAS,
    N_PARTS
} part;

/* Longest first: the first suffix that fits is the part. */
static const struct {
    const char *suffix;
    part part;
} suffixes[] = {
    {".token_adapter.trainable_tokens_delta", PART_TOKENS},
    {".lora_magnitude_vector", PART_MAGNITUDE},
    {".lora_embedding_A", PART_EMBEDDING_A},
    {".lora_embedding_B", PART_EMBEDDING_B},
    {".base_layer.weight", PART_BASE_WEIGHT},
    {".base_layer.bias", PART_BASE_BIAS},
    {".lora_A.weight", PART_A},
    {".lora_B.weight", PART_B},
    {".lora_B.bias", PART_B_BIAS},
    {".weight", PART_WEIGHT},
    {".bias", PART_BIAS},
};

typedef struct piece {
    const char *module;
    part part;
    const lk_st_tensor *tensor;
} piece;

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

static lk_status not_a_factor(const lk_st_tensor *t, lk_error *err)
{
    if (strstr(t->name, ".default."))
        return lk_fail(err, LK_ERR_UNSUPPORTED,
                       "%s: tensor \"%.250s\": the adapter's name must not be part of the tensor's; save it with save_pretrained", t->file,
                       t->name);
    return lk_fail(
        err, LK_ERR_FORMAT,
        "%s: tensor \"%.250s\" is not a LoRA factor (base_model.model.MODULE.lora_A.weight or lora_B.weight), nor a value that the "
        "config announces",
        t->file, t->name);
}

static lk_status check_tensor(const lk_st_tensor *t, int n_dims, lk_error *err)
{
    if (t->type != LK_F32 && t->type != LK_BF16 && t->type != LK_F16 && t->type != LK_F64)
        return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.250s\" is %s; a floating type is needed", t->file, t->name,
                       lk_dtype_name(t->type));
    if (t->n_dims == n_dims && t->n_elements > 0) return LK_OK;
    return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.250s\" must be a %s that is not empty", t->file, t->name,
                   n_dims == 2 ? "matrix" : "vector");
}

static bool is_vector(part p) { return p == PART_B_BIAS || p == PART_MAGNITUDE || p == PART_BASE_BIAS || p == PART_BIAS; }

static lk_status piece_of(lk_peft *p, const lk_st_tensor *t, piece *out, lk_error *err)
{
    static const char prefix[] = "base_model.model.";
    size_t head = sizeof prefix - 1, n = strlen(t->name);
    if (strncmp(t->name, prefix, head) || strstr(t->name, ".default.")) return not_a_factor(t, err);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t tail = strlen(suffixes[i].suffix);
        if (!ends_with(t->name, suffixes[i].suffix)) continue;
        if (n <= head + tail) return not_a_factor(t, err);
        *out = (piece){lk_arena_strndup(&p->arena, t->name + head, n - head - tail), suffixes[i].part, t};
        if (!out->module) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", t->file);
        return check_tensor(t, is_vector(out->part) ? 1 : 2, err);
    }
    return not_a_factor(t, err);
}

static int compare_pieces(const void *x, const void *y)
{
    const piece *a = x, *b = y;
    int names = strcmp(a->module, b->module);
    return names ? names : (int)a->part - (int)b->part;
}

static void put_value(lk_peft *p, lk_peft_kind kind, const piece *x, const int32_t *ids)
{
    p->values[p->n_values++] = (lk_peft_value){kind, x->module, x->tensor, ids};
}

/* A part that the config does not announce: PEFT would drop it. */
static lk_status unannounced(const piece *x, const char *field, lk_error *err)
{
    return lk_fail(err, LK_ERR_FORMAT, "%s: tensor \"%.250s\" is there, but adapter_config.json has no %s for it", x->tensor->file,
                   x->tensor->name, field);
}

static lk_status place_tokens(lk_peft *p, const lk_peft_config *c, const piece *x, lk_error *err)
{
    const cJSON *tokens = lk_peft_config_tokens(c, x->module), *item;
    if (!tokens) return unannounced(x, "trainable_token_indices", err);
    int64_t n = cJSON_GetArraySize(tokens);
    if (n != x->tensor->shape[0])
        return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor \"%.250s\" has %" PRId64 " rows, trainable_token_indices names %" PRId64 " tokens",
                       x->tensor->file, x->tensor->name, x->tensor->shape[0], n);
    int32_t *ids = lk_arena_alloc(&p->arena, (size_t)n * sizeof *ids);
    if (!ids) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", c->where);
    int64_t i = 0;
    cJSON_ArrayForEach(item, tokens) ids[i++] = (int32_t)item->valuedouble;
    put_value(p, LK_PEFT_TOKENS, x, ids);
    return LK_OK;
}

/* .weight and .bias of the module itself. */
static lk_status place_own(lk_peft *p, const lk_peft_config *c, const piece *x, lk_error *err)
{
    bool saved;
    LK_TRY(lk_peft_config_saved(c, x->module, &saved, err));
    if (c->tie_tables && c->saved.n && x->part == PART_WEIGHT && !strcmp(x->module, "lm_head")) saved = true; /* with its embedding */
    if (x->part == PART_WEIGHT && !saved)
        return strstr(x->module, ".lora_") || !c->saved.n ? not_a_factor(x->tensor, err) : unannounced(x, "modules_to_save", err);
    if (x->part == PART_BIAS && !saved && c->bias == LK_PEFT_BIAS_NONE) return unannounced(x, "bias", err);
    put_value(p, x->part == PART_WEIGHT ? LK_PEFT_WEIGHT : LK_PEFT_BIAS, x, NULL);
    return LK_OK;
}

static lk_status expect_length(const lk_st_tensor *t, int64_t n, const char *module, lk_error *err)
{
    if (t->shape[0] == n) return LK_OK;
    return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor \"%.250s\" has %" PRId64 " elements; %.200s gives %" PRId64, t->file, t->name,
                   t->shape[0], module, n);
}

/* Rank and scale from the config, and that the shapes agree with them. */
static lk_status settle_module(lk_peft_module *m, const lk_peft_config *c, lk_error *err)
{
    LK_TRY(lk_peft_config_check_target(c, m->name, err));
    LK_TRY(lk_peft_config_scale(c, m->name, &m->rank, &m->alpha, &m->scale, err));
    const lk_st_tensor *wrong = m->a->shape[0] != m->rank ? m->a : m->b->shape[1] != m->rank ? m->b : NULL;
    if (wrong)
        return lk_fail(err, LK_ERR_MISMATCH, "%s: tensor \"%.250s\" has shape [%" PRId64 ", %" PRId64 "], the config gives it rank %d",
                       wrong->file, wrong->name, wrong->shape[0], wrong->shape[1], m->rank);
    if (c->dora && !m->magnitude)
        return lk_fail(err, LK_ERR_FORMAT, "%s: use_dora is true, but %.250s has no lora_magnitude_vector", m->a->file, m->name);
    if (c->lora_bias && !m->bias && !m->embedding)
        return lk_fail(err, LK_ERR_FORMAT, "%s: lora_bias is true, but %.250s has no lora_B.bias", m->a->file, m->name);
    if (m->magnitude) LK_TRY(expect_length(m->magnitude, m->b->shape[0], m->name, err));
    return m->bias ? expect_length(m->bias, m->b->shape[0], m->name, err) : LK_OK;
}

/* How often PEFT wrapped the module before: once for each parameter that lies further out. */
static int depth_of(const char *module, size_t *bare)
{
    static const char wrapped[] = ".base_layer";
    int depth = 0;
    for (*bare = strlen(module); *bare > sizeof wrapped && !strncmp(module + *bare - sizeof wrapped + 1, wrapped, sizeof wrapped - 1);
         depth++)
        *bare -= sizeof wrapped - 1;
    return depth;
}

/* A module with factors for fewer parameters than are named would have them taken for another's. */
static lk_status check_wrappers(const lk_peft *p, const lk_peft_module *m, const char *module, int n, lk_error *err)
{
    char name[900] = "base_model.model.";
    snprintf(name + strlen(name), sizeof name - strlen(name), "%.600s", module);
    for (int i = 0; i < n; i++) {
        size_t at = strlen(name);
        snprintf(name + at, sizeof name - at, ".lora_A.weight");
        if (!lk_safetensors_find(p->st, name))
            return lk_fail(err, LK_ERR_FORMAT, "%s: target_parameters names %d parameters of %.250s, but there is no \"%.300s\"",
                           m->a->file, n, module, name);
        snprintf(name + at, sizeof name - at, ".base_layer");
    }
    return LK_OK;
}

/* The factors of a parameter. *found: they are. */
static lk_status settle_parameter(lk_peft *p, lk_peft_module *m, const lk_peft_config *c, bool *found, lk_error *err)
{
    const char *names[LK_PEFT_PARAMETERS], *parameter;
    char module[600], path[700];
    size_t bare;
    int depth = depth_of(m->name, &bare);
    *found = false;
    if (m->embedding || bare >= sizeof module) return LK_OK;
    snprintf(module, sizeof module, "%.*s", (int)bare, m->name);
    int n = lk_peft_config_parameters(c, module, names);
    if (!n && !depth) return LK_OK;
    if (depth >= n) return unannounced(&(piece){.module = m->name, .tensor = m->a}, "target_parameters", err);
    LK_TRY(check_wrappers(p, m, module, n, err));
    parameter = names[n - 1 - depth];
    snprintf(path, sizeof path, "%s.%s", module, parameter);
    LK_TRY(lk_peft_config_scale(c, path, &m->rank, &m->alpha, &m->scale, err));
    bool stacked = strcmp(parameter, "weight") != 0;
    m->name = lk_arena_strdup(&p->arena, stacked ? path : module);
    if (!m->name) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", c->where);
    int64_t rows = m->a->shape[0], experts = rows / m->rank;
    if (rows % m->rank || m->b->shape[1] != rows || (!stacked && experts != 1))
        return lk_fail(err, LK_ERR_MISMATCH,
                       "%s: tensor \"%.250s\" has shape [%" PRId64 ", %" PRId64 "], lora_B has %" PRId64
                       " columns, the config gives it rank %d",
                       m->a->file, m->a->name, rows, m->a->shape[1], m->b->shape[1], m->rank);
    if (stacked) m->experts = experts;
    *found = true;
    return LK_OK;
}

static int compare_modules(const void *x, const void *y)
{
    const lk_peft_module *a = x, *b = y;
    return strcmp(a->name, b->name);
}

/* pieces[0..n): all of one module. */
static lk_status gather_module(lk_peft *p, const lk_peft_config *c, const piece *pieces, int64_t n, lk_error *err)
{
    const piece *at[N_PARTS] = {0};
    for (int64_t i = 0; i < n; i++) at[pieces[i].part] = &pieces[i];
    lk_peft_module m = {.name = pieces[0].module};
    m.embedding = at[PART_EMBEDDING_A] || at[PART_EMBEDDING_B];
    const piece *a = at[m.embedding ? PART_EMBEDDING_A : PART_A], *b = at[m.embedding ? PART_EMBEDDING_B : PART_B];
    if (m.embedding && (at[PART_A] || at[PART_B])) return not_a_factor((at[PART_A] ? at[PART_A] : at[PART_B])->tensor, err);
    if (a && !b) return lk_fail(err, LK_ERR_FORMAT, "%s: \"%.250s\" has no lora_B beside it", a->tensor->file, a->tensor->name);
    if (b && !a) return lk_fail(err, LK_ERR_FORMAT, "%s: \"%.250s\" has no lora_A beside it", b->tensor->file, b->tensor->name);
    if (at[PART_MAGNITUDE] && (!a || !c->dora)) return unannounced(at[PART_MAGNITUDE], "use_dora", err);
    if (at[PART_B_BIAS] && (!a || !c->lora_bias)) return unannounced(at[PART_B_BIAS], "lora_bias", err);
    if (at[PART_BASE_BIAS] && (!a || c->bias == LK_PEFT_BIAS_NONE)) return unannounced(at[PART_BASE_BIAS], "bias", err);
    if (at[PART_BASE_WEIGHT] && !a) return not_a_factor(at[PART_BASE_WEIGHT]->tensor, err);
    if (at[PART_BASE_WEIGHT]) put_value(p, LK_PEFT_BASE, at[PART_BASE_WEIGHT], NULL);
    if (at[PART_BASE_BIAS]) put_value(p, LK_PEFT_BIAS, at[PART_BASE_BIAS], NULL);
    if (at[PART_WEIGHT]) LK_TRY(place_own(p, c, at[PART_WEIGHT], err));
    if (at[PART_BIAS]) LK_TRY(place_own(p, c, at[PART_BIAS], err));
    if (at[PART_TOKENS]) LK_TRY(place_tokens(p, c, at[PART_TOKENS], err));
    if (!a) return LK_OK;
    m.a = a->tensor;
    m.b = b->tensor;
    m.magnitude = at[PART_MAGNITUDE] ? at[PART_MAGNITUDE]->tensor : NULL;
    m.bias = at[PART_B_BIAS] ? at[PART_B_BIAS]->tensor : NULL;
    bool parameter;
    LK_TRY(settle_parameter(p, &m, c, &parameter, err));
    if (!parameter) LK_TRY(settle_module(&m, c, err));
    p->modules[p->n_modules++] = m;
    return LK_OK;
}

static lk_status gather(lk_peft *p, const lk_peft_config *c, lk_error *err)
{
    int64_t n = lk_safetensors_count(p->st);
    piece *pieces = calloc((size_t)n + 1, sizeof *pieces);
    p->modules = calloc((size_t)n + 1, sizeof *p->modules);
    p->values = calloc((size_t)n + 1, sizeof *p->values);
    lk_status status = LK_OK;
    if (!pieces || !p->modules || !p->values) status = lk_fail(err, LK_ERR_MEMORY, "no memory for an adapter of %" PRId64 " tensors", n);
    for (int64_t i = 0; i < n && !status; i++) status = piece_of(p, lk_safetensors_at(p->st, i), &pieces[i], err);
    if (!status) qsort(pieces, (size_t)n, sizeof *pieces, compare_pieces);
    for (int64_t i = 0, end; i < n && !status; i = end) {
        for (end = i + 1; end < n && !strcmp(pieces[end].module, pieces[i].module);) end++;
        status = gather_module(p, c, &pieces[i], end - i, err);
    }
    free(pieces);
    if (!status) qsort(p->modules, (size_t)p->n_modules, sizeof *p->modules, compare_modules); /* parameters have other names now */
    if (!status && p->n_modules + p->n_values == 0) status = lk_fail(err, LK_ERR_FORMAT, "%s: the adapter holds no LoRA factors", c->where);
    return status;
}

/* ---- the digest ---- */

static void hash_number(lk_sha256 *hash, uint64_t value)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (unsigned char)(value >> (8 * i));
    lk_sha256_update(hash, bytes, 8);
}

/* Hashes the tensor as fp32, so that storing it in another type that holds it exactly changes nothing, and refuses NaN and Inf. */
static lk_status hash_tensor(lk_sha256 *hash, const lk_st_tensor *t, lk_error *err)
{
    enum { CHUNK = 4096 };
    float values[CHUNK];
    int64_t columns = t->n_dims > 1 ? t->shape[1] : t->shape[0];
    for (int i = 0; i < t->n_dims; i++) hash_number(hash, (uint64_t)t->shape[i]);
    for (int64_t i = 0; i < t->n_elements; i += CHUNK) {
        int64_t n = t->n_elements - i < CHUNK ? t->n_elements - i : CHUNK;
        LK_TRY(lk_st_read_f32(t, i, n, values, err));
        for (int64_t j = 0; j < n; j++)
            if (!isfinite(values[j]))
                return lk_fail(err, LK_ERR_FORMAT,
                               "%s: tensor \"%.250s\" holds %s at [%" PRId64 ", %" PRId64 "]; the training that made it diverged", t->file,
                               t->name, isnan(values[j]) ? "NaN" : "an infinity", t->n_dims > 1 ? (i + j) / columns : 0, (i + j) % columns);
        lk_sha256_update(hash, values, (size_t)n * sizeof *values);
    }
    return LK_OK;
}

static void hash_text(lk_sha256 *hash, const char *text) { lk_sha256_update(hash, text, strlen(text) + 1); }

static lk_status hash_module(lk_sha256 *hash, const lk_peft_module *m, lk_error *err)
{
    uint64_t scale;
    memcpy(&scale, &m->scale, 8);
    hash_text(hash, m->name);
    hash_number(hash, (uint64_t)m->rank);
    hash_number(hash, scale);
    LK_TRY(hash_tensor(hash, m->a, err));
    LK_TRY(hash_tensor(hash, m->b, err));
    if (m->magnitude) {
        hash_text(hash, "magnitude");
        LK_TRY(hash_tensor(hash, m->magnitude, err));
    }
    if (!m->bias) return LK_OK;
    hash_text(hash, "bias");
    return hash_tensor(hash, m->bias, err);
}

static lk_status hash_value(lk_sha256 *hash, const lk_peft_value *v, lk_error *err)
{
    static const char *const kinds[] = {"weight", "bias", "tokens", "base"};
    hash_text(hash, kinds[v->kind]);
    hash_text(hash, v->name);
    if (v->ids)
        for (int64_t i = 0; i < v->tensor->shape[0]; i++) hash_number(hash, (uint64_t)v->ids[i]);
    return hash_tensor(hash, v->tensor, err);
}

static lk_status digest_all(lk_peft *p, lk_error *err)
{
    lk_sha256 hash;
    lk_sha256_init(&hash);
    lk_status status = LK_OK;
    for (int64_t i = 0; i < p->n_modules && !status; i++) status = hash_module(&hash, &p->modules[i], err);
    for (int64_t i = 0; i < p->n_values && !status; i++) status = hash_value(&hash, &p->values[i], err);
    if (p->tie_tables) hash_text(&hash, "tied");
    lk_sha256_final(&hash, p->digest);
    return status;
}

/* ---- public ---- */

/* The config first: what it says is more telling than what else is missing. weights NULL: those of the folder. */
static lk_status read_all(lk_peft *p, const cJSON *root, const char *where, const char *weights_path, const void *weights, size_t size,
                          lk_error *err)
{
    lk_peft_config c;
    const char *base = "";
    lk_status status = lk_peft_config_parse(&c, root, where, err);
    if (!status) status = lk_json_opt_string(root, "base_model_name_or_path", &base, where, err);
    if (!status && !weights && !lk_path_exists(weights_path))
        status = lk_fail(err, LK_ERR_NOT_FOUND, "%s is missing (adapter_model.bin is not read: save with safe_serialization=True)",
                         weights_path);
    if (!status)
        status =
            weights ? lk_safetensors_open_memory(&p->st, weights, size, weights_path, err) : lk_safetensors_open(&p->st, weights_path, err);
    if (!status) {
        p->base = lk_arena_strdup(&p->arena, base);
        p->rslora = c.rslora;
        p->tie_tables = c.tie_tables;
        status = gather(p, &c, err);
    }
    lk_peft_config_free(&c);
    return status ? status : digest_all(p, err);
}

static lk_status open_folder(lk_peft *p, const char *folder, lk_error *err)
{
    char config[4096], weights[4096];
    cJSON *root = NULL;
    LK_TRY(lk_path_join(config, sizeof config, folder, "adapter_config.json", err));
    LK_TRY(lk_path_join(weights, sizeof weights, folder, "adapter_model.safetensors", err));
    if (!lk_path_exists(config)) return lk_fail(err, LK_ERR_NOT_FOUND, "%s is not an adapter: adapter_config.json is missing", folder);
    LK_TRY(lk_json_read(&root, config, MAX_CONFIG_BYTES, err));
    lk_status status = read_all(p, root, config, weights, NULL, 0, err);
    cJSON_Delete(root);
    return status;
}

static lk_status open_memory(lk_peft *p, const char *name, const char *config, size_t config_bytes, const void *weights,
                             size_t weights_bytes, lk_error *err)
{
    char where[600], file[600];
    cJSON *root = NULL;
    snprintf(where, sizeof where, "%.500s: adapter_config.json", name);
    snprintf(file, sizeof file, "%.500s: adapter_model.safetensors", name);
    LK_TRY(lk_json_parse(&root, config, config_bytes, where, err));
    lk_status status = read_all(p, root, where, file, weights, weights_bytes, err);
    cJSON_Delete(root);
    return status;
}

static lk_status open_bundle(lk_peft *p, const char *path, const lk_bundle_keys *keys, lk_error *err)
{
    LK_TRY(lk_bundle_open(&p->bundle, path, keys, err));
    const lk_bundle_member *config = lk_bundle_find(p->bundle, "adapter_config.json"),
                           *weights = lk_bundle_find(p->bundle, "adapter_model.safetensors");
    if (!config || !weights)
        return lk_fail(err, LK_ERR_FORMAT, "%s: the bundle holds no adapter (%s is missing)", path,
                       config ? "adapter_model.safetensors" : "adapter_config.json");
    return open_memory(p, path, config->bytes, config->size, weights->bytes, weights->size, err);
}

lk_status lk_peft_open(lk_peft **peft, const char *path, const lk_bundle_keys *keys, lk_error *err)
{
    *peft = NULL;
    lk_peft *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", path);
    bool bundle = lk_path_exists(path) && !lk_path_is_folder(path);
    lk_status status;
    if (keys && !bundle)
        status = lk_fail(err, LK_ERR_MISMATCH, "%s is no bundle: where keys are trusted, only bundles that they signed are loaded", path);
    else
        status = bundle ? open_bundle(fresh, path, keys, err) : open_folder(fresh, path, err);
    if (status) {
        lk_peft_close(fresh);
        return status;
    }
    *peft = fresh;
    return LK_OK;
}

lk_status lk_peft_open_memory(lk_peft **peft, const char *name, const char *config, size_t config_bytes, const void *weights,
                              size_t weights_bytes, lk_error *err)
{
    *peft = NULL;
    lk_peft *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", name);
    lk_status status = open_memory(fresh, name, config, config_bytes, weights, weights_bytes, err);
    if (status) {
        lk_peft_close(fresh);
        return status;
    }
    *peft = fresh;
    return LK_OK;
}

void lk_peft_close(lk_peft *peft)
{
    if (!peft) return;
    lk_safetensors_close(peft->st);
    lk_bundle_close(peft->bundle);
    free(peft->modules);
    free(peft->values);
    lk_arena_free(&peft->arena);
    free(peft);
}

int64_t lk_peft_count(const lk_peft *peft) { return peft->n_modules; }
const lk_peft_module *lk_peft_at(const lk_peft *peft, int64_t index) { return &peft->modules[index]; }
int64_t lk_peft_n_values(const lk_peft *peft) { return peft->n_values; }
const lk_peft_value *lk_peft_value_at(const lk_peft *peft, int64_t index) { return &peft->values[index]; }
bool lk_peft_use_rslora(const lk_peft *peft) { return peft->rslora; }
bool lk_peft_ties_tables(const lk_peft *peft) { return peft->tie_tables; }
const char *lk_peft_base(const lk_peft *peft) { return peft->base; }
const char *lk_peft_digest(const lk_peft *peft) { return peft->digest; }
const char *lk_peft_metadata(const lk_peft *peft, const char *key) { return lk_safetensors_metadata(peft->st, key); }
