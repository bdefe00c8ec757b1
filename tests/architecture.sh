#!/usr/bin/env bash
# The dependency rule: a folder includes only itself and the folders below it; train and serve never each other.
set -u
cd "$(dirname "$0")/.." || exit 1
declare -A may=(
  [base]="base"
  [kernels]="base kernels"
  [optim]="base kernels optim"
  [data]="base kernels data"
  [model]="base kernels optim data model"
  [train]="base kernels optim data model train"
  [serve]="base kernels optim data model serve"
  [cli]="base kernels optim data model train serve cli"
)
bad=0 checked=0
for folder in "${!may[@]}"; do
  while IFS=: read -r file line text; do
    [ -n "$file" ] || continue
    checked=$((checked + 1))
    target=$(printf '%s\n' "$text" | sed -n 's/.*#include "\([^"]*\)".*/\1/p')
    top=${target%%/*}
    if [ "$top" = "$target" ]; then
      echo "$file:$line: include \"$target\" by its full path from the root"; bad=1; continue
    fi
    case " ${may[$folder]} " in
      *" $top "*) ;;
      *) echo "$file:$line: $folder/ may not include $target (allowed: ${may[$folder]})"; bad=1 ;;
    esac
  done < <(grep -rnE '^ *# *include "' "$folder" --include='*.c' --include='*.h' --include='*.cu' 2>/dev/null)
done
[ "$checked" -gt 5 ] || { echo "only $checked includes found: is this the source folder?"; exit 1; }
[ $bad = 0 ] && echo "$checked includes obey the dependency rule"
exit $bad
