# Fetches and packs the suites that tests/suites runs in the guest. Sourced by tests/suites.
#
# From Debian's packages and from the crate registry, by name, into target/guest/suites/; nothing is
# installed on the host. Each suite is a small archive of its own, so that a guest unpacks only what
# it runs.
#
# The variables come from tests/suites, the functions from qemu/lib/prepare.sh.
# shellcheck shell=bash disable=SC2034,SC2154

SUITE_PACKAGES=(stress-ng dbench sqlite3 tcc make libc6-dev coreutils)
# The suites that come as crates, each a static program.
SUITE_CRATES=(pjdfstest@0.2.2 fsx@0.3.2)

# prepare_suites: brings target/guest/suites/ up to date. One run at a time; the others wait.
prepare_suites() {
    local dir=$guest_dir/suites
    mkdir -p "$dir"
    exec 9>"$guest_dir/lock"
    flock 9
    install_crates "$dir"
    fetch_packages "$dir/packages" "${SUITE_PACKAGES[@]}"
    pack_suites "$dir"
    exec 9>&-
}

# install_crates DIR: static, so that they run in any guest and on the host.
install_crates() {
    local dir=$1
    [[ -f $dir/crates/.crates && $(<"$dir/crates/.crates") == "${SUITE_CRATES[*]}" ]] && return
    find_rust "$repo/Cargo.toml"
    progress "building ${SUITE_CRATES[*]}, which takes a minute or two"
    RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=$dir/build \
        cargo install --locked --quiet --force --target x86_64-unknown-linux-gnu --root "$dir/crates" "${SUITE_CRATES[@]}" >"$dir/log" 2>&1 ||
        die_with_log "cargo could not install ${SUITE_CRATES[*]}." "$dir/log"
    rm -rf "$dir/build"
    echo "${SUITE_CRATES[*]}" >"$dir/crates/.crates"
}

# pack_suites DIR: an archive for each suite that needs more than a crate.
pack_suites() {
    local dir=$1 now name
    now=$(cat "$repo/tests/guest/programs.sh" "$dir/packages/.packages" "$guest_dir/kernel/release" | sha256sum)
    [[ -f $dir/stamp && $(<"$dir/stamp") == "$now" ]] && return
    progress "packing the suites"
    rm -f "$dir/stamp"
    for name in pjdfstest stress dbench sqlite build overlay; do
        rm -rf "$dir/stage"
        mkdir -p "$dir/stage"
        "stage_$name" "$dir/stage" "$dir/packages"
        pack "$dir/stage" "$dir/$name.cpio"
    done
    rm -rf "$dir/stage"
    echo "$now" >"$dir/stamp"
}

# It runs a copy of `sleep` under another name, which busybox's is not for.
stage_pjdfstest() { stage_programs "$1" "$2" sleep; }
stage_stress() { stage_programs "$1" "$2" stress-ng; }
stage_sqlite() { stage_programs "$1" "$2" sqlite3; }
stage_overlay() { cp "$guest_dir/kernel/overlay.ko" "$1/"; }

stage_dbench() {
    stage_programs "$1" "$2" dbench
    # The load, as recorded from a file server; the first tenth is more than a run gets through.
    mkdir -p "$1/usr/share/dbench"
    head -n 50000 "$2/usr/share/dbench/client.txt" >"$1/usr/share/dbench/client.txt"
}

# A small C compiler with the C library to compile against; gcc would take an hour in emulation.
stage_build() {
    local place=lib/x86_64-linux-gnu
    stage_programs "$1" "$2" tcc make
    mkdir -p "$1/usr/$place"
    cp -a "$2/usr/include" "$1/usr/"
    rm -rf "$1/usr/include/"{drm,linux,misc,mtd,rdma,rpc,scsi,sound,video,xen}
    mkdir -p "$1/usr/include/linux"
    cp "$2/usr/include/linux/"{errno,limits,posix_types,stddef,types}.h "$1/usr/include/linux/"
    cp -a "$2/usr/$place/tcc" "$1/usr/$place/"
    cp "$2/usr/$place/"{crt1.o,crti.o,crtn.o,libc.so,libc_nonshared.a} "$1/usr/$place/"
    # Where the C library's linker script looks for it, and the library for its loader.
    ln -s . "$1/lib/x86_64-linux-gnu"
    ln -s /lib64/ld-linux-x86-64.so.2 "$1/lib/"
}
