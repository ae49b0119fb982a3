package emu

import (
	"encoding/binary"

	"github.com/blockzero-net/bzd/training/cuda"
)

// stream is work in order. It runs when it must: at Sync, at a copy that waits, at Free, or when another stream's work waits
// for an event in it. So a host that does not wait where it should finds what was there before.
type stream struct {
	queue []func() error
	asked int // operations ever queued
	done  int // operations ever run
}

// event is a place in a stream: after its first at operations.
type event struct {
	stream cuda.Stream
	at     int
	set    bool
	tick   int // operations of the whole device that were done when it was passed
}

func (e *Emulator) stream(s cuda.Stream) (*stream, error) {
	if int(s) >= len(e.streams) {
		return nil, e.fault("stream %d was never made", s)
	}
	return e.streams[s], nil
}

func (e *Emulator) enqueue(s cuda.Stream, f func() error) error {
	st, err := e.stream(s)
	if err != nil {
		return err
	}
	st.queue = append(st.queue, f)
	st.asked++
	if e.config.Eager {
		return e.drain(s, st.asked)
	}
	return nil
}

// drain runs the first operations of a stream. After a failure nothing runs.
func (e *Emulator) drain(s cuda.Stream, upTo int) error {
	st := e.streams[s]
	for st.done < upTo && len(st.queue) > 0 {
		f := st.queue[0]
		st.queue[0] = nil
		st.queue = st.queue[1:]
		st.done++
		if e.failed == nil {
			f() // a failure stays in e.failed
		}
	}
	return e.failed
}

func (e *Emulator) drainAll() error {
	for s, st := range e.streams {
		e.drain(cuda.Stream(s), st.asked)
	}
	return e.failed
}

// Sync runs the stream.
func (e *Emulator) Sync(s cuda.Stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return err
	}
	st, err := e.stream(s)
	if err != nil {
		return err
	}
	return e.drain(s, st.asked)
}

// NewStream returns a stream that is independent of all others, stream 0 included.
func (e *Emulator) NewStream() (cuda.Stream, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return 0, err
	}
	e.streams = append(e.streams, &stream{})
	return cuda.Stream(len(e.streams) - 1), nil
}

// NewEvent returns an event that nobody has to wait for until it is recorded.
func (e *Emulator) NewEvent() (cuda.Event, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return 0, err
	}
	e.events = append(e.events, &event{})
	return cuda.Event(len(e.events)), nil
}

func (e *Emulator) event(v cuda.Event) (*event, error) {
	if v == 0 || int(v) > len(e.events) {
		return nil, e.fault("event %d was never made", v)
	}
	return e.events[v-1], nil
}

// Record moves the event to the end of what the stream has to do.
func (e *Emulator) Record(v cuda.Event, s cuda.Stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return err
	}
	ev, err := e.event(v)
	if err != nil {
		return err
	}
	st, err := e.stream(s)
	if err != nil {
		return err
	}
	at := st.asked + 1
	ev.stream, ev.at, ev.set = s, at, true
	return e.enqueue(s, func() error {
		tick := 0
		for _, st := range e.streams {
			tick += st.done
		}
		ev.tick = tick
		return nil
	})
}

// WaitEvent makes the stream wait for the event as it was last recorded.
func (e *Emulator) WaitEvent(s cuda.Stream, v cuda.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return err
	}
	ev, err := e.event(v)
	if err != nil {
		return err
	}
	if !ev.set {
		_, err := e.stream(s)
		return err
	}
	from, at := ev.stream, ev.at
	return e.enqueue(s, func() error { return e.drain(from, at) })
}

// Elapsed counts the device's operations between two events, a microsecond each: nothing here has a duration that means
// anything.
func (e *Emulator) Elapsed(from, to cuda.Event) (float64, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return 0, err
	}
	var ticks [2]int
	for i, v := range []cuda.Event{from, to} {
		ev, err := e.event(v)
		if err != nil {
			return 0, err
		}
		if !ev.set {
			return 0, e.fault("Elapsed of event %d, which was not recorded", v)
		}
		if err := e.drain(ev.stream, ev.at); err != nil {
			return 0, err
		}
		ticks[i] = ev.tick
	}
	return float64(ticks[1]-ticks[0]) * 1e-3, nil
}

// ToDevice copies; memory of AllocHost is read when the stream gets there.
func (e *Emulator) ToDevice(dst cuda.Ptr, src []byte, s cuda.Stream) error {
	return e.copy(dst, src, s, func(device []byte) { copy(device, src) })
}

// ToHost copies; memory of AllocHost is NaNs until the stream gets there.
func (e *Emulator) ToHost(dst []byte, src cuda.Ptr, s cuda.Stream) error {
	return e.copy(src, dst, s, func(device []byte) { copy(dst, device) }, dst)
}

func (e *Emulator) copy(p cuda.Ptr, host []byte, s cuda.Stream, f func(device []byte), spoil ...[]byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return err
	}
	if len(host) == 0 {
		return nil
	}
	device, err := e.memory.slice(p, int64(len(host)))
	if err != nil {
		return e.fault("copy: %w", err)
	}
	pinned := e.pinned(host)
	if pinned && !e.config.Eager {
		for _, b := range spoil {
			poison(b)
		}
	}
	if err := e.enqueue(s, func() error { f(device); return nil }); err != nil {
		return err
	}
	if pinned {
		return nil
	}
	return e.drain(s, e.streams[s].asked)
}

// CopyDevice copies within the device.
func (e *Emulator) CopyDevice(dst, src cuda.Ptr, bytes int64, s cuda.Stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return err
	}
	if bytes == 0 {
		return nil
	}
	to, err := e.memory.slice(dst, bytes)
	if err != nil {
		return e.fault("copy: %w", err)
	}
	from, err := e.memory.slice(src, bytes)
	if err != nil {
		return e.fault("copy: %w", err)
	}
	return e.enqueue(s, func() error { copy(to, from); return nil })
}

// Fill sets words.
func (e *Emulator) Fill(dst cuda.Ptr, v uint32, words int64, s cuda.Stream) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return err
	}
	if words == 0 {
		return nil
	}
	if dst&3 != 0 {
		return e.fault("fill of %#x, which is not aligned to 4 bytes", uint64(dst))
	}
	to, err := e.memory.slice(dst, 4*words)
	if err != nil {
		return e.fault("fill: %w", err)
	}
	return e.enqueue(s, func() error { fill(to, binary.LittleEndian.AppendUint32(nil, v)); return nil })
}
