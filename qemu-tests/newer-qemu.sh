#!/usr/bin/env bash
# Runs tests of real guests with the QEMU of Debian 13, which is unpacked with its libraries
# and its firmware into target/newer-qemu and is not installed.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    cat <<'TEXT'
Usage: qemu-tests/newer-qemu.sh [FILTER...]

Runs the guests' tests whose names contain one of the filters (all without a filter) with
the QEMU of Debian 13. The first run downloads it from Debian's archive with apt-get, which
needs Debian or a system with Debian's keyring.
TEXT
    exit 0
fi

cd "$(dirname "$0")/.."
qemu-tests/install.sh
images/build-guest.sh
folder=$PWD/target/newer-qemu
packages=(qemu-system-x86 qemu-utils qemu-block-extra seabios nbdkit)
if [[ $(cat "$folder/done" 2>/dev/null) != "${packages[*]}" ]]; then
    rm -rf "$folder"
    mkdir -p "$folder"/{apt/lists/partial,apt/cache/archives/partial,bin,root}
    touch "$folder/apt/status"
    cat >"$folder/apt/sources.list" <<'LIST'
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main
LIST
    cat >"$folder/apt/conf" <<CONF
Dir::Etc::sourcelist "$folder/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$folder/apt/lists";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt/cache";
CONF
    export APT_CONFIG=$folder/apt/conf
    apt-get -q update
    apt-get -q install --yes --download-only --no-install-recommends "${packages[@]}"
    for package in "$folder"/apt/cache/archives/*.deb; do
        dpkg --extract "$package" "$folder/root"
    done
    unset APT_CONFIG
    rm -r "$folder/apt"
    for program in qemu-system-x86_64 qemu-img qemu-io qemu-storage-daemon nbdkit; do
        firmware= plugin=
        if [[ $program == qemu-system-x86_64 ]]; then
            firmware='-L "$root/usr/share/qemu" -L "$root/usr/share/seabios"'
        fi
        if [[ $program == nbdkit ]]; then
            # It looks for plugins where Debian installs them.
            plugin='for argument; do shift; case $argument in blkio) argument=$libraries/nbdkit/plugins/nbdkit-blkio-plugin.so ;; esac; set -- "$@" "$argument"; done'
        fi
        cat >"$folder/bin/$program" <<PROGRAM
#!/bin/sh
root=$folder/root
libraries=\$root/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR=\$libraries/qemu
$plugin
exec "\$root/usr/lib64/ld-linux-x86-64.so.2" --argv0 $program \\
    --library-path "\$libraries:\$libraries/pulseaudio" \\
    "\$root/usr/bin/$program" $firmware "\$@"
PROGRAM
        chmod +x "$folder/bin/$program"
    done
    echo "${packages[*]}" >"$folder/done"
fi

export PATH=$folder/bin:$PATH
qemu-system-x86_64 --version | head -n 1
cargo test --locked --test qemu -- --show-output --test-threads=2 "$@"
