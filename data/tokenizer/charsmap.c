/* SentencePiece's precompiled character map, as T5's and XLM-R's tokenizer.json carry it in base64: a double-array trie (Darts) from
 * strings of a few characters to places in a block of zero-terminated replacements.
 *
 * The `tokenizers` library applies it in its own way, which is matched here: the text is cut into grapheme clusters; a cluster of less than
 * six bytes is looked up as a whole, and if that finds nothing, or the cluster is longer, each of its characters; and of the
 * entries that are prefixes of what is looked up the shortest counts, the rest of it being dropped. */
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "data/tokenizer/internal.h"

enum { WHOLE_CLUSTER = 6 };

lk_status lk_charsmap_read(lk_tokenizer *tk, const char *base64, lk_charsmap *map, lk_error *err)
{
    size_t length = strlen(base64);
    if (length % 4 || length > INT32_MAX / 2)
        return lk_fail(err, LK_ERR_FORMAT, "%s: normalizer Precompiled: the map is not base64", tk->where);
    unsigned char *bytes = lk_arena_alloc(&tk->arena, length / 4 * 3 + 4);
    if (!bytes) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
    int got = EVP_DecodeBlock(bytes, (const unsigned char *)base64, (int)length);
    size_t size = got < 0 ? 0 : (size_t)got;
    for (size_t i = length; size && i > 0 && base64[i - 1] == '='; i--) size--; /* the padding decodes to zeros */
    uint32_t trie_bytes = 0;
    if (size >= 4) memcpy(&trie_bytes, bytes, 4);
    if (size < 4 || trie_bytes % 4 || trie_bytes < 4 || trie_bytes > size - 4)
        return lk_fail(err, LK_ERR_FORMAT, "%s: normalizer Precompiled: the map is malformed", tk->where);
    map->n_units = trie_bytes / 4;
    map->units = lk_arena_alloc(&tk->arena, trie_bytes);
    map->texts = (const char *)bytes + 4 + trie_bytes;
    map->n_texts = size - 4 - trie_bytes;
    if (!map->units) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
    memcpy(map->units, bytes + 4, trie_bytes);
    if (map->n_texts && (map->texts[map->n_texts - 1] != 0 || lk_utf8_valid_prefix(map->texts, map->n_texts) != map->n_texts))
        return lk_fail(err, LK_ERR_FORMAT, "%s: normalizer Precompiled: the replacements are malformed", tk->where);
    return LK_OK;
}

static size_t offset_of(uint32_t unit) { return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6); }

/* The replacement of the shortest entry that begins p[0..n), or NULL. A unit has an offset, a label and whether an entry ends there; the
 * leaf beside it has the entry's value. */
static const char *find(const lk_charsmap *map, const char *p, size_t n)
{
    size_t node = offset_of(map->units[0]);
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)p[i];
        node ^= byte;
        if (byte == 0 || node >= map->n_units) return NULL;
        uint32_t unit = map->units[node];
        if ((unit & (1u << 31 | 0xff)) != byte) return NULL;
        node ^= offset_of(unit);
        if (unit >> 8 & 1) {
            if (node >= map->n_units) return NULL;
            size_t value = map->units[node] & 0x7fffffff;
            return value < map->n_texts ? map->texts + value : NULL;
        }
    }
    return NULL;
}

static lk_status add(const char *found, const lk_view *in, size_t begin, lk_text *out, lk_error *err)
{
    return lk_text_add(out, found, strlen(found), lk_view_source(in, begin), err);
}

lk_status lk_charsmap_apply(const lk_charsmap *map, const lk_view *in, lk_text *out, lk_error *err)
{
    for (size_t i = 0, end; i < in->n; i = end) {
        utf8proc_int32_t state = 0;
        uint32_t c, next;
        end = i + (size_t)lk_utf8_decode(in->p + i, in->n - i, &c);
        while (end < in->n) {
            int length = lk_utf8_decode(in->p + end, in->n - end, &next);
            bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);
            if ((control || !lk_extends_newly(next)) &&
                utf8proc_grapheme_break_stateful((utf8proc_int32_t)c, (utf8proc_int32_t)next, &state))
                break;
            end += (size_t)length;
            c = next;
        }
        const char *found = end - i < WHOLE_CLUSTER ? find(map, in->p + i, end - i) : NULL;
        if (found) {
            LK_TRY(add(found, in, i, out, err));
            continue;
        }
        for (size_t k = i, length; k < end; k += length) {
            length = (size_t)lk_utf8_decode(in->p + k, end - k, &c);
            found = find(map, in->p + k, length);
            LK_TRY(found ? add(found, in, k, out, err) : lk_text_copy(out, in, k, k + length, err));
        }
    }
    return LK_OK;
}
