"""PEFT loads the adapters and reproduces our logits.

Run:  python tests/e2e/test_peft_loads.py [--lorikeet PATH]                 the golden adapters and one that the program trains itself
      python tests/e2e/test_peft_loads.py --base DIR --adapter DIR [--quant nf4|none] [--logits FILE]
With --logits the file (`ids` I64 [T] and `logits` F32 [T,V], as tests/golden/logits_*.safetensors, or with --ids for the ids) is compared and nothing is run.
Needs torch, transformers, peft, bitsandbytes (see tests/golden). PEFT computes in fp32: over the base as stored for `none`, over the NF4 values for `nf4`, over the
folder's own codes when the folder is a bitsandbytes checkpoint.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import e2e
from e2e import GOLDEN, Report

import torch
from peft import PeftModel
from safetensors.torch import load_file

import make_families
from golden import MODELS, load_fp32, load_nf4_as_fp32, no_bf16_gemm, random_ids

TOLERANCE = 2e-3  # fp32 on both sides; sums are ordered differently over a few layers of random weights with logits of a few units


def base_model(folder, quant):
    config = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config:
        model = load_fp32(folder)
        for p in model.parameters():
            if p.is_floating_point():
                p.data = p.data.float()
        no_bf16_gemm(model)
        return model
    return load_nf4_as_fp32(folder) if quant == "nf4" else load_fp32(folder)


def peft_logits(base, adapter, quant, ids):
    model = base_model(base, quant)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=ids[None], use_cache=False).logits[0].float()


def our_logits(lorikeet, base, adapter, quant, ids, folder):
    out = folder / "logits.safetensors"
    command = [lorikeet, "logits", base, "--ids", ",".join(map(str, ids.tolist())), "-o", out, "--dtype", "f32"]
    command += ["--quant", quant] if quant else []
    command += ["--adapter", adapter] if adapter else []
    e2e.run(*command)
    return load_file(out)["logits"]


def compare(report, what, ours, theirs):
    if ours.shape != theirs.shape:
        return report.check(False, what, f"shape {tuple(ours.shape)}, PEFT {tuple(theirs.shape)}")
    diff = float((ours - theirs).abs().max())
    report.check(diff <= TOLERANCE * max(1.0, float(theirs.abs().max())), f"{what}: largest difference {diff:.2e}", diff)


def tiny(folder, case):
    """One of the families' models with chat-tiny's tokenizer."""
    folder = folder / case
    folder.mkdir()
    chat = json.loads((MODELS / "chat-tiny" / "config.json").read_text())
    config = next(config for name, config, _, _ in make_families.CASES if name == case)
    more = {k: chat[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id") if k in chat}
    if "text_config" in config:
        more = {"text_config": config["text_config"] | more, "eos_token_id": chat["eos_token_id"]}
    make_families.build(folder, config | more)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "chat-tiny" / name, folder / name)
    return folder


def with_biases(folder):
    """A Qwen2 of random weights, biases included, with chat-tiny's tokenizer."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=424,
                                         max_position_embeddings=256, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False))
    for name, p in model.named_parameters():
        p.data = torch.randn(p.shape) * (0.3 if name.endswith("bias") else 0.2 if p.dim() > 1 else 0) + (0 if p.dim() > 1 or name.endswith("bias") else 1)
    model.bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((MODELS / "chat-tiny" / name).read_bytes())
    return folder


