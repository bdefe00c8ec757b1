/* The methods of Python's str. Whatever is cut out of a string or put together from strings keeps its bytes' origins. */
#include <string.h>
#include <utf8proc.h>

#include "data/chat/jinja_internal.h"
#include "data/tokenizer/utf8.h"

static const lk_jtext *need_text(lk_j *j, lk_jvalue v, const char *what)
{
    if (v.kind != LK_J_STRING) lk_j_fail(j, "%s must be a string, not '%s'", what, lk_j_type_name(v));
    return v.s;
}

static bool given(lk_jvalue v) { return v.kind != LK_J_ABSENT && v.kind != LK_J_NONE; }

/* ------------------------------------------------------------------------------------------------ strip, replace */

static bool stripped(const lk_jtext *chars, uint32_t cp)
{
    if (!chars) return lk_j_is_space(cp);
    for (size_t at = 0; at < chars->n;) {
        int length;
        if (lk_j_char_at(chars, at, &length) == cp) return true;
        at += (size_t)length;
    }
    return false;
}

const lk_jtext *lk_j_strip(lk_j *j, const lk_jtext *t, const lk_jtext *chars, bool left, bool right)
{
    size_t begin = 0, end = t->n;
    int length;
    while (left && begin < end && stripped(chars, lk_j_char_at(t, begin, &length))) begin += (size_t)length;
    while (right && end > begin) {
        size_t i = end - 1;
        while (i > begin && ((unsigned char)t->p[i] & 0xc0) == 0x80) i--;
        if (!stripped(chars, lk_j_char_at(t, i, &length))) break;
        end = i;
    }
    lk_j_step(j, (int64_t)(t->n - (end - begin)) / 16);
    return lk_j_part(j, t, begin, end);
}

static lk_jvalue strip_method(lk_j *j, const lk_jtext *self, const lk_jargs *args, bool left, bool right)
{
    static const char *const names[] = {"chars"};
    lk_jvalue a[1];
    lk_j_take(j, "strip", args, 0, 1, names, a);
    return lk_j_string(lk_j_strip(j, self, given(a[0]) ? need_text(j, a[0], "strip's argument") : NULL, left, right));
}

static lk_jvalue m_strip(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return strip_method(j, self, args, true, true); }
static lk_jvalue m_lstrip(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return strip_method(j, self, args, true, false); }
static lk_jvalue m_rstrip(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return strip_method(j, self, args, false, true); }

/* count < 0: all. An empty `old` stands before every character and at the end. */
const lk_jtext *lk_j_replace(lk_j *j, const lk_jtext *t, const lk_jtext *old, const lk_jtext *fresh, int64_t count)
{
    lk_jbuilder b = {0};
    size_t done = 0;
    if (count == 0) return t;
    if (old->n == 0) {
        for (size_t at = 0; at <= t->n && count != 0; count--) {
            lk_j_step(j, 1);
            lk_j_add_text(j, &b, fresh);
            int length = 0;
            if (at < t->n) lk_j_char_at(t, at, &length);
            lk_j_add_part(j, &b, t, at, at + (size_t)length);
            done = at + (size_t)length;
            at = length ? done : t->n + 1;
        }
        lk_j_add_part(j, &b, t, done, t->n);
        return lk_j_built(j, &b);
    }
    for (int64_t at; count != 0 && (at = lk_j_find(j, t, old, done)) >= 0; count--) {
        lk_j_step(j, 1);
        lk_j_add_part(j, &b, t, done, (size_t)at);
        lk_j_add_text(j, &b, fresh);
        done = (size_t)at + old->n;
    }
    if (done == 0) return t;
    lk_j_add_part(j, &b, t, done, t->n);
    return lk_j_built(j, &b);
}

static lk_jvalue m_replace(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    static const char *const names[] = {"old", "new", "count"};
    lk_jvalue a[3];
    lk_j_take(j, "replace", args, 2, 3, names, a);
    int64_t count = a[2].kind ? lk_j_need_int(j, a[2], "replace's count") : -1;
    return lk_j_string(
        lk_j_replace(j, self, need_text(j, a[0], "replace's first argument"), need_text(j, a[1], "replace's second argument"), count));
}

