/* Tokenising examples. One rule decides everything here: the ids a model is trained on must be the ids that serving will feed it. So a
 * prompt is encoded alone, as a request's is, and the completion goes on from there; encoding both as one text would let tokens
 * grow across the seam, which generation can never produce. */
#include "data/tokenize.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A document that grows. */
typedef struct document {
    int32_t *ids;
    uint8_t *mask;
    int64_t n, room;
} document;

static void document_free(document *d)
{
    free(d->ids);
    free(d->mask);
    *d = (document){0};
}

static lk_status document_add(document *d, const int32_t *ids, int64_t n, uint8_t mask, lk_error *err)
{
    if (d->n + n > d->room || !d->ids) {
        int64_t room = 2 * d->room + n + 16;
        int32_t *grown = realloc(d->ids, (size_t)room * sizeof *grown);
        if (grown) d->ids = grown;
        uint8_t *grown_mask = grown ? realloc(d->mask, (size_t)room) : NULL;
        if (!grown_mask) return lk_fail(err, LK_ERR_MEMORY, "no memory for a document of %" PRId64 " tokens", d->n + n);
        d->mask = grown_mask;
        d->room = room;
    }
    if (n) memcpy(d->ids + d->n, ids, (size_t)n * sizeof *ids);
    if (n) memset(d->mask + d->n, mask, (size_t)n);
    d->n += n;
    return LK_OK;
}

/* ---- what the post-processor puts round a text ---- */

typedef struct surround {
    int32_t *ids; /* of a probe with everything round it */
    int64_t n, before, after;
    int32_t bos; /* what must not come twice; -1: nothing */
} surround;

/* Encodes a probe with and without: what is more in front is the prefix (BOS), behind it the suffix. */
static lk_status surround_find(surround *s, const lk_tokenizer *tk, lk_error *err)
{
    int32_t *plain;
    int64_t n;
    *s = (surround){.bos = lk_tokenizer_bos(tk)};
    LK_TRY(lk_tokenizer_encode(tk, "a", 1, 0, &plain, &n, err));
    lk_status status = lk_tokenizer_encode(tk, "a", 1, LK_TK_SPECIALS, &s->ids, &s->n, err);
    if (!status && s->n >= n) {
        while (s->before + n < s->n && memcmp(s->ids + s->before, plain, (size_t)n * sizeof *plain)) s->before++;
        s->after = s->n - s->before - n;
        if (s->bos < 0 && s->before) s->bos = s->ids[s->before - 1];
    }
    free(plain);
    return status;
}

static lk_status add_before(document *d, const surround *s, lk_error *err) { return document_add(d, s->ids, s->before, 0, err); }

/* Not twice either: a text may bring its own EOS. */
static lk_status add_after(document *d, const surround *s, lk_error *err)
{
    const int32_t *after = s->ids + s->n - s->after;
    if (d->n >= s->after && !memcmp(d->ids + d->n - s->after, after, (size_t)s->after * sizeof *after)) return LK_OK;
    return document_add(d, after, s->after, 1, err);
}

/* Adds a text's ids; where BOS ends the document already, or would come twice, the text's own are left out. */
static lk_status add_text(document *d, const surround *s, const int32_t *ids, int64_t n, uint8_t mask, lk_error *err)
{
    int64_t skip = 0;
    if (s->bos >= 0) {
        bool there = d->n > 0;
        while (skip < n && ids[skip] == s->bos && (there || (skip + 1 < n && ids[skip + 1] == s->bos))) skip++;
    }
    return document_add(d, ids + skip, n - skip, mask, err);
}

/* EOS, unless the document ends in it. */
static lk_status add_eos(document *d, const lk_tokenizer *tk, lk_error *err)
{
    const int32_t eos = lk_tokenizer_eos(tk);
    if (eos < 0) return LK_OK;
    if (d->n && d->ids[d->n - 1] == eos) {
        d->mask[d->n - 1] = 1;
        return LK_OK;
    }
    return document_add(d, &eos, 1, 1, err);
}

/* ---- continuations ---- */

