#!/usr/bin/env bash
# Everything that must hold: formatting, lints, unit and integration tests, and
# real guests under QEMU. Installs what is missing. Any failure fails the script.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin

step() { printf '\n== %s\n' "$*"; }
log=$(mktemp)
models=$(mktemp)
failed=()
trap 'rm -f "$log" "$models"' EXIT
# run COMMAND...: goes on after a failure, so that one run shows everything.
run() {
    step "$*"
    "$@" 2>&1 | tee -a "$log" || failed+=("$*")
}

# models FEATURE: the races under loom or shuttle (docs/crash-model.md). Bugs that are
# put in on purpose fail loudly there, so a good run shows its counts only.
models() {
    if RUST_BACKTRACE=0 cargo test --locked --lib --features "$1" "$1_" -- \
        --show-output --test-threads=2 >"$models" 2>&1; then
        grep -E "^($1: |test result)" "$models"
    else
        cat "$models"
        return 1
    fi
}

qemu-tests/install.sh
run cargo fmt --check
run rustfmt --check --edition 2024 images/guest/disktool.rs
run cargo clippy --all-targets --locked -- -D warnings
integration=()
for file in tests/*.rs tests/*/main.rs; do
    name=${file%/main.rs}
    integration+=(--test "$(basename "$name" .rs)")
done
run cargo test --locked --no-fail-fast --lib --bins "${integration[@]}"
run cargo test --locked --doc
run models loom
run models shuttle
run images/build-guest.sh
# Two guests' worth of work at a time: emulation is slow.
run cargo test --locked --test qemu -- --show-output --test-threads=2

awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "\n%d passed, %d failed, %d ignored\n", passed, failed, ignored }' "$log"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
