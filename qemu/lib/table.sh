# The table that plain `qemu/run` prints, and its verdict. Sourced by qemu/run.
#
# The variables come from qemu/run.
# shellcheck shell=bash disable=SC2034,SC2154

jobs_total='' jobs_begun=0 row_count=0 failures=() phase_data='' phase_all='' phase_calls='' packed_speed='' metrics=''

# sum_of LINE GROUP: "requests" of data, "all" requests, or "calls" of the host, from a metrics line.
sum_of() {
    awk -v what="$2" '{
        sum = 0
        requests = $0
        sub(/.*"requests":[{]/, "", requests)
        sub(/[}].*/, "", requests)
        n = split(requests, pair, ",")
        for (i = 1; i <= n; i++) {
            split(pair[i], part, ":")
            if (what == "all" || (what == "data" && part[1] ~ /^"(READ|WRITE)"$/)) sum += part[2]
        }
        if (what == "calls") { sum = field("host_reads") + field("host_writes") }
        print sum
    }
    function field(name) { return match($0, "\"" name "\":[0-9]+") ? substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) : 0 }' <<<"$1"
}

# phase_counts BEFORE AFTER: what the daemon did in a phase.
phase_counts() {
    phase_data='' phase_all='' phase_calls=''
    [[ -n $1 && -n $2 ]] || return 0
    phase_data=$(($(sum_of "$2" data) - $(sum_of "$1" data)))
    phase_all=$(($(sum_of "$2" all) - $(sum_of "$1" all)))
    phase_calls=$(($(sum_of "$2" calls) - $(sum_of "$1" calls)))
}

# add_row "NAME|MB/s|IOPS|SECONDS|TURNS|NOTE": a line from the guest, with the phase's counts.
add_row() {
    local name speed iops seconds turns note requests
    IFS='|' read -r name speed iops seconds turns note <<<"$1"
    requests=${phase_all:-}
    [[ -z $speed ]] || requests=${phase_data:-}
    if [[ -n $turns ]]; then
        note=$(vector_note "$name" "$speed" "$turns" "$requests")
        vector_check "$name" "$turns" "$requests"
    fi
    row_count=$((row_count + 1))
    print_row "$name" "$speed" "$iops" "$seconds" "$requests" "$phase_calls" "$note"
}

# A turn is 32 fragments. The unpacked phase comes right after its packed one.
vector_note() {
    local name=$1 speed=$2 turns=$3 requests=$4 note=''
    if [[ -n $requests ]]; then
        note=$(awk -v r="$requests" -v c="$phase_calls" -v t="$turns" 'BEGIN { printf "%.2f requests, %.2f host calls per 32 segments", r / t, c / t }')
    fi
    [[ $name != *unpacked ]] || note+="${note:+; }packed is $(awk -v a="$packed_speed" -v b="$speed" 'BEGIN { printf "%.1f", a / b }') times as fast"
    echo "$note"
}

vector_check() {
    local name=$1 turns=$2 requests=$3
    [[ $name == *unpacked ]] || packed_speed=$speed
    if [[ -z $requests ]]; then
        [[ -n ${GATHERFSD:-} ]] || add_failure "$name: gatherfsd printed no counters on SIGUSR1"
        return 0
    fi
    [[ $name != *" packed" ]] || ((requests == turns && phase_calls == turns)) ||
        add_failure "$name: $turns turns of 32 segments took $requests FUSE requests and $phase_calls host calls, not one each"
}

add_failure() {
    failures+=("$1")
    clear_progress
    echo "qemu/run: failed: $1" >&2
}

# print_row NAME MB/s IOPS SECONDS REQUESTS CALLS NOTE
print_row() {
    local line
    clear_progress
    printf -v line '%-26s %9s %8s %8s %9s %9s  %s' "$1" "${2:--}" "${3:--}" "${4:--}" "${5:--}" "${6:--}" "$7"
    echo "${line%"${line##*[![:space:]]}"}"
}

# On a terminal the job that runs stands in the last line, and its row takes its place.
begin_job() {
    jobs_begun=$((jobs_begun + 1))
    if [[ -n $quiet || ! -t 2 ]]; then
        progress "($jobs_begun/$jobs_total) $1"
    else
        printf '\r\033[K(%s/%s) %s ' "$jobs_begun" "$jobs_total" "$1" >&2
    fi
}

clear_progress() { [[ -n $quiet || ! -t 2 ]] || printf '\r\033[K' >&2; }

# begin_table: the guest has mounted the share. Each row is printed as soon as it is there.
begin_table() {
    echo
    echo "$daemon_name under Linux $guest_release: $accel, $cpus CPUs, $guest_queues request queue(s), share on $(stat -f -c %T "$share")"
    echo
    print_row job MB/s IOPS seconds requests 'host I/O' ''
    print_row 'boot to mounted share' '' '' "$boot_seconds" '' '' ''
}

# finish_table STATUS: what the columns mean and the verdict; ends the run.
finish_table() {
    ((${1:-1} == 0)) || add_failure "jobs: the guest's jobs ended with status $1"
    ((row_count > 0)) || add_failure "jobs: the guest reported nothing"
    ((${#failures[@]} > 0 || jobs_begun == jobs_total)) || add_failure "jobs: $jobs_begun of $jobs_total ran"
    clear_progress
    echo
    echo "requests: READ and WRITE for jobs with a speed, all FUSE requests for the others. host I/O: read and write calls of the daemon."
    if ((${#failures[@]} > 0)); then
        echo "qemu/run: ${#failures[@]} job(s) failed, first: ${failures[0]}" >&2
        exit 1
    fi
    exit 0
}
