/* Hostile tokenizer.json, hostile text, hostile templates. The first byte modulo 4 chooses what the rest is:
 *   0      a tokenizer.json; when it opens it encodes and decodes a text
 *   1, 3   a text for two small built-in tokenizers; what one with all bytes makes of it must come back
 *   2      a chat template
 * Streamed and whole decoding must always agree. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/chat/internal.h"
#include "data/tokenizer/tokenizer.h"
#include "tests/fuzz/seeds.h"

static const char BYTE_LEVEL[] = "{\"added_tokens\":[{\"id\":9,\"content\":\"<s>\",\"special\":true},{\"id\":10,\"content\":\"ab\","
                                 "\"normalized\":true,\"lstrip\":true,\"single_word\":true},"
                                 "{\"id\":11,\"content\":\"<s\",\"rstrip\":true}],\"normalizer\":{\"type\":\"NFC\"},"
                                 "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
                                 "\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
                                 "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
                                 "\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]},"
                                 "\"decoder\":{\"type\":\"ByteLevel\"},"
                                 "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"bc\":3,\"abc\":4,\"\\u0120\":5,"
                                 "\"\\u0120a\":6,\"\\u00c3\":7,\"\\u00a9\":8,\"\\u00c3\\u00a9\":12},"
                                 "\"merges\":[\"b c\",\"a bc\",\"\\u0120 a\",\"\\u00c3 \\u00a9\"]}}";

static const fuzz_seed seeds[] = {
    FUZZ_SEED(
        "0{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"u\":3},\"merges\":[[\"a\",\"b\"]],\"unk_token\":\"u\",\"fuse_"
        "unk\":true},"
        "\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true}],\"decoder\":{\"type\":\"Fuse\"},\"post_processor\":{\"type\":"
        "\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":"
        "{\"ids\":[4]}}}}"),
    FUZZ_SEED("0{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Prepend\",\"prepend\":\"_\"},{"
              "\"type\":\"Replace\","
              "\"pattern\":{\"String\":\" "
              "\"},\"content\":\"_\"}]},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
              "{\"Regex\":\"\\\\s+|[^\\\\p{L}]{1,3}\"},\"behavior\":\"MergedWithNext\",\"invert\":true},{\"type\":\"Digits\",\"individual_"
              "digits\":true},"
              "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\"}]},\"decoder\":{\"type\":\"Sequence\","
              "\"decoders\":[{\"type\":\"Metaspace\","
              "\"replacement\":\"_\"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "
              "\",\"start\":1,\"stop\":1}]},\"model\":"
              "{\"vocab\":{\"_\":0,\"a\":1,\"b\":2,\"_a\":3,\"<0xC3>\":4,\"<0xA9>\":5},\"merges\":[\"_ a\"],\"byte_fallback\":true}}"),
    FUZZ_SEED("1ab a<s>b  \xc3\xa9 e\xcc\x81 123 \xf0\x9f\x99\x82 \xff abc it's aaaa\n\n x"),
    FUZZ_SEED("2{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m.content|trim }}{#- c -#}{%- endfor -%}\n"),
};
FUZZ_MUTATOR(seeds)

/* Every byte is there, so nothing may be lost: <0x00>..<0xFF> are ids 0..255, made below. */
static char *fallback_json(void)
{
    char *json = malloc(16384), *to = json;
    if (!json) abort();
    to += sprintf(
        to,
        "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" "
        "\"},\"content\":\"\\u2581\"},\"decoder\":{\"type\":\"Sequence\",\"decoders\":["
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},"
        "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"fuse_unk\":true,\"merges\":[\"a b\",\"ab c\",\"\\u2581 ab\",\"a a\",\"aa "
        "aa\"],\"vocab\":{");
    for (int b = 0; b < 256; b++) to += sprintf(to, "\"<0x%02X>\":%d,", (unsigned)b, b);
    strcpy(to, "\"a\":256,\"b\":257,\"c\":258,\"ab\":259,\"abc\":260,\"\\u2581\":261,\"\\u2581ab\":262,\"aa\":263,\"aaaa\":264}}}");
    return json;
}