static lk_jvalue m_removeprefix(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_j_take(j, "removeprefix", args, 1, 1, (const char *const[]){"prefix"}, a);
    const lk_jtext *prefix = need_text(j, a[0], "removeprefix's argument");
    bool there = prefix->n <= self->n && !memcmp(self->p, prefix->p, prefix->n);
    return lk_j_string(there ? lk_j_part(j, self, prefix->n, self->n) : self);
}

static lk_jvalue m_removesuffix(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_j_take(j, "removesuffix", args, 1, 1, (const char *const[]){"suffix"}, a);
    const lk_jtext *suffix = need_text(j, a[0], "removesuffix's argument");
    bool there = suffix->n && suffix->n <= self->n && !memcmp(self->p + self->n - suffix->n, suffix->p, suffix->n);
    return lk_j_string(there ? lk_j_part(j, self, 0, self->n - suffix->n) : self);
}

/* ------------------------------------------------------------------------------------------------ split, join */

static void push_part(lk_j *j, lk_jvalue list, const lk_jtext *t, size_t begin, size_t end)
{
    lk_j_step(j, 1);
    lk_j_push(j, list, lk_j_string(lk_j_part(j, t, begin, end)));
}

static size_t skip_space(const lk_jtext *t, size_t at, bool space)
{
    int length;
    while (at < t->n && lk_j_is_space(lk_j_char_at(t, at, &length)) == space) at += (size_t)length;
    return at;
}

static void split_space(lk_j *j, lk_jvalue list, const lk_jtext *t, int64_t limit)
{
    for (size_t at = skip_space(t, 0, true); at < t->n;) {
        size_t end = limit == 0 ? t->n : skip_space(t, at, false); /* the rest keeps the white space at its end */
        push_part(j, list, t, at, end);
        if (limit-- == 0) return;
        at = skip_space(t, end, true);
    }
}

static void split_at(lk_j *j, lk_jvalue list, const lk_jtext *t, const lk_jtext *separator, int64_t limit)
{
    size_t done = 0;
    for (int64_t at; limit != 0 && (at = lk_j_find(j, t, separator, done)) >= 0; limit--) {
        push_part(j, list, t, done, (size_t)at);
        done = (size_t)at + separator->n;
    }
    push_part(j, list, t, done, t->n);
}

static void reverse(lk_jvalue list)
{
    for (int64_t a = 0, b = list.list->n - 1; a < b; a++, b--) {
        lk_jvalue v = list.list->items[a];
        list.list->items[a] = list.list->items[b];
        list.list->items[b] = v;
    }
}

static size_t skip_back(const lk_jtext *t, size_t end, bool space)
{
    while (end > 0) {
        size_t i = end - 1;
        int length;
        while (i > 0 && ((unsigned char)t->p[i] & 0xc0) == 0x80) i--;
        if (lk_j_is_space(lk_j_char_at(t, i, &length)) != space) break;
        end = i;
    }
    return end;
}

static void rsplit_space(lk_j *j, lk_jvalue list, const lk_jtext *t, int64_t limit)
{
    for (size_t end = skip_back(t, t->n, true); end > 0;) {
        size_t begin = limit == 0 ? 0 : skip_back(t, end, false);
        push_part(j, list, t, begin, end);
        if (limit-- == 0) break;
        end = skip_back(t, begin, true);
    }
    reverse(list);
}

static void rsplit_at(lk_j *j, lk_jvalue list, const lk_jtext *t, const lk_jtext *separator, int64_t limit)
{
    size_t end = t->n;
    for (; limit != 0; limit--) {
        size_t at = end;
        bool found = false;
        lk_j_step(j, (int64_t)end / 16);
        while (!found && at >= separator->n) {
            found = !memcmp(t->p + at - separator->n, separator->p, separator->n);
            at -= !found;
        }
        if (!found) break;
        push_part(j, list, t, at, end);
        end = at - separator->n;
    }
    push_part(j, list, t, 0, end);
    reverse(list);
}

static lk_jvalue split(lk_j *j, const lk_jtext *self, const lk_jargs *args, bool right)
{
    static const char *const names[] = {"sep", "maxsplit"};
    lk_jvalue a[2], list = lk_j_list(j, LK_J_LIST, 0);
    lk_j_take(j, "split", args, 0, 2, names, a);
    int64_t limit = a[1].kind ? lk_j_need_int(j, a[1], "maxsplit") : -1;
    if (!given(a[0])) {
        (right ? rsplit_space : split_space)(j, list, self, limit);
        return list;
    }
    const lk_jtext *separator = need_text(j, a[0], "the separator");
    if (separator->n == 0) lk_j_fail(j, "empty separator");
    (right ? rsplit_at : split_at)(j, list, self, separator, limit);
    return list;
}

