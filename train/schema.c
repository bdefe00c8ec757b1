/* A direct interpreter: one function a keyword, walking schema and instance together. Messages are what a person needs (place, what is
 * wrong, what is allowed), which is why this is not a general validator that only says "does not match". Unknown keys are looked for before
 * missing ones: a misspelt key is usually both. */
#include "train/schema.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH = 400, MAX_KEY = 64 };

typedef struct check {
    const cJSON *root; /* of the schema */
    const char *where;
    lk_error *err;
} check;

/* ---------------------------------------------------------------------------------------------- small helpers */

static lk_status refuse(const check *c, const char *path, const char *text)
{
    return lk_fail(c->err, LK_ERR_ARGUMENT, "%s: %s%s%s", c->where, path, *path ? ": " : "", text);
}

static const cJSON *resolve(const cJSON *root, const cJSON *schema)
{
    const cJSON *ref = lk_json_get(schema, "$ref");
    if (!cJSON_IsString(ref) || strncmp(ref->valuestring, "#/", 2)) return schema;
    const cJSON *at = root;
    const char *p = ref->valuestring + 2;
    while (at && *p) {
        char part[100];
        size_t n = strcspn(p, "/");
        snprintf(part, sizeof part, "%.*s", (int)n, p);
        at = lk_json_get(at, part);
        p += n + (p[n] == '/');
    }
    return at;
}

static void child_path(char out[PATH], const char *path, const char *key)
{
    snprintf(out, PATH, "%s%s%.100s", path, *path ? "." : "", key);
}

static const char *type_name(const cJSON *v)
{
    if (cJSON_IsNull(v)) return "null";
    if (cJSON_IsBool(v)) return "a boolean";
    if (cJSON_IsNumber(v)) return "a number";
    if (cJSON_IsString(v)) return "a string";
    return cJSON_IsArray(v) ? "a list" : "an object";
}

static bool is_type(const cJSON *v, const char *type)
{
    if (!strcmp(type, "object")) return cJSON_IsObject(v);
    if (!strcmp(type, "array")) return cJSON_IsArray(v);
    if (!strcmp(type, "string")) return cJSON_IsString(v);
    if (!strcmp(type, "boolean")) return cJSON_IsBool(v);
    if (!strcmp(type, "number")) return cJSON_IsNumber(v);
    /* beyond 2^53 a double no longer holds every whole number */
    return cJSON_IsNumber(v) && v->valuedouble == floor(v->valuedouble) && fabs(v->valuedouble) <= 9007199254740992.0;
}

static bool same_scalar(const cJSON *a, const cJSON *b)
{
    if (cJSON_IsString(a) && cJSON_IsString(b)) return !strcmp(a->valuestring, b->valuestring);
    if (cJSON_IsNumber(a) && cJSON_IsNumber(b)) return a->valuedouble == b->valuedouble;
    return cJSON_IsBool(a) && cJSON_IsBool(b) && cJSON_IsTrue(a) == cJSON_IsTrue(b);
}

static void append(char *text, size_t size, const char *more)
{
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s", more);
}

static void append_value(char *text, size_t size, const cJSON *v)
{
    char *shown = cJSON_PrintUnformatted(v);
    char cut[100];
    snprintf(cut, sizeof cut, "%.90s", shown ? shown : "?");
    append(text, size, cut);
    cJSON_free(shown);
}

/* ---------------------------------------------------------------------------------------------- unknown keys */

static int smallest(int a, int b, int c) { return a < b ? (a < c ? a : c) : (b < c ? b : c); }

/* Levenshtein's distance; long keys are compared by their beginning. */
static int distance(const char *a, const char *b)
{
    int n = (int)strnlen(a, MAX_KEY), m = (int)strnlen(b, MAX_KEY), row[MAX_KEY + 1];
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int corner = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int above = row[j];
            row[j] = smallest(row[j] + 1, row[j - 1] + 1, corner + (a[i - 1] != b[j - 1]));
            corner = above;
        }
    }
    return row[m];
}

