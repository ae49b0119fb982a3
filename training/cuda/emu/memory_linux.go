package emu

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blockzero-net/bzd/training/cuda"
)

const pageSize = 4096

// memory is the device memory: a file that both processes map. An address of the device is the runner's, so that kernels
// follow pointers as they are. An allocation ends as near to the end of a page as its alignment allows and is followed by
// a page that the runner cannot touch; neither can it touch what is not allocated.
type memory struct {
	bytes []byte // as mapped here
	base  uint64 // where the runner has it
	limit int64
	used  int64
	live  []region // ascending
	next  int64    // offset where the next search begins, so that freed memory stays free for long
}

// region is an allocation: bytes from ptr, which lie in the pages [from, to) of the arena.
type region struct {
	from, to int64
	ptr      cuda.Ptr
	bytes    int64
}

func (m *memory) open(limit int64) (*os.File, error) {
	// Several times the limit: fragments and the padding never make an allocation fail.
	size := (3*limit+64<<20)&^(pageSize-1) + pageSize
	fd, err := unix.MemfdCreate("device", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%w: shared memory: %w", ErrUnavailable, err)
	}
	file := os.NewFile(uintptr(fd), "device")
	if err := unix.Ftruncate(fd, size); err != nil {
		file.Close()
		return nil, fmt.Errorf("%w: shared memory: %w", ErrUnavailable, err)
	}
	m.bytes, err = unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%w: shared memory: %w", ErrUnavailable, err)
	}
	m.limit = limit
	return file, nil
}

func (m *memory) close() error {
	b := m.bytes
	m.bytes = nil
	return unix.Munmap(b)
}

// alloc finds room; an error is the lack of it.
func (m *memory) alloc(bytes int64) (region, error) {
	rounded := (bytes + 255) &^ 255
	if m.used+rounded > m.limit || rounded < bytes {
		return region{}, fmt.Errorf("%w: %d bytes wanted, %d of %d free", cuda.ErrOutOfMemory, bytes, m.limit-m.used, m.limit)
	}
	pages := (rounded + pageSize - 1) &^ (pageSize - 1)
	need := pages + pageSize
	for range 2 {
		i, _ := slices.BinarySearchFunc(m.live, m.next, func(r region, at int64) int { return int(min(1, max(-1, r.from-at))) })
		for ; ; i++ {
			start, end := int64(0), int64(len(m.bytes))
			if i > 0 {
				start = m.live[i-1].to + pageSize
			}
			start = max(start, m.next)
			if i < len(m.live) {
				end = m.live[i].from
			}
			if start+need <= end {
				r := region{from: start, to: start + pages, bytes: bytes}
				r.ptr = cuda.Ptr(m.base + uint64(r.to-rounded))
				m.live = slices.Insert(m.live, i, r)
				m.used += rounded
				m.next = r.to + pageSize
				poison(m.bytes[r.from:r.to])
				return r, nil
			}
			if i == len(m.live) {
				break
			}
		}
		m.next = 0
	}
	return region{}, fmt.Errorf("%w: %d bytes wanted, %d of %d free, in fragments", cuda.ErrOutOfMemory, bytes, m.limit-m.used, m.limit)
}

// free takes the allocation at p from the list and gives its pages back.
func (m *memory) free(p cuda.Ptr) (region, bool, error) {
	i := slices.IndexFunc(m.live, func(r region) bool { return r.ptr == p })
	if i < 0 {
		return region{}, false, nil
	}
	r := m.live[i]
	err := m.checkPadding(p)
	m.live = slices.Delete(m.live, i, i+1)
	m.used -= (r.bytes + 255) &^ 255
	if e := unix.Madvise(m.bytes[r.from:r.to], unix.MADV_REMOVE); e != nil {
		err = errors.Join(err, e)
	}
	return r, true, err
}

// find returns the allocation that p points into, or to the end of.
func (m *memory) find(p cuda.Ptr) (region, bool) {
	i, found := slices.BinarySearchFunc(m.live, p, func(r region, p cuda.Ptr) int {
		switch {
		case r.ptr < p:
			return -1
		case r.ptr > p:
			return 1
		}
		return 0
	})
	if !found {
		i--
	}
	if i < 0 || uint64(p-m.live[i].ptr) > uint64(m.live[i].bytes) {
		return region{}, false
	}
	return m.live[i], true
}

