//go:build !cuda

package main

import (
	"errors"

	"github.com/blockzero-net/bzd/training/backend"
)

const defaultBackend = "cpu"

var errNotBuilt = errors.New("this binary was built without CUDA; make cuda builds one with it")

func openCard(int, bool, limits) (backend.Backend, func() error, error) { return nil, nil, errNotBuilt }

// cardFailed: openCard never gives a card that could fail later.
func cardFailed(err error) bool { return errors.Is(err, errNotBuilt) }

func cards() []string { return []string{"not in this build; make cuda builds one with it"} }
