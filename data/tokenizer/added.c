/* Added tokens: strings that are recognised in the text before the model sees it. Two passes, as huggingface/tokenizers makes them: tokens
 * with normalized=false on the raw text, then the others on the normalised pieces between. Each pass takes the leftmost match and, there,
 * the longest. single_word tokens count only between characters that are no words; lstrip and rstrip swallow white space around.
 *
 * The set is sorted by bytes and searched by narrowing a range of it one byte at a time: no automaton to build, and text
 * whose characters begin no token costs one table look-up a byte. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"

lk_status lk_added_read(lk_tokenizer *tk, const cJSON *list, lk_error *err)
{
    const char *where = tk->where;
    const cJSON *node;
    int32_t n = 0;
    if (!list || cJSON_IsNull(list)) return LK_OK;
    if (!cJSON_IsArray(list)) return lk_fail(err, LK_ERR_FORMAT, "%s: added_tokens must be a list", where);
    cJSON_ArrayForEach(node, list) n++;
    tk->added = lk_arena_alloc(&tk->arena, (size_t)n * sizeof *tk->added);
    if (!tk->added) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    cJSON_ArrayForEach(node, list)
    {
        lk_added *a = &tk->added[tk->n_added];
        char place[64];
        const char *content;
        int64_t id;
        snprintf(place, sizeof place, "added_tokens[%d]", (int)tk->n_added);
        if (!cJSON_IsObject(node)) return lk_fail(err, LK_ERR_FORMAT, "%s: %s must be an object", where, place);
        lk_status status = lk_json_string(node, "content", &content, place, err);
        if (!status) status = lk_json_int(node, "id", 0, LK_TK_MAX_IDS - 1, &id, place, err);
        if (!status) status = lk_json_opt_bool(node, "single_word", &a->single_word, place, err);
        if (!status) status = lk_json_opt_bool(node, "lstrip", &a->lstrip, place, err);
        if (!status) status = lk_json_opt_bool(node, "rstrip", &a->rstrip, place, err);
        if (!status) status = lk_json_opt_bool(node, "special", &a->special, place, err);
        a->normalized = !a->special; /* the library's default */
        if (!status) status = lk_json_opt_bool(node, "normalized", &a->normalized, place, err);
        if (status) return lk_error_prefix(err, status, "%s", where);
        a->id = (int32_t)id;
        a->order = tk->n_added++;
        a->match_size = (uint32_t)strlen(content);
        a->match = lk_arena_strdup(&tk->arena, content);
        if (!a->match) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", where);
    }
    return LK_OK;
}