/* Whether the tokens stand for exactly `first` (0: nothing) and then the text. */
static bool stands_for(const lk_tokenizer *tk, const int32_t *ids, int64_t n, char first, const char *text)
{
    for (int64_t i = 0; i < n; i++) {
        size_t size;
        const char *bytes = lk_tokenizer_bytes(tk, ids[i], &size);
        if (!bytes) return false;
        if (first && size) {
            if (bytes[0] != first) return false;
            bytes++;
            size--;
            first = 0;
        }
        if (strncmp(text, bytes, size)) return false;
        text += size;
    }
    return !first && !*text;
}

/* A text that goes on from another. SentencePiece tokenizers put a space before what they take for the start of a text; encoding behind a
 * newline, whose tokens never merge with others there, keeps it away. */
static lk_status encode_continuation(const lk_tokenizer *tk, const char *text, int32_t **ids, int64_t *n, lk_error *err)
{
    size_t size = strlen(text);
    LK_TRY(lk_tokenizer_encode(tk, text, size, 0, ids, n, err));
    if (!stands_for(tk, *ids, *n, ' ', text)) return LK_OK;
    char *behind = malloc(size + 2);
    int32_t *mark = NULL, *both = NULL;
    int64_t n_mark = 0, n_both = 0;
    lk_status status = LK_OK;
    if (!behind) {
        status = lk_fail(err, LK_ERR_MEMORY, "no memory for a completion of %zu bytes", size);
        goto out;
    }
    behind[0] = '\n';
    memcpy(behind + 1, text, size + 1);
    if ((status = lk_tokenizer_encode(tk, "\n", 1, 0, &mark, &n_mark, err))) goto out;
    if ((status = lk_tokenizer_encode(tk, behind, size + 1, 0, &both, &n_both, err))) goto out;
    if (n_both >= n_mark && !memcmp(both, mark, (size_t)n_mark * sizeof *mark) && stands_for(tk, both + n_mark, n_both - n_mark, 0, text)) {
        *n = n_both - n_mark;
        memmove(both, both + n_mark, (size_t)*n * sizeof *both);
        free(*ids);
        *ids = both;
        both = NULL;
    }
out:
    free(behind);
    free(mark);
    free(both);
    if (status) {
        free(*ids);
        *ids = NULL;
    }
    return status;
}

/* ---- the kinds of example ---- */

static lk_status tokenize_text(document *d, const lk_tokenizer *tk, const char *text, lk_error *err)
{
    surround s;
    int32_t *ids = NULL;
    int64_t n = 0;
    lk_status status = surround_find(&s, tk, err);
    if (!status) status = lk_tokenizer_encode(tk, text, strlen(text), 0, &ids, &n, err);
    if (!status) status = add_before(d, &s, err);
    if (!status) status = add_text(d, &s, ids, n, 1, err);
    if (!status) status = add_after(d, &s, err);
    if (!status) status = add_eos(d, tk, err);
    free(ids);
    free(s.ids);
    return status;
}

static lk_status tokenize_completion(document *d, const lk_tokenizer *tk, const lk_example *ex, lk_error *err)
{
    surround s;
    int32_t *prompt = NULL, *completion = NULL;
    int64_t n_prompt = 0, n_completion = 0;
    lk_status status = surround_find(&s, tk, err);
    if (!status) status = lk_tokenizer_encode(tk, ex->prompt, strlen(ex->prompt), 0, &prompt, &n_prompt, err);
    if (!status) status = encode_continuation(tk, ex->completion, &completion, &n_completion, err);
    if (!status) status = add_before(d, &s, err);
    if (!status) status = add_text(d, &s, prompt, n_prompt, 0, err);
    if (!status) status = add_text(d, &s, completion, n_completion, 1, err);
    /* A prompt that ends in EOS must not stand in for the completion's own. */
    if (!status && n_completion == 0 && lk_tokenizer_eos(tk) >= 0)
        status = document_add(d, &(int32_t){lk_tokenizer_eos(tk)}, 1, 1, err);
    else if (!status)
        status = add_eos(d, tk, err);
    free(prompt);
    free(completion);
    free(s.ids);
    return status;
}

