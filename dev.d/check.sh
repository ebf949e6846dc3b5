# shellcheck shell=bash
# ./dev check: everything that can be said about the sources without running them. Each check is a function
# check_NAME; all of them run even when one fails, and the last line names the failed ones.

CHECKS=(format shell lock lengths text paths purity licences clippy docs fuzz)

run_check() {
    local -a failed=() names=("$@")
    local name started
    [ "${#names[@]}" -gt 0 ] || names=("${CHECKS[@]}")
    for name in "${names[@]}"; do
        declare -F "check_$name" >/dev/null || die "no such check: $name (there are: ${CHECKS[*]})"
        started=$SECONDS
        # A subshell with errexit of its own: in the condition of an if it would be off.
        set +e
        (
            set -e
            "check_$name"
        )
        local status=$?
        set -e
        if [ "$status" -eq 0 ]; then
            say "check $name: ok ($((SECONDS - started)) s)"
        else
            say "check $name: FAILED ($((SECONDS - started)) s)"
            failed+=("$name")
        fi
    done
    [ "${#failed[@]}" -eq 0 ] || die "failed checks: ${failed[*]}"
    say "all checks passed"
}

tracked() { # tracked PATTERN...: files under version control that still exist
    git -C "$SKIMMER_ROOT" ls-files -- "$@" | while IFS= read -r file; do
        [ ! -f "$SKIMMER_ROOT/$file" ] || printf '%s\n' "$file"
    done
}

check_format() {
    cargo fmt --all --check
}

check_shell() {
    local -a scripts
    mapfile -t scripts < <({
        tracked '*.sh'
        tracked | while IFS= read -r file; do
            ! head -c 64 "$file" | head -n 1 | grep -qaE '^#!.*\b(ba)?sh\b' || printf '%s\n' "$file"
        done
    } | sort -u)
    shellcheck -x "${scripts[@]}"
}

check_lock() {
    cargo metadata --locked --quiet --format-version 1 >/dev/null
}

# Lines of a file up to its unit tests: 400 is where one starts to think, 700 where one has to act. Exceptions
# stand with a reason in dev.d/long-files.txt.
check_lengths() {
    local file lines bad=0
    while IFS= read -r file; do
        lines=$(awk '/^#\[cfg\(test\)\]$/ {exit} {n++} END {print n + 0}' "$file")
        if [ "$lines" -gt 700 ]; then
            if grep -q "^$file:" dev.d/long-files.txt; then
                continue
            fi
            printf '%s has %s lines, more than 700\n' "$file" "$lines" >&2
            bad=1
        elif [ "$lines" -gt 400 ]; then
            printf 'note: %s has %s lines, more than 400\n' "$file" "$lines" >&2
        fi
    done < <(tracked '*.rs' | grep -vE '(^|/)tests(/|\.rs$)')
    return "$bad"
}

# Error and log texts start in lower case and end without a period. Acronyms and names (two capitals, or a capital
# and a digit) may start a text, and so may a value.
check_text() {
    local -a sources
    mapfile -t sources < <(tracked '*.rs' | grep -vE '(^|/)fuzz/')
    perl -0777 -ne '
        sub complain { my ($text, $why) = @_; my $line = 1 + (substr($_, 0, pos) =~ tr/\n//);
            print STDERR "$ARGV:$line: \"$text\" $why\n"; $bad = 1 }
        while (/(?:\b(?:error|warn|info|debug|trace|bail|ensure|anyhow)!\s*\((?:[^"();]|\([^()]*\))*?|#\[error\(\s*|\.(?:with_)?context\(\s*(?:\|\|\s*format!\(\s*)?)"((?:[^"\\]|\\.)*)"/gs) {
            my $text = $1;
            complain($text, "starts with a capital letter") if $text =~ /^[A-Z][a-z]/ && $text !~ /^[A-Z][a-z]*[A-Z0-9]/;
            complain($text, "ends with a period") if $text =~ /[^.]\.$/;
        }
        END { exit 1 if $bad }' "${sources[@]}"
}

# Nobody else has this machine.
check_paths() {
    local found
    # This script names what it looks for, with a bracket in it.
    found=$(tracked | grep -v '^Cargo\.lock$' | tr '\n' '\0' |
        xargs -0 grep -nIE '(^|[^A-Za-z0-9_.$}])/(home/[a-z]|root/[a-z.]|Users/[A-Z]|wor[k]/[a-z])' -- || true)
    if [ -n "$found" ]; then
        printf 'paths of one machine:\n%s\n' "$found" >&2
        return 1
    fi
}

# These decide; they neither wait nor look at the world, and so they can be simulated. Folders: the last part is the crate.
PURE=(proto swarm registry/oci)
check_purity() {
    local bad=0 folder crate found
    for folder in "${PURE[@]}"; do
        crate=${folder##*/}
        found=$(cargo tree --locked -p "$crate" -e normal --prefix none --format '{p}' |
            grep -E '^(tokio|mio|socket2|async-io|async-std|smol|polling|rustix|hyper|tonic|quinn) ' | sort -u || true)
        if [ -n "$found" ]; then
            printf '%s depends on what does IO: %s\n' "$crate" "$found" >&2
            bad=1
        fi
        # Unit tests may look at files (golden bytes); what ships may not.
        while IFS= read -r file; do
            found=$(awk '/^#\[cfg\(test\)\]$/ {exit} {print FILENAME ":" FNR ": " $0}' "$file" |
                grep -vE '^[^ ]+ +//' |
                grep -E 'std::(net|fs|thread|process|env|io::std)|\b(Instant|SystemTime)::now\b|\btokio::|\bthread_rng\b|rand::rng\(' || true)
            if [ -n "$found" ]; then
                printf 'not pure:\n%s\n' "$found" >&2
                bad=1
            fi
        done < <(tracked "$folder/src/*.rs" "$folder/src/**/*.rs" | grep -vE '/tests(/|\.rs$)' | sort -u)
    done
    return "$bad"
}

# cargo-deny where somebody has it; otherwise its bans and licences by a script that reads the same deny.toml
# (cargo-deny itself takes many minutes to compile on two cores, more than all other checks together).
check_licences() {
    if cargo deny --version >/dev/null 2>&1; then
        cargo deny --locked --offline check bans licenses sources
    else
        # What is compiled on Linux; the lock file also names other platforms' crates.
        cargo metadata --locked --format-version 1 --filter-platform "$(rustc --print host-tuple)" | python3 dev.d/deny.py deny.toml
    fi
}

check_clippy() {
    cargo clippy --locked --quiet --workspace --all-targets -- -D warnings
}

check_docs() {
    RUSTDOCFLAGS='-D warnings' cargo doc --locked --quiet --workspace --no-deps --document-private-items
}

# Fuzz targets are packages of their own, outside the workspace; they must at least keep compiling.
check_fuzz() {
    local manifest
    while IFS= read -r manifest; do
        cargo check --locked --quiet --manifest-path "$manifest"
    done < <(tracked 'fuzz/Cargo.toml' '*/fuzz/Cargo.toml')
}
