# Makes what a guest boot needs, under target/guest/. Sourced by qemu/run.
#
# Packages are fetched with an apt configuration of their own (lists, cache, an empty package
# database), and unpacked, not installed: nothing of the host changes and nothing of the host is
# packed. Only QEMU and the C compiler are installed, and only where they are missing.
#
# What lies in target/guest/ afterwards:
#   kernel/     vmlinux, the vmlinuz of which it is, its release and its module for overlayfs
#   tools/      unpacked packages; `tool NAME` runs a program from there
#   bin/        the C programs of qemu/guest/ and tests/guest/
#   base.cpio   initramfs: busybox, init
#   tools.cpio  initramfs: bash, fio, git, getfattr and their libraries
#   tree.tar    the source tree of the metadata job
#
# The variables come from qemu/run, die_with_log and version_at_least from messages.sh.
# shellcheck shell=bash disable=SC2034,SC2154

# Unpacked as one closed set with its own C library, so the host's release does not matter.
TOOL_PACKAGES=(busybox-static bash fio git cpio zstd xz-utils attr)
# What goes into the guest, by its place in the unpacked packages.
GUEST_PROGRAMS=(bash fio git getfattr setfattr)
# The first kernel with several virtio-fs request queues.
KERNEL_MIN=6.12

# prepare: brings target/guest/ up to date, after look_at_host. One run at a time; the others wait.
prepare() {
    exec 9>"$guest_dir/lock"
    flock -n 9 || { progress "waiting for another qemu/run that prepares $guest_dir"; flock 9; }
    install_on_host
    prepare_tools
    [[ -n $kernel_file ]] || prepare_kernel
    compile "$repo/qemu/guest/vecio.c"
    prepare_tree
    prepare_initramfs
    exec 9>&-
}

# --- the host -------------------------------------------------------------------------------

