#!/usr/bin/env bash
# Abuses the daemon for as long as it is told to. `--help` says how.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: qemu-tests/soak.sh MINUTES [--guests] [--seed N]

Runs tests/soak/ with one seed after the other, ten minutes each: guests with requests in flight on
all views, snapshots, rollbacks, merges, resizes, full stores and file systems, kills, front ends
that leave, faults, and memory that must not grow. Every view is compared with its model after each
step. Ends at the first error, with its seed and the daemon's last lines, and prints what was done.

  --guests     beside it, Linux guests under QEMU: rollbacks at resets, restarts of the daemon under
               load, discards, and faults of storage below a daemon in the guest, each of which checks
               its own disk (needs qemu-tests/install.sh and images/build-guest.sh)
  --seed N     the first seed; otherwise it comes from the clock
  -h, --help   print this text
TEXT
}

minutes='' guests=false seed=$(date +%s)
while [ $# -gt 0 ]; do
    case $1 in
        --guests) guests=true ;;
        --seed)
            seed=${2-}
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) minutes=$1 ;;
    esac
    shift
done
if ! [[ $minutes =~ ^[0-9]+$ && $seed =~ ^[0-9]+$ ]] || [ "$minutes" -eq 0 ]; then
    printf 'soak.sh: give the minutes as a number, and so the seed\n\n' >&2
    usage >&2
    exit 2
fi

cd "$(dirname "$0")/.."
end=$((SECONDS + minutes * 60))
logs=$(mktemp -d)
echo "logs: $logs"

# The guests' tests again and again; they end with the first failure.
run_guests() {
    while [ $SECONDS -lt $end ] && [ ! -e "$logs/failed" ]; do
        for test in restarts_ resets:: rollback discards inside::; do
            [ $SECONDS -lt $end ] || return 0
            if ! cargo test --locked --test qemu "$test" -- --test-threads=1 >"$logs/guests" 2>&1; then
                touch "$logs/failed"
                cat "$logs/guests"
                return 1
            fi
            grep -E '^test result' "$logs/guests" | sed "s/^/guests ($test): /"
        done
    done
}

cargo test --locked --no-run --test soak
worker=
if $guests; then
    cargo test --locked --no-run --test qemu
    # A process group of its own, so that all of it can be ended.
    set -m
    run_guests &
    worker=$!
    set +m
    trap '[ -z "$worker" ] || kill -- -"$worker" 2>/dev/null || true' EXIT
fi

status=0
while [ $SECONDS -lt $end ] && [ ! -e "$logs/failed" ]; do
    seconds=$((end - SECONDS < 600 ? end - SECONDS : 600))
    if ! SNAPBACK_SEED=$seed SNAPBACK_SOAK_SECONDS=$seconds \
        cargo test --locked --test soak -- --nocapture >"$logs/seed-$seed" 2>&1; then
        echo "FAILED with seed $seed:"
        cat "$logs/seed-$seed"
        status=1
        break
    fi
    echo "seed $seed, $seconds s:"
    grep -E '^(Counts|origin:|steady:|[0-9]+ verbs)' "$logs/seed-$seed" | sed 's/^/  /'
    seed=$((seed + 1))
done
if $guests; then
    if [ $status -eq 0 ]; then
        wait "$worker" || status=1
        worker=
    fi
fi
exit $status
