# shellcheck shell=bash
# ./dev fresh: the README's two commands on a bare Debian 12 that has git, gcc and the Rust toolchain, and nothing else.
#
# From this machine come only: the toolchain, cargo's downloaded crates, the RocksDB archive, the programs built with Go,
# and the way to Debian's mirrors, PyPI and Go's module proxy (apt's sources, proxies, certificates). Everything runs in
# mount and process namespaces of its own, so that mounts and processes vanish with them however this ends.

FRESH_RELEASE=bookworm
FRESH_SECONDS_MAX=5400 # from cold on two cores: about 10 minutes of compiling, then the suites

run_fresh() {
    [ "$(id -u)" -eq 0 ] || die "./dev fresh needs root: it makes a root file system and mounts into it"
    [ -z "$(git status --porcelain)" ] || say "note: uncommitted changes are not part of what is tested"
    local base="$SKIMMER_CACHE/fresh" started=$SECONDS child status=0
    mkdir -p "$base"
    FRESH_DIR=$(mktemp -d "$base/root.XXXXXX")
    trap fresh_cleanup EXIT
    trap 'exit 130' INT TERM HUP

    fresh_base "$base/$FRESH_RELEASE.tar" "$FRESH_DIR"
    # mktemp and the archive made from it keep others out; a root folder lets everybody in.
    chmod 755 "$FRESH_DIR"
    fresh_network "$FRESH_DIR"
    git clone --quiet --no-hardlinks "$SKIMMER_ROOT" "$FRESH_DIR/root/skimmer"
    [ "$(git -C "$FRESH_DIR/root/skimmer" rev-parse HEAD)" = "$(git rev-parse HEAD)" ] || die "the clone is not at HEAD"

    # In the background, because bash looks at signals only while it waits, not while a child runs in front.
    timeout --signal TERM --kill-after 20 "$FRESH_SECONDS_MAX" \
        unshare --mount --propagation private --pid --fork --kill-child \
        bash "$SKIMMER_ROOT/dev.d/fresh-inside.sh" "$FRESH_DIR" "$(rustc --print sysroot)" "${CARGO_HOME:-$HOME/.cargo}" "$SKIMMER_CACHE" &
    child=$!
    FRESH_CHILD=$child
    wait "$child" || status=$?
    FRESH_CHILD=
    [ "$status" -eq 0 ] || die "./dev fresh failed (exit code $status) after $((SECONDS - started)) s"
    say "fresh: demo and test passed on a bare Debian 12 in $((SECONDS - started)) s"
}

fresh_cleanup() {
    if [ -n "${FRESH_CHILD:-}" ]; then
        kill -TERM "$FRESH_CHILD" 2>/dev/null || true
        wait "$FRESH_CHILD" 2>/dev/null || true
    fi
    # Never across a mount: whatever is still mounted there belongs to somebody else.
    [ -z "${FRESH_DIR:-}" ] || rm -rf --one-file-system "$FRESH_DIR"
}

fresh_base() { # fresh_base TARBALL ROOT
    if [ ! -f "$1" ]; then
        say "making a bare Debian 12 (kept in $1)"
        debootstrap --variant=minbase "$FRESH_RELEASE" "$2" "$(fresh_mirror)" >"$1.log" 2>&1 </dev/null ||
            { tail -n 20 "$1.log" >&2 && die "debootstrap failed"; }
        tar -C "$2" --one-file-system -cf "$1.tmp" . && mv "$1.tmp" "$1"
    else
        tar -C "$2" -xf "$1"
    fi
}

fresh_mirror() { # the mirror this machine uses for Debian itself
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
        grep -vE '^ *#' | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' | grep . || printf 'http://deb.debian.org/debian\n'
}

fresh_network() { # fresh_network ROOT: how this machine reaches Debian's mirrors and crates.io
    local root=$1 file
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp -L /etc/hosts "$root/etc/hosts"
    if grep -q "^VERSION_CODENAME=$FRESH_RELEASE\$" /etc/os-release; then
        for file in sources.list sources.list.d apt.conf apt.conf.d auth.conf auth.conf.d keyrings trusted.gpg.d; do
            [ ! -e "/etc/apt/$file" ] || cp -rL "/etc/apt/$file" "$root/etc/apt/"
        done
        [ ! -e /etc/apt/sources.list.d ] || [ -e /etc/apt/sources.list ] || rm -f "$root/etc/apt/sources.list"
    fi
    [ ! -d /usr/local/share/ca-certificates ] || {
        mkdir -p "$root/usr/local/share/ca-certificates"
        cp -rL /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"
    }
    [ ! -f /etc/ssl/certs/ca-certificates.crt ] || install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/host-certificates.crt"
}
