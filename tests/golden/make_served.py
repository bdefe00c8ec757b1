"""A tiny model that can be served (tokenizer, chat template, end of turn) with two adapters, and the greedy continuations PEFT gives.

Run:  python tests/golden/make_served.py        (after make_tokenizers.py; needs transformers, peft, bitsandbytes)
Writes models/chat-tiny/ (Llama, tied head, bf16, this folder's "qwen" tokenizer, ChatML template), adapters/chat_a (rank 4, attention only) and
adapters/chat_b (rank 8, all linears), and served.json: for each of a few conversations the rendered text, its ids, and per adapter (and "" for none) 24
greedy ids over the NF4 base in fp32, their text, the log-probability of each, and the smallest gap between best and second logit: where that is large
against rounding, any right server gives the same ids. Generation does not stop at an end token here; `eos_at` says where it would (null: nowhere).
The weights are random: the texts are noise, but each adapter's own noise.
"""

import json
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from golden import ADAPTERS, HERE, LINEARS, MODELS, load_nf4_as_fp32, save_adapter, save_json, versions
from make_chat import CHATML, say
from make_lora import randomise as randomise_adapter
from make_models import randomise

BASE, NEW = "chat-tiny", 24
CHATS = {"hello": say(("u", "Hello world")), "terse": say(("s", "Be terse."), ("u", "Where is my order?")),
         "turns": say(("u", "Hi there!"), ("a", "Hello."), ("u", "Tell me of the river, please."))}


def make_base():
    folder = MODELS / BASE
    shutil.rmtree(folder, ignore_errors=True)
    raw = Tokenizer.from_file(str(HERE / "tokenizers" / "qwen.json"))
    end = raw.token_to_id("<|im_end|>")
    config = LlamaConfig(vocab_size=raw.get_vocab_size(), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=None,
                         eos_token_id=end, pad_token_id=None, rope_parameters=dict(rope_type="default", rope_theta=10000.0))
    model = LlamaForCausalLM(config)
    randomise(model, 31)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    shutil.copyfile(HERE / "tokenizers" / "qwen.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 512, "add_bos_token": False, "chat_template": CHATML}, indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, raw.token_to_id("<|endoftext|>")]}) + "\n")
    return raw, end


def adapters():
    """Two adapters whose deltas are large enough that their greedy texts part at once."""
    for i, (name, options) in enumerate((("chat_a", dict(r=4, lora_alpha=8, target_modules=list(LINEARS[:4]))),
                                         ("chat_b", dict(r=8, lora_alpha=16, target_modules=list(LINEARS))))):
        model = get_peft_model(load_nf4_as_fp32(MODELS / BASE), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **options))
        randomise_adapter(model, 50 + i)
        save_adapter(model, name, f"models/{BASE}")


def greedy(model, ids):
    seq, gaps, logprobs = torch.tensor([ids]), [], []
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(input_ids=seq, use_cache=False).logits[0, -1]
            top = logits.topk(2)
            gaps.append(float(top.values[0] - top.values[1]))
            logprobs.append(round(float(logits.log_softmax(-1)[top.indices[0]]), 6))
            seq = torch.cat([seq, top.indices[:1].view(1, 1)], 1)
    return seq[0, len(ids):].tolist(), logprobs, min(gaps)


def main():
    raw, end = make_base()
    adapters()
    fast = PreTrainedTokenizerFast.from_pretrained(MODELS / BASE)
    out = {}
    for name in ("", "chat_a", "chat_b"):
        model = load_nf4_as_fp32(MODELS / BASE)
        model = PeftModel.from_pretrained(model, ADAPTERS / name).eval() if name else model
        for chat, messages in CHATS.items():
            text = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = raw.encode(text, add_special_tokens=False).ids
            new, logprobs, gap = greedy(model, ids)
            print(f"{name or 'base':8} {chat:6} gap {gap:.4f} {raw.decode(new)!r}")
            row = out.setdefault(chat, {"messages": messages, "text": text, "ids": ids, "greedy": {}})
            row["greedy"][name] = {"ids": new, "text": raw.decode(new, skip_special_tokens=True), "logprobs": logprobs, "gap": round(gap, 6),
                                   "eos_at": new.index(end) if end in new else None}
    save_json(HERE / "served.json", {"versions": versions("transformers", "peft", "bitsandbytes", "tokenizers"), "base": f"models/{BASE}", "chats": out})


if __name__ == "__main__":
    main()
