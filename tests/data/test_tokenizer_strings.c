/* Generated strings, many of them, against the `tokenizers` library.
 *
 * As a test it reads a sample (tests/golden/tokenizer_strings.json: strings as hexadecimal, so that malformed UTF-8 can stand there, and
 * the library's ids). With three arguments it is the tool that the sample's script uses to compare 100,000 strings a tokenizer:
 *
 *     test_data_tokenizer_strings TOKENIZER TEXTS IDS
 *
 * TEXTS holds {u32 size, bytes} after each other, IDS gets {u32 n, i32 ids, u32 size, bytes decoded from them without special tokens}; n is
 * 2^32-1 where encoding failed. Little-endian. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/json.h"
#include "data/tokenizer/tokenizer.h"
#include "tests/check.h"

static int run_batch(const char *tokenizer, const char *texts, const char *ids_path)
{
    lk_error err = {0};
    lk_tokenizer *tk;
    lk_map map;
    FILE *out = NULL;
    int rc = 1;
    double seconds = 0;
    if (lk_tokenizer_open(&tk, tokenizer, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return 3; /* the tokenizer was refused, which the caller may expect */
    }
    if (lk_map_open(&map, texts, &err) || !(out = fopen(ids_path, "wb"))) goto out;
    for (size_t at = 0; at + 4 <= map.size;) {
        uint32_t size, count = UINT32_MAX;
        memcpy(&size, map.data + at, 4);
        int32_t *ids;
        int64_t n;
        clock_t begin = clock();
        lk_status status = lk_tokenizer_encode(tk, (const char *)map.data + at + 4, size, LK_TK_SPECIALS, &ids, &n, &err);
        seconds += (double)(clock() - begin) / CLOCKS_PER_SEC;
        if (!status) count = (uint32_t)n;
        fwrite(&count, 4, 1, out);
        if (!status) {
            char *text;
            size_t length;
            fwrite(ids, sizeof *ids, (size_t)n, out);
            if (lk_tokenizer_decode(tk, ids, n, true, &text, &length, &err)) goto out;
            fwrite(&(uint32_t){(uint32_t)length}, 4, 1, out);
            fwrite(text, 1, length, out);
            free(text);
            free(ids);
        }
        at += 4 + size;
    }
    printf("%.3f\n", seconds);
    rc = fclose(out) != 0;
out:
    if (rc) fprintf(stderr, "%s: cannot read, or %s cannot be written\n", texts, ids_path);
    lk_map_close(&map);
    lk_tokenizer_close(tk);
    return rc;
}

static size_t unhex(const char *text, char *out)
{
    size_t n = strlen(text) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned byte = 0;
        sscanf(text + 2 * i, "%2x", &byte);
        out[i] = (char)byte;
    }
    return n;
}

static void check_tokenizer(const char *name, const cJSON *texts, const cJSON *entry)
{
    lk_error err = {0};
    lk_tokenizer *tk;
    const cJSON *path = lk_json_get(entry, "path"), *text = texts->child, *row;
    char *full =
        !strcmp(lk_json_get(entry, "root")->valuestring, "shared") ? check_shared(path->valuestring) : check_golden(path->valuestring);
    if (!full) return;
    CHECK_OK(lk_tokenizer_open(&tk, full, &err), &err);
    cJSON_ArrayForEach(row, lk_json_get(entry, "ids"))
    {
        char *bytes = malloc(strlen(text->valuestring) / 2 + 1);
        assert_non_null(bytes);
        size_t size = unhex(text->valuestring, bytes);
        int32_t *ids;
        int64_t n, i = 0;
        CHECK_OK(lk_tokenizer_encode(tk, bytes, size, LK_TK_SPECIALS, &ids, &n, &err), &err);
        const cJSON *id = row->child;
        for (; i < n && id; i++, id = id->next)
            if (ids[i] != id->valueint)
                fail_msg("%s: text %s: token %lld is %d, the library's %d", name, text->valuestring, (long long)i, ids[i], id->valueint);
        if (i < n || id)
            fail_msg("%s: text %s: %lld tokens, the library has %d", name, text->valuestring, (long long)n, cJSON_GetArraySize(row));
        free(ids);
        free(bytes);
        text = text->next;
    }
    lk_tokenizer_close(tk);
    free(full);
}

static void test_sample(void **state)
{
    (void)state;
    lk_error err = {0};
    cJSON *root;
    const cJSON *entry;
    char *path = check_golden("tokenizer_strings.json");
    CHECK_OK(lk_json_read(&root, path, 16 << 20, &err), &err);
    cJSON_ArrayForEach(entry, lk_json_get(root, "tokenizers")) check_tokenizer(entry->string, lk_json_get(root, "texts"), entry);
    cJSON_Delete(root);
    free(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sample)};
    if (argc == 4) return run_batch(argv[1], argv[2], argv[3]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
