"""Conversations rendered by transformers' apply_chat_template.

Run:  python tests/golden/make_chat.py        (needs transformers; LK_SHARED=... for the published templates, which are left out if absent)
Writes chat.json:
  now            the fixed time that strftime_now sees (UTC)
  tools, documents  what conversations that name them are rendered with
  conversations  name -> {"messages", "tools": bool, "documents": bool, "variables": {...}}
  templates      name -> {"source": "inline" with "template", or "shared" with "path" (and "key" inside the JSON file),
                          "bos_token", "eos_token",
                          "renderings": [{"conversation", "add_generation_prompt", "text"} or {..., "error"}],
                          "ids" per rendering where the tokenizer is at hand (minimind), encoded without adding special tokens}
  masks          [{"template" with {% generation %}, "conversation", "text", "ids", "mask"}] of return_assistant_tokens_mask with
                 tokenizers/qwen.json
The inline templates are forms of ChatML, Llama-2 and Llama-3 written here; the shared ones are as their vendors publish them.
An error is what raise_exception said, or the template engine's own message.
"""

import datetime
import os
import time

os.environ["TZ"] = "UTC"
time.tzset()

import json

import transformers.utils.chat_template_utils as utils
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast
from tokenizers import Tokenizer, models

from golden import HERE, save_json, shared, versions

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")

