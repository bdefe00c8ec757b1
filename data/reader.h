/* Datasets as people bring them: JSON lines (or a JSON array) of several shapes, plain or inside .tar.gz/.tar.zst/.tar/.zip/.gz/.zst.
 *
 *     lk_reader *r;
 *     LK_TRY(lk_reader_open(&r, &(lk_source){.path = "acme.jsonl", .format = LK_DATA_MESSAGES}, err));
 *     lk_example ex;
 *     while (!(status = lk_reader_next(r, &ex, err)) && ex.kind != LK_EXAMPLE_END) ...
 *     lk_reader_close(r);
 *
 * Streams: a file larger than memory is fine. Every error names file (and archive member) and line. An archive yields its .jsonl and
 * .json members in the archive's order; .txt members for LK_DATA_TEXT too.
 *
 * Tolerated: a byte order mark, CRLF, empty lines, fields that the format does not use. Refused (LK_ERR_FORMAT): lines or array
 * elements over LK_READER_MAX_LINE bytes, other types of fields, roles that are none, text that is not UTF-8, a dataset without a single
 * example. */
#ifndef LK_DATA_READER_H
#define LK_DATA_READER_H

#include <stdint.h>

#include "base/arena.h"
#include "base/status.h"
#include "data/chat/chat.h"

/* Longest line, array element or .txt file. */
#define LK_READER_MAX_LINE ((size_t)64 << 20)

typedef enum lk_data_format {
    /* {"messages":[{"role","content"[,"weight"][,"tool_calls"]...}][,"tools"][,"documents"][,"chat_template_kwargs"]}, as OpenAI and TRL
     * write them; weight 0: an assistant turn that is not trained, else 1. tools may be JSON text. What else a message has reaches the
     * chat template. */
    LK_DATA_MESSAGES,
    LK_DATA_COMPLETION, /* {"prompt","completion"}, or any two fields named by the source */
    LK_DATA_TEXT,       /* {"text"}; a .txt file is one document a file (or split at blank lines never) */
    LK_DATA_ALPACA,     /* {"instruction"[,"input"][,"system"],"output"}: user = instruction, or instruction + "\n\n" + input */
    LK_DATA_SHAREGPT /* {"conversations":[{"from":"human|gpt|system","value"[,"weight"]}][,"system"][,"tools"]}; user, assistant, chatgpt,
                        observation (a tool's answer) too */
} lk_data_format;

typedef struct lk_source {
    const char *path;
    lk_data_format format;
    const char *prompt_field, *completion_field; /* LK_DATA_COMPLETION: NULL = "prompt" and "completion" */
} lk_source;

typedef enum lk_example_kind { LK_EXAMPLE_END, LK_EXAMPLE_MESSAGES, LK_EXAMPLE_COMPLETION, LK_EXAMPLE_TEXT } lk_example_kind;

/* Pointers are valid until the next call on the reader. Alpaca and ShareGPT come as MESSAGES. */
typedef struct lk_example {
    lk_example_kind kind;
    cJSON *tree;                                           /* owns what the next four point to; NULL for other kinds */
    const cJSON *messages, *tools, *documents, *variables; /* MESSAGES: as in lk_chat_input; the last three may be NULL */
    const char *prompt, *completion;                       /* COMPLETION */
    const char *text;                                      /* TEXT */
    int64_t line;                                          /* 1-based, in its file */
} lk_example;

typedef struct lk_reader lk_reader;
/* The source's strings are copied. A missing file is LK_ERR_IO. */
lk_status lk_reader_open(lk_reader **r, const lk_source *source, lk_error *err);
/* example->kind is LK_EXAMPLE_END after the last. After an error in an example (not in the file itself) the next call goes on behind it, so
 * that a dry run can report them all. */
lk_status lk_reader_next(lk_reader *r, lk_example *example, lk_error *err);
void lk_reader_close(lk_reader *r);
const char *lk_reader_place(const lk_reader *r); /* "acme.tar.gz:data/a.jsonl:12", for messages */
/* Parses one line of the given format (the fuzz target uses it); strings live in the arena, the tree is for lk_example_free (a reader frees
 * its own). line is left as it is. */
lk_status lk_example_parse(lk_example *example, lk_arena *arena, const lk_source *source, const char *line, size_t size, const char *where,
                           lk_error *err);
void lk_example_free(lk_example *example); /* leaves it empty */

#endif
