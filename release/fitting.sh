#!/usr/bin/env bash
# fitting.sh VERSION MACHINE: the wheel in dist that a Python takes, 3.13 say, on a machine.
set -euo pipefail
minor=${1#3.}
if [ "$minor" -ge 12 ]; then tag=cp312-abi3; else tag=cp3$minor-cp3$minor; fi
found=("$(dirname "$0")"/../dist/weightpager-*-$tag-*"$2".whl)
if [ ${#found[@]} -ne 1 ] || [ ! -e "${found[0]}" ]; then
    echo "expected one wheel for Python $1 on $2 in dist, found ${found[*]}; make wheels builds them" >&2
    exit 1
fi
realpath "${found[0]}"
