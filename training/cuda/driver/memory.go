//go:build cuda

package driver

// #include "api.h"
import "C"

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"gorgonia.org/cu"

	"github.com/blockzero-net/bzd/training/cuda"
)

// span is a run of page-locked memory. It is the driver's, not Go's.
type span struct {
	base unsafe.Pointer
	size uintptr
}

func (d *device) MemInfo() (free, total int64, err error) {
	err = d.do("memory of the card", func() error {
		var err error
		free, total, err = cu.MemInfo()
		return err
	})
	return free, total, err
}

func (d *device) Alloc(bytes int64) (p cuda.Ptr, err error) {
	err = d.do("allocate", func() error {
		h, err := cu.MemAlloc(max(bytes, 1)) // 0 would be refused
		if err != nil {
			return err
		}
		p = cuda.Ptr(h)
		d.tables.Lock()
		defer d.tables.Unlock()
		d.memory[p] = struct{}{}
		return nil
	})
	if errors.Is(err, cuda.ErrOutOfMemory) {
		if free, total, e := d.MemInfo(); e == nil {
			err = fmt.Errorf("%d MiB asked for, %d of %d MiB are free: %w", bytes>>20, free>>20, total>>20, err)
		}
	}
	return p, err
}

func (d *device) Free(p cuda.Ptr) error {
	if p == 0 {
		return nil
	}
	return d.do("free", func() error {
		d.tables.Lock()
		_, ours := d.memory[p]
		delete(d.memory, p)
		d.tables.Unlock()
		if !ours {
			panic(fmt.Sprintf("cuda: free of %#x, which was not allocated", uint64(p)))
		}
		if err := cu.Synchronize(); err != nil {
			return err
		}
		return cu.MemFree(cu.DevicePtr(p))
	})
}

func (d *device) AllocHost(bytes int64) ([]byte, error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	defer d.leave()
	var p unsafe.Pointer
	size := max(bytes, 1)
	if r := C.bzd_alloc_host(d.context(), &p, C.size_t(size)); r != 0 {
		err := d.fail("allocate page-locked memory", int(r), "")
		if errors.Is(err, cuda.ErrOutOfMemory) {
			err = fmt.Errorf("%d MiB of this machine's own memory asked for (see ulimit -l too): %w", bytes>>20, err)
		}
		return nil, err
	}
	d.tables.Lock()
	defer d.tables.Unlock()
	at, _ := slices.BinarySearchFunc(d.pinned, uintptr(p), func(s span, a uintptr) int { return compare(uintptr(s.base), a) })
	d.pinned = slices.Insert(d.pinned, at, span{p, uintptr(size)})
	return unsafe.Slice((*byte)(p), size)[:bytes], nil
}

func (d *device) FreeHost(b []byte) error {
	p := unsafe.Pointer(unsafe.SliceData(b))
	return d.do("free page-locked memory", func() error {
		d.tables.Lock()
		at, ok := slices.BinarySearchFunc(d.pinned, uintptr(p), func(s span, a uintptr) int { return compare(uintptr(s.base), a) })
		if ok {
			d.pinned = slices.Delete(d.pinned, at, at+1)
		}
		d.tables.Unlock()
		if !ok {
			panic("cuda: FreeHost of memory that is not from AllocHost")
		}
		return cu.MemFreeHost(p)
	})
}

func compare(a, b uintptr) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// isPinned reports whether b, not empty, lies in page-locked memory as a whole.
func (d *device) isPinned(b []byte) bool {
	p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	d.tables.RLock()
	defer d.tables.RUnlock()
	at, ok := slices.BinarySearchFunc(d.pinned, p, func(s span, a uintptr) int { return compare(uintptr(s.base), a) })
	if !ok {
		at-- // the one that starts before p
	}
	return at >= 0 && p-uintptr(d.pinned[at].base)+uintptr(len(b)) <= d.pinned[at].size
}

// wait is 1 unless the host's memory is page-locked: Go may move or free its own after the call, and the driver must be
// done with it by then.
func (d *device) wait(host []byte) C.int {
	if d.isPinned(host) {
		return 0
	}
	return 1
}

func (d *device) ToDevice(dst cuda.Ptr, src []byte, s cuda.Stream) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if len(src) == 0 {
		return nil
	}
	if r := C.bzd_to_device(d.context(), C.CUdeviceptr(dst), unsafe.Pointer(&src[0]), C.size_t(len(src)), d.stream(s), d.wait(src)); r != 0 {
		return d.fail("copy to the card", int(r), "")
	}
	return nil
}

func (d *device) ToHost(dst []byte, src cuda.Ptr, s cuda.Stream) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if len(dst) == 0 {
		return nil
	}
	if r := C.bzd_to_host(d.context(), unsafe.Pointer(&dst[0]), C.CUdeviceptr(src), C.size_t(len(dst)), d.stream(s), d.wait(dst)); r != 0 {
		return d.fail("copy from the card", int(r), "")
	}
	return nil
}

func (d *device) CopyDevice(dst, src cuda.Ptr, bytes int64, s cuda.Stream) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if bytes == 0 {
		return nil
	}
	if r := C.bzd_copy_device(d.context(), C.CUdeviceptr(dst), C.CUdeviceptr(src), C.size_t(bytes), d.stream(s)); r != 0 {
		return d.fail("copy on the card", int(r), "")
	}
	return nil
}

func (d *device) Fill(dst cuda.Ptr, v uint32, words int64, s cuda.Stream) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if words == 0 {
		return nil
	}
	if r := C.bzd_fill(d.context(), C.CUdeviceptr(dst), C.uint(v), C.size_t(words), d.stream(s)); r != 0 {
		return d.fail("fill memory of the card", int(r), "")
	}
	return nil
}
