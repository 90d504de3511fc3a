# Starts the daemon and QEMU, and talks with the guest. Sourced by qemu/run.
#
# The guest's init (qemu/guest/init) says on the port gatherfs.ctl what it does; the jobs add the
# lines of the table. QEMU connects each port to a pair of pipes, NAME.in and NAME.out.
#
# The variables come from qemu/run.
# shellcheck shell=bash disable=SC2034,SC2154

# --- processes --------------------------------------------------------------------------------

alive() { [[ -n $1 ]] && kill -0 "$1" 2>/dev/null; }

# end_process PID: asks, waits two seconds, kills.
end_process() {
    local pid=$1 i
    alive "$pid" || return 0
    kill "$pid" 2>/dev/null || return 0
    for ((i = 0; i < 40; i++)); do
        alive "$pid" || break
        sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
}

# guest_lost REASON: the guest or the daemon is gone; what they said last is shown after it.
guest_lost() {
    (die "$1") || true
    show_logs
    exit 125
}

show_logs() {
    end_of_log "the guest's console" "$run_dir/console.log"
    end_of_log "QEMU's messages" "$run_dir/qemu.log"
    end_of_log "the messages of $daemon_name" "$run_dir/daemon.log"
}

# --- the daemon -------------------------------------------------------------------------------

