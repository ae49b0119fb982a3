package data

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
)

const (
	// MinWindow is the smallest sample: one byte to see, one to predict.
	MinWindow = 2
	// endlessPieces is how many pieces an endless dataset is drawn from.
	endlessPieces = 1 << 40
	// orderBlock is how many candidates an endless order has per sample.
	orderBlock = 64
	// endlessEpoch is how many samples an endless order gives under one key.
	endlessEpoch = endlessPieces / orderBlock
	// maxDraw bounds one draw.
	maxDraw = 1 << 24
)

// SampleID names a sample: SHA-256 over the piece's hash, the offset and the
// length of the window, under a label.
type SampleID [32]byte

// Set is a set of samples.
type Set map[SampleID]struct{}

// Add puts samples into the set.
func (s Set) Add(samples ...Sample) {
	for _, x := range samples {
		s[x.ID()] = struct{}{}
	}
}

// Sample is a window of a piece. Of its n bytes the first n−1 are the input
// and the last n−1 the targets of a byte-level model.
type Sample struct {
	Document [32]byte // SHA-256 of the piece: the cluster for standard errors
	Piece    int64    // number of the piece, for [Dataset.Sample]
	Offset   int      // of the window in the piece
	Text     []byte   // the window; not to be modified
}

// ID names the sample wherever the dataset came from.
func (s Sample) ID() SampleID { return sampleID(s.Document, s.Offset, len(s.Text)) }

