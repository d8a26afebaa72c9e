#!/bin/bash
# Runs inside of a booted systemd, as a unit of it: the unit of the package serves a disk, is restarted
# under clients, killed, reloaded, activated by a socket, and stopped. Prints what fails.
set -u
export PATH=/program:/usr/sbin:/usr/bin
socket=/run/snapback/vm/control.sock
fail() {
    echo "FAILED: $*"
    systemctl status --no-pager -l snapback@vm
    journalctl --no-pager -t snapback -t systemd | tail -40
    exit 1
}
state() { systemctl show --value -p "$1" snapback@vm; }
status() { snapback status --control "$socket"; }

systemctl start snapback@vm || fail "the unit does not start"
[[ $(state StatusText) == "serving /share/vm/disk.img with 0 snapshots" ]] || fail "status: $(state StatusText)"
[[ $(state NFileDescriptorStore) == 2 ]] || fail "kept: $(state NFileDescriptorStore)"
snapback snapshot before --cow /share/vm/before.cow --size 1M --socket-path /run/snapback/vm/before.sock \
    --control "$socket" || fail "snapshot"
[[ $(state NFileDescriptorStore) == 3 ]] || fail "kept: $(state NFileDescriptorStore)"

snapback status --json --control "$socket" | grep -q 'system calls limited, files limited' ||
    fail "the sandbox: $(snapback status --json --control "$socket")"

# Clients during restarts: none may find nobody. One that the last daemon had accepted already is hung
# up, as at each stop.
first=$(state MainPID)
(
    for _ in {1..30}; do
        answer=$(status 2>&1) || [[ $answer == *"ended before it answered"* ]] || echo "$answer" >>/share/failed
    done
) &
clients=$!
for _ in 1 2 3; do
    systemctl restart snapback@vm || fail "restart"
done
wait "$clients"
[[ ! -e /share/failed ]] || fail "clients during restarts: $(cat /share/failed)"
[[ $(state MainPID) != "$first" ]] || fail "it was not restarted"
[[ $(state NFileDescriptorStore) == 3 ]] || fail "kept: $(state NFileDescriptorStore)"

# A killed daemon comes back with its sockets.
kill -KILL "$(state MainPID)"
status >/dev/null || fail "a client after a kill"
systemctl is-active --quiet snapback@vm || fail "not active after a kill"

# A reload, and the journal with its fields.
echo 'log-level = "debug"' >>/etc/snapback/vm.toml
systemctl reload snapback@vm || fail "reload"
journalctl --sync
journalctl --no-pager -q VOLUME=/share/vm/disk.img | grep -q "read again, and is in effect" || fail "reload in the journal"
journalctl --no-pager -q SNAPSHOT=before PRIORITY=6 | grep -q "snapshot taken" || fail "fields in the journal"

# Under the unit's restrictions.
snapback rollback before --now --control "$socket" || fail "rollback"
snapback merge --wait --control "$socket" || fail "the merge of the rollback"

echo 'sandbox = "require"' >>/etc/snapback/vm.toml
# So many starts in such a short time are not for an operator.
systemctl reset-failed snapback@vm
systemctl restart snapback@vm || fail "with --sandbox require"
sed -i '/^sandbox/d' /etc/snapback/vm.toml

# With the drop-ins of docs/service.md: sockets, also those that were kept, for a group; and metrics.
systemd-sysusers /share/snapback.sysusers || fail "no user"
mkdir -p /run/systemd/system/snapback@vm.service.d
printf '%s\n' '[Service]' Group=snapback >/run/systemd/system/snapback@vm.service.d/group.conf
cp /share/metrics.conf /run/systemd/system/snapback@vm.service.d/metrics.conf
printf '%s\n' 'socket-group = "snapback"' 'metrics = "127.0.0.1:9750"' >>/etc/snapback/vm.toml
systemctl daemon-reload
systemctl restart snapback@vm || fail "with a group and metrics"
[[ $(stat -c '%G %a' /run/snapback/vm/disk.sock) == "snapback 660" ]] || fail "the group of the disk's socket"
[[ $(stat -c %a "$socket") == 600 ]] || fail "the mode of the control socket"
[[ $(stat -c '%G %a' /run/snapback/vm) == "snapback 750" ]] || fail "the group of the folder"
curl -sf http://127.0.0.1:9750/metrics | grep -q '^snapback_' || fail "metrics"

systemctl stop snapback@vm || fail "stop"
[[ $(state Result) == success ]] || fail "stopped: $(state Result)"
[[ ! -e $socket ]] || fail "the folder of the sockets is left"

# A socket unit. The daemon starts when a front end connects.
sed -i '/socket-path/d' /etc/snapback/vm.toml
systemctl start snapback@vm.socket || fail "the socket unit"
[[ -S /run/snapback/vm.disk.sock ]] || fail "no socket"
systemctl start snapback@vm || fail "with a socket unit"
status | grep -q origin || fail "status with a socket unit"
[[ -S /run/snapback/vm.disk.sock ]] || fail "the socket is gone"
systemctl stop snapback@vm.socket snapback@vm || fail "stop with a socket unit"

# A disk without a configuration.
systemctl start snapback@typo && fail "a disk without a configuration starts"

# A configuration that is not valid.
echo 'colour = 1' >>/etc/snapback/vm.toml
systemctl start snapback@vm && fail "a wrong configuration starts"
journalctl --sync
journalctl --no-pager -q -p err | grep -q "unknown key .colour" || fail "the reason in the journal"
echo PASSED
