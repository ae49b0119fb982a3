package training

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// stateBytes is a file with that header, values of zero, and a right checksum.
func stateBytes(head stateHeader, values int) []byte {
	b := bytes.NewBufferString(stateMagic)
	if err := binary.Write(b, binary.LittleEndian, head); err != nil {
		panic(err) // fixed size
	}
	b.Write(make([]byte, 12*values))
	sum := sha256.Sum256(b.Bytes())
	return append(b.Bytes(), sum[:]...)
}

// TestStateHeaderBounds: what a header claims is checked against the size of the file before anything is allocated.
func TestStateHeaderBounds(t *testing.T) {
	for name, head := range map[string]stateHeader{
		"one more than there is": {Size: 9}, "one less": {Size: 7}, "as many as may be": {Size: maxState}, "past that": {Size: maxState + 1},
		"product past int64":           {Size: math.MaxUint64 / 12},
		"product past int64 and round": {Size: (1<<63)/12*2 + 8}, "all ones": {Size: math.MaxUint64},
		"step past the bound": {Size: 8, Step: 1<<40 + 1}, "negative step": {Size: 8, Step: math.MaxUint64},
		"optimizer past the bound": {Size: 8, Steps: 1<<40 + 1}, "negative optimizer": {Size: 8, Steps: 1 << 63},
	} {
		b := stateBytes(head, 8)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decodeState(bytes.NewReader(b), int64(len(b)))
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<16 {
			t.Errorf("%s: %d bytes allocated for a file of %d", name, n, len(b))
		}
	}
	b := stateBytes(stateHeader{Size: 8, Step: 1 << 40, Steps: 1 << 40}, 8)
	if s, err := decodeState(bytes.NewReader(b), int64(len(b))); err != nil || s.Step != 1<<40 || len(s.Values) != 8 {
		t.Errorf("at the bounds: %v", err)
	}
}

// FuzzDecodeState: bytes are refused with ErrState, or they are what WriteState writes for the state they gave.
func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(stateMagic))
	f.Add(stateBytes(stateHeader{}, 0))
	f.Add(stateBytes(stateHeader{Job: [32]byte{1}, Step: 3, Steps: 4, Size: 2}, 2))
	f.Add(stateBytes(stateHeader{Size: math.MaxUint64}, 2))
	f.Add(stateBytes(stateHeader{Size: 1, Step: math.MaxUint64}, 1))
	half := append([]byte(stateMagicHalf), stateBytes(stateHeader{Step: 3, Steps: 4, Size: 3}, 2)[len(stateMagic):]...) // 24 bytes of values
	sum := sha256.Sum256(half[:len(half)-sha256.Size])
	f.Add(append(half[:len(half)-sha256.Size], sum[:]...))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum would stop the fuzzer at the door, so it is tried with a right one too.
		repaired := bytes.Clone(b)
		if n := len(b) - sha256.Size; n >= 0 {
			sum := sha256.Sum256(b[:n])
			copy(repaired[n:], sum[:])
		}
		for _, in := range [][]byte{b, repaired} {
			s, err := decodeState(bytes.NewReader(in), int64(len(in)))
			if err != nil {
				if !errors.Is(err, ErrState) {
					t.Fatalf("%v is not ErrState", err)
				}
				continue
			}
			path := filepath.Join(dir, "state")
			if err := WriteState(path, s); err != nil {
				t.Fatal(err)
			}
			out, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(in, out) {
				t.Fatalf("%x was read, %x is written", in, out)
			}
		}
	})
}
