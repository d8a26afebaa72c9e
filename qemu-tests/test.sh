#!/usr/bin/env bash
# Everything that must hold: formatting, lints, unit and integration tests, and
# real guests under QEMU. Installs what is missing. Any failure fails the script.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:/usr/sbin:/sbin

step() { printf '\n== %s\n' "$*"; }
log=$(mktemp)
failed=()
trap 'rm -f "$log"' EXIT
# run COMMAND...: goes on after a failure, so that one run shows everything.
run() {
    step "$*"
    "$@" 2>&1 | tee -a "$log" || failed+=("$*")
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
run images/build-guest.sh
# Two guests' worth of work at a time: emulation is slow.
run cargo test --locked --test qemu -- --show-output --test-threads=2

awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "\n%d passed, %d failed, %d ignored\n", passed, failed, ignored }' "$log"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