/* Decodes whole and streamed; both must agree. */
static void decode(const lk_tokenizer *tk, const int32_t *ids, int64_t n, const char *want, size_t want_size)
{
    lk_error err;
    char *text;
    size_t size, at = 0;
    lk_detokenizer *d;
    if (lk_tokenizer_decode(tk, ids, n, false, &text, &size, &err)) return;
    if (want && (size != want_size || memcmp(text, want, size))) abort();
    if (lk_detokenizer_create(&d, tk, false, &err)) abort();
    for (int64_t i = 0; i <= n; i++) {
        const char *piece;
        size_t length;
        if (i < n ? lk_detokenizer_push(d, ids[i], &piece, &length, &err) : lk_detokenizer_finish(d, &piece, &length, &err)) abort();
        if (length > size - at || memcmp(text + at, piece, length)) abort();
        at += length;
    }
    if (at != size) abort();
    lk_detokenizer_destroy(d);
    free(text);
}

static void use(const lk_tokenizer *tk, const char *text, size_t size, bool lossless)
{
    lk_error err;
    int32_t *ids;
    int64_t n, *starts;
    for (int flags = 0; flags < 4; flags++) {
        if (lk_tokenizer_encode(tk, text, size, flags, &ids, &n, &err)) continue;
        decode(tk, ids, n, lossless ? text : NULL, size);
        free(ids);
    }
    lk_text_part parts[3] = {{text, size / 3, false}, {text + size / 3, size / 3, true}, {text + size / 3 * 2, size - size / 3 * 2, false}};
    if (lk_tokenizer_encode_parts(tk, parts, 3, (lk_text_marks){0}, 0, &ids, &starts, &n, &err)) return;
    for (int64_t i = 0; i < n; i++)
        if (starts[i] < 0 || (size_t)starts[i] > size) abort();
    free(ids);
    free(starts);
}

static void with_json(const char *json, size_t json_size)
{
    static const char text[] = "ab a<s>b  \xc3\xa9 e\xcc\x81 12 \xf0\x9f\x99\x82 \xff abc</s> aaaa\n\n x";
    lk_error err;
    lk_tokenizer *tk;
    if (lk_tokenizer_parse(&tk, json, json_size, "fuzz", &err)) return;
    use(tk, text, sizeof text - 1, false);
    int32_t some[8];
    for (int i = 0; i < 8; i++) some[i] = (int32_t)(json_size * (size_t)i % (size_t)(lk_tokenizer_size(tk) + 2));
    decode(tk, some, 8, NULL, 0);
    lk_tokenizer_close(tk);
}

/* A U+2581 in the text decodes to a space, as in the library. */
static bool comes_back(const char *text, size_t size) { return size == 0 || !memmem(text, size, "\xe2\x96\x81", 3); }

/* What the tokenizer with all bytes makes of a text must come back; a malformed text is repaired once and then stays. */
static void with_text(const lk_tokenizer *small, const lk_tokenizer *full, const char *text, size_t size)
{
    lk_error err;
    int32_t *ids;
    int64_t n;
    char *once;
    size_t once_size;
    use(small, text, size, false);
    if (lk_tokenizer_encode(full, text, size, 0, &ids, &n, &err)) abort();
    if (lk_tokenizer_decode(full, ids, n, false, &once, &once_size, &err)) abort();
    use(full, once, once_size, comes_back(once, once_size));
    free(once);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static lk_tokenizer *small, *full; /* kept for all inputs: opening costs more than using */
    if (!small) {
        lk_error err;
        char *json = fallback_json();
        if (lk_tokenizer_parse(&small, BYTE_LEVEL, sizeof BYTE_LEVEL - 1, "fuzz", &err)) abort();
        if (lk_tokenizer_parse(&full, json, strlen(json), "fuzz", &err)) abort();
        free(json);
    }
    if (size < 2) return 0;
    const char *rest = (const char *)data + 1;
    if (data[0] % 4 == 0)
        with_json(rest, size - 1);
    else
        with_text(small, full, rest, size - 1);
    return 0;
}
