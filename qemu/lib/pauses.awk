# How long the guest's requests waited at given moments, one line.
#
#   awk -v phase=PHASE -f pauses.awk MOMENTS OUTPUT
#
# MOMENTS has the host's times, one a line, in seconds, or two: a moment that lasts from the one to the other; OUTPUT the lines of
# qemu/guest/pauses.c, each after the word PHASE. The pause at a moment is the longest request that was under way then or began within
# 5 ms. Without moments: as if there had been one each half second.
BEGIN { WITHIN = 0.005; EVERY = 0.5 }
FNR == NR && FILENAME == ARGV[1] { moment[++moments] = $1; lasts[moments] = NF > 1 ? $2 - $1 : 0; next }
$1 == phase && $2 == "offset" { offset = $3; precision = $4 }
$1 == phase && $2 != "offset" { began[++requests] = $2; took[requests] = $3 / 1000 }
END {
    if (!requests) { print "no request"; exit }
    if (!moments) for (t = began[1]; t <= began[requests]; t += EVERY) moment[++moments] = t + offset
    for (m = 1; m <= moments; m++) {
        at = moment[m] - offset
        while (r < requests && began[r + 1] + took[r + 1] < at) r++
        longest = 0
        for (i = r + 1; i <= requests && began[i] <= at + lasts[m] + WITHIN; i++) if (took[i] > longest) longest = took[i]
        pause[m] = longest
    }
    n = sorted(pause, moments)
    for (i = 1; i <= requests; i++) if (took[i] > all) all = took[i]
    printf "longest %.1f ms, median %.1f ms, of %d; the longest of all %d requests %.1f ms; moments within %.1f ms\n", pause[n] * 1000, \
        (pause[int((n + 1) / 2)] + pause[int(n / 2) + 1]) * 500, n, requests, all * 1000, precision
}
# By insertion: there are some hundreds.
function sorted(list, n,    i, j, value) {
    for (i = 2; i <= n; i++) {
        value = list[i]
        for (j = i - 1; j >= 1 && list[j] > value; j--) list[j + 1] = list[j]
        list[j + 1] = value
    }
    return n
}
