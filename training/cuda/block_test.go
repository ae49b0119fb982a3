package cuda_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/cudatest"
)

// TestBlock: a family that needs what is not computed here is refused at the next Sync, with the remedy, and nothing panics.
func TestBlock(t *testing.T) {
	for name, ask := range map[string]func(b *cuda.Backend, x backend.Buffer){
		"AddBias":      func(b *cuda.Backend, x backend.Buffer) { b.AddBias(x, x) },
		"Rotate":       func(b *cuda.Backend, x backend.Buffer) { b.Rotate(x, x, backend.Rope{}, 4, 1, 1, false) },
		"SwiGLU":       func(b *cuda.Backend, x backend.Buffer) { b.SwiGLU(x, x, x) },
		"SwiGLUGrad":   func(b *cuda.Backend, x backend.Buffer) { b.SwiGLUGrad(x, x, x, x, x) },
		"AddGated":     func(b *cuda.Backend, x backend.Buffer) { b.AddGated(x, x, x) },
		"AddGatedGrad": func(b *cuda.Backend, x backend.Buffer) { b.AddGatedGrad(x, x, x, x, x) },
	} {
		b, err := cuda.New(cudatest.New(cudatest.Options{Info: hostInfo}), cuda.Options{})
		if err != nil {
			t.Fatal(err)
		}
		ask(b, b.Alloc(4))
		for range 2 {
			if err := b.Sync(); !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "--backend cpu") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
