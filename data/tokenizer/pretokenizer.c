/* Pre-tokenisers: Sequence, Split (a string or a regular expression, every behaviour, inverted or not), CharDelimiterSplit, Digits,
 * Punctuation, Whitespace, WhitespaceSplit, BertPreTokenizer (the last two and punctuation), Metaspace, ByteLevel.
 *
 * A Sequence is a chain: each step cuts its piece and hands every part to the next step, the last to the model, so no list of words is
 * ever built. ByteLevel ends the chain: its byte alphabet is never materialised, BPE works on the bytes themselves (bpe.c). */
#include <string.h>

#include "base/json.h"
#include "data/tokenizer/internal.h"

/* What GPT-2 splits with; part of ByteLevel's definition (use_regex). */
static const char GPT2_PATTERN[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static lk_status read_step(lk_tokenizer *tk, const cJSON *node, lk_error *err);

static lk_status add_step(lk_tokenizer *tk, lk_pre_step **step, lk_error *err)
{
    if (tk->n_pre == LK_TK_MAX_STEPS)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: more than %d pre_tokenizers", tk->where, LK_TK_MAX_STEPS);
    if (tk->n_pre > 0 && tk->pre[tk->n_pre - 1].kind == LK_PRE_BYTE_LEVEL)
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: a pre_tokenizer after ByteLevel is not supported", tk->where);
    *step = &tk->pre[tk->n_pre++]; /* counted at once, so that closing frees its regex */
    return LK_OK;
}

static lk_status keep(lk_tokenizer *tk, lk_pre_step *step, const char *literal, lk_error *err)
{
    step->literal_size = strlen(literal);
    step->literal = lk_arena_strdup(&tk->arena, literal);
    return step->literal ? LK_OK : lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
}

static lk_status compile(lk_tokenizer *tk, lk_pre_step *step, const char *pattern, lk_error *err)
{
    step->pattern = lk_arena_strdup(&tk->arena, pattern);
    if (!step->pattern) return lk_fail(err, LK_ERR_MEMORY, "%s: no memory", tk->where);
    return lk_regex_compile(&step->regex, pattern, tk->where, err);
}

static lk_status read_behavior(lk_tokenizer *tk, const cJSON *node, const char *fallback, lk_pre_step *step, const char *component,
                               lk_error *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    static const int values[] = {LK_SPLIT_REMOVED, LK_SPLIT_ISOLATED, LK_SPLIT_PREVIOUS, LK_SPLIT_NEXT, LK_SPLIT_CONTIGUOUS};
    const char *name = fallback;
    if (fallback)
        LK_TRY(lk_json_opt_string(node, "behavior", &name, tk->where, err));
    else
        LK_TRY(lk_json_string(node, "behavior", &name, tk->where, err));
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, names[i])) continue;
        step->behavior = values[i];
        return LK_OK;
    }
    return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: pre_tokenizer %s: unknown behavior \"%.60s\"", tk->where, component, name);
}

static lk_status read_split(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    const char *where = tk->where, *text;
    lk_pre_step *step = NULL;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "pattern", "behavior", "invert", NULL}, where, "pre_tokenizer Split", err));
    LK_TRY(add_step(tk, &step, err));
    LK_TRY(read_behavior(tk, node, NULL, step, "Split", err));
    LK_TRY(lk_json_opt_bool(node, "invert", &step->invert, where, err));
    const cJSON *pattern = lk_json_get(node, "pattern");
    if (cJSON_IsObject(pattern) && lk_json_get(pattern, "Regex")) {
        step->kind = LK_PRE_REGEX;
        LK_TRY(lk_json_string(pattern, "Regex", &text, where, err));
        return compile(tk, step, text, err);
    }
    if (!cJSON_IsObject(pattern) || !lk_json_get(pattern, "String"))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: pre_tokenizer Split: the pattern must be {\"String\": ...} or {\"Regex\": ...}",
                       where);
    step->kind = LK_PRE_LITERAL;
    LK_TRY(lk_json_string(pattern, "String", &text, where, err));
    if (!*text) return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: pre_tokenizer Split: the pattern is empty", where);
    return keep(tk, step, text, err);
}

