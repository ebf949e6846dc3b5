# shellcheck shell=bash
# What has to be on the machine: the Rust toolchain, Debian packages, RocksDB, tools from Go's and Python's world.
#
# Nothing is remembered between runs: asking dpkg and rustc takes less time than it takes to wonder whether a
# stamp is stale.

# Debian's programs for administrators are not in everybody's PATH.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

wanted_toolchain() {
    sed -n 's/^channel = "\(.*\)"$/\1/p' "$SKIMMER_ROOT/rust-toolchain.toml"
}

check_toolchain() {
    local wanted found
    wanted=$(wanted_toolchain)
    command -v cargo >/dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || export PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || die "cargo is missing; install Rust $wanted from https://rustup.rs"
    found=$(rustc --version 2>/dev/null | cut -d ' ' -f 2) || true
    if [ -z "$found" ]; then
        die "rustc does not start; install the toolchain with: rustup toolchain install $wanted"
    fi
    if [ "$found" != "$wanted" ]; then
        die "rustc is $found, rust-toolchain.toml asks for $wanted; install it with: rustup toolchain install $wanted"
    fi
}

wanted_packages() {
    sed 's/#.*//' "$SKIMMER_ROOT/dev.d/packages.txt" | tr -s ' \t' '\n' | grep -v '^$'
}

missing_packages() {
    local -a wanted
    mapfile -t wanted < <(wanted_packages)
    # dpkg-query fails when a name is unknown and still lists the others.
    comm -23 <(printf '%s\n' "${wanted[@]}" | sort -u) \
        <({ dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null || true; } |
            sed -n 's/^installed //p' | sort -u)
}

# Keeps the maintainer scripts from starting services while we install; services that ran before are not touched.
install_packages() {
    local policy=/usr/sbin/policy-rc.d status=0
    if [ ! -e "$policy" ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\n# made by ./dev setup and removed by it: new packages must not start services\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    local -a install=(apt-get install -y --no-install-recommends --no-upgrade -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0)
    local log="$SKIMMER_CACHE/setup-apt.log"
    mkdir -p "$SKIMMER_CACHE"
    export DEBIAN_FRONTEND=noninteractive
    # The package lists may be absent or old: ask for them only when the install does not work without.
    if ! "${install[@]}" "$@" >"$log" 2>&1 </dev/null; then
        { apt-get update && "${install[@]}" "$@"; } >>"$log" 2>&1 </dev/null || status=$?
    fi
    if [ "$status" -ne 0 ]; then
        tail -n 20 "$log" >&2
    fi
    if [ "$(trap -p EXIT)" ]; then
        rm -f "$policy"
        trap - EXIT
    fi
    [ "$status" -eq 0 ] || die "apt-get could not install: $* (whole log: $log)"
}

run_setup() {
    check_toolchain
    command -v dpkg-query >/dev/null || die "this is not Debian: install what dev.d/packages.txt lists, by hand"
    local -a missing
    mapfile -t missing < <(missing_packages)
    if [ "${#missing[@]}" -gt 0 ]; then
        if [ "$(id -u)" -ne 0 ]; then
            die "missing Debian packages, install them as root: apt-get install --no-install-recommends ${missing[*]}"
        fi
        say "installing Debian packages: ${missing[*]}"
        install_packages "${missing[@]}"
    fi
    rocksdb_ensure
    tools_ensure
}
