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
# What steps leave behind, also those that run beside others.
folder=$(mktemp -d)
touch "$folder"/{log,log.beside,times,failed}
log=$folder/log
trap 'rm -rf "$folder"' EXIT

# run NAME COMMAND...: continues after a failure, so that one run shows everything.
run() {
    local name=$1 start=$SECONDS result=ok
    shift
    printf '\n== %s\n' "$*"
    "$@" 2>&1 | tee -a "$log" || {
        result=FAILED
        printf '%s\n' "$*" >>"$folder/failed"
    }
    printf '%5d s  %-6s  %s\n' $((SECONDS - start)) "$result" "$name" >>"$folder/times"
}

# beside FUNCTION: begins its steps, whose output comes at `together`. They are a process
# group, so that all of it can be ended.
beside() {
    set -m
    (log=$folder/log.beside && "$1") >"$folder/said" 2>&1 &
    other=$!
    set +m
    trap 'kill -- -"$other"; exit 130' INT TERM
}

together() {
    wait "$other" || printf 'the steps that ran beside others\n' >>"$folder/failed"
    trap - INT TERM
    cat "$folder/said"
}

# models FEATURE: the races under loom or shuttle (docs/crash-model.md). Seeded bugs
# fail loudly there on purpose, so a good run shows its counts only.
models() {
    echo "     Running $1 models" # for the table of times
    if RUST_BACKTRACE=0 nice -n 10 cargo test --locked --lib --features "$1" "$1_" -- \
        --show-output --test-threads=2 >"$folder/model" 2>&1; then
        grep -E "^($1: |test result)" "$folder/model"
    else
        cat "$folder/model"
        return 1
    fi
}

integration=()
for file in tests/*.rs tests/*/main.rs; do
    name=${file%/main.rs}
    name=$(basename "$name" .rs)
    case $name in
        damage | costs | footprint) ;;
        *) integration+=(--test "$name") ;;
    esac
done

# What needs the processors, beside the integration tests and the guests, which wait for one
# another, for timers and for disks. What has no clock at all takes only the time that is left.
calculations() {
    run "unit tests" cargo test --locked --no-fail-fast --lib --bins
    run "counts" cargo test --locked --no-fail-fast --test costs --test footprint
    run "damaged stores" nice -n 10 cargo test --locked --test damage
    run "documentation tests" nice -n 10 cargo test --locked --doc
    $quick && return
    run "race models (loom)" models loom
    run "race models (shuttle)" models shuttle
}

# Two guests at a time: emulation is slow. Not by cargo, which would wait for the build of
# the models.
guests() {
    local program
    program=$(sed -n 's/^.*Executable.* qemu-tests.main\.rs (\([^)]*\)).*$/\1/p' "$log" | tail -n 1)
    if [ -z "$program" ]; then
        echo "the guests' tests were not built"
        return 1
    fi
    echo "     Running qemu-tests/main.rs ($program)" # for the table of times
    "$program" --show-output --test-threads=2
}

package_maker() {
    run "program that makes the package" nice -n 10 qemu-tests/install.sh --package-maker
}

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

built=(--lib --bins --test costs --test footprint --test damage "${integration[@]}")
if ! $quick; then
    qemu-tests/install.sh --packages
    built+=(--test qemu)
    # It takes minutes where it is missing, and what follows leaves a processor idle at times.
    beside package_maker
fi
run "formatting" cargo fmt --check
run "formatting of the guest's program" \
    rustfmt --check --edition 2024 images/guest/disktool.rs
run "formatting of the fuzz targets" cargo fmt --check --manifest-path fuzz/Cargo.toml
run "libraries" check_libraries
run "lints" cargo clippy --all-targets --locked -- -D warnings
run "build of the tests" cargo test --locked --no-run "${built[@]}"
if $quick; then
    run "compilation of the race models" check_models
    export SNAPBACK_RESTARTS=${SNAPBACK_RESTARTS:-15} SNAPBACK_REQUESTS=${SNAPBACK_REQUESTS:-30000}
    export SNAPBACK_DAMAGE_COUNT=${SNAPBACK_DAMAGE_COUNT:-1000} SNAPBACK_SOAK_SECONDS=${SNAPBACK_SOAK_SECONDS:-5}
else
    run "guest image" images/build-guest.sh
    together
fi
beside calculations
# They mostly wait, a daemon's for the disk: a processor for a sixth of the time.
run "integration tests" env RUST_TEST_THREADS=$(($(nproc) * 2)) \
    cargo test --locked --no-fail-fast "${integration[@]}"
$quick || run "guests" guests
together

printf '\n== Time by test target\n'
awk '/^ +Running / { sub(/^ +Running (unittests )?/, ""); sub(/ \(.*/, ""); target = $0 }
     /^ +Doc-tests / { target = "documentation" }
     /^test result:/ && match($0, /finished in .*/) {
         time = substr($0, RSTART + 12); sub(/s$/, "", time)
         printf "%7.1f s  %s\n", time, target
     }' "$log" "$log.beside" | sort -rn
printf '\n== Time by step\n'
cat "$folder/times"
printf '%5d s  in all\n' "$SECONDS"
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "\n%d passed, %d failed, %d ignored\n", passed, failed, ignored }' "$log" "$log.beside"
if [ -s "$folder/failed" ]; then
    # Long runs are often kept by their end only, so it names what failed.
    awk '/^test .* \.\.\. FAILED$/ { print "FAILED: test " $2 }
         /panicked at/ { print; getline; print "    " $0 }' "$log" "$log.beside" | head -n 60
    sed 's/^/FAILED: /' "$folder/failed"
    exit 1
fi
