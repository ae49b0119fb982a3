//go:build cuda

package driver

// #include "api.h"
import "C"

import (
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"gorgonia.org/cu"

	"github.com/blockzero-net/bzd/training/cuda"
)

// Built says whether the binary was built with the tag cuda.
const Built = true

// device is a card and all that was made on it. Handles of package cuda are indices here.
type device struct {
	number cu.Device
	ctx    cu.CUContext
	info   cuda.Info

	use    sync.RWMutex // held for reading by calls, for writing by Close
	closed bool
	failed atomic.Pointer[error] // the first sticky failure

	tables    sync.RWMutex // guards what follows
	streams   []cu.Stream  // by cuda.Stream
	events    []cu.Event   // by cuda.Event
	modules   []cu.Module
	functions []function // by cuda.Function
	memory    map[cuda.Ptr]struct{}
	pinned    []span // by address
}

type function struct {
	handle C.CUfunction
	name   string
}

// start loads the driver, once for the process.
func start() error {
	var why *C.char
	if r := C.bzd_cuda_init(&why); r != 0 {
		return failure("", int(r), C.GoString(why))
	}
	return nil
}

// List describes the cards of this machine. Those that bzd cannot use are among them: see [Usable].
func List() ([]cuda.Info, error) {
	if err := start(); err != nil {
		return nil, err
	}
	n, err := cu.NumDevices()
	if err != nil {
		return nil, failure("count cards", code(err), "")
	}
	infos := make([]cuda.Info, n)
	for i := range infos {
		if infos[i], err = describe(cu.Device(i)); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

func describe(d cu.Device) (cuda.Info, error) {
	i := cuda.Info{DriverVersion: cu.Version()}
	var err error
	if i.Name, err = d.Name(); err == nil {
		i.Memory, err = d.TotalMem()
	}
	for _, a := range []struct {
		to   *int
		what cu.DeviceAttribute
	}{
		{&i.Major, C.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR},
		{&i.Minor, C.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR},
		{&i.SMs, C.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT},
		{&i.SharedPerSM, C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR},
		{&i.SharedPerCTA, C.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN},
	} {
		if err == nil {
			*a.to, err = d.Attribute(a.what)
		}
	}
	if err != nil {
		return i, failure(fmt.Sprintf("describe card %d", int(d)), code(err), "")
	}
	return i, nil
}

// Open takes card number ordinal of those that [List] gives. Close gives it back.
func Open(ordinal int) (cuda.Driver, error) {
	infos, err := List()
	if err != nil {
		return nil, err
	}
	if ordinal < 0 || ordinal >= len(infos) {
		return nil, failure(fmt.Sprintf("card %d of %d", ordinal, len(infos)), int(C.CUDA_ERROR_INVALID_DEVICE), "")
	}
	d := &device{number: cu.Device(ordinal), info: infos[ordinal], memory: map[cuda.Ptr]struct{}{}}
	doing := fmt.Sprintf("card %d, %s", ordinal, d.info.Name)
	if err := Usable(d.info); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	mode, err := d.number.Attribute(cu.DeviceAttribute(C.CU_DEVICE_ATTRIBUTE_COMPUTE_MODE))
	if err != nil {
		return nil, failure(doing, code(err), "")
	}
	if mode == C.CU_COMPUTEMODE_PROHIBITED { // the driver would only say UNKNOWN
		return nil, fmt.Errorf("%s: %w: it is in compute mode PROHIBITED; nvidia-smi -c DEFAULT ends that", doing, cuda.ErrInUse)
	}
	if d.ctx, err = d.number.RetainPrimaryCtx(); err != nil {
		return nil, failure(doing, code(err), "")
	}
	if _, err := d.NewStream(); err != nil {
		_ = d.Close() // the first error is the one to tell
		return nil, err
	}
	return d, nil
}

// code is the CUresult in an error of package cu, whose type is not exported.
func code(err error) int {
	if v := reflect.ValueOf(err); v.CanInt() {
		return int(v.Int())
	}
	return int(C.CUDA_ERROR_UNKNOWN)
}

func (d *device) Info() cuda.Info { return d.info }

// context is the handle of package cu in the type of this package: both are the CUcontext of cuda.h.
func (d *device) context() C.CUcontext { return *(*C.CUcontext)(unsafe.Pointer(&d.ctx)) }

func (d *device) stream(s cuda.Stream) C.CUstream {
	h := d.cuStream(s)
	return *(*C.CUstream)(unsafe.Pointer(&h))
}

func (d *device) cuStream(s cuda.Stream) cu.Stream {
	d.tables.RLock()
	defer d.tables.RUnlock()
	return d.streams[s]
}

func (d *device) event(e cuda.Event) cu.Event {
	d.tables.RLock()
	defer d.tables.RUnlock()
	return d.events[e]
}

// enter must precede every call; unless it fails, leave must follow.
func (d *device) enter() error {
	d.use.RLock()
	if d.closed {
		d.use.RUnlock()
		return fmt.Errorf("%w: it was closed", cuda.ErrDeviceLost)
	}
	if err := d.failed.Load(); err != nil {
		d.use.RUnlock()
		return *err
	}
	return nil
}

func (d *device) leave() { d.use.RUnlock() }

// fail makes the error of a call. Of several sticky ones the first stays.
func (d *device) fail(doing string, code int, more string) error {
	err := failure(doing, code, more)
	if sticky(err) && !d.failed.CompareAndSwap(nil, &err) {
		return *d.failed.Load()
	}
	return err
}

// do runs calls of package cu, with the context current on the thread.
func (d *device) do(doing string, f func() error) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cu.SetCurrentContext(d.ctx)
	if err == nil {
		err = f()
	}
	if err != nil {
		return d.fail(doing, code(err), "")
	}
	return nil
}

func (d *device) NewStream() (s cuda.Stream, err error) {
	err = d.do("new stream", func() error {
		h, err := cu.MakeStream(cu.NonBlocking) // no hidden order between streams
		if err != nil {
			return err
		}
		d.tables.Lock()
		defer d.tables.Unlock()
		s = cuda.Stream(len(d.streams))
		d.streams = append(d.streams, h)
		return nil
	})
	return s, err
}

func (d *device) NewEvent() (e cuda.Event, err error) {
	err = d.do("new event", func() error {
		h, err := cu.MakeEvent(cu.DefaultEvent)
		if err != nil {
			return err
		}
		d.tables.Lock()
		defer d.tables.Unlock()
		e = cuda.Event(len(d.events))
		d.events = append(d.events, h)
		return nil
	})
	return e, err
}

func (d *device) Record(e cuda.Event, s cuda.Stream) error {
	return d.do("record event", func() error { return d.event(e).Record(d.cuStream(s)) })
}

func (d *device) WaitEvent(s cuda.Stream, e cuda.Event) error {
	return d.do("wait for event", func() error { return d.cuStream(s).Wait(d.event(e), 0) })
}

func (d *device) Elapsed(from, to cuda.Event) (ms float64, err error) {
	err = d.do("time between events", func() error {
		a, b := d.event(from), d.event(to)
		if err := a.Synchronize(); err != nil {
			return err
		}
		if err := b.Synchronize(); err != nil {
			return err
		}
		var err error
		ms, err = a.Elapsed(b)
		return err
	})
	return ms, err
}

func (d *device) Sync(s cuda.Stream) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if r := C.bzd_sync(d.context(), d.stream(s)); r != 0 {
		return d.fail("work on the card", int(r), "")
	}
	return nil
}

// Close waits for calls in other goroutines and for the card, and frees everything, page-locked memory too. After a
// sticky failure it frees what the driver lets it free and says nothing.
func (d *device) Close() error {
	d.use.Lock()
	defer d.use.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	first := cu.SetCurrentContext(d.ctx)
	done := func(err error) {
		if first == nil {
			first = err
		}
	}
	done(cu.Synchronize())
	for i := range d.events {
		done(cu.DestroyEvent(&d.events[i]))
	}
	for i := range d.streams {
		done(d.streams[i].Destroy())
	}
	for _, m := range d.modules {
		done(m.Unload())
	}
	for p := range d.memory {
		done(cu.MemFree(cu.DevicePtr(p)))
	}
	for _, s := range d.pinned {
		done(cu.MemFreeHost(s.base))
	}
	done(cu.SetCurrentContext(cu.CUContext{}))
	done(d.number.ReleasePrimaryCtx())
	if first != nil && d.failed.Load() == nil {
		return failure("close card", code(first), "")
	}
	return nil
}
