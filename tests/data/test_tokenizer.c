/* Tokenizers against the `tokenizers` library (tests/golden/tokenizers.json: ids and decoded texts of twelve pipelines on awkward texts),
 * streaming against whole decoding, the places of tokens, behaviour on long words, and hostile files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/json.h"
#include "data/tokenizer/tokenizer.h"
#include "tests/check.h"

enum { FILE_LIMIT = 64 << 20 };

static char *read_text(const char *path, size_t *size)
{
    lk_error err = {0};
    char *text;
    CHECK_OK(lk_file_read(path, FILE_LIMIT, &text, size, &err), &err);
    return text;
}

static cJSON *golden_json(const char *name)
{
    lk_error err = {0};
    char *path = check_golden(name);
    cJSON *root;
    CHECK_OK(lk_json_read(&root, path, FILE_LIMIT, &err), &err);
    free(path);
    return root;
}

static int64_t read_ids(const cJSON *list, int32_t **ids)
{
    int n = cJSON_GetArraySize(list), i = 0;
    const cJSON *node;
    *ids = malloc(((size_t)n + 1) * sizeof **ids);
    assert_non_null(*ids);
    cJSON_ArrayForEach(node, list)(*ids)[i++] = node->valueint;
    return n;
}

static void same_ids(const char *what, const char *text, const int32_t *got, int64_t n_got, const cJSON *want)
{
    int64_t i = 0;
    const cJSON *node = want ? want->child : NULL;
    for (; i < n_got && node; i++, node = node->next)
        if (got[i] != node->valueint)
            fail_msg("%s: \"%s\": token %lld is %d, the library's %d", what, text, (long long)i, got[i], node->valueint);
    if (i != n_got || node) fail_msg("%s: \"%s\": %lld tokens, the library has %d", what, text, (long long)n_got, cJSON_GetArraySize(want));
}

/* A tokenizer.json out of vocab.json and merges.txt, with the pipeline the family's file has. */
static char *synthesise(const char *vocab_path, const char *merges_path, bool qwen)
{
    size_t n_vocab, n_merges;
    char *vocab = read_text(vocab_path, &n_vocab), *merges = read_text(merges_path, &n_merges);
    static const char qwen_pre[] =
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|"
        "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
        "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}";
    static const char gpt2_pre[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}";
    char *json = malloc(n_vocab + 3 * n_merges + 4096), *to = json;
    assert_non_null(json);
    to += sprintf(to, "{\"added_tokens\":[");
    if (qwen)
        to += sprintf(to, "{\"id\":151643,\"content\":\"<|endoftext|>\",\"special\":true,\"normalized\":false},"
                          "{\"id\":151644,\"content\":\"<|im_start|>\",\"special\":true,\"normalized\":false},"
                          "{\"id\":151645,\"content\":\"<|im_end|>\",\"special\":true,\"normalized\":false}");
    else
        to += sprintf(to, "{\"id\":50256,\"content\":\"<|endoftext|>\",\"special\":true,\"normalized\":false}");
    to +=
        sprintf(to, "],\"normalizer\":%s,\"pre_tokenizer\":%s,\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":",
                qwen ? "{\"type\":\"NFC\"}" : "null", qwen ? qwen_pre : gpt2_pre);
    memcpy(to, vocab, n_vocab);
    to += n_vocab;
    to += sprintf(to, ",\"merges\":[");
    bool first = true;
    char *rest = merges, *line;
    while ((line = strsep(&rest, "\n"))) {
        if (!*line || !strncmp(line, "#version", 8)) continue;
        to += sprintf(to, "%s\"", first ? "" : ",");
        first = false;
        for (; *line; line++) {
            if (*line == '"' || *line == '\\') *to++ = '\\';
            *to++ = *line;
        }
        *to++ = '"';
    }
    strcpy(to, "]}}");
    free(vocab);
    free(merges);
    return json;
}

/* Opens the tokenizer a golden entry names; NULL when it lies in the shared data and that is not here. */
static lk_tokenizer *open_golden(const char *name, const cJSON *entry)
{
    lk_error err = {0};
    lk_tokenizer *tk = NULL;
    const cJSON *path = lk_json_get(entry, "path");
    if (path) {
        bool shared = !strcmp(lk_json_get(entry, "root")->valuestring, "shared");
        char *full = shared ? check_shared(path->valuestring) : check_golden(path->valuestring);
        if (full) CHECK_OK(lk_tokenizer_open(&tk, full, &err), &err);
        free(full);
        return tk;
    }
    char *vocab = check_shared(lk_json_get(entry, "vocab")->valuestring), *merges = check_shared(lk_json_get(entry, "merges")->valuestring);
    if (vocab && merges) {
        char *json = synthesise(vocab, merges, strstr(name, "qwen") != NULL);
        CHECK_OK(lk_tokenizer_parse(&tk, json, strlen(json), name, &err), &err);
        free(json);
    }
    free(vocab);
    free(merges);
    return tk;
}

/* Streams the ids; every emission must be whole characters, and all of them together what the whole decode gives. */
static void check_stream(const char *what, const lk_tokenizer *tk, const int32_t *ids, int64_t n, bool skip, const char *want,
                         size_t want_size)
{
    lk_error err = {0};
    lk_detokenizer *d;
    char *all = malloc(want_size + 64);
    size_t total = 0;
    CHECK_OK(lk_detokenizer_create(&d, tk, skip, &err), &err);
    for (int64_t i = 0; i <= n; i++) {
        const char *text;
        size_t size;
        if (i < n)
            CHECK_OK(lk_detokenizer_push(d, ids[i], &text, &size, &err), &err);
        else
            CHECK_OK(lk_detokenizer_finish(d, &text, &size, &err), &err);
        if (total + size > want_size) fail_msg("%s: the stream gives more than the whole decode", what);
        memcpy(all + total, text, size);
        /* a cut before a continuation byte would be half a character */
        if (size && ((unsigned char)text[0] & 0xc0) == 0x80)
            fail_msg("%s: the stream cut a character before token %lld", what, (long long)i);
        total += size;
    }
    if (total != want_size || memcmp(all, want, total)) fail_msg("%s: streamed \"%.*s\", decoded \"%s\"", what, (int)total, all, want);
    lk_detokenizer_destroy(d);
    free(all);
}

