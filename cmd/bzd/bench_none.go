//go:build !cuda

package main

import "github.com/blockzero-net/bzd/training/backend"

func benchCard(int, bool, limits) (backend.Backend, *meteredCard, error) {
	return nil, nil, errNotBuilt
}

func cardFree(int) (int64, string, error) { return 0, "", errNotBuilt }
