#include "data/chat/modelfile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arena.h"
#include "data/chat/chat.h"
#include "data/tokenizer/vocabulary.h"

/* What a template puts round each message, and in front of a conversation that has no system message. */
typedef struct frame {
    const char *system[2], *user[2], *assistant[2], *lead;
} frame;

typedef struct turn {
    const char *role, *content;
} turn;

/* Contents that no template has in it. */
static const char S[] = "\x01S\x01", U[] = "\x01U\x01", A[] = "\x01A\x01", V[] = "\x01V\x01";

typedef struct probe {
    lk_arena arena;
    const lk_chat *chat;
    const char *bos; /* "" when a text does not begin with one */
    const char *eos; /* "" when there is none */
} probe;

/* The rendering without the BOS, which Ollama puts there itself; NULL when the template refuses the conversation. */
static char *render(probe *p, const turn *turns, int n, bool generate)
{
    char *text = NULL;
    cJSON *messages = cJSON_CreateArray();
    lk_status status = messages ? LK_OK : LK_ERR_MEMORY;
    for (int i = 0; i < n && !status; i++) status = lk_chat_add(messages, turns[i].role, turns[i].content, NULL);
    if (!status) status = lk_chat_render(p->chat, &(lk_chat_input){.messages = messages, .generation_prompt = generate}, &text, NULL);
    cJSON_Delete(messages);
    if (status) return NULL;
    size_t skip = strlen(p->bos);
    char *copy = lk_arena_strdup(&p->arena, strncmp(text, p->bos, skip) ? text : text + skip);
    free(text);
    return copy;
}

/* The part between two marks, NULL when one is missing. from NULL: from the beginning; to NULL: to the end. */
static char *between(probe *p, const char *text, const char *from, const char *to)
{
    const char *begin = from ? strstr(text, from) : text;
    if (!begin) return NULL;
    if (from) begin += strlen(from);
    const char *end = to ? strstr(begin, to) : begin + strlen(begin);
    return end ? lk_arena_strndup(&p->arena, begin, (size_t)(end - begin)) : NULL;
}

/* text without the ending; NULL when it does not end so. */
static char *without_end(probe *p, const char *text, const char *ending)
{
    size_t n = strlen(text), m = strlen(ending);
    if (n < m || strcmp(text + n - m, ending)) return NULL;
    return lk_arena_strndup(&p->arena, text, n - m);
}

/* What stands after the mark in a conversation that ends there, given that `whole` is what stands there in one that goes on: some templates
 * put an end of text behind the last message. NULL when it is another text altogether. */
static char *closing(probe *p, const turn *turns, int n, const char *mark, const char *whole)
{
    const char *text = render(p, turns, n, false);
    char *rest = text ? between(p, text, mark, NULL) : NULL;
    if (rest && strncmp(rest, whole, strlen(rest)) != 0) rest = *p->eos ? without_end(p, rest, p->eos) : NULL;
    return rest && !strncmp(rest, whole, strlen(rest)) ? rest : NULL;
}

static bool take_apart(probe *p, frame *f)
{
    const turn plain[] = {{"user", U}, {"assistant", A}, {"user", V}};
    const turn led[] = {{"system", S}, {"user", U}};
    const char *one = render(p, plain, 1, true), *three = render(p, plain, 3, true), *with = render(p, led, 2, true), *rest;
    if (!one || !three || !with) return false;
    if (!(rest = between(p, one, U, NULL)) || !(f->user[1] = closing(p, plain, 1, U, rest))) return false;
    f->assistant[0] = rest + strlen(f->user[1]);
    if (!(rest = between(p, three, A, V)) || !(f->assistant[1] = closing(p, plain, 2, A, rest))) return false;
    f->user[0] = rest + strlen(f->assistant[1]);
    if (!(rest = between(p, one, NULL, U)) || !(f->lead = without_end(p, rest, f->user[0]))) return false;
    if (!(f->system[0] = between(p, with, NULL, S)) || !(rest = between(p, with, S, U))) return false;
    return (f->system[1] = without_end(p, rest, f->user[0])) != NULL;
}

/* What the template written from the frame renders. */
static bool same(probe *p, const frame *f, const turn *m, int n)
{
    char built[8192] = "";
    if (m[0].role[0] != 's') snprintf(built, sizeof built, "%s", f->lead);
    for (int i = 0; i < n; i++) {
        const char *const *round = m[i].role[0] == 's' ? f->system : m[i].role[0] == 'u' ? f->user : f->assistant;
        size_t used = strlen(built);
        snprintf(built + used, sizeof built - used, "%s%s%s", round[0], m[i].content, round[1]);
    }
    size_t used = strlen(built);
    snprintf(built + used, sizeof built - used, "%s", f->assistant[0]);
    const char *want = render(p, m, n, true);
    return want && !strcmp(want, built);
}

