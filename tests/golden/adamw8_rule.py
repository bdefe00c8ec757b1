"""AdamW with 8-bit moments as kernels/ops.h states it, in numpy fp32: one rounding an operation, nothing fused.

    state = State(n); step(p, g, state, lr=2e-4, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, number=1)

The order of operations is that of bitsandbytes' CUDA kernel kOptimizerStatic8bit2StateBlockwise; README.md has the rule in words.
"""

import numpy as np

F = np.float32
BLOCK = 256


class State:
    def __init__(self, n):
        blocks = -(-n // BLOCK)
        self.m8, self.v8 = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
        self.m_scale, self.v_scale = np.zeros(blocks, F), np.zeros(blocks, F)


def codes(map_, x):
    """The nearest entry of an ascending map; right between two, the one of even number."""
    middle = (map_[:-1] + map_[1:]) * F(0.5)
    even = np.arange(255) % 2 == 0
    below = np.searchsorted(middle, x, side="left")  # how many bounds are < x
    tied = (below < 255) & (middle[np.minimum(below, 254)] == x)
    return (below + (tied & ~even[np.minimum(below, 254)])).astype(np.uint8)


def step(p, g, s, signed, unsigned, *, lr, beta1, beta2, eps, weight_decay, number, grad_scale=1.0):
    """Updates p and s in place."""
    lr, beta1, beta2, eps, weight_decay, grad_scale = map(F, (lr, beta1, beta2, eps, weight_decay, grad_scale))
    rate = F(float(lr) / (1.0 - float(beta1) ** number))
    root = F(np.sqrt(1.0 - float(beta2) ** number))
    decay = F(1.0 - float(lr) * float(weight_decay))
    for b, at in enumerate(range(0, len(p), BLOCK)):
        here = slice(at, at + BLOCK)
        fine = np.isfinite(g[here])
        gradient = np.where(fine, g[here], F(0)) * grad_scale
        m = beta1 * (signed[s.m8[here]] * s.m_scale[b]) + (F(1) - beta1) * gradient
        v = beta2 * (unsigned[s.v8[here]] * s.v_scale[b]) + (F(1) - beta2) * gradient * gradient
        new = (p[here] - rate * (m / (np.sqrt(v) / root + eps))) * decay
        p[here] = np.where(fine, new, p[here])
        m, v = np.where(fine, m, F(0)), np.where(fine, v, F(0))
        assert m.dtype == v.dtype == new.dtype == F
        s.m_scale[b], s.v_scale[b] = np.abs(m).max(), v.max()
        if s.m_scale[b] == 0:
            s.m8[here] = 127
        else:
            c = codes(signed, m / s.m_scale[b])
            s.m8[here] = np.where((c == 127) & np.signbit(m), 126, c)
        s.v8[here] = 0 if s.v_scale[b] == 0 else codes(unsigned, v / s.v_scale[b])
