# shellcheck shell=bash
# ./dev conformance: the official OCI suite against our registry. The suite is in no module proxy and not in this
# checkout; it is built here, and bin/conformance of the harness starts everything else.

CONFORMANCE_COMMIT=967efdc079b91785ad18c77cc4f8991a47feefbf
CONFORMANCE_URL=https://github.com/opencontainers/distribution-spec

run_conformance() {
    local scratch argument
    for argument in "$@"; do
        case "$argument" in --suite) die "--suite is for ./dev conformance to say; set OCI_CONFORMANCE_SRC" ;; esac
    done
    build_bins dev
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$scratch'" EXIT
    conformance_build "$scratch/oci-conformance"
    "$BIN_DIR/conformance" --suite "$scratch/oci-conformance" "$@" </dev/null
}

conformance_build() { # conformance_build PROGRAM
    local folder
    folder=$(conformance_source)
    # Go may have to be installed first.
    [ -n "${GO:-}" ] || GO=$(tools_locked conformance_go)
    say "building the OCI suite of $folder"
    (cd "$folder" && GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CGO_ENABLED=0 "$GO" build -o "$1" .) >&2 ||
        die "the OCI suite did not build ($folder)"
}

conformance_go() {
    go_find >&2
    printf '%s\n' "$GO"
}

conformance_source() { # prints the folder: where it was said to be, beside the checkout, or a clone that is kept
    local beside="$SKIMMER_ROOT/../shared/conformance/oci" kept="$SKIMMER_CACHE/conformance/$CONFORMANCE_COMMIT" scratch
    if [ -n "${OCI_CONFORMANCE_SRC:-}" ]; then
        [ -f "$OCI_CONFORMANCE_SRC/go.mod" ] || die "OCI_CONFORMANCE_SRC=$OCI_CONFORMANCE_SRC has no go.mod"
        (cd "$OCI_CONFORMANCE_SRC" && pwd -P)
    elif [ -f "$beside/go.mod" ]; then
        (cd "$beside" && pwd -P)
    else
        if [ ! -d "$kept" ]; then
            say "fetching the OCI suite from $CONFORMANCE_URL"
            mkdir -p "${kept%/*}"
            scratch=$(mktemp -d "$kept.XXXXXX")
            if ! conformance_clone "$scratch" >&2; then
                rm -rf "$scratch"
                die "the OCI suite could not be fetched; say where its folder conformance is with OCI_CONFORMANCE_SRC"
            fi
            # Somebody else may have been faster: then this one is thrown away.
            mv -T "$scratch" "$kept" 2>/dev/null || rm -rf "$scratch"
        fi
        printf '%s\n' "$kept/conformance"
    fi
}

conformance_clone() { # conformance_clone FOLDER
    git -C "$1" init --quiet &&
        git -C "$1" fetch --quiet --depth 1 "$CONFORMANCE_URL" "$CONFORMANCE_COMMIT" </dev/null &&
        git -C "$1" checkout --quiet FETCH_HEAD &&
        # The module proxy does not have this module; it is the folder beside.
        printf '\nreplace github.com/opencontainers/distribution-spec/specs-go => ../specs-go\n' >>"$1/conformance/go.mod"
}
