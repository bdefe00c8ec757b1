"""The training step of bench_cuda.c with transformers and PEFT on the same GPU: random weights at the same shape, LoRA r 16 on all linear layers, bf16, the
library's own fused attention, AdamW. The base is NF4 (double-quantised) where bitsandbytes is installed, else bf16, and the row says which; once with
every layer recomputed, as QLoRA is commonly run, and once with all activations kept, as bench_cuda does.

    python3 bench/peer_gpu.py SHAPE ROWSxLENGTH ACCUMULATE [DEVICE]
    python3 bench/peer_gpu.py serve SHAPE [DEVICE]       decoding as bench_steps.c does it: bf16 weights, a static cache, greedy, the step captured in a CUDA graph

Prints the rows that deploy/gpu.sh gathers; says what is missing and ends with 0 where it cannot run.
"""
import importlib.util
import statistics
import sys
import time

SHAPES = {
    "tiny": dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=704, vocab_size=1000),
    "1b": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, intermediate_size=8192, vocab_size=128256),
    "8b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14336, vocab_size=128256),
}


def row(name, value, of, goal="-", verdict="-"):
    print("row", name, value, of, goal, verdict, sep="\t", flush=True)


def quantize(model, torch, bnb, device):
    """Every linear layer of the blocks becomes bitsandbytes' Linear4bit with the same weights."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name.endswith("lm_head"):
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        four = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4")
        four.weight = bnb.nn.Params4bit(module.weight.data.to("cpu"), requires_grad=False, compress_statistics=True, quant_type="nf4")
        setattr(parent, name.rpartition(".")[2], four.to(device))


def steps(model, ids, accumulate, optimizer, torch, device):
    def one():
        for _ in range(accumulate):
            (model(input_ids=ids, labels=ids).loss / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    one()
    seconds = []
    begin = time.time()
    while len(seconds) < 5 and (len(seconds) < 2 or time.time() - begin < 30):
        start = time.time()
        one()
        seconds.append(time.time() - start)
    return statistics.median(seconds)


def decode_seconds(model, torch, rows, length, device):
    """A step of decoding: a CUDA graph of the model's forward and arg max, or the plain calls where there is no GPU."""
    from transformers import StaticCache

    steps = 24
    cache = StaticCache(config=model.config, max_cache_len=length + steps + 8)
    ids = torch.ones((rows, 1), dtype=torch.long, device=device)
    position = torch.full((1,), length, dtype=torch.long, device=device)

    def step():
        logits = model(input_ids=ids, past_key_values=cache, cache_position=position, position_ids=position.expand(rows, 1), use_cache=True).logits
        ids.copy_(logits[:, -1].argmax(-1, keepdim=True))
        position.add_(1)

    how = "plain calls"
    run = step
    if device == "cuda":
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            run, how = graph.replay, "CUDA graph"
        except RuntimeError:
            torch.cuda.synchronize()
    position.fill_(length)
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.time()
    for _ in range(steps):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.time() - start) / steps, how


def serve(shape, device):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if device == "cuda" and not torch.cuda.is_available():
        row("peer torch", "-", "torch sees no GPU", "-", "not run")
        return
    torch.manual_seed(1)
    config = LlamaConfig(**SHAPES[shape], rope_theta=500000.0, rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=False)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    small = shape == "tiny"
    with torch.inference_mode():
        for rows, length in ((1, 128), (8 if small else 32, 256 if small else 2048), (16 if small else 128, 64 if small else 256)):
            name = f"peer torch {shape} decode x{rows}, context {length}"
            try:
                seconds, how = decode_seconds(model, torch, rows, length, device)
                row(name, f"{rows / seconds:.0f} tokens/s", f"bf16 weights, {how}, {seconds * 1e3:.3f} ms a step")
            except Exception as problem:  # another version's interface, or no memory: said, and the rest goes on
                row(name, "-", f"{type(problem).__name__}: {problem}"[:90].replace("\n", " "), "-", "not run")
        ids = torch.randint(0, config.vocab_size, (1, 4096), device=device)
        for _ in range(2):
            start = time.time()
            model(input_ids=ids, logits_to_keep=1, use_cache=False)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.time() - start
        row(f"peer torch {shape} prefill of 4096", f"{4096 / seconds:.0f} tokens/s", "bf16 weights")


def main():
    if sys.argv[1] == "serve":
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            row("peer torch", "-", "missing: " + ", ".join(missing), "-", "not run")
        else:
            serve(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "cuda")
        return
    shape, (rows, length), accumulate = sys.argv[1], map(int, sys.argv[2].split("x")), int(sys.argv[3])
    device = sys.argv[4] if len(sys.argv) > 4 else "cuda"
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        row("peer", "-", "missing: " + ", ".join(missing), "-", "not run")
        return
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    if device == "cuda" and not torch.cuda.is_available():
        row("peer", "-", "torch sees no GPU", "-", "not run")
        return
    four_bit = importlib.util.find_spec("bitsandbytes") is not None
    torch.manual_seed(1)
    config = LlamaConfig(**SHAPES[shape], rope_theta=500000.0, rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=False)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    if four_bit:
        import bitsandbytes as bnb

        quantize(model, torch, bnb, device)
    torch.set_default_dtype(torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.config.use_cache = False
    model.enable_input_require_grads()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4, weight_decay=0.0)
    ids = torch.randint(0, config.vocab_size, (rows, length), device=device)
    base = "NF4 by bitsandbytes" if four_bit else "bf16 base, no bitsandbytes here"
    for recompute in (True, False):
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        what = "recomputing" if recompute else "all activations kept"
        name = f"peer PEFT {shape}, {what}, tokens/s"
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            with torch.autocast(device, dtype=torch.bfloat16):
                seconds = steps(model, ids, accumulate, optimizer, torch, device)
        except torch.OutOfMemoryError:
            row(name, "-", "out of memory", "-", "not run")
            continue
        peak = f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if device == "cuda" else ""
        row(name, f"{rows * length * accumulate / seconds:.0f}", f"{base}; {seconds:.3f} s{peak}")


main()