static int compare_added(const void *x, const void *y)
{
    const lk_added *a = x, *b = y;
    size_t n = a->match_size < b->match_size ? a->match_size : b->match_size;
    int c = memcmp(a->match, b->match, n);
    if (c) return c;
    if (a->match_size != b->match_size) return a->match_size < b->match_size ? -1 : 1;
    /* two tokens may become equal when normalised: special ones win, then the first */
    if (a->special != b->special) return a->special ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

static lk_status build_set(lk_tokenizer *tk, lk_added_set *set, bool normalized, lk_error *err)
{
    set->tokens = lk_arena_alloc(&tk->arena, (size_t)tk->n_added * sizeof *set->tokens);
    if (!set->tokens) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
    lk_status status = LK_OK;
    lk_text scratch[2] = {{0}, {0}};
    lk_regex_scratch regex = {0};
    for (int32_t i = 0; i < tk->n_added && !status; i++) {
        lk_added a = tk->added[i];
        if (a.normalized != normalized || a.match_size == 0) continue;
        if (normalized) {
            lk_view out;
            status = lk_normalize(tk, scratch, &regex, (lk_view){a.match, a.match_size, NULL, 0}, &out, err);
            if (status) break;
            if (out.n == 0) continue;
            if (out.n > UINT32_MAX) status = lk_fail(err, LK_ERR_UNSUPPORTED, "%s: an added token is too long", tk->where);
            a.match_size = (uint32_t)out.n;
            a.match = lk_arena_strndup(&tk->arena, out.p, out.n);
            if (!a.match) status = lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
            /* such a token is decoded from its normalised form, so that the decoder undoes what the normaliser did */
            tk->forms[a.id] = (lk_piece){a.match, a.match_size};
        }
        set->tokens[set->n++] = a;
    }
    lk_text_free(&scratch[0]);
    lk_text_free(&scratch[1]);
    lk_regex_scratch_free(&regex);
    if (status) return status;
    qsort(set->tokens, (size_t)set->n, sizeof *set->tokens, compare_added);
    int32_t kept = 0;
    for (int32_t i = 0; i < set->n; i++) {
        const lk_added *a = &set->tokens[i], *b = kept ? &set->tokens[kept - 1] : NULL;
        if (b && a->match_size == b->match_size && !memcmp(a->match, b->match, a->match_size)) continue;
        set->tokens[kept++] = *a;
        set->first[(unsigned char)a->match[0]] = 1;
    }
    set->n = kept;
    return LK_OK;
}

lk_status lk_added_finish(lk_tokenizer *tk, lk_error *err)
{
    LK_TRY(build_set(tk, &tk->raw, false, err));
    return build_set(tk, &tk->normalized, true, err);
}

/* First index in [low, high) whose byte at `depth` is at least `byte`; tokens that end before depth count as smaller. */
static int32_t lower(const lk_added_set *set, int32_t low, int32_t high, size_t depth, int byte)
{
    while (low < high) {
        int32_t mid = low + (high - low) / 2;
        const lk_added *a = &set->tokens[mid];
        int have = depth < a->match_size ? (unsigned char)a->match[depth] : -1;
        if (have < byte)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The longest token shorter than `below` that stands at p; NULL when there is none. */
static const lk_added *longest_at(const lk_added_set *set, const char *p, size_t n, uint32_t below)
{
    const lk_added *best = NULL;
    int32_t low = 0, high = set->n;
    for (size_t depth = 0; depth < n; depth++) {
        int byte = (unsigned char)p[depth];
        low = lower(set, low, high, depth, byte);
        high = lower(set, low, high, depth, byte + 1);
        if (low == high) break;
        if (set->tokens[low].match_size == depth + 1) { /* the shortest of the range sorts first */
            if (depth + 1 >= below) break;
            best = &set->tokens[low];
        }
    }
    return best;
}

static bool word_before(const char *p, size_t i)
{
    if (i == 0) return false;
    size_t start = i - 1;
    while (start > 0 && ((unsigned char)p[start] & 0xc0) == 0x80) start--;
    uint32_t cp;
    return lk_utf8_decode(p + start, i - start, &cp) && lk_is_word(cp);
}

static bool word_after(const char *p, size_t n, size_t i)
{
    uint32_t cp;
    return i < n && lk_utf8_decode(p + i, n - i, &cp) && lk_is_word(cp);
}

static size_t spaces_before(const char *p, size_t floor, size_t i)
{
    while (i > floor) {
        size_t start = i - 1;
        while (start > floor && ((unsigned char)p[start] & 0xc0) == 0x80) start--;
        uint32_t cp;
        if (!lk_utf8_decode(p + start, i - start, &cp) || !lk_is_space(cp)) break;
        i = start;
    }
    return i;
}

static size_t spaces_after(const char *p, size_t n, size_t i)
{
    while (i < n) {
        uint32_t cp;
        int length = lk_utf8_decode(p + i, n - i, &cp);
        if (!length || !lk_is_space(cp)) break;
        i += (size_t)length;
    }
    return i;
}

static bool is_mark(const lk_text_marks *marks, int32_t id)
{
    for (int i = 0; i < marks->n; i++)
        if (marks->ids[i] == id) return true;
    return false;
}

/* The match at i, and whether it is to be recognised. A special token within plain text is passed over as a whole, as the
 * library's encode_special_tokens does; one that straddles template and content is none, so shorter ones are tried. */
static const lk_added *match_at(lk_encoder *e, const lk_added_set *set, lk_view text, size_t i, bool *recognised)
{
    uint32_t below = UINT32_MAX;
    for (;;) {
        const lk_added *a = longest_at(set, text.p + i, text.n - i, below);
        *recognised = true;
        if (!a || !(a->special || is_mark(&e->marks, a->id))) return a;
        size_t end = lk_view_source(&text, i + a->match_size - 1) + 1;
        int allowed = lk_encoder_special_allowed(e, lk_view_source(&text, i), end);
        *recognised = allowed == 1;
        if (allowed >= 0) return a;
        below = a->match_size;
    }
}

lk_status lk_added_split(lk_encoder *e, const lk_added_set *set, lk_view text, lk_status (*next)(lk_encoder *, lk_view))
{
    size_t done = 0; /* everything before is emitted */
    for (size_t i = 0; set->n && i < text.n;) {
        bool recognised = false;
        const lk_added *a = set->first[(unsigned char)text.p[i]] ? match_at(e, set, text, i, &recognised) : NULL;
        if (!a) {
            i++;
            continue;
        }
        size_t begin = i, end = i + a->match_size;
        i = end;
        if (!recognised || (a->single_word && (word_before(text.p, begin) || word_after(text.p, text.n, end)))) continue;
        if (a->lstrip) begin = spaces_before(text.p, done < begin ? done : begin, begin);
        if (a->rstrip) end = spaces_after(text.p, text.n, end);
        if (done < begin) LK_TRY(next(e, lk_view_sub(text, done, begin)));
        LK_TRY(lk_encoder_emit(e, a->id, lk_view_source(&text, begin)));
        done = end;
    }
    return done < text.n ? next(e, lk_view_sub(text, done, text.n)) : LK_OK;
}