static void check_decode(const char *what, const lk_tokenizer *tk, const int32_t *ids, int64_t n, bool skip, const char *want)
{
    lk_error err = {0};
    char *text;
    size_t size;
    CHECK_OK(lk_tokenizer_decode(tk, ids, n, skip, &text, &size, &err), &err);
    if (want && (size != strlen(want) || strcmp(text, want))) fail_msg("%s: decoded \"%s\", the library \"%s\"", what, text, want);
    check_stream(what, tk, ids, n, skip, text, size);
    free(text);
}

/* Starts come in order, lie in the text, and the ids are those of the plain call, however the text is cut into parts. */
static void check_parts(const char *what, const lk_tokenizer *tk, const char *text, const int32_t *want, int64_t n_want)
{
    lk_error err = {0};
    size_t size = strlen(text), cut = size / 3;
    lk_text_part parts[3] = {{text, cut, false}, {text + cut, cut, false}, {text + 2 * cut, size - 2 * cut, false}};
    int32_t *ids;
    int64_t *starts, n;
    CHECK_OK(lk_tokenizer_encode_parts(tk, parts, 3, (lk_text_marks){0}, 0, &ids, &starts, &n, &err), &err);
    if (n != n_want || memcmp(ids, want, (size_t)n * sizeof *ids)) fail_msg("%s: \"%s\": parts give other ids", what, text);
    for (int64_t i = 0; i < n; i++)
        if (starts[i] < (i ? starts[i - 1] : 0) || starts[i] > (int64_t)size)
            fail_msg("%s: \"%s\": token %lld starts at %lld", what, text, (long long)i, (long long)starts[i]);
    free(ids);
    free(starts);
}

static void check_one(const char *name, const lk_tokenizer *tk, const cJSON *texts, const cJSON *entry)
{
    lk_error err = {0};
    int32_t *ids;
    int64_t n;
    const cJSON *text = texts->child, *row;
    cJSON_ArrayForEach(row, lk_json_get(entry, "cases"))
    {
        const cJSON *special = lk_json_get(row, "special"), *keep = lk_json_get(row, "keep"), *plain = lk_json_get(row, "text");
        const char *t = text->valuestring;
        CHECK_OK(lk_tokenizer_encode(tk, t, strlen(t), 0, &ids, &n, &err), &err);
        same_ids(name, t, ids, n, lk_json_get(row, "ids"));
        check_parts(name, tk, t, ids, n);
        free(ids);
        CHECK_OK(lk_tokenizer_encode(tk, t, strlen(t), LK_TK_SPECIALS, &ids, &n, &err), &err);
        same_ids(name, t, ids, n, special ? special : lk_json_get(row, "ids"));
        check_decode(name, tk, ids, n, true, plain->valuestring);
        check_decode(name, tk, ids, n, false, keep ? keep->valuestring : plain->valuestring);
        free(ids);
        text = text->next;
    }
    cJSON_ArrayForEach(row, lk_json_get(entry, "decode"))
    {
        const cJSON *keep = lk_json_get(row, "keep"), *plain = lk_json_get(row, "text");
        n = read_ids(lk_json_get(row, "ids"), &ids);
        check_decode(name, tk, ids, n, true, plain->valuestring);
        check_decode(name, tk, ids, n, false, keep ? keep->valuestring : plain->valuestring);
        free(ids);
    }
    /* any ids at all: the library has no opinion here, but streaming and whole must agree */
    check_random r = {7};
    int32_t random[40];
    for (int round = 0; round < 50; round++) {
        n = (int64_t)(check_random_u64(&r) % 40);
        for (int64_t i = 0; i < n; i++) random[i] = (int32_t)(check_random_u64(&r) % (uint64_t)(lk_tokenizer_size(tk) + 5));
        check_decode(name, tk, random, n, round & 1, NULL);
    }
}

static void test_goldens(void **state)
{
    (void)state;
    cJSON *root = golden_json("tokenizers.json");
    const cJSON *texts = lk_json_get(root, "texts"), *entry;
    int checked = 0;
    cJSON_ArrayForEach(entry, lk_json_get(root, "tokenizers"))
    {
        lk_tokenizer *tk = open_golden(entry->string, entry);
        if (!tk) continue;
        check_one(entry->string, tk, texts, entry);
        lk_tokenizer_close(tk);
        checked++;
    }
    printf("%d tokenizers agree with the library\n", checked);
    assert_true(checked >= 5);
    cJSON_Delete(root);
}

