#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of at most nine minutes: the CUDA tests on the real module, compute-sanitizer over the quick
# ones, the benchmarks against ceilings measured beside them, the peer at the same work, and one table at the end.
#
#     gpu.sh [--emulated MODULE] [--seconds N] [BUNDLE]       (./dev gpu; BUNDLE: the folder of this script, or ./bundle)
#
# Needs the bundle, a driver and CUDA's libraries (deploy/cuda_libraries.sh finds those of Python packages), nothing else. A step that fails
# or outlives its time is a row of the table and the next one goes on. Exit code: 0 all tests passed; 1 one failed; 2 no GPU.
# The log, and table.tsv for machines, go to $OUT where it is set, else to BUNDLE/gpu-log.
#
# --emulated: the same list of tests on the emulation of CUDA (tests/cuda_emu), no sanitizer and no benchmarks: so CI tests this script.
set -uo pipefail
started=$SECONDS
most_seconds=530 emulated= bundle=
while [ $# -gt 0 ]; do
  case $1 in
    --emulated) emulated=$(readlink -f "$2"); shift ;;
    --seconds) most_seconds=$2; shift ;;
    -*) echo "gpu.sh: unknown option $1" >&2; exit 2 ;;
    *) bundle=$1 ;;
  esac
  shift
done
[ -n "$bundle" ] || { bundle=$(dirname "$(readlink -f "$0")"); [ -d "$bundle/bin" ] || bundle=bundle; }
[ -x "$bundle/bin/lorikeet" ] || { echo "gpu.sh: $bundle is no bundle; make one with ./dev bundle where nvcc is, and name its folder" >&2; exit 2; }
cd "$bundle" || exit 2
bundle=$PWD
out=${OUT:-$bundle/gpu-log}
mkdir -p "$out"
log=$out/gpu.log table=$out/table.tsv
: >"$log" >"$table"
export LK_SOURCE_DIR=$bundle LK_BINARY_DIR=$bundle
. ./cuda_libraries.sh
if [ -n "$emulated" ]; then export LK_CUDA_MODULE=$emulated; else unset LK_CUDA_MODULE; fi

failed=0
left() { echo $((most_seconds - (SECONDS - started))); }
row() { printf '%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" "$5" >>"$table"; } # name, value, of what, goal, verdict
say() { printf '%s\n' "$*" | tee -a "$log"; }
# within LIMIT COMMAND...: its output to the log and to $said; at most LIMIT seconds, and never past the end
within() {
  local limit=$1 room
  shift
  room=$(left)
  [ "$room" -lt 5 ] && { said="no time left"; return 125; }
  [ "$limit" -gt "$room" ] && limit=$room
  said=$(timeout -k 5 "$limit" "$@" 2>&1)
  local status=$?
  printf '\n== %s: status %d\n%s\n' "$*" $status "$said" >>"$log"
  return $status
}
verdict() { # of a status
  case $1 in 0) echo pass ;; 124 | 137) echo "out of time" ;; 125) echo "not run" ;; *) echo FAIL ;; esac
}

say "bundle of commit $(cat commit 2>/dev/null), $(date -u '+%Y-%m-%d %H:%M UTC'), $(uname -m), $(nproc) cores"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader 2>&1 | tee -a "$log"
within 60 bin/lorikeet doctor
doctor=$said
say "$(grep '^cuda' <<<"$doctor")"
if ! grep -q '^cuda *yes' <<<"$doctor"; then
  echo "gpu.sh: no GPU can be used here: $(sed -n 's/^cuda *no: //p' <<<"$doctor")" >&2
  exit 2
fi

