#!/usr/bin/env bash
# The device's tests on a real install without torch: a wheel, its own dependencies, and nothing else; then with the
# extras that a device may have. Bundles are compiled beforehand by the main environment, whose python is the argument.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
HF_HUB_OFFLINE=1 WEIGHTPAGER_CACHE_LIMIT=0 "$python" tests/device/make_bundles.py "$folder" &
# The C++ module is the one that the main environment was built with: building it again takes minutes.
module=$("$python" -c "from weightpager.kernels import _native; print(_native.__file__)")
"$python" -m pip wheel --quiet --no-deps --config-settings wheel.cmake=false --wheel-dir "$folder" .
"$python" -m venv --without-pip "$folder/venv"
device=$folder/venv/bin/python
install() { "$python" -m pip --python "$device" install --quiet --no-compile "$@"; }
install "$folder"/weightpager-*.whl pytest pytest-timeout
cp "$module" "$("$device" -c "import weightpager.kernels; print(weightpager.kernels.__path__[0])")"
wait $!
export DEVICE_BUNDLES=$folder
run() { "$device" -m pytest --quiet --confcutdir tests/device -p no:cacheprovider tests/device "$@"; }
"$device" -c "import weightpager.kernels as k; assert k.isa() != 'reference', k.isa()"
if "$device" -c "import torch" 2>/dev/null; then echo "expected no torch on a device"; exit 1; fi
run
install "$(echo "$folder"/weightpager-*.whl)[images,pull,serve]"
run -k "images or camera or server or pull"
