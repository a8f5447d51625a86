//go:build tools

// Package tools pins the Consul that the tests run (build.sh).
package tools

import _ "github.com/hashicorp/consul"
