# A qemu/run that goes on in the background while this machine does something to its daemon or its share, and SQLite for both sides.
# Sourced by qemu/torture and qemu/two-guests.
#
# die, end_of_log and reason_of come from messages.sh and the script, fetch_packages and the like from prepare.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# prepare_programs: what qemu/run needs, the C programs in the array programs, and SQLite as an archive for the guest.
prepare_programs() {
    local dir=$guest_dir/sqlite
    local -a prepare=(--prepare)
    [[ -n $build ]] || prepare+=(--no-build)
    [[ -z $uml ]] || prepare+=(--kernel "$uml")
    "$repo/qemu/run" "${prepare[@]}" 2>"$work/prepared" || { cat "$work/prepared" >&2; exit 125; }
    exec 9>"$guest_dir/lock"
    flock 9
    compile "${programs[@]}"
    fetch_packages "$dir/packages" sqlite3
    if [[ ! $dir/archive.cpio -nt $dir/packages/.packages ]]; then
        stage_programs "$dir/stage" "$dir/packages" sqlite3
        pack "$dir/stage" "$dir/archive.new"
        mv "$dir/archive.new" "$dir/archive.cpio"
        rm -rf "$dir/stage"
    fi
    exec 9>&-
}

# sqlite_on_host DIR: makes DIR/sqlite3, which runs the packages' own.
sqlite_on_host() {
    local packages=$guest_dir/sqlite/packages library=lib/x86_64-linux-gnu
    mkdir -p "$1"
    printf '#!/bin/sh\nexec %q --library-path %q:%q %q "$@"\n' "$(loader_below "$packages")" "$packages/$library" "$packages/usr/$library" \
        "$(program_below "$packages" sqlite3)" >"$1/sqlite3"
    chmod 755 "$1/sqlite3"
}

# new_share: a directory in $share, below $on.
new_share() {
    share=$(mktemp -d "$on/gatherfs.XXXXXX")
    chmod 755 "$share"
}

# start_run NAME OPTION...: qemu/run with these options in the background. Its process id is in $run_pid, what it prints in
# $work/NAME.out and $work/NAME.err, its daemon's process id in $daemon_pid, and the daemon's log in $daemon_log.
start_run() {
    local name=$1 pid i
    shift
    [[ -z $uml ]] || set -- --uml "$uml" "$@"
    "$repo/qemu/run" --quiet --no-build "$@" >"$work/$name.out" 2>"$work/$name.err" &
    run_pid=$!
    for ((i = 0; i < 300; i++)); do
        for pid in $(children_of "$run_pid"); do
            [[ $(cat "/proc/$pid/comm" 2>/dev/null) == gatherfsd ]] || continue
            daemon_pid=$pid
            daemon_log=$(tr '\0' '\n' <"/proc/$pid/cmdline" | sed -n 's/^--socket-path=\(.*\)\/fs.sock$/\1\/daemon.log/p')
            return 0
        done
        [[ -d /proc/$run_pid ]] || break
        sleep 0.1
    done
    die "the guest could not be run: $(reason_of "$work/$name.err")"
}

# end_run PID: ends a qemu/run, which ends what it has started.
end_run() {
    [[ -n ${1:-} ]] || return 0
    kill "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

# children_of PID: the processes that it has started and that have not ended.
children_of() {
    local pid state
    # shellcheck disable=SC2013 # words
    for pid in $(cat "/proc/$1/task/"*/children 2>/dev/null); do
        state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null) || continue
        [[ -z $state || $state == [ZX] ]] || echo "$pid"
    done
}

# age_of FILE: seconds since it was changed.
age_of() { echo $(($(date +%s) - $(stat -c %Y "$1" 2>/dev/null || echo 0))); }