# ---- the tests
quick=()
for test in bin/test_cuda_*; do
  [ -x "$test" ] || continue
  name=${test#bin/test_}
  before=$SECONDS
  within 120 "$test"
  status=$?
  [ $status = 0 ] && [ $((SECONDS - before)) -le 4 ] && quick+=("$test")
  [ $status = 0 ] || { failed=1; say "$(tail -n 12 <<<"$said")"; }
  row "test ${name/_//}" "$(grep -c '\[       OK' <<<"$said") of $(grep -c '\[ RUN' <<<"$said")" "$((SECONDS - before)) s" all "$(verdict $status)"
done
grep -q '^test' "$table" || { say "no bin/test_cuda_* in the bundle"; failed=1; }

# ---- the program: the demo's recipe, a few steps twice on the GPU and once on the CPU, then all of it
train() { # train DEVICE STEPS: leaves "last held-out digest" in $trained
  local work=$bundle/gpu-work
  within 100 bin/lorikeet train recipes/demo/harbor.json --device "$1" --set batch.steps="$2" --set eval.every=0 --out "$work" --fresh --quiet
  local status=$?
  trained=$(sed -nE 's/.*last loss ([0-9.]+), held-out loss [0-9.]+ -> ([0-9.]+), .*adapter ([0-9a-f]+)$/\1 \2 \3/p' <<<"$said")
  rm -rf "$work"
  [ $status = 0 ] && [ -n "$trained" ]
}
few=$([ -n "$emulated" ] && echo 2 || echo 5)
if train cuda $few && first=$trained && train cuda $few && train_again=$trained && train cpu $few; then
  same=$([ "$first" = "$train_again" ] && echo pass || echo FAIL)
  close=$(awk -v a="${first%% *}" -v b="${trained%% *}" 'BEGIN {d = a > b ? a - b : b - a; print (d <= 0.01 * b ? "pass" : "FAIL")}')
  row "program: demo recipe twice" "${first##* }" "${train_again##* }, $few steps" "the same adapter" "$same"
  row "program: demo recipe, last loss" "${first%% *}" "${trained%% *} on the CPU, $few steps" "within 1%" "$close"
  [ "$same$close" = passpass ] || failed=1
else
  say "$(tail -n 3 <<<"$said")"
  row "program: demo recipe" "-" "$(tail -n 1 <<<"$said" | cut -c1-90)" "trains" FAIL
  failed=1
fi
if [ -z "$emulated" ]; then
  if train cuda 80; then
    learnt=$(awk '{print ($2 <= 0.1 ? "pass" : "FAIL")}' <<<"$trained")
    row "program: demo recipe, held-out loss" "$(cut -d' ' -f2 <<<"$trained")" "80 steps" "<= 0.1" "$learnt"
    [ "$learnt" = pass ] || failed=1
  else
    row "program: demo recipe, held-out loss" "-" "$(tail -n 1 <<<"$said" | cut -c1-90)" "<= 0.1" FAIL
    failed=1
  fi
fi

# ---- compute-sanitizer
find_sanitizer() {
  command -v compute-sanitizer && return
  local place
  for place in "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer "${CUDA_HOME:-/usr/local/cuda}"/compute-sanitizer/compute-sanitizer \
    $(python3 -c 'import glob, importlib.util as u
s = u.find_spec("nvidia")
for p in (s.submodule_search_locations if s else []): print(*glob.glob(p + "/*/bin/compute-sanitizer"))' 2>/dev/null); do
    [ -x "$place" ] && { echo "$place"; return; }
  done
  return 1
}
if [ -z "$emulated" ]; then
  if sanitizer=$(find_sanitizer); then
    for tool in memcheck racecheck; do
      clean=0 unfinished=0 wrong=()
      end=$((SECONDS + 75))
      for test in "${quick[@]}"; do
        [ $SECONDS -lt $end ] || { unfinished=$((unfinished + 1)); continue; }
        within $((end - SECONDS + 5)) "$sanitizer" --tool "$tool" --error-exitcode 99 "$test"
        status=$?
        case $status in
          0) clean=$((clean + 1)) ;;
          124 | 137 | 125) unfinished=$((unfinished + 1)) ;;
          *) wrong+=("${test#bin/}"); say "$tool: ${test#bin/}"; say "$(grep -E '^=========' <<<"$said" | head -12)" ;;
        esac
      done
      [ ${#wrong[@]} = 0 ] || failed=1
      row "compute-sanitizer $tool" "$clean clean" "${#quick[@]} tests, $unfinished out of time" "none wrong" \
        "$([ ${#wrong[@]} = 0 ] && { [ $clean -gt 0 ] && echo pass || echo "not run"; } || echo "FAIL ${wrong[*]}")"
    done
  else
    row "compute-sanitizer" "-" "not found on this machine" "none wrong" "not run"
  fi
fi

# ---- benchmarks: each line of a program's that begins with "row" is a row: name, value, of what, goal, verdict
bench() { # bench LIMIT COMMAND...
  within "$@"
  local status=$? name=${*:2}
  grep -P '^row\t' <<<"$said" | cut -f2- >>"$table"
  [ $status = 0 ] || row "$name" "-" "$(tail -n 1 <<<"$said" | cut -c1-90)" "-" "$(verdict $status)"
}
measure_memory() { # what the driver says is taken, once every 200 ms, into a file
  nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 >"$1" 2>/dev/null &
  sampler=$!
}
if [ -z "$emulated" ]; then
  bench 60 bin/bench_cuda --device cuda ops
  bench 75 bin/bench_steps --device cuda
  bench 90 bin/bench_cuda --device cuda train 8b 2x2048 4
  if command -v python3 >/dev/null; then bench 60 python3 bench/peer_gpu.py serve 8b; fi
  bench 60 bin/bench_decode --device cuda
  bench 60 bin/bench_steps --device cuda --kv int8
  if command -v nvidia-smi >/dev/null; then
    measure_memory "$out/memory.txt"
    sleep 1
    idle=$(tail -n 1 "$out/memory.txt")
    bench 60 bin/bench_cuda --device cuda memory 8b 1x2048
    kill "$sampler" 2>/dev/null
    peak=$(sort -n "$out/memory.txt" | tail -n 1)
    row "8b 1x2048, memory the driver counts" "$((peak - idle)) MiB" "with the context and CUDA's libraries" "-" "-"
  else
    bench 60 bin/bench_cuda --device cuda memory 8b 1x2048
  fi
  bench 90 bin/bench_cuda --device cuda memory 70b 1x8192
  if command -v python3 >/dev/null; then bench 120 python3 bench/peer_gpu.py 8b 2x2048 4; else row "peer" "-" "no python3" "-" "not run"; fi
  # The ratio of the two, where both ran.
  awk -F'\t' '/^8b train step, tokens\/s/ {ours = $2} /^peer .*tokens\/s/ && $2 + 0 > peer {peer = $2 + 0; which = $1}
    END { if (ours && peer) printf "8b train step / %s\t%.2fx\tin the same call\t>= 3x\t%s\n", which, ours / peer, (ours >= 3 * peer ? "pass" : "MISSED") }' "$table" >>"$table.new"
  cat "$table.new" >>"$table"; rm -f "$table.new"
fi

say ""
{
  printf 'name\tvalue\tof\tgoal\tverdict\n'
  cat "$table"
} | awk -F'\t' '{for (i = 1; i <= 5; i++) {cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i)}}
  END {for (r = 1; r <= NR; r++) printf "%-*s  %*s  %-*s  %-*s  %s\n", width[1], cell[r, 1], width[2], cell[r, 2], width[3], cell[r, 3], width[4], cell[r, 4], cell[r, 5]}' |
  tee -a "$log"
say ""
say "$((SECONDS - started)) s; log in $log"
exit $failed
