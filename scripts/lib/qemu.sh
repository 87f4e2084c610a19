# shellcheck shell=bash
# Starts test VMs. Source scripts/lib/common.sh before it.
#
#   guest_start OPTIONS       start a VM in the background; returns when QEMU runs (not when the guest is up)
#   guest_exec OPTIONS        the same, but this process becomes QEMU
#   guest_running NAME        is it still there?
#   guest_wait NAME SECONDS   wait until QEMU has ended; status 1 if it did not in time
#   guest_stop NAME           end it, without asking the guest
#   guest_dir NAME            print the folder with its qemu.pid, qmp.sock, agent.sock and console.log
#
# OPTIONS
#   --name NAME               default "guest"; of two VMs with one name, the second is refused
#   --mem MIB                 default 1024; always shared memory (memfd), as vhost-user needs it
#   --smp N                   default 2
#   --log FILE                the guest's console; default console.log in the VM's folder
#   --agent SOCK              socket of the agent (tests/guest/README.md); default agent.sock in its folder
#   --qmp SOCK                default qmp.sock in its folder
#   --vhost-scsi SOCK[:N]     a vhost-user-scsi device with N request queues (default 2); repeatable.
#                             QEMU connects, so the socket must exist; device ids are vs0, vs1, ...
#   --reconnect MS            let these devices connect again after a loss (needs QEMU 8.2)
#   --scsi-drive FILE         a raw image as a disk of QEMU's own virtio-scsi device; repeatable
#   --drive FILE              a raw image as a virtio-blk disk, with serial number drive0, drive1, ...; repeatable
#   --boot-from-scsi          no kernel and no root disk from the host: the firmware boots the first SCSI disk
#   --root DEVICE             mount this device of the guest as root (e.g. /dev/sda) and do not attach the root disk
#   --firmware seabios|ovmf   default seabios
#   --append WORDS            more words for the kernel command line
#   --no-reboot               QEMU ends when the guest reboots
#   --qemu ARG                one more argument for QEMU; repeatable
#
# The kernel, initramfs and root disk are GUEST_KERNEL, GUEST_INITRD and GUEST_ROOTFS; if they are not set,
# `scripts/guest` is asked (and builds them). A root disk is opened with snapshot=on: each VM starts
# from the same state, and what it writes lasts until QEMU ends, across reboots.

qemu_lib_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# panic=-1: a crash becomes a reboot, which the agent's boot id shows at once. scan=async: loading
# the driver still waits for the scan, but disks are registered only at its end; otherwise, once one disk
# is there, each of the 255 targets that are not costs two grace periods of RCU: nine seconds in all. The
# rest saves time, or stops complaints, under emulation.
guest_cmdline='console=ttyS0,115200 loglevel=5 panic=-1 scsi_mod.scan=async mitigations=off no_timer_check nowatchdog rcupdate.rcu_cpu_stall_timeout=120'

guest_dir() {
    local base=${POLLUX_RUN_DIR:-${XDG_RUNTIME_DIR:-/tmp}/pollux-guests-$(id -u)}
    printf '%s/%s\n' "$base" "$1"
}

guest_parts() { # sets GUEST_KERNEL and so on, building them if need be
    local parts
    [ -z "${GUEST_KERNEL:-}" ] || return 0
    parts=$("$qemu_lib_dir/../guest") || die "cannot build the test VM"
    GUEST_KERNEL=$(sed -n 's/^KERNEL=//p' <<<"$parts")
    GUEST_INITRD=$(sed -n 's/^INITRD=//p' <<<"$parts")
    GUEST_ROOTFS=$(sed -n 's/^ROOTFS=//p' <<<"$parts")
}

# --- acceleration ---------------------------------------------------------------------------------

# A /dev/kvm that opens need not run a guest (nested virtualization without the features that a stock
# kernel wants): only a boot tells. The answer holds until the machine reboots or QEMU changes.
guest_accel() { # prints kvm or tcg
    local file key state
    case ${POLLUX_ACCEL:-} in
    kvm | tcg)
        echo "$POLLUX_ACCEL"
        return
        ;;
    '') ;;
    *) die "POLLUX_ACCEL must be kvm or tcg, not '$POLLUX_ACCEL'" ;;
    esac
    if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
        echo tcg
        return
    fi
    file=$(cache_dir)/accel
    key="$(cat /proc/sys/kernel/random/boot_id) $(qemu_version)"
    if [ -r "$file" ] && state=$(cat "$file") && [ "${state% *}" = "$key" ]; then
        echo "${state##* }"
        return
    fi
    guest_parts
    if guest_probe_kvm; then state=kvm; else state=tcg; fi
    log "acceleration of test VMs: $state"
    echo "$key $state" >"$file.$$" && mv -f "$file.$$" "$file"
    echo "$state"
}

