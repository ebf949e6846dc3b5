# shellcheck shell=bash
# ./dev test: unit and property tests, doc tests, then the black-box suites.
#
# One profile for all of them: dev, where dependencies and our crates are optimised lightly (Cargo.toml). A release
# build would compile some 450 crates a second time (ten minutes on two cores, thin LTO not counted) and would
# switch off the debug assertions that hold our invariants, just where real clients could break them. Speed is
# the benches' subject, and they use release.

# Every row is one line of JSON in a file: {"what":…,"passed":…,"failed":…,"skipped":…}, and "why" where something failed.
unit_rows() { # unit_rows ROWS_FILE SCRATCH [FILTER]
    local rows=$1 scratch=$2 filter=${3:-} crate kind folder program log status line passed failed skipped
    say "building the unit tests"
    cargo test --locked --quiet --workspace --exclude blackbox --lib --bins --tests --no-run --message-format json-render-diagnostics >"$scratch/build.json"
    jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null)
        | [(.manifest_path | sub("/Cargo.toml$"; "")), .target.kind[0], .target.name, .executable] | @tsv' \
        "$scratch/build.json" | sort >"$scratch/programs.tsv"
    while IFS=$'\t' read -r folder kind crate program; do
        log=$scratch/unit.log status=0
        (cd "$folder" && CARGO_MANIFEST_DIR=$folder "$program" ${filter:+"$filter"}) >"$log" 2>&1 </dev/null || status=$?
        line=$(grep '^test result: ' "$log" | tail -n 1 || true)
        read -r passed failed skipped < <(sed -E 's/.* ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored.*/\1 \2 \3/' <<<"$line")
        if [ -z "$line" ]; then # it died before it could say how many
            passed=0 failed=1 skipped=0
        elif [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
            failed=1
        fi
        [ "$failed" -eq 0 ] || cat "$log" >&2
        [ $((passed + failed + skipped)) -gt 0 ] || continue
        case "$kind" in
            lib | proc-macro) add_row "$rows" "unit tests: $crate" "$passed" "$failed" "$skipped" "$log" ;;
            bin) add_row "$rows" "unit tests: $crate (program)" "$passed" "$failed" "$skipped" "$log" ;;
            *) add_row "$rows" "tests: $(basename "$folder")/$crate" "$passed" "$failed" "$skipped" "$log" ;;
        esac
    done <"$scratch/programs.tsv"
}

doc_rows() { # doc_rows ROWS_FILE SCRATCH
    local rows=$1 log=$2/doc.log status=0 passed failed skipped
    say "running the examples in the documentation"
    cargo test --locked --quiet --workspace --doc --no-fail-fast >"$log" 2>&1 </dev/null || status=$?
    read -r passed failed skipped < <(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored.*/\1 \2 \3/p' "$log" |
        awk '{p += $1; f += $2; s += $3} END {print p + 0, f + 0, s + 0}')
    [ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
    [ "$failed" -eq 0 ] || cat "$log" >&2
    [ $((passed + failed + skipped)) -eq 0 ] || add_row "$rows" "examples in the documentation" "$passed" "$failed" "$skipped" "$log"
}

add_row() { # add_row ROWS_FILE WHAT PASSED FAILED SKIPPED LOG
    jq -cn --arg what "$2" --argjson passed "$3" --argjson failed "$4" --argjson skipped "$5" --arg why "$(tail -n 60 "$6")" \
        '{what: $what, passed: $passed, failed: $failed, skipped: $skipped} + if $failed > 0 then {why: $why} else {} end' >>"$1"
    say "$2: $3 passed, $4 failed, $5 skipped"
}

run_test() {
    local json=0 filter='' scratch rows status=0
    while [ $# -gt 0 ]; do
        case "$1" in
            --json) json=1 ;;
            -*) die "no such option of ./dev test: $1" ;;
            *)
                [ -z "$filter" ] || die "./dev test takes one filter"
                filter=$1
                ;;
        esac
        shift
    done
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$scratch'" EXIT
    rows=$scratch/rows
    : >"$rows"
    unit_rows "$rows" "$scratch" "$filter"
    [ -n "$filter" ] || doc_rows "$rows" "$scratch"
    build_bins dev
    "$BIN_DIR/blackbox" --rows "$scratch/blackbox" ${filter:+"$filter"} >&2 </dev/null || status=$?
    if [ -s "$scratch/blackbox" ]; then
        cat "$scratch/blackbox" >>"$rows"
    elif [ "$status" -ne 0 ]; then
        add_row "$rows" "black-box suites" 0 1 0 /dev/null
    fi
    report_rows "$rows" "$json"
    [ "$(jq -s 'map(.failed) | add // 0' "$rows")" -eq 0 ] && [ "$status" -eq 0 ]
}

report_rows() { # report_rows ROWS_FILE JSON
    local total='{passed: (map(.passed) | add // 0), failed: (map(.failed) | add // 0), skipped: (map(.skipped) | add // 0)}'
    if [ "$2" -eq 1 ]; then
        jq -cs "{rows: .} + $total" "$1"
        return
    fi
    printf '\n%8s %8s %8s  %s\n' passed failed skipped what
    jq -r '[.passed, .failed, .skipped, .what] | @tsv' "$1" |
        while IFS=$'\t' read -r passed failed skipped what; do
            printf '%8s %8s %8s  %s\n' "$passed" "$failed" "$skipped" "$what"
        done
    # Once more, for whoever sees only the end of the output.
    jq -r 'select(.failed > 0) | "\n--- \(.what)\n\(.why // "")"' "$1"
    jq -rs "$total | \"\n\(.passed) passed, \(.failed) failed, \(.skipped) skipped\"" "$1"
}
