# What the scripts say when something goes wrong, and the look at Rust that they all begin with. Sourced by qemu/run,
# tests/run and what runs guests for them.
#
# `die` comes from the script that sources this.
# shellcheck shell=bash

# end_of_log NAME FILE: the last lines, without the daemon's counters.
end_of_log() {
    [[ -s $2 ]] || return 0
    echo "the end of $1:" >&2
    grep -av '"requests":{' "$2" | tail -n 15 | sed 's/^/    /' >&2 || true
}

# die_with_log REASON FILE: the reason first, then the end of the log that tells more.
die_with_log() {
    local status=0
    (die "$1") || status=$?
    end_of_log "$2" "$2"
    exit "$status"
}

# reason_of FILE: why a qemu/run whose standard error is in FILE did not do what it should.
reason_of() {
    local reason
    reason=$(sed -n 's/^qemu\/run: //p' "$1" | grep -v '^kept ' | head -n 1)
    [[ -n $reason ]] || reason=$(tail -n 3 "$1" | tr '\n' ' ')
    echo "$reason"
}

# version_at_least A B: A >= B, by numbers.
version_at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# look_for_rust CARGO_TOML: puts a Rust that is new enough first on PATH; else says in $rust_problem what to install.
# rustup's own place is looked at too: a shell that is older than rustup does not have it on its PATH.
look_for_rust() {
    local wanted found='' dir version
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$1")
    for dir in '' "${CARGO_HOME:-$HOME/.cargo}/bin:"; do
        (PATH=$dir$PATH; command -v cargo) >/dev/null || continue
        version=$(PATH=$dir$PATH rustc --version 2>/dev/null | awk '{ print $2 }') || true
        [[ -n $version ]] || continue
        if version_at_least "$version" "$wanted"; then
            PATH=$dir$PATH
            return 0
        fi
        found=${found:-$version}
    done
    if [[ -n $found ]]; then
        rust_problem="gatherfs needs Rust $wanted or newer and this is $found: install a newer one from rustup (rustup update stable)"
    else
        rust_problem="Rust is missing: install $wanted or newer from rustup"
    fi
    return 1
}

find_rust() { look_for_rust "$1" || die "$rust_problem."; }

# need_program PROGRAM PACKAGE...: installs the packages where the program is missing; says so where only root may.
need_program() {
    local program=$1
    shift
    command -v "$program" >/dev/null && return
    ((EUID == 0)) || die "$program is missing; install it as root, with: apt-get install $*"
    command -v apt-get >/dev/null || die "$program is missing and there is no apt-get to install $* with"
    echo "installing $*" >&2
    local -x DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 ||
        { apt-get update -q && apt-get install -y -q --no-install-recommends "$@"; } >/dev/null ||
        die "apt-get install $* failed"
}