guest_probe_kvm() {
    local dir pid rc=1 n
    log "trying whether KVM boots a guest here (at most 15 s)"
    dir=$(mktemp -d)
    qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine q35 -accel kvm -cpu host \
        -m 256 -kernel "$GUEST_KERNEL" -initrd "$GUEST_INITRD" -serial "file:$dir/console" \
        -append "console=ttyS0,115200 panic=-1 pollux.mode=probe" </dev/null >"$dir/out" 2>&1 &
    pid=$!
    for ((n = 0; n < 75; n++)); do
        if grep -qs POLLUX-PROBE-OK "$dir/console"; then
            rc=0
            break
        fi
        kill -0 $pid 2>/dev/null || break
        sleep 0.2
    done
    kill -KILL $pid 2>/dev/null || true
    wait $pid 2>/dev/null || true
    rm -rf "$dir"
    return $rc
}

guest_accel_args() {
    case $(guest_accel) in
    kvm) echo '-accel kvm -cpu host' ;;
    *) echo '-accel tcg,thread=multi -cpu max' ;;
    esac
}

# --- firmware -------------------------------------------------------------------------------------

guest_firmware() { # sets OVMF_CODE and OVMF_VARS (a template), both empty if the package is not there
    local suffix
    OVMF_CODE='' OVMF_VARS=''
    [ "$1" = ovmf ] || return 0
    for suffix in _4M.fd .fd; do
        if [ -e "/usr/share/OVMF/OVMF_CODE$suffix" ] && [ -e "/usr/share/OVMF/OVMF_VARS$suffix" ]; then
            OVMF_CODE=/usr/share/OVMF/OVMF_CODE$suffix
            OVMF_VARS=/usr/share/OVMF/OVMF_VARS$suffix
            return 0
        fi
    done
}

# --- the command line -----------------------------------------------------------------------------

# Sets QEMU_ARGS and guest_run_dir from OPTIONS.
# shellcheck disable=SC2054  # the commas are QEMU's
guest_args() {
    local name=guest mem=1024 smp=2 log_file='' agent='' qmp='' firmware=seabios boot_scsi='' root='' append='' reconnect=''
    local vhost=() scsi=() drives=() extra=() i sock queues chardev boot=''
    while [ $# -gt 0 ]; do
        case $1 in
        --boot-from-scsi) boot_scsi=yes && shift && continue ;;
        --no-reboot) extra+=(-no-reboot) && shift && continue ;;
        esac
        [ $# -ge 2 ] || die "guest: $1 needs a value"
        case $1 in
        --name) name=$2 ;;
        --mem) mem=$2 ;;
        --smp) smp=$2 ;;
        --log) log_file=$2 ;;
        --agent) agent=$2 ;;
        --qmp) qmp=$2 ;;
        --vhost-scsi) vhost+=("$2") ;;
        --reconnect) reconnect=$2 ;;
        --scsi-drive) scsi+=("$2") ;;
        --drive) drives+=("$2") ;;
        --root) root=$2 ;;
        --firmware) firmware=$2 ;;
        --append) append=$2 ;;
        --qemu) extra+=("$2") ;;
        *) die "guest: unknown option $1" ;;
        esac
        shift 2
    done

    guest_parts
    guest_run_dir=$(guest_dir "$name")
    mkdir -p "$guest_run_dir"
    guest_console=${log_file:-$guest_run_dir/console.log}
    local accel
    read -r -a accel <<<"$(guest_accel_args)"
    QEMU_ARGS=(
        -name "$name" -nodefaults -no-user-config -display none
        -machine q35 "${accel[@]}" -smp "$smp" -m "${mem}M"
        -object "memory-backend-memfd,id=mem,size=${mem}M,share=on" -numa node,memdev=mem
        -chardev "file,id=console,path=$guest_console" -serial chardev:console
        -qmp "unix:${qmp:-$guest_run_dir/qmp.sock},server=on,wait=off"
        -device virtio-serial-pci,id=vser
        -chardev "socket,id=agent,path=${agent:-$guest_run_dir/agent.sock},server=on,wait=off"
        -device virtserialport,bus=vser.0,chardev=agent,name=org.pollux.agent
    )

    case $firmware in
    seabios) ;;
    ovmf)
        guest_firmware ovmf
        [ -n "$OVMF_CODE" ] || die "no OVMF firmware here (package ovmf)"
        # the guest writes its variables: each VM gets a copy of its own
        cp "$OVMF_VARS" "$guest_run_dir/vars.fd"
        QEMU_ARGS+=(
            -drive "if=pflash,unit=0,format=raw,readonly=on,file=$OVMF_CODE"
            -drive "if=pflash,unit=1,format=raw,file=$guest_run_dir/vars.fd"
        )
        ;;
    *) die "guest: no such firmware: $firmware" ;;
    esac

    if [ -z "$boot_scsi" ]; then
        QEMU_ARGS+=(
            -kernel "$GUEST_KERNEL" -initrd "$GUEST_INITRD"
            -append "$guest_cmdline ${root:+pollux.root=$root }$append"
        )
        [ -n "$root" ] || QEMU_ARGS+=(
            -drive "if=none,id=root,format=raw,snapshot=on,cache=unsafe,file=$GUEST_ROOTFS"
            -device virtio-blk-pci,drive=root,serial=pollux-root
        )
    fi

    for i in "${!vhost[@]}"; do
        sock=${vhost[i]} queues=2
        if [[ $sock =~ ^(.*):([0-9]+)$ ]]; then
            sock=${BASH_REMATCH[1]} queues=${BASH_REMATCH[2]}
        fi
        chardev="socket,id=vs${i}c,path=$sock"
        if [ -n "$reconnect" ]; then
            # seconds only, at first; milliseconds came later and replaced them
            if [ "$(qemu_version)" -ge 90200 ]; then
                chardev+=",reconnect-ms=$reconnect"
            else
                chardev+=",reconnect=$(((reconnect + 999) / 1000))"
            fi
        fi
        boot=
        [ -z "$boot_scsi" ] || [ "$i" != 0 ] || boot=,bootindex=0
        QEMU_ARGS+=(-chardev "$chardev" -device "vhost-user-scsi-pci,id=vs$i,chardev=vs${i}c,num_queues=$queues$boot")
    done
    if [ "${#scsi[@]}" -gt 0 ]; then
        QEMU_ARGS+=(-device "virtio-scsi-pci,id=qs,num_queues=$smp")
        for i in "${!scsi[@]}"; do
            boot=
            [ -z "$boot_scsi" ] || [ "${#vhost[@]}" -gt 0 ] || [ "$i" != 0 ] || boot=,bootindex=0
            QEMU_ARGS+=(-drive "if=none,id=qsd$i,format=raw,file=${scsi[i]}" -device "scsi-hd,bus=qs.0,drive=qsd$i$boot")
        done
    fi
    for i in "${!drives[@]}"; do
        QEMU_ARGS+=(-drive "if=none,id=drive$i,format=raw,file=${drives[i]}" -device "virtio-blk-pci,drive=drive$i,serial=drive$i")
    done
    QEMU_ARGS+=("${extra[@]}")
}

