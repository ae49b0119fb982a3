package training

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/model"
)

// Kinds says in how many bytes a backend on a device keeps values, and what its operations keep.
type Kinds struct {
	Activation int // of an activation: 2 or 4
	Hub        int // of a frozen matrix that belongs to no expert: 2, or 4 if its values are not bfloat16 ones
	Experts    int // of a frozen expert's matrices, likewise
	Copy       int // of the copy of a trained matrix that products read; 0 if they read the matrix itself
	// Exact attention keeps every probability, a multiple of 16 per row and head; otherwise it keeps one number.
	Exact bool
}

// FastKinds are those of a backend that multiplies in bfloat16.
func FastKinds() Kinds { return Kinds{Activation: 2, Hub: 2, Experts: 2, Copy: 2} }

// ExactKinds are those of a backend that computes in float32, for a hub of bfloat16 values and experts that have moved.
func ExactKinds() Kinds { return Kinds{Activation: 4, Hub: 2, Experts: 4, Exact: true} }

// Memory is what a training run, or an evaluation, holds on the device, in bytes.
type Memory struct {
	Hub       int64 // embeddings, attention, norms, head, tables of the rotary embedding
	Experts   int64 // frozen experts that stay on the device
	Stream    int64 // room for two layers of those that do not
	Trained   int64 // experts of the group and all routers
	Copies    int64 // of trained matrices, as products read them
	Gradients int64
	Moments   int64 // both
	Layers    int64 // activations that the way back needs
	Shared    int64 // activations that all layers share
	Logits    int64
	Scratch   int64 // of the operations
	Host      int64 // page-locked memory of the host for the experts that do not stay; not part of the total
}

// Total is the sum of everything on the device.
func (m Memory) Total() int64 {
	t := int64(0)
	for _, c := range m.Components() {
		t += c.Bytes
	}
	return t
}

// Component is one line of a memory plan.
type Component struct {
	Name  string
	Bytes int64
}

// Components lists what is on the device, in the order of Memory's fields.
func (m Memory) Components() []Component {
	return []Component{
		{"hub, frozen", m.Hub}, {"experts, frozen", m.Experts}, {"room for streamed experts", m.Stream},
		{"group and routers", m.Trained}, {"copies to multiply by", m.Copies}, {"gradients", m.Gradients}, {"moments", m.Moments},
		{"activations of the layers", m.Layers}, {"activations shared", m.Shared}, {"logits", m.Logits}, {"scratch", m.Scratch},
	}
}

// Estimate says what a pass of that layout needs, with its model and, unless trained is nil, with the optimizer. Blocks are
// taken as long as they are: a device that rounds them up needs up to a thirtieth more.
func Estimate(c model.Config, trained []model.ExpertRef, l model.Layout, k Kinds) Memory {
	n := int64(l.Sequences) * int64(l.Seq)
	m := weights(c, trained, k)
	activations(&m, c, trained, l, k)
	rows := min(n, int64(headRows(c, l)))
	m.Logits = rows * int64(c.Vocab) * int64(k.Activation)
	m.Scratch = scratch(c, trained != nil, l, k)
	return m
}

func headRows(c model.Config, l model.Layout) int {
	if l.HeadRows > 0 {
		return l.HeadRows
	}
	return max(256, 1<<(bits.Len(uint(1<<27/c.Vocab))-1))
}

// expertValues is the size of one expert.
func expertValues(c model.Config) int64 { return 3 * int64(c.Dim) * int64(c.Width) }

func weights(c model.Config, trained []model.ExpertRef, k Kinds) Memory {
	var m Memory
	d, layers, group := int64(c.Dim), int64(c.Layers), int64(len(trained))
	q, kv, head, vocab := int64(c.Heads*c.HeadDim), int64(c.KVHeads*c.HeadDim), int64(c.HeadDim), int64(c.Vocab)
	matrices := vocab*d + layers*(2*q*d+2*kv*d)
	if !c.Tied {
		matrices += vocab * d
	}
	if shared := int64(c.Shared); shared > 0 {
		matrices += layers * (3*shared*d + d)
	}
	vectors := d + layers*(2*d+2*head) + 3*int64(c.Positions)*head/2
	m.Hub = matrices*int64(k.Hub) + 4*vectors
	m.Experts = (layers*int64(c.Experts) - group) * expertValues(c) * int64(k.Experts)
	routers := layers * int64(c.Experts) * d
	moving := group * (expertValues(c) + d)
	m.Trained = 4 * (group*expertValues(c) + routers)
	m.Copies = (group*expertValues(c) + routers) * int64(k.Copy)
	m.Gradients, m.Moments = 4*moving, 8*moving
	return m
}

