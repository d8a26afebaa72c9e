#!/usr/bin/env bash
# Runs the project's checks: formatting, lints, unit and integration tests, the race
# models, and real guests under QEMU. `--help` says which form runs what.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

usage() {
    cat <<'TEXT'
Usage: qemu-tests/test.sh [--quick]

Runs every check of the project and lists at the end how long each one took. A
failure does not stop the run; the exit status is 1 if any check failed.

  --quick      for daily work: formatting, lints, unit, integration and
               documentation tests. Only compiles the race models (loom, shuttle), and
               leaves out the guests. Repeats random runs less often, unless
               SNAPBACK_RESTARTS, SNAPBACK_REQUESTS, SNAPBACK_DAMAGE_COUNT or
               SNAPBACK_SOAK_SECONDS say how often.
  -h, --help   print this text

Without --quick, missing Debian packages are installed (apt-get, as root or
through sudo) and the guest image is built.
TEXT
}

quick=false
for argument in "$@"; do
    case $argument in
        --quick) quick=true ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            printf "test.sh: unknown argument '%s'\n\n" "$argument" >&2
            usage >&2
            exit 2
            ;;
    esac
done

cd "$(dirname "$0")/.."
log=$(mktemp)
apart=$(mktemp)
failed=()
times=()
trap 'rm -f "$log" "$apart"' EXIT

# run NAME COMMAND...: continues after a failure, so that one run shows everything.
run() {
    local name=$1 start=$SECONDS result=ok
    shift
    printf '\n== %s\n' "$*"
    "$@" 2>&1 | tee -a "$log" || {
        result=FAILED
        failed+=("$*")
    }
    times+=("$(printf '%5d s  %-6s  %s' $((SECONDS - start)) "$result" "$name")")
}

# models FEATURE: the races under loom or shuttle (docs/crash-model.md). Seeded bugs
# fail loudly there on purpose, so a good run shows its counts only.
models() {
    echo "     Running $1 models" # for the table of times
    if RUST_BACKTRACE=0 cargo test --locked --lib --features "$1" "$1_" -- \
        --show-output --test-threads=2 >"$apart" 2>&1; then
        grep -E "^($1: |test result)" "$apart"
    else
        cat "$apart"
        return 1
    fi
}

# Unit tests need the processors and integration tests mostly wait, so together they
# take little longer than either of them.
together() {
    local status=0 unit
    # A process group of its own, so that all of it can be ended.
    set -m
    cargo test --locked --no-fail-fast --lib --bins >"$apart" 2>&1 &
    unit=$!
    set +m
    trap 'kill -- -"$unit"' INT TERM
    cargo test --locked --no-fail-fast "${integration[@]}" || status=1
    wait "$unit" || status=1
    trap - INT TERM
    cat "$apart"
    return "$status"
}

integration=()
for file in tests/*.rs tests/*/main.rs; do
    name=${file%/main.rs}
    integration+=(--test "$(basename "$name" .rs)")
done

# check_models: compiles the race models, which the other steps leave out.
check_models() {
    for feature in loom shuttle; do
        cargo check --locked --lib --profile test --features "$feature" || return 1
    done
}

# check_libraries: what deny.toml says, as far as this machine can know it.
check_libraries() {
    if ! cargo deny --version >/dev/null 2>&1; then
        echo "left out: cargo-deny is not installed (cargo install --locked cargo-deny);" \
            "tests/supply_chain/ checks licences and sources"
        return 0
    fi
    cargo deny --offline check licenses bans sources || return 1
    if compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/*/crates" >/dev/null; then
        cargo deny --offline check advisories
    else
        echo "left out: no list of known faults is here (cargo deny fetch db)"
    fi
}

$quick || qemu-tests/install.sh
run "formatting" cargo fmt --check
run "formatting of the guest's program" \
    rustfmt --check --edition 2024 images/guest/disktool.rs
run "formatting of the fuzz targets" cargo fmt --check --manifest-path fuzz/Cargo.toml
run "libraries" check_libraries
run "lints" cargo clippy --all-targets --locked -- -D warnings
run "build of the tests" cargo test --locked --no-run --lib --bins "${integration[@]}"
if $quick; then
    run "compilation of the race models" check_models
    export SNAPBACK_RESTARTS=${SNAPBACK_RESTARTS:-15} SNAPBACK_REQUESTS=${SNAPBACK_REQUESTS:-30000}
    export SNAPBACK_DAMAGE_COUNT=${SNAPBACK_DAMAGE_COUNT:-1000} SNAPBACK_SOAK_SECONDS=${SNAPBACK_SOAK_SECONDS:-5}
fi
run "unit and integration tests" together
run "documentation tests" cargo test --locked --doc
if ! $quick; then
    run "race models (loom)" models loom
    run "race models (shuttle)" models shuttle
    run "guest image" images/build-guest.sh
    # Two guests at a time: emulation is slow.
    run "guests" cargo test --locked --test qemu -- --show-output --test-threads=2
fi

printf '\n== Time by test target\n'
awk '/^ +Running / { sub(/^ +Running (unittests )?/, ""); sub(/ \(.*/, ""); target = $0 }
     /^ +Doc-tests / { target = "documentation" }
     /^test result:/ && match($0, /finished in .*/) {
         time = substr($0, RSTART + 12); sub(/s$/, "", time)
         printf "%7.1f s  %s\n", time, target
     }' "$log" | sort -rn
printf '\n== Time by step\n'
printf '%s\n' "${times[@]}" "$(printf '%5d s  in all' "$SECONDS")"
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "\n%d passed, %d failed, %d ignored\n", passed, failed, ignored }' "$log"
if [ ${#failed[@]} -gt 0 ]; then
    # Long runs are often kept by their end only, so it names what failed.
    awk '/^test .* \.\.\. FAILED$/ { print "FAILED: test " $2 }
         /panicked at/ { print; getline; print "    " $0 }' "$log" | head -n 60
    printf 'FAILED: %s\n' "${failed[@]}"
    exit 1
fi