typedef struct nearest {
    const char *key;
    const cJSON *home; /* the schema that has the key */
    int best;
    char path[PATH];
} nearest;

/* Looks through the schema below `schema` for the key most like n->key. Keys of `home` win ties. */
static void search(const cJSON *root, const cJSON *schema, const char *path, int depth, nearest *n)
{
    schema = resolve(root, schema);
    const cJSON *properties = lk_json_get(schema, "properties"), *p;
    if (depth > 8) return;
    cJSON_ArrayForEach(p, properties)
    {
        char child[PATH];
        child_path(child, path, p->string);
        int d = 2 * distance(n->key, p->string) + (schema != n->home);
        if (d < n->best) {
            n->best = d;
            snprintf(n->path, sizeof n->path, "%s", child);
        }
        search(root, p, child, depth + 1, n);
        const cJSON *items = lk_json_get(resolve(root, p), "items");
        if (items) {
            append(child, sizeof child, "[]");
            search(root, items, child, depth + 1, n);
        }
    }
}

static lk_status unknown_key(const check *c, const cJSON *schema, const char *path, const char *key)
{
    nearest n = {.key = key, .home = schema, .best = 2 * MAX_KEY};
    search(c->root, c->root, "", 0, &n);
    char text[700];
    snprintf(text, sizeof text, "unknown key \"%.60s\"", key);
    /* More than half of the letters wrong is no help. */
    size_t length = strlen(key);
    if (n.path[0] && (size_t)n.best <= (length < 4 ? 3 : length)) {
        append(text, sizeof text, "; did you mean \"");
        append(text, sizeof text, n.path);
        append(text, sizeof text, "\"?");
    }
    append(text, sizeof text, " Known here:");
    const cJSON *properties = lk_json_get(schema, "properties"), *p;
    cJSON_ArrayForEach(p, properties)
    {
        append(text, sizeof text, p == properties->child ? " " : ", ");
        append(text, sizeof text, p->string);
    }
    return refuse(c, path, text);
}

/* ---------------------------------------------------------------------------------------------- keywords */

static lk_status check_value(const check *c, const cJSON *schema, const cJSON *v, const char *path);

static lk_status check_object(const check *c, const cJSON *schema, const cJSON *v, const char *path)
{
    const cJSON *properties = lk_json_get(schema, "properties"), *rest = lk_json_get(schema, "additionalProperties"), *key;
    cJSON_ArrayForEach(key, v)
    {
        if (lk_json_get(properties, key->string)) continue;
        if (cJSON_IsFalse(rest)) return unknown_key(c, schema, path, key->string);
    }
    cJSON_ArrayForEach(key, lk_json_get(schema, "required"))
    {
        if (lk_json_get(v, key->valuestring)) continue;
        char text[200];
        snprintf(text, sizeof text, "\"%s\" is missing", key->valuestring);
        return refuse(c, path, text);
    }
    cJSON_ArrayForEach(key, v)
    {
        const cJSON *sub = lk_json_get(properties, key->string);
        char child[PATH];
        child_path(child, path, key->string);
        if (!sub && cJSON_IsObject(rest)) sub = rest;
        if (sub) LK_TRY(check_value(c, sub, key, child));
    }
    return LK_OK;
}

static lk_status check_array(const check *c, const cJSON *schema, const cJSON *v, const char *path)
{
    const cJSON *items = lk_json_get(schema, "items"), *least = lk_json_get(schema, "minItems"), *most = lk_json_get(schema, "maxItems"),
                *item;
    int n = cJSON_GetArraySize(v), index = 0;
    char text[100];
    if (least && n < least->valuedouble) {
        snprintf(text, sizeof text, "has %d entries, at least %g wanted", n, least->valuedouble);
        return refuse(c, path, text);
    }
    if (most && n > most->valuedouble) {
        snprintf(text, sizeof text, "has %d entries, at most %g wanted", n, most->valuedouble);
        return refuse(c, path, text);
    }
    if (!items) return LK_OK;
    cJSON_ArrayForEach(item, v)
    {
        char child[PATH];
        snprintf(child, sizeof child, "%.350s[%d]", path, index++);
        LK_TRY(check_value(c, items, item, child));
    }
    return LK_OK;
}

