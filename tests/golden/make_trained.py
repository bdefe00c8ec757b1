"""PEFT's gradients, and losses of a few steps, with everything it trains beside factors of linear layers: biases, whole embeddings and heads, factors on
the two, chosen tokens.

Run:  python tests/golden/make_trained.py        (after make_models.py and make_families.py; needs transformers, peft, bitsandbytes)
Writes options/head and options/head_tied (PEFT folders) and trained.safetensors; metadata `bases` maps the names below to folders under models/, or to
cases of families.json:
  <name>.ids, .labels     I64 [5,2,24]: of four steps of two micro-batches (the last pair is for .logits alone); labels as in make_lora.py
  <name>.loss             F32 [4], each step's mean negative log-likelihood before its update
  <name>.norm             F32 [4], of its gradient
  <name>.logits           F32 [24,V], after the four steps, of ids[4,0]
  <name>.grad.<key>       F32, of the first micro-batch's mean loss alone, by the tensors of the first layer and by everything outside of layers
The start (but for pissa's) is a rule: a tensor that PEFT begins as a copy of the base's gets spread * u(key) added, any other is that (SPREAD below; u is make_families.values).
AdamW as transformers' Trainer sets it up: no weight decay on what is called bias; clipping at 1. All in fp32 over NF4 (families: over the weights as stored).
"""

import json
import pathlib
import shutil
import tempfile

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

import make_families
from golden import HERE, LINEARS, MODELS, adapter_key, load_fp32, load_nf4_as_fp32, nll, random_ids, save

QV = ["q_proj", "v_proj"]
OPTIONS = [
    ("bias_all", "qwen2-tiny", dict(r=2, bias="all", target_modules=["q_proj"])),
    ("bias_both", "qwen2-tiny", dict(r=2, lora_alpha=6, bias="lora_only", lora_bias=True, target_modules=["q_proj", "o_proj"])),
    ("lora_bias", "llama-tiny", dict(r=4, lora_alpha=6, lora_bias=True, target_modules=["q_proj", "o_proj", "down_proj"])),
    ("saved", "llama-tiny", dict(r=2, target_modules=QV, modules_to_save=["lm_head", "embed_tokens"])),
    ("saved_tied", "qwen3-tiny", dict(r=2, target_modules=QV, modules_to_save=["embed_tokens"])),
    ("tied", "qwen3-tiny", dict(r=2, target_modules=QV, modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    ("embedding", "llama-tiny", dict(r=3, lora_alpha=7, target_modules=["q_proj", "embed_tokens"])),
    ("head", "llama-tiny", dict(r=3, lora_alpha=7, target_modules=["q_proj", "lm_head"])),
    ("head_tied", "qwen3-tiny", dict(r=3, lora_alpha=7, use_rslora=True, target_modules=["q_proj", "lm_head", "embed_tokens"],
                                     rank_pattern={"lm_head": 5}, alpha_pattern={"embed_tokens": 4})),
    ("tokens", "llama-tiny", dict(r=2, target_modules=QV, trainable_token_indices=[3, 9, 100])),
    ("tokens_tied", "qwen3-tiny", dict(r=2, target_modules=QV, trainable_token_indices=[3, 9, 100])),
    ("tokens_head", "llama-tiny", dict(r=2, target_modules=["q_proj", "lm_head"], trainable_token_indices=[3, 9, 100])),
    ("gemma2", "gemma2", dict(r=2, lora_alpha=3, target_modules=["q_proj", "embed_tokens", "lm_head"])),
    ("granite", "granite", dict(r=2, target_modules=QV, modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    ("gemma2_tokens", "gemma2", dict(r=2, target_modules=QV, trainable_token_indices=[3, 9, 30])),
]
PISSA = [("pissa", dict(r=2, lora_alpha=3, target_modules=QV)),
         ("pissa_dora", dict(r=3, lora_alpha=4, use_dora=True, target_modules=["q_proj", "o_proj", "down_proj"]))]
DROPPED = [("dropped_dora", dict(r=3, lora_alpha=5, use_dora=True, target_modules=["q_proj", "k_proj", "o_proj", "down_proj"])),
           ("dropped_head", dict(r=3, lora_alpha=5, target_modules=["v_proj", "lm_head"]))]
STEPS, MICRO, LENGTH = 4, 2, 24
LR, DECAY = 1e-2, 0.1


def spread(key):
    """(how much of PEFT's own start stays, spread) of a tensor."""
    if key.endswith("lora_A.weight"):
        return 0, 0.2
    if "lora_embedding" in key:
        return 0, 0.4
    if key.endswith(("lora_B.weight", "lora_B.bias")):
        return 0, 0.15
    return 1, 0.05


def trainable(model):
    """{key in adapter_model.safetensors: parameter}, without what PEFT's wrappers put into names."""
    out = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            key = adapter_key(name).replace("modules_to_save.", "")
            out[key] = p
    return out


def base_model(base):
    if base.endswith("-tiny"):
        return load_nf4_as_fp32(MODELS / base)
    config = next(c for n, c, *_ in make_families.CASES if n == base)
    with tempfile.TemporaryDirectory() as spare:
        make_families.build(pathlib.Path(spare), config)
        return load_fp32(pathlib.Path(spare))


def batches(vocab, seed):
    ids = random_ids(vocab, (STEPS + 1) * MICRO * LENGTH, 700 + seed).reshape(STEPS + 1, MICRO, LENGTH)
    ids[:, :, 2] = 9
    ids[:, :, 5] = 9
    ids[:, 1, 11] = 3
    labels = ids.clone()
    labels[:, :, :4] = -100
    labels[:, 1, 15:19] = -100
    return ids, labels


def total_loss(model, ids, labels):
    return nll(model(input_ids=ids[None], use_cache=False).logits[0], labels)


def make(name, base, options, seed, out):
    torch.manual_seed(seed)
    model = get_peft_model(base_model(base), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **options)).eval()
    params = trainable(model)
    for key, p in params.items():
        keep, width = spread(key)
        p.data = keep * p.data.float() + width * make_families.values(key, p.numel(), 0.0, 1.0).reshape(p.shape)
    ids, labels = batches(model.config.vocab_size, seed)
    total, n = total_loss(model, ids[0, 0], labels[0, 0])
    (total / n).backward()
    for key, p in params.items():
        if ".layers." not in key or ".layers.0." in key:
            assert p.grad.abs().max() > 0, key
            out[f"{name}.grad.{key}"] = p.grad.clone()
    model.zero_grad()
    run_steps(name, model, params, ids, labels, out)
    if name in ("head", "head_tied"):
        save_folder(model, name, base)


def run_steps(name, model, params, ids, labels, out):
    groups = [dict(params=[p for k, p in params.items() if "bias" not in k], weight_decay=DECAY), dict(params=[p for k, p in params.items() if "bias" in k], weight_decay=0.0)]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=LR)
    losses, norms = [], []
    for step in range(STEPS):
        count = int((labels[step, :, 1:] != -100).sum())
        loss = 0.0
        for m in range(MICRO):
            OurDropout.counter = step << 20 | m
            total, _ = total_loss(model, ids[step, m], labels[step, m])
            (total / count).backward()
            loss += float(total) / count
        losses.append(loss)
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(params.values()), 1.0)))
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    with torch.no_grad():
        out[f"{name}.logits"] = model(input_ids=ids[STEPS, 0][None], use_cache=False).logits[0]
    out[f"{name}.ids"], out[f"{name}.labels"] = ids, labels
    out[f"{name}.loss"], out[f"{name}.norm"] = torch.tensor(losses), torch.tensor(norms)
    print(f"{name}: {[f'{x:.3f}' for x in losses]}")


