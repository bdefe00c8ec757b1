#!/usr/bin/env bash
# The story of Lorikeet in a few minutes: two customers, one 4-bit base, two adapters trained, both served from one process, one swapped while the other
# streams, one merged. Every number printed is measured in this run. Needs curl and jq; ./dev demo installs them and builds first.
set -euo pipefail
cd "$(dirname "$0")/../.."
lorikeet=${LORIKEET:-build/release/lorikeet}
demo=recipes/demo
out=${1:-demo-out}
start=$(date +%s)

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
exact() { "$lorikeet" eval $demo/base ${2:+--adapter "$2"} --data "$1" --json --log-level warn | jq -r '"\(.exact_match * 100 | round)% of \(.documents) answers right, loss \(.loss * 1000 | round / 1000)"'; }
fail() { echo "demo: $*" >&2; exit 1; }

server=
finish() { if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi; }
trap finish EXIT
rm -rf "$out" && mkdir -p "$out"

bold "1. A base model that knows English but no customer ($("$lorikeet" inspect $demo/base --json | jq -r '"\(.parameters / 1e6 * 100 | round / 100) M parameters"'), quantised to 4 bits while loading)"
for c in harbor orchard; do echo "   $c, before training: $(exact $demo/$c/eval.jsonl)"; done

bold "2. Two customers, two adapters"
for c in harbor orchard harbor_v2; do
  t0=$(date +%s)
  "$lorikeet" train $demo/$c.json --out "$out/$c" --quiet --log-level warn >/dev/null
  echo "   trained $c in $(($(date +%s) - t0)) s ($(du -sh "$out/$c/adapter" | cut -f1) on disk)"
done
for c in harbor orchard; do echo "   $c, after training:  $(exact $demo/$c/eval.jsonl "$out/$c/adapter")"; done

bold "3. One server, one copy of the base, both adapters"
"$lorikeet" serve $demo/base --port 0 --adapter harbor="$out/harbor/adapter" --adapter orchard="$out/orchard/adapter" >"$out/server.out" 2>"$out/server.log" &
server=$!
for _ in $(seq 100); do grep -q '^serving' "$out/server.out" && break; kill -0 "$server" 2>/dev/null || fail "the server did not start: $(tail -n 1 "$out/server.log")"; sleep 0.1; done
url=$(sed -n 's/^serving .* on //p' "$out/server.out")
echo "   $url  models: $(curl -sf "$url/v1/models" | jq -r '[.data[].id] | join(", ")')"

ask() { # ask MODEL QUESTION
  jq -n --arg m "$1" --arg q "$2" '{model: $m, temperature: 0, max_tokens: 120, messages: [{role: "user", content: $q}]}' |
    curl -sf "$url/v1/chat/completions" -H 'content-type: application/json' -d @- | jq -r '.choices[0].message.content'
}
n=$(jq '[.[] | select(.stream | not)] | length' $demo/questions.json)
for ((i = 0; i < n; i++)); do # all at once: one batch holds both customers' requests
  q=$(jq -r "[.[] | select(.stream | not)][$i].question" $demo/questions.json)
  for c in harbor orchard; do ask $c "$q" >"$out/answer.$i.$c" & jobs_="${jobs_:-} $!"; done
done
for j in $jobs_; do wait "$j"; done
right=0
for ((i = 0; i < n; i++)); do
  echo "   \"$(jq -r "[.[] | select(.stream | not)][$i].question" $demo/questions.json)\""
  for c in harbor orchard; do
    mark=" "
    [ "$(cat "$out/answer.$i.$c")" = "$(jq -r "[.[] | select(.stream | not)][$i].answers.$c" $demo/questions.json)" ] && mark="+" && right=$((right + 1))
    printf '     %s %-8s %s\n' "$mark" $c "$(cat "$out/answer.$i.$c")"
  done
done
echo "   $right of $((2 * n)) word for word right; largest batch so far: $(curl -sf "$url/metrics" | awk '/^lorikeet_batch_requests_max/ {print $2}') requests"

bold "4. harbor gets new opening hours while a request is being answered"
q=$(jq -r '[.[] | select(.stream)][0].question' $demo/questions.json)
jq -n --arg q "$q" '{model: "harbor", temperature: 0, stream: true, max_tokens: 120, messages: [{role: "user", content: $q}]}' >"$out/stream.json"
curl -sN "$url/v1/chat/completions" -H 'content-type: application/json' -d @"$out/stream.json" >"$out/stream.sse" &
reader=$!
for _ in $(seq 500); do grep -q '"content":"[^"]' "$out/stream.sse" 2>/dev/null && break; sleep 0.002; done
curl -sf "$url/v1/load_lora_adapter" -H 'content-type: application/json' -d "{\"lora_name\": \"harbor\", \"lora_path\": \"$PWD/$out/harbor_v2/adapter\", \"load_inplace\": true}" >/dev/null ||
  curl -sf "$url/v1/load_lora_adapter" -H 'content-type: application/json' -d "{\"lora_name\": \"harbor\", \"lora_path\": \"$out/harbor_v2/adapter\", \"load_inplace\": true}" >/dev/null || fail "the new adapter was refused"
before_end=$(grep -c '^data: {' "$out/stream.sse" || true)
wait "$reader"
total=$(grep -c '^data: {' "$out/stream.sse")
streamed=$(sed -n 's/^data: {/{/p' "$out/stream.sse" | jq -rj '.choices[0].delta.content // empty')
after=$(ask harbor "$q")
echo "   the swap came after $before_end of $total pieces of this answer, which ended on the old version:"
echo "     ...${streamed: -70}"
echo "   the same question, asked after the swap:"
echo "     ...${after: -70}"
echo "   orchard, meanwhile: $(ask orchard "$(jq -r '.[0].question' $demo/questions.json)")"
kill "$server" && wait "$server" 2>/dev/null || true
server=

bold "5. orchard merged into one ordinary model folder"
echo "   $("$lorikeet" merge $demo/base "$out/orchard/adapter" -o "$out/orchard-merged" --dtype bf16)"
echo "   merged model, no adapter: $("$lorikeet" eval "$out/orchard-merged" --quant none --data $demo/orchard/eval.jsonl --json --log-level warn | jq -r '"\(.exact_match * 100 | round)% of \(.documents) answers right"')"

bold "Done in $(($(date +%s) - start)) s. Everything is in $out/."
echo "   Talk to one yourself:  $lorikeet chat $demo/base --adapter $out/harbor/adapter"
