#!/bin/bash
# Runs inside of a booted Debian, as a unit of it: installs the package, does what docs/first-service.md
# says, upgrades the package while a guest uses a disk, removes and purges it. Prints what fails.
set -u
export PATH=/usr/sbin:/usr/bin DEBIAN_FRONTEND=noninteractive HOME=/root
disk=$(cat /share/name)
fail() {
    echo "FAILED: $*"
    systemctl status --no-pager -l 'snapback@*'
    journalctl --no-pager -t snapback -t systemd | tail -40
    exit 1
}
# step NAME: tells the other side that this point is reached. after NAME: waits for the other side.
step() { touch "/share/$1"; }
after() { until [[ -e /share/$1 ]]; do sleep 0.05; done; }
# page TEXT: runs the next block of the page, in which TEXT is.
block=0
page() {
    block=$((block + 1))
    grep -qF -- "$1" "/share/page/$block" || fail "block $block of the page has no '$1'"
    trap 'fail "block $block of the page"' EXIT
    set -e
    # shellcheck disable=SC1090
    . "/share/page/$block"
    set +e
    trap - EXIT
}
installed() { apt-get -q -y install "$1" >/share/apt 2>&1 || fail "installation: $(cat /share/apt)"; }
state() { systemctl show --value -p "$1" "snapback@$2"; }
# There is no KVM, and no screen.
qemu-system-x86_64() { command qemu-system-x86_64 "${@/kvm/tcg}" -display none; }

# What a machine for builds forbids, and an index of man pages, which takes long.
rm -f /usr/sbin/policy-rc.d /var/lib/man-db/auto-update
cd /root || fail "no home"
cp /share/*.deb .

page "apt install"
[[ -d /etc/snapback && $(systemctl list-units --no-legend 'snapback@*') == "" ]] || fail "something is served"
getent passwd snapback >/dev/null || fail "no user"
[[ -s $(man -w snapback-serve) ]] || fail "no man page"
[[ $(fish -c 'complete -C "snapback rollb"') == rollback* ]] || fail "fish does not find the completions"
[[ $(zsh -f -c 'autoload -Uz compinit; compinit -u -d /root/dump; print $_comps[snapback]') == _snapback ]] ||
    fail "zsh does not find the completions"
bash --norc -c '. /usr/share/bash-completion/completions/snapback; complete -p snapback' >/dev/null ||
    fail "bash does not take the completions"
backend=$(sed -n 's/.*"binary": "\(.*\)".*/\1/p' /usr/share/qemu/vhost-user/50-snapback.json)
"$backend" --print-capabilities >/dev/null || fail "QEMU's descriptor names $backend"
for file in /usr/share/doc/snapback/{copyright,changelog.Debian.gz,README.md,docs/views.svg,examples/example.toml}; do
    [[ -s $file ]] || fail "no $file"
done
snapback --version >/dev/null && page "/etc/snapback/vm1.toml"

page "systemctl enable --now"
[[ $(state ActiveState vm1) == active ]] || fail "the page's disk is not served"
block=$((block + 1))
grep -q "qemu-system" "/share/page/$block" || fail "block $block of the page starts no guest"
# shellcheck disable=SC1090
(. "/share/page/$block") >/share/qemu 2>&1 &
until snapback status | grep -q attached; do
    kill -0 $! 2>/dev/null || fail "QEMU ended: $(cat /share/qemu)"
    sleep 0.1
done
page "snapback snapshot"
snapback status | grep -q before || fail "no snapshot"
page "snapback rollback"
[[ ! -e /srv/vm1.before.cow ]] || fail "the COW is left"
page "journalctl"
page "metrics.conf"
snapback status | grep -q attached || sleep 2
snapback status | grep -q attached || fail "QEMU does not come back after a restart"

# Two more disks: one for a guest that notices every lost or repeated request, and one whose
# configuration the next program does not accept, beside which its disk is.
sed "s|/var/lib/vm/NAME.img|/share/vm/disk.img|; s|/run/snapback/NAME/disk.sock|/share/vm/disk.sock|; s/NAME/$disk/" \
    /usr/share/doc/snapback/examples/example.toml >"/etc/snapback/$disk.toml"
printf '%s\n' 'origin = "stays.img"' 'read-only = true' 'socket-path = "/run/snapback/stays/disk.sock"' >/etc/snapback/stays.toml
truncate -s 1M /etc/snapback/stays.img
systemctl enable --now "snapback@$disk" snapback@stays || fail "more disks"
control=/run/snapback/$disk/control.sock
snapback snapshot kept --cow /share/vm/kept.cow --size 12M --control "$control" || fail "a snapshot"
step serving
after loaded
echo 'colour = 1' >>/etc/snapback/stays.toml
before="$(state MainPID "$disk") $(state MainPID stays) $(state MainPID vm1)"
socket=$(stat -c '%d %i' /share/vm/disk.sock)
apt() { command apt "$@" 2>&1 | tee /share/apt; }
page "apt install"
unset -f apt
now="$(state MainPID "$disk") $(state MainPID stays) $(state MainPID vm1)"
[[ $(stat -c '%d %i' /share/vm/disk.sock) == "$socket" ]] || fail "another socket"
read -r a b c <<<"$before"
read -r d e f <<<"$now"
[[ $a != "$d" && $c != "$f" ]] || fail "not restarted: $before, $now"
[[ $b == "$e" && $(state ActiveState stays) == active ]] || fail "restarted with a wrong configuration"
grep -q "unknown key .colour" /share/apt || fail "the upgrade does not say what is wrong"
grep -q "snapback@stays.service goes on with the old program; mend /etc/snapback/stays.toml" /share/apt || fail "nor what to do"
step upgraded
after left
sed -i '/colour/d' /etc/snapback/stays.toml
systemctl restart snapback@stays || fail "the restart that the upgrade asked for"
journalctl --sync
journalctl --no-pager -q -o json -t snapback >/share/journal.json

page "apt remove"
[[ $(systemctl list-units --no-legend 'snapback@*') == "" ]] || fail "served without the package"
[[ -s /etc/snapback/$disk.toml && -s /share/vm/kept.cow && ! -e /usr/bin/snapback ]] || fail "removed: $(ls /etc/snapback /share/vm)"
installed ./snapback_0.2.0-1_amd64.deb
systemctl is-enabled --quiet "snapback@$disk" || fail "not enabled after another installation"
systemctl start "snapback@$disk" || fail "not started after another installation"
snapback status --control "$control" | grep -q kept || fail "the snapshot is lost"
systemctl stop "snapback@$disk"
cp /share/vm/kept.cow /share/vm/kept.cow.before
cp /share/vm/disk.img.snapback /share/vm/state.before
page "apt purge"
[[ $(ls /etc/snapback) == stays.img ]] || fail "after the purge: $(ls /etc/snapback)"
[[ $(ls /etc/systemd/system/*.wants/snapback@* 2>/dev/null) == "" ]] || fail "units are still enabled"
cmp /share/vm/disk.img.snapback /share/vm/state.before || fail "the state file"
cmp /share/vm/kept.cow /share/vm/kept.cow.before || fail "the COW"
[[ -s /srv/vm1.img && -s /srv/vm1.img.snapback && ! -e /share/page/$((block + 1)) ]] || fail "the page's disk, or its end"
echo PASSED
