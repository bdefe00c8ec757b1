"""What `lorikeet export` writes, judged by those it is for: llama.cpp (through llama-cpp-python), the gguf package, transformers.

Run:  python tests/e2e/test_gguf.py [--lorikeet PATH] [--write]
--write: when all is good, the digests of the files that were judged go to tests/golden/gguf_exports.json, so that tests/model/test_export.c
can tell that later builds still write the same bytes.
"""

import argparse
import hashlib
import json
import pathlib
import tempfile

import numpy as np

import e2e
import llama
import make_families as families
from safetensors.numpy import load_file

MODELS = e2e.GOLDEN / "models"
# Configurations that llama.cpp has built in, where families.CASES has others.
BUILT_IN = [
    families.case("gemma2", "gemma2", "Gemma2ForCausalLM", base=families.GEMMA | dict(query_pre_attn_scalar=16), attn_logit_softcapping=5.0,
                  final_logit_softcapping=4.0, rope_theta=10000.0, num_hidden_layers=3),
    families.case("gemma3", "gemma3_text", "Gemma3ForCausalLM", base=families.GEMMA | dict(query_pre_attn_scalar=16), num_hidden_layers=7,
                  rope_theta=1000000.0, rope_local_base_freq=10000.0, rope_scaling=dict(rope_type="linear", factor=8.0)),
    families.case("smollm3", "smollm3", "SmolLM3ForCausalLM", num_hidden_layers=5, tie_word_embeddings=True, rope_theta=2000000.0),
]
REFUSED = {"llama_dynamic": "dynamic RoPE", "llama_yarn": "YaRN", "gemma2": "scales the attention", "gemma3": "another kind of attention",
           "gemma3_new": "scales the attention", "smollm3": "another kind of attention", "qwen3_moe_as_is": "norm_topk_prob",
           "qwen3_moe_dense": "gives every layer", "qwen3_moe_step": "norm_topk_prob", "gemma3_whole": "scales the attention"}


def ids_for(config, n=40):
    return [(i * 37 + 5) % config.get("text_config", config)["vocab_size"] for i in range(n)]


def ours(lorikeet, base, ids, adapter=None):
    with tempfile.TemporaryDirectory() as spare:
        out = pathlib.Path(spare) / "logits.safetensors"
        more = ["--adapter", adapter] if adapter else []
        e2e.run(lorikeet, "logits", base, *more, "--ids", ",".join(map(str, ids)), "-o", out, "--quant", "none", "--dtype", "f32")
        return load_file(out)["logits"]


def check_logits(report, what, got, want, tolerance=2e-5):
    worst = float(np.abs(got - want).max())
    report.check(worst <= tolerance, f"{what}: logits of llama.cpp within {worst:.1e} of {np.abs(want).max():.1f}", f"tolerance {tolerance}")


def check_greedy(report, what, lorikeet, path, base, ids, lora=None, adapter=None, n=24):
    """llama.cpp's greedy ids against the program's own on the folder that was exported (which has no tokenizer: by its logits)."""
    want = []
    for _ in range(n):
        want.append(int(np.argmax(ours(lorikeet, base, list(ids) + want, adapter)[-1])))
    got = llama.greedy_ids(path, ids, n, lora)
    report.check(got == want, f"{what}: {n} greedy ids of llama.cpp", f"{got} instead of {want}")


def check_families(report, lorikeet, work):
    import subprocess

    for name, config, runs, _ in families.CASES + BUILT_IN:
        folder, out = work / "family", work / "family.gguf"
        folder.mkdir(exist_ok=True)
        families.build(folder, config)
        done = subprocess.run([lorikeet, "export", folder, "-o", out, "--to", "gguf", "--type", "f32"], capture_output=True, text=True)
        built_in = (name, config, runs, _) in BUILT_IN
        if name in REFUSED and not built_in:
            report.check(done.returncode == 1 and REFUSED[name] in done.stderr, f"{name}: refused", done.stderr)
            continue
        if done.returncode:
            report.check(False, f"{name}: exported", done.stderr)
            continue
        # llama.cpp has no sliding windows but Gemma's: the warning says so, and within the window all is equal
        ids = ids_for(config)[: 8 if "differ" in done.stderr else 40]
        gelu = name.startswith("gemma")  # ggml looks it up in a table of 16-bit floats
        check_logits(report, f"family {name} ({len(ids)} tokens)", llama.logits(out, ids), ours(lorikeet, folder, ids), 5e-3 if gelu else 2e-5)


