#!/usr/bin/env bash
# The part of ./dev fresh that runs in namespaces of its own: mounts, changes root, runs the two commands.
# Arguments: root folder, the toolchain's sysroot, CARGO_HOME, Skimmer's cache, all as this machine names them.
set -euo pipefail
root=$1 toolchain=$2 cargo=$3 cache=$4 home=/root

bind() { # bind FROM TO [OPTIONS]
    mkdir -p "$root$2"
    mount --bind "$1" "$root$2"
    [ -z "${3:-}" ] || mount -o "remount,bind,$3" "$root$2"
}

# A mount of its own, because container runtimes call pivot_root and that wants / to be one.
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
# The toolchain itself, without rustup: toolchains there may be links to anywhere.
bind "$(readlink -f "$toolchain")" /opt/rust/toolchain ro
mkdir -p "$cargo/registry"
bind "$cargo/registry" /opt/rust/cargo/registry
mkdir -p "$cache/rocksdb" "$cache/go/bin"
bind "$cache/rocksdb" "$home/.cache/skimmer/rocksdb"
bind "$cache/go/bin" "$home/.cache/skimmer/go/bin"

mkdir -p "$root/mnt/before"
cd "$root"
pivot_root . mnt/before
cd /
umount -l /mnt/before

# Nothing of the caller's environment but the way to the network.
keep=()
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY GOPROXY GONOSUMDB PIP_INDEX_URL; do
    [ -z "${!name:-}" ] || keep+=("$name=${!name}")
done
[ ! -f /etc/ssl/host-certificates.crt ] || keep+=(SSL_CERT_FILE=/etc/ssl/host-certificates.crt CARGO_HTTP_CAINFO=/etc/ssl/host-certificates.crt PIP_CERT=/etc/ssl/host-certificates.crt)
# shellcheck disable=SC2016 # the inner shell expands it
exec env -i "${keep[@]}" HOME="$home" LANG=C.UTF-8 TERM="${TERM:-dumb}" CARGO_HOME=/opt/rust/cargo \
    PATH=/opt/rust/toolchain/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -euo pipefail -c '
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends git gcc; } >"$HOME/apt.log" 2>&1 </dev/null || {
        tail -n 20 "$HOME/apt.log" >&2
        exit 1
    }
    cd "$HOME/skimmer"
    ./dev demo --json
    ./dev test --json
'
