# One row of benches/profile: the samples of gatherfsd's threads, as perf script prints them, by what they were doing, in
# microseconds of the CPU time per operation that benches/compare's report has for `row`.
BEGIN { of_daemon = "^(request [0-9]+|hiprio|watchdog) " }

# A sample begins with its thread; a line for each frame follows, the innermost first.
/^[^ \t]/ { count_sample(); is_daemon = $0 ~ of_daemon; frames = 0; next }
is_daemon && NF { frame[++frames] = $2; object[frames] = $NF }
END { count_sample(); print_row() }

function count_sample(   i) {
    if (!is_daemon || !frames) return
    total++
    if (object[1] !~ /kernel/) { samples["daemon"]++; return }
    for (i = 1; i <= frames && frame[i] != "do_syscall_64"; i++) {}
    if (i > frames) { samples["entry"]++; return }
    samples[i == 1 ? "entry" : part_of(frame[i - 1])]++
}

# The part that the function called by do_syscall_64 belongs to.
function part_of(callee) {
    if (callee ~ /epoll|exit_to_user_mode|schedule/) return "wake-up"
    if (callee ~ /syscall_trace|seccomp|x64_sys_call|syscall_enter|syscall_exit/) return "entry"
    # The daemon writes to eventfds only by write(2).
    if (callee ~ /^(ksys_write|__x64_sys_write)$/) return "call"
    return "host"
}

# The row of the report: operation, gatherfs, virtiofsd, its configuration, ratio, range, goal.
function print_row(   line, field, cpu, goal, part, i) {
    while ((getline line < report) > 0) {
        if (index(line, "| " row) == 1 && !cpu) {
            split(line, field, / *\| */)
            cpu = field[3]; goal = field[4] * field[8]
        }
    }
    printf "| %s ", field[2] != "" ? field[2] : row
    split("wake-up call host entry daemon", part, " ")
    for (i = 1; i <= 5; i++) printf "| %.2f ", total ? cpu * samples[part[i]] / total : 0
    printf "| %.2f | %.2f | %.2f |\n", cpu, goal, total ? cpu * (1 - samples["daemon"] / total) : 0
}
