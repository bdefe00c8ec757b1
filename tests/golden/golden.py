"""What the golden scripts share: versions for the metadata, where ../shared lies, safetensors writing, loading by folder.

Every make_*.py here is run by hand (never in CI) from the project's root, with Python 3.11 and CPU builds of the packages named in
each file's metadata; it rewrites its own outputs beside itself. All of them are deterministic on one thread: fixed seeds, fp32, CPU.
"""

import json
import os
import pathlib

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE / "models"
ADAPTERS = HERE / "adapters"

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def shared():
    """The folder of data written by others: LK_SHARED, else ../shared beside the project's root."""
    return pathlib.Path(os.environ.get("LK_SHARED", HERE.parents[1] / ".." / "shared")).resolve()


def versions(*names):
    """{package: version} as strings, for a golden's metadata."""
    import importlib.metadata as m

    return {n: m.version(n) for n in ("torch", *names)}


def save(path, tensors, script, packages=(), **more):
    """Write tensors (in name order) with the versions and the script that made them as metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"format": "pt", "script": script, **versions("safetensors", *packages)}
    meta.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in more.items()})
    save_file({k: tensors[k].detach().contiguous().clone() for k in sorted(tensors)}, path, metadata=meta)
    settle(path)
    path.chmod(0o644)
    print(f"{path.relative_to(HERE)}: {path.stat().st_size} bytes")


def settle(path):
    """Rewrite a safetensors header with its keys sorted: the library writes metadata in an order that changes from run to run."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])


def save_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{path.relative_to(HERE)}: {path.stat().st_size} bytes")


def load_fp32(folder):
    """A causal LM from a folder, its weights widened to fp32, plain (eager) attention, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def random_ids(vocab, n, seed, low=3):
    """n ids in [low, vocab): clear of unk, bos and eos."""
    return torch.randint(low, vocab, (n,), generator=torch.Generator().manual_seed(seed))


def no_bf16_gemm(model):
    """Keep bitsandbytes' Linear4bit in fp32: on CPUs with AVX512-BF16 it otherwise repacks and multiplies in bf16 when evaluating."""
    import bitsandbytes as bnb

    n = 0
    for m in model.modules():
        if isinstance(m, bnb.nn.Linear4bit):
            m.support_avx512bf16_for_cpu = False
            n += 1
    return n


def dequantised_nf4(w, dtype=torch.float32):
    """w after NF4 with double quantisation and back, by bitsandbytes, the matrix taken as one row (README.md says why)."""
    import bitsandbytes.functional as F

    assert w.numel() % 2 == 0
    codes, s = F.quantize_4bit(w.contiguous(), quant_type="nf4", compress_statistics=True)
    absmax = F.dequantize_blockwise(s.absmax, s.state2) + s.offset
    return torch.ops.bitsandbytes.dequantize_4bit.default(codes, absmax, 64, "nf4", (1, w.numel()), dtype).reshape(w.shape)


LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load_nf4_as_fp32(folder):
    """The model as load_fp32 gives it, but every linear layer except the head replaced by its value after NF4 and back.

    The codes come from the weights as stored (16 bits): bitsandbytes widens them to fp32 exactly before it quantises.
    """
    model = load_fp32(folder)
    with torch.no_grad():
        for name, m in model.named_modules():
            if name.rsplit(".", 1)[-1] in LINEARS:
                m.weight.copy_(dequantised_nf4(m.weight))
    return model


def save_adapter(model, name, base):
    """Write a PeftModel's adapter as PEFT does, without its model card and with a base path that is not this machine's."""
    folder = ADAPTERS / name
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2) + "\n")
    (folder / "adapter_model.safetensors").chmod(0o644)
    return folder


def adapter_key(parameter_name):
    """The name in adapter_model.safetensors of a PeftModel's LoRA parameter."""
    return parameter_name.replace(".default", "")


def nll(logits, labels):
    """Sum of negative log-likelihoods over supervised tokens and their number. labels[t] is the wanted ids[t] or -100; it is predicted at t-1."""
    total = torch.nn.functional.cross_entropy(logits[:-1].float(), labels[1:], ignore_index=-100, reduction="sum")
    return total, int((labels[1:] != -100).sum())
