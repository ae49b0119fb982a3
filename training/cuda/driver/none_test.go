//go:build !cuda

package driver

import (
	"errors"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
)

func TestNotBuilt(t *testing.T) {
	_, listed := List()
	_, opened := Open(0)
	for _, err := range []error{listed, opened} {
		if !errors.Is(err, cuda.ErrNoDriver) || !strings.Contains(err.Error(), "make cuda") {
			t.Error(err)
		}
	}
}
