#!/bin/sh
# Prepares a Debian 12 machine (root) to build katamaran's eBPF programs and to run its lab.
#
#   scripts/setup.sh            everything
#   scripts/setup.sh build      what the build needs: rustc with library sources, LLVM, bpf-linker
#   scripts/setup.sh lab        what the lab needs: QEMU 7.2 and 10.0, a guest kernel, tools
#
# May be run again at any time: it does only what is missing, and says nothing when nothing is.
# What is not installed but only unpacked goes to $KATAMARAN_LAB_CACHE (/var/cache/katamaran-lab):
#   qemu-10.0/      root of the unpacked packages: usr/bin/qemu-system-x86_64, usr/share, usr/lib
#   kernel-6.1/     root of Debian's cloud kernel: boot/vmlinuz-*, lib/modules/* with their index
#   kernel-6.12/    the same of bookworm-backports
# Suites beside bookworm are reached through the machine's own package sources.
set -eu

cache=${KATAMARAN_LAB_CACHE:-/var/cache/katamaran-lab}
part=${1:-all}

build_packages="rustc-web rust-web-src cargo-web llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev"
tool_packages="gcc g++ libc6-dev pkg-config ca-certificates"
lab_packages="qemu-system-x86 qemu-system-common seabios busybox-static iproute2 nftables kmod cpio xz-utils ethtool"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Installs those of the named packages that are not there.
ensure_packages() {
    missing=
    for package in "$@"; do
        installed "$package" || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "installing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of package names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

ensure_cargo() {
    [ -d "$HOME/.cargo/bin" ] && PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null && return 0
    die "no cargo found: install a stable Rust toolchain (1.90 or newer), for example with rustup," \
        "then run this again"
}

ensure_bpf_linker() {
    command -v bpf-linker >/dev/null && return 0
    say "building bpf-linker"
    LLVM_PREFIX=/usr/lib/llvm-22 RUSTFLAGS="-L /usr/lib/llvm-22/lib" \
        cargo install --quiet --locked bpf-linker --no-default-features --features llvm-22
}

# The machine's own package sources for bookworm, with bookworm-backports added, in $1/sources.
write_sources() {
    mkdir -p "$1/sources"
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        # Stanzas are paragraphs; only those that carry bookworm itself are of use.
        awk -v RS= -v ORS='\n\n' '
            /(^|\n)Suites:[^\n]*(^|[ \t])bookworm([ \t\n]|$)/ {
                sub(/Suites:[^\n]*/, "Suites: bookworm bookworm-updates bookworm-backports")
                print
            }' "$file"
    done >"$1/sources/lab.sources"
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$file" ] || continue
        sed -n -E '/^deb[ \t].*[ \t]bookworm[ \t]/{p;s/([ \t])bookworm([ \t])/\1bookworm-backports\2/p}' \
            "$file"
    done >"$1/sources/lab.list"
    if ! [ -s "$1/sources/lab.sources" ] && ! [ -s "$1/sources/lab.list" ]; then
        die "no package source for bookworm found under /etc/apt"
    fi
}

# apt-get and apt-cache over the private sources; the system's own lists stay as they are.
lab_apt() {
    tool=$1
    shift
    "$tool" -qq -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/sources" \
        -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" \
        -o APT::Sandbox::User=root "$@"
}

open_private_apt() {
    [ -z "${work:-}" ] || return 0
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    write_sources "$work"
    lab_apt apt-get update
}

# Unpacks package $2 (optionally package/suite) under directory $1.
unpack() {
    mkdir -p "$work/deb"
    (cd "$work/deb" && lab_apt apt-get download "$2" >/dev/null)
    for deb in "$work"/deb/*.deb; do
        dpkg -x "$deb" "$1"
        rm -f "$deb"
    done
}

missing_libraries() {
    LD_LIBRARY_PATH="$1/usr/lib/x86_64-linux-gnu" ldd "$1/usr/bin/qemu-system-x86_64" |
        awk '/not found/ { print $1 }'
}

ensure_qemu_10() {
    root=$cache/qemu-10.0
    [ -e "$root/.complete" ] && return 0
    say "unpacking QEMU 10.0 to $root"
    open_private_apt
    rm -rf "$root"
    mkdir -p "$root"
    for package in qemu-system-x86 qemu-system-common qemu-system-data; do
        unpack "$root" "$package/bookworm-backports"
    done
    unpack "$root" seabios
    # Libraries that the machine lacks: first what the package itself names, then what those name.
    pending=qemu-system-x86
    for _ in 1 2 3; do
        [ -n "$(missing_libraries "$root")" ] || break
        next=
        for package in $pending; do
            for need in $(lab_apt apt-cache show --no-all-versions "$package/bookworm-backports" 2>/dev/null |
                sed -n 's/^Depends: //p' | tr ',' '\n' | sed 's/[ (|:].*//;s/^ *//' | grep '^lib'); do
                installed "$need" && continue
                unpack "$root" "$need" && next="$next $need"
            done
        done
        pending=$next
    done
    left=$(missing_libraries "$root")
    [ -z "$left" ] || die "QEMU 10.0 still lacks: $left"
    LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/qemu-system-x86_64" --version >/dev/null
    touch "$root/.complete"
}

# Unpacks Debian's cloud kernel of suite $2 as kernel-$1.
ensure_kernel() {
    root=$cache/kernel-$1
    [ -e "$root/.complete" ] || unpack_kernel "$1" "$2"
    for modules in "$root"/lib/modules/*; do
        [ -e "$modules/modules.dep" ] || depmod -b "$root" "${modules##*/}"
    done
}

unpack_kernel() {
    say "unpacking kernel $1 to $root"
    open_private_apt
    rm -rf "$root"
    mkdir -p "$root"
    # linux-image-cloud-amd64 is empty and depends on the kernel itself.
    image=$(lab_apt apt-cache show --no-all-versions "linux-image-cloud-amd64/$2" |
        sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p' | head -n 1)
    case $image in
        "linux-image-$1."*) ;;
        *) die "the cloud kernel of $2 is ${image:-missing}, not $1" ;;
    esac
    unpack "$root" "$image/$2"
    [ -d "$root/lib/modules" ] || ln -s usr/lib "$root/lib"
    touch "$root/.complete"
}

# Only unpacked: neither of the two services is installed.
ensure_prometheus() {
    root=$cache/prometheus
    [ -e "$root/.complete" ] && return 0
    say "unpacking promtool and node_exporter to $root"
    open_private_apt
    rm -rf "$root"
    mkdir -p "$root"
    unpack "$root" prometheus
    unpack "$root" prometheus-node-exporter
    "$root/usr/bin/promtool" --version >/dev/null
    touch "$root/.complete"
}

[ "$(id -u)" = 0 ] || die "run as root"
case $part in all | build | lab) ;; *) die "usage: $0 [all|build|lab]" ;; esac

# shellcheck disable=SC2086 # lists of package names
if [ "$part" != lab ]; then
    ensure_packages $tool_packages $build_packages
    ensure_cargo
    ensure_bpf_linker
fi
# shellcheck disable=SC2086 # lists of package names
if [ "$part" != build ]; then
    ensure_packages $tool_packages $lab_packages
    ensure_cargo
    ensure_qemu_10
    ensure_kernel 6.1 bookworm
    ensure_kernel 6.12 bookworm-backports
    ensure_prometheus
fi
