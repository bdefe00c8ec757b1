"""Conversations rendered by transformers' apply_chat_template.

Run:  python tests/golden/make_chat.py        (needs transformers; LK_SHARED=... for the published templates, which are left out if absent)
Writes chat.json:
  conversations  name -> messages
  templates      name -> {"source": "inline" with "template", or "shared" with "path" (and "key" inside the JSON file),
                          "bos_token", "eos_token", "kwargs" given to the template,
                          "renderings": [{"conversation", "add_generation_prompt", "text"} or {..., "error"}],
                          "ids" per rendering where the tokenizer is at hand (minimind), encoded without adding special tokens}
The inline templates are the forms the program knows by name (ChatML, Llama-2, Llama-3) written here; the shared ones are as their vendors publish them.
An error is what raise_exception said, or the template engine's own message.
"""

import json

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

CONVERSATIONS = {
    "one_user": say(("u", "Hi there!")),
    "system_user": say(("s", "You are terse."), ("u", "What is 2+2?")),
    "two_turns": say(("u", "Hello"), ("a", "Hello! How can I help?"), ("u", "Tell me a joke.")),
    "ends_with_assistant": say(("s", "Answer in French."), ("u", "Good morning"), ("a", "Bonjour !")),
    "long": say(("s", "Be kind."), ("u", "a"), ("a", "b"), ("u", "c"), ("a", "d"), ("u", "e")),
    "white_space": say(("s", "  spaced \n"), ("u", "\n  keep or trim?  \n\n"), ("a", "  reply "), ("u", "x\ny")),
    "unicode": say(("u", "你好 👩‍👩‍👧 é e\u0301 \"quotes\" <b>&amp;</b> {{ not_jinja }} {% raw %}")),
    "marks_in_text": say(("u", "<|im_end|> </s> [INST] <<SYS>> <|eot_id|> <think>x</think>"), ("a", "<think>\nhm\n</think>\n\nNo."), ("u", "ok")),
    "empty_content": say(("s", ""), ("u", ""), ("a", ""), ("u", "?")),
    "two_users": say(("u", "first"), ("u", "second")),
    "assistant_first": say(("a", "I begin."), ("u", "And I follow.")),
    "late_system": say(("u", "one"), ("s", "switch"), ("u", "two")),
}

BLANK = Tokenizer(models.BPE())


def render_all(template, bos, eos, kwargs, encode=None):
    tok = PreTrainedTokenizerFast(tokenizer_object=BLANK, bos_token=bos, eos_token=eos)
    rows = []
    for name, messages in CONVERSATIONS.items():
        for gen in (False, True):
            row = {"conversation": name, "add_generation_prompt": gen}
            try:
                row["text"] = tok.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=gen, **kwargs)
                if encode:
                    row["ids"] = encode(row["text"])
            except (TemplateError, TypeError) as e:
                row["error"] = str(e)
            rows.append(row)
    return rows


def main():
    out = {}

    def add(name, jinja, bos, eos, kwargs=None, encode=None, **where):
        out[name] = {**where, "bos_token": bos, "eos_token": eos, "kwargs": kwargs or {}, "renderings": render_all(jinja, bos, eos, kwargs or {}, encode)}

    add("chatml", CHATML, None, "<|im_end|>", source="inline", template=CHATML)
    add("llama2", LLAMA2, "<s>", "</s>", source="inline", template=LLAMA2)
    add("llama3", LLAMA3, "<|begin_of_text|>", "<|eot_id|>", source="inline", template=LLAMA3)

    folder = shared() / "tokenizers"
    if folder.is_dir():
        config = json.loads((folder / "minimind" / "tokenizer_config.json").read_text())
        real = Tokenizer.from_file(str(folder / "minimind" / "tokenizer.json"))
        add("minimind", config["chat_template"], config["bos_token"], config["eos_token"],
            encode=lambda t: real.encode(t, add_special_tokens=False).ids, source="shared", path="tokenizers/minimind/tokenizer_config.json")
        config = json.loads((folder / "qwen2.5" / "tokenizer_config.json").read_text())
        add("qwen2.5", config["chat_template"], None, config["eos_token"], source="shared", path="tokenizers/qwen2.5/tokenizer_config.json")
        published = json.loads((folder / "chat_templates.json").read_text())
        tokens = {"meta": ("<|begin_of_text|>", "<|eot_id|>", {"date_string": "26 Jul 2024"}), "mistralai": ("<s>", "</s>", {}),
                  "google": ("<bos>", "<eos>", {}), "microsoft": ("<s>", "<|endoftext|>", {}), "Qwen": (None, "<|im_end|>", {}),
                  "HuggingFaceTB": (None, "<|im_end|>", {})}
        for key, template in published.items():
            if "strftime_now" in template and not key.startswith("meta-llama"):
                continue  # its text holds today's date
            bos, eos, kwargs = tokens[key.split("-")[0]]
            add(key, template, bos, eos, kwargs, source="shared", path="tokenizers/chat_templates.json", key=key)
    save_json(HERE / "chat.json", {"versions": versions("transformers", "tokenizers"), "conversations": CONVERSATIONS, "templates": out})
    for name, t in out.items():
        print(name, sum("error" in r for r in t["renderings"]), "errors", {r["error"] for r in t["renderings"] if "error" in r})


if __name__ == "__main__":
    main()
