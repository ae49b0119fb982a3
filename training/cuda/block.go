package cuda

import (
	"fmt"

	"github.com/blockzero-net/bzd/training/backend"
)

// errBlock is what Sync returns for a model that needs an operation of backend.Block.
var errBlock = fmt.Errorf("%w: this model family is not computed on CUDA yet; use --backend cpu", backend.ErrUnsupported)

func (b *Backend) unsupported() {
	b.op.Lock()
	defer b.op.Unlock()
	b.fail(errBlock)
}

// AddBias is not computed yet: Sync says so, as after all operations of backend.Block.
func (b *Backend) AddBias(_, _ backend.Buffer) { b.unsupported() }

// Rotate is not computed yet.
func (b *Backend) Rotate(_, _ backend.Buffer, _ backend.Rope, _, _, _ int, _ bool) { b.unsupported() }

// SwiGLU is not computed yet.
func (b *Backend) SwiGLU(_, _, _ backend.Buffer) { b.unsupported() }

// SwiGLUGrad is not computed yet.
func (b *Backend) SwiGLUGrad(_, _, _, _, _ backend.Buffer) { b.unsupported() }

// AddGated is not computed yet.
func (b *Backend) AddGated(_, _, _ backend.Buffer) { b.unsupported() }

// AddGatedGrad is not computed yet.
func (b *Backend) AddGatedGrad(_, _, _, _, _ backend.Buffer) { b.unsupported() }