static lk_jvalue m_split(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return split(j, self, args, false); }
static lk_jvalue m_rsplit(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return split(j, self, args, true); }

lk_jvalue lk_j_split_lines(lk_j *j, const lk_jtext *t, bool keep)
{
    lk_jvalue list = lk_j_list(j, LK_J_LIST, 0);
    size_t begin = 0;
    for (size_t at = 0; at < t->n;) {
        int length;
        uint32_t cp = lk_j_char_at(t, at, &length);
        size_t end = at + (size_t)length;
        if (lk_j_is_break(cp)) {
            if (cp == '\r' && end < t->n && t->p[end] == '\n') end++;
            push_part(j, list, t, begin, keep ? end : at);
            begin = end;
        }
        at = end;
    }
    if (begin < t->n) push_part(j, list, t, begin, t->n);
    return list;
}

static lk_jvalue m_splitlines(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_j_take(j, "splitlines", args, 0, 1, (const char *const[]){"keepends"}, a);
    return lk_j_split_lines(j, self, lk_j_truth(a[0]));
}

static lk_jvalue partition(lk_j *j, const lk_jtext *self, const lk_jargs *args, bool right)
{
    lk_jvalue a[1], parts = lk_j_list(j, LK_J_TUPLE, 3), pieces = lk_j_list(j, LK_J_LIST, 2);
    lk_j_take(j, "partition", args, 1, 1, (const char *const[]){"sep"}, a);
    const lk_jtext *separator = need_text(j, a[0], "the separator"), *empty = lk_j_literal(j, "");
    if (separator->n == 0) lk_j_fail(j, "empty separator");
    (right ? rsplit_at : split_at)(j, pieces, self, separator, 1);
    bool found = pieces.list->n == 2;
    if (right && !found) lk_j_push(j, parts, lk_j_string(empty)), lk_j_push(j, parts, lk_j_string(empty));
    lk_j_push(j, parts, pieces.list->items[0]);
    if (found) lk_j_push(j, parts, a[0]), lk_j_push(j, parts, pieces.list->items[1]);
    if (!right && !found) lk_j_push(j, parts, lk_j_string(empty)), lk_j_push(j, parts, lk_j_string(empty));
    return parts;
}

static lk_jvalue m_partition(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return partition(j, self, args, false); }
static lk_jvalue m_rpartition(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return partition(j, self, args, true); }

static lk_jvalue m_join(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_jbuilder b = {0};
    int64_t n;
    lk_j_take(j, "join", args, 1, 1, (const char *const[]){"iterable"}, a);
    lk_jvalue *items = lk_j_items(j, a[0], &n);
    for (int64_t i = 0; i < n; i++) {
        if (i) lk_j_add_text(j, &b, self);
        lk_j_add_text(j, &b, need_text(j, items[i], "an item to join"));
    }
    return lk_j_string(lk_j_built(j, &b));
}

/* ------------------------------------------------------------------------------------------------ looking */

/* Python's slice bounds as bytes; false when start lies behind the end. */
static bool window(lk_j *j, const lk_jtext *t, lk_jvalue from, lk_jvalue to, size_t *begin, size_t *end)
{
    int64_t n = lk_j_chars(j, t), a = given(from) ? lk_j_need_int(j, from, "a start") : 0,
            b = given(to) ? lk_j_need_int(j, to, "an end") : n;
    if (a < 0) a = a + n < 0 ? 0 : a + n;
    if (b < 0) b = b + n < 0 ? 0 : b + n;
    if (b > n) b = n;
    if (a > b) return false;
    *begin = lk_j_byte_of(j, t, a);
    *end = lk_j_byte_of(j, t, b);
    return true;
}

static bool matches_at(lk_j *j, const lk_jtext *t, size_t begin, size_t end, lk_jvalue what, bool at_end)
{
    if (what.kind == LK_J_TUPLE) {
        for (int64_t i = 0; i < what.list->n; i++)
            if (matches_at(j, t, begin, end, what.list->items[i], at_end)) return true;
        return false;
    }
    const lk_jtext *w = need_text(j, what, "what to look for");
    return w->n <= end - begin && !memcmp(at_end ? t->p + end - w->n : t->p + begin, w->p, w->n);
}