# --- life of a VM ---------------------------------------------------------------------------------

guest_pid() { cat "$(guest_dir "$1")/qemu.pid" 2>/dev/null; }

guest_running() {
    local pid
    pid=$(guest_pid "$1") || return 1
    # the number may have gone to another process since
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = qemu-system-x86 ]
}

guest_name_of() { # finds --name among OPTIONS
    local name=guest
    while [ $# -gt 0 ]; do
        [ "$1" != --name ] || name=${2:-guest}
        shift
    done
    printf '%s\n' "$name"
}

guest_start() {
    local name pid n
    name=$(guest_name_of "$@")
    ! guest_running "$name" || die "a VM named '$name' runs already (process $(guest_pid "$name"))"
    guest_args "$@"
    rm -f "$guest_run_dir/qemu.pid"
    qemu-system-x86_64 "${QEMU_ARGS[@]}" -pidfile "$guest_run_dir/qemu.pid" \
        </dev/null >"$guest_run_dir/qemu.log" 2>&1 &
    pid=$!
    # QEMU writes the file when its devices exist; one that cannot start ends before
    for ((n = 0; n < 300; n++)); do
        [ ! -s "$guest_run_dir/qemu.pid" ] || return 0
        kill -0 $pid 2>/dev/null || break
        sleep 0.1
    done
    kill $pid 2>/dev/null || true
    cat "$guest_run_dir/qemu.log" >&2
    die "the VM '$name' did not start (see above)"
}

guest_exec() {
    local name
    name=$(guest_name_of "$@")
    ! guest_running "$name" || die "a VM named '$name' runs already (process $(guest_pid "$name"))"
    guest_args "$@"
    exec qemu-system-x86_64 "${QEMU_ARGS[@]}" -pidfile "$guest_run_dir/qemu.pid"
}

guest_wait() {
    local n
    for ((n = 0; n < $2 * 5; n++)); do
        guest_running "$1" || return 0
        sleep 0.2
    done
    return 1
}

guest_stop() {
    local pid
    guest_running "$1" || return 0
    pid=$(guest_pid "$1")
    kill "$pid" 2>/dev/null || true
    guest_wait "$1" 5 || kill -KILL "$pid" 2>/dev/null || true
    guest_wait "$1" 5
}
