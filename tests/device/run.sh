#!/usr/bin/env bash
# run.sh PYTHON [WHEEL DEVICE_PYTHON]: the device's tests on a real install without torch: a wheel, its own dependencies, and
# nothing else; then with the extras that a device may have. Bundles are compiled beforehand by the main environment, whose
# python is the first argument, unless DEVICE_BUNDLES names the folder of some.
#
# A WHEEL is installed for DEVICE_PYTHON where no compiler is found, and tried without AVX2, too. Without one, a wheel is made
# of this tree, with the C++ module of the main environment: building that again takes minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${DEVICE_BUNDLES-}" ]; then
    export DEVICE_BUNDLES=$folder
    HF_HUB_OFFLINE=1 WEIGHTPAGER_CACHE_LIMIT=0 "$python" tests/device/make_bundles.py "$folder" &
    compiling=$!
fi
"${3:-$python}" -m venv --without-pip "$folder/venv"
device=$folder/venv/bin/python
# On a path with nothing but itself: what needed a compiler would fail here.
install() { PATH=$folder/venv/bin "$(command -v "$python")" -m pip --python "$device" install --quiet --no-compile "$@"; }
if [ $# -gt 1 ]; then
    wheel=$2
    install "$wheel" pytest pytest-timeout
else
    "$python" -m pip wheel --quiet --no-deps --config-settings wheel.cmake=false --config-settings wheel.py-api=py3 \
        --wheel-dir "$folder" .
    wheel=$(echo "$folder"/weightpager-*.whl)
    install "$wheel" pytest pytest-timeout
    module=$("$python" -c "from weightpager.kernels import _native; print(_native.__file__)")
    cp "$module" "$("$device" -c "import weightpager.kernels; print(weightpager.kernels.__path__[0])")"
fi
wait ${compiling-}
run() { "$device" -m pytest --quiet --confcutdir tests/device -p no:cacheprovider tests/device "$@"; }
"$device" -c "import weightpager.kernels as k; assert k.isa() != 'reference', k.isa()"
if "$device" -c "import torch" 2>/dev/null; then echo "expected no torch on a device"; exit 1; fi
run
install "${wheel}[images,pull,serve]"
run -k "images or camera or server or pull"
if [ $# -gt 1 ]; then
    "$folder/venv/bin/weightpager" doctor --path "$folder" --quiet
    release/emulated.sh "$device" "$DEVICE_BUNDLES/assistant/assistant.bundle"
fi
