"""PEFT's gradients for the mixtures of experts among the families.

Run:  python tests/golden/make_mixtures.py        (after make_families.py; transformers 4.57 and a peft of its time)
Writes mixtures.safetensors: NAME.loss and NAME.grad.PATH.A, .B as make_families.py does, for its cases with experts.

transformers 5 keeps the experts of a layer in one tensor, which PEFT reaches as a parameter with one factor for gate and up together
(make_experts.py). Files, and adapters made for them with transformers 4, have a linear layer for each and one for the router; there
PEFT's own "all-linear" adapts all of them, and so is the judge here. That both versions compute the same logits is checked here, too.
"""

import json
import pathlib
import tempfile

import torch
from safetensors.torch import load_file

from golden import HERE, load_fp32, save
from make_families import CASES, build, gradients, ids_of


def main():
    known, out = load_file(HERE / "families.safetensors"), {}
    for name, config, runs, rank in CASES:
        if "num_experts_per_tok" not in config:
            continue
        with tempfile.TemporaryDirectory() as spare:
            folder = pathlib.Path(spare)
            build(folder, config)
            ids = ids_of(name, runs[-1], config["vocab_size"])
            with torch.no_grad():
                logits = load_fp32(folder)(input_ids=ids[None], use_cache=False).logits[0]
            error = (logits - known[f"{name}.{runs[-1]}.logits"]).abs().max()
            assert error < 1e-5, (name, error)
            # What PEFT trains by default is this loss, without one for the router.
            model = load_fp32(folder)
            labels = torch.where(torch.arange(len(ids)) > 10, ids, -100)
            with torch.no_grad():
                loss = model(input_ids=ids[None], labels=labels[None], use_cache=False).loss
                balanced = model(input_ids=ids[None], labels=labels[None], use_cache=False, output_router_logits=True).loss
            gradients(folder, name, ids, rank, out, "all-linear")
            plain = torch.nn.functional.cross_entropy(logits[10:-1], ids[11:])
            assert abs(loss - plain) < 1e-5 < abs(balanced - plain), (name, loss, plain, balanced)
            print(f"{name}: logits differ by {error:.2g}, {sum(k.startswith(name + '.grad') for k in out)} gradients")
    save(HERE / "mixtures.safetensors", out, "make_mixtures.py", ("transformers", "peft"))


if __name__ == "__main__":
    main()
