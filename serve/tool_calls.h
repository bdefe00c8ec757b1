/* Tool calls out of a model's text: what it writes in the way its template taught it becomes calls, the rest stays text.
 *
 *     lk_tool_parser *p;
 *     LK_TRY(lk_tool_parser_create(&p, LK_TOOLS_HERMES, false, err));
 *     if (!lk_tool_parser_push(p, piece, size, last)) ...                 -- no memory
 *     while (lk_tool_parser_next(p, &event)) ...                          -- text, or a whole call
 *     lk_tool_parser_destroy(p);
 *
 * The formats and their names are vLLM's (--tool-call-parser):
 *
 *   hermes        <tool_call>{"name": "f", "arguments": {...}}</tool_call>, any number, text before and between. Hermes, Qwen 2.5 and 3
 *   llama3_json   the answer is {"name": "f", "parameters": {...}}, several with ; between; <|python_tag|> may stand before. Llama 3.1
 * to 3.3 mistral       [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...], or [TOOL_CALLS]f{...}, repeated. Mistral, Ministral, Magistral
 *
 * Events do not depend on how the text was cut into pieces. A call comes when it is complete. What begins like one and is none (no JSON, no
 * name, the text ends in the middle) comes as text, as it was written. Pure; one thread. */
#ifndef LK_SERVE_TOOL_CALLS_H
#define LK_SERVE_TOOL_CALLS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

typedef enum lk_tool_format { LK_TOOLS_NONE, LK_TOOLS_HERMES, LK_TOOLS_LLAMA3_JSON, LK_TOOLS_MISTRAL } lk_tool_format;

/* LK_ERR_ARGUMENT for a name that is none, saying which there are. */
lk_status lk_tool_format_find(lk_tool_format *format, const char *name, lk_error *err);

typedef struct lk_tool_parser lk_tool_parser;

typedef struct lk_tool_event {
    bool call;
    const char *text; /* of a call: its arguments, the JSON as the model wrote it. Valid until the next push or next */
    size_t size;
    const char *name; /* of a call */
    int index;        /* of a call: 0, 1, ... */
} lk_tool_event;

/* only_first: later calls are dropped (OpenAI's parallel_tool_calls false). */
lk_status lk_tool_parser_create(lk_tool_parser **parser, lk_tool_format format, bool only_first, lk_error *err);
void lk_tool_parser_destroy(lk_tool_parser *parser); /* NULL is fine */
bool lk_tool_parser_push(lk_tool_parser *parser, const char *text, size_t size, bool last);
bool lk_tool_parser_next(lk_tool_parser *parser, lk_tool_event *event);
int lk_tool_parser_calls(const lk_tool_parser *parser); /* that came so far */

#endif
