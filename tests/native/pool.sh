#!/usr/bin/env bash
# Builds the tests of our own threads with these compiler flags, a sanitizer's say, and runs them: by $RUN if it is set, an
# emulator.
set -euo pipefail
cd "$(dirname "$0")/../.."

mkdir -p build
program=$(mktemp build/pool_tests.XXXXXX)
trap 'rm -f "$program"' EXIT
"${CXX:-g++}" -std=c++17 -O1 -g1 -Wall -Wextra -pthread "$@" -Icsrc -DWEIGHTPAGER_NATIVE_TESTS tests/native/pool.cpp \
    csrc/parallel.cpp csrc/threads/pool.cpp -o "$program"
${RUN:-} "$program"
