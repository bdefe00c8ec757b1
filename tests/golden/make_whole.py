"""Adapters that PEFT makes on a model of images and text, and its logits of a text with them.

Run:  python tests/golden/make_whole.py        (after make_families.py; needs transformers 5, peft)
Writes whole/<name>/ (PEFT folders) and whole.safetensors: <name>.ids I64 [T], <name>.logits F32 [T,V], over gemma3_whole of the families.
Every trained tensor is random. "all" adapts the images' layers, too: no text comes through them.
"""

import json
import pathlib
import shutil
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from golden import HERE, save
from make_families import CASES, build, ids_of, load

BASE = "gemma3_whole"
ADAPTERS_ = [
    ("all", dict(r=2, lora_alpha=3, target_modules="all-linear")),
    ("values", dict(r=2, target_modules=["q_proj"], exclude_modules=".*vision_tower.*", trainable_token_indices=[7, 3, 9], rank_pattern={"layers.1.self_attn.q_proj": 3})),
]


def main():
    out = {}
    config = next(config for name, config, _, _ in CASES if name == BASE)
    for seed, (name, options) in enumerate(ADAPTERS_):
        ids = ids_of(name, 24, config["text_config"]["vocab_size"] - 3)
        ids[4], ids[11] = 9, 3
        with tempfile.TemporaryDirectory() as spare:
            spare = pathlib.Path(spare)
            build(spare, config)
            model = get_peft_model(load(spare), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
            gen = torch.Generator().manual_seed(seed)
            for n, p in sorted(model.named_parameters()):
                if p.requires_grad:
                    p.data = p.data * (0 if "lora_" in n else 1) + 0.2 * torch.randn(p.shape, generator=gen)
            folder = HERE / "whole" / name
            shutil.rmtree(folder, ignore_errors=True)
            model.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)
            path = folder / "adapter_config.json"
            saved = json.loads(path.read_text())
            saved["base_model_name_or_path"], saved["target_modules"] = BASE, sorted(saved["target_modules"])
            path.write_text(json.dumps(saved, indent=1) + "\n")
            (folder / "adapter_model.safetensors").chmod(0o644)
            with torch.no_grad():
                logits = model(input_ids=ids[None], use_cache=False).logits[0]
                again = PeftModel.from_pretrained(load(spare), folder).eval()(input_ids=ids[None], use_cache=False).logits[0]
                plain = load(spare)(input_ids=ids[None], use_cache=False).logits[0]
        assert torch.allclose(again, logits, atol=1e-5), (name, (again - logits).abs().max())
        out[f"{name}.ids"], out[f"{name}.logits"] = ids, logits
        print(f"{name}: moves logits by {(plain - logits).abs().mean():.3f}")
    save(HERE / "whole.safetensors", out, "make_whole.py", ("transformers", "peft"))


if __name__ == "__main__":
    main()
