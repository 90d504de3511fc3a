# What the daemon did in the phases of a guest's job, one line each. Sourced by qemu/run.
#
# A job announces its phases on port 3 as qemu/guest/jobs does: "begin NAME", "end NAME REST". A line of the file has fields
# divided by bars: begin or end, NAME and REST, times that the daemon's threads went to sleep, its CPU time in nanoseconds,
# and gatherfsd's counters, or what the log of another daemon says of its requests (virtiofsd: with --log-level=debug).
#
# The variables come from qemu/run, read_metrics from guest.sh.
# shellcheck shell=bash disable=SC2154

logged_bytes=0

# record VERB NAME: appends a line.
record() {
    local sleeps cpu
    read_metrics
    sleeps=$(daemon_tasks status | awk '/^voluntary_ctxt_switches/ { n += $2 } END { print n + 0 }')
    cpu=$(daemon_tasks schedstat | awk '{ n += $1 } END { printf "%.0f", n }')
    if [[ -z $metrics ]]; then
        logged_requests >"$run_dir/counted"
        metrics=$(<"$run_dir/counted")
    fi
    echo "$1|$2|$sleeps|$cpu|$metrics" >>"$records"
}

# logged_requests: the requests in the log by operation, as gatherfsd's counters name them. Only what is new in the log is
# read: a long look at each phase would let the guest's timeouts end.
logged_requests() {
    local size
    size=$(stat -c %s "$run_dir/daemon.log")
    tail -c "+$((logged_bytes + 1))" "$run_dir/daemon.log" | head -c "$((size - logged_bytes))" |
        awk -F 'opcode=' '/Received request: opcode=/ { sub(/[^A-Za-z0-9].*/, "", $2); print toupper($2) }' >>"$run_dir/requests"
    logged_bytes=$size
    awk '{ n[$1]++ } END { printf "\"requests\":{"; for (name in n) printf "%s\"%s\":%d", comma++ ? "," : "", name, n[name]; print "}" }' "$run_dir/requests"
}

# daemon_tasks FILE: that file of /proc, of each thread of the daemon and of its descendants.
daemon_tasks() {
    local pids=$daemon_pid next pid
    while [ -n "$pids" ]; do
        next=
        for pid in $pids; do
            cat "/proc/$pid/task/"*/"$1" 2>/dev/null || true
            next="$next $(cat "/proc/$pid/task/"*/children 2>/dev/null)"
        done
        pids=${next//[[:space:]]/ }
        [ -n "${pids// /}" ] || break
    done
}
