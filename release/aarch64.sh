#!/usr/bin/env bash
# aarch64.sh PYTHON BUNDLE: the wheel for aarch64 in dist, with what it depends on, installed beside Debian's Python for that
# machine and emulated: the self-test of its kernels, and the answers that PYTHON's install gives.
# Downloads about 20 MB of Debian's packages into build/aarch64; nothing of this machine's packages changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1 bundle=$2 place=$(realpath -m "$here/../build/aarch64")
for tool in qemu-aarch64 apt-get dpkg-deb; do
    if ! command -v $tool > /dev/null; then
        echo "SKIPPED the wheel for aarch64: $tool is not installed"
        exit 0
    fi
done

if [ ! -e "$place/root/usr/bin/python3" ]; then
    rm -rf "$place"
    mkdir -p "$place"/{state/lists/partial,cache/archives/partial,root}
    touch "$place/status"
    apt() {
        apt-get --quiet=2 -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$place/state" \
            -o Dir::State::status="$place/status" -o Dir::Cache="$place/cache" -o Debug::NoLocking=1 "$@" > /dev/null
    }
    apt update
    apt install --yes --download-only --no-install-recommends python3 libstdc++6  # the latter for numpy
    for package in "$place"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$place/root"; done
    [ -e "$place/root/lib" ] || ln -s usr/lib "$place/root/lib"
fi

emulated=(qemu-aarch64 -L "$place/root")
[[ $("${emulated[@]}" "$place/root/usr/bin/python3" --version) =~ 3\.[0-9]+ ]]
version=${BASH_REMATCH[0]}
rm -rf "$place/site"
"$python" -m pip install --quiet --no-compile --target "$place/site" --only-binary :all: --python-version "$version" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 "$("$here/fitting.sh" "$version" aarch64)"
answer() { "$@" -c "from weightpager.cli import main; main()" run "$bundle" --task animal --json "cat cat" "dog dog"; }
for processor in max cortex-a72; do
    emulate=(env PYTHONPATH="$place/site" "${emulated[@]}" -cpu $processor "$place/root/usr/bin/python3")
    "${emulate[@]}" -c "import weightpager.kernels as k; print('aarch64, $processor:', *k.available()); assert 'neon' in k.available()"
    "$here/same_answers.py" "$(answer "$python")" "$(answer "${emulate[@]}")"
done
"${emulate[@]}" -c "from weightpager.cli import main; main()" doctor --quiet --path "$place"
echo "aarch64: the same answers, and the self-test of its kernels passes"