/* What the file or Ollama's language would read as its own, and what its reader leaves out: characters that do not print. */
static bool plain_text(const char *text)
{
    static const char *const dropped[] = {"{{", "\"\"\"", "\r", "\xc2\xa0", "\xe2\x80\x8b", "\xef\xbb\xbf"};
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++)
        if (strstr(text, dropped[i])) return false;
    for (; *text; text++)
        if ((unsigned char)*text < ' ' && *text != '\n' && *text != '\t') return false;
    return true;
}

static bool expressible(probe *p, frame *f)
{
    const turn all[] = {{"system", S}, {"user", U}, {"assistant", A}, {"user", V}, {"assistant", U}, {"user", S}};
    if (!take_apart(p, f)) return false;
    const char *const parts[] = {f->system[0], f->system[1], f->user[0], f->user[1], f->assistant[0], f->assistant[1], f->lead};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!plain_text(parts[i])) return false;
    return same(p, f, all, 2) && same(p, f, all, 4) && same(p, f, all, 6) && same(p, f, all + 1, 1) && same(p, f, all + 1, 3) &&
           same(p, f, all + 1, 5);
}

/* No {{- anywhere: it would eat the line ends of the text before it. .System is all system messages, "" without any. */
static void write_template(FILE *out, const frame *f)
{
    fprintf(out, "TEMPLATE \"\"\"");
    if (*f->lead) fprintf(out, "{{ if not .System }}%s{{ end }}", f->lead);
    fprintf(out, "{{ range .Messages }}");
    fprintf(out, "{{ if eq .Role \"system\" }}%s{{ .Content }}%s", f->system[0], f->system[1]);
    fprintf(out, "{{ else if eq .Role \"user\" }}%s{{ .Content }}%s", f->user[0], f->user[1]);
    fprintf(out, "{{ else if eq .Role \"assistant\" }}%s{{ .Content }}%s", f->assistant[0], f->assistant[1]);
    fprintf(out, "{{ end }}{{ end }}%s\"\"\"\n", f->assistant[0]);
}

static void write_stop(FILE *out, const lk_tokenizer *tk, int32_t id)
{
    const char *piece = lk_tokenizer_piece(tk, id, NULL);
    if (piece && !strpbrk(piece, "\"\n")) fprintf(out, "PARAMETER stop \"%s\"\n", piece);
}

static void write_chat(FILE *out, const lk_tokenizer *tk)
{
    probe p = {.bos = "", .eos = ""};
    frame f;
    lk_chat *chat = NULL;
    const char *template = lk_tokenizer_chat_template(tk), *bos = lk_tokenizer_piece(tk, lk_tokenizer_bos(tk), NULL),
               *eos = lk_tokenizer_piece(tk, lk_tokenizer_eos(tk), NULL);
    if (!template || !*template) return;
    if (bos && lk_tokenizer_added_bos(tk) >= 0) p.bos = bos;
    if (eos) p.eos = eos;
    bool good = !lk_chat_open(&chat, tk, NULL);
    p.chat = chat;
    if (good && expressible(&p, &f)) {
        if (lk_chat_is_dated(chat))
            fprintf(out, "# The chat template writes the day of the conversation; here it stays that of the export.\n");
        write_template(out, &f);
    } else {
        fprintf(
            out,
            "# The chat template (tokenizer.chat_template in model.gguf) cannot be said in Ollama's language. Ollama has templates of its\n"
            "# own for some; where it knows none it sends texts without any marks: then write a TEMPLATE here.\n");
    }
    lk_chat_close(chat);
    lk_arena_free(&p.arena);
}

lk_status lk_modelfile(char **text, const lk_tokenizer *tk, const int32_t *eos, int n_eos, bool adapter, lk_error *err)
{
    size_t size = 0;
    int32_t own = lk_tokenizer_eos(tk);
    *text = NULL;
    FILE *out = open_memstream(text, &size);
    if (!out) return lk_fail(err, LK_ERR_MEMORY, "no memory for a Modelfile");
    fprintf(out, "FROM ./model.gguf\n");
    if (adapter) fprintf(out, "ADAPTER ./adapter.gguf\n");
    write_chat(out, tk);
    write_stop(out, tk, own);
    for (int i = 0; i < n_eos; i++)
        if (eos[i] != own) write_stop(out, tk, eos[i]);
    if (!fclose(out)) return LK_OK;
    free(*text);
    *text = NULL;
    return lk_fail(err, LK_ERR_MEMORY, "no memory for a Modelfile");
}
