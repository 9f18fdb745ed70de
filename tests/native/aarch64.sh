#!/usr/bin/env bash
# The tests of the kernels on an emulated aarch64: with BFDOT, and on a processor without it. Linked statically, so that
# the emulator needs no libraries of that machine. Prints SKIPPED where the tools are missing: `make native-test` is
# possible everywhere, this isn't.
set -euo pipefail
cd "$(dirname "$0")/../.."

for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
    if ! command -v "$tool" > /dev/null; then
        echo "SKIPPED aarch64-test: $tool is not installed (Debian packages g++-aarch64-linux-gnu and qemu-user)"
        exit 0
    fi
done

build=build/aarch64-test
cmake=${CMAKE:-cmake}
"$cmake" -S . -B $build -DWEIGHTPAGER_NATIVE_TESTS=ON -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static
"$cmake" --build $build --parallel "${JOBS:-$(nproc)}"

emulated() { # PROCESSOR, then options of the tests
    echo "on $1:"
    qemu-aarch64 -cpu "$1" $build/native_tests "${@:2}"
}

# Fails if the kernel isn't found there. A part of the cases: emulated, all of them take minutes.
emulated max --kernel neon_bf16 --cases 600
emulated max --kernel neon_dot --cases 300
emulated max --kernel neon --cases 300
for newer in neon_bf16 neon_dot; do
    if emulated cortex-a72 --kernel $newer --cases 0; then
        echo "$newer was chosen on a processor that lacks its instructions" >&2
        exit 1
    fi
done
emulated cortex-a72 --cases 100
CXX=aarch64-linux-gnu-g++ RUN=qemu-aarch64 tests/native/loads.sh -static
CXX=aarch64-linux-gnu-g++ RUN=qemu-aarch64 tests/native/pool.sh -static