// activations follows model.NewPassOf.
func activations(m *Memory, c model.Config, trained []model.ExpertRef, l model.Layout, k Kinds) {
	n, d, a := int64(l.Sequences)*int64(l.Seq), int64(c.Dim), int64(k.Activation)
	q, kv := int64(c.Heads*c.HeadDim), int64(c.KVHeads*c.HeadDim)
	layers, streams := int64(1), int64(1)
	m.Shared = n * (a*(3*d+q+kv) + 4*(int64(c.Experts)+1))
	if trained != nil {
		layers, streams = int64(c.Layers), int64(c.Layers)+1
		if l.Recompute {
			layers = 1
		}
		m.Shared += n * (4*d + a*(d+3*q+3*kv) + 4*(int64(c.Experts)+int64(len(trained))))
	}
	layer := n * (4*d + 8 + 2*a*(q+kv) + 4*int64(c.Heads+c.KVHeads))
	kept := n * int64(c.Heads) * 4
	if k.Exact {
		kept *= int64(backend.AttentionShape{Seq: l.Seq}.Padded())
	}
	if shared := int64(c.Shared); shared > 0 {
		layer += n * (a*(2*shared+d) + 4)
		m.Shared += n * a * shared
		if trained != nil {
			m.Shared += n * (a*(2*shared+d) + 4)
		}
	}
	m.Layers = streams*n*d*4 + layers*(layer+kept+mixture(c, n, trained != nil, k))
}

// Fitted is a way to train that fits the memory of a device.
type Fitted struct {
	Micro     int   // sequences that go through the model at a time: Plan.Micro
	Recompute bool  // Plan.Recompute
	Resident  int64 // bytes of frozen experts that stay on the device
	Memory    Memory
}

// Fit looks for the fastest way to train on batches of sequences of seq tokens in limit bytes. It gives up, in this
// order: the batch in one piece, keeping the activations, having all experts on the device. In exact arithmetic it gives up
// the batch in one piece last, for that shows in the result. Without any way that fits the error, which wraps
// backend.ErrOutOfMemory, says what would.
func Fit(c model.Config, trained []model.ExpertRef, batch, seq int, k Kinds, limit int64) (Fitted, error) {
	tries := [][]int{pieces(batch)}
	if k.Exact {
		tries = [][]int{{batch}, pieces(batch)}
	}
	for _, sizes := range tries {
		if f, ok := search(c, trained, sizes, batch, seq, k, limit); ok {
			return f, nil
		}
	}
	return Fitted{}, fmt.Errorf("%w: %s", backend.ErrOutOfMemory, wouldFit(c, trained, seq, k, limit))
}

// search is Fit with these sizes of micro-batches.
func search(c model.Config, trained []model.ExpertRef, sizes []int, batch, seq int, k Kinds, limit int64) (Fitted, bool) {
	for _, recompute := range []bool{false, true} {
		for _, micro := range sizes {
			if f, ok := fit(c, trained, model.Layout{Sequences: micro, Seq: seq, Recompute: recompute}, k, limit, false); ok {
				return f, true
			}
		}
	}
	// Small pieces leave room for more experts, and copy the others more often: the fewest bytes copied in a step win.
	var found Fitted
	least := int64(math.MaxInt64)
	for _, recompute := range []bool{false, true} {
		visits := int64(2) // of a layer: forward and backward
		if recompute {
			visits = 3
		}
		for _, micro := range sizes {
			f, ok := fit(c, trained, model.Layout{Sequences: micro, Seq: seq, Recompute: recompute}, k, limit, true)
			if copied := visits * f.Memory.Host * int64((batch+micro-1)/micro); ok && copied < least {
				found, least = f, copied
			}
		}
	}
	return found, least < math.MaxInt64
}

// pieces are the micro-batches that a Job would try, largest first.
func pieces(batch int) (sizes []int) {
	for n := batch; ; n = (n + 1) / 2 {
		sizes = append(sizes, n)
		if n <= 1 {
			return sizes
		}
	}
}

