package safetensors

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrFormat is what every [*FormatError] is: the file's own fault, refuse it.
	ErrFormat = errors.New("malformed file")
	// ErrNotFinite is what every [*NotFiniteError] is: a weight is NaN or infinite.
	ErrNotFinite = errors.New("weight is not finite")
	// ErrNotExact: a value given to [Write] for a BF16 tensor is not a BF16 number. Round it first, see [RoundBF16].
	ErrNotExact = errors.New("value is not exact in BF16")
	// ErrTensor: tensors given to [Write] that cannot be written, or arguments that do not fit the tensor they name.
	ErrTensor = errors.New("invalid tensor")
	// ErrNoTensor: the file holds no tensor of that name.
	ErrNoTensor = errors.New("no such tensor")
	// ErrDType: the tensor's dtype does not convert to float32; only F32 and BF16 do.
	ErrDType = errors.New("dtype does not convert to float32")
	// ErrUnreadable: the file's bytes went away after it was opened; it was truncated, or the disk failed.
	ErrUnreadable = errors.New("file became unreadable after it was opened")
)

// FormatError says what is wrong with a file and where. It matches [ErrFormat].
type FormatError struct {
	File   string // as given to Open or New
	Tensor string // empty where the fault lies in no tensor
	Field  string // "header length", "dtype", "shape", "data_offsets", ...; may be empty
	Reason string
}

func (e *FormatError) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Tensor != "" {
		fmt.Fprintf(&b, ": tensor %q", shorten(e.Tensor))
	}
	if e.Field != "" {
		b.WriteString(": " + shorten(e.Field))
	}
	b.WriteString(": " + e.Reason)
	return b.String()
}

// Is reports whether target is [ErrFormat].
func (e *FormatError) Is(target error) bool { return target == ErrFormat }

// NotFiniteError names the first NaN or infinite weight of a tensor. It matches [ErrNotFinite].
type NotFiniteError struct {
	File   string
	Tensor string
	Index  int64 // row-major
	Value  float32
}

func (e *NotFiniteError) Error() string {
	return fmt.Sprintf("%s: tensor %q: weight %d is %v", e.File, shorten(e.Tensor), e.Index, e.Value)
}

// Is reports whether target is [ErrNotFinite].
func (e *NotFiniteError) Is(target error) bool { return target == ErrNotFinite }

// shorten keeps a hostile name from filling a log.
func shorten(s string) string {
	if len(s) <= 200 {
		return s
	}
	return strings.ToValidUTF8(s[:200], "") + "..."
}
