/* Hostile files of folders without tokenizer.json, and hostile parts. The first byte modulo 3 chooses what the rest is:
 *   0   a SentencePiece model; what parses is made into a tokenizer of the kind it says
 *   1   merges.txt beside a small vocab.json
 *   2   the base64 of a precompiled character map, and a text for it
 * What opens must encode and decode without a fault. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"
#include "tests/fuzz/seeds.h"

static const fuzz_seed seeds[] = {
    FUZZ_SEED("0\x0a\x09\x0a\x05<unk>\x18\x02\x0a\x08\x0a\x01"
              "a\x15\x00\x00\x80\xbf\x0a\x08\x0a\x01"
              "b\x15\x00\x00\x00\xc0\x0a\x09\x0a\x02"
              "ab\x15\x00\x00\x80\xbf\x0a\x0a\x0a\x06<0x41>\x18\x06\x12\x05\x18\x02\x98\x02\x01\x1a\x02\x18\x01"),
    FUZZ_SEED("1#version: 0.2\na b\nab c\r\n\xc4\xa0 a\n"),
    FUZZ_SEED("2BAAAAAAAAABhAA=="),
};
FUZZ_MUTATOR(seeds)

static const char text[] = "ab a  b\xcc\x81 \xef\xac\x81 \xf0\x9f\x99\x82 abc\n c";

static void use(lk_tokenizer *tk)
{
    lk_error err;
    int32_t *ids;
    int64_t n;
    char *back;
    size_t size;
    const char *why;
    if (!lk_tokenizer_encode(tk, text, sizeof text - 1, LK_TK_SPECIALS, &ids, &n, &err)) {
        if (lk_tokenizer_decode(tk, ids, n, false, &back, &size, &err)) abort();
        free(back);
        free(ids);
    }
    lk_tokenizer_fits_scores(tk, &why);
    for (int32_t id = 0; id < lk_tokenizer_size(tk); id++) lk_tokenizer_type(tk, id);
    lk_tokenizer_close(tk);
}

static void with_model(const char *bytes, size_t size)
{
    lk_arena arena = {0};
    lk_error err;
    lk_spm m;
    lk_tokenizer *tk;
    if (!lk_spm_parse(&m, &arena, bytes, size, "fuzz", &err) && m.n < 4096) {
        lk_tokenizer_parts parts = {.where = "fuzz",
                                    .model = m.model_type == 1 ? LK_TK_UNIGRAM : LK_TK_SPM_BPE,
                                    .entries = m.entries,
                                    .n = m.n,
                                    .bos = (int32_t)m.bos_id,
                                    .eos = (int32_t)m.eos_id,
                                    .unk = (int32_t)m.unk_id,
                                    .pad = (int32_t)m.pad_id,
                                    .add_bos = true,
                                    .add_space_prefix = m.dummy_prefix};
        if (!lk_tokenizer_create(&tk, &parts, &err)) use(tk);
    }
    lk_arena_free(&arena);
}

static void with_merges(const char *bytes, size_t size)
{
    lk_error err;
    lk_vocab v = {0};
    lk_tokenizer *tk;
    cJSON *vocab = cJSON_Parse("{\"a\":0,\"b\":1,\"ab\":2,\"c\":3,\"abc\":4,\"\xc4\xa0\":5,\"\xc4\xa0"
                               "a\":6}");
    cJSON *root =
        cJSON_Parse("{\"model\":{\"type\":\"BPE\"},\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"decoder\":{\"type\":\"ByteLevel\"}}");
    if (!vocab || !root) abort();
    if (!lk_vocab_from_files(&v, vocab, "vocab", bytes, size, "merges", &err) && !lk_tokenizer_build(&tk, root, &v, "fuzz", &err)) use(tk);
    lk_vocab_free(&v);
    cJSON_Delete(vocab);
    cJSON_Delete(root);
}

static void with_map(const char *bytes, size_t size)
{
    lk_error err;
    lk_tokenizer *tk;
    cJSON *root =
        cJSON_Parse("{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"u\",0],[\"a\",-1],[\"ab\",-2]]},\"normalizer\":{\"type\":"
                    "\"Precompiled\"}}");
    char *copy = malloc(size + 1);
    if (!root || !copy) abort();
    memcpy(copy, bytes, size);
    copy[size] = 0;
    cJSON_AddStringToObject(lk_json_get(root, "normalizer"), "precompiled_charsmap", copy);
    if (!lk_tokenizer_build(&tk, root, NULL, "fuzz", &err)) use(tk);
    cJSON_Delete(root);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    const char *rest = (const char *)data + 1;
    switch (data[0] % 3) {
    case 0: with_model(rest, size - 1); break;
    case 1: with_merges(rest, size - 1); break;
    default: with_map(rest, size - 1); break;
    }
    return 0;
}
