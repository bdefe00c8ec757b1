"""One adapter for every option of PEFT's LoraConfig that Lorikeet honours, PEFT's logits with each, and combinations of two adapters.

Run:  python tests/golden/make_adapters.py        (after make_models.py; needs transformers, peft, bitsandbytes)
Writes options/<name>/ (PEFT folders) and adapter_options.safetensors:
  <name>.ids              I64 [T]
  <name>.logits           F32 [T,V], the adapter over the base as stored; metadata `bases` maps names to folders under models/
  <name>.logits_nf4       F32 [T,V], over the base whose linear layers went through NF4 with double quantisation
  dora.grad.<key>         F32, gradients of the mean loss of ids[1:] by the DoRA adapter's tensors, over the NF4 base
  combine.<kind>.<key>    F32, tensors of PEFT's add_weighted_adapter of combine_a and combine_b with the weights 0.7 and -0.4 (svd: the product B A)
All in fp32 on the CPU. Every trained tensor is random, so that nothing is zero. Checked here: the folder, loaded again by PEFT, gives the same logits.
"""

import json
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from golden import HERE, LINEARS, MODELS, adapter_key, load_fp32, load_nf4_as_fp32, nll, random_ids, save

OPTIONS = HERE / "options"
QV = ["q_proj", "v_proj"]

ADAPTERS_ = [
    ("dora", "llama-tiny", dict(r=3, lora_alpha=5, use_dora=True, target_modules=["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"])),
    ("dora_rslora", "qwen2-tiny", dict(r=4, lora_alpha=6, use_dora=True, use_rslora=True, target_modules=["q_proj", "up_proj"])),
    ("lora_bias", "llama-tiny", dict(r=4, lora_alpha=6, lora_bias=True, target_modules=["q_proj", "o_proj", "down_proj"])),
    ("bias_lora_only", "qwen2-tiny", dict(r=2, bias="lora_only", target_modules=QV)),
    ("bias_all", "qwen2-tiny", dict(r=2, bias="all", target_modules=["q_proj"])),
    ("saved", "llama-tiny", dict(r=2, target_modules=QV, modules_to_save=["lm_head", "embed_tokens"])),
    ("saved_tied", "qwen3-tiny", dict(r=2, target_modules=QV, modules_to_save=["embed_tokens"])),
    ("embedding", "llama-tiny", dict(r=3, lora_alpha=7, target_modules=["q_proj", "embed_tokens"])),
    ("embedding_tied", "qwen3-tiny", dict(r=3, target_modules=["q_proj", "embed_tokens"])),
    ("tokens", "llama-tiny", dict(r=2, target_modules=QV, trainable_token_indices=[3, 9, 100])),
    ("tokens_tied", "qwen3-tiny", dict(r=2, target_modules=QV, trainable_token_indices={"embed_tokens": [100, 3, 9]})),
    ("regex", "llama-tiny", dict(r=2, target_modules=r".*layers\.[01]\.self_attn\.(q|k)_proj", exclude_modules=["layers.0.self_attn.k_proj"])),
    ("layers", "llama-tiny", dict(r=2, target_modules=QV, layers_to_transform=[1], layers_pattern="layers", init_lora_weights="gaussian")),
    ("transposed", "llama-tiny", dict(r=2, target_modules=QV, fan_in_fan_out=True)),
]
COMBINED = [("cat", "cat", {}), ("linear", "linear", {}), ("ties", "ties", dict(density=0.4)),
            ("ties_frequency", "ties", dict(density=0.4, majority_sign_method="frequency")), ("magnitude_prune", "magnitude_prune", dict(density=0.3)),
            ("svd", "svd", dict(svd_rank=3))]


def randomise(model, seed):
    gen = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        if not p.requires_grad:
            continue
        noise = torch.randn(p.shape, generator=gen)
        if "lora_magnitude" in name:
            p.data = p.data * (1 + 0.2 * noise)
        elif "lora_embedding" in name:
            p.data = noise * 0.3
        elif "lora_" in name:
            p.data = noise * (0.1 if "lora_B" in name else 0.15)
        else:
            p.data = p.data + noise * 0.05