def make_pissa(name, options, seed, out):
    """From PiSSA's own start, over llama-tiny as stored. Components are only unique up to a sign, so nothing is kept but what does not depend on it."""
    torch.manual_seed(seed)
    model = get_peft_model(load_fp32(MODELS / "llama-tiny"), LoraConfig(task_type="CAUSAL_LM", init_lora_weights="pissa", **options)).eval()
    ids, labels = batches(model.config.vocab_size, seed)
    run_steps(name, model, trainable(model), ids, labels, out)


def philox_uniform(key, hi, lo):
    """Words of Philox4x32-10 for counters lo [n] (uint64), as numbers in [0,1): [n, 4] (kernels/philox.h)."""
    mask, c = np.uint64(0xFFFFFFFF), [lo & np.uint64(0xFFFFFFFF), lo >> np.uint64(32), np.full_like(lo, hi & 0xFFFFFFFF), np.full_like(lo, hi >> 32)]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return (np.stack(c, 1) >> np.uint64(8)).astype(np.float32) / np.float32(1 << 24)


def philox_key(seed, stream):
    m = (1 << 64) - 1
    z = (seed + 0x9E3779B97F4A7C15 * (stream + 1)) & m
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & m
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & m
    z ^= z >> 31
    return z & 0xFFFFFFFF, z >> 32


class OurDropout(torch.nn.Module):
    """The program's mask (lk_dropout of kernels/ops.h) in the place of torch's."""

    counter = 0

    def __init__(self, site, p):
        super().__init__()
        self.site, self.p = site, p

    def forward(self, x):
        if not self.training:
            return x
        rows, width = x.shape[-2:]
        along = (width + 3) // 4
        lo = np.uint64(self.site << 44) | np.arange(rows * along, dtype=np.uint64)
        u = philox_uniform(philox_key(0, 3), OurDropout.counter, lo).reshape(rows, 4 * along)[:, :width]
        return x * torch.from_numpy((u >= np.float32(self.p)).astype(np.float32) / np.float32(1 - np.float32(self.p)))


def make_dropped(name, options, seed, out):
    """Training with dropout, the masks ours."""
    torch.manual_seed(seed)
    model = get_peft_model(base_model("llama-tiny"), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.25, **options)).train()
    for path, m in model.named_modules():
        if hasattr(m, "lora_dropout") and "default" in m.lora_dropout:
            parts = path.split(".")
            site = 14 if parts[-1] == "lm_head" else 7 * int(parts[parts.index("layers") + 1]) + LINEARS.index(parts[-1])
            m.lora_dropout["default"] = OurDropout(site, 0.25)
    params = trainable(model)
    for key, p in params.items():
        keep, width = spread(key)
        p.data = keep * p.data.float() + width * make_families.values(key, p.numel(), 0.0, 1.0).reshape(p.shape)
    ids, labels = batches(model.config.vocab_size, seed)
    run_steps(name, model, params, ids, labels, out)


def save_folder(model, name, base):
    folder = HERE / "options" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"], config["target_modules"] = f"models/{base}", sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=1) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)


def main():
    out = {}
    for i, (name, base, options) in enumerate(OPTIONS):
        make(name, base, options, i, out)
    for i, (name, options) in enumerate(PISSA):
        make_pissa(name, options, 40 + i, out)
    for i, (name, options) in enumerate(DROPPED):
        make_dropped(name, options, 50 + i, out)
    save(HERE / "trained.safetensors", out, "make_trained.py", ("transformers", "peft", "bitsandbytes"), bases={name: base for name, base, _ in OPTIONS})


if __name__ == "__main__":
    main()
