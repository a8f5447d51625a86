#!/usr/bin/env bash
# Prints the path of a litestream binary for the tests: $LITESTREAM, the one on PATH, else the version that go.mod
# pins, built once into .cache/litestream (with Go 1.25 or later), with the ltx tool beside it. With --built it does
# not build, and fails if nothing was built.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
BUILD_SECONDS=1800

say() { printf 'litestream: %s\n' "$*" >&2; }

if [ -n "${LITESTREAM:-}" ]; then
    [ -x "$LITESTREAM" ] || { say "\$LITESTREAM is not a program: $LITESTREAM"; exit 1; }
    printf '%s\n' "$LITESTREAM"
    exit 0
fi
if command -v litestream; then exit 0; fi

version=$(sed -n 's|^.*github.com/benbjohnson/litestream \(v[0-9.]*\).*$|\1|p' "$here/go.mod" | head -n 1)
cache="$here/../../.cache/litestream/$version"
binary="$cache/litestream"
if [ "${1:-}" = --built ]; then
    [ -x "$binary" ] || { say "none on PATH and none built: make litestream"; exit 1; }
    (cd "$cache" && printf '%s/litestream\n' "$(pwd)")
    exit 0
fi
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
# Two at the same time build it once.
exec 9>"$cache/lock"
flock 9
if [ ! -x "$cache/litestream" ]; then
    command -v go >/dev/null || { say "no litestream on PATH, and no go (1.25 or later) to build one"; exit 1; }
    say "building $version with $(go env GOVERSION)"
    mkdir -p "$cache/new"
    (cd "$here" && CGO_ENABLED=0 timeout "$BUILD_SECONDS" nice -n 5 \
        go build -mod=readonly -trimpath \
        -ldflags="-s -w -X main.Version=$version" -o "$cache/new/" \
        github.com/benbjohnson/litestream/cmd/litestream github.com/superfly/ltx/cmd/ltx)
    mv "$cache/new/ltx" "$cache/ltx"
    mv "$cache/new/litestream" "$cache/litestream"
    rmdir "$cache/new"
fi
printf '%s/litestream\n' "$cache"