static lk_status read_byte_level(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    const char *where = tk->where;
    bool add_prefix_space = true, use_regex = true, trim = true;
    lk_pre_step *step = NULL;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "add_prefix_space", "trim_offsets", "use_regex", NULL}, where,
                        "pre_tokenizer ByteLevel", err));
    LK_TRY(add_step(tk, &step, err));
    step->kind = LK_PRE_BYTE_LEVEL;
    LK_TRY(lk_json_opt_bool(node, "add_prefix_space", &add_prefix_space, where, err));
    LK_TRY(lk_json_opt_bool(node, "use_regex", &use_regex, where, err));
    LK_TRY(lk_json_opt_bool(node, "trim_offsets", &trim, where, err)); /* offsets only: we give none */
    step->prepend = add_prefix_space ? LK_PREPEND_ALWAYS : LK_PREPEND_NEVER;
    step->behavior = LK_SPLIT_ISOLATED;
    return use_regex ? compile(tk, step, GPT2_PATTERN, err) : LK_OK;
}

lk_status lk_read_metaspace(const cJSON *node, const char **replacement, int *prepend, bool *split, const char *where, lk_error *err)
{
    bool prefix = true;
    const char *scheme = NULL;
    uint32_t c;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "replacement", "str_rep", "prepend_scheme", "add_prefix_space", "split", NULL},
                        where, "Metaspace", err));
    LK_TRY(lk_json_string(node, "replacement", replacement, where, err));
    LK_TRY(lk_json_opt_bool(node, "split", split, where, err));
    LK_TRY(lk_json_opt_bool(node, "add_prefix_space", &prefix, where, err)); /* the form before prepend_scheme */
    LK_TRY(lk_json_opt_string(node, "prepend_scheme", &scheme, where, err));
    size_t n = strlen(*replacement);
    if (n == 0 || (size_t)lk_utf8_decode(*replacement, n, &c) != n)
        return lk_fail(err, LK_ERR_FORMAT, "%s: Metaspace: replacement must be one character", where);
    if (!scheme) scheme = prefix ? "always" : "never";
    if (!prefix && strcmp(scheme, "never"))
        return lk_fail(err, LK_ERR_FORMAT, "%s: Metaspace: add_prefix_space is false but prepend_scheme is \"%.20s\"", where, scheme);
    *prepend = !strcmp(scheme, "always") ? LK_PREPEND_ALWAYS : !strcmp(scheme, "first") ? LK_PREPEND_FIRST : LK_PREPEND_NEVER;
    if (*prepend == LK_PREPEND_NEVER && strcmp(scheme, "never"))
        return lk_fail(err, LK_ERR_UNSUPPORTED, "%s: Metaspace: unknown prepend_scheme \"%.40s\"", where, scheme);
    return LK_OK;
}

static lk_status read_metaspace_step(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    lk_pre_step *step = NULL;
    const char *replacement;
    int prepend;
    LK_TRY(add_step(tk, &step, err));
    step->kind = LK_PRE_METASPACE;
    step->behavior = LK_SPLIT_NEXT;
    step->split = true;
    LK_TRY(lk_read_metaspace(node, &replacement, &prepend, &step->split, tk->where, err));
    step->prepend = prepend == LK_PREPEND_ALWAYS ? LK_PREPEND_ALWAYS : prepend == LK_PREPEND_FIRST ? LK_PREPEND_FIRST : LK_PREPEND_NEVER;
    tk->needs_sources |= prepend == LK_PREPEND_FIRST;
    return keep(tk, step, replacement, err);
}

static lk_status read_digits(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    bool individual = false;
    lk_pre_step *step = NULL;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "individual_digits", NULL}, tk->where, "pre_tokenizer Digits", err));
    LK_TRY(add_step(tk, &step, err));
    step->kind = LK_PRE_DIGITS;
    LK_TRY(lk_json_opt_bool(node, "individual_digits", &individual, tk->where, err));
    step->behavior = individual ? LK_SPLIT_ISOLATED : LK_SPLIT_CONTIGUOUS;
    return LK_OK;
}

