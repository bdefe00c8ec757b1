/* The formats that go by name: templates written here, run by the same interpreter as a model's own. They know system, user and assistant
 * and nothing else; tools need the model's own template.
 *
 *   chatml    <|im_start|>ROLE\nCONTENT<|im_end|>\n ...                          <|im_start|>assistant\n
 *   qwen3     the same; turns after the last question begin with <think>\nREASONING\n</think>\n\n, earlier ones lose theirs
 *   minimind  the same with the block in every assistant turn, and an empty one in the generation prompt
 *   llama2    <s>[INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nUSER [/INST] ASSISTANT </s><s>[INST] ...      (nothing)
 *   llama3    <|begin_of_text|><|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|> ...   the assistant's header
 *   llama3.1  the same with a system turn that always begins with two dates */
#include <string.h>

#include "data/chat/internal.h"

#define CHECKS(format)                                                                                                                     \
    "{%- for message in messages -%}"                                                                                                      \
    "{%- if message.role not in ['system', 'user', 'assistant'] -%}"                                                                       \
    "{{- raise_exception('messages[' ~ loop.index0 ~ ']: the role must be system, user or assistant, not \"' ~ message.role[:40] ~ '\"') " \
    "-}}"                                                                                                                                  \
    "{%- endif -%}"                                                                                                                        \
    "{%- if message.content is not string -%}{{- raise_exception('messages[' ~ loop.index0 ~ ']: has no content') -}}{%- endif -%}"        \
    "{%- endfor -%}"                                                                                                                       \
    "{%- if tools -%}"                                                                                                                     \
    "{{- raise_exception('the chat format " format " has no tools; the model\\'s own template may have') -}}"                              \
    "{%- endif -%}"

static const char chatml[] = CHECKS("chatml") "{%- for message in messages -%}"
                                              "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
                                              "{%- endfor -%}"
                                              "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

/* An assistant's content apart: `thought` is what stands before the first </think>, less a <think> in front of it. */
#define SPLIT_THOUGHT                                                                                    \
    "{%- set content, thought = message.content, '' -%}"                                                 \
    "{%- if '</think>' in content -%}"                                                                   \
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].strip('\\n') -%}" \
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}"                                  \
    "{%- endif -%}"

static const char qwen3[] =
    CHECKS("qwen3") "{%- set ns = namespace(question=messages|length - 1, seen=false) -%}"
                    "{%- for message in messages|reverse -%}"
                    "{%- if message.role == 'user' and not ns.seen"
                    " and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) -%}"
                    "{%- set ns.question = loop.revindex0 -%}{%- set ns.seen = true -%}"
                    "{%- endif -%}"
                    "{%- endfor -%}"
                    "{%- for message in messages -%}"
                    "{{- '<|im_start|>' + message.role + '\\n' -}}"
                    "{%- if message.role == 'assistant' -%}" SPLIT_THOUGHT "{%- if loop.index0 > ns.question and (loop.last or thought) -%}"
                    "{{- '<think>\\n' + thought + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}"
                    "{%- else -%}{{- content -}}{%- endif -%}"
                    "{%- else -%}{{- message.content -}}{%- endif -%}"
                    "{{- '<|im_end|>\\n' -}}"
                    "{%- endfor -%}"
                    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
                    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
                    "{%- endif -%}";

static const char minimind[] =
    CHECKS("minimind") "{%- for message in messages -%}"
                       "{{- '<|im_start|>' + message.role + '\\n' -}}"
                       "{%- if message.role == 'assistant' -%}" SPLIT_THOUGHT
                       "{{- '<think>\\n' + thought + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}"
                       "{%- else -%}{{- message.content -}}{%- endif -%}"
                       "{{- '<|im_end|>\\n' -}}"
                       "{%- endfor -%}"
                       "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}";

/* The published template strips the concatenation of system and user text, so the user's own leading white space stays. */
static const char llama2[] = CHECKS(
    "llama2") "{%- set system = messages[0].content if messages[0].role == 'system' -%}"
              "{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}"
              "{%- if not turns -%}"
              "{{- raise_exception('messages: the Llama-2 format puts the system text into the first user message, and there is none') -}}"
              "{%- endif -%}"
              "{%- for message in turns -%}"
              "{%- if message.role != ('user' if loop.index0 is even else 'assistant') -%}"
              "{{- raise_exception('messages[' ~ (loop.index0 + (messages|length) - (turns|length)) ~ ']: the role is ' ~ message.role"
              " ~ ' where the Llama-2 format wants ' ~ ('user' if loop.index0 is even else 'assistant')"
              " ~ ' (an optional system message, then user and assistant in turn)') -}}"
              "{%- endif -%}"
              "{%- set content = message.content -%}"
              "{%- if loop.first and system is defined -%}"
              "{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content -%}"
              "{%- endif -%}"
              "{%- if message.role == 'user' -%}{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}"
              "{%- else -%}{{- ' ' + content.strip() + ' ' + eos_token -}}{%- endif -%}"
              "{%- endfor -%}";

#define LLAMA3_TURN   "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content|trim + '<|eot_id|>' -}}"
#define LLAMA3_PROMPT "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"

static const char llama3[] = CHECKS("llama3") "{{- bos_token -}}{%- for message in messages -%}" LLAMA3_TURN "{%- endfor -%}" LLAMA3_PROMPT;

static const char llama31[] = CHECKS(
    "llama3.1") "{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' -}}"
                "{{- 'Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' -}}"
                "{%- if messages[0].role == 'system' -%}{{- messages[0].content|trim -}}{%- set messages = messages[1:] -%}{%- endif -%}"
                "{{- '<|eot_id|>' -}}"
                "{%- for message in messages -%}" LLAMA3_TURN "{%- endfor -%}" LLAMA3_PROMPT;

static const lk_chat_format formats[] = {
    {"chatml", chatml, {"<|im_start|>", "<|im_end|>"}, false},
    {"qwen3", qwen3, {"<|im_start|>", "<|im_end|>"}, false},
    {"minimind", minimind, {"<|im_start|>", "<|im_end|>"}, false},
    {"llama2", llama2, {0}, true},
    {"llama3", llama3, {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, true},
    {"llama3.1", llama31, {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, true},
    {"plain", NULL, {0}, false},
};

const lk_chat_format *lk_chat_format_named(const char *name)
{
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(formats[i].name, name)) return &formats[i];
    return NULL;
}
