"""The element types of exported GGUF files, judged by ggml: the same bytes, the same values, the same text.

Run:  python tests/e2e/test_gguf_types.py [--lorikeet PATH]

llama.cpp does not multiply by the values that a quantised file's blocks stand for: it brings the activations to 8 bits first (ggml_arithmetic.py).
So four things are shown one by one. The file is the one that llama.cpp's own tool writes from the fp32 file: each tensor of the same type; of
those types whose bytes the format decides, the same bytes; of Q4_K and Q6_K, no more error than its. The file is read for the values that the gguf
package decodes it to, and llama.cpp run on these values (widened to fp32) gives Lorikeet's logits and greedy ids on the quantised file. What
is left between the two programs on the quantised file itself is the rounding of activations: simulated in numpy it gives llama.cpp's logits. And where
the text does not hang on noise, as on a model that was trained to know one by heart, llama.cpp's greedy ids on every type are Lorikeet's.
"""

import argparse
import collections
import json
import pathlib
import shutil
import tempfile

import numpy as np

import e2e
import ggml_arithmetic
import llama
import make_families as families
from safetensors.torch import load_file, save_file
from test_gguf import ours

TYPES = ("f16", "bf16", "q8_0", "q4_0", "q4_k_m")
PROMPT = "Once upon a time"
TEXT = ("Once upon a time there was a small red boat that could not swim. Every day the boat sat on the sand and looked at the big sea. One day a "
        "girl named Lily found the boat and said, let us go and see the fish. They went far away and saw nine fish, two birds and a happy whale.")
WIDE = dict(hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=64, num_hidden_layers=8)
MODELS = [
    families.case("llama", "llama", "LlamaForCausalLM", **WIDE | dict(num_hidden_layers=16)),
    families.case("llama, tied", "llama", "LlamaForCausalLM", **WIDE | dict(num_hidden_layers=9, tie_word_embeddings=True)),
    families.case("mixtral, 8 experts", "mixtral", "MixtralForCausalLM", **WIDE, num_local_experts=8, num_experts_per_tok=2),
    families.case("mixtral, 4 experts", "mixtral", "MixtralForCausalLM", **WIDE, num_local_experts=4, num_experts_per_tok=2),
    families.case("qwen3_moe", "qwen3_moe", "Qwen3MoeForCausalLM", **WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256,
                  norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[]),
    families.case("qwen2", "qwen2", "Qwen2ForCausalLM", **WIDE),
    families.case("phi3", "phi3", "Phi3ForCausalLM", **WIDE),
    families.case("olmo2", "olmo2", "Olmo2ForCausalLM", **WIDE),
    families.case("granite", "granite", "GraniteForCausalLM", **WIDE),
    families.case("gemma2", "gemma2", "Gemma2ForCausalLM", base=families.GEMMA | WIDE, query_pre_attn_scalar=64, sliding_window=4096,
                  attn_logit_softcapping=5.0, final_logit_softcapping=4.0),
]
# What llama.cpp's tool does with types that are not written here: attention outputs beside 8 experts in Q5_K.
OTHERWISE = {("mixtral, 8 experts", "q4_k_m"): {("attn_output", "Q6_K", "Q5_K")}}


def compare_types(report, name, kind, mine, theirs, source):
    """Two quantised files of the same fp32 file."""
    what, expected = f"{name}, {kind}", OTHERWISE.get((name, kind), set())
    mine, theirs, source = llama.tensors(mine), llama.tensors(theirs), llama.tensors(source)
    other = {(n.split(".")[-2], t.tensor_type.name, theirs[n].tensor_type.name) for n, t in mine.items() if t.tensor_type != theirs[n].tensor_type}
    report.check(set(mine) == set(theirs) and other == expected, f"{what}: {len(mine)} tensors, of the types llama.cpp's tool gives them", other)
    same, error = collections.Counter(), collections.defaultdict(lambda: np.zeros(2))
    for n, t in mine.items():
        stored = t.tensor_type.name
        if t.tensor_type != theirs[n].tensor_type:
            continue
        if stored in ("Q4_K", "Q6_K"):
            error[stored] += [((llama.decoded(side[n]) - source[n].data) ** 2).sum() for side in (mine, theirs)]
        else:
            same[stored, np.array_equal(t.data, theirs[n].data)] += 1
    report.check(all(equal for _, equal in same), f"{what}: the bytes of llama.cpp's tool: {', '.join(f'{n} {k}' for (k, _), n in same.items())}", same)
    for stored, (a, b) in error.items():
        report.check(a <= b, f"{what}: {stored}: root mean square error {(a / b) ** 0.5:.3f} of that tool's", (a, b))


def check_tool(report, lorikeet, work):
    for name, config, _, _ in MODELS:
        folder, source = work / "wide", work / "wide.gguf"
        folder.mkdir(exist_ok=True)
        families.build(folder, config)
        e2e.run(lorikeet, "export", folder, "-o", source, "--to", "gguf", "--type", "f32")
        for kind in ("q8_0", "q4_0", "q4_k_m"):
            out, theirs = work / "wide.q.gguf", work / "wide.theirs.gguf"
            e2e.run(lorikeet, "export", folder, "-o", out, "--to", "gguf", "--type", kind)
            llama.quantize(source, theirs, kind)
            compare_types(report, name, kind, out, theirs, source)


def generated(lorikeet, path, n):
    return json.loads(e2e.run(lorikeet, "generate", path, "--prompt", PROMPT, "--quant", "none", "--dtype", "f32", "--temperature", "0",
                              "--max-tokens", n, "--json"))["ids"]


