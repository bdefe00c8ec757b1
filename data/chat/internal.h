/* What the files of this folder share: a chat, the named formats, messages as templates want them, and where assistants' turns lie. */
#ifndef LK_DATA_CHAT_INTERNAL_H
#define LK_DATA_CHAT_INTERNAL_H

#include "base/arena.h"
#include "data/chat/chat.h"
#include "data/chat/jinja.h"

/* ---- formats.c ---- */

typedef struct lk_chat_format {
    const char *name, *template;
    const char *tokens[4]; /* what the tokenizer must have */
    bool needs_bos;        /* and an EOS, where no token of its own ends a turn */
} lk_chat_format;

const lk_chat_format *lk_chat_format_named(const char *name); /* NULL when unknown */

/* ---- chat.c ---- */

enum { LK_CHAT_MAX_MARKS = 24 };

struct lk_chat {
    const lk_tokenizer *tk;
    char name[64];
    lk_jinja *template, *tool_use, *rag; /* NULL: none; the last two only where the folder has them */
    cJSON *tokens;                       /* {"bos_token": ..., ...} */
    int32_t end_of_turn;
    int32_t marks[LK_CHAT_MAX_MARKS]; /* the format's own tokens: never recognised in contents, special or not */
    int n_marks;
    bool takes_parts;     /* the template reads contents that are lists of parts */
    bool knows_developer; /* and the role developer */
    bool dated;           /* puts today's date in */
};

/* The template for this conversation: the one for tools or documents, where there are both. */
const lk_jinja *lk_chat_choose(const lk_chat *chat, const lk_chat_input *in);
/* The conversation as the template gives it, nothing prepared. */
lk_status lk_chat_run(const lk_chat *chat, const lk_chat_input *in, lk_jinja_output *out, lk_error *err);
/* Whether token id is one that the template may have and contents may not. */
bool lk_chat_is_mark(const lk_chat *chat, int32_t id);

/* ---- messages.c ---- */

/* A copy of the messages as templates want them; cJSON_Delete. */
lk_status lk_chat_prepare(const lk_chat *chat, const cJSON *messages, cJSON **prepared, lk_error *err);

/* ---- turns.c ---- */

/* Bytes [begin, end) of a rendering are an assistant's: what the model must produce, without what ends the turn. The end of the turn is to
 * be looked for before `limit`. exact: {% generation %} said so; then nothing has to be looked for, and a token counts that only reaches
 * into it. */
typedef struct lk_turn {
    size_t begin, end, limit;
    bool exact;
} lk_turn;

/* The trained turns of a rendering of `in` (prepared), in order; free(*turns). LK_ERR_UNSUPPORTED where they cannot be found reliably. */
lk_status lk_chat_find_turns(const lk_chat *chat, const lk_chat_input *in, const lk_jinja_output *out, lk_turn **turns, int64_t *n,
                             lk_error *err);

#endif