def trained(lorikeet, folder, name, base=MODELS / "chat-tiny", quant="nf4", **options):
    """A short run of the program with these options of the recipe's adapter; returns the adapter's folder."""
    turn = lambda u, a: {"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]}
    folder = folder / name
    folder.mkdir()
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(turn(f"Where is order {i}?", f"Order {i} was sent.")) + "\n" for i in range(16)))
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps({
        "base": {"path": str(base), "quant": quant}, "adapter": {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"} | options,
        "data": {"train": [{"path": str(data), "format": "messages"}], "max_length": 128, "loss_on": "assistant"}, "objective": "sft",
        "optim": {"name": "adamw", "lr": 1e-2}, "schedule": {"name": "constant"}, "batch": {"rows": 2, "accumulate": 1, "steps": 5}, "seed": 1}))
    e2e.run(lorikeet, "train", recipe, "--out", folder / "run")
    return folder / "run" / "adapter"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    e2e.program_argument(parser)
    parser.add_argument("--base", type=pathlib.Path)
    parser.add_argument("--adapter", type=pathlib.Path)
    parser.add_argument("--quant", choices=("nf4", "none"), default="nf4")
    parser.add_argument("--logits", type=pathlib.Path, help="our logits, already written")
    parser.add_argument("--ids", help="comma-separated; default 32 random ones")
    a = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        if a.base:
            stored = load_file(a.logits) if a.logits else None
            vocab = json.loads((a.base / "config.json").read_text())["vocab_size"]
            ids = torch.tensor([int(x) for x in a.ids.split(",")]) if a.ids else stored["ids"] if stored else random_ids(vocab, 32, 5)
            ours = stored["logits"] if stored else our_logits(a.lorikeet, a.base, a.adapter, a.quant, ids, tmp)
            compare(report, f"{a.base.name} + {a.adapter}", ours, peft_logits(a.base, a.adapter, a.quant, ids))
            return report.done()

        for config in sorted([*GOLDEN.glob("adapters/*/adapter_config.json"), *GOLDEN.glob("options/*/adapter_config.json")]):
            adapter = config.parent
            base = GOLDEN / json.loads(config.read_text())["base_model_name_or_path"]
            vocab = json.loads((base / "config.json").read_text())["vocab_size"]
            ids = random_ids(vocab, 32, 5)
            for quant in ("nf4", "none"):
                ours = our_logits(a.lorikeet, base, adapter, quant, ids, tmp)
                compare(report, f"{base.name} ({quant}) + {adapter.name}", ours, peft_logits(base, adapter, quant, ids))
        bnb = MODELS / "llama-tiny-bnb4"
        ids = random_ids(163, 32, 6)
        ours = our_logits(a.lorikeet, bnb, GOLDEN / "adapters" / "r8_all", None, ids, tmp)
        compare(report, "llama-tiny-bnb4 + r8_all", ours, peft_logits(bnb, GOLDEN / "adapters" / "r8_all", None, ids))

        ids = random_ids(400, 40, 7)
        ids[4], ids[9] = 9, 100
        tied, untied = MODELS / "chat-tiny", with_biases(tmp / "qwen2")
        variants = {"plain": {}, "dora": {"dora": True}, "dora_rslora": {"dora": True, "rslora": True}, "gaussian": {"init": "gaussian"}, "pissa": {"init": "pissa"},
                    "pissa_rslora": {"init": "pissa", "rslora": True, "rank_pattern": {"q_proj": 2}},
                    "pissa_dora": {"init": "pissa", "dora": True}, "some": {"layers_to_transform": [1], "exclude": ["k_proj"], "alpha_pattern": {"up_proj": 3}},
                    "lora_bias": {"lora_bias": True}, "bias_all": {"base": untied, "bias": "all", "targets": ["q_proj", "o_proj"]},
                    "bias_lora_only": {"base": untied, "bias": "lora_only", "lora_bias": True, "targets": ["v_proj", "up_proj"]},
                    "saved": {"base": untied, "modules_to_save": ["lm_head", "embed_tokens"]}, "saved_tied": {"modules_to_save": ["lm_head"]},
                    "embedding_saved_tied": {"modules_to_save": ["embed_tokens"]}, "tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
                    "expression": {"targets": r"model\.layers\.(0\.self_attn|1\.mlp)\..*_proj"}, "paths": {"targets": ["0.self_attn.q_proj", "mlp.up_proj"]}, "embedding": {"targets": ["embed_tokens"]},
                    "factors": {"base": untied, "targets": ["q_proj", "embed_tokens", "lm_head"]}, "factors_tied": {"targets": ["v_proj", "embed_tokens", "lm_head"], "rslora": True},
                    "tokens": {"base": untied, "trainable_token_indices": [100, 9, 3]}, "tokens_tied": {"trainable_token_indices": {"embed_tokens": [100, 9]}}}
        for name, options in variants.items():
            base = options.get("base", tied)
            adapter = trained(a.lorikeet, tmp, name, **options)
            moved = (peft_logits(base, adapter, "nf4", ids) - peft_logits(base, None, "nf4", ids)).abs().max()
            report.check(moved > 1e-3, f"the adapter trained as {name} does something: moves PEFT's logits by {moved:.3f}", moved)
            compare(report, f"{base.name} + an adapter trained here as {name}", our_logits(a.lorikeet, base, adapter, "nf4", ids, tmp),
                    peft_logits(base, adapter, "nf4", ids))
        stacked = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        for case in ("mixtral", "qwen3_moe", "gemma3_whole"):
            base = tiny(tmp, case)
            plain = peft_logits(base, None, "none", ids)
            for name, options in {"linear": {}, "stacked": {"targets": ["q_proj", "gate"], "target_parameters": stacked},
                                  "down": {"targets": [], "target_parameters": stacked[1:]}}.items():
                if case == "gemma3_whole" and options:
                    continue
                adapter = trained(a.lorikeet, tmp, f"{case}_{name}", base, "none", **options)
                theirs = peft_logits(base, adapter, "none", ids)
                report.check((theirs - plain).abs().max() > 1e-3, f"{case}: the adapter trained as {name} does something")
                compare(report, f"{case} + an adapter trained here as {name}", our_logits(a.lorikeet, base, adapter, "none", ids, tmp), theirs)
    return report.done()


if __name__ == "__main__":
    sys.exit(main())
