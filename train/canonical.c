/* Sorting a copy would need cJSON's utility library; a writer that visits the keys in order is shorter. The difference of two recipes is
 * found here too, on the parsed trees. */
#include "train/canonical.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/recipe.h"

static int by_name(const void *a, const void *b) { return strcmp((*(const cJSON *const *)a)->string, (*(const cJSON *const *)b)->string); }

/* The children of an object or list in the order they are written; *n how many. free() it. NULL without memory. */
static const cJSON **children(const cJSON *v, int *n)
{
    const cJSON **list = calloc((size_t)cJSON_GetArraySize(v) + 1, sizeof *list), *child;
    *n = 0;
    if (!list) return NULL;
    cJSON_ArrayForEach(child, v) list[(*n)++] = child;
    if (cJSON_IsObject(v)) qsort(list, (size_t)*n, sizeof *list, by_name);
    return list;
}

static void quoted(FILE *out, const char *text)
{
    cJSON *s = cJSON_CreateStringReference(text);
    char *shown = s ? cJSON_PrintUnformatted(s) : NULL;
    fputs(shown ? shown : "\"\"", out);
    cJSON_free(shown);
    cJSON_Delete(s);
}

/* Depth is bounded by lk_json_parse. */
static void write_value(FILE *out, const cJSON *v)
{
    if (!cJSON_IsObject(v) && !cJSON_IsArray(v)) {
        if (cJSON_IsString(v)) {
            quoted(out, v->valuestring);
        } else if (cJSON_IsNumber(v)) {
            fprintf(out, "%.17g", v->valuedouble);
        } else {
            fputs(cJSON_IsTrue(v) ? "true" : cJSON_IsFalse(v) ? "false" : "null", out);
        }
        return;
    }
    int n;
    const cJSON **list = children(v, &n);
    fputc(cJSON_IsObject(v) ? '{' : '[', out);
    for (int i = 0; list && i < n; i++) {
        if (i) fputc(',', out);
        if (cJSON_IsObject(v)) {
            quoted(out, list[i]->string);
            fputc(':', out);
        }
        write_value(out, list[i]);
    }
    fputc(cJSON_IsObject(v) ? '}' : ']', out);
    free(list);
}

char *lk_canonical_json(const cJSON *value)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return NULL;
    write_value(out, value);
    if (fclose(out) == 0) return text;
    free(text);
    return NULL;
}

/* ---------------------------------------------------------------------------------------------- what differs */

static void note(char *text, size_t size, const char *path, const cJSON *here, const cJSON *there)
{
    char *a = here ? lk_canonical_json(here) : NULL, *b = there ? lk_canonical_json(there) : NULL;
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s is %.60s here and %.60s there", used ? "; " : "", path, a ? a : "missing", b ? b : "missing");
    free(a);
    free(b);
}

static void compare(char *text, size_t size, const char *path, const cJSON *here, const cJSON *there)
{
    if (!cJSON_IsObject(here) || !cJSON_IsObject(there)) {
        char *a = lk_canonical_json(here), *b = lk_canonical_json(there);
        if (a && b && strcmp(a, b)) note(text, size, path, here, there);
        free(a);
        free(b);
        return;
    }
    const cJSON *child;
    char below[400];
    cJSON_ArrayForEach(child, here)
    {
        snprintf(below, sizeof below, "%s%s%s", path, *path ? "." : "", child->string);
        const cJSON *other = lk_json_get(there, child->string);
        if (other)
            compare(text, size, below, child, other);
        else
            note(text, size, below, child, NULL);
    }
    cJSON_ArrayForEach(child, there)
    {
        if (lk_json_get(here, child->string)) continue;
        snprintf(below, sizeof below, "%s%s%s", path, *path ? "." : "", child->string);
        note(text, size, below, NULL, child);
    }
}

bool lk_recipe_difference(const char *here, const char *there, char *text, size_t size)
{
    text[0] = 0;
    if (!strcmp(here, there)) return false;
    cJSON *a = NULL, *b = NULL;
    if (!lk_json_parse(&a, here, strlen(here), "recipe", NULL) && !lk_json_parse(&b, there, strlen(there), "recipe", NULL))
        compare(text, size, "", a, b);
    cJSON_Delete(a);
    cJSON_Delete(b);
    if (!text[0]) snprintf(text, size, "the recipes are written differently");
    return true;
}
