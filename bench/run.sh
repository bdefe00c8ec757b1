#!/usr/bin/env bash
# All benchmarks, with the peer beside ours in the same run where a Python with torch, transformers, peft and bitsandbytes is given:
#     PEER_PYTHON=path/to/python ./dev bench
set -euo pipefail
cd "$(dirname "$0")/.."
bin=build/release/bench
echo "== products"; "$bin/bench_products"
echo "== the other operations"; "$bin/bench_ops"
echo "== training step, 100M shape, 512 tokens"
"$bin/bench_train" 100m 512 6 1 2
[ -n "${PEER_PYTHON:-}" ] && "$PEER_PYTHON" bench/peer_train.py bench-models/100m 512 6 2 2>/dev/null
echo "== serving, 100M shape"
"$bin/bench_serve" 100m 64 32 2
[ -n "${PEER_PYTHON:-}" ] && "$PEER_PYTHON" bench/peer_decode.py bench-models/100m 64 32 2 2>/dev/null
exit 0
