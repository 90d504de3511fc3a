# `benches/compare --kvm`: both daemons under fio in a guest, interleaved. Sourced by benches/compare.
#
# The guest, its kernel and fio are those of qemu/run. Variables come from benches/compare.
# shellcheck shell=bash disable=SC2154

# NAME OPTIONS of the configurations of virtiofsd; {cpus} is the number of CPUs.
KVM_PEERS=("virtiofsd" "" "virtiofsd, pool of {cpus}" "--thread-pool-size={cpus}")

kvm_options() {
    kvm_accel=kvm kvm_cpus=$(nproc) kvm_mem=2048 kvm_seconds=10 kvm_rounds=3 kvm_out=$repo/docs/benchmarks/kvm.md
    while (($#)); do
        (($# > 1)) || wrong "$1 wants a value, or is no option of --kvm"
        case $1 in
            --cpus | --mem | --seconds | --rounds) [[ $2 =~ ^[1-9][0-9]*$ ]] || wrong "$1 wants a number, not '$2'" ;;
        esac
        case $1 in
            --accel) kvm_accel=$2 ;;
            --cpus) kvm_cpus=$2 ;;
            --mem) kvm_mem=$2 ;;
            --seconds) kvm_seconds=$2 ;;
            --rounds) kvm_rounds=$2 ;;
            --out) kvm_out=$2 ;;
            *) wrong "unknown option $1 with --kvm" ;;
        esac
        shift 2
    done
    case $kvm_accel in
        tcg) ;;
        kvm) { cpu_has_kvm && [[ -e /dev/kvm ]] && kvm_opens; } ||
            die "--kvm needs a CPU with virtualisation and a /dev/kvm that opens for $(id -un); --accel tcg tries the script without." ;;
        *) wrong "--accel is kvm or tcg" ;;
    esac
}

# kvm_run NAME COMMAND ROUND: one guest on a daemon; its lines "job|MB/s|IOPS" go to the results with NAME before them. An
# empty COMMAND is the gatherfsd that was built.
kvm_run() {
    local log=$kvm_dir/log queues=1
    [[ -n $2 ]] || queues=$kvm_cpus
    progress "round $3 of $kvm_rounds: $1"
    GATHERFSD=$2 "$repo/qemu/run" --quiet --no-build --accel "$kvm_accel" --cpus "$kvm_cpus" --mem "$kvm_mem" --queues "$queues" \
        --timeout $((kvm_seconds * 40 + 600)) --env "SECONDS_EACH=$kvm_seconds" --env "JOBS=$kvm_cpus" \
        --script "$repo/benches/kvm-guest.sh" >"$kvm_dir/out" 2>"$log" || die "$1: $(reason_of "$log")"
    grep -q '|' "$kvm_dir/out" || die "$1: fio in the guest printed nothing: $(reason_of "$log")"
    sed -n "s/^\(.*|.*|.*\)$/$1|\1/p" "$kvm_dir/out" >>"$kvm_dir/results"
}

kvm_compare() {
    local round i
    kvm_dir=$(mktemp -d)
    trap 'rm -rf "$kvm_dir"' EXIT
    for ((round = 1; round <= kvm_rounds; round++)); do
        kvm_run gatherfs '' "$round"
        for ((i = 0; i < ${#KVM_PEERS[@]}; i += 2)); do
            kvm_run "${KVM_PEERS[i]//'{cpus}'/$kvm_cpus}" \
                "$virtiofsd --socket-path={socket} --shared-dir={dir} ${KVM_PEERS[i + 1]//'{cpus}'/$kvm_cpus}" "$round"
        done
    done
    mkdir -p "$(dirname "$kvm_out")"
    kvm_table "$kvm_dir/results" >"$kvm_out"
    cat "$kvm_out"
}

# kvm_table FILE: medians over the rounds of lines "daemon|job|MB/s|IOPS", as Markdown.
kvm_table() {
    cat <<HEAD
# gatherfs and virtiofsd in a guest

\`benches/compare --kvm\`: accelerator $kvm_accel, $kvm_cpus virtual CPUs and fio jobs, as many request queues for gatherfs (virtiofsd has
one), $kvm_rounds rounds of $kvm_seconds s, medians. $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs, Linux $(uname -r).

| job | daemon | MB/s | IOPS | gatherfs / it |
|---|---|--:|--:|--:|
HEAD
    awk -F'|' '
        function median(list, count,    i, j, t, v) {
            split(list, v, " ")
            for (i = 2; i <= count; i++) for (j = i; j > 1 && v[j - 1] + 0 > v[j] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
            return v[int(count / 2) + 1]
        }
        {
            key = $2 SUBSEP $1
            if (!(key in count)) order[++keys] = key
            speed[key] = speed[key] " " $3; rate[key] = rate[key] " " $4; count[key]++
            if (!($2 in seen)) { seen[$2]; jobs[++number] = $2 }
        }
        END {
            for (j = 1; j <= number; j++) for (k = 1; k <= keys; k++) {
                split(order[k], part, SUBSEP)
                if (part[1] != jobs[j]) continue
                own = median(rate[part[1] SUBSEP "gatherfs"], count[part[1] SUBSEP "gatherfs"])
                it = median(rate[order[k]], count[order[k]])
                printf "| %s | %s | %s | %s | %.2f |\n", part[1], part[2], median(speed[order[k]], count[order[k]]), it, it ? own / it : 0
            }
        }' "$1"
}
