//go:build !linux

package emu

import (
	"context"
	"fmt"
	"runtime"

	"github.com/blockzero-net/bzd/training/cuda"
)

// Emulator exists on Linux only.
type Emulator struct{ cuda.Driver }

// Start fails: the emulator is written for Linux.
func Start(ctx context.Context, c Config) (*Emulator, error) {
	return nil, fmt.Errorf("%w: it needs Linux, this is %s", ErrUnavailable, runtime.GOOS)
}

// Kill does nothing.
func (e *Emulator) Kill() {}

// Live returns nothing.
func (e *Emulator) Live() (allocations int, bytes int64) { return 0, 0 }

// Kernels returns nothing.
func (e *Emulator) Kernels() []string { return nil }
