package cuda

import (
	"errors"

	"github.com/blockzero-net/bzd/training/backend"
)

// Errors of devices. A driver wraps exactly one of them, so that a caller can tell what helps.
var (
	// ErrNoDriver: no NVIDIA driver, or a binary built without CUDA.
	ErrNoDriver = errors.New("no CUDA driver")
	// ErrNoDevice: a driver, but no such card, or one that is too old.
	ErrNoDevice = errors.New("no usable CUDA device")
	// ErrDriverTooOld: the driver cannot load the embedded PTX.
	ErrDriverTooOld = errors.New("CUDA driver too old")
	// ErrInUse: the card is in exclusive use by another process.
	ErrInUse = errors.New("CUDA device in use")
	// ErrOutOfMemory: the card has too little memory left. What was there before still is.
	ErrOutOfMemory = backend.ErrOutOfMemory
	// ErrDeviceLost: the device fell off the bus, was reset, or reported an uncorrectable memory error. Nothing on it can be
	// used any more.
	ErrDeviceLost = errors.New("CUDA device lost")
	// ErrLaunch: a kernel was refused or failed: a bug of ours.
	ErrLaunch = errors.New("CUDA kernel failed")
)

// Ptr is an address in device memory; 0 is none.
type Ptr uint64

// Stream orders work; 0 is the stream that every Driver has from the start. Event marks a point in a stream.
type (
	Stream   uint32
	Event    uint32
	Function uint32
)

// Info describes a device.
type Info struct {
	Name          string
	Major, Minor  int   // compute capability
	SMs           int   // multiprocessors
	SharedPerSM   int   // bytes of shared memory of a multiprocessor
	SharedPerCTA  int   // most bytes of shared memory a block may ask for
	Memory        int64 // bytes
	DriverVersion int   // e.g. 12080 for CUDA 12.8
}

// TensorMap is a CUtensorMap: how the copy engine of sm_90 addresses a tile of a matrix. Where a kernel takes one by
// value it is an argument of type TensorMap.
type TensorMap [128]byte

// TensorSpec asks for the map of a row-major matrix of bfloat16 or, if Wide, float32: Rows by Cols values, Stride values
// between rows (a multiple of 16 bytes), tiles of BoxRows by BoxCols. A row of a tile is 128 bytes, which get the 128-byte
// swizzle. What lies outside the matrix reads as zero.
type TensorSpec struct {
	Base             Ptr
	Wide             bool
	Rows, Cols       int
	Stride           int
	BoxRows, BoxCols int
}

// Driver is one device. All methods may be called from several goroutines. Work on one stream runs in the order asked
// for. Errors wrap the sentinels of this package; after ErrDeviceLost and ErrLaunch every call fails.
type Driver interface {
	Info() Info
	// Free memory and all memory of the device at this moment, in bytes.
	MemInfo() (free, total int64, err error)
	// Alloc returns memory aligned to 256 bytes, not cleared. Free waits for the device.
	Alloc(bytes int64) (Ptr, error)
	Free(p Ptr) error
	// AllocHost returns page-locked host memory, which ToDevice and ToHost copy without waiting; FreeHost gives it back.
	AllocHost(bytes int64) ([]byte, error)
	FreeHost(b []byte) error

	// ToDevice and ToHost copy; unless the host side came from AllocHost, they return when the copy is done. CopyDevice
	// copies between device addresses. Fill sets words (32 bits each) to v.
	ToDevice(dst Ptr, src []byte, s Stream) error
	ToHost(dst []byte, src Ptr, s Stream) error
	CopyDevice(dst, src Ptr, bytes int64, s Stream) error
	Fill(dst Ptr, v uint32, words int64, s Stream) error

	// Load compiles PTX and returns its kernels by name. Shared memory beyond 48 KiB is allowed for all of them.
	Load(ptx []byte, names []string) (map[string]Function, error)
	// Launch starts a kernel. An argument is a Ptr (8 bytes), int32, uint32, float32, int64, uint64 or a TensorMap.
	Launch(f Function, grid, block [3]int, shared int, s Stream, args ...any) error
	// TensorMap encodes a map; on a device below sm_90 it fails.
	TensorMap(t TensorSpec) (TensorMap, error)

	NewStream() (Stream, error)
	NewEvent() (Event, error)
	Record(e Event, s Stream) error
	// WaitEvent makes s wait for e; Elapsed is the milliseconds between two events, after waiting for the later.
	WaitEvent(s Stream, e Event) error
	Elapsed(from, to Event) (float64, error)
	// Sync waits for a stream and reports the first failure since the last Sync.
	Sync(s Stream) error
	Close() error
}