def prompt_ids(path):
    return llama.load(path).tokenize(PROMPT.encode(), add_bos=True, special=True)


def check_values(report, lorikeet, what, path, wide, n=60):
    """The values of a quantised file: read here, and given to llama.cpp without their type's arithmetic."""
    llama.widen(path, wide)
    prompt, mine = prompt_ids(path), generated(lorikeet, path, n)
    ids = prompt + mine
    logits = ours(lorikeet, path, ids)
    report.check(np.array_equal(logits, ours(lorikeet, wide, ids)), f"{what}: read for the values that the gguf package decodes, bit for bit")
    worst, most = float(np.abs(llama.logits(wide, ids) - logits).max()), float(np.abs(logits).max())
    report.check(worst <= 1e-5 * most, f"{what}: llama.cpp on these values: logits within {worst:.1e} of {most:.0f}")
    report.check(llama.greedy_ids(wide, prompt, n) == mine, f"{what}: llama.cpp on these values: the same {n} greedy ids")


def check_rounding(report, what, path, vocab):
    """Positions whose difference between llama.cpp's logits and those of the unrounded values is, but for a hundredth, what rounding makes in the simulation. A sum
    that differs in its last bit may tip a code to its neighbour, and what follows in the same text then differs as much as any rounding: hence many short texts, and not all."""
    explained, least, texts = 0, np.inf, 16
    for text in range(texts):
        ids = [(i * 37 + 101 * text + 5) % vocab for i in range(4)]
        theirs = llama.logits(path, ids)
        left = np.abs(theirs - ggml_arithmetic.logits(path, ids)).max(1)
        made = np.abs(theirs - ggml_arithmetic.logits(path, ids, rounded=False)).max(1)
        explained += int((left <= 0.01 * made).sum())
        least = min(least, made.min())
    report.check(explained >= 2 * (4 * texts) // 3 and least > 1e-2, f"{what}: rounding activations as ggml does gives llama.cpp's logits at {explained} of {4 * texts} "
                 f"positions; without it none is nearer than {least:.1e}")


def train_by_heart(lorikeet, work, tokenizer):
    """A random Llama and an adapter on it that knows TEXT: every next token is far more likely than the second."""
    base, data, recipe = work / "base", work / "data.jsonl", work / "recipe.json"
    base.mkdir()
    _, config, _, _ = families.case("heart", "llama", "LlamaForCausalLM", **WIDE | dict(vocab_size=512, num_hidden_layers=3), rope_theta=10000.0)
    config["max_position_embeddings"] = 512
    families.build(base, config)
    weights = load_file(base / "model.safetensors")  # small beside what the adapter adds, so that the result does not hang on the base's noise
    save_file({n: w / 3 if ".layers." in n and w.dim() == 2 else w for n, w in weights.items()}, base / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, base)
    data.write_text(json.dumps({"text": TEXT}) + "\n")
    recipe.write_text(json.dumps({
        "base": {"path": str(base), "quant": "none"}, "adapter": {"r": 32, "alpha": 64, "dropout": 0.0, "targets": "all-linear"},
        "data": {"train": [{"path": str(data), "format": "text"}], "max_length": 256, "loss_on": "all"}, "objective": "sft",
        "optim": {"name": "adamw", "lr": 2e-3}, "schedule": {"name": "cosine"}, "batch": {"rows": 1, "accumulate": 1, "steps": 200}, "seed": 1}))
    e2e.run(lorikeet, "train", recipe, "--out", work / "run")
    return base, work / "run" / "adapter"


def check_heart(report, lorikeet, work, base, adapter):
    for kind in TYPES:
        path = work / f"heart.{kind}.gguf"
        e2e.run(lorikeet, "export", base, adapter, "-o", path, "--to", "gguf", "--type", kind)
        prompt, mine = prompt_ids(path), generated(lorikeet, path, 60)
        best = np.sort(ours(lorikeet, path, prompt + mine)[len(prompt) - 1 : -1], 1)
        gap = float((best[:, -1] - best[:, -2]).min())
        report.check(llama.greedy_ids(path, prompt, 60) == mine and gap > 1, f"by heart, {kind}: 60 greedy ids of llama.cpp; the second best is {gap:.1f} below",
                     gap)


def main():
    parser = argparse.ArgumentParser()
    e2e.program_argument(parser)
    args = parser.parse_args()
    report = e2e.Report()
    from golden import shared

    stories = shared() / "models" / "stories260K"
    with tempfile.TemporaryDirectory() as spare:
        work = pathlib.Path(spare)
        base, adapter = train_by_heart(args.lorikeet, work, stories)
        check_heart(report, args.lorikeet, work, base, adapter)
        for kind in TYPES:
            path = work / f"stories.{kind}.gguf"
            e2e.run(args.lorikeet, "export", stories, "-o", path, "--to", "gguf", "--type", kind)
            check_values(report, args.lorikeet, f"stories260K {kind}", path, work / "wide.gguf")
            check_values(report, args.lorikeet, f"by heart, {kind}", work / f"heart.{kind}.gguf", work / "wide.gguf")
        for kind in ("q8_0", "q4_0"):
            check_rounding(report, f"stories260K {kind}", work / f"stories.{kind}.gguf", 512)
        for kind in ("q8_0", "q4_0", "q4_k_m"):
            check_rounding(report, f"by heart, {kind}", work / f"heart.{kind}.gguf", 512)
        check_tool(report, args.lorikeet, work)
    return report.done()


if __name__ == "__main__":
    raise SystemExit(main())
