#!/usr/bin/env bash
# What each kernel of the CUDA module takes on each architecture, from ptxas' own words, and the gate over it.
#
#     tests/cuda/resources.sh kernels.txt OBJECT.o...       (kernels/cuda/nvcc.sh left OBJECT.o.ptxas beside each)
#
# A kernel may take 128 registers (so that two blocks of 256 threads share a multiprocessor), spills nothing and keeps nothing in local
# memory; tests/cuda/resources.limits lists the exceptions. Writes the table and fails when a kernel breaks its limit.
set -euo pipefail
table=$1
shift
logs=()
for object in "$@"; do [ -f "$object.ptxas" ] && logs+=("$object.ptxas"); done
limits=$(dirname "$0")/resources.limits
[ ${#logs[@]} -gt 0 ] || { echo "resources.sh: no kernel was compiled"; exit 1; }
plain=cat
command -v c++filt >/dev/null && plain="c++filt -p"
{
  printf '%-44s %-8s %9s %7s %6s %7s\n' kernel arch registers shared local spilled
  awk '
    /Compiling entry function/ { split($0, q, "\047"); kernel = q[2]; arch = q[4]; local = spilled = 0; inside = 1 }
    inside && /bytes stack frame/ { local = $1; spilled = $5 + $9 }
    inside && /Used [0-9]+ registers/ {
      registers = shared = 0
      for (i = 1; i <= NF; i++) {
        if ($(i + 1) ~ /^registers/) registers = $i
        if ($i == "bytes" && $(i + 1) ~ /^smem/) shared = $(i - 1)
      }
      print kernel, arch, registers, shared, local, spilled
      inside = 0
    }' "${logs[@]}" | $plain | sed -E 's/^void //' | sort -u | awk '{
      # A template argument may hold spaces: the five numbers are the last fields.
      name = $1; for (i = 2; i <= NF - 5; i++) name = name " " $i
      printf "%-44s %-8s %9d %7d %6d %7d\n", name, $(NF - 4), $(NF - 3), $(NF - 2), $(NF - 1), $NF
    }'
} >"$table.new"
mv "$table.new" "$table"
awk -v limits="$limits" -v table="$table" '
  BEGIN {
    while ((getline line < limits) > 0) {
      if (line ~ /^[[:space:]]*(#|$)/) continue
      split(line, f, /[[:space:]]+/)
      pattern[++n] = f[1]; on[n] = f[2]; most[n] = f[3]; may_local[n] = f[4]; may_spill[n] = f[5]
    }
  }
  NR == 1 { next }
  {
    arch = $(NF - 4); registers = $(NF - 3); local = $(NF - 1); spilled = $NF
    allowed = 128; locals = spills = 0
    for (i = 1; i <= n; i++) if ($1 ~ "^" pattern[i] && (on[i] == "*" || on[i] == arch)) { allowed = most[i]; locals = may_local[i]; spills = may_spill[i] }
    kernels++
    if (registers > most_seen) most_seen = registers
    if (registers > allowed || local > locals || spilled > spills) {
      printf "%s on %s: %d registers of %d, %d bytes of local memory of %d, %d bytes spilled of %d\n", $1, arch, registers, allowed, local, locals, spilled, spills
      broken++
    }
  }
  END {
    printf "%d kernels: at most %d registers, %d over their limits (%s)\n", kernels, most_seen, broken, table
    exit broken || !kernels
  }' "$table"