/* llama.cpp's texts and ids for GPT-2 and Qwen2. */
static void check_vectors(const char *vocab_name, const char *merges_name, const char *inputs_name, const char *outputs_name, bool qwen)
{
    char *vocab = check_shared(vocab_name), *merges = check_shared(merges_name), *inputs = check_shared(inputs_name),
         *outputs = check_shared(outputs_name);
    if (vocab && merges && inputs && outputs) {
        lk_error err = {0};
        lk_tokenizer *tk;
        size_t n_in, n_out;
        char *json = synthesise(vocab, merges, qwen), *in = read_text(inputs, &n_in), *out = read_text(outputs, &n_out), *line = out,
             *text = in;
        CHECK_OK(lk_tokenizer_parse(&tk, json, strlen(json), "vectors", &err), &err);
        static const char mark[] = "\n__ggml_vocab_test__\n";
        int count = 0;
        while (text) {
            char *end = strstr(text, mark), *next = end ? end + strlen(mark) : NULL;
            size_t size = end ? (size_t)(end - text) : strlen(text);
            int32_t *ids;
            int64_t n;
            CHECK_OK(lk_tokenizer_encode(tk, text, size, 0, &ids, &n, &err), &err);
            if (!next && size == 0) { /* the file ends in the mark */
                free(ids);
                break;
            }
            for (int64_t i = 0; i < n; i++) {
                long want = strtol(line, &line, 10);
                if (ids[i] != want)
                    fail_msg("%s: \"%.*s\": token %lld is %d, want %ld", inputs_name, (int)size, text, (long long)i, ids[i], want);
            }
            while (*line == ' ') line++;
            if (*line != '\n' && *line) fail_msg("%s: \"%.*s\": %lld tokens are too few", inputs_name, (int)size, text, (long long)n);
            if (*line) line++;
            free(ids);
            text = next;
            count++;
        }
        printf("%s: %d texts\n", inputs_name, count);
        assert_true(count >= 40);
        lk_tokenizer_close(tk);
        free(json);
        free(in);
        free(out);
    }
    free(vocab);
    free(merges);
    free(inputs);
    free(outputs);
}

static void test_vectors(void **state)
{
    (void)state;
    check_vectors("tokenizers/gpt2/gpt2_vocab.json", "tokenizers/gpt2/gpt2_merges.txt", "tokenizers/vectors/gpt-2.inp",
                  "tokenizers/vectors/gpt-2.out", false);
    check_vectors("tokenizers/qwen2.5/vocab.json", "tokenizers/qwen2.5/merges.txt", "tokenizers/vectors/qwen2.inp",
                  "tokenizers/vectors/qwen2.out", true);
}

static lk_tokenizer *open_own(const char *name)
{
    lk_error err = {0};
    lk_tokenizer *tk;
    char *path = check_golden(name);
    CHECK_OK(lk_tokenizer_open(&tk, path, &err), &err);
    free(path);
    return tk;
}

static bool has_id(const int32_t *ids, int64_t n, int32_t id)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] == id) return true;
    return false;
}

static void test_plain_text(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tokenizer *tk = open_own("tokenizers/qwen.json");
    int32_t end = lk_tokenizer_id(tk, "<|im_end|>"), lone = lk_tokenizer_id(tk, "[lone]"), *ids;
    int64_t n, *starts;
    static const char text[] = "a<|im_end|> [lone] b";
    assert_true(end >= 0 && lone >= 0 && lk_tokenizer_is_special(tk, end) && !lk_tokenizer_is_special(tk, lone));
    CHECK_OK(lk_tokenizer_encode(tk, text, strlen(text), 0, &ids, &n, &err), &err);
    assert_true(has_id(ids, n, end) && has_id(ids, n, lone));
    free(ids);
    CHECK_OK(lk_tokenizer_encode(tk, text, strlen(text), LK_TK_PLAIN_TEXT, &ids, &n, &err), &err);
    assert_true(!has_id(ids, n, end) && has_id(ids, n, lone));
    check_decode("plain text", tk, ids, n, true, text); /* nothing is lost */
    free(ids);

    /* half of the mark in the template and half in the content is no mark, and the template's own one after it counts */
    lk_text_part parts[] = {{"<|im_", 5, false}, {"end|>x<|im_end|>y<|im", 21, true}, {"<|im_end|>", 10, false}, {"_end|>", 6, true}};
    CHECK_OK(lk_tokenizer_encode_parts(tk, parts, 4, (lk_text_marks){0}, 0, &ids, &starts, &n, &err), &err);
    int marks = 0;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] == end) {
            marks++;
            assert_int_equal(starts[i], 26);
        }
    assert_int_equal(marks, 1);
    free(ids);
    free(starts);
    lk_tokenizer_close(tk);
}

static void test_malformed_text(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t size;
        const char *same_as;
    } rows[] = {
        {"a\xff"
         "b",
         3,
         "a\xef\xbf\xbd"
         "b"},
        {"\xe2\x82", 2, "\xef\xbf\xbd"}, /* a truncated character is one */
        {"\xe2\x82\xe2\x82\xac", 5, "\xef\xbf\xbd\xe2\x82\xac"},
        {"\xc0\xaf", 2, "\xef\xbf\xbd\xef\xbf\xbd"},                                 /* overlong */
        {"\xed\xa0\x80", 3, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},                 /* a surrogate */
        {"\xf4\x90\x80\x80", 4, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* beyond U+10FFFF */
        {"\xf0\x9f\x99", 3, "\xef\xbf\xbd"},
        {"\x80"
         "a",
         2,
         "\xef\xbf\xbd"
         "a"},
    };
    lk_error err = {0};
    static const char *const files[] = {"tokenizers/qwen.json", "tokenizers/spm.json"};
    for (int f = 0; f < 2; f++) {
        lk_tokenizer *tk = open_own(files[f]);
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            int32_t *a, *b;
            int64_t n, m;
            CHECK_OK(lk_tokenizer_encode(tk, rows[i].bytes, rows[i].size, 0, &a, &n, &err), &err);
            CHECK_OK(lk_tokenizer_encode(tk, rows[i].same_as, strlen(rows[i].same_as), 0, &b, &m, &err), &err);
            assert_int_equal(n, m);
            assert_memory_equal(a, b, (size_t)n * sizeof *a);
            free(a);
            free(b);
        }
        /* a zero byte is a character like any other */
        int32_t *ids;
        int64_t n;
        char *text;
        size_t size;
        CHECK_OK(lk_tokenizer_encode(tk, "a\0b", 3, 0, &ids, &n, &err), &err);
        CHECK_OK(lk_tokenizer_decode(tk, ids, n, true, &text, &size, &err), &err);
        assert_int_equal(size, 3);
        assert_memory_equal(text, "a\0b", 3);
        free(ids);
        free(text);
        lk_tokenizer_close(tk);
    }
}