static lk_status read_punctuation(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    lk_pre_step *step = NULL;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "behavior", NULL}, tk->where, "pre_tokenizer Punctuation", err));
    LK_TRY(add_step(tk, &step, err));
    step->kind = LK_PRE_PUNCTUATION;
    return read_behavior(tk, node, "Isolated", step, "Punctuation", err);
}

static lk_status read_delimiter(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    lk_pre_step *step = NULL;
    const char *text;
    uint32_t cp;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "delimiter", NULL}, tk->where, "pre_tokenizer CharDelimiterSplit", err));
    LK_TRY(lk_json_string(node, "delimiter", &text, tk->where, err));
    if (!*text || (size_t)lk_utf8_decode(text, strlen(text), &cp) != strlen(text))
        return lk_fail(err, LK_ERR_FORMAT, "%s: pre_tokenizer CharDelimiterSplit: delimiter must be one character", tk->where);
    LK_TRY(add_step(tk, &step, err));
    step->kind = LK_PRE_LITERAL;
    step->behavior = LK_SPLIT_REMOVED;
    return keep(tk, step, text, err);
}

static lk_status read_spaces(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    lk_pre_step *step = NULL;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", NULL}, tk->where, "pre_tokenizer WhitespaceSplit", err));
    LK_TRY(add_step(tk, &step, err));
    step->kind = LK_PRE_SPACES;
    step->behavior = LK_SPLIT_REMOVED;
    return LK_OK;
}

static lk_status read_words(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    lk_pre_step *step = NULL;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", NULL}, tk->where, "pre_tokenizer Whitespace", err));
    LK_TRY(add_step(tk, &step, err));
    step->kind = LK_PRE_WORDS;
    step->behavior = LK_SPLIT_REMOVED;
    return LK_OK;
}

static lk_status read_bert(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    lk_pre_step *step = NULL;
    LK_TRY(read_spaces(tk, node, err));
    LK_TRY(add_step(tk, &step, err));
    step->kind = LK_PRE_PUNCTUATION;
    step->behavior = LK_SPLIT_ISOLATED;
    return LK_OK;
}

static lk_status read_sequence(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    const cJSON *list = lk_json_get(node, "pretokenizers"), *child;
    LK_TRY(lk_only_keys(node, (const char *const[]){"type", "pretokenizers", NULL}, tk->where, "pre_tokenizer Sequence", err));
    if (!cJSON_IsArray(list)) return lk_fail(err, LK_ERR_FORMAT, "%s: pre_tokenizer Sequence: pretokenizers must be a list", tk->where);
    cJSON_ArrayForEach(child, list) LK_TRY(read_step(tk, child, err));
    return LK_OK;
}

static lk_status read_step(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    static const struct {
        const char *type;
        lk_status (*read)(lk_tokenizer *, const cJSON *, lk_error *);
    } kinds[] = {{"Sequence", read_sequence},
                 {"Split", read_split},
                 {"ByteLevel", read_byte_level},
                 {"Digits", read_digits},
                 {"Metaspace", read_metaspace_step},
                 {"Punctuation", read_punctuation},
                 {"Whitespace", read_words},
                 {"WhitespaceSplit", read_spaces},
                 {"CharDelimiterSplit", read_delimiter},
                 {"BertPreTokenizer", read_bert}};
    const char *type;
    if (!cJSON_IsObject(node)) return lk_fail(err, LK_ERR_FORMAT, "%s: a pre_tokenizer must be an object", tk->where);
    LK_TRY(lk_json_string(node, "type", &type, tk->where, err));
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(type, kinds[i].type)) return kinds[i].read(tk, node, err);
    return lk_refuse(tk->where, "pre_tokenizer", type,
                     "Sequence, Split, ByteLevel, Digits, Metaspace, Punctuation, Whitespace, WhitespaceSplit, CharDelimiterSplit, "
                     "BertPreTokenizer",
                     err);
}

lk_status lk_pretokenizer_read(lk_tokenizer *tk, const cJSON *node, lk_error *err)
{
    return !node || cJSON_IsNull(node) ? LK_OK : read_step(tk, node, err);
}

