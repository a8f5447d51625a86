//go:build tools

// Package tools pins the Litestream that the tests run, and the ltx tool (build.sh).
package tools

import (
	_ "github.com/benbjohnson/litestream/cmd/litestream"
	_ "github.com/superfly/ltx/cmd/ltx"
)
