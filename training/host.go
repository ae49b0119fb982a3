package training

import (
	"fmt"
	"strings"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/model"
)

// Host is training of a group on the CPU, with frozen matrices mapped from the checkpoint's files, as far as its memory
// depends on it.
type Host struct {
	Config  model.Config
	Trained []model.ExpertRef
	Batch   int // sequences of a step
	Seq     int // tokens of a sequence
	Threads int

	Mapped  int64 // bytes of all matrices in the files
	Process int64 // bytes that the process holds already

	Half     bool // moments in bfloat16
	Moments  bool // those of an earlier cycle are given
	Feedback bool // likewise what earlier deltas could not say
	Sparse   bool // the network's deltas are of few values, so that the rest is kept
}

// HostFitted is a way to train that fits the memory of a machine.
type HostFitted struct {
	Micro     int // Plan.Micro
	Recompute bool
	Half      bool
	Room      int64 // bytes of mapped matrices that may be in memory at a time
	Memory    HostMemory
}

// HostMemory is the most that training holds in a machine's memory, in bytes.
type HostMemory struct {
	Process     int64 // what was held before
	Mapped      int64 // frozen matrices from files, at most
	Resident    int64 // vectors and tables
	Trained     int64 // experts of the group and all routers
	Gradients   int64
	Moments     int64 // both
	Kept        int64 // of the group besides: where it began, what was learnt, a state that is being saved
	Activations int64
	Logits      int64
	Scratch     int64
}

// Components lists them in the order of the fields.
func (m HostMemory) Components() []Component {
	return []Component{
		{"held before", m.Process}, {"frozen, from files", m.Mapped}, {"norms and tables", m.Resident}, {"group and routers", m.Trained},
		{"gradients", m.Gradients}, {"moments", m.Moments}, {"group, to begin and to save", m.Kept}, {"activations", m.Activations},
		{"logits", m.Logits}, {"scratch", m.Scratch},
	}
}

// Total is the sum.
func (m HostMemory) Total() (t int64) {
	for _, c := range m.Components() {
		t += c.Bytes
	}
	return t
}

// FitHost looks for the fastest way to train in limit bytes. It gives up, in this order: keeping the activations, having
// all frozen matrices in memory at once, the batch in one piece and, if state is set, moments in float32. The last two show
// in the result. Without any way that fits the error, which wraps backend.ErrOutOfMemory, says what would.
func FitHost(h Host, limit int64, state bool) (HostFitted, error) {
	usable := limit - limit/reserve
	halves := []bool{h.Half}
	if state && !h.Half {
		halves = []bool{false, true}
	}
	for _, half := range halves {
		h.Half = half
		for _, micro := range pieces(h.Batch) {
			for _, recompute := range []bool{false, true} {
				f := h.fitted(micro, recompute)
				if f.Memory.Total() <= usable {
					return f, nil
				}
			}
			f := h.fitted(micro, true)
			over := f.Memory.Total() - usable
			if room := f.Room - over; room >= min(f.Room, h.floor()) {
				f.Room, f.Memory.Mapped = room, room
				return f, nil
			}
		}
	}
	return HostFitted{}, h.refusal(limit, state)
}

// reserve is the part of a limit, one of so many, that is left for what no plan knows of.
const reserve = 24

// fitted is one way, with all matrices in memory.
func (h Host) fitted(micro int, recompute bool) HostFitted {
	f := HostFitted{Micro: micro, Recompute: recompute, Half: h.Half, Room: h.Mapped}
	f.Memory = h.estimate(model.Layout{Sequences: micro, Seq: h.Seq, Recompute: recompute})
	return f
}

// floor is the least room for mapped matrices: the largest twice, and an expert for every thread.
func (h Host) floor() int64 {
	c := h.Config
	largest := max(int64(c.Vocab)*int64(c.Dim), int64(c.Heads*c.HeadDim)*int64(c.Dim), expertValues(c)/3)
	return 2*2*largest + 4*int64(h.Threads)*expertValues(c)
}

func (h Host) estimate(l model.Layout) HostMemory {
	c, k := h.Config, Kinds{Activation: 4, Hub: 4, Experts: 4, Exact: true}
	w := weights(c, h.Trained, k)
	var a Memory
	activations(&a, c, h.Trained, l, k)
	n := int64(l.Sequences) * int64(l.Seq)
	group := w.Gradients // of a value that is trained, 4 bytes
	m := HostMemory{Process: h.Process, Mapped: h.Mapped, Trained: w.Trained, Gradients: group, Moments: 2 * group,
		Activations: a.Layers + a.Shared, Logits: min(n, int64(headRows(c, l))) * int64(c.Vocab) * 4}
	layers := int64(c.Layers)
	m.Resident = 4 * (int64(c.Dim) + layers*int64(2*c.Dim+2*c.HeadDim) + 3*int64(c.Positions)*int64(c.HeadDim)/2)
	if h.Half {
		m.Moments = group
	}
	// A layer's mixture keeps less here than on a device: the product of gate and up is computed again. The way back has
	// room for the slots of the group's experts, which all layers share and which may be all slots.
	slots := n * int64(c.TopK)
	kept := layers
	if l.Recompute {
		kept = 1
	}
	m.Activations -= kept * 4 * slots * int64(c.Width)
	m.Activations += 4 * slots * int64(2*c.Dim+3*c.Width)
	// The group's values where it began; a state on its way to the disk.
	m.Kept = group + group + m.Moments
	if h.Moments {
		m.Kept += m.Moments
	}
	if h.Feedback {
		m.Kept += group
	}
	if h.Sparse { // what was learnt, and what of it is sent
		m.Kept += 2 * group
	}
	m.Scratch = int64(h.Threads) * (1<<20 + 4*256*int64(c.Dim+2*c.Width)) // 256 rows of an expert
	return m
}

// refusal says what would fit.
func (h Host) refusal(limit int64, state bool) error {
	const mib = 1 << 20
	least := func(h Host) int64 {
		f := h.fitted(1, true)
		need := f.Memory.Total() - f.Room + min(f.Room, h.floor())
		return (need*reserve + reserve - 2) / (reserve - 1)
	}
	text := fmt.Sprintf("training needs at least %d MiB with one sequence at a time and recomputation, and may use %d MiB",
		(least(h)+mib-1)/mib, limit/mib)
	var ways []string
	if half := h; !h.Half && !state {
		if half.Half = true; least(half) <= limit {
			ways = append(ways, "moments in bfloat16 (--state bf16)")
		}
	}
	for s := h.Seq / 2; s >= 16; s /= 2 {
		short := h
		if short.Seq = s; least(short) <= limit {
			ways = append(ways, fmt.Sprintf("sequences of %d tokens", s))
			break
		}
	}
	for n := len(h.Trained) / 2; n >= 1; n /= 2 {
		small := h
		if small.Trained = h.Trained[:n]; least(small) <= limit {
			ways = append(ways, fmt.Sprintf("a group of %d experts", n))
			break
		}
	}
	ways = append(ways, "more --memory")
	return fmt.Errorf("%w: %s; what would fit: %s", backend.ErrOutOfMemory, text, strings.Join(ways, ", or "))
}