func sampleID(document [32]byte, offset, window int) SampleID {
	b := make([]byte, 0, 64)
	b = append(b, labelSample...)
	b = append(b, document[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(offset))
	b = binary.LittleEndian.AppendUint32(b, uint32(window))
	return sha256.Sum256(b)
}

func cutSample(p piece, n int64, offset, window int) Sample {
	return Sample{Document: p.hash, Piece: n, Offset: offset, Text: p.text[offset : offset+window : offset+window]}
}

// windowsIn is the number of windows that tile size bytes.
func windowsIn(size, window int) int {
	if size < window {
		return 0
	}
	return (size-window)/(window-1) + 1
}

func (d *Dataset) checkWindow(window int) error {
	most := MaxPiece
	if d.Endless() {
		most = d.gen.minPiece()
	}
	if window < MinWindow || window > most {
		return fmt.Errorf("data: domain %q: %w: a window of %d bytes, want %d to %d", d.Name(), ErrOption, window, MinWindow, most)
	}
	return nil
}

// ref is a window of a finite dataset.
type ref struct {
	piece  int32
	offset int32
}

// plan is what a window size makes of a finite dataset.
type plan struct {
	window int
	train  []int32 // pieces with at least one window, ascending
	ends   []int64 // running total of their windows
	held   []ref   // ascending by (piece, offset), texts unique
	shared int     // held-out windows left out because of their text
}

func (p *plan) trainWindows() int64 {
	if len(p.ends) == 0 {
		return 0
	}
	return p.ends[len(p.ends)-1]
}

// maxPlans bounds what is remembered; a caller uses one or two window sizes.
const maxPlans = 8

func (d *Dataset) plan(window int) *plan {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.plans[window]; p != nil {
		return p
	}
	p := &plan{window: window}
	var held []ref
	var total int64
	for i := range d.pieces {
		n := windowsIn(len(d.pieces[i].text), window)
		if n == 0 {
			continue
		}
		if PoolOf(d.pieces[i].hash, d.rec.HeldOut) == HeldOut {
			for k := range n {
				held = append(held, ref{int32(i), int32(k * (window - 1))})
			}
			continue
		}
		total += int64(n)
		p.train = append(p.train, int32(i))
		p.ends = append(p.ends, total)
	}
	p.held = d.unique(held, window)
	p.shared = len(held) - len(p.held)
	if len(d.plans) >= maxPlans {
		clear(d.plans)
	}
	d.plans[window] = p
	return p
}

// Draw picks n distinct held-out samples of window bytes, skipping those in
// exclude. The seed must be known to nobody before the samples may be known.
// Each sample costs about one step however large the pool is, unless nearly
// all of it is excluded. If the pool cannot give n, the error is a [PoolError].
func (d *Dataset) Draw(seed [32]byte, n, window int, exclude Set) ([]Sample, error) {
	if err := d.checkWindow(window); err != nil {
		return nil, err
	}
	if n < 0 || n > maxDraw {
		return nil, fmt.Errorf("data: domain %q: %w: a draw of %d samples, want 0 to %d", d.Name(), ErrOption, n, maxDraw)
	}
	s := &stream{key: deriveKey(labelDraw, slices.Concat(seed[:], d.digest[:]), uint64(window))}
	if d.Endless() {
		return d.drawEndless(s, n, window, exclude)
	}
	held := d.plan(window).held
	if left := len(held) - d.used(held, n, window, exclude); left < n {
		return nil, &PoolError{d.Name(), HeldOut, window, int64(len(held)), int64(len(held) - left), int64(n)}
	}
	out := make([]Sample, 0, n)
	taken := make(map[uint64]struct{}, n)
	for len(out) < n {
		i := s.below(uint64(len(held)))
		if _, dup := taken[i]; dup {
			continue
		}
		r := held[i]
		x := cutSample(d.pieces[r.piece], int64(r.piece), int(r.offset), window)
		if len(exclude) > 0 {
			if _, skip := exclude[x.ID()]; skip {
				continue
			}
		}
		taken[i] = struct{}{}
		out = append(out, x)
	}
	return out, nil
}

// used counts the samples of held in exclude, if that could matter to a draw
// of n.
func (d *Dataset) used(held []ref, n, window int, exclude Set) int {
	if len(exclude) == 0 || len(held)-len(exclude) >= n {
		return 0
	}
	used := 0
	for _, r := range held {
		if _, ok := exclude[sampleID(d.pieces[r.piece].hash, int(r.offset), window)]; ok {
			used++
		}
	}
	return used
}

func (d *Dataset) drawEndless(s *stream, n, window int, exclude Set) ([]Sample, error) {
	out := make([]Sample, 0, min(n, 4096))
	taken := make(Set, min(n, 4096))
	// A piece is held out with probability of at least 1/1000, so this is
	// reached only if exclude holds about every sample there is.
	tries := 1_000_000 + 100_000*int64(n)
	for ; len(out) < n; tries-- {
		if tries == 0 {
			return nil, &PoolError{d.Name(), HeldOut, window, -1, int64(len(exclude)), int64(n)}
		}
		i := s.below(endlessPieces)
		p := d.gen.piece(i)
		if PoolOf(p.hash, d.rec.HeldOut) != HeldOut {
			continue
		}
		k := s.below(uint64(windowsIn(len(p.text), window)))
		x := cutSample(p, int64(i), int(k)*(window-1), window)
		id := x.ID()
		if _, dup := taken[id]; dup {
			continue
		}
		if _, skip := exclude[id]; skip {
			continue
		}
		taken[id] = struct{}{}
		out = append(out, x)
	}
	return out, nil
}

// Order is an endless walk through the train pool that visits every window
// once per epoch. It is immutable and safe for concurrent use.
type Order struct {
	d      *Dataset
	plan   *plan // nil when endless
	seed   [32]byte
	window int
	epoch  int64 // samples per epoch
}

// TrainOrder is the order that the seed gives to the train pool's windows; a
// [PoolError] if there are none.
func (d *Dataset) TrainOrder(seed [32]byte, window int) (*Order, error) {
	if err := d.checkWindow(window); err != nil {
		return nil, err
	}
	o := &Order{d: d, seed: seed, window: window, epoch: endlessEpoch}
	if !d.Endless() {
		o.plan = d.plan(window)
		if o.epoch = o.plan.trainWindows(); o.epoch == 0 {
			return nil, &PoolError{Domain: d.Name(), Pool: Train, Window: window, Wanted: 1}
		}
	}
	return o, nil
}

// Epoch is the number of samples before the first repeats.
func (o *Order) Epoch() int64 { return o.epoch }

// At is sample number i of the order, i ≥ 0. Any i costs the same; a negative
// one panics like an index.
func (o *Order) At(i int64) Sample {
	if i < 0 {
		panic("data: Order.At: negative index")
	}
	epoch, i := i/o.epoch, i%o.epoch
	key := deriveKey(labelOrder, slices.Concat(o.seed[:], o.d.digest[:]), uint64(o.window), uint64(epoch))
	if o.plan == nil {
		return o.atEndless(key, i)
	}
	perm := newPermutation(key, uint64(o.epoch))
	w := int64(perm.at(uint64(i)))
	j := sort.Search(len(o.plan.ends), func(j int) bool { return o.plan.ends[j] > w })
	if j > 0 {
		w -= o.plan.ends[j-1]
	}
	n := o.plan.train[j]
	return cutSample(o.d.pieces[n], int64(n), int(w)*(o.window-1), o.window)
}

// atEndless tries the pieces of block i of a permutation of all of them and
// takes the first in the train pool, so no two samples share a piece.
func (o *Order) atEndless(key [32]byte, i int64) Sample {
	perm := newPermutation(key, endlessPieces)
	var n uint64
	var p piece
	for c := uint64(i) * orderBlock; ; c++ {
		// With at most half the pieces held out, leaving the block happens
		// with probability 2⁻⁶⁴ and costs only a repeat.
		n = perm.at(c % endlessPieces)
		if p = o.d.gen.piece(n); PoolOf(p.hash, o.d.rec.HeldOut) == Train {
			break
		}
	}
	s := &stream{key: deriveKey(labelOrderWindow, key[:], uint64(i))}
	k := s.below(uint64(windowsIn(len(p.text), o.window)))
	return cutSample(p, int64(n), int(k)*(o.window-1), o.window)
}
