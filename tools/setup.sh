#!/usr/bin/env bash
# Makes everything that the tests and the demo need: Debian packages (if some are missing and we may install
# them), a virtual environment in .venv, and the project in it, editable, with its kernels compiled.
# Safe to run again; `make setup` does so only when something changed.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

APT_SECONDS=600
PIP_SECONDS=900

say() { printf 'setup: %s\n' "$*" >&2; }

# Twice: package mirrors and indexes fail now and then.
retry() { "$@" || { say "failed, trying once more: $*"; sleep 3; "$@"; }; }

install_packages() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "missing: $*"
        say "install them as root first: apt-get install $*"
        exit 1
    fi
    say "installing Debian packages: $*"
    retry timeout "$APT_SECONDS" apt-get update -qq
    retry timeout "$APT_SECONDS" apt-get install -y -qq --no-install-recommends "$@" >&2
}

missing_packages() {
    command -v pkg-config >/dev/null || echo pkg-config
    command -v gcc >/dev/null || echo gcc libc6-dev
    command -v sqlite3 >/dev/null || echo sqlite3
    command -v fusermount3 >/dev/null || echo fuse3
    command -v ip >/dev/null && command -v tc >/dev/null || echo iproute2
    command -v systemd-analyze >/dev/null || echo systemd
    command -v nsenter >/dev/null || echo util-linux
    command -v chromium >/dev/null || echo chromium
    command -v wrk >/dev/null || echo wrk
    [ -e /usr/include/fuse3/fuse.h ] || pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    [ -e /usr/include/sqlite3.h ] || pkg-config --exists sqlite3 2>/dev/null || echo libsqlite3-dev
    [ -e /usr/include/lz4.h ] || pkg-config --exists liblz4 2>/dev/null || echo liblz4-dev
}

# The first Python from 3.11 on that can make a virtual environment and compile against itself.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 /usr/bin/python3; do
        if "$candidate" - 2>/dev/null <<'CHECK'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))
CHECK
        then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

packages=$(missing_packages)
# shellcheck disable=SC2086 # a list of words
[ -z "$packages" ] || install_packages $packages

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=$(find_python) || { install_packages python3 python3-venv python3-dev; python=$(find_python); } ||
        { say "no Python from 3.11 on with venv and headers was found"; exit 1; }
    say "making .venv with $python"
    "$python" -m venv --clear .venv
fi

pip() { timeout "$PIP_SECONDS" .venv/bin/python -m pip "$@"; }
# The build needs Cython and setuptools in .venv too: compiled in place, without a build environment of its own.
retry pip install -q "setuptools>=77" "cython>=3.1" wheel
retry pip install -q --no-build-isolation -e ".[dev]"

[ -c /dev/fuse ] || say "warning: no /dev/fuse here, mounts will fail"