# look_at_host: which of the programs that only packages of the host bring are missing. Without root it ends here if one
# is, or if nothing can be written.
look_at_host() {
    local names=()
    [[ $(dpkg --print-architecture 2>/dev/null) == amd64 ]] || die "the guest needs a Debian host on amd64."
    missing=()
    command -v qemu-system-x86_64 >/dev/null || { names+=(QEMU); missing+=(qemu-system-x86); }
    # The programs for the guest are linked with the static half of the C library.
    [[ $(gcc -print-file-name=libc.a 2>/dev/null) == /* ]] || { names+=(gcc); missing+=(gcc libc6-dev); }
    if ((${#missing[@]})); then
        ((EUID == 0)) || die "missing: ${names[*]}; have root run: apt-get install ${missing[*]}${rust_problem:+; $rust_problem}."
        command -v apt-get >/dev/null || die "there is no apt-get to install ${missing[*]} with."
    fi
    { mkdir -p "$guest_dir"/{bin,apt} && : >>"$guest_dir/lock"; } 2>/dev/null ||
        die "$(id -un) cannot write in $guest_dir; run it as $(stat -c %U "$repo"), who owns $repo, or from a clone of your own."
}

# install_on_host: what look_at_host found missing.
install_on_host() {
    ((${#missing[@]})) || return 0
    local log=$guest_dir/install.log
    progress "installing ${missing[*]}, which takes a minute or two"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
        die_with_log "apt-get install ${missing[*]} failed." "$log"
}

# compile FILE.c...: static programs in target/guest/bin, so they run in any guest.
compile() {
    local source program
    for source; do
        program=$guest_dir/bin/$(basename "$source" .c)
        [[ $program -nt $source ]] && continue
        gcc -O2 -Wall -Wextra -static -pthread -o "$program.new" "$source" || die "gcc could not compile $source."
        mv "$program.new" "$program"
    done
}

# --- packages -------------------------------------------------------------------------------

# private_apt COMMAND ARG...: apt-get or apt-cache on the private configuration.
private_apt() {
    local apt=$guest_dir/apt command=$1
    shift
    "$command" -q \
        -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$apt/sources" \
        -o Dir::Etc::preferences=/dev/null \
        -o Dir::Etc::preferencesparts="$apt/none" \
        -o Dir::State="$apt/state" \
        -o Dir::State::status="$apt/status" \
        -o Dir::Cache="$apt/cache" \
        -o APT::Sandbox::User="$(id -un)" \
        -o APT::Install-Recommends=false \
        -o Acquire::Languages=none \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o Acquire::Retries=3 \
        "$@"
}

# apt_ready: the package lists, once per run and only if a package is missing.
apt_ready() {
    [[ -z ${apt_is_ready:-} ]] || return 0
    local apt=$guest_dir/apt release suites
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-sid}")
    suites=$release
    # Bookworm's own kernel is too old; its backports have a new one.
    [[ $release != bookworm ]] || suites="$release $release-backports"
    progress "reading the package lists of $suites"
    rm -rf "$apt/sources"
    mkdir -p "$apt"/{sources,none,state/lists/partial,cache/archives/partial}
    : >"$apt/status"
    write_sources "$release" "$suites" "$apt/sources"
    private_apt apt-get update >"$apt/log" 2>&1 ||
        die_with_log "apt-get update failed for: $suites." "$apt/log"
    apt_is_ready=1
}

# write_sources RELEASE SUITES DIR: the host's own source for RELEASE, with SUITES instead.
# The stanza is copied, so mirror, key and further options stay what the host uses.
write_sources() {
    local release=$1 suites=$2 dir=$3 sources
    mapfile -t sources < <(find /etc/apt/sources.list.d -name '*.sources' 2>/dev/null | sort)
    sources=(/dev/null "${sources[@]}")
    awk -v release="$release" -v suites="$suites" '
        BEGIN { RS = ""; FS = "\n" }
        {
            types = release_here = off = ""
            for (i = 1; i <= NF; i++) {
                if ($i ~ /^Types:.*deb( |$)/) types = 1
                if ($i ~ /^Enabled: *no/) off = 1
                n = split($i, word, /[ \t]+/)
                if (word[1] == "Suites:") for (j = 2; j <= n; j++) if (word[j] == release) release_here = 1
            }
            if (!types || !release_here || off) next
            for (i = 1; i <= NF; i++) {
                if ($i ~ /^#/) continue
                if ($i ~ /^Types:/) $i = "Types: deb"
                if ($i ~ /^Suites:/) $i = "Suites: " suites
                if ($i ~ /^Components:/) $i = "Components: main"
                print $i
            }
            exit
        }' "${sources[@]}" >"$dir/guest.sources"
    [[ -s $dir/guest.sources ]] && return
    rm "$dir/guest.sources"
    mapfile -t sources < <(find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' 2>/dev/null | sort)
    sources=(/dev/null "${sources[@]}")
    awk -v release="$release" -v suites="$suites" '
        $1 == "deb" && $2 !~ /^cdrom:/ {
            at = 2                                  # the address; options in brackets come before it
            if ($2 ~ /^\[/) { while ($at !~ /\]$/) at++; at++ }
            if ($(at + 1) != release) next
            line = $1
            for (i = 2; i <= at; i++) line = line " " $i
            n = split(suites, suite, " ")
            for (i = 1; i <= n; i++) print line, suite[i], "main"
            exit
        }' "${sources[@]}" >"$dir/guest.list"
    [[ -s $dir/guest.list ]] || die "no apt source for $release found in /etc/apt; the guest's packages come from there."
}

# --- programs for the guest -----------------------------------------------------------------

# tool NAME ARG...: runs an unpacked program with the libraries that came with it.
tool() {
    local program
    program=$(program_below "$guest_dir/tools" "$1")
    shift
    load_below "$guest_dir/tools" "$program" "$@"
}

# program_below DIR NAME: where the program lies in the packages that are unpacked below DIR.
program_below() {
    local place
    for place in usr/bin bin usr/sbin sbin; do
        [[ ! -f $1/$place/$2 ]] || { echo "$1/$place/$2"; return; }
    done
    die "$2 is not in the unpacked packages; remove $1 and start again."
}

# load_below DIR ARG...: the dynamic loader that came with the packages.
load_below() {
    local root=$1 lib
    shift
    lib=$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu/ceph
    "$(loader_below "$root")" --library-path "$lib" "$@"
}

# The name under lib64/ is a link to an absolute path of the host: take the file itself.
loader_below() { find "$1"/{lib,usr/lib} -name ld-linux-x86-64.so.2 -type f 2>/dev/null | head -n 1; }

prepare_tools() { fetch_packages "$guest_dir/tools" "${TOOL_PACKAGES[@]}"; }

# fetch_packages DIR PACKAGE...: the packages and what they depend on, unpacked below DIR.
fetch_packages() {
    local root=$1 deb log=$guest_dir/apt/log
    shift
    [[ -f $root/.packages && $(<"$root/.packages") == "$*" ]] && return
    apt_ready
    progress "fetching $* and their libraries, which takes a minute or two"
    private_apt apt-get install -y --download-only "$@" >"$log" 2>&1 ||
        die_with_log "apt-get could not fetch $* and their libraries." "$log"
    rm -rf "$root"
    mkdir -p "$root"
    for deb in "$guest_dir"/apt/cache/archives/*.deb; do
        dpkg-deb -x "$deb" "$root" || die "$deb could not be unpacked."
    done
    rm -rf "$guest_dir/apt/cache" "${root:?}"/usr/share/{doc,man,locale,info} "${root:?}"/var "${root:?}"/usr/lib/x86_64-linux-gnu/perl*
    echo "$*" >"$root/.packages"
}

# --- kernel ---------------------------------------------------------------------------------

# newest_kernel_package: Debian's cloud kernel, the first suite that has one new enough.
newest_kernel_package() {
    local suite package
    for suite in $(sed -n 's/^Suites: //p' "$guest_dir"/apt/sources/*.sources 2>/dev/null) \
        $(awk '{print $(NF - 1)}' "$guest_dir"/apt/sources/*.list 2>/dev/null); do
        package=$(private_apt apt-cache depends "linux-image-cloud-amd64/$suite" | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
        [[ -n $package ]] || continue
        version_at_least "${package#linux-image-}" "$KERNEL_MIN" && { echo "$package"; return; }
    done
}

prepare_kernel() {
    local dir=$guest_dir/kernel package work
    kernel_file=$dir/vmlinux
    [[ -f $kernel_file && -f $dir/vmlinuz && -f $dir/config && -f $dir/overlay.ko ]] && return
    apt_ready
    package=$(newest_kernel_package)
    [[ -n $package ]] || die "no linux-image-cloud-amd64 of $KERNEL_MIN or newer in this release; give one with --kernel FILE."
    progress "fetching $package"
    rm -rf "$dir"
    work=$dir/work
    mkdir -p "$work"
    # Newer packages keep the kernel itself in a package beside this one.
    local wanted=("$package") deb
    mapfile -t -O 1 wanted < <(private_apt apt-cache depends "$package" | awk '$1 == "Depends:" && $2 ~ /^linux-(binary|modules)-[0-9]/ { print $2 }')
    (cd "$work" && private_apt apt-get download "${wanted[@]}") >"$guest_dir/apt/log" 2>&1 ||
        die_with_log "apt-get could not download ${wanted[*]}." "$guest_dir/apt/log"
    for deb in "$work"/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
    local image config
    image=$(find "$work/root" -name 'vmlinuz*' -type f | head -n 1)
    config=$(find "$work/root" -name 'config*' -path '*6*' -type f | head -n 1)
    [[ -n $image ]] || die "$package holds no kernel image."
    if [[ -n $config ]] && ! grep -q '^CONFIG_VIRTIO_FS=y' "$config"; then
        die "$package has virtio-fs as a module; give a kernel with CONFIG_VIRTIO_FS=y with --kernel FILE."
    fi
    unpack_kernel "$image" "$dir/vmlinux.new"
    keep_module overlay "$work/root" "$dir"
    cp "$image" "$dir/vmlinuz"
    cp "${config:-/dev/null}" "$dir/config"
    echo "${package#linux-image-}" >"$dir/release"
    rm -rf "$work"
    mv "$dir/vmlinux.new" "$kernel_file"
}

# keep_module NAME DIR OUT: the module from the kernel package below DIR, ready for insmod; an empty
# file if the kernel has it built in.
keep_module() {
    local module
    module=$(find "$2" -name "$1.ko" -o -name "$1.ko.xz" | head -n 1)
    case $module in
        *.xz) tool xz -dc <"$module" >"$3/$1.ko" ;;
        *) cp "${module:-/dev/null}" "$3/$1.ko" ;;
    esac
}

# unpack_kernel VMLINUZ OUT: the ELF image inside, which QEMU enters directly (PVH): that saves
# the guest from unpacking itself. A kernel in an unknown format boots as it is.
unpack_kernel() {
    local image=$1 out=$2 magic program at
    while read -r magic program; do
        # shellcheck disable=SC2013 # numbers, one a line
        for at in $(LC_ALL=C grep -aobP "$magic" "$image" | cut -d: -f1); do
            # What follows the payload makes the unpacker complain at the end; the ELF magic decides.
            tail -c "+$((at + 1))" "$image" | tool "$program" -dc 2>/dev/null >"$out" || true
            [[ $(LC_ALL=C head -c 4 "$out" | tr -d '\177') == ELF ]] && return
        done
    done <<'FORMATS'
\x28\xb5\x2f\xfd zstd
\xfd7zXZ\x00 xz
\x1f\x8b\x08 gzip
FORMATS
    cp "$image" "$out"
}

# --- the source tree of the metadata job ----------------------------------------------------

# 2,200 text files in 100 directories, the same bytes on every machine.
prepare_tree() {
    local tar=$guest_dir/tree.tar work=$guest_dir/tree
    [[ ! -f $tar ]] || return 0
    progress "making the source tree of the metadata job"
    rm -rf "$work"
    mkdir -p "$work"/tree/d{00..99}
    awk -v top="$work/tree" 'BEGIN {
        seed = 1
        for (i = 0; i < 2200; i++) {
            file = sprintf("%s/d%02d/part%04d.c", top, i % 100, i)
            lines = 20 + i * 7 % 90
            for (n = 0; n < lines; n++) {
                seed = (seed * 16807) % 2147483647
                printf "static const unsigned value_%d_%d = %d; /* line %d of %d */\n", i, n, seed, n, lines > file
            }
            close(file)
        }
    }'
    tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@1700000000 -cf "$tar.new" tree
    rm -rf "$work"
    mv "$tar.new" "$tar"
}