/* ---- cutting ---- */

/* Takes the matches and the stretches between them in order and hands on what the behaviour makes of them. */
typedef struct cutter {
    lk_encoder *e;
    lk_view text;
    int next; /* the step that gets the parts */
    int behavior;
    bool invert;
    size_t begin, end; /* a part not yet handed on; empty when begin == end */
    bool held, held_match;
} cutter;

static lk_status run_step(lk_encoder *e, int step, lk_view text);

static lk_status flush(cutter *c)
{
    if (!c->held) return LK_OK;
    c->held = false;
    return c->begin == c->end ? LK_OK : run_step(c->e, c->next, lk_view_sub(c->text, c->begin, c->end));
}

static lk_status cut(cutter *c, size_t begin, size_t end, bool match)
{
    match ^= c->invert;
    bool joins = false;
    switch (c->behavior) {
    case LK_SPLIT_REMOVED:
        if (match) return LK_OK;
        break;
    case LK_SPLIT_ISOLATED: break;
    case LK_SPLIT_CONTIGUOUS: joins = c->held && match == c->held_match; break;
    case LK_SPLIT_PREVIOUS: joins = c->held && match && !c->held_match; break;
    case LK_SPLIT_NEXT: joins = c->held && !match && c->held_match; break;
    }
    if (joins)
        c->end = end;
    else {
        LK_TRY(flush(c));
        c->begin = begin;
        c->end = end;
        c->held = true;
    }
    c->held_match = match;
    return c->behavior == LK_SPLIT_REMOVED || c->behavior == LK_SPLIT_ISOLATED ? flush(c) : LK_OK;
}

static lk_status cut_regex(cutter *c, const lk_regex *regex)
{
    size_t previous = 0, from = 0, last = SIZE_MAX;
    while (from <= c->text.n) {
        size_t begin, end;
        LK_TRY(lk_regex_find(regex, &c->e->regex, c->text.p, c->text.n, from, &begin, &end, c->e->err));
        if (begin == SIZE_MAX) break;
        if (begin == end && end == last) { /* an empty match right after a match does not count */
            uint32_t cp;
            from += from < c->text.n ? (size_t)lk_utf8_decode(c->text.p + from, c->text.n - from, &cp) : 1;
            continue;
        }
        from = last = end;
        if (previous != begin) LK_TRY(cut(c, previous, begin, false));
        LK_TRY(cut(c, begin, end, true));
        previous = end;
    }
    return previous != c->text.n ? cut(c, previous, c->text.n, false) : LK_OK;
}

static lk_status cut_literal(cutter *c, const char *literal, size_t size)
{
    size_t previous = 0;
    for (;;) {
        const char *found = previous < c->text.n ? memmem(c->text.p + previous, c->text.n - previous, literal, size) : NULL;
        if (!found) break;
        size_t begin = (size_t)(found - c->text.p);
        if (previous != begin) LK_TRY(cut(c, previous, begin, false));
        LK_TRY(cut(c, begin, begin + size, true));
        previous = begin + size;
    }
    return previous != c->text.n ? cut(c, previous, c->text.n, false) : LK_OK;
}

/* Every character of the class is a match of its own. */
static lk_status cut_chars(cutter *c, bool (*is)(uint32_t))
{
    size_t previous = 0;
    for (size_t i = 0; i < c->text.n;) {
        uint32_t cp;
        size_t length = (size_t)lk_utf8_decode(c->text.p + i, c->text.n - i, &cp);
        if (is(cp)) {
            if (previous != i) LK_TRY(cut(c, previous, i, false));
            LK_TRY(cut(c, i, i + length, true));
            previous = i + length;
        }
        i += length;
    }
    return previous != c->text.n ? cut(c, previous, c->text.n, false) : LK_OK;
}

