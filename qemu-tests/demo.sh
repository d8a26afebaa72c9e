#!/usr/bin/env bash
# Demonstrates snapback's main job: the raw disk of a running guest is rolled back in an
# instant, and the merge runs in the background. Exits 0 only if at the end every block
# of the disk is what it was when the snapshot was taken.
# shellcheck disable=SC2016 # text in single quotes is for the guest's shell
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

bold=$'\e[1m' plain=$'\e[0m'
[ -t 1 ] || bold='' plain=''
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
fail() {
    echo "demo: $*" >&2
    exit 1
}
now_ms() { date +%s%3N; }
seconds() { printf '%d.%03d s' $(($1 / 1000)) $(($1 % 1000)); }

# --- preparation: programs, the guest, a disk
qemu-tests/install.sh --guests
cargo build --release
images/build-guest.sh
target=${CARGO_TARGET_DIR:-target}
images=$target/guest
program=$(realpath "$target/release/snapback")
work=$(mktemp -d "$(realpath "$target")/demo.XXXXXX")
disk=$work/disk.img
export XDG_RUNTIME_DIR=$work
unset SNAPBACK_CONTROL
# shellcheck source=qemu-tests/guest.sh
. qemu-tests/guest.sh

qemu='' daemon=''
finish() {
    local status=$?
    trap - EXIT
    for process in "$qemu" "$daemon"; do
        [ -z "$process" ] || kill "$process" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    if [ "$status" -eq 0 ]; then
        rm -rf "$work"
    else
        echo "demo: FAILED; the logs are in $work" >&2
        tail -n 20 "$work"/{snapback.log,console,qemu.log} >&2 2>/dev/null || true
        rm -f "$disk" "$work"/*.cow "$work/reference.img"
    fi
    exit "$status"
}
trap finish EXIT

# Shows a snapback command, then runs it.
snapback() {
    local shown="$*"
    echo "\$ snapback ${shown//"$work/"/}"
    "$program" "$@"
}

# number FIELD: the first number of that name in the status. `chunks_left` exists only
# while a merge runs.
number() { "$program" status --json | tr ',{}' '\n' | sed -n 's/^ *"'"$1"'": *\([0-9]*\)$/\1/p' | head -n 1; }

begin=$(now_ms)
say "1. A disk: 1 GiB, ext4, 320 MiB of files on it"
mkdir -p "$work/files/data"
head -c 320M /dev/urandom | split -b 8M -d -a 3 - "$work/files/data/file"
(cd "$work/files" && sha256sum data/* >list)
files=$(wc -l <"$work/files/list")
mke2fs -q -t ext4 -d "$work/files" "$disk" 1G >/dev/null 2>&1
rm -r "$work/files"
echo "disk.img: $(stat -c %s "$disk") bytes, $(du -m "$disk" | cut -f 1) MiB of them in use, $files files"

say "2. snapback serves it, and a guest boots on it"
echo "\$ snapback serve --origin disk.img --socket-path disk.sock &"
"$program" serve --origin "$disk" --socket-path "$work/disk.sock" \
    >"$work/snapback.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
    [ -S "$work/snapback/disk.control.sock" ] && [ -S "$work/disk.sock" ] && break
    kill -0 "$daemon" 2>/dev/null || fail "snapback serve ended at once"
    sleep 0.05
done
boot_guest "$work" "$images" -chardev "socket,id=disk,path=$work/disk.sock,reconnect=1" \
    -device vhost-user-blk-pci,chardev=disk,num-queues=1
guest 'uname -sr; mount /dev/vda /mnt && df -h /mnt | tail -n 1'

say "3. The guest writes continuously"
guest 'mkdir /mnt/busy; (n=0; while :; do n=$((n+1)); dd if=/dev/urandom of=/mnt/busy/$((n%20)) bs=64k count=16 conv=fsync; echo $n >/tmp/n; done) >/dev/null 2>&1 & echo $! >/tmp/writer'
guest 'sleep 1; echo "files written so far: $(cat /tmp/n)"'

say "4. A snapshot is taken while it writes"
# The pause is only for this script's final check: while the guest is paused the disk
# file holds what the snapshot must show, and a copy of it, made without snapback, is
# the reference.
qmp stop
snapback snapshot before --cow "$work/before.cow" --size 1100M
cp --sparse=always "$disk" "$work/reference.img"
qmp cont
guest 'sleep 1; echo "files written so far: $(cat /tmp/n)"'
snapback status
chunk=$(number chunk_sectors)
[ -n "$chunk" ] || fail "the status shows no snapshot"
chunk=$((chunk * 512))

say "5. The guest destroys its data: deletes, overwrites, reformats"
guest 'rm -r /mnt/data && sync && ls /mnt'
guest 'kill $(cat /tmp/writer); umount -l /mnt; dd if=/dev/zero of=/dev/vda bs=1M count=700 seek=100 oflag=direct 2>&1 | tail -n 1'
guest 'mkfs.ext4 -q -F -L wrecked /dev/vda 2>&1; mount /dev/vda /mnt && echo "on the disk now: $(ls /mnt)"; umount /mnt; sync'
snapback status
cmp -s "$disk" "$work/reference.img" && fail "the disk did not change: there is nothing to roll back"

say "6. Rollback to 'before' at the guest's next reset (the rate limit makes the merge visible)"
snapback rollback before --at-reset --rate 32M

say "7. Reset: the guest boots from the old disk while the merge runs"
reset=$(now_ms)
qmp system_reset
wait_boot
guest 'dd if=/dev/vda of=/dev/null bs=4k count=1 2>/dev/null'
first_read=$(($(now_ms) - reset))
echo "from reset to the first read: $(seconds "$first_read") (mostly the guest's own boot)"
snapback status
# Read-only and without the journal: the guest must not change what is compared.
guest 'mount -o ro,noload /dev/vda /mnt && ls /mnt && cd /mnt && sha256sum -c list >/tmp/check 2>&1; echo "files with the right sha256: $(grep -c ": OK" /tmp/check)"' >"$work/check"
cat "$work/check"
grep -q "right sha256: $files\$" "$work/check" || fail "the guest does not see all $files files"
snapback status

say "8. The rest of the merge, without a rate limit"
left=$(number chunks_left)
full_speed=$(now_ms)
[ -z "$left" ] || snapback merge --rate 0
while now=$(number chunks_left) && [ -n "$now" ]; do
    echo "left to merge: $((now * chunk >> 20)) MiB"
    [ $(($(now_ms) - full_speed)) -lt 60000 ] || fail "the merge does not end"
    sleep 0.2
done
full_speed=$(($(now_ms) - full_speed + 1))
if [ -n "$left" ]; then
    speed="$((left * chunk >> 20)) MiB in $(seconds $full_speed), $(((left * chunk >> 20) * 1000 / full_speed)) MiB/s"
else
    speed="32 MiB/s as requested; it ended before the limit was lifted"
fi
snapback status

say "9. Verification"
blocks=$(($(stat -c %s "$disk") / 4096))
if cmp "$disk" "$work/reference.img"; then
    verdict="$blocks of $blocks blocks of 4 KiB are what they were at the snapshot"
else
    fail "the disk differs from what it held at the snapshot"
fi
guest 'cd /; umount /mnt; mount /dev/vda /mnt && echo "still writable" >/mnt/new && sync && umount /mnt && e2fsck -fn /dev/vda 2>&1 | tail -n 1'
qmp quit
wait "$qemu"
qemu=
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon ended with status $?"
daemon=

say "Rolled back"
echo "files:       the guest read all $files correctly${left:+ while the merge ran}"
echo "first read:  $(seconds "$first_read") after the reset"
echo "merge:       $speed"
echo "comparison:  $verdict"
echo "time:        $(seconds $(($(now_ms) - begin))) after the build"