static lk_status check_range(const check *c, const cJSON *schema, const cJSON *v, const char *path)
{
    static const struct {
        const char *keyword, *words;
    } rules[] = {{"minimum", "at least"}, {"maximum", "at most"}, {"exclusiveMinimum", "above"}, {"exclusiveMaximum", "below"}};
    for (int i = 0; i < 4; i++) {
        const cJSON *bound = lk_json_get(schema, rules[i].keyword);
        if (!bound) continue;
        double x = v->valuedouble, b = bound->valuedouble;
        if (i == 0 ? x >= b : i == 1 ? x <= b : i == 2 ? x > b : x < b) continue;
        char text[160];
        snprintf(text, sizeof text, "must be %s %.10g, not %.10g", rules[i].words, b, x);
        return refuse(c, path, text);
    }
    return LK_OK;
}

static lk_status check_enum(const check *c, const cJSON *allowed, const cJSON *v, const char *path)
{
    const cJSON *one;
    char text[500] = "must be one of";
    cJSON_ArrayForEach(one, allowed)
    {
        if (same_scalar(one, v)) return LK_OK;
        append(text, sizeof text, one == allowed->child ? " " : ", ");
        append_value(text, sizeof text, one);
    }
    append(text, sizeof text, "; found ");
    append_value(text, sizeof text, v);
    return refuse(c, path, text);
}

/* Would this alternative take a value of v's JSON type at all? Then its complaint is the one to show. */
static bool speaks_of(const check *c, const cJSON *schema, const cJSON *v)
{
    schema = resolve(c->root, schema);
    const cJSON *type = lk_json_get(schema, "type"), *allowed = lk_json_get(schema, "enum"), *constant = lk_json_get(schema, "const");
    if (type) return is_type(v, type->valuestring) || (cJSON_IsNumber(v) && !strcmp(type->valuestring, "integer"));
    const cJSON *example = allowed ? allowed->child : constant;
    return example ? !strcmp(type_name(example), type_name(v)) : false;
}

static void describe(char *text, size_t size, const cJSON *schema)
{
    const cJSON *type = lk_json_get(schema, "type"), *allowed = lk_json_get(schema, "enum"), *constant = lk_json_get(schema, "const"), *one;
    const cJSON *required = lk_json_get(schema, "required");
    if (constant)
        append_value(text, size, constant);
    else if (type)
        append(text, size, type->valuestring);
    else if (required)
        append_value(text, size, required->child);
    cJSON_ArrayForEach(one, allowed)
    {
        if (one != allowed->child) append(text, size, ", ");
        append_value(text, size, one);
    }
}

static lk_status check_alternatives(const check *c, const cJSON *list, bool exactly_one, const cJSON *v, const char *path)
{
    const cJSON *one, *speaker = NULL;
    int passed = 0;
    bool keys_only = true;
    char text[500] = "";
    cJSON_ArrayForEach(one, list)
    {
        check quiet = {c->root, c->where, NULL};
        if (!check_value(&quiet, one, v, path)) passed++;
        if (speaks_of(c, one, v)) speaker = one;
        keys_only = keys_only && lk_json_get(one, "required") && !lk_json_get(one, "type");
        if (one != list->child) append(text, sizeof text, " or ");
        describe(text, sizeof text, resolve(c->root, one));
    }
    if (exactly_one ? passed == 1 : passed > 0) return LK_OK;
    if (speaker && passed == 0) return check_value(c, speaker, v, path);
    char message[700];
    snprintf(message, sizeof message, keys_only ? "give exactly one of %s" : "must be %s", text);
    return refuse(c, path, message);
}