static void test_lookups(void **state)
{
    (void)state;
    size_t size;
    lk_tokenizer *tk = open_own("tokenizers/qwen.json");
    int32_t end = lk_tokenizer_id(tk, "<|im_end|>"), space = lk_tokenizer_id(tk, "\xc4\xa0"); /* the byte alphabet's space */
    assert_int_equal(lk_tokenizer_id(tk, "no such token"), -1);
    assert_string_equal(lk_tokenizer_piece(tk, end, &size), "<|im_end|>");
    assert_int_equal(size, 10);
    assert_string_equal(lk_tokenizer_bytes(tk, space, &size), " ");
    assert_null(lk_tokenizer_piece(tk, -1, &size));
    assert_null(lk_tokenizer_piece(tk, lk_tokenizer_size(tk), NULL));
    assert_int_equal(lk_tokenizer_bos(tk), -1);
    assert_null(lk_tokenizer_chat_template(tk));
    assert_int_equal(strlen(lk_tokenizer_digest(tk)), 64);
    lk_tokenizer_close(tk);
    tk = open_own("tokenizers/spm.json");
    int32_t byte = lk_tokenizer_id(tk, "<0x0A>");
    assert_string_equal(lk_tokenizer_bytes(tk, byte, &size), "\n");
    lk_error err = {0};
    lk_detokenizer *d;
    const char *text;
    CHECK_OK(lk_detokenizer_create(&d, tk, true, &err), &err);
    CHECK_FAILS(lk_detokenizer_push(d, -3, &text, &size, &err), LK_ERR_ARGUMENT, "-3", &err);
    lk_detokenizer_destroy(d);
    lk_tokenizer_close(tk);
}

/* The files beside tokenizer.json. */
static void test_folder(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tokenizer *tk;
    char *folder = check_temporary("tokenizer_folder"), path[4096];
    size_t size;
    char *golden = check_golden("tokenizers/spm.json"), *json = read_text(golden, &size);
    CHECK_FAILS(lk_tokenizer_open(&tk, folder, &err), LK_ERR_NOT_FOUND, "tokenizer.json", &err);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    check_write_file(path, json, size);
    CHECK_OK(lk_tokenizer_open(&tk, folder, &err), &err);
    char first[65];
    strcpy(first, lk_tokenizer_digest(tk));
    lk_tokenizer_close(tk);

    char config[4096];
    snprintf(config, sizeof config, "%s/tokenizer_config.json", folder);
#define CONFIG(text) check_write_file(config, text, strlen(text))
    CONFIG("{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}, \"chat_template\": [{\"name\": \"tool_use\", \"template\": "
           "\"x\"}, "
           "{\"name\": \"default\", \"template\": \"y\"}]}");
    CHECK_OK(lk_tokenizer_open(&tk, folder, &err), &err);
    assert_int_equal(lk_tokenizer_bos(tk), 1);
    assert_int_equal(lk_tokenizer_eos(tk), 2);
    assert_string_equal(lk_tokenizer_chat_template(tk), "y");
    assert_true(strcmp(first, lk_tokenizer_digest(tk)));
    lk_tokenizer_close(tk);
    snprintf(path, sizeof path, "%s/chat_template.jinja", folder);
    check_write_file(path, "z\n", 2);
    CHECK_OK(lk_tokenizer_open(&tk, folder, &err), &err);
    assert_string_equal(lk_tokenizer_chat_template(tk), "z\n");
    lk_tokenizer_close(tk);
    check_write_file(path, "\xff", 1);
    CHECK_FAILS(lk_tokenizer_open(&tk, folder, &err), LK_ERR_FORMAT, "chat_template.jinja", &err);
    remove(path);
    CONFIG("{\"bos_token\": 3}");
    CHECK_FAILS(lk_tokenizer_open(&tk, folder, &err), LK_ERR_FORMAT, "bos_token", &err);
    CONFIG("{\"chat_template\": [{\"name\": \"rag\", \"template\": \"x\"}]}");
    CHECK_FAILS(lk_tokenizer_open(&tk, folder, &err), LK_ERR_UNSUPPORTED, "default", &err);
    CONFIG("[]");
    CHECK_FAILS(lk_tokenizer_open(&tk, folder, &err), LK_ERR_FORMAT, "object", &err);
    free(json);
    free(golden);
    free(folder);
}

/* ---- a small tokenizer in memory ---- */

/* Characters a b c, x; merges given by the row. */
static lk_status parse_small(lk_tokenizer **tk, const char *model, const char *rest, lk_error *err)
{
    char json[8192];
    snprintf(json, sizeof json, "{\"model\":{\"type\":\"BPE\",%s}%s}", model, rest);
    return lk_tokenizer_parse(tk, json, strlen(json), "small.json", err);
}

static void expect_ids(const lk_tokenizer *tk, const char *text, int n, const int32_t *want)
{
    lk_error err = {0};
    int32_t *ids;
    int64_t got;
    CHECK_OK(lk_tokenizer_encode(tk, text, strlen(text), 0, &ids, &got, &err), &err);
    if (got != n) fail_msg("\"%s\": %lld tokens, want %d", text, (long long)got, n);
    for (int i = 0; i < n; i++)
        if (ids[i] != want[i]) fail_msg("\"%s\": token %d is %d, want %d", text, i, ids[i], want[i]);
    free(ids);
}
#define IDS(...) \
    (int)(sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t)), (const int32_t[]) { __VA_ARGS__ }

