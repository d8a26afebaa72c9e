# shellcheck shell=bash
# A guest for shell scripts (sourced): QEMU's monitor and the guest's command
# line over named pipes. See images/guest/init for the guest's side. The caller
# defines `fail MESSAGE`, which ends the script.

# boot_guest DIR IMAGES QEMU_OPTION...: starts QEMU and waits until the guest is
# up. Pipes and logs go to DIR; $qemu is the process afterwards.
boot_guest() {
    local dir=$1 images=$2
    shift 2
    mkfifo "$dir"/{port,qmp}.{in,out}
    # Both ends of each pipe are held open, so nothing blocks and nothing is lost.
    exec {port_in}<>"$dir/port.in" {port_out}<>"$dir/port.out"
    exec {qmp_in}<>"$dir/qmp.in" {qmp_out}<>"$dir/qmp.out"
    qemu-system-x86_64 -accel tcg -cpu max -smp 1 -nodefaults -display none \
        -object memory-backend-memfd,id=mem,size=256M,share=on -machine q35,memory-backend=mem \
        -kernel "$images/vmlinuz" -initrd "$images/initramfs" -append "console=ttyS0 quiet panic=-1 no_timer_check" \
        -serial "file:$dir/console" \
        -chardev "pipe,id=port,path=$dir/port" -serial chardev:port \
        -chardev "pipe,id=qmp,path=$dir/qmp" -mon chardev=qmp,mode=control \
        "$@" >"$dir/qemu.log" 2>&1 &
    # shellcheck disable=SC2034 # for the caller
    qemu=$!
    boot_id='' sequence=0
    wait_boot
    qmp qmp_capabilities
}

# wait_boot: returns when the guest has started (again) and takes commands.
wait_boot() {
    local word id
    while read -r -t 60 -u "$port_out" word id; do
        if [ "$word" = READY ] && [ "$id" != "$boot_id" ]; then
            boot_id=$id
            return
        fi
    done
    fail "the guest does not start"
}

# guest COMMAND: runs it in the guest, prints its output, returns its status.
guest() {
    local mark number status length output
    sequence=$((sequence + 1))
    echo "$sequence $*" >&"$port_in"
    while read -r -t 120 -u "$port_out" mark number status length; do
        if [ "$mark" = = ] && [ "$number" = "$sequence" ]; then
            LC_ALL=C IFS= read -r -N "$length" -u "$port_out" output || [ "$length" = 0 ]
            printf '%s' "$output"
            return "$status"
        fi
    done
    fail "the guest does not answer: $*"
}

# qmp COMMAND: runs a command of QEMU's monitor that needs no arguments.
qmp() {
    local answer
    printf '{"execute":"%s"}\n' "$1" >&"$qmp_in"
    while read -r -t 60 -u "$qmp_out" answer; do
        case $answer in
            '{"return"'*) return ;;
            '{"error"'*) fail "QMP $1: $answer" ;;
        esac
    done
    fail "QEMU's monitor does not answer: $1"
}
