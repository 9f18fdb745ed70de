#!/usr/bin/env bash
# emulated.sh PYTHON BUNDLE: what an install on x86-64 answers on a processor without AVX2, with one warning.
set -euo pipefail
python=$1 bundle=$2
if [ "$(uname -m)" != x86_64 ] || ! command -v qemu-x86_64 > /dev/null; then
    echo "SKIPPED without AVX2: needs x86-64 and qemu-x86_64 (Debian package qemu-user)"
    exit 0
fi
answer() { "$@" -c "from weightpager.cli import main; main()" run "$bundle" --task animal --json "cat cat" "dog dog"; }
told=$(mktemp)
trap 'rm -f "$told"' EXIT
"$(dirname "$0")/same_answers.py" "$(answer "$python")" "$(answer qemu-x86_64 -cpu Nehalem "$python" 2> "$told")"
if [ "$(wc -l < "$told")" -ne 1 ] || ! grep -q "generic kernel serves" "$told"; then
    echo "without AVX2: expected one warning, that the generic kernel serves; found:" >&2
    cat "$told" >&2
    exit 1
fi
echo "without AVX2: the same answers, one warning"