static void test_model_rules(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tokenizer *tk;
    /* lowest rank first, then leftmost; both forms of merges */
    CHECK_OK(parse_small(&tk,
                         "\"vocab\":{\"a\":0,\"b\":1,\"aa\":2,\"ab\":3,\"aab\":4},\"merges\":[[\"a\",\"b\"],[\"a\",\"a\"],[\"aa\",\"b\"]]",
                         "", &err),
             &err);
    expect_ids(tk, "aaa", IDS(2, 0));
    expect_ids(tk, "aab", IDS(0, 3));
    expect_ids(tk, "zaz", IDS(0)); /* no unk: unknown characters vanish, as in the library */
    lk_tokenizer_close(tk);
    CHECK_OK(parse_small(&tk, "\"vocab\":{\"a\":0,\"u\":1,\"aa\":2},\"merges\":[\"a a\"],\"unk_token\":\"u\"", "", &err), &err);
    expect_ids(tk, "yyaa", IDS(1, 1, 2));
    lk_tokenizer_close(tk);
    CHECK_OK(parse_small(&tk, "\"vocab\":{\"a\":0,\"u\":1},\"merges\":[],\"unk_token\":\"u\",\"fuse_unk\":true", "", &err), &err);
    expect_ids(tk, "yyayy", IDS(1, 0, 1));
    lk_tokenizer_close(tk);
    /* one of the character's bytes is missing: unk for the whole character */
    CHECK_OK(parse_small(&tk,
                         "\"vocab\":{\"a\":0,\"u\":1,\"<0xC3>\":2,\"<0xA9>\":3},\"merges\":[],\"unk_token\":\"u\",\"byte_fallback\":true",
                         "", &err),
             &err);
    expect_ids(tk, "\xc3\xa9\xc3\xa8", IDS(2, 3, 1));
    lk_tokenizer_close(tk);
    CHECK_OK(parse_small(&tk, "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"abab\":3},\"merges\":[\"a b\"],\"ignore_merges\":true", "", &err),
             &err);
    expect_ids(tk, "abab", IDS(3));
    expect_ids(tk, "ababab", IDS(2, 2, 2));
    lk_tokenizer_close(tk);
}

/* behaviours of Split, on "a-b--c-" with every character a token */
static void test_split(void **state)
{
    (void)state;
    static const struct {
        const char *behavior, *invert, *want; /* the pieces, separated by | */
    } rows[] = {
        {"Removed", "false", "a|b|c"},
        {"Isolated", "false", "a|-|b|-|-|c|-"},
        {"MergedWithPrevious", "false", "a-|b-|-|c-"},
        {"MergedWithNext", "false", "a|-b|-|-c|-"},
        {"Contiguous", "false", "a|-|b|--|c|-"},
        {"Removed", "true", "-|-|-|-"},
        {"Isolated", "true", "a|-|b|-|-|c|-"},
        {"MergedWithPrevious", "true", "a|-b|-|-c|-"},
        {"MergedWithNext", "true", "a-|b-|-|c-"},
        {"Contiguous", "true", "a|-|b|--|c|-"},
    };
    lk_error err = {0};
    for (int regex = 0; regex < 2; regex++)
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            /* all pieces that can come out are in the vocabulary, and ignore_merges takes a whole one */
            lk_tokenizer *tk;
            char rest[400];
            snprintf(rest, sizeof rest,
                     ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"%s\":\"-\"},\"behavior\":\"%s\",\"invert\":%s}",
                     regex ? "Regex" : "String", rows[i].behavior, rows[i].invert);
            CHECK_OK(parse_small(
                         &tk,
                         "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"-\":3,\"a-\":4,\"b-\":5,\"c-\":6,\"-b\":7,\"-c\":8,\"--\":9},\"merges\":[],"
                         "\"ignore_merges\":true",
                         rest, &err),
                     &err);
            int32_t *ids;
            int64_t n;
            char got[64] = "";
            CHECK_OK(lk_tokenizer_encode(tk, "a-b--c-", 7, 0, &ids, &n, &err), &err);
            for (int64_t k = 0; k < n; k++) {
                strcat(got, k ? "|" : "");
                strcat(got, lk_tokenizer_piece(tk, ids[k], NULL));
            }
            if (strcmp(got, rows[i].want)) fail_msg("Split %s invert %s: %s, want %s", rows[i].behavior, rows[i].invert, got, rows[i].want);
            free(ids);
            lk_tokenizer_close(tk);
        }
}