def check_tensors(report, path, folder, permuted):
    """The gguf package reads every tensor as it is in the folder."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    reader = gguf.GGUFReader(path)
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH_NAMES and next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == ARCH(reader)),
                                     config["num_hidden_layers"])
    have = {t.name: t for t in reader.tensors}
    good, seen = True, 0
    with safe_open(folder / "model.safetensors", "pt") as st:
        for key in st.keys():
            stem, kind = key.rsplit(".", 1)
            name = names.get_name(stem)
            want = st.get_tensor(key).float().numpy()
            heads = config["num_attention_heads"] if "q_proj" in key else config["num_key_value_heads"] if "k_proj" in key else 0
            if permuted and heads:
                want = want.reshape(heads, 2, want.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(want.shape)
            t = have[f"{name}.{kind}"]
            got = gguf.quants.dequantize(t.data, t.tensor_type).reshape(want.shape)
            good &= bool(np.array_equal(got, want))
            seen += 1
    extra = set(have) - {"rope_freqs.weight"}
    report.check(good and seen == len(extra), f"gguf package: {seen} tensors of {folder.name} as in the folder")


def ARCH(reader):
    return bytes(reader.fields["general.architecture"].parts[-1]).decode()


def check_tokens(report, path, tokenizer_json):
    from tokenizers import Tokenizer

    tk, model = Tokenizer.from_file(str(tokenizer_json)), llama.load(path)
    texts = ["Once upon a time", "Hello, world! 123", "  two  spaces\n\nand lines", "Grüße, 你好 🙂", "a\tb"]
    bad = [t for t in texts if tk.encode(t, add_special_tokens=False).ids != model.tokenize(t.encode(), add_bos=False, special=True)]
    report.check(not bad, f"llama.cpp: {path.name}: ids of {len(texts)} texts as the tokenizers library has them", bad)


def check_folder(report, lorikeet, work, stories):
    """transformers loads the exported shards and generates the same ids."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = work / "folder"
    e2e.run(lorikeet, "export", stories, "-o", out, "--to", "safetensors", "--type", "f32", "--shard-size", "300K")
    model, tk = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(out)
    ids = tk("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        got = model.generate(ids, max_new_tokens=60, do_sample=False)[0, ids.shape[1] :].tolist()
    want = json.loads(e2e.run(lorikeet, "generate", stories, "--prompt", "Once upon a time", "--quant", "none", "--dtype", "f32",
                              "--temperature", "0", "--max-tokens", "60", "--json"))["ids"]
    shards = len(list(out.glob("model-*.safetensors")))
    report.check(got == want and shards > 2, f"transformers: 60 greedy ids from {shards} shards", got)


def main():
    parser = argparse.ArgumentParser()
    e2e.program_argument(parser)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    report, digests = e2e.Report(), {}
    from golden import shared

    with tempfile.TemporaryDirectory() as spare:
        work = pathlib.Path(spare)

        def export(key, base, *more, to="gguf"):
            out = work / f"{key}.gguf"
            e2e.run(args.lorikeet, "export", base, *[m for m in more if isinstance(m, pathlib.Path)], "-o", out, "--to", to,
                    *[m for m in more if not isinstance(m, pathlib.Path)])
            digests[key] = hashlib.sha256(out.read_bytes()).hexdigest()
            return out

        for name in ("llama-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-tiny", "llama-tiny-bnb4", "chat-tiny"):
            folder = MODELS / name
            ids = ids_for(json.loads((folder / "config.json").read_text()))
            path = export(f"{name}.f32", folder, "--type", "f32")
            check_logits(report, name, llama.logits(path, ids), ours(args.lorikeet, folder, ids))
            if "bnb4" not in name:
                check_tensors(report, path, folder, name.startswith(("llama", "mistral", "chat")))
            if name in ("llama-tiny", "qwen2-tiny", "qwen3-tiny"):
                check_greedy(report, name, args.lorikeet, path, folder, ids[:12])
        for kind in ("f16", "bf16", "q8_0", "q4_0", "q4_k_m"):
            export(f"chat-tiny.{kind}", MODELS / "chat-tiny", "--type", kind)
        check_tokens(report, work / "chat-tiny.f32.gguf", MODELS / "chat-tiny" / "tokenizer.json")

        for adapter, base in (("r8_all", "llama-tiny"), ("mixed", "llama-tiny"), ("rslora", "llama-tiny"), ("r8_all_qwen3", "qwen3-tiny")):
            path = export(f"lora.{adapter}", MODELS / base, e2e.GOLDEN / "adapters" / adapter, to="gguf-lora")
            ids = ids_for(json.loads((MODELS / base / "config.json").read_text()))
            want = ours(args.lorikeet, MODELS / base, ids, e2e.GOLDEN / "adapters" / adapter)
            plain = ours(args.lorikeet, MODELS / base, ids)
            report.check(np.abs(want - plain).max() > 0.1, f"adapter {adapter} changes the logits")
            check_logits(report, f"adapter {adapter}", llama.logits(work / f"{base}.f32.gguf", ids, path), want)
            check_greedy(report, f"adapter {adapter}", args.lorikeet, work / f"{base}.f32.gguf", MODELS / base, ids[:12], path,
                         e2e.GOLDEN / "adapters" / adapter)

        stories = shared() / "models" / "stories260K"
        prompt = "Once upon a time"
        want = json.loads(e2e.run(args.lorikeet, "generate", stories, "--prompt", prompt, "--quant", "none", "--dtype", "f32", "--temperature",
                                  "0", "--max-tokens", "100", "--json"))["text"]
        for kind in ("f16", "bf16", "q8_0", "q4_0", "q4_k_m"):
            path = work / f"stories.{kind}.gguf"
            e2e.run(args.lorikeet, "export", stories, "-o", path, "--to", "gguf", "--type", kind)
            text = llama.greedy(path, prompt, 100)
            if kind in ("f16", "bf16"):  # quantised ones are other models
                report.check(text == want, f"stories260K {kind}: llama.cpp's 100 greedy tokens", text)
            read = json.loads(e2e.run(args.lorikeet, "generate", path, "--prompt", prompt, "--quant", "none", "--dtype", "f32", "--temperature",
                                      "0", "--max-tokens", "60", "--json"))["text"]
            if kind in ("f16", "bf16", "q8_0"):  # with 4 bits llama.cpp's 8-bit activations decide close calls otherwise: test_gguf_types.py
                report.check(text.startswith(read), f"stories260K {kind}: 60 greedy tokens of the GGUF file read as a base", read)
        check_folder(report, args.lorikeet, work, stories)
        check_tokens(report, work / "stories.f16.gguf", stories / "tokenizer.json")
        check_families(report, args.lorikeet, work)
    if args.write and not report.bad:
        path = e2e.GOLDEN / "gguf_exports.json"
        path.write_text(json.dumps(digests, indent=1) + "\n")
    return report.done()


if __name__ == "__main__":
    raise SystemExit(main())
