package exchange

import (
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// buffers are memory for large blocks, used again: a fetch would otherwise leave a collection's work behind every few dozen
// of them.
type buffers struct{ pool sync.Pool }

// largeBuffer is from how many bytes on a block gets memory of the pool, in which every piece has room for any block.
const largeBuffer = MaxBlock / 2

func newBuffers() *buffers {
	return &buffers{sync.Pool{New: func() any { return new([MaxBlock]byte) }}}
}

func (b *buffers) get(n int) []byte {
	if n < largeBuffer {
		return make([]byte, n)
	}
	return b.pool.Get().(*[MaxBlock]byte)[:n]
}

// put takes back what get gave and nobody uses any more.
func (b *buffers) put(data []byte) {
	if len(data) >= largeBuffer && cap(data) == MaxBlock {
		b.pool.Put((*[MaxBlock]byte)(data[:MaxBlock]))
	}
}

// wanted are the blocks that fetches of this exchange wait for bitswap to bring, whoever else may have them meanwhile.
type wanted struct {
	mu    sync.Mutex
	waits map[string]int // how many fetches, by multihash
}

func newWanted() *wanted { return &wanted{waits: make(map[string]int)} }

// add says that n fetches more wait for the blocks.
func (w *wanted) add(cids []cid.Cid, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range cids {
		k := string(c.Hash())
		if w.waits[k] += n; w.waits[k] == 0 {
			delete(w.waits, k)
		}
	}
}

// split tells which of the blocks a fetch waits for, and which none does.
func (w *wanted) split(bs []blocks.Block) (wanted, free []blocks.Block) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waits) == 0 {
		return nil, bs
	}
	for _, b := range bs {
		if w.waits[string(b.Cid().Hash())] > 0 {
			wanted = append(wanted, b)
		} else {
			free = append(free, b)
		}
	}
	return wanted, free
}