start_daemon() {
    [[ -z $pin ]] || pinned=(taskset -c "$pin")
    local socket=$run_dir/fs.sock word command=() i
    for word in $daemon_command $daemon_args; do
        word=${word//'{socket}'/$socket}
        word=${word//'{dir}'/$share}
        word=${word//'{tag}'/$tag}
        command+=("$word")
    done
    "${pinned[@]}" "${command[@]}" </dev/null >"$run_dir/daemon.log" 2>&1 &
    daemon_pid=$!
    for ((i = 0; i < 500; i++)); do
        [[ ! -S $socket ]] || return 0
        alive "$daemon_pid" || break
        sleep 0.02
    done
    guest_lost "$daemon_name made no socket. It was started as: ${command[*]}"
}

# Does the daemon have a handler for SIGUSR1? A peer without one would be ended by it.
has_metrics() {
    local mask
    mask=$(awk '$1 == "SigBlk:" || $1 == "SigCgt:" { print $2 }' "/proc/$daemon_pid/status" 2>/dev/null) || return 1
    for mask in $mask; do ((0x${mask: -4} & 0x200)) && return 0; done
    return 1
}

# A line of counters: JSON, alone or after the words that older daemons put before it.
METRICS_LINE='^(gatherfsd: metrics )?[{].*"requests":[{].*}$'

# read_metrics: asks the daemon for its counters and leaves the line in $metrics, empty if none.
read_metrics() {
    local before now i
    metrics=''
    has_metrics || return 0
    before=$(grep -cE "$METRICS_LINE" "$run_dir/daemon.log") || true
    kill -USR1 "$daemon_pid"
    for ((i = 0; i < 200; i++)); do
        now=$(grep -cE "$METRICS_LINE" "$run_dir/daemon.log") || true
        ((now <= before)) || { metrics=$(grep -E "$METRICS_LINE" "$run_dir/daemon.log" | tail -n 1); return 0; }
        sleep 0.01
    done
}

# --- the guest --------------------------------------------------------------------------------

# make_job: the second half of the initramfs, made anew for each run, joined to the first.
make_job() {
    local job=$run_dir/job pair file
    mkdir -p "$job/job/bin"
    {
        printf 'TAG=%q\nMOUNT_OPTS=%q\nMAX_PAGES=%q\nTERM=%q\n' "$tag" "$mount_opts" "$max_pages" "${TERM:-linux}"
        for pair in "${guest_env[@]}"; do quoted_export "$pair"; done
        case $mode in
            jobs) printf 'SCRIPT=1\nTALK=1\nexport JOB_SECONDS=%q\n' "$job_seconds" ;;
            script) printf 'SCRIPT=1\nTALK=%q\n' "$records" ;;
            shell) printf 'SCRIPT=\nROWS=%q\nCOLS=%q\n' "$(stty size 2>/dev/null | cut -d' ' -f1)" "$(stty size 2>/dev/null | cut -d' ' -f2)" ;;
        esac
        # Quoted twice: once for the assignment, once for the `eval` that uses it.
        ((${#script_args[@]} == 0)) || quoted_export "ARGS=$(for file in "${script_args[@]}"; do single_quoted "$file"; echo -n ' '; done)"
    } >"$job/job/env"
    case $mode in
        jobs) cp "$repo/qemu/guest/jobs" "$job/job/script"; cp "$guest_dir/tree.tar" "$job/job/" ;;
        script) cp "$script" "$job/job/script" ;;
    esac
    for file in "${with[@]}"; do install -m 755 "$file" "$job/job/bin/"; done
    [[ ! -f $job/job/script ]] || chmod 755 "$job/job/script"
    pack "$job" "$run_dir/job.cpio"
    cat "$guest_dir/base.cpio" "$guest_dir/tools.cpio" "${archives[@]}" "$run_dir/job.cpio" >"$run_dir/initrd"
    rm -rf "$job" "$run_dir/job.cpio"
}

# In single quotes, because the guest's sh does not know all of bash's quoting.
single_quoted() { printf "'%s'" "${1//\'/\'\\\'\'}"; }
quoted_export() { printf 'export %s=%s\n' "${1%%=*}" "$(single_quoted "${1#*=}")"; }

# /dev/kvm alone proves nothing: it may be there on a CPU without the instructions.
cpu_has_kvm() { grep -qwE 'vmx|svm' /proc/cpuinfo; }
kvm_opens() { (exec 8<>/dev/kvm) 2>/dev/null; }

choose_accel() {
    [[ -z $accel ]] || return 0
    accel=tcg
    if cpu_has_kvm && kvm_opens; then accel=kvm; fi
}

# need_kvm: for --accel kvm.
need_kvm() {
    local other="leave --accel out to run the guest in emulation"
    cpu_has_kvm || die "--accel kvm: this machine's CPU shows no virtualisation (vmx or svm in /proc/cpuinfo); $other."
    [[ -e /dev/kvm ]] || die "--accel kvm: there is no /dev/kvm; load the module kvm_intel or kvm_amd, or $other."
    kvm_opens || die "--accel kvm: $(id -un) cannot open /dev/kvm; add the user to the group $(stat -c %G /dev/kvm), or $other."
}

# uml_command: fills the array qemu with a User-mode Linux guest. Its consoles 1 to 3 are what the serial ports are under QEMU.
uml_command() {
    local port
    # Guest memory lies in TMPDIR.
    qemu=(env TMPDIR=/dev/shm "$uml" "mem=${mem}M" "ncpus=$cpus" "virtio_uml.device=$run_dir/fs.sock:26" "initrd=$run_dir/initrd"
        con=null con0=null,fd:1 con1=fd:3,fd:4 con2=null,fd:7 con3=null,fd:8 "umid=${run_dir##*/}" "uml_dir=$run_dir/"
        quiet rdinit=/init seccomp=on "${guest_args[@]}")
    for port in ctl out err; do mkfifo "$run_dir/$port.in" "$run_dir/$port.out"; done
}

# start_guest: in the background, with the process id in $qemu_pid.
start_guest() {
    local console=$run_dir/qemu.log
    if [[ -n $uml ]]; then
        console=$run_dir/console.log
        # Only the guest may hold the pipes open: their end is its end.
        (exec 3<>"$run_dir/ctl.in" 4<>"$run_dir/ctl.out" 7<>"$run_dir/out.out" 8<>"$run_dir/err.out" 5>&- 6>&-
            exec "${pinned[@]}" "${qemu[@]}" </dev/null >"$console" 2>&1) &
    else
        "${pinned[@]}" "${qemu[@]}" </dev/null >"$console" 2>&1 5>&- 6>&- &
    fi
    qemu_pid=$!
}

# qemu_command CONSOLE: fills the array qemu; CONSOLE is a chardev without its id.
qemu_command() {
    choose_accel
    local device=vhost-user-fs-pci,chardev=fs,tag=$tag,num-request-queues=$queues port
    [[ -z $queue_size ]] || device+=,queue-size=$queue_size
    [[ -z $device_args ]] || device+=,$device_args
    local cmdline="console=hvc0 quiet rdinit=/init panic=-1 nokaslr mitigations=off random.trust_cpu=on tsc=reliable no_timer_check"
    qemu=(qemu-system-x86_64 -M q35 -m "$mem" -smp "$cpus" -nodefaults -no-user-config -display none
        -kernel "$kernel_file" -initrd "$run_dir/initrd" -append "$cmdline ${guest_args[*]}"
        -object "memory-backend-memfd,id=mem,size=${mem}M,share=on" -numa "node,memdev=mem"
        -chardev "socket,id=fs,path=$run_dir/fs.sock" -device "$device"
        -chardev "$1,id=console" -device virtio-serial-pci -device "virtconsole,chardev=console")
    case $accel in
        kvm) qemu+=(-accel kvm -cpu host) ;;
        # QEMU 7.2 gets cmpxchg16b wrong in emulation: the guest panics in its allocator. Without cx16 it is not used.
        tcg) qemu+=(-accel "tcg,thread=multi" -cpu "max,cx16=off") ;;
    esac
    # Without this a panic would boot again and again.
    [[ -n $allow_reboot ]] || qemu+=(-no-reboot)
    for port in ctl out err; do
        mkfifo "$run_dir/$port.in" "$run_dir/$port.out"
        qemu+=(-chardev "pipe,id=$port,path=$run_dir/$port" -device "virtserialport,chardev=$port,name=gatherfs.$port")
    done
    qemu+=("${qemu_args[@]}")
}

say_booting() {
    [[ -z $uml ]] || { progress "booting User-mode Linux"; return 0; }
    case $accel in
        kvm) progress "booting, which takes a few seconds" ;;
        tcg) progress "booting in emulation (TCG), which takes 5 to 30 seconds" ;;
    esac
}

