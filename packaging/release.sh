#!/usr/bin/env bash
# Builds the release so that everybody who builds the same sources with the same compiler gets the
# same bytes, wherever the sources, the libraries and the target folder are. `--help` says more.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: packaging/release.sh [--flags]

Builds target/release/snapback (in CARGO_TARGET_DIR, if that is set) without the paths of this
machine in it, and prints its SHA-256 with the versions of what built it. SNAPBACK_COMMIT says
which commit the sources are, if they are not a repository of git.

  --flags      only print the flags for the compiler, one a line
  -h, --help   print this text
TEXT
}

only_flags=false
for argument in "$@"; do
    case $argument in
        --flags) only_flags=true ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            printf "release.sh: unknown argument '%s'\n\n" "$argument" >&2
            usage >&2
            exit 2
            ;;
    esac
done

cd "$(dirname "$0")/.."
sources=$(pwd -P)
mkdir -p "${CARGO_TARGET_DIR:-target}"
target=$(cd "${CARGO_TARGET_DIR:-target}" && pwd -P)
libraries=${CARGO_HOME:-$HOME/.cargo}
mkdir -p "$libraries"
libraries=$(cd "$libraries" && pwd -P)
compiler=$(rustc --version --verbose)
commit=$(sed -n 's/^commit-hash: //p' <<<"$compiler")
# The compiler names the standard library by its commit, or by this folder where somebody has installed
# its sources.
standard=$(rustc --print sysroot)/lib/rustlib/src/rust

# Where two of them match, the later one counts: the target folder is often below the sources.
flags=(
    "--remap-path-prefix=$sources=/snapback"
    "--remap-path-prefix=$target=/snapback/target"
    "--remap-path-prefix=$libraries=/cargo"
    "--remap-path-prefix=$standard=/rustc/$commit"
)
if $only_flags; then
    printf '%s\n' "${flags[@]}"
    exit 0
fi

# Nothing of the caller's settings, which would be a part of the program. The encoded flags take
# precedence over those of configurations of cargo, too.
for name in $(compgen -e); do
    case $name in
        # How many processes there are changes nothing.
        CARGO_BUILD_JOBS) ;;
        RUSTFLAGS | CARGO_BUILD_* | CARGO_PROFILE_* | CARGO_TARGET_*_* | RUSTC_WRAPPER | RUSTC_WORKSPACE_WRAPPER)
            unset "$name"
            ;;
    esac
done
export CARGO_TARGET_DIR=$target CARGO_INCREMENTAL=0
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
cargo build --release --locked --bin snapback

program=$target/release/snapback
for path in "$sources" "$target" "$libraries" "$HOME"; do
    # A home such as / is in every program.
    if [ "${#path}" -ge 5 ] && grep -aqF -e "$path" "$program"; then
        echo "release.sh: the path '$path' of this machine is in $program; see which library" >&2
        echo "release.sh: puts it there with: strings -n 8 $program | grep -F '$path'" >&2
        exit 1
    fi
done
sed -n '1p' <<<"$compiler"
cc --version | sed -n '1p'
sha256sum "$program"
