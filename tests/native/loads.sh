#!/usr/bin/env bash
# Builds the tests of loads with these compiler flags, a sanitizer's say, and runs them: by $RUN if it is set, an emulator.
set -euo pipefail
cd "$(dirname "$0")/../.."

mkdir -p build
program=$(mktemp build/load_tests.XXXXXX)
trap 'rm -f "$program"' EXIT
"${CXX:-g++}" -std=c++17 -O1 -g1 -Wall -Wextra -pthread "$@" -Icsrc -DWEIGHTPAGER_HASHER=hash_generic -DWEIGHTPAGER_LANES=4 \
    tests/native/{loads,own_reads}.cpp csrc/load/{blake3,blake3_lanes,device,own_reads,read,read_queue}.cpp \
    csrc/load/{ring,thread}_device.cpp csrc/rows/{row_memory,row_lookup,widen}.cpp -o "$program"
${RUN:-} "$program"
