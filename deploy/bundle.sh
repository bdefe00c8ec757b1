#!/usr/bin/env bash
# A folder that runs on another machine, of the same distribution or a newer one: the program, the CUDA module where it was built, benchmarks,
# the tests that a GPU is for and what they read, and every shared library except glibc's, the compiler's and CUDA's.
#
#     deploy/bundle.sh [DIR]        (./dev bundle; expects build/release, and build/cuda where there is nvcc)
#
#     DIR/lorikeet        the program; finds CUDA's libraries also where Python packages keep them
#     DIR/gpu.sh          what ./dev gpu runs: tests, sanitizers, benchmarks
#     DIR/bin DIR/lib     programs and libraries; programs find ../lib by their RPATH
#     DIR/tests DIR/recipes DIR/bench      what tests and benchmarks read
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-bundle}
most_mib=64

# Not taken along: glibc, which must be the machine's own, and the compiler's run-time libraries, of which the machine's are at least as new
# (an older one in front of them would break what was built with a newer compiler).
theirs='/(ld-linux[^/]*|libc|libm|libdl|librt|libpthread|libresolv|libnsl|libutil|libstdc\+\+|libgcc_s)\.so'

rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/tests" "$out/recipes" "$out/bench"
install -s build/release/lorikeet "$out/bin/"
for program in build/release/bench/bench_* build/release/tests/test_cuda_*; do
  [ -x "$program" ] && [ -f "$program" ] || continue
  case $program in */test_cuda_emu_*) continue ;; esac # tests of the emulation itself
  readelf -d "$program" | grep -qE 'NEEDED.*(dnnl|openblas)' && continue # compares with libraries that only this machine has
  install -s "$program" "$out/bin/"
done
if [ -f build/cuda/liblorikeet_cuda.so ]; then
  install -s build/cuda/liblorikeet_cuda.so "$out/lib/"
  cp build/cuda/kernels.txt "$out/"
else
  echo "no CUDA module in build/cuda: this bundle computes on the CPU only"
fi
ldd "$out"/bin/* | awk '$3 ~ /^\// {print $3}' | grep -vE "$theirs" | sort -u | while read -r library; do cp -L "$library" "$out/lib/"; done

# libarchive reads XML (in xar archives, which no dataset comes in) by libxml2, and that asks ICU for alphabets: 31 MB of tables that nobody
# here reads. An empty table takes their place, as ICU's own "stubdata" does where its data come separately.
for data in "$out"/lib/libicudata.so.*; do
  [ -e "$data" ] || continue
  name=$(basename "$data") version=${data##*.so.}
  printf 'const struct { unsigned short header; unsigned char magic[2]; unsigned short info, none; unsigned char how[4], format[4], versions[8], pad[8]; unsigned count[2]; int names[4]; } icudt%s_dat = {32, {0xda, 0x27}, 20, 0, {0, 0, 2, 0}, "ToCP", {1}, {0}, {0}, {0}};\n' "${version%%.*}" |
    cc -shared -fPIC -x c - -Wl,-soname,"$name" -o "$data"
done
chmod u+w "$out"/lib/*

cp -r tests/golden tests/data "$out/tests/"
cp -r recipes/demo recipes/recipe.schema.json "$out/recipes/"
find "$out/tests" "$out/recipes" \( -name '*.py' -o -name '*.c' -o -name __pycache__ \) -prune -exec rm -rf {} +
cp bench/peer_*.py "$out/bench/" 2>/dev/null || true
cp deploy/gpu.sh deploy/cuda_libraries.sh "$out/"
git rev-parse --short=12 HEAD >"$out/commit" 2>/dev/null || echo unknown >"$out/commit"

cat >"$out/lorikeet" <<'TEXT'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
. "$here/cuda_libraries.sh"
exec "$here/bin/lorikeet" "$@"
TEXT
chmod +x "$out/lorikeet"

# What has to travel is the archive; programs that share their libraries' code compress well together.
bytes=$(tar cz -C "$(dirname "$out")" "$(basename "$out")" | wc -c)
echo "$out: $(du -sm "$out" | cut -f1) MiB in $(find "$out" -type f | wc -l) files; as a .tgz $(((bytes + 1048575) / 1048576)) MiB, of at most $most_mib"
du -sb "$out"/* | sort -rn | head -4 | awk '{printf "  %7.1f MiB  %s\n", $1 / 1048576, $2}'
[ "$bytes" -le $((most_mib * 1048576)) ] || { echo "the bundle is too large" >&2; exit 1; }
