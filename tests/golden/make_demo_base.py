#!/usr/bin/env python3
"""Pretrains recipes/demo/base: a two-million-parameter Llama that speaks short English in ChatML.

    python make_demo_base.py --out recipes/demo/base [--steps N] [--threads N]

It invents its corpus (demo_corpus.py), trains a byte-level BPE on it, then the model: full-width
fp32 weights, bf16 products, Muon for the matrices and AdamW for the rest, documents packed into
rows with a mask that keeps them apart and positions that start again, as the trainer of this
project packs them. Questions that the demo keeps back for evaluation are taken out of the corpus,
so that the demo's "unseen wording" is unseen by the base too.

The size is set by the repository: model.safetensors stays under 4,000,000 bytes in bf16. All
widths are multiples of 64, so that NF4 blocks and matrix rows end together. A thousand steps are
4.1 million tokens, a quarter of an hour on one free core. Needs torch, tokenizers and safetensors.
"""
import argparse
import json
import math
import pathlib
import random
import time

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import demo_corpus

ROOT = pathlib.Path(__file__).resolve().parents[2]
V, C, L, H, KV, D, I = 2048, 192, 4, 6, 2, 32, 512  # vocabulary, channels, layers, heads, kv heads, head size, intermediate
T, ROWS = 256, 16                                  # tokens a row, rows a step
THETA, EPS, CONTEXT = 10000.0, 1e-5, 2048
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def plain(text):
    return "".join(c for c in text.lower() if c.isalnum() or c == " ").strip()


