# shellcheck shell=bash
# RocksDB, compiled once per version into the cache and linked by every profile.
#
# Building it from source costs about 12 minutes on two cores whatever the optimisation level, and cargo
# would do so again for each profile and each `cargo clean`. A throw-away package that depends on nothing
# but librocksdb-sys (the very version Cargo.lock names) is built here, and its static library is kept.

rocksdb_version() { # the librocksdb-sys version that Cargo.lock pins
    awk '/^name = "librocksdb-sys"$/ {getline; gsub(/^version = "|"$/, ""); print; exit}' "$SKIMMER_ROOT/Cargo.lock"
}

rocksdb_ensure() { # sets ROCKSDB_LIB_DIR and ROCKSDB_STATIC; compiles when the archive is not there yet
    local version dir scratch built
    version=$(rocksdb_version)
    [ -n "$version" ] || die "Cargo.lock names no librocksdb-sys"
    dir="$SKIMMER_CACHE/rocksdb/$version"
    if [ ! -f "$dir/librocksdb.a" ]; then
        say "compiling RocksDB $version once (about 12 minutes on two cores)"
        scratch="$SKIMMER_CACHE/rocksdb-build/$version"
        mkdir -p "$scratch/src" "$dir"
        : >"$scratch/src/lib.rs"
        cat >"$scratch/Cargo.toml" <<TOML
[package]
name = "rocksdb-once"
version = "0.0.0"
edition = "2024"
[dependencies]
librocksdb-sys = { version = "=${version}", default-features = false, features = ["static", "bindgen-runtime", "lz4"] }
[profile.release]
debug = false
[workspace]
TOML
        (cd "$scratch" && env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_TARGET_DIR="$scratch/target" cargo build --release --quiet) ||
            die "RocksDB did not compile; see the messages above"
        built=$(find "$scratch/target/release/build" -name librocksdb.a | head -n 1)
        [ -n "$built" ] || die "the RocksDB build left no librocksdb.a"
        # Renamed into place, so that an interrupted copy is never taken for the archive.
        cp "$built" "$dir/librocksdb.a.tmp" && mv "$dir/librocksdb.a.tmp" "$dir/librocksdb.a"
        rm -rf "$scratch"
    fi
    export ROCKSDB_LIB_DIR="$dir" ROCKSDB_STATIC=1
}