/* Whitespace: \\w+|[^\\w\\s]+ stay, white space goes. */
static lk_status cut_words(cutter *c)
{
    size_t begin = 0;
    int last = -1; /* 0 space, 1 word, 2 other; -1 at the start */
    for (size_t i = 0; i <= c->text.n;) {
        uint32_t cp;
        bool end = i == c->text.n;
        size_t length = end ? 1 : (size_t)lk_utf8_decode(c->text.p + i, c->text.n - i, &cp);
        int now = end ? -1 : lk_is_space(cp) ? 0 : lk_is_word(cp) ? 1 : 2;
        if (now != last) {
            if (last >= 0) LK_TRY(cut(c, begin, i, last == 0));
            begin = i;
            last = now;
        }
        i += length;
    }
    return LK_OK;
}

/* The text with a space in front, when it does not have one. */
static lk_status with_space(lk_encoder *e, int step, lk_view *text)
{
    if (text->p[0] == ' ') return LK_OK;
    lk_text *t = &e->pre[step];
    t->n = 0;
    LK_TRY(lk_text_add(t, " ", 1, lk_view_source(text, 0), e->err));
    LK_TRY(lk_text_copy(t, text, 0, text->n, e->err));
    *text = lk_text_view(t);
    return LK_OK;
}

/* Spaces become the replacement, and one is put in front where the scheme says so. */
static lk_status metaspace(lk_encoder *e, int step, lk_view *text)
{
    const lk_pre_step *s = &e->tk->pre[step];
    lk_text *t = &e->pre[step];
    t->n = 0;
    bool there = text->p[0] == ' ' || (text->n >= s->literal_size && !memcmp(text->p, s->literal, s->literal_size));
    bool wanted = s->prepend == LK_PREPEND_ALWAYS || (s->prepend == LK_PREPEND_FIRST && lk_view_source(text, 0) == 0);
    if (wanted && !there) LK_TRY(lk_text_add(t, s->literal, s->literal_size, lk_view_source(text, 0), e->err));
    size_t at = 0;
    for (;;) {
        const char *found = memchr(text->p + at, ' ', text->n - at);
        size_t space = found ? (size_t)(found - text->p) : text->n;
        LK_TRY(lk_text_copy(t, text, at, space, e->err));
        if (!found) break;
        LK_TRY(lk_text_add(t, s->literal, s->literal_size, lk_view_source(text, space), e->err));
        at = space + 1;
    }
    *text = lk_text_view(t);
    return LK_OK;
}

static lk_status run_step(lk_encoder *e, int step, lk_view text)
{
    const lk_tokenizer *tk = e->tk;
    if (text.n == 0) return LK_OK;
    if (step == tk->n_pre) return tk->model == LK_TK_UNIGRAM ? lk_unigram_encode(e, text) : lk_bpe_encode(e, text);
    const lk_pre_step *s = &tk->pre[step];
    if (s->kind == LK_PRE_BYTE_LEVEL && s->prepend == LK_PREPEND_ALWAYS) LK_TRY(with_space(e, step, &text));
    if (s->kind == LK_PRE_METASPACE) LK_TRY(metaspace(e, step, &text));
    cutter c = {.e = e, .text = text, .next = step + 1, .behavior = (int)s->behavior, .invert = s->invert};
    switch (s->kind) {
    case LK_PRE_REGEX: LK_TRY(cut_regex(&c, s->regex)); break;
    case LK_PRE_BYTE_LEVEL:
        if (!s->regex) return run_step(e, step + 1, text);
        LK_TRY(cut_regex(&c, s->regex));
        break;
    case LK_PRE_LITERAL: LK_TRY(cut_literal(&c, s->literal, s->literal_size)); break;
    case LK_PRE_DIGITS: LK_TRY(cut_chars(&c, lk_is_numeric)); break;
    case LK_PRE_PUNCTUATION: LK_TRY(cut_chars(&c, lk_is_punctuation)); break;
    case LK_PRE_SPACES: LK_TRY(cut_chars(&c, lk_is_space)); break;
    case LK_PRE_WORDS: LK_TRY(cut_words(&c)); break;
    case LK_PRE_METASPACE:
        if (!s->split) return run_step(e, step + 1, text);
        LK_TRY(cut_literal(&c, s->literal, s->literal_size));
        break;
    }
    return flush(&c);
}

lk_status lk_pretokenize(lk_encoder *e, lk_view text) { return run_step(e, 0, text); }
