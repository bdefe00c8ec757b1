"""Steps of AdamW with 8-bit moments: bitsandbytes' own on the CPU, and the rule of kernels/ops.h.

Run:  python tests/golden/make_adamw8.py        (needs bitsandbytes)
Writes adamw8.safetensors, n = 700 parameters (two blocks and a short one), STEPS steps. Inputs: p0 F32 [n], g F32 [STEPS, n].
  map, map_unsigned     F32 [256], bitsandbytes' dynamic maps
  lib<k>.{p, m8, v8, m_scale, v_scale}, k = 0 .. STEPS: the library's optimiser (AdamW8bit, its CPU backend) before the first step and after
                        step k, without weight decay
  rule<k>.{...}         adamw8_rule.py after step k, with weight decay and a gradient scale, and with gradients that are not finite
Settings are in the metadata. From each of the library's states one step of the rule must give the library's next state but for what
README.md says differs; that is asserted before anything is written, and the C test does it again.
"""

import numpy as np
import torch
import bitsandbytes as bnb
import bitsandbytes.functional as BF

import adamw8_rule as rule
from golden import HERE, save

N, STEPS = 700, 5
LIB = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.995, "eps": 1e-8, "weight_decay": 0.0, "grad_scale": 1.0}
RULE = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 0.7}
SIGNED, UNSIGNED = BF.create_dynamic_map(True).numpy(), BF.create_dynamic_map(False).numpy()
KEYS = {"m8": "state1", "v8": "state2", "m_scale": "absmax1", "v_scale": "absmax2"}


def inputs():
    gen = torch.Generator().manual_seed(11)
    p0 = torch.randn(N, generator=gen)
    g = torch.randn(STEPS, N, generator=gen) * torch.logspace(-4, 0, N)[torch.randperm(N, generator=gen)]
    g[:, 3] = 0.0  # never moves
    g[:, 256:512] = 0.0  # nor does a whole block
    g[1, 100] = 0.0
    return p0, g


def library(p0, g):
    """The library's states, one dict a step, the first before any."""
    p = torch.nn.Parameter(p0.clone())
    opt = bnb.optim.AdamW8bit([p], lr=LIB["lr"], betas=(LIB["beta1"], LIB["beta2"]), eps=LIB["eps"], weight_decay=0.0, min_8bit_size=1)
    zero = rule.State(N)
    states = [{"p": p0.clone(), **{k: torch.from_numpy(getattr(zero, k)) for k in KEYS}}]
    for k in range(STEPS):
        p.grad = g[k].clone()
        opt.step()
        s = opt.state[p]
        states.append({"p": p.detach().clone(), **{mine: s[theirs].clone() for mine, theirs in KEYS.items()}})
    return states


def load(state):
    s = rule.State(N)
    for k in KEYS:
        setattr(s, k, state[k].numpy().copy())
    return state["p"].numpy().copy(), s


def compare(states, g):
    for k in range(STEPS):
        p, s = load(states[k])
        rule.step(p, g[k].numpy(), s, SIGNED, UNSIGNED, number=k + 1, **LIB)
        want_p, want = load(states[k + 1])
        print(f"step {k + 1}: p off by {np.abs(p - want_p).max():.2e}", end="")
        np.testing.assert_allclose(p, want_p, rtol=1e-6, atol=1e-7)
        for scale in ("m_scale", "v_scale"):
            np.testing.assert_allclose(getattr(s, scale), getattr(want, scale), rtol=1e-6)
        for codes, map_ in (("m8", SIGNED), ("v8", UNSIGNED)):
            a, b = getattr(s, codes).astype(int), getattr(want, codes).astype(int)
            off = np.abs(map_[a] - map_[b])
            off[256:512] = 0  # a block of zeros has any codes
            near = (np.abs(a - b) <= 1) | (off <= 4e-5)
            print(f"; {codes} {np.mean(a != b):.3f} differ, {off.max():.1e} at most", end="")
            assert near.all()
        print()


def main():
    p0, g = inputs()
    states = library(p0, g)
    compare(states, g)
    out = {"map": torch.from_numpy(SIGNED), "map_unsigned": torch.from_numpy(UNSIGNED), "p0": p0, "g": g}
    for k, state in enumerate(states):
        out.update({f"lib{k}.{name}": value for name, value in state.items()})
    wild = g.clone()
    wild[2, 7], wild[2, 600], wild[3, 699] = float("inf"), float("nan"), -float("inf")
    out["g_rule"] = wild
    p, s = p0.numpy().copy(), rule.State(N)
    for k in range(STEPS):
        rule.step(p, wild[k].numpy(), s, SIGNED, UNSIGNED, number=k + 1, **RULE)
        out.update({f"rule{k + 1}.{name}": torch.from_numpy(getattr(s, name).copy()) for name in KEYS})
        out[f"rule{k + 1}.p"] = torch.from_numpy(p.copy())
    save(HERE / "adamw8.safetensors", out, "make_adamw8.py", ("bitsandbytes",), steps=str(STEPS), lib=LIB, rule=RULE)


if __name__ == "__main__":
    main()