/* Where Oniguruma, which the library matches with, and PCRE2 differ: what a pattern takes away from a text. */
static void test_patterns(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text, *left;
    } rows[] = {
        {"\\\\w", "a\xc2\xb2\xc2\xbd\xe2\x91\xa0\xe2\x93\x90\xcc\x81_-",
         "\xe2\x91\xa0-"},                                               /* a 2 1/2 (1) (a) acute _ : the circled 1 is no word */
        {"\\\\s", "a\xe1\xa0\x8e\xc2\x85\xe3\x80\x80", "a\xe1\xa0\x8e"}, /* U+180E is no space */
        {"[\\\\S]", "a\xe1\xa0\x8e ", " "},
        {"\\\\S", "a\xe1\xa0\x8e ", " "},
        {"\\\\p{L}", "a\xf0\x94\x85\x90\xf0\xb1\x8d\x90-", "-"}, /* letters of Unicode 16 and 15 */
        {"[^\\\\s\\\\p{L}]", "a\xf0\x94\x85\x90-", "a\xf0\x94\x85\x90"},
        {"\\\\p{^N}", "a1\xf0\x90\xb5\x80", "1\xf0\x90\xb5\x80"},
        {"\\\\p{Han}", "\xe4\xbd\xa0\xe3\x80\x81", "\xe3\x80\x81"}, /* by Script: U+3001 is Common */
        {"^b", "b\nb", "\n"},                                       /* at every line */
        {".", "a\n", "\n"},
        {"(?i:'s)", "'S'\xc5\xbf", ""}, /* the long s folds to s */
        {"\\\\x41|\\\\u0042", "ABC", "C"},
    };
    lk_error err = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lk_tokenizer *tk;
        char rest[400], vocab[4096] = "", *text, *to = vocab;
        size_t size;
        int32_t *ids;
        int64_t n;
        for (int b = 0; b < 256; b++) to += sprintf(to, "\"<0x%02X>\":%d,", (unsigned)b, b);
        char *model = malloc(5000);
        snprintf(model, 5000, "\"vocab\":{%s\"zz\":256},\"merges\":[],\"byte_fallback\":true", vocab);
        snprintf(rest, sizeof rest,
                 ",\"decoder\":{\"type\":\"ByteFallback\"},\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},"
                 "\"behavior\":\"Removed\"}",
                 rows[i].pattern);
        CHECK_OK(parse_small(&tk, model, rest, &err), &err);
        CHECK_OK(lk_tokenizer_encode(tk, rows[i].text, strlen(rows[i].text), 0, &ids, &n, &err), &err);
        CHECK_OK(lk_tokenizer_decode(tk, ids, n, true, &text, &size, &err), &err);
        if (strcmp(text, rows[i].left))
            fail_msg("%s leaves \"%s\" of \"%s\", want \"%s\"", rows[i].pattern, text, rows[i].text, rows[i].left);
        free(text);
        free(ids);
        free(model);
        lk_tokenizer_close(tk);
    }
}

/* A long word through the heap gives what many short runs through the scan give, and in time that is not quadratic. */
static void test_long_words(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tokenizer *tk;
    CHECK_OK(parse_small(&tk,
                         "\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"abc\":4,\"aa\":5,\"aaaa\":6,\"ca\":7,\"bb\":8},"
                         "\"merges\":[\"a b\",\"ab c\",\"a a\",\"aa aa\",\"c a\",\"b b\"]",
                         "", &err),
             &err);
    size_t size = 1 << 20;
    char *text = malloc(size);
    assert_non_null(text);
    check_random r = {11};
    for (size_t i = 0; i < size; i++) text[i] = "abca"[check_random_u64(&r) % 4];
    int32_t *ids;
    int64_t n, *starts;
    clock_t begin = clock();
    lk_text_part part = {text, size, true};
    CHECK_OK(lk_tokenizer_encode_parts(tk, &part, 1, (lk_text_marks){0}, 0, &ids, &starts, &n, &err), &err);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    printf("a word of 1 MiB: %lld tokens in %.2f s\n", (long long)n, seconds);
    assert_true(seconds < 20);
    /* the tokens spell the text, and stand where they say */
    size_t at = 0;
    for (int64_t i = 0; i < n; i++) {
        size_t length;
        const char *piece = lk_tokenizer_piece(tk, ids[i], &length);
        assert_int_equal(starts[i], at);
        assert_memory_equal(text + at, piece, length);
        at += length;
    }
    assert_int_equal(at, size);
    free(ids);
    free(starts);

    /* a naive merge, straight from the definition, on words of every length up to 200 */
    static const char *const merges[] = {"ab", "abc", "aa", "aaaa", "ca", "bb"};
    static const size_t left[] = {1, 2, 1, 2, 1, 1};
    for (size_t length = 0; length <= 200; length++) {
        char pieces[200][5];
        size_t count = 0;
        for (; count < length; count++) {
            pieces[count][0] = text[count + 17 * length];
            pieces[count][1] = 0;
        }
        for (;;) {
            size_t best = 6, where = 0;
            for (size_t i = 0; i + 1 < count; i++)
                for (size_t m = 0; m < best; m++)
                    if (strlen(pieces[i]) == left[m] && !strncmp(merges[m], pieces[i], left[m]) &&
                        !strcmp(merges[m] + left[m], pieces[i + 1])) {
                        best = m;
                        where = i;
                    }
            if (best == 6) break;
            strcpy(pieces[where], merges[best]);
            count--;
            memmove(pieces[where + 1], pieces[where + 2], (count - where - 1) * sizeof *pieces);
        }
        CHECK_OK(lk_tokenizer_encode(tk, text + 17 * length, length, 0, &ids, &n, &err), &err);
        assert_int_equal(n, count);
        for (size_t i = 0; i < count; i++) assert_string_equal(lk_tokenizer_piece(tk, ids[i], NULL), pieces[i]);
        free(ids);
    }
    free(text);
    lk_tokenizer_close(tk);
}

/* Text of nothing but combining marks, in the worst order. */
static void test_many_marks(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tokenizer *tk = open_own("tokenizers/qwen.json");
    size_t pairs = 1 << 18, n_text = 1;
    char *text = malloc(4 * pairs + 1);
    assert_non_null(text);
    text[0] = 'e';
    for (size_t i = 0; i < pairs; i++, n_text += 4) memcpy(text + n_text, "\xcc\x81\xcc\xa7", 4); /* acute (230), cedilla (202) */
    int32_t *ids;
    int64_t n;
    CHECK_OK(lk_tokenizer_encode(tk, text, n_text, 0, &ids, &n, &err), &err);
    char *back;
    size_t size;
    CHECK_OK(lk_tokenizer_decode(tk, ids, n, true, &back, &size, &err), &err);
    /* e + cedilla compose first, then with nothing: U+0229, then the rest of the cedillas, then the acutes */
    assert_memory_equal(back, "\xc8\xa9\xcc\xa7", 4);
    assert_memory_equal(back + size - 2, "\xcc\x81", 2);
    free(back);
    free(ids);
    free(text);
    lk_tokenizer_close(tk);
}

