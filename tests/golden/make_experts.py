"""Adapters on stacked experts as PEFT makes them beside transformers 5 (target_parameters), with their logits and gradients.

Run:  python tests/golden/make_experts.py        (after make_families.py; needs transformers 5, peft)
Writes experts/<name>/ (PEFT folders) and experts.safetensors:
  <name>.ids, <name>.logits    I64 [T], F32 [T,V], the adapter over one of the families' mixtures; metadata `bases` says which
  <name>.loss                  F32 [1], mean negative log-likelihood from the 12th token on
  <name>.grad.<key>            F32, its gradients by the adapter's tensors

"all" is what "all-linear" becomes there: PEFT turns linear layers of experts into parameters, gate and up with twice the rank and alpha,
and the router. Every factor is random, so that nothing is zero. Checked here: the folder, loaded again by PEFT, gives the same logits.
"""

import json
import pathlib
import shutil
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from golden import HERE, adapter_key, load_fp32, save
from make_families import CASES, build, ids_of, loss_of

FOLDER = HERE / "experts"
ADAPTERS_ = [
    ("all", "mixtral", dict(r=2, lora_alpha=3, target_modules="all-linear")),
    ("parameters", "qwen3_moe", dict(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj"], rank_pattern={"down_proj": 2},
     alpha_pattern={r".*layers\.1\.mlp\.experts\.gate_up_proj": 7}, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])),
    ("one", "qwen3_moe_dense", dict(r=2, target_modules=[], target_parameters=["experts.down_proj", "layers.2.mlp.gate.weight"])),
]


def make(name, base, options, seed, out):
    config, runs = next((config, runs) for case, config, runs, _ in CASES if case == base)
    ids = ids_of(name, runs[-1], config["vocab_size"])
    with tempfile.TemporaryDirectory() as spare:
        spare = pathlib.Path(spare)
        build(spare, config)
        model = get_peft_model(load_fp32(spare), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        gen = torch.Generator().manual_seed(seed)
        leaves = {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}
        for n, p in leaves.items():
            p.data = (0.15 if "lora_B" in n else 0.25) * torch.randn(p.shape, generator=gen)
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        saved = json.loads(path.read_text())
        saved["base_model_name_or_path"] = base
        for field in ("target_modules", "target_parameters"):
            saved[field] = sorted(saved[field] or [])
        path.write_text(json.dumps(saved, indent=1) + "\n")
        (folder / "adapter_model.safetensors").chmod(0o644)
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        loss = loss_of(logits, ids)
        loss.backward()
        out[f"{name}.ids"], out[f"{name}.logits"], out[f"{name}.loss"] = ids, logits, loss.reshape(1)
        for n, p in leaves.items():
            assert p.grad.abs().max() > 0, (name, n)
            out[f"{name}.grad.{adapter_key(n)}"] = p.grad
        with torch.no_grad():
            again = PeftModel.from_pretrained(load_fp32(spare), folder).eval()(input_ids=ids[None], use_cache=False).logits[0]
            plain = load_fp32(spare)(input_ids=ids[None], use_cache=False).logits[0]
    assert torch.allclose(again, logits, atol=1e-5), (name, (again - logits).abs().max())
    print(f"{name}: moves logits by {(plain - logits).abs().mean():.3f}; {len(leaves)} tensors")


def main():
    out = {}
    for i, (name, base, options) in enumerate(ADAPTERS_):
        make(name, base, options, i, out)
    save(HERE / "experts.safetensors", out, "make_experts.py", ("transformers", "peft"), bases={name: base for name, base, _ in ADAPTERS_})


if __name__ == "__main__":
    main()
