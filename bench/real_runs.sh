#!/usr/bin/env bash
# Two real training runs whose held-out losses docs/runs.md quotes: stories260K (a pretrained Llama of 260 thousand parameters) on tinyshakespeare and on GSM8K.
# The data is not in the tree: LK_SHARED (or ../shared) holds models/stories260K, data/tinyshakespeare and data/gsm8k.
set -euo pipefail
cd "$(dirname "$0")/.."
shared=$(realpath "${LK_SHARED:-../shared}")
lorikeet=$(realpath build/release/lorikeet)
out=runs/real
[ -d "$shared/models/stories260K" ] || { echo "skipped: $shared/models/stories260K is not here (set LK_SHARED)"; exit 0; }
mkdir -p $out

# The last tenth of the plays is held out.
text=$shared/data/tinyshakespeare/input.txt
cut=$(($(stat -c %s "$text") * 9 / 10))
jq -Rs '{text: .}' -c < <(head -c $cut "$text") >$out/shakespeare-train.jsonl
jq -Rs '{text: .}' -c < <(tail -c +$((cut + 1)) "$text") >$out/shakespeare-eval.jsonl

recipe() { # recipe NAME TRAIN EVAL FORMAT LOSS_ON STEPS
  jq -n --arg base "$shared/models/stories260K" --arg train "$2" --arg eval "$3" --argjson format "$4" --arg loss "$5" --argjson steps "$6" '{
    base: {path: $base, quant: "nf4"}, adapter: {r: 16, alpha: 32, targets: "all-linear"},
    data: {train: [{path: $train, format: $format}], eval: [{path: $eval, format: $format}], max_length: 256, loss_on: $loss},
    optim: {name: "adamw", lr: 0.003, clip: 1.0}, schedule: {name: "cosine", warmup_ratio: 0.03},
    batch: {rows: 8, accumulate: 1, steps: $steps}, eval: {every: 100}, checkpoint: {every: 100, keep: 1}, seed: 1}' >"$out/$1.json"
}
recipe shakespeare "$(realpath $out)/shakespeare-train.jsonl" "$(realpath $out)/shakespeare-eval.jsonl" '"text"' all 400
recipe gsm8k "$shared/data/gsm8k/train.jsonl" "$shared/data/gsm8k/test.jsonl" '{"prompt": "question", "completion": "answer"}' completion 400
for run in shakespeare gsm8k; do
  "$lorikeet" train $out/$run.json --out $out/$run --fresh "$@"
done
