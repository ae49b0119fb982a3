//go:build cuda

package driver

// #include <stdlib.h>
// #include "api.h"
import "C"

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"sync"
	"unsafe"

	"gorgonia.org/cu"

	"github.com/blockzero-net/bzd/training/cuda"
)

// logSize is the most that the PTX compiler's errors may say.
const logSize = 4096

func (d *device) Load(ptx []byte, names []string) (map[string]cuda.Function, error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	defer d.leave()
	image := make([]byte, len(ptx)+1) // ends with a zero
	copy(image, ptx)
	log := (*C.char)(C.calloc(1, logSize))
	defer C.free(unsafe.Pointer(log))
	var m C.CUmodule
	if r := C.bzd_load(d.context(), &m, unsafe.Pointer(&image[0]), log, logSize-1); r != 0 {
		return nil, d.fail("compile kernels for "+d.info.Name, int(r), strings.TrimSpace(C.GoString(log)))
	}
	d.tables.Lock()
	defer d.tables.Unlock()
	d.modules = append(d.modules, *(*cu.Module)(unsafe.Pointer(&m)))
	found := make(map[string]cuda.Function, len(names))
	for _, name := range names {
		var f C.CUfunction
		c := C.CString(name)
		r := C.bzd_function(d.context(), &f, m, c, C.int(d.info.SharedPerCTA))
		C.free(unsafe.Pointer(c))
		if r != 0 {
			return nil, d.fail("kernel "+name, int(r), "")
		}
		found[name] = cuda.Function(len(d.functions))
		d.functions = append(d.functions, function{f, name})
	}
	return found, nil
}

// launches holds blocks of arguments for reuse.
var launches = sync.Pool{New: func() any { return new(C.bzd_launch_t) }}

func (d *device) Launch(f cuda.Function, grid, block [3]int, shared int, s cuda.Stream, args ...any) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	l := launches.Get().(*C.bzd_launch_t)
	defer launches.Put(l)
	for i := range 3 {
		l.grid[i], l.block[i] = C.uint(grid[i]), C.uint(block[i])
	}
	l.shared, l.used, l.count = C.uint(shared), 0, C.uint(len(args))
	d.tables.RLock()
	fn := d.functions[f]
	d.tables.RUnlock()
	if len(args) > C.bzd_max_args {
		panic(fmt.Sprintf("cuda: %d arguments for kernel %s, at most %d", len(args), fn.name, C.bzd_max_args))
	}
	for i, a := range args {
		pack(l, i, a, fn.name)
	}
	if r := C.bzd_launch(d.context(), fn.handle, d.stream(s), l); r != 0 {
		return d.fail(fmt.Sprintf("kernel %s, %v blocks of %v threads, %d bytes of shared memory", fn.name, grid, block, shared), int(r), "")
	}
	return nil
}

// pack writes argument i behind the others, aligned to its size.
func pack(l *C.bzd_launch_t, i int, arg any, kernel string) {
	values := (*[C.bzd_max_bytes]byte)(unsafe.Pointer(&l.values))
	room := func(size, align int) []byte {
		at := (int(l.used) + align - 1) &^ (align - 1)
		if at+size > len(values) {
			panic(fmt.Sprintf("cuda: more than %d bytes of arguments for kernel %s", len(values), kernel))
		}
		l.at[i], l.used = C.ushort(at), C.uint(at+size)
		return values[at : at+size]
	}
	put32 := func(v uint32) { binary.NativeEndian.PutUint32(room(4, 4), v) }
	put64 := func(v uint64) { binary.NativeEndian.PutUint64(room(8, 8), v) }
	switch v := arg.(type) {
	case cuda.Ptr:
		put64(uint64(v))
	case int32:
		put32(uint32(v))
	case uint32:
		put32(v)
	case float32:
		put32(math.Float32bits(v))
	case int64:
		put64(uint64(v))
	case uint64:
		put64(v)
	case cuda.TensorMap:
		copy(room(len(v), 64), v[:])
	default:
		panic(fmt.Sprintf("cuda: argument %d of kernel %s is a %T", i, kernel, arg))
	}
}

func (d *device) TensorMap(t cuda.TensorSpec) (m cuda.TensorMap, err error) {
	if err := d.enter(); err != nil {
		return m, err
	}
	defer d.leave()
	if d.info.Major < 9 {
		return m, fmt.Errorf("tensor map: %w: %s is of compute capability %d.%d, and 9.0 is needed", cuda.ErrNoDevice, d.info.Name, d.info.Major, d.info.Minor)
	}
	var wide C.int
	if t.Wide {
		wide = 1
	}
	if r := C.bzd_tensor_map(d.context(), unsafe.Pointer(&m), C.CUdeviceptr(t.Base), wide, C.cuuint64_t(t.Rows), C.cuuint64_t(t.Cols), C.cuuint64_t(t.Stride),
		C.uint(t.BoxRows), C.uint(t.BoxCols)); r != 0 {
		return m, d.fail(fmt.Sprintf("tensor map of %+v", t), int(r), "")
	}
	return m, nil
}
