//go:build cuda

package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/driver"
)

// defaultBackend: who runs this binary has a card.
const defaultBackend = "auto"

func openCard(number int, fast bool, l limits) (backend.Backend, func() error, error) {
	d, err := driver.Open(number)
	if err != nil {
		return nil, nil, err
	}
	mode := cuda.Exact
	if fast {
		mode = cuda.Fast
	}
	b, err := cuda.New(d, cuda.Options{Mode: mode, Memory: l.memory, Resident: l.resident})
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	return b, d.Close, nil
}

// cardFailed reports whether err is the card's fault, or that of its driver or memory.
func cardFailed(err error) bool {
	return slices.ContainsFunc([]error{cuda.ErrNoDriver, cuda.ErrNoDevice, cuda.ErrDriverTooOld, cuda.ErrInUse,
		cuda.ErrOutOfMemory, cuda.ErrDeviceLost, cuda.ErrLaunch}, func(e error) bool { return errors.Is(err, e) })
}

// cards describes the cards of this machine, or says why there is none, a line each.
func cards() []string {
	infos, err := driver.List()
	if err != nil {
		return []string{err.Error()}
	}
	var lines []string
	for i, info := range infos {
		line := fmt.Sprintf("%d: %s, compute capability %d.%d, %d MiB, driver for CUDA %s", i, info.Name, info.Major, info.Minor,
			info.Memory>>20, driver.Version(info.DriverVersion))
		if err := driver.Usable(info); err != nil {
			line += "; " + err.Error()
		}
		lines = append(lines, line)
	}
	return lines
}
