# shellcheck shell=bash
# What all parts of ./dev share: messages, paths, building. Sourced by ./dev only.

: "${SKIMMER_ROOT:?sourced by ./dev}"
SKIMMER_CACHE=${SKIMMER_CACHE:-${HOME:?HOME or SKIMMER_CACHE must be set}/.cache/skimmer}
export SKIMMER_CACHE
# One target folder outside the checkout: several checkouts share what they compiled.
export CARGO_TARGET_DIR=${SKIMMER_TARGET_DIR:-$SKIMMER_CACHE/target}
# SQLite takes fsync for fdatasync unless it is told that there is one: a commit would write the log's times, too.
export LIBSQLITE3_FLAGS="-DHAVE_FDATASYNC=1"

say() { # a line for people; stdout belongs to results
    printf 'dev: %s\n' "$*" >&2
}

die() {
    printf 'dev: %s\n' "$*" >&2
    exit 1
}

# shellcheck source=dev.d/rocksdb.sh
. "$SKIMMER_ROOT/dev.d/rocksdb.sh"
# shellcheck source=dev.d/tools.sh
. "$SKIMMER_ROOT/dev.d/tools.sh"
# shellcheck source=dev.d/setup.sh
. "$SKIMMER_ROOT/dev.d/setup.sh"
# shellcheck source=dev.d/check.sh
. "$SKIMMER_ROOT/dev.d/check.sh"
# shellcheck source=dev.d/test.sh
. "$SKIMMER_ROOT/dev.d/test.sh"
# shellcheck source=dev.d/conformance.sh
. "$SKIMMER_ROOT/dev.d/conformance.sh"
# shellcheck source=dev.d/fresh.sh
. "$SKIMMER_ROOT/dev.d/fresh.sh"

build_bins() { # build_bins PROFILE: our binaries; sets BIN_DIR
    local profile=$1
    say "building the binaries (profile $profile)"
    cargo build --locked --quiet --workspace --bins --profile "$profile"
    case "$profile" in
        dev) BIN_DIR=$CARGO_TARGET_DIR/debug ;;
        *) BIN_DIR=$CARGO_TARGET_DIR/$profile ;;
    esac
    # Where the harness finds the programs it starts.
    export SKIMMER_BIN_DIR=$BIN_DIR
}

# The demo shows that things work, and so shares the tests' profile and with it their compilation; see test.sh.
run_demo() {
    build_bins dev
    "$BIN_DIR/bench" demo "$@"
}

# Measurements are worth something only with the profile that ships.
run_bench() {
    build_bins release
    "$BIN_DIR/bench" "$@"
}