var errRange = errors.New("outside of any allocation")

// slice returns bytes of the device, which must lie in one allocation.
func (m *memory) slice(p cuda.Ptr, bytes int64) ([]byte, error) {
	r, ok := m.find(p)
	if !ok || bytes < 0 || int64(p-r.ptr)+bytes > r.bytes {
		return nil, fmt.Errorf("%d bytes at %#x: %w%s", bytes, uint64(p), errRange, m.describe(uint64(p)))
	}
	at := int64(uint64(p) - m.base)
	return m.bytes[at : at+bytes], nil
}

// checkPadding reports whether something was written around the allocation at p.
func (m *memory) checkPadding(p cuda.Ptr) error {
	r, ok := m.find(p)
	if !ok {
		return nil
	}
	start := int64(uint64(r.ptr) - m.base)
	before, behind := m.bytes[r.from:start], m.bytes[start+r.bytes:r.to]
	if !poisoned(before) {
		return fmt.Errorf("wrote before the %d bytes allocated at %#x", r.bytes, uint64(r.ptr))
	}
	// The padding behind begins anywhere in the pattern.
	for i, b := range behind {
		if b != poisonWord[(start+r.bytes+int64(i))&3] {
			return fmt.Errorf("wrote at byte %d of the %d allocated at %#x", r.bytes+int64(i), r.bytes, uint64(r.ptr))
		}
	}
	return nil
}

// describe says where an address lies relative to its nearest allocation.
func (m *memory) describe(at uint64) string {
	var best region
	distance := int64(-1)
	for _, r := range m.live {
		d := int64(at - uint64(r.ptr))
		switch {
		case d < 0:
			d = -d
		case d >= r.bytes:
			d -= r.bytes
		default:
			d = 0
		}
		if distance < 0 || d < distance {
			best, distance = r, d
		}
	}
	if distance < 0 {
		return " (nothing is allocated)"
	}
	return fmt.Sprintf(" (byte %d of the nearest allocation, %d bytes at %#x)", int64(at-uint64(best.ptr)), best.bytes, uint64(best.ptr))
}

var deviceAddress = regexp.MustCompile(`device address (0x[0-9a-f]+)`)

// explain adds to a fault what is known of the address.
func (m *memory) explain(fault string) string {
	if found := deviceAddress.FindStringSubmatch(fault); found != nil {
		if at, err := strconv.ParseUint(found[1], 0, 64); err == nil {
			return fault + m.describe(at)
		}
	}
	return fault
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// tell queues a mapping command for the process; an error shows with the next launch.
func (e *Emulator) tell(command byte, r region) {
	var b [17]byte
	b[0] = command
	for i := range 8 {
		b[1+i] = byte(uint64(r.from) >> (8 * i))
		b[9+i] = byte(uint64(r.to-r.from) >> (8 * i))
	}
	e.in.Write(b[:])
}

// MemInfo counts allocations in units of 256 bytes.
func (e *Emulator) MemInfo() (free, total int64, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return 0, 0, err
	}
	return e.memory.limit - e.memory.used, e.memory.limit, nil
}

// Live returns the number of allocations and their bytes.
func (e *Emulator) Live() (allocations int, bytes int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.memory.live {
		bytes += r.bytes
	}
	return len(e.memory.live), bytes
}

// Alloc returns memory full of NaNs.
func (e *Emulator) Alloc(bytes int64) (cuda.Ptr, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return 0, err
	}
	if bytes <= 0 {
		return 0, e.fault("%d bytes of memory wanted", bytes)
	}
	r, err := e.memory.alloc(bytes)
	if err != nil {
		return 0, err
	}
	e.tell('m', r)
	return r.ptr, nil
}

// Free waits for all work; then kernels cannot touch the memory any more.
func (e *Emulator) Free(p cuda.Ptr) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.usable(); err != nil {
		return err
	}
	if err := e.drainAll(); err != nil {
		return err
	}
	r, ok, err := e.memory.free(p)
	if !ok {
		return e.fault("Free of %#x, which was not allocated or is free already%s", uint64(p), e.memory.describe(uint64(p)))
	}
	if err != nil {
		return e.fault("%w", err)
	}
	e.tell('u', r)
	return nil
}
