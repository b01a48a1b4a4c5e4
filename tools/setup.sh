#!/bin/sh
# Sets up all that this checkout needs: system packages, .venv and what is installed in it.
# A second run finds nothing to do and says nothing; it is then over in a moment, because every
# make target begins with it. Nothing here asks a question. With the argument "bench" it sets up
# what only the benchmarks compare with as well, with "page" a browser and what drives it.
set -eu

cd "$(dirname "$0")/.."
stamp=.venv/.setup-stamp
# Debian keeps sshd out of an ordinary user's PATH.
PATH="${PATH:-/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

compared= extras=train,dev
case "${1:-}" in
bench) compared="rsync:rsync openssl:openssl" extras=train,dev,bench ;;
page) compared="chromium:chromium fc-list:fontconfig" extras=train,dev,page ;;
esac

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# The Debian packages of the programs that are missing.
missing_programs() {
    for pair in git:git ssh:openssh-client sshd:openssh-server $compared; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || printf '%s ' "${pair#*:}"
    done
    # Without a font for it, a browser draws boxes in place of Chinese.
    case "$extras" in
    *page*) fc-list :lang=zh 2>/dev/null | grep -q . || printf 'fonts-wqy-microhei ' ;;
    esac
}

# Whether .venv has what was asked for beyond what every target needs.
has_extras() {
    case "$extras" in
    *page*) .venv/bin/python -c 'import playwright' >/dev/null 2>&1 ;;
    *bench*) .venv/bin/python -m pip show --quiet trl >/dev/null 2>&1 ;;
    esac
}

# What .venv was made from, and where: one that was moved has wrong paths inside.
wanted() {
    printf '%s\n' "$PWD"
    cat pyproject.toml constraints.txt tools/setup.sh
}

# Whether a Python is new enough; a name on PATH may be a shim that doesn't run at all.
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Sets python to the first one that can make environments, else without_venv to one that can't.
# The version that constraints.txt was made with comes first.
find_python() {
    python= without_venv=
    for name in python3.11 python3.12 python3.13 python3.14 python3; do
        new_enough "$name" || continue
        if "$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            python=$name
            return
        fi
        without_venv=${without_venv:-$name}
    done
}

usable_venv() {
    [ -x .venv/bin/python ] && new_enough .venv/bin/python &&
        grep -qF "$PWD/.venv/bin/python" .venv/bin/pip 2>/dev/null
}

# Install Debian packages where we may, otherwise name them and how.
install_packages() {
    command="apt-get install -y --no-install-recommends $*"
    if ! command -v apt-get >/dev/null 2>&1; then
        fail "missing here: $* (their names in Debian). Install them, then run this again."
    elif [ "$(id -u)" -ne 0 ]; then
        fail "missing here: $*. Install them as root, then run this again: $command"
    fi
    say "installing the system packages $*"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    if ! { apt-get update && $command; } >"$log" 2>&1 </dev/null; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        fail "apt-get could not install $*; what it said stands above."
    fi
    rm -f "$log"
    case " $* " in
    *" openssh-server "*)
        [ ! -d /run/systemd/system ] ||
            say "openssh-server also enables this machine's own ssh service, which nothing here" \
                "needs; 'systemctl disable --now ssh' undoes that"
        ;;
    esac
}

missing=$(missing_programs)
if [ -z "$missing" ] && [ -x .venv/bin/python ] && wanted | cmp -s - "$stamp" && has_extras; then
    exit 0
fi

if ! usable_venv; then
    find_python
    if [ -z "$python" ]; then
        [ -n "$without_venv" ] ||
            fail "no Python 3.11 or newer on PATH. Install one (Debian and Ubuntu: python3)."
        # Debian splits the module venv off, one package for each version.
        missing="$missing$("$without_venv" -c \
            'import sys; print("python3.%d-venv" % sys.version_info[1])')"
    fi
fi
# shellcheck disable=SC2086 # a list of package names
[ -z "$missing" ] || install_packages $missing

if ! usable_venv; then
    find_python
    [ -n "$python" ] || fail "$without_venv still can't make environments: ensurepip is missing."
    say "making .venv with Python $("$python" -c 'import sys; print(sys.version.split()[0])')"
    rm -rf .venv
    "$python" -m venv .venv || fail "$python could not make .venv."
fi

say "installing the Python packages of pyproject.toml (some minutes the first time)"
rm -f "$stamp"
PIP_USER=0 .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --constraint constraints.txt --editable ".[$extras]" </dev/null ||
    fail "pip could not install the packages; what it said stands above. Run this again to go on."
wanted >"$stamp"
