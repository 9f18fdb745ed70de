#!/usr/bin/env bash
# try.sh PYTHON DEVICE_PYTHON...: what `make wheels` has put into dist, as devices install it: the wheel for each of their
# Pythons, the other machine's under an emulator, and a server in an image. PYTHON compiles the bundles that they read.
set -euo pipefail
cd "$(dirname "$0")/.."
main=$1
DEVICE_BUNDLES=$(mktemp -d)
export DEVICE_BUNDLES
trap 'rm -rf "$DEVICE_BUNDLES"' EXIT
HF_HUB_OFFLINE=1 WEIGHTPAGER_CACHE_LIMIT=0 "$main" tests/device/make_bundles.py "$DEVICE_BUNDLES"
for python in "${@:2}"; do
    wheel=$(release/fitting.sh "$("$python" -c "import sys; print('%d.%d' % sys.version_info[:2])")" "$(uname -m)")
    echo "$("$python" --version), ${wheel##*/}"
    tests/device/run.sh "$main" "$wheel" "$python"
done
release/aarch64.sh "$main" "$DEVICE_BUNDLES/assistant/assistant.bundle"
release/image.sh "$main" "$DEVICE_BUNDLES/assistant/assistant.bundle"
