#!/usr/bin/env bash
# What the built files ask of a machine:
#
#     tests/cuda/links.sh program build/release/lorikeet          links no library of CUDA's or of the driver's
#     tests/cuda/links.sh module build/cuda/liblorikeet_cuda.so   exports the one entry; needs cuBLASLt and the system's libraries only
set -euo pipefail
kind=$1 file=$2
needed=$(readelf -d "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
bad=0
if [ "$kind" = program ]; then
  if grep -iE 'cuda|cublas|cudnn|nccl|nvidia|nvrtc' <<<"$needed"; then echo "$file links these: they belong to the module"; bad=1; fi
else
  others=$(grep -vE '^(libcublasLt\.so\.[0-9]+|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so\.[0-9]+|ld-linux.*)$' <<<"$needed" || true)
  [ -z "$others" ] || { echo "$file needs more than it should: $others"; bad=1; }
  exported=$(readelf --dyn-syms -W "$file" | awk '$7 != "UND" && $5 != "LOCAL" && NF >= 8 && $1 ~ /^[0-9]+:$/ {print $8}')
  [ "$exported" = lk_cuda_module_entry ] || { echo "$file exports '$exported', wanted lk_cuda_module_entry alone"; bad=1; }
  if readelf -d "$file" | grep -E '(RPATH|RUNPATH)' | grep -v '\[\$ORIGIN\]'; then echo "$file carries a path of the machine it was built on"; bad=1; fi
fi
[ $bad = 0 ] && echo "$file needs: $(tr '\n' ' ' <<<"$needed")"
exit $bad