static lk_jvalue affix(lk_j *j, const lk_jtext *self, const lk_jargs *args, bool at_end)
{
    static const char *const names[] = {"prefix", "start", "end"};
    lk_jvalue a[3];
    size_t begin, end;
    lk_j_take(j, at_end ? "endswith" : "startswith", args, 1, 3, names, a);
    bool there = window(j, self, a[1], a[2], &begin, &end);
    return lk_j_bool(matches_at(j, self, there ? begin : 0, there ? end : 0, a[0], at_end) && there);
}

static lk_jvalue m_startswith(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return affix(j, self, args, false); }
static lk_jvalue m_endswith(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return affix(j, self, args, true); }

static int64_t chars_before(lk_j *j, const lk_jtext *t, size_t byte)
{
    if (lk_j_chars(j, t) == t->n) return (int64_t)byte;
    int64_t n = 0;
    for (size_t i = 0; i < byte; i++) n += ((unsigned char)t->p[i] & 0xc0) != 0x80;
    lk_j_step(j, (int64_t)byte / 64);
    return n;
}

static lk_jvalue find(lk_j *j, const lk_jtext *self, const lk_jargs *args, bool right, bool must)
{
    static const char *const names[] = {"sub", "start", "end"};
    lk_jvalue a[3];
    size_t begin, end;
    lk_j_take(j, must ? "index" : "find", args, 1, 3, names, a);
    const lk_jtext *sub = need_text(j, a[0], "what to find");
    int64_t found = -1;
    if (window(j, self, a[1], a[2], &begin, &end) && sub->n <= end - begin) {
        lk_j_step(j, (int64_t)(end - begin) / 16);
        size_t last = end - sub->n;
        for (size_t i = 0; i <= last - begin && found < 0; i++) {
            size_t at = right ? last - i : begin + i;
            if (!memcmp(self->p + at, sub->p, sub->n)) found = (int64_t)at;
        }
    }
    if (found < 0 && must) lk_j_fail(j, "substring not found");
    return lk_j_int(found < 0 ? -1 : chars_before(j, self, (size_t)found));
}

static lk_jvalue m_find(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return find(j, self, args, false, false); }
static lk_jvalue m_rfind(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return find(j, self, args, true, false); }
static lk_jvalue m_index(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return find(j, self, args, false, true); }
static lk_jvalue m_rindex(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return find(j, self, args, true, true); }

static lk_jvalue m_count(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    static const char *const names[] = {"sub", "start", "end"};
    lk_jvalue a[3];
    size_t begin, end;
    int64_t n = 0;
    lk_j_take(j, "count", args, 1, 3, names, a);
    const lk_jtext *sub = need_text(j, a[0], "what to count");
    if (!window(j, self, a[1], a[2], &begin, &end)) return lk_j_int(0);
    const lk_jtext *t = lk_j_part(j, self, begin, end);
    if (sub->n == 0) return lk_j_int(lk_j_chars(j, t) + 1);
    for (int64_t at = 0; (at = lk_j_find(j, t, sub, (size_t)at)) >= 0; at += sub->n) lk_j_step(j, 1), n++;
    return lk_j_int(n);
}

/* ------------------------------------------------------------------------------------------------ case and classes */

static bool is_letter(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT || c == UTF8PROC_CATEGORY_LM ||
           c == UTF8PROC_CATEGORY_LO;
}

static bool is_cased(uint32_t cp)
{
    return utf8proc_toupper((utf8proc_int32_t)cp) != (utf8proc_int32_t)cp ||
           utf8proc_tolower((utf8proc_int32_t)cp) != (utf8proc_int32_t)cp ||
           utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_LL ||
           utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_LU;
}

static bool is_upper(uint32_t cp) { return utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_LU; }
static bool is_lower(uint32_t cp) { return utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_LL; }

