# The records of all boots on one kernel as Markdown tables: rates, what each request cost, requests by operation.
#
# Lines: DAEMON|begin|NAME|SLEEPS|CPU|COUNTERS and DAEMON|end|NAME|ITEMS|WHAT|SECONDS|INTERRUPTS|SLEEPS|CPU|COUNTERS, as
# qemu/lib/records.sh and benches/guests/jobs make them. DAEMON is gatherfs, peer, or peer-log: a peer that logs its requests,
# which are counted and not timed.
BEGIN { FS = "|" }

$2 == "begin" { sleeps = $4; cpu = $5; counters = $6 }

$2 == "end" {
    daemon = $1
    name = $3
    if (!(name in what)) { names[++count] = name; what[name] = $5 }
    at = daemon SUBSEP name
    n = ++boots[at]
    items[at] = $4
    rate[at, n] = $6 > 0 ? $4 / $6 : 0
    interrupts[at] += $7
    slept[at] += $8 - sleeps
    busy[at] += $9 - cpu
    done[at] += $4
    kicks[at] += field($10, "kicks") - field(counters, "kicks")
    calls[at] += field($10, "calls") - field(counters, "calls")
    add_requests(at, counters, -1)
    add_requests(at, $10, 1)
}

END {
    print "| workload | gatherfs | virtiofsd | ratio | goal | at most |"
    print "|---|--:|--:|--:|--:|--:|"
    for (i = 1; i <= count; i++) {
        name = names[i]
        g = median("gatherfs" SUBSEP name)
        p = median("peer" SUBSEP name)
        printf "| %s, %s/s | %s | %s | %s | %s | %s |\n", name, what[name], number(g), number(p), (p > 0 ? sprintf("%.2f", g / p) : "-"), goal(name), at_most(name, g, p)
    }
    print "\nRequests, per item; interrupts of the guest, sleeps of the daemon's threads and its CPU time in microseconds, per request:\n"
    print "| workload | requests: gatherfs | virtiofsd | interrupts: gatherfs | virtiofsd | sleeps: gatherfs | virtiofsd | CPU: gatherfs | virtiofsd |"
    print "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for (i = 1; i <= count; i++) {
        name = names[i]
        g = "gatherfs" SUBSEP name
        p = "peer" SUBSEP name
        log_at = "peer-log" SUBSEP name
        per_item = done[log_at] > 0 ? total[log_at] / done[log_at] : 0
        mine = total[g]
        theirs = per_item * done[p]
        printf "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", name, part(total[g], done[g]), part(total[log_at], done[log_at]),
            part(interrupts[g], mine), part(interrupts[p], theirs), part(slept[g], mine), part(slept[p], theirs),
            part(busy[g] / 1000, mine), part(busy[p] / 1000, theirs)
    }
    print "\nRequests by operation, per item (gatherfs / virtiofsd):\n"
    print "| workload | requests |"
    print "|---|---|"
    for (i = 1; i <= count; i++) printf "| %s | %s |\n", names[i], by_operation(names[i])
}

# at_most NAME G P: the ratio if gatherfsd took no CPU time at all.
function at_most(name, g, p,    at, guest_us) {
    at = "gatherfs" SUBSEP name
    if (p == 0 || g == 0 || !done[at]) return "-"
    guest_us = 1000000 / g - busy[at] / 1000 / done[at]
    return guest_us > 0 ? sprintf("%.2f", 1000000 / p / guest_us) : "-"
}

# goal NAME: what issue 9 asks for.
function goal(name) {
    if (name ~ /^(readv|pread|fio)/) return "1.1"
    if (name ~ /^(create$|stat, cold|rename|readdir|tar|rm)/) return "1.4"
    if (name == "chmod, first") return "1.2"
    return ""
}

function field(line, key) { return match(line, "\"" key "\":[0-9]+") ? substr(line, RSTART + length(key) + 3, RLENGTH - length(key) - 3) : 0 }

function add_requests(at, line, sign,    list, n, pair, k) {
    if (!match(line, /"requests":[{][^}]*[}]/)) return
    list = substr(line, RSTART + 12, RLENGTH - 13)
    n = split(list, pair, ",")
    for (k = 1; k <= n; k++) {
        split(pair[k], part_of, ":")
        gsub(/"/, "", part_of[1])
        operations[part_of[1]] = 1
        requests[at, part_of[1]] += sign * part_of[2]
        total[at] += sign * part_of[2]
    }
}

function by_operation(name,    g, p, op, line, text, sorted, n, k, j, swap) {
    g = "gatherfs" SUBSEP name
    p = "peer-log" SUBSEP name
    n = 0
    for (op in operations) if (requests[g, op] || requests[p, op]) sorted[++n] = op
    for (k = 1; k < n; k++) for (j = k + 1; j <= n; j++) if (comes_first(g, sorted[j], sorted[k])) { swap = sorted[k]; sorted[k] = sorted[j]; sorted[j] = swap }
    text = ""
    for (k = 1; k <= n; k++) {
        op = sorted[k]
        line = part(requests[g, op], done[g]) (done[p] ? " / " part(requests[p, op], done[p]) : "")
        if (line !~ /^0\.00( \/ 0\.00)?$/) text = text (text == "" ? "" : ", ") op " " line
    }
    return text
}

# comes_first AT A B: whether A has more requests than B, or as many and the lesser name.
function comes_first(at, a, b) { return requests[at, a] == requests[at, b] ? a < b : requests[at, a] > requests[at, b] }

function median(at,    n, k, j, v, swap) {
    n = boots[at]
    if (!n) return 0
    for (k = 1; k <= n; k++) v[k] = rate[at, k]
    for (k = 1; k < n; k++) for (j = k + 1; j <= n; j++) if (v[j] < v[k]) { swap = v[k]; v[k] = v[j]; v[j] = swap }
    return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
}

function number(x) { return x == 0 ? "-" : x < 100 ? sprintf("%.1f", x) : sprintf("%.0f", x) }
function part(a, b) { return b + 0 > 0 ? sprintf("%.2f", a / b) : "-" }