# The shell has the terminal; only the daemon runs beside it.
run_shell() {
    qemu_command stdio,signal=off
    [[ ! -t 0 ]] || terminal=$(stty -g)
    exec 5<>"$run_dir/ctl.in" 6<>"$run_dir/ctl.out"
    progress "the guest's /mnt/share is $share here${own_share:+; it is removed at the end}"
    say_booting
    "${qemu[@]}" 2>"$run_dir/qemu.log" || guest_lost "QEMU ended with status $?."
    local line=''
    while read -r -t 0.1 line <&6; do
        [[ $line != dead* ]] || guest_lost "${line#dead }"
    done
    [[ $line != mounted* ]] || guest_lost "the guest ended before its shell did."
}

check_time() {
    ((SECONDS >= timeout)) || return 0
    echo "qemu/run: the guest did not end in time: the timeout of $timeout s is over." >&2
    show_logs
    exit 124
}

# run_guest: boots, follows the guest line by line until it has ended, reports.
run_guest() {
    local started_at line='' part verb rest status='' orphaned=0 i
    if [[ -n $uml ]]; then uml_command; else qemu_command "file,path=$run_dir/console.log"; fi
    exec 5<>"$run_dir/ctl.in" 6<>"$run_dir/ctl.out"
    cat "$run_dir/out.out" &
    cat_out=$!
    cat "$run_dir/err.out" >&2 &
    cat_err=$!
    say_booting
    started_at=$EPOCHREALTIME
    start_guest
    while :; do
        if ! read -r -t 1 part <&6; then
            # A line may come in two halves.
            line+=$part
            check_time
            alive "$qemu_pid" || break
            # Without its daemon QEMU would wait for ever. The guest's last lines may still be on their way.
            alive "$daemon_pid" || ((++orphaned < 3)) || break
            continue
        fi
        line+=$part
        read -r verb rest <<<"$line"
        line=''
        case $verb in
            mounted) mounted "$started_at" "$rest" ;;
            jobs) jobs_total=$rest ;;
            begin | end) phase "$verb" "$rest"; echo go >&5 ;;
            row) add_row "$rest" ;;
            fail) add_failure "$rest" ;;
            dead) dead=$rest ;;
            exit) status=$rest ;;
        esac
        check_time
        [[ -z $status ]] || break
    done
    for ((i = orphaned * 100; i < 100; i++)); do
        alive "$qemu_pid" || break
        sleep 0.05
    done
    end_process "$qemu_pid"
    wait "$cat_out" "$cat_err" || true
    [[ -z ${dead:-} ]] || guest_lost "$dead"
    if [[ -z $status ]]; then
        ((orphaned == 0)) || guest_lost "$daemon_name ended while the guest ran."
        guest_lost "$(why_ended)"
    fi
    if grep -q "panicked at" "$run_dir/daemon.log"; then
        add_failure "$daemon_name: it panicked"
        end_of_log "the messages of $daemon_name" "$run_dir/daemon.log"
    fi
    case $mode in
        jobs) finish_table "$status" ;;
        script) ((${#failures[@]} == 0)) || die "${failures[0]}"; exit "$status" ;;
    esac
}

# phase VERB NAME: a phase of the guest's job begins or ends.
phase() {
    if [[ -n $records ]]; then
        record "$1" "$2"
    elif [[ $1 == begin ]]; then
        read_metrics
        phase_metrics=$metrics
        begin_job "$2"
    else
        read_metrics
        phase_counts "$phase_metrics" "$metrics"
    fi
}

why_ended() {
    local panic
    panic=$(sed -n 's/.*Kernel panic - not syncing: //p' "$run_dir/console.log" | head -n 1 | tr -d '\r')
    if [[ -n $panic ]]; then echo "the guest's kernel panicked: $panic."; else echo "the guest ended before its job did."; fi
}

# mounted STARTED_AT "RELEASE QUEUES": the share is there.
mounted() {
    boot_seconds=$(awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')
    read -r guest_release guest_queues <<<"$2"
    if [[ $mode == jobs ]]; then begin_table; else progress "mounted after $boot_seconds s: Linux $guest_release, $guest_queues request queue(s)"; fi
}
