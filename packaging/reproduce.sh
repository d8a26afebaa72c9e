#!/usr/bin/env bash
# Builds the release twice, in different places for different users, and compares the bytes.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: packaging/reproduce.sh [FOLDER]
       packaging/reproduce.sh --compare PROGRAM OTHER

Copies the sources to two new folders, and builds each with packaging/release.sh: with another home,
another folder of cargo, another target folder, another time zone and language, and another number
of processes. The two programs must have the same bytes. If they do not, it prints which sections and
texts differ, keeps the programs, and ends with status 1. It takes two release builds, and 4 GiB.

FOLDER keeps the builds; it is made if it is not there. Without it they are in a new folder in TMPDIR,
which is removed at the end.

  --compare    only compare two programs that were built already
  -h, --help   print this text
TEXT
}

# compare PROGRAM OTHER: says whether they are equal, and what differs.
compare() {
    if cmp -- "$1" "$2"; then
        echo "reproduce.sh: the two programs are equal"
        sha256sum -- "$1"
        return 0
    fi
    echo "reproduce.sh: the programs differ: $1 $2" >&2
    local parts section
    parts=$(mktemp -d)
    for section in $(LC_ALL=C objdump --section-headers "$1" | awk '$1 ~ /^[0-9]+$/ { print $2 }'); do
        objcopy -O binary --only-section="$section" --set-section-flags "$section=alloc" "$1" "$parts/one"
        objcopy -O binary --only-section="$section" --set-section-flags "$section=alloc" "$2" "$parts/other" ||
            : >"$parts/other"
        cmp -s "$parts/one" "$parts/other" || echo "reproduce.sh: the section $section differs" >&2
    done
    strings -n 8 "$1" >"$parts/one"
    strings -n 8 "$2" >"$parts/other"
    diff "$parts/one" "$parts/other" >"$parts/texts" || head -n 20 "$parts/texts" >&2
    rm -rf "$parts"
    return 1
}

case ${1-} in
    -h | --help)
        usage
        exit 0
        ;;
    --compare)
        if [ $# -ne 3 ]; then
            usage >&2
            exit 2
        fi
        compare "$2" "$3"
        exit
        ;;
    -*)
        printf "reproduce.sh: unknown argument '%s'\n\n" "$1" >&2
        usage >&2
        exit 2
        ;;
esac

temporary=
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    work=$(cd "$1" && pwd -P)
else
    work=$(mktemp -d)
    temporary=$work
    trap 'if [ -n "$temporary" ]; then rm -rf "$temporary"; fi' EXIT
fi
cd "$(dirname "$0")/.."

# What belongs to the sources, as it is now, with its times.
copy() {
    mkdir -p "$1"
    { git ls-files -z --cached --others --exclude-standard 2>/dev/null || find . -path ./target -prune -o -type f -print0; } |
        tar --null --create --files-from - | tar --extract --directory "$1"
}

# The copies are no repositories.
if [ -z "${SNAPBACK_COMMIT-}" ] && [ -e .git ]; then
    SNAPBACK_COMMIT=$(git rev-parse HEAD | cut -c 1-7)
fi
export SNAPBACK_COMMIT=${SNAPBACK_COMMIT-}
# The toolchain is the same for both, wherever HOME is.
export RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}

# The libraries as they were downloaded; their sources are unpacked again by the second build.
cargo fetch --locked
libraries=${CARGO_HOME:-$HOME/.cargo}
first=$work/one
second=$work/another-place/with-a-longer-name
copy "$first"
copy "$second"
mkdir -p "$work/home/cargo/registry"
cp -r "$libraries/registry/index" "$libraries/registry/cache" "$work/home/cargo/registry/"

echo "reproduce.sh: the first build, in $first"
env -u CARGO_TARGET_DIR "$first/packaging/release.sh"
echo "reproduce.sh: the second build, in $second"
env HOME="$work/home" CARGO_HOME="$work/home/cargo" CARGO_TARGET_DIR="$work/built" \
    CARGO_BUILD_JOBS=3 TZ=Pacific/Chatham LC_ALL=C.UTF-8 USER=somebody LOGNAME=somebody \
    "$second/packaging/release.sh"

if ! compare "$first/target/release/snapback" "$work/built/release/snapback"; then
    temporary=
    exit 1
fi