// fit tries one layout.
func fit(c model.Config, trained []model.ExpertRef, l model.Layout, k Kinds, limit int64, stream bool) (Fitted, bool) {
	m := Estimate(c, trained, l, k)
	f := Fitted{Micro: l.Sequences, Recompute: l.Recompute, Resident: m.Experts, Memory: m}
	over := withRounding(m.Total()) - limit
	if over <= 0 || !stream {
		return f, over <= 0
	}
	// Whole layers are streamed, the last ones first, through two rooms of one layer each.
	layer := m.Experts / int64(c.Layers)
	m.Stream = 2 * (int64(c.Experts) - fewest(c, trained)) * expertValues(c) * int64(k.Experts)
	for m.Experts > 0 && withRounding(m.Total()) > limit {
		m.Experts = max(0, m.Experts-layer)
	}
	m.Host = f.Resident - m.Experts
	f.Resident, f.Memory = m.Experts, m
	return f, withRounding(m.Total()) <= limit
}

// fewest is how many experts are trained in the layer with the fewest.
func fewest(c model.Config, trained []model.ExpertRef) int64 {
	count := make([]int64, c.Layers)
	for _, e := range trained {
		count[e.Layer]++
	}
	return slices.Min(count)
}

// withRounding is what a device takes for that many bytes: it rounds blocks up, by less than this.
func withRounding(bytes int64) int64 { return bytes + bytes/32 }

// least is the smallest way to train.
func least(c model.Config, trained []model.ExpertRef, seq int, k Kinds) int64 {
	f, _ := fit(c, trained, model.Layout{Sequences: 1, Seq: seq, Recompute: true}, k, 0, true)
	m := Estimate(c, trained, model.Layout{Sequences: 1, Seq: seq, Recompute: true}, k)
	return min(withRounding(f.Memory.Total()), withRounding(m.Total()))
}

// wouldFit says what to change.
func wouldFit(c model.Config, trained []model.ExpertRef, seq int, k Kinds, limit int64) string {
	const mib = 1 << 20
	text := fmt.Sprintf("training needs at least %d MiB of device memory with one sequence at a time, recomputation and streamed experts, and may use %d MiB",
		(least(c, trained, seq, k)+mib-1)/mib, limit/mib)
	var ways []string
	for s := seq / 2; s >= 16; s /= 2 {
		if least(c, trained, s, k) <= limit {
			ways = append(ways, fmt.Sprintf("sequences of %d tokens", s))
			break
		}
	}
	for n := len(trained) / 2; n >= 1; n /= 2 {
		if least(c, trained[:n], seq, k) <= limit {
			ways = append(ways, fmt.Sprintf("a group of %d experts", n))
			break
		}
	}
	ways = append(ways, "a card with more memory")
	return text + "; what would fit: " + strings.Join(ways, ", or ")
}

// mixture is what one layer's mixture holds between the passes: routing, and of the experts the gate and the way up,
// which exact arithmetic keeps with their product and the output.
func mixture(c model.Config, n int64, keep bool, k Kinds) int64 {
	slots, f := n*int64(c.TopK), int64(c.Width)
	bytes := 4*n*int64(c.Experts) + 16*slots
	switch {
	case k.Exact && keep:
		bytes += 4*slots*(3*f+int64(c.Dim)) + slots/256*4*int64(c.Experts)
	case keep:
		bytes += 2 * slots * int64(k.Activation) * f
	}
	return bytes
}

// attentionScratch is about how many values exact attention takes for the gradient of its scores.
const attentionScratch = 64 << 20

// scratch is what operations hold besides their arguments. It stays with the backend, for the next operation that asks for
// blocks of the same size, so sizes add up and not moments.
func scratch(c model.Config, train bool, l model.Layout, k Kinds) int64 {
	n, d, f, a := int64(l.Sequences)*int64(l.Seq), int64(c.Dim), int64(c.Width), int64(k.Activation)
	slots := n * int64(c.TopK)
	wide, narrow, bytes := int64(1), int64(2), int64(0) // blocks of [slots, Dim] and of [slots, Width]
	seqs, seq := int64(l.Sequences), int64(l.Seq)
	switch {
	case k.Exact && train:
		wide, narrow = 2, 1
		each := int64(c.KVHeads) * seq * int64(backend.AttentionShape{Seq: l.Seq}.Padded())
		bytes = 4*slots + 4*each*min(seqs, max(1, attentionScratch/each))
	case k.Exact:
		wide = 2
	case train:
		narrow = 1
		bytes = 4*slots + n*(d+int64(c.Experts))*a                     // what products read of values that are kept in float32
		bytes += seqs * int64(c.Heads) * 8 * ((seq + 127) / 128 * 128) // statistics of attention's rows
	}
	return bytes + slots*a*(wide*d+narrow*f)
}