static void add_char(lk_j *j, lk_jbuilder *b, uint32_t cp, char how, uint32_t origin)
{
    char out[4];
    if (cp == 0xdf && (how == 'u' || how == 't')) { /* the one letter of Latin 1 that becomes two */
        lk_j_add(j, b, how == 'u' ? "SS" : "Ss", 2, origin);
        return;
    }
    utf8proc_int32_t c = (utf8proc_int32_t)cp;
    c = how == 'u' ? utf8proc_toupper(c) : how == 't' ? utf8proc_totitle(c) : utf8proc_tolower(c);
    lk_j_add(j, b, out, (size_t)lk_utf8_encode((uint32_t)c, out), origin);
}

const lk_jtext *lk_j_map_case(lk_j *j, const lk_jtext *t, char how)
{
    lk_jbuilder b = {0};
    bool in_word = false;
    lk_j_step(j, t->n / 8);
    if (t->n == 0) return t;
    for (size_t at = 0; at < t->n;) {
        int length;
        uint32_t cp = lk_j_char_at(t, at, &length);
        char one = how;
        if (how == 'c') one = at ? 'l' : 't';
        if (how == 't') one = in_word ? 'l' : 't';
        if (how == 's') one = is_upper(cp) ? 'l' : 'u';
        in_word = is_cased(cp);
        add_char(j, &b, cp, one, lk_j_origin_at(t, at));
        at += (size_t)length;
    }
    return lk_j_built(j, &b);
}

bool lk_j_is_case(const lk_jtext *t, bool upper)
{
    bool any = false;
    for (size_t at = 0; at < t->n;) {
        int length;
        uint32_t cp = lk_j_char_at(t, at, &length);
        if (upper ? is_lower(cp) : is_upper(cp)) return false;
        any |= upper ? is_upper(cp) : is_lower(cp);
        at += (size_t)length;
    }
    return any;
}

static lk_jvalue map_case(lk_j *j, const lk_jtext *self, const lk_jargs *args, char how)
{
    lk_j_take(j, "this method", args, 0, 0, NULL, NULL);
    return lk_j_string(lk_j_map_case(j, self, how));
}

static lk_jvalue m_upper(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return map_case(j, self, args, 'u'); }
static lk_jvalue m_lower(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return map_case(j, self, args, 'l'); }
static lk_jvalue m_title(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return map_case(j, self, args, 't'); }
static lk_jvalue m_capitalize(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return map_case(j, self, args, 'c'); }
static lk_jvalue m_swapcase(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return map_case(j, self, args, 's'); }

/* Every character of a class, and at least one. */
static lk_jvalue all(lk_j *j, const lk_jtext *self, const lk_jargs *args, bool (*is)(uint32_t))
{
    lk_j_take(j, "this method", args, 0, 0, NULL, NULL);
    for (size_t at = 0; at < self->n;) {
        int length;
        if (!is(lk_j_char_at(self, at, &length))) return lk_j_bool(false);
        at += (size_t)length;
    }
    return lk_j_bool(self->n > 0);
}

static bool is_digit(uint32_t cp) { return utf8proc_category((utf8proc_int32_t)cp) == UTF8PROC_CATEGORY_ND; }
bool lk_j_is_alnum(uint32_t cp) { return is_letter(cp) || lk_is_numeric(cp); }
static bool is_ascii(uint32_t cp) { return cp < 128; }

static lk_jvalue m_isdigit(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return all(j, self, args, is_digit); }
static lk_jvalue m_isnumeric(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return all(j, self, args, lk_is_numeric); }
static lk_jvalue m_isalpha(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return all(j, self, args, is_letter); }
static lk_jvalue m_isalnum(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return all(j, self, args, lk_j_is_alnum); }
static lk_jvalue m_isspace(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return all(j, self, args, lk_j_is_space); }
static lk_jvalue m_isascii(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    lk_jvalue v = all(j, self, args, is_ascii);
    return lk_j_bool(v.b || self->n == 0);
}
static lk_jvalue m_isupper(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    lk_j_take(j, "isupper", args, 0, 0, NULL, NULL);
    return lk_j_bool(lk_j_is_case(self, true));
}
static lk_jvalue m_islower(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    lk_j_take(j, "islower", args, 0, 0, NULL, NULL);
    return lk_j_bool(lk_j_is_case(self, false));
}

/* ------------------------------------------------------------------------------------------------ widths */

