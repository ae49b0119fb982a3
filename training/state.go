package training

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"unsafe"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/optim"
)

// Values reads the values of params, one after another.
func Values(params []optim.Param, b backend.Backend) []float32 {
	n := 0
	for _, p := range params {
		n += p.Value.Len()
	}
	out := make([]float32, n)
	at := 0
	for _, p := range params {
		b.Read(out[at:at+p.Value.Len()], p.Value)
		at += p.Value.Len()
	}
	return out
}

// A state file is, little endian: the magic, the job's identity (32 bytes), step, optimizer steps, number of values (8
// bytes each), then values as float32, first and second moments as float32 or, after the second magic, as bfloat16, then the
// SHA-256 of everything before.
const (
	stateMagic     = "bzdstat\x01"
	stateMagicHalf = "bzdstat\x02"
)

// stateHeader is the fixed part after the magic.
type stateHeader struct {
	Job               [32]byte
	Step, Steps, Size uint64
}

// maxState bounds the number of values of a state file, 16 GiB of them.
const maxState = 1 << 32

// WriteState replaces the file at path by the state. The file is always whole: it is written beside and renamed.
func WriteState(path string, s State) (err error) {
	if n := len(s.Values); s.Moments.Len() != n {
		return fmt.Errorf("save training state: %w: %d values, %d and %d moments in float32, %d and %d in bfloat16", ErrState, n,
			len(s.Moments.M), len(s.Moments.V), len(s.Moments.HalfM), len(s.Moments.HalfV))
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("save training state: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("save training state %s: %w", path, err)
		}
	}()
	h := sha256.New()
	w := io.MultiWriter(f, h)
	magic := stateMagic
	if s.Moments.Half() {
		magic = stateMagicHalf
	}
	if _, err = io.WriteString(w, magic); err != nil {
		return err
	}
	head := stateHeader{s.Job, uint64(s.Step), uint64(s.Moments.Steps), uint64(len(s.Values))}
	if err = binary.Write(w, binary.LittleEndian, head); err != nil {
		return err
	}
	buf := make([]byte, 0, 1<<16)
	for _, v := range [][]float32{s.Values, s.Moments.M, s.Moments.V} {
		for len(v) > 0 {
			n := min(len(v), cap(buf)/4)
			for _, x := range v[:n] {
				buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(x))
			}
			if _, err = w.Write(buf); err != nil {
				return err
			}
			v, buf = v[n:], buf[:0]
		}
	}
	for _, v := range [][]uint16{s.Moments.HalfM, s.Moments.HalfV} {
		for len(v) > 0 {
			n := min(len(v), cap(buf)/2)
			for _, x := range v[:n] {
				buf = binary.LittleEndian.AppendUint16(buf, x)
			}
			if _, err = w.Write(buf); err != nil {
				return err
			}
			v, buf = v[n:], buf[:0]
		}
	}
	if _, err = f.Write(h.Sum(nil)); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// ReadState reads a file that WriteState wrote; a missing one is fs.ErrNotExist, a damaged one ErrState.
func ReadState(path string) (State, error) {
	f, err := os.Open(path)
	if err != nil {
		return State{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return State{}, err
	}
	s, err := decodeState(f, info.Size())
	if err != nil {
		return State{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func decodeState(r io.Reader, size int64) (State, error) {
	h := sha256.New()
	tee := io.TeeReader(r, h)
	magic := make([]byte, len(stateMagic))
	if _, err := io.ReadFull(tee, magic); err != nil || string(magic) != stateMagic && string(magic) != stateMagicHalf {
		return State{}, fmt.Errorf("%w: no training state (bad magic)", ErrState)
	}
	half, each := string(magic) == stateMagicHalf, int64(12)
	if half {
		each = 8
	}
	var head stateHeader
	if err := binary.Read(tee, binary.LittleEndian, &head); err != nil {
		return State{}, fmt.Errorf("%w: header: %w", ErrState, err)
	}
	want := int64(len(stateMagic)) + int64(unsafe.Sizeof(head)) + each*int64(head.Size) + sha256.Size
	if head.Size > maxState || head.Step > 1<<40 || head.Steps > 1<<40 || want != size {
		return State{}, fmt.Errorf("%w: header says %d values, the file has %d bytes", ErrState, head.Size, size)
	}
	s := State{Job: head.Job, Step: int(head.Step), Values: make([]float32, head.Size), Moments: optim.State{Steps: int(head.Steps)}}
	err := readValues(tee, s.Values)
	if half {
		s.Moments.HalfM, s.Moments.HalfV = make([]uint16, head.Size), make([]uint16, head.Size)
		err = errors.Join(err, readValues(tee, s.Moments.HalfM), readValues(tee, s.Moments.HalfV))
	} else {
		s.Moments.M, s.Moments.V = make([]float32, head.Size), make([]float32, head.Size)
		err = errors.Join(err, readValues(tee, s.Moments.M), readValues(tee, s.Moments.V))
	}
	if err != nil {
		return State{}, fmt.Errorf("%w: values: %w", ErrState, err)
	}
	sum := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, sum); err != nil || !bytes.Equal(sum, h.Sum(nil)) {
		return State{}, fmt.Errorf("%w: checksum does not match", ErrState)
	}
	return s, nil
}

// readValues fills v, a part at a time: binary.Read holds what it decodes twice.
func readValues[T float32 | uint16](r io.Reader, v []T) error {
	for part := range slices.Chunk(v, 1<<16) {
		if err := binary.Read(r, binary.LittleEndian, part); err != nil {
			return err
		}
	}
	return nil
}
