#!/usr/bin/env bash
# Installs the programs that are missing: Debian's, by apt-get as root or through sudo, and the one
# that makes snapback's own package, by cargo. Prints what it does, and does nothing if nothing is
# missing. An argument leaves a part out:
#
#   --guests         only what guests need, of Debian's
#   --packages       only Debian's
#   --package-maker  only the one that cargo builds
set -euo pipefail

# command:package pairs; the guest's recipe and the tests call the command.
guests=(
    qemu-system-x86_64:qemu-system-x86
    cpio:cpio
    mke2fs:e2fsprogs
    blkid:util-linux
    strip:binutils
    dmsetup:dmsetup
    depmod:kmod
    xz:xz-utils
    zstd:zstd
    cc:gcc
    losetup:mount
)
# They count system calls, look at terminals and man pages, scrape metrics, start libvirt, complete
# command lines, and make the package.
tests=(
    debugfs:e2fsprogs
    strace:strace
    curl:curl
    script:bsdutils
    readelf:binutils
    rsync:rsync
    groff:groff
    tmux:tmux
    libvirtd:libvirt-daemon-system
    virsh:libvirt-clients
    promtool:prometheus
    systemd-analyze:systemd
    systemd-nspawn:systemd-container
    zsh:zsh
    fish:fish
    dpkg-shlibdeps:dpkg-dev
)
case "${1-}" in
    --guests) needed=("${guests[@]}") ;;
    '' | --packages) needed=("${guests[@]}" "${tests[@]}") ;;
    --package-maker) needed=() ;;
    *)
        echo "install.sh: unknown argument '$1'; it takes --guests, --packages, --package-maker or nothing" >&2
        exit 2
        ;;
esac

# Debian has no package of it. tests/service/package.rs looks for it here as well. It makes one
# package in a test run, with no compression of its own: built without optimisation it is there
# sooner.
tools=$(dirname "$0")/../target/tools
case "${1-}" in
    '' | --package-maker)
        if ! command -v cargo-deb >/dev/null && [ ! -x "$tools/bin/cargo-deb" ]; then
            echo "+ cargo install cargo-deb"
            cargo install --quiet --locked --debug --no-default-features --root "$tools" cargo-deb@3.8.0 ||
                echo "install.sh: without cargo-deb the test of the package fails" >&2
        fi
        ;;
esac

PATH=$PATH:/usr/sbin:/sbin
packages=()
for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
if [ ${#packages[@]} -eq 0 ]; then
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "install: need ${packages[*]}; run as root: apt-get install ${packages[*]}" >&2
        exit 2
    }
    as_root=(sudo)
fi
apt() {
    echo "+ apt-get $*"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@"
}

apt update

# apt would remove a qemu-utils of another version: install it in the emulator's version.
version() { LC_ALL=C apt-cache policy "$1" | awk '$1 == "'"$2"':" { print $2 }'; }
if [[ " ${packages[*]} " == *" qemu-system-x86 "* ]]; then
    emulator=$(version qemu-system-x86 Candidate)
    utils=$(version qemu-utils Installed)
    if [ -n "$utils" ] && [ "$utils" != "(none)" ] && [ "$utils" != "$emulator" ]; then
        packages+=("qemu-utils=$emulator")
    fi
fi
apt install -y --no-install-recommends --allow-downgrades "${packages[@]}"
