/* What the files of this folder share: a template's canonical form, the formats it can be recognised as, and the segments a
 * conversation is rendered into. */
#ifndef LK_DATA_CHAT_INTERNAL_H
#define LK_DATA_CHAT_INTERNAL_H

#include "base/arena.h"
#include "data/chat/chat.h"

/* ---- template.c ---- */

/* A Jinja template as the sequence of what it does: `D"text"` for text put out, `E tokens` for a value put out, `S tokens` for a
 * statement, one a line. Comments, layout, quotes and white-space control that have no effect are gone, a["b"] is a.b, and
 * `{{ 'x' + y + 'z' }}` is D E D, so two templates with the same canonical form render the same text. A default system prompt in
 * ChatML ("<|im_start|>system\n...<|im_end|>") is replaced by {} and leaves through *system (NULL when there is none).
 * Both live in the arena. LK_ERR_FORMAT when the text is no template we can read. */
lk_status lk_template_canonical(const char *template, lk_arena *arena, char **canonical, char **system, lk_error *err);

/* ---- formats.c ---- */

typedef enum lk_chat_family { LK_CHAT_PLAIN, LK_CHAT_CHATML, LK_CHAT_LLAMA2, LK_CHAT_LLAMA3 } lk_chat_family;

typedef struct lk_chat_format {
    const char *name;
    lk_chat_family family;
    enum { LK_THINK_NONE, LK_THINK_LAST, LK_THINK_ALWAYS } think; /* where an assistant turn gets a <think> block */
    bool strip_parts;   /* Llama-2: system and user text stripped each for itself, not their concatenation */
    bool dated;         /* Llama-3.1: the preamble with its fixed date */
    bool needs_default; /* has a default system prompt, which comes from the template */
} lk_chat_format;

struct lk_chat {
    const lk_tokenizer *tk;
    const lk_chat_format *format;
    char *system;          /* the default system prompt, or NULL */
    const char *bos, *eos; /* the texts of the tokenizer's tokens, or NULL */
    int32_t end_of_turn;
    int32_t marks[6]; /* the format's own tokens: never recognised in contents, special or not */
    int n_marks;
    lk_arena arena;
};

/* By name, and by the digest of a canonical form; NULL when unknown. */
const lk_chat_format *lk_chat_format_named(const char *name);
const lk_chat_format *lk_chat_format_known(const char *digest);

/* A conversation as it is rendered: bytes, and for each stretch whether it is the users' and whether it is trained on. */
typedef struct lk_segment {
    size_t end; /* where it ends in the text; it begins where the one before ends */
    bool content, trained;
} lk_segment;

typedef struct lk_rendering {
    char *text;
    size_t n, room;
    lk_segment *segments;
    int64_t n_segments, segment_room;
    bool no_memory;
} lk_rendering;

void lk_rendering_free(lk_rendering *r);
lk_status lk_chat_render_segments(const lk_chat *chat, const lk_chat_message *messages, int64_t n, bool generation_prompt, lk_rendering *r,
                                  lk_error *err);

#endif