def write(model, folder, base):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = f"models/{base}"
    for field in ("target_modules", "exclude_modules"):
        if isinstance(config[field], list):
            config[field].sort()
    path.write_text(json.dumps(config, indent=1) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)


def logits_of(model, ids):
    return model(input_ids=ids[None], use_cache=False).logits[0]


def make(name, base, options, seed, out):
    model = get_peft_model(load_nf4_as_fp32(MODELS / base), LoraConfig(task_type="CAUSAL_LM", **options))
    randomise(model, seed)
    model.eval()
    folder = OPTIONS / name
    write(model, folder, base)
    ids = random_ids(model.config.vocab_size, 16, 300 + seed)
    if "tokens" in name:
        ids[2], ids[7] = 9, 100
    logits = logits_of(model, ids)
    if name == "dora":
        labels = ids.clone()
        total, n = nll(logits, labels)
        (total / n).backward()
        for pname, p in model.named_parameters():
            if p.requires_grad:
                out["dora.grad." + adapter_key(pname).removesuffix(".weight" if "magnitude" in pname else "")] = p.grad
        model.zero_grad()
    with torch.no_grad():
        again = logits_of(PeftModel.from_pretrained(load_nf4_as_fp32(MODELS / base), folder).eval(), ids)
        plain = logits_of(load_nf4_as_fp32(MODELS / base), ids)
        out[f"{name}.ids"] = ids
        out[f"{name}.logits_nf4"] = logits.detach()
        out[f"{name}.logits"] = logits_of(PeftModel.from_pretrained(load_fp32(MODELS / base), folder).eval(), ids)
    assert torch.allclose(again, logits, atol=1e-5), (name, (again - logits).abs().max())
    print(f"{name}: moves logits by {(plain - logits).abs().mean():.3f}")


def make_pissa(out):
    """Trained from PiSSA's start and saved as PEFT converts it: a plain adapter of twice the rank on the unchanged base."""
    base, ids = "llama-tiny", random_ids(163, 16, 399)
    model = get_peft_model(load_fp32(MODELS / base), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=QV, init_lora_weights="pissa"))
    start = OPTIONS / "pissa_start"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(start)
    model.peft_config["default"].init_lora_weights = "pissa"
    gen = torch.Generator().manual_seed(77)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn(p.shape, generator=gen)
    model.eval()
    out["pissa.ids"], out["pissa.logits"] = ids, logits_of(model, ids).detach()
    folder = OPTIONS / "pissa"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(start))
    shutil.rmtree(start)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"], config["target_modules"] = f"models/{base}", QV
    path.write_text(json.dumps(config, indent=1) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)


def combine(out):
    base = "llama-tiny"
    for seed, name in enumerate(("combine_a", "combine_b")):
        model = get_peft_model(load_fp32(MODELS / base), LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=4 + seed, target_modules=QV))
        randomise(model, 50 + seed)
        write(model, OPTIONS / name, base)
    model = PeftModel.from_pretrained(load_fp32(MODELS / base), OPTIONS / "combine_a", adapter_name="a")
    model.load_adapter(OPTIONS / "combine_b", adapter_name="b")
    for name, kind, options in COMBINED:
        model.add_weighted_adapter(["a", "b"], [0.7, -0.4], name, combination_type=kind, **options)
        state = {k: v.data for k, v in model.named_parameters() if f".{name}." in k}
        for key, value in state.items():
            short = key.replace(f".{name}", "")
            if kind not in ("svd", "cat"):
                out[f"combine.{name}.{short}"] = value
            elif ".lora_A." in key and "layers.1" in key:
                out[f"combine.{name}.{short.replace('.lora_A.weight', '')}"] = state[key.replace("lora_A", "lora_B")] @ value


def main():
    torch.set_num_threads(1)
    out = {}
    for i, (name, base, options) in enumerate(ADAPTERS_):
        make(name, base, options, i, out)
    make_pissa(out)
    combine(out)
    bases = {name: base for name, base, _ in ADAPTERS_} | {"pissa": "llama-tiny"}
    save(HERE / "adapter_options.safetensors", out, "make_adapters.py", ("transformers", "peft", "bitsandbytes"), bases=bases)


if __name__ == "__main__":
    main()
