#!/bin/sh
# The launcher that CMake puts before nvcc. What ptxas says of each kernel (-Xptxas -v) goes to OBJECT.ptxas, where tests/cuda/resources.sh
# reads it; everything else goes where it went.
object= previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"
"$@" 2>"$object.ptxas"
status=$?
grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame' "$object.ptxas" >&2
exit $status