static lk_status tokenize_messages(document *d, const lk_chat *chat, const lk_example *ex, lk_loss_on loss_on, lk_error *err)
{
    if (!chat) return lk_fail(err, LK_ERR_ARGUMENT, "messages need a chat format");
    int64_t n = cJSON_GetArraySize(ex->messages);
    lk_chat_input in = {.messages = ex->messages, .tools = ex->tools, .documents = ex->documents, .variables = ex->variables};
    if (loss_on != LK_LOSS_ASSISTANT) in.train_from = loss_on == LK_LOSS_COMPLETION ? n - 1 : n; /* all: turns need not be found */
    lk_chat_tokens tokens = {0};
    lk_status status = lk_chat_encode(chat, &in, &tokens, err);
    if (!status) status = document_add(d, tokens.ids, tokens.n, 0, err);
    if (!status && tokens.n) memcpy(d->mask, tokens.mask, (size_t)tokens.n);
    lk_chat_tokens_free(&tokens);
    return status;
}

/* The whole example, however long. */
static lk_status tokenize(document *d, const lk_tokenizer *tk, const lk_chat *chat, const lk_example *ex, lk_loss_on loss_on, lk_error *err)
{
    *d = (document){0};
    lk_status status = document_add(d, NULL, 0, 0, err); /* memory for an empty document too */
    if (status) {
        document_free(d);
        return status;
    }
    switch (ex->kind) {
    case LK_EXAMPLE_MESSAGES: status = tokenize_messages(d, chat, ex, loss_on, err); break;
    case LK_EXAMPLE_COMPLETION: status = tokenize_completion(d, tk, ex, err); break;
    case LK_EXAMPLE_TEXT: status = tokenize_text(d, tk, ex->text, err); break;
    case LK_EXAMPLE_END: status = lk_fail(err, LK_ERR_ARGUMENT, "the end of a dataset is not an example");
    }
    if (status) {
        document_free(d);
        return status;
    }
    if (d->n && (loss_on == LK_LOSS_ALL || ex->kind == LK_EXAMPLE_TEXT)) memset(d->mask, 1, (size_t)d->n);
    if (d->n) d->mask[0] = 0;
    return LK_OK;
}

/* ---- public ---- */

lk_status lk_tokenize_example(const lk_tokenizer *tk, const lk_chat *chat, const lk_example *ex, lk_loss_on loss_on, int64_t max_length,
                              int32_t **ids, uint8_t **mask, int64_t *n, bool *truncated, lk_error *err)
{
    document d;
    *ids = NULL;
    *mask = NULL;
    *n = 0;
    *truncated = false;
    if (max_length < 1) return lk_fail(err, LK_ERR_ARGUMENT, "max_length must be at least 1, not %" PRId64, max_length);
    LK_TRY(tokenize(&d, tk, chat, ex, loss_on, err));
    *truncated = d.n > max_length;
    *n = *truncated ? max_length : d.n;
    *ids = d.ids;
    *mask = d.mask;
    return LK_OK;
}

lk_status lk_tokenize_documents(const lk_tokenizer *tk, const lk_chat *chat, const lk_example *ex, lk_loss_on loss_on, int64_t max_length,
                                lk_document_sink *sink, void *context, bool *truncated, lk_error *err)
{
    document d;
    bool split = ex->kind == LK_EXAMPLE_TEXT;
    *truncated = false;
    if (max_length < 1 + split) return lk_fail(err, LK_ERR_ARGUMENT, "max_length must be at least %d, not %" PRId64, 1 + split, max_length);
    LK_TRY(tokenize(&d, tk, chat, ex, loss_on, err));
    lk_status status = LK_OK;
    if (!split) {
        *truncated = d.n > max_length;
        if (d.n) status = sink(context, d.ids, d.mask, *truncated ? max_length : d.n, err);
    }
    for (int64_t i = 0; split && !status && (i == 0 ? d.n > 0 : i + 1 < d.n); i += max_length - 1) {
        d.mask[i] = 0;
        status = sink(context, d.ids + i, d.mask + i, d.n - i < max_length ? d.n - i : max_length, err);
    }
    document_free(&d);
    return status;
}