#define V "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]"

static void test_hostile(void **state)
{
    (void)state;
    static const struct {
        const char *model, *rest;
        lk_status want;
        const char *says;
    } rows[] = {
        {"\"vocab\":{\"a\":0},\"merges\":[\"a b\"]", "", LK_ERR_FORMAT, "merges[0]"},
        {"\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]", "", LK_ERR_FORMAT, "\"ab\" is not in the vocabulary"},
        {"\"vocab\":{\"a\":0},\"merges\":[[\"\",\"a\"]]", "", LK_ERR_FORMAT, "merges[0]"}, /* a token made of itself */
        {"\"vocab\":{\"a\":0},\"merges\":[\"a\"]", "", LK_ERR_FORMAT, "merges[0]"},
        {"\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]", "", LK_ERR_FORMAT, "merges[0]"},
        {"\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]", "", LK_ERR_FORMAT, "merges[0]"},
        {"\"vocab\":{\"a\":0},\"merges\":[[1,2]]", "", LK_ERR_FORMAT, "merges[0]"},
        {"\"vocab\":{\"a\":0},\"merges\":[{}]", "", LK_ERR_FORMAT, "merges[0]"},
        {"\"vocab\":{\"a\":0},\"merges\":{}", "", LK_ERR_FORMAT, "merges"},
        {"\"vocab\":{\"a\":0}", "", LK_ERR_FORMAT, "merges"},
        {"\"vocab\":[\"a\"],\"merges\":[]", "", LK_ERR_FORMAT, "vocab"},
        {"\"vocab\":{\"a\":-1},\"merges\":[]", "", LK_ERR_FORMAT, "\"a\""},
        {"\"vocab\":{\"a\":1e18},\"merges\":[]", "", LK_ERR_FORMAT, "\"a\""},
        {"\"vocab\":{\"a\":2000000000},\"merges\":[]", "", LK_ERR_FORMAT, "\"a\""},
        {"\"vocab\":{\"a\":0.5},\"merges\":[]", "", LK_ERR_FORMAT, "\"a\""},
        {"\"vocab\":{\"a\":\"0\"},\"merges\":[]", "", LK_ERR_FORMAT, "\"a\""},
        {"\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]", "", LK_ERR_FORMAT, "both have id 0"},
        {"\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]", "", LK_ERR_FORMAT, "twice"},
        {V ",\"unk_token\":\"u\"", "", LK_ERR_FORMAT, "unk_token"},
        {V ",\"unk_token\":7", "", LK_ERR_FORMAT, "unk_token"},
        {V ",\"fuse_unk\":1", "", LK_ERR_FORMAT, "fuse_unk"},
        {V ",\"dropout\":0.1", "", LK_ERR_UNSUPPORTED, "dropout"},
        {V ",\"continuing_subword_prefix\":\"##\"", "", LK_ERR_UNSUPPORTED, "continuing_subword_prefix"},
        {V ",\"end_of_word_suffix\":\"</w>\"", "", LK_ERR_UNSUPPORTED, "end_of_word_suffix"},
        {V ",\"new_thing\":true", "", LK_ERR_UNSUPPORTED, "new_thing"},
        {V, ",\"added_tokens\":[{\"id\":0,\"content\":\"x\"}]", LK_ERR_FORMAT, "added_tokens[0]"},
        {V, ",\"added_tokens\":[{\"id\":5,\"content\":\"a\"}]", LK_ERR_FORMAT, "added_tokens[0]"},
        {V, ",\"added_tokens\":[{\"id\":5,\"content\":\"x\"},{\"id\":6,\"content\":\"x\"}]", LK_ERR_FORMAT, "added_tokens[1]"},
        {V, ",\"added_tokens\":[{\"id\":5,\"content\":\"x\"},{\"id\":5,\"content\":\"y\"}]", LK_ERR_FORMAT, "added_tokens[1]"},
        {V, ",\"added_tokens\":[{\"id\":-5,\"content\":\"x\"}]", LK_ERR_FORMAT, "added_tokens[0]"},
        {V, ",\"added_tokens\":[{\"id\":99999999,\"content\":\"x\"}]", LK_ERR_FORMAT, "added_tokens[0]"},
        {V, ",\"added_tokens\":[{\"content\":\"x\"}]", LK_ERR_FORMAT, "id"},
        {V, ",\"added_tokens\":[3]", LK_ERR_FORMAT, "added_tokens[0]"},
        {V, ",\"added_tokens\":{}", LK_ERR_FORMAT, "added_tokens"},
        {V, ",\"normalizer\":{\"type\":\"BertNormalizer\"}", LK_ERR_UNSUPPORTED, "BertNormalizer"},
        {V, ",\"normalizer\":{\"type\":\"NFKC\",\"x\":1}", LK_ERR_UNSUPPORTED, "\"x\""},
        {V, ",\"normalizer\":{\"type\":\"Strip\",\"strip_left\":1}", LK_ERR_FORMAT, "strip_left"},
        {V, ",\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AA\"}", LK_ERR_FORMAT, "base64"},
        {V, ",\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////w==\"}", LK_ERR_FORMAT, "map is malformed"},
        {V, ",\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"BAAAAAAAAABh\"}", LK_ERR_FORMAT, "replacements"},
        {V, ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"\"}", LK_ERR_UNSUPPORTED, "compile"},
        {V, ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":\"x\",\"content\":\"\"}", LK_ERR_UNSUPPORTED, "pattern must be"},
        {V, ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}", LK_ERR_UNSUPPORTED, "empty"},
        {V, ",\"normalizer\":[]", LK_ERR_FORMAT, "normalizer"},
        {V, ",\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"}", LK_ERR_UNSUPPORTED, "UnicodeScripts"},
        {V, ",\"pre_tokenizer\":{\"type\":\"Punctuation\",\"behavior\":\"Up\"}", LK_ERR_UNSUPPORTED, "\"Up\""},
        {V, ",\"pre_tokenizer\":{\"type\":\"CharDelimiterSplit\",\"delimiter\":\"ab\"}", LK_ERR_FORMAT, "one character"},
        {V, ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"new\":1}", LK_ERR_UNSUPPORTED, "\"new\""},
        {V, ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]}",
         LK_ERR_UNSUPPORTED, "after ByteLevel"},
        {V, ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}", LK_ERR_UNSUPPORTED,
         "compile"},
        {V, ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\\\\b\"},\"behavior\":\"Isolated\"}", LK_ERR_UNSUPPORTED,
         "escape"},
        {V, ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?P<n>a)\"},\"behavior\":\"Isolated\"}", LK_ERR_UNSUPPORTED,
         "group"},
        {V, ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\"}", LK_ERR_UNSUPPORTED,
         "intersection"},
        {V, ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Sideways\"}", LK_ERR_UNSUPPORTED,
         "Sideways"},
        {V, ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", LK_ERR_FORMAT, "one character"},
        {V, ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}", LK_ERR_UNSUPPORTED, "last"},
        {V, ",\"decoder\":{\"type\":\"WordPiece\"}", LK_ERR_UNSUPPORTED, "WordPiece"},
        {V, ",\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]}", LK_ERR_UNSUPPORTED,
         "joins"},
        {V, ",\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":-1,\"stop\":0}", LK_ERR_FORMAT, "start"},
        {V, ",\"post_processor\":{\"type\":\"BertProcessing\"}", LK_ERR_UNSUPPORTED, "BertProcessing"},
        {V,
         ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\"}},{\"Sequence\":{\"id\":\"A\"}}]"
         ","
         "\"pair\":[],\"special_tokens\":{\"s\":{\"id\":\"s\",\"ids\":[77],\"tokens\":[\"s\"]}}}",
         LK_ERR_FORMAT, "not in the vocabulary"},
        {V, ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\"}}],\"special_tokens\":{}}",
         LK_ERR_FORMAT, "lacks"},
        {V, ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[],\"special_tokens\":{}}", LK_ERR_UNSUPPORTED, "drops"},
    };
    lk_error err;
    lk_tokenizer *tk;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        err = (lk_error){0};
        lk_status got = parse_small(&tk, rows[i].model, rows[i].rest, &err);
        if (!got) fail_msg("row %zu (%s%s) was accepted", i, rows[i].model, rows[i].rest);
        if (got != rows[i].want || !strstr(err.message, rows[i].says) || !strstr(err.message, "small.json"))
            fail_msg("row %zu (%s%s): %s: %s; want \"%s\"", i, rows[i].model, rows[i].rest, lk_status_name(got), err.message, rows[i].says);
        assert_null(tk);
    }
    CHECK_FAILS(lk_tokenizer_parse(&tk, "{\"model\":{\"type\":\"WordPiece\"}}", 30, "f", &err), LK_ERR_UNSUPPORTED, "WordPiece", &err);
    CHECK_FAILS(lk_tokenizer_parse(&tk, "{\"model\":{\"type\":\"Unigram\"}}", 28, "f", &err), LK_ERR_FORMAT, "[piece, score]", &err);
    CHECK_FAILS(lk_tokenizer_parse(&tk, "{}", 2, "f", &err), LK_ERR_FORMAT, "model", &err);
    CHECK_FAILS(lk_tokenizer_parse(&tk, "[]", 2, "f", &err), LK_ERR_FORMAT, "object", &err);
    CHECK_FAILS(lk_tokenizer_parse(&tk, "", 0, "f", &err), LK_ERR_FORMAT, "f", &err);

    /* every truncation of a real file */
    size_t size;
    char *golden = check_golden("tokenizers/spm.json"), *json = read_text(golden, &size);
    for (size_t cut = 0; cut + 2 < size; cut += 1 + size / 300) { /* the last two bytes are } and a newline */
        char *copy = malloc(cut + 1);                             /* its own block: reading past it is seen by the sanitizer */
        memcpy(copy, json, cut);
        assert_true(lk_tokenizer_parse(&tk, copy, cut, "cut", &err) != LK_OK);
        free(copy);
    }
    free(json);
    free(golden);
}

/* A pattern that needs exponential time gives up with an error instead of hanging. */
static void test_slow_pattern(void **state)
{
    (void)state;
    lk_error err = {0};
    lk_tokenizer *tk;
    CHECK_OK(parse_small(&tk, V,
                         ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?:(?:a|aa)+)+[cd]\"},\"behavior\":\"Isolated\"}",
                         &err),
             &err);
    char text[200];
    memset(text, 'a', sizeof text);
    int32_t *ids;
    int64_t n;
    CHECK_FAILS(lk_tokenizer_encode(tk, text, sizeof text, 0, &ids, &n, &err), LK_ERR_UNSUPPORTED, "limit", &err);
    lk_tokenizer_close(tk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),        cmocka_unit_test(test_vectors),    cmocka_unit_test(test_plain_text),
        cmocka_unit_test(test_malformed_text), cmocka_unit_test(test_lookups),    cmocka_unit_test(test_folder),
        cmocka_unit_test(test_model_rules),    cmocka_unit_test(test_split),      cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_long_words),     cmocka_unit_test(test_many_marks), cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_slow_pattern),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