/* A keyword that nobody interprets would be a rule that nobody checks. */
static lk_status check_keywords(const check *c, const cJSON *schema)
{
    static const char *const known[] = {"$schema",
                                        "$defs",
                                        "$ref",
                                        "title",
                                        "description",
                                        "default",
                                        "type",
                                        "properties",
                                        "required",
                                        "additionalProperties",
                                        "items",
                                        "minItems",
                                        "maxItems",
                                        "enum",
                                        "const",
                                        "minimum",
                                        "maximum",
                                        "exclusiveMinimum",
                                        "exclusiveMaximum",
                                        "anyOf",
                                        "oneOf"};
    const cJSON *key;
    cJSON_ArrayForEach(key, schema)
    {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) found = found || !strcmp(key->string, known[i]);
        if (!found) return lk_fail(c->err, LK_ERR_INTERNAL, "the schema uses the keyword \"%.40s\", which is not interpreted", key->string);
    }
    return LK_OK;
}

static lk_status check_value(const check *c, const cJSON *schema, const cJSON *v, const char *path)
{
    LK_TRY(check_keywords(c, schema));
    schema = resolve(c->root, schema);
    if (!schema) return lk_fail(c->err, LK_ERR_INTERNAL, "the schema has a $ref to nowhere");
    LK_TRY(check_keywords(c, schema));
    const cJSON *type = lk_json_get(schema, "type"), *rule;
    if (type && !is_type(v, type->valuestring)) {
        char text[100];
        bool whole = !strcmp(type->valuestring, "integer");
        snprintf(text, sizeof text, "must be %s, not %s", whole ? "a whole number" : type->valuestring,
                 cJSON_IsNumber(v) && whole ? "a fraction" : type_name(v));
        return refuse(c, path, text);
    }
    if ((rule = lk_json_get(schema, "const")) && !same_scalar(rule, v)) {
        char text[300] = "must be ";
        append_value(text, sizeof text, rule);
        append(text, sizeof text, ", the only value known; found ");
        append_value(text, sizeof text, v);
        return refuse(c, path, text);
    }
    if ((rule = lk_json_get(schema, "enum"))) LK_TRY(check_enum(c, rule, v, path));
    if (cJSON_IsNumber(v)) LK_TRY(check_range(c, schema, v, path));
    if (cJSON_IsObject(v)) LK_TRY(check_object(c, schema, v, path));
    if (cJSON_IsArray(v)) LK_TRY(check_array(c, schema, v, path));
    if ((rule = lk_json_get(schema, "anyOf"))) LK_TRY(check_alternatives(c, rule, false, v, path));
    if ((rule = lk_json_get(schema, "oneOf"))) LK_TRY(check_alternatives(c, rule, true, v, path));
    return LK_OK;
}

lk_status lk_schema_check(const cJSON *schema, const cJSON *instance, const char *where, lk_error *err)
{
    check c = {schema, where, err};
    return check_value(&c, schema, instance, "");
}

/* ---------------------------------------------------------------------------------------------- defaults */

static lk_status fill(const cJSON *root, const cJSON *schema, cJSON *v, lk_error *err)
{
    schema = resolve(root, schema);
    const cJSON *p;
    cJSON *item;
    if (cJSON_IsObject(v)) {
        cJSON_ArrayForEach(p, lk_json_get(schema, "properties"))
        {
            const cJSON *value = lk_json_get(p, "default");
            if (value && !lk_json_get(v, p->string)) {
                cJSON *copy = cJSON_Duplicate(value, 1);
                if (!copy || !cJSON_AddItemToObject(v, p->string, copy)) {
                    cJSON_Delete(copy);
                    return lk_fail(err, LK_ERR_MEMORY, "no memory for the default of %s", p->string);
                }
            }
            if ((item = lk_json_get(v, p->string))) LK_TRY(fill(root, p, item, err));
        }
    }
    const cJSON *items = lk_json_get(schema, "items");
    if (cJSON_IsArray(v) && items) cJSON_ArrayForEach(item, v) LK_TRY(fill(root, items, item, err));
    return LK_OK;
}

lk_status lk_schema_fill(const cJSON *schema, cJSON *instance, lk_error *err) { return fill(schema, schema, instance, err); }
