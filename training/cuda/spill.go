package cuda

import "github.com/blockzero-net/bzd/training/backend"

// spill brings frozen experts that wait in host memory to the device, a layer at a time, through two places: while one
// layer computes, the next is on its way. Which is next is what came next the last time: a pass visits layers upwards,
// then downwards, and does so again and again.
type spill struct {
	d     *device
	ready bool // stream and events exist
	copy  Stream
	place [2]place
	turn  int // the place used last
	last  [2]*layer
}

// place is room for one layer's experts.
type place struct {
	room         *buffer
	holds        *layer
	copied, used Event
	busy         bool // used was recorded
}

// layer is the experts of a layer that wait in host memory. It hangs on the first expert's gate.
type layer struct {
	follows map[*layer]*layer // what came next, by what came before
	weights []*weight
	offsets []int64
	bytes   int64
}

func newSpill(d *device) *spill { return &spill{d: d} }

// layerOf lists the experts that are in host memory, nil if none is.
func (s *spill) layerOf(experts []backend.Expert) *layer {
	key := experts[0].Gate.(*weight)
	if l := key.layer; l != nil && l.same(experts) {
		return l
	}
	l := &layer{follows: map[*layer]*layer{}}
	for _, e := range experts {
		for _, m := range []backend.Weight{e.Gate, e.Up, e.Down} {
			if w := m.(*weight); w.host != nil {
				l.weights, l.offsets = append(l.weights, w), append(l.offsets, l.bytes)
				l.bytes += (int64(len(w.host)) + 255) &^ 255
			}
		}
	}
	if len(l.weights) == 0 {
		return nil
	}
	key.layer = l
	return l
}

// same says whether the layer is still that of experts: an overlay replaces some.
func (l *layer) same(experts []backend.Expert) bool {
	i := 0
	for _, e := range experts {
		for _, m := range []backend.Weight{e.Gate, e.Up, e.Down} {
			if w := m.(*weight); w.host != nil {
				if i == len(l.weights) || l.weights[i] != w {
					return false
				}
				i++
			}
		}
	}
	return i == len(l.weights)
}

// bring makes every expert of a layer readable by what is queued next on the main stream, and starts to copy the layer
// that is likely to follow. done must be called when the layer's kernels have been queued.
func (s *spill) bring(experts []backend.Expert) (done func()) {
	l := s.layerOf(experts)
	if l == nil || s.d.err != nil {
		return func() {}
	}
	if err := s.start(); err != nil {
		s.d.fail(err)
		return func() {}
	}
	p := s.find(l)
	if p == nil {
		p = s.load(l)
	}
	if p == nil {
		return func() {}
	}
	s.try(s.d.drv.WaitEvent(0, p.copied))
	for i, w := range l.weights {
		w.value = p.room.slice(int(l.offsets[i]/w.kind.bytes(1)), w.out*w.in)
		w.value.ptr, w.value.kind = p.room.ptr+Ptr(l.offsets[i]), w.kind
	}
	if s.last[1] != nil {
		s.last[1].follows[s.last[0]] = l
	}
	s.last = [2]*layer{s.last[1], l}
	s.turn = s.index(p)
	if next := l.follows[s.last[0]]; next != nil && s.find(next) == nil {
		s.load(next)
	}
	return func() {
		for _, w := range l.weights {
			w.value = nil
		}
		s.try(s.d.drv.Record(p.used, 0))
		p.busy = true
	}
}

func (s *spill) try(err error) {
	if err != nil {
		s.d.fail(err)
	}
}

func (s *spill) start() (err error) {
	if s.ready {
		return nil
	}
	if s.copy, err = s.d.drv.NewStream(); err != nil {
		return err
	}
	for i := range s.place {
		if s.place[i].copied, err = s.d.drv.NewEvent(); err != nil {
			return err
		}
		if s.place[i].used, err = s.d.drv.NewEvent(); err != nil {
			return err
		}
	}
	s.ready = true
	return nil
}

func (s *spill) find(l *layer) *place {
	for i := range s.place {
		if s.place[i].holds == l {
			return &s.place[i]
		}
	}
	return nil
}

func (s *spill) index(p *place) int {
	if p == &s.place[1] {
		return 1
	}
	return 0
}

// load starts to copy a layer to the place that was not used last, after its last use.
func (s *spill) load(l *layer) *place {
	p := &s.place[1-s.turn]
	if s.place[s.turn].holds == nil {
		p = &s.place[s.turn]
	}
	if p.room == nil || p.room.mem.bytes < l.bytes {
		if p.holds != nil {
			// The old room goes to the pool, and whatever is queued on the main stream may take it: a copy under way must be
			// over by then.
			s.try(s.d.drv.WaitEvent(0, p.copied))
		}
		p.holds, p.busy = nil, false
		p.room = s.d.alloc(f32, int(l.bytes+3)/4)
		if p.room.ptr == 0 {
			return nil
		}
		// The new room may have been used by what is queued on the main stream.
		s.try(s.d.drv.Record(p.used, 0))
		p.busy = true
	}
	if p.busy {
		s.try(s.d.drv.WaitEvent(s.copy, p.used))
	}
	for i, w := range l.weights {
		s.try(s.d.drv.ToDevice(p.room.ptr+Ptr(l.offsets[i]), w.host, s.copy))
	}
	s.try(s.d.drv.Record(p.copied, s.copy))
	p.holds = l
	return p
}
