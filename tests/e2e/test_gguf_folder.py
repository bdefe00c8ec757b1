"""Folders that Lorikeet writes from a GGUF file, judged by transformers: configuration, weights, tokenizer, chat template.

Run:  python tests/e2e/test_gguf_folder.py [--lorikeet PATH]
For every family: `export --to safetensors` of its GGUF file is loaded by transformers, which gives the logits that Lorikeet gives on the file. For stories260K in every type
and with 4 bits again: transformers' 60 greedy ids from the folder are Lorikeet's on the file. A GGUF file with an adapter, merged. Tokenizers: the written tokenizer.json gives the ids
of the original to the tokenizers library, and transformers renders the same chat.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import tempfile

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import e2e
import make_families as families
from golden import load_fp32, shared
from test_gguf import BUILT_IN, ids_for, ours
from test_gguf_types import TYPES, generated

TEXTS = ["Once upon a time", "Hello, world! 123", "  two  spaces\n\nand lines", "Grüße, 你好 🙂", "a\tb", "<s>x</s> <|im_start|>user\nhi<|im_end|>", " lead",
         "trail ", "'s I'LL don't", "e\u0301 ﬁ", "\x00\x01", "😀👨‍👩‍👧"]


def theirs(folder, ids):
    with torch.no_grad():
        return load_fp32(folder)(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def fresh(*folders):
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def check_families(report, lorikeet, work):
    source, path, folder = work / "source", work / "m.gguf", work / "folder"
    for name, config, _, _ in families.CASES + BUILT_IN:
        fresh(source, folder)
        source.mkdir()
        families.build(source, config)
        if subprocess.run([lorikeet, "export", source, "-o", path, "--to", "gguf", "--type", "f32"], capture_output=True).returncode:
            continue  # what llama.cpp cannot compute: test_gguf.py
        e2e.run(lorikeet, "export", path, "-o", folder, "--to", "safetensors", "--type", "f32")
        ids = ids_for(config)
        worst = float(np.abs(theirs(folder, ids) - ours(lorikeet, path, ids)).max())
        report.check(worst <= 1e-4, f"{name}: transformers on the folder within {worst:.1e} of Lorikeet on the file")


def check_stories(report, lorikeet, work, stories):
    for kind in TYPES:
        path, folder, small = work / "stories.gguf", work / "folder", work / "small"
        fresh(folder, small)
        e2e.run(lorikeet, "export", stories, "-o", path, "--to", "gguf", "--type", kind)
        e2e.run(lorikeet, "export", path, "-o", folder, "--to", "safetensors", "--type", "f32")
        model, tk = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
        ids = tk("Once upon a time", return_tensors="pt").input_ids
        with torch.no_grad():
            got = model.generate(ids, max_new_tokens=60, do_sample=False)[0, ids.shape[1] :].tolist()
        report.check(got == generated(lorikeet, path, 60), f"stories260K {kind}: 60 greedy ids of transformers from the folder", got)
        e2e.run(lorikeet, "quantize", path, "-o", small)
        tokens = ids_for({"vocab_size": 512})
        with tempfile.TemporaryDirectory() as spare:
            out = pathlib.Path(spare) / "l.safetensors"
            e2e.run(lorikeet, "logits", path, "--ids", ",".join(map(str, tokens)), "-o", out, "--quant", "nf4", "--dtype", "f32")
            from safetensors.numpy import load_file

            want = load_file(out)["logits"]
        worst = float(np.abs(ours(lorikeet, small, tokens) - want).max())
        report.check(worst <= 1e-4, f"stories260K {kind}: quantize of the file within {worst:.1e} of the file in nf4")


def check_adapter(report, lorikeet, work):
    base, adapter, path, folder = e2e.GOLDEN / "models" / "llama-tiny", e2e.GOLDEN / "adapters" / "mixed", work / "llama.gguf", work / "merged"
    e2e.run(lorikeet, "export", base, "-o", path, "--to", "gguf", "--type", "q8_0")
    e2e.run(lorikeet, "merge", path, adapter, "-o", folder, "--into", "original", "--dtype", "f32")
    ids = ids_for(json.loads((base / "config.json").read_text()))
    worst = float(np.abs(theirs(folder, ids) - ours(lorikeet, path, ids, adapter)).max())
    report.check(worst <= 1e-4, f"a Q8_0 file with an adapter, merged: transformers within {worst:.1e} of file and adapter")


def check_tokenizer(report, lorikeet, work, source):
    base, path, folder = work / "base", work / "t.gguf", work / "folder"
    fresh(base, folder)
    base.mkdir()
    original = Tokenizer.from_file(str(source / "tokenizer.json"))
    size = max(original.get_vocab().values()) + 1
    _, config, _, _ = families.case("t", "llama", "LlamaForCausalLM", vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                    num_attention_heads=1, num_key_value_heads=1)
    families.build(base, config | dict(bos_token_id=None, eos_token_id=None, pad_token_id=None))
    for name in source.glob("*token*.json"):
        shutil.copy(name, base)
    e2e.run(lorikeet, "export", base, "-o", path, "--to", "gguf")
    e2e.run(lorikeet, "export", path, "-o", folder, "--to", "safetensors")
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bad = [t for t in TEXTS if written.encode(t).ids != original.encode(t).ids or written.decode(written.encode(t).ids) != original.decode(original.encode(t).ids)]
    report.check(not bad, f"{source.name}: ids and texts of {len(TEXTS)} texts by the written tokenizer.json", bad)
    a, b = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(folder)
    report.check(all(b(t).input_ids == written.encode(t).ids for t in TEXTS), f"{source.name}: transformers takes it as it is")
    if a.chat_template:
        chat = [{"role": "user", "content": "Hi"}]
        report.check(a.apply_chat_template(chat, tokenize=False) == b.apply_chat_template(chat, tokenize=False), f"{source.name}: the same chat")


def main():
    parser = argparse.ArgumentParser()
    e2e.program_argument(parser)
    args = parser.parse_args()
    logging.set_verbosity_error()
    report = e2e.Report()
    with tempfile.TemporaryDirectory() as spare:
        work = pathlib.Path(spare)
        check_stories(report, args.lorikeet, work, shared() / "models" / "stories260K")
        check_adapter(report, args.lorikeet, work)
        for source in (shared() / "models" / "stories260K", shared() / "tokenizers" / "minimind", e2e.GOLDEN / "models" / "chat-tiny"):
            check_tokenizer(report, args.lorikeet, work, source)
        check_families(report, args.lorikeet, work)
    return report.done()


if __name__ == "__main__":
    raise SystemExit(main())