def kept_back():
    """The questions of the demo's evaluation sets, without case and stops."""
    out = set()
    for path in ROOT.glob("recipes/demo/*/eval*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            out.add(plain(json.loads(line)["messages"][0]["content"]))
    return out


def documents(seed):
    """An endless stream of documents without the questions that are kept back."""
    rng, banned = random.Random(seed), kept_back()
    while True:
        doc = demo_corpus.document(rng)
        if isinstance(doc, str) or not any(role == "user" and plain(text) in banned for role, text in doc):
            yield doc


def make_tokenizer():
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS), "isolated"),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    stream = documents("tokenizer")
    docs = [next(stream) for _ in range(60000)]
    text = (d if isinstance(d, str) else "\n".join(role + "\n" + t for role, t in d) for d in docs)
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=V, special_tokens=[AddedToken(t, special=True, normalized=False) for t in (END, START, STOP)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    assert tok.get_vocab_size() == V, tok.get_vocab_size()
    return tok


class Rows:
    """Packs documents into rows of T tokens: ids, positions, document numbers, loss weights."""

    def __init__(self, tok, seed):
        self.stream, self.tok = documents(seed), tok
        self.end, self.start, self.stop = (tok.token_to_id(t) for t in (END, START, STOP))
        self.newline = tok.encode("\n").ids
        self.cache = {}

    def encode(self, text):
        return self.tok.encode(text).ids

    def document(self):
        doc = next(self.stream)
        if isinstance(doc, str):
            ids = self.encode(doc) + [self.end]
            return ids, [0.5] * len(ids)
        ids, weight = [], []
        for role, text in doc:
            head = [self.start] + self.encode(role + "\n")
            body = self.encode(text) + [self.stop]
            ids += head + body + self.newline
            w = 1.0 if role == "assistant" else 0.3
            weight += [0.05] * len(head) + [w] * len(body) + [0.05] * len(self.newline)
        return ids, weight

    def batch(self, rows):
        ids = torch.zeros(rows, T + 1, dtype=torch.long)
        pos = torch.zeros(rows, T + 1, dtype=torch.long)
        doc = torch.full((rows, T + 1), -1)
        weight = torch.zeros(rows, T + 1)
        for r in range(rows):
            at, n = 0, 0
            while at < T + 1:
                i, w = self.document()
                m = min(len(i), T + 1 - at)
                ids[r, at:at + m] = torch.tensor(i[:m])
                weight[r, at + 1:at + m] = torch.tensor(w[1:m])
                pos[r, at:at + m] = torch.arange(m)
                doc[r, at:at + m] = n
                at, n = at + m, n + 1
        return ids, pos, doc, weight


def parameters():
    p = {"model.embed_tokens.weight": torch.randn(V, C) * 0.05, "model.norm.weight": torch.ones(C)}
    for l in range(L):
        m = f"model.layers.{l}."
        p[m + "input_layernorm.weight"] = torch.ones(C)
        p[m + "post_attention_layernorm.weight"] = torch.ones(C)
        for name, n, k in (("self_attn.q_proj", H * D, C), ("self_attn.k_proj", KV * D, C), ("self_attn.v_proj", KV * D, C), ("self_attn.o_proj", C, H * D),
                           ("mlp.gate_proj", I, C), ("mlp.up_proj", I, C), ("mlp.down_proj", C, I)):
            scale = 1 / math.sqrt(k) / (math.sqrt(2 * L) if name.endswith(("o_proj", "down_proj")) else 1)
            p[m + name + ".weight"] = torch.randn(n, k) * scale
    return {k: v.requires_grad_() for k, v in p.items()}


def norm(x, w):
    return F.rms_norm(x, (C,), w, EPS)


def rope(x, pos):
    """x[B,H,T,D], rotation of the two halves as Hugging Face's Llama does it."""
    freq = THETA ** (-torch.arange(0, D, 2).float() / D)
    angle = pos[:, None, :, None].float() * freq
    cos, sin = angle.cos(), angle.sin()
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def forward(p, ids, pos, doc):
    B, t = ids.shape
    mask = (doc[:, :, None] == doc[:, None, :]).tril()[:, None]
    x = F.embedding(ids, p["model.embed_tokens.weight"])
    for l in range(L):
        w = lambda name: p[f"model.layers.{l}.{name}.weight"]
        h = norm(x, w("input_layernorm"))
        q = rope(F.linear(h, w("self_attn.q_proj")).view(B, t, H, D).transpose(1, 2), pos)
        k = rope(F.linear(h, w("self_attn.k_proj")).view(B, t, KV, D).transpose(1, 2), pos)
        v = F.linear(h, w("self_attn.v_proj")).view(B, t, KV, D).transpose(1, 2)
        k, v = k.repeat_interleave(H // KV, 1), v.repeat_interleave(H // KV, 1)
        y = F.scaled_dot_product_attention(q, k, v.to(q.dtype), attn_mask=mask)
        x = x + F.linear(y.transpose(1, 2).reshape(B, t, H * D), w("self_attn.o_proj"))
        h = norm(x, w("post_attention_layernorm"))
        x = x + F.linear(F.silu(F.linear(h, w("mlp.gate_proj"))) * F.linear(h, w("mlp.up_proj")), w("mlp.down_proj"))
    return F.linear(norm(x, p["model.norm.weight"]), p["model.embed_tokens.weight"])


def loss_of(p, batch):
    ids, pos, doc, weight = batch
    logits = forward(p, ids[:, :-1], pos[:, :-1], doc[:, :-1]).float()
    losses = F.cross_entropy(logits.reshape(-1, V), ids[:, 1:].reshape(-1), reduction="none")
    w = weight[:, 1:].reshape(-1)
    answers = w == 1.0
    return (losses * w).sum() / w.sum(), losses[answers].mean()


class Muon:
    """Momentum, then the nearest orthogonal matrix by five Newton-Schulz steps (Jordan et al. 2024, their quintic), scaled to AdamW's
    size of update (0.2 sqrt(max(n, k)), Liu et al. 2025)."""

    def __init__(self, params, momentum=0.95, decay=0.02):
        self.params, self.momentum, self.decay = params, momentum, decay
        self.state = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, lr):
        for p, m in zip(self.params, self.state):
            m.mul_(self.momentum).add_(p.grad)
            x = p.grad.add(m, alpha=self.momentum)
            flip = x.shape[0] > x.shape[1]
            x = (x.T if flip else x) / (x.norm() + 1e-7)
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            p.mul_(1 - lr * self.decay).add_(x.T if flip else x, alpha=-lr * 0.2 * math.sqrt(max(p.shape)))
            p.grad = None


def write(out, p, tok):
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().to(torch.bfloat16).contiguous() for k, v in p.items()}, out / "model.safetensors", metadata={"format": "pt"})
    assert (out / "model.safetensors").stat().st_size < 4_000_000
    stop, end = tok.token_to_id(STOP), tok.token_to_id(END)
    files = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": C, "intermediate_size": I, "num_hidden_layers": L,
            "num_attention_heads": H, "num_key_value_heads": KV, "head_dim": D, "vocab_size": V, "max_position_embeddings": CONTEXT,
            "rms_norm_eps": EPS, "rope_theta": THETA, "rope_scaling": None, "hidden_act": "silu", "tie_word_embeddings": True,
            "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": stop, "pad_token_id": end,
            "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16"},
        "generation_config.json": {"bos_token_id": None, "eos_token_id": [stop, end], "pad_token_id": end, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "eos_token": STOP,
            "pad_token": END, "unk_token": None, "model_max_length": CONTEXT, "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE},
    }
    for name, value in files.items():
        (out / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tok.save(str(out / "tokenizer.json"), pretty=False)


@torch.no_grad()
def reply(p, tok, question, limit=60):
    ids = [tok.token_to_id(START)] + tok.encode("user\n" + question).ids + [tok.token_to_id(STOP)] + tok.encode("\n").ids
    ids += [tok.token_to_id(START)] + tok.encode("assistant\n").ids
    n = len(ids)
    while len(ids) < n + limit:
        x = torch.tensor([ids])
        ids.append(int(forward(p, x, torch.arange(len(ids))[None], torch.zeros_like(x))[0, -1].argmax()))
        if ids[-1] in (tok.token_to_id(STOP), tok.token_to_id(END)):
            break
    return tok.decode(ids[n:], skip_special_tokens=True)


def main():
    arg = argparse.ArgumentParser()
    arg.add_argument("--out", type=pathlib.Path, required=True)
    arg.add_argument("--steps", type=int, default=1000)
    arg.add_argument("--lr", type=float, default=3e-3)
    arg.add_argument("--threads", type=int, default=1)
    arg = arg.parse_args()
    torch.set_num_threads(arg.threads)
    torch.manual_seed(1)
    tok = make_tokenizer()
    rows, p = Rows(tok, "train"), parameters()
    held = Rows(tok, "held out").batch(ROWS)
    matrices = [v for k, v in p.items() if v.ndim == 2 and "embed" not in k]
    rest = [v for k, v in p.items() if v.ndim == 1 or "embed" in k]
    print(f"{sum(v.numel() for v in p.values())} parameters, {arg.steps} steps of {ROWS * T} tokens", flush=True)
    muon, adamw = Muon(matrices), torch.optim.AdamW(rest, lr=arg.lr, betas=(0.9, 0.98), weight_decay=0.0)
    began, shown = time.time(), 0.0
    for step in range(arg.steps):
        lr = arg.lr * min(1.0, (step + 1) / 40) * (0.02 + 0.98 * min(1.0, (arg.steps - step) / (0.6 * arg.steps)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = loss_of(p, rows.batch(ROWS))
        loss.backward()
        muon.step(lr)
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        shown = loss.item() if step == 0 else 0.95 * shown + 0.05 * loss.item()
        if (step + 1) % 50 == 0:
            with torch.no_grad():
                answers = loss_of(p, held)[1].item()
            print(f"step {step + 1} loss {shown:.4f} held-out answers {answers:.4f} {(step + 1) * ROWS * T / (time.time() - began):.0f} tokens/s", flush=True)
        if (step + 1) % 300 == 0 or step + 1 == arg.steps:
            write(arg.out, p, tok)
            for q in ("Hello!", "When are you open?", "How do I get my money back?", "What is a ferry?", "Tell me a story."):
                print(f"  {q} -> {reply(p, tok, q)}", flush=True)


if __name__ == "__main__":
    main()
