#!/usr/bin/env bash
# Prints the path of a consul binary for the tests: the one on PATH, else the version that go.mod pins, built
# once into .cache/consul (about five minutes, with Go 1.22 or later). With --built it does not build, and fails
# if nothing was built.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
BUILD_SECONDS=1800

say() { printf 'consul: %s\n' "$*" >&2; }

if command -v consul; then exit 0; fi

version=$(sed -n 's|^.*github.com/hashicorp/consul \(v[0-9.]*\).*$|\1|p' "$here/go.mod" | head -n 1)
cache="$here/../../.cache/consul"
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
binary="$cache/consul-$version"
# Two test runs in one clone build it once.
exec 9>"$cache/lock"
flock 9
if [ ! -x "$binary" ]; then
    [ "${1:-}" != --built ] || { say "none on PATH and none built: run make setup"; exit 1; }
    command -v go >/dev/null || { say "no consul on PATH, and no go (1.22 or later) to build one"; exit 1; }
    say "building $version with $(go env GOVERSION), this takes about five minutes"
    (cd "$here" && CGO_ENABLED=0 timeout "$BUILD_SECONDS" nice -n 5 \
        go build -mod=readonly -trimpath -ldflags="-s -w" -o "$binary.new" github.com/hashicorp/consul)
    mv "$binary.new" "$binary"
fi
printf '%s\n' "$binary"