LLAMA2 = """{%- set ns = namespace(system='') -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set ns.system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must alternate user/assistant after an optional system message') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + (ns.system if loop.first else '') + message['content'] | trim + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message['content'] | trim + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""

LLAMA3 = """{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}"""

say = lambda *turns: [{"role": {"s": "system", "u": "user", "a": "assistant"}[r], "content": c} for r, c in turns]

NOW = 1753500000

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather in a \"city\" <b>é</b>", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "number", "minimum": 1.0, "default": None}}, "required": ["city"]}, "return": {"type": "string"}}}]
DOCUMENTS = [{"doc_id": 1, "title": "Ships", "text": "Ships float."}, {"doc_id": "b", "title": "Rocks", "text": "Rocks do not."}]

CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "f": 1.5}}}]}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": "{\"sky\": \"blue\"}"}

# name -> messages, and what else is given
CONVERSATIONS = {
    "one_user": say(("u", "Hi there!")),
    "system_user": say(("s", "You are terse."), ("u", "What is 2+2?")),
    "two_turns": say(("u", "Hello"), ("a", "Hello! How can I help?"), ("u", "Tell me a joke.")),
    "ends_with_assistant": say(("s", "Answer in French."), ("u", "Good morning"), ("a", "Bonjour !")),
    "long": say(("s", "Be kind."), ("u", "a"), ("a", "b"), ("u", "c"), ("a", "d"), ("u", "e"), ("a", "f")),
    "white_space": say(("s", "  spaced \n"), ("u", "\n  keep or trim?  \n\n"), ("a", "  reply "), ("u", "x\ny")),
    "unicode": say(("u", "你好 👩‍👩‍👧 é e\u0301 \"quotes\" <b>&amp;</b> {{ not_jinja }} {% raw %}")),
    "marks_in_text": say(("u", "<|im_end|> </s> [INST] <<SYS>> <|eot_id|> <think>x</think>"), ("a", "<think>\nhm\n</think>\n\nNo."), ("u", "ok")),
    "empty_content": say(("s", ""), ("u", ""), ("a", ""), ("u", "?")),
    "two_users": say(("u", "first"), ("u", "second")),
    "assistant_first": say(("a", "I begin."), ("u", "And I follow.")),
    "late_system": say(("u", "one"), ("s", "switch"), ("u", "two")),
    "tools_question": (say(("s", "Help."), ("u", "Weather?")), "tools"),
    "tools_round": (say(("u", "Weather?")) + [CALL, RESULT] + say(("a", "Blue."), ("u", "Thanks"), ("a", "Welcome.")), "tools"),
    "tools_twice": (say(("u", "Both?")) + [CALL, RESULT, RESULT] + say(("a", "Same.")), "tools"),
    "tools_text": say(("s", "S"), ("u", "q")) + [{**CALL, "content": "Let me see."}, RESULT] + say(("a", "Done.")),
    "documents": (say(("u", "What floats?"), ("a", "Ships.")), "documents"),
    "reasoned": say(("u", "q")) + [{"role": "assistant", "content": "a", "reasoning_content": "because"}] + say(("u", "r")) + [{"role": "assistant", "content": "b", "thinking": "so"}],
    "no_thinking": (say(("u", "q"), ("a", "b"), ("u", "c")), {"enable_thinking": False}),
    "one_date": (say(("s", "x"), ("u", "q"), ("a", "b")), {"date_string": "26 Jul 2024"}),
}

GENERATION = ("{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}{% if message.role == 'assistant' %}"
              "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}{% else %}{{ message.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
GENERATION_SPACE = ("{% for message in messages -%} [{{ message.role }}] {%- if message.role == 'assistant' -%} {% generation %} {{ message.content | trim }} {% endgeneration %}"
                    "{%- else -%} {{ message.content }} {%- endif -%} {% endfor %}")

BLANK = Tokenizer(models.BPE())


def parts(entry):
    messages, more = entry if isinstance(entry, tuple) else (entry, None)
    return messages, TOOLS if more == "tools" else None, DOCUMENTS if more == "documents" else None, more if isinstance(more, dict) else {}


def render_all(template, bos, eos, encode=None):
    tok = PreTrainedTokenizerFast(tokenizer_object=BLANK, bos_token=bos, eos_token=eos)
    rows = []
    for name, entry in CONVERSATIONS.items():
        messages, tools, documents, variables = parts(entry)
        for gen in (False, True) if messages[-1]["role"] == "assistant" else (True,):
            row = {"conversation": name, "add_generation_prompt": gen}
            try:
                row["text"] = tok.apply_chat_template(messages, tools=tools, documents=documents, chat_template=template, tokenize=False, add_generation_prompt=gen, **variables)
                if encode:
                    row["ids"] = encode(row["text"])
            except (TemplateError, TypeError) as e:
                row["error"] = str(e)
            rows.append(row)
    return rows


def masks():
    tok = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizers" / "qwen.json"), bos_token=None, eos_token="<|im_end|>")
    rows = []
    for template in (GENERATION, GENERATION_SPACE):
        for name in ("two_turns", "ends_with_assistant", "long", "white_space", "marks_in_text", "empty_content"):
            messages = CONVERSATIONS[name] if name != "marks_in_text" else say(("u", "a"), ("a", "<think>\nhm</think> é 好"))
            out = tok.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
            ids = out["input_ids"]
            rows.append({"template": template, "messages": messages, "ids": list(ids), "mask": list(out["assistant_masks"])})
    return rows


def main():
    out = {}

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(NOW)

    utils.datetime = Fixed

    def add(name, jinja, bos, eos, encode=None, **where):
        out[name] = {**where, "bos_token": bos, "eos_token": eos, "renderings": render_all(jinja, bos, eos, encode)}

    add("chatml", CHATML, None, "<|im_end|>", source="inline", template=CHATML)
    add("llama2", LLAMA2, "<s>", "</s>", source="inline", template=LLAMA2)
    add("llama3", LLAMA3, "<|begin_of_text|>", "<|eot_id|>", source="inline", template=LLAMA3)

    folder = shared() / "tokenizers"
    if folder.is_dir():
        config = json.loads((folder / "minimind" / "tokenizer_config.json").read_text())
        real = Tokenizer.from_file(str(folder / "minimind" / "tokenizer.json"))
        add("minimind", config["chat_template"], config["bos_token"], config["eos_token"],
            encode=lambda t: real.encode(t, add_special_tokens=False).ids, source="shared", path="tokenizers/minimind/tokenizer_config.json")
        published = json.loads((folder / "chat_templates.json").read_text())
        tokens = {"meta": ("<|begin_of_text|>", "<|eot_id|>"), "mistralai": ("<s>", "</s>"), "google": ("<bos>", "<eos>"), "microsoft": ("<s>", "<|endoftext|>"),
                  "Qwen": (None, "<|im_end|>"), "HuggingFaceTB": (None, "<|im_end|>"), "ibm": ("<|end_of_text|>", "<|end_of_text|>")}
        for key, template in published.items():
            bos, eos = tokens[key.split("-")[0]]
            add(key, template, bos, eos, source="shared", path="tokenizers/chat_templates.json", key=key)
    conversations = {}
    for name, entry in CONVERSATIONS.items():
        messages, tools, documents, variables = parts(entry)
        conversations[name] = {"messages": messages, "tools": bool(tools), "documents": bool(documents), "variables": variables}
    save_json(HERE / "chat.json", {"versions": versions("transformers", "tokenizers"), "now": NOW, "tools": TOOLS, "documents": DOCUMENTS,
                                   "conversations": conversations, "masks": masks(), "templates": out})
    for name, t in out.items():
        print(name, sum("error" in r for r in t["renderings"]), "errors", {r["error"] for r in t["renderings"] if "error" in r})


if __name__ == "__main__":
    main()