static lk_jvalue justify(lk_j *j, const lk_jtext *self, const lk_jargs *args, char side)
{
    static const char *const names[] = {"width", "fillchar"};
    lk_jvalue a[2];
    lk_jbuilder b = {0};
    lk_j_take(j, "this method", args, 1, 2, names, a);
    int64_t width = lk_j_need_int(j, a[0], "a width"), n = lk_j_chars(j, self), missing = width > n ? width - n : 0;
    const lk_jtext *fill = a[1].kind ? need_text(j, a[1], "the fill character") : lk_j_literal(j, " ");
    if (lk_j_chars(j, fill) != 1) lk_j_fail(j, "The fill character must be exactly one character long");
    /* Python puts the odd one left when both are odd */
    int64_t left = side == 'l' ? 0 : side == 'r' ? missing : missing / 2 + (missing & width & 1);
    for (int64_t i = 0; i < left; i++) lk_j_step(j, 1), lk_j_add_text(j, &b, fill);
    lk_j_add_text(j, &b, self);
    for (int64_t i = left; i < missing; i++) lk_j_step(j, 1), lk_j_add_text(j, &b, fill);
    return lk_j_string(lk_j_built(j, &b));
}

static lk_jvalue m_center(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return justify(j, self, args, 'c'); }
static lk_jvalue m_ljust(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return justify(j, self, args, 'l'); }
static lk_jvalue m_rjust(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return justify(j, self, args, 'r'); }

static lk_jvalue m_zfill(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    lk_jvalue a[1];
    lk_jbuilder b = {0};
    lk_j_take(j, "zfill", args, 1, 1, (const char *const[]){"width"}, a);
    int64_t missing = lk_j_need_int(j, a[0], "a width") - lk_j_chars(j, self);
    size_t sign = self->n && (self->p[0] == '+' || self->p[0] == '-');
    lk_j_add_part(j, &b, self, 0, sign);
    for (int64_t i = 0; i < missing; i++) lk_j_step(j, 1), lk_j_add(j, &b, "0", 1, LK_ORIGIN_TEMPLATE);
    lk_j_add_part(j, &b, self, sign, self->n);
    return lk_j_string(lk_j_built(j, &b));
}

static lk_jvalue m_format(lk_j *j, const lk_jtext *self, const lk_jargs *args) { return lk_j_format(j, self, args); }

static lk_jvalue m_unknown(lk_j *j, const lk_jtext *self, const lk_jargs *args)
{
    (void)self;
    (void)args;
    lk_j_raise(j, LK_ERR_UNSUPPORTED, "this method of strings is not supported");
}

lk_jstring_method *lk_j_string_method(const char *name, size_t n)
{
    static const struct {
        const char *name;
        lk_jstring_method *method;
    } methods[] = {
        {"capitalize", m_capitalize},
        {"casefold", m_lower},
        {"center", m_center},
        {"count", m_count},
        {"endswith", m_endswith},
        {"find", m_find},
        {"format", m_format},
        {"index", m_index},
        {"isalnum", m_isalnum},
        {"isalpha", m_isalpha},
        {"isascii", m_isascii},
        {"isdecimal", m_isdigit},
        {"isdigit", m_isdigit},
        {"islower", m_islower},
        {"isnumeric", m_isnumeric},
        {"isspace", m_isspace},
        {"isupper", m_isupper},
        {"join", m_join},
        {"ljust", m_ljust},
        {"lower", m_lower},
        {"lstrip", m_lstrip},
        {"partition", m_partition},
        {"removeprefix", m_removeprefix},
        {"removesuffix", m_removesuffix},
        {"replace", m_replace},
        {"rfind", m_rfind},
        {"rindex", m_rindex},
        {"rjust", m_rjust},
        {"rpartition", m_rpartition},
        {"rsplit", m_rsplit},
        {"rstrip", m_rstrip},
        {"split", m_split},
        {"splitlines", m_splitlines},
        {"startswith", m_startswith},
        {"strip", m_strip},
        {"swapcase", m_swapcase},
        {"title", m_title},
        {"upper", m_upper},
        {"zfill", m_zfill},
        {"encode", m_unknown},
        {"expandtabs", m_unknown},
        {"format_map", m_unknown},
        {"isidentifier", m_unknown},
        {"isprintable", m_unknown},
        {"istitle", m_unknown},
        {"maketrans", m_unknown},
        {"translate", m_unknown},
    };
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (strlen(methods[i].name) == n && !memcmp(methods[i].name, name, n)) return methods[i].method;
    return NULL;
}