# --- initramfs ------------------------------------------------------------------------------

# pack DIR OUT: a cpio archive of DIR, owned by root.
pack() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | tool cpio -o -H newc --quiet -R 0:0) >"$2"; }

prepare_initramfs() {
    local stamp=$guest_dir/initramfs.stamp now
    now=$(cat "$repo/qemu/lib/prepare.sh" "$repo/qemu/guest/init" "$guest_dir/tools/.packages" "$guest_dir"/bin/vecio | sha256sum)
    [[ -f $stamp && $(<"$stamp") == "$now" ]] && return
    progress "packing the initramfs"
    rm -f "$stamp"
    pack_base
    pack_tools
    echo "$now" >"$stamp"
}

pack_base() {
    local stage=$guest_dir/stage link name
    rm -rf "$stage"
    mkdir -p "$stage"/{bin,usr,dev,proc,sys,tmp,run,etc,root,mnt/share}
    for link in sbin usr/bin usr/sbin; do ln -s /bin "$stage/$link"; done
    cp "$(program_below "$guest_dir/tools" busybox)" "$stage/bin/busybox"
    for name in $("$stage/bin/busybox" --list); do
        [[ $name == busybox ]] || ln -s busybox "$stage/bin/$name"
    done
    cp "$guest_dir/bin/vecio" "$stage/bin/"
    printf 'root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/tmp:/bin/sh\nbob:x:1001:1001::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n' >"$stage/etc/passwd"
    printf 'root:x:0:\nalice:x:1000:\nbob:x:1001:\nnogroup:x:65534:\n' >"$stage/etc/group"
    install -m 755 "$repo/qemu/guest/init" "$stage/init"
    pack "$stage" "$guest_dir/base.cpio"
    rm -rf "$stage"
}

pack_tools() {
    local stage=$guest_dir/stage
    rm -rf "$stage"
    stage_programs "$stage" "$guest_dir/tools" "${GUEST_PROGRAMS[@]}"
    pack "$stage" "$guest_dir/tools.cpio"
    rm -rf "$stage"
}

# stage_programs STAGE DIR PROGRAM...: the programs from the packages below DIR, with exactly the
# libraries that the loader names for them.
stage_programs() {
    local stage=$1 root=$2 program library
    shift 2
    mkdir -p "$stage"/{bin,lib64,lib}
    for program; do
        program=$(program_below "$root" "$program")
        cp "$program" "$stage/bin/"
        for library in $(load_below "$root" --list "$program" | grep -o "$root/[^ ]*"); do
            case $library in
                */ld-linux-x86-64.so.2) ;;
                *) cp -Lu "$library" "$stage/lib/" ;;
            esac
        done
    done
    cp "$(loader_below "$root")" "$stage/lib64/"
}
