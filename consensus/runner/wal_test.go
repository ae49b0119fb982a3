package runner_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/runner"
	"github.com/blockzero-net/bzd/internal/protocol"
)

var errDisk = errors.New("no space left on device")

// memory is a file in memory that fails at one operation and, as a disk does, loses after a crash what was not synced.
type memory struct {
	data   []byte
	synced []byte
	pos    int
	ops    int
	fail   int // the operation that fails, -1 for none
}

func (f *memory) failing() bool {
	f.ops++
	return f.ops-1 == f.fail
}

func (f *memory) Read(b []byte) (int, error) {
	if f.failing() {
		return 0, errDisk
	}
	n := copy(b, f.data[f.pos:])
	f.pos += n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Write that fails has written half.
func (f *memory) Write(b []byte) (int, error) {
	n, err := len(b), error(nil)
	if f.failing() {
		n, err = len(b)/2, errDisk
	}
	f.data = append(f.data[:f.pos], b[:n]...)
	f.pos += n
	return n, err
}

func (f *memory) Seek(offset int64, whence int) (int64, error) {
	if f.failing() {
		return 0, errDisk
	}
	if whence != io.SeekStart {
		return 0, errors.New("only from the start")
	}
	f.pos = int(offset)
	return offset, nil
}

func (f *memory) Truncate(size int64) error {
	if f.failing() {
		return errDisk
	}
	f.data = f.data[:size]
	return nil
}

func (f *memory) Sync() error {
	if f.failing() {
		return errDisk
	}
	f.synced = slices.Clone(f.data)
	return nil
}

func (f *memory) Close() error { return nil }

// crashed is what a crash leaves: what was synced and, if torn, part of what was written after.
func (f *memory) crashed(torn int) *memory {
	left := slices.Clone(f.synced)
	if len(f.data) > len(left) {
		left = append(left, f.data[len(left):min(len(f.data), len(left)+torn)]...)
	}
	return &memory{data: left, synced: slices.Clone(left), fail: -1}
}

func open(t *testing.T, f runner.File) (*runner.WAL, [][]byte) {
	t.Helper()
	w, records, err := runner.NewWAL(f)
	if err != nil {
		t.Fatal(err)
	}
	return w, records
}

func same(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

// TestTornTail cuts a log at every byte, and puts zeros where bytes never arrived: what is left are whole batches, and
// the log can be written on.
func TestTornTail(t *testing.T) {
	f := &memory{fail: -1}
	w, _ := open(t, f)
	batches := [][][]byte{{[]byte("one")}, {[]byte("two"), {}, []byte("three")}, {bytes.Repeat([]byte{7}, 300)}}
	ends := []int{0}
	for _, b := range batches {
		if err := w.Append(b); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, len(f.data))
	}
	if err := w.Append(nil); err != nil || len(f.data) != ends[3] {
		t.Fatal("nothing is not a frame", err)
	}
	for cut := range len(f.data) + 1 {
		whole := 0
		for ends[whole] < cut && whole < 3 && ends[whole+1] <= cut {
			whole++
		}
		var want [][]byte
		for _, b := range batches[:whole] {
			want = append(want, b...)
		}
		for _, zeros := range []int{0, 50} {
			if zeros > 0 && cut != ends[whole] {
				continue // zeros inside a frame that goes on are not a torn tail's
			}
			torn := &memory{data: append(slices.Clone(f.data[:cut]), make([]byte, zeros)...), fail: -1}
			w, got := open(t, torn)
			if !same(got, want) || len(torn.data) != ends[whole] {
				t.Fatalf("cut at %d: %d records, %d bytes left", cut, len(got), len(torn.data))
			}
			if err := w.Append([][]byte{[]byte("more")}); err != nil {
				t.Fatal(err)
			}
			if _, got := open(t, torn); !same(got, append(slices.Clone(want), []byte("more"))) {
				t.Fatalf("cut at %d: written on, read %d records", cut, len(got))
			}
		}
	}
	// A flipped bit in a frame that is not the last is no crash's doing.
	for i := range ends[2] {
		bad := slices.Clone(f.data)
		bad[i] ^= 0x10
		_, got, err := runner.NewWAL(&memory{data: bad, fail: -1})
		if err == nil && len(got) > 0 && !same(got, slices.Concat(batches[:1]...)) {
			t.Fatalf("byte %d flipped: %d records", i, len(got))
		}
		if body := i >= ends[1]+8; body && !errors.Is(err, runner.ErrCorrupt) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
}

// TestDiskFails fails operation 0, 1, 2, …: whatever Append called durable is there after a crash, and a log that failed
// takes nothing more.
func TestDiskFails(t *testing.T) {
	for k := 0; ; k++ {
		f := &memory{fail: k}
		var durable [][]byte
		w, _, err := runner.NewWAL(f)
		failed := err != nil
		for i := range 4 {
			if err != nil {
				break
			}
			record := bytes.Repeat([]byte{byte(i)}, 10+i)
			aerr := w.Append([][]byte{record})
			switch {
			case failed && !errors.Is(aerr, runner.ErrBroken):
				t.Fatalf("operation %d failed, and append %d says %v", k, i, aerr)
			case aerr == nil:
				durable = append(durable, record)
			default:
				failed = true
			}
		}
		if !failed {
			if k < 8 {
				t.Fatalf("only %d operations", k)
			}
			return
		}
		for torn := range 40 {
			if _, got := open(t, f.crashed(torn)); len(got) < len(durable) || len(got) > len(durable)+1 || !same(got[:len(durable)], durable) {
				t.Fatalf("operation %d failed: %d records durable, %d there", k, len(durable), len(got))
			}
		}
	}
}

// TestKeep drops the records of old cycles when a log is opened.
func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "votes.wal")
	w, records, err := runner.OpenWAL(path, nil)
	if err != nil || len(records) != 0 {
		t.Fatal(records, err)
	}
	var all [][]byte
	for cycle := range uint64(4) {
		m, err := consensus.NewMessage(protocol.ScoreCommit{
			Version: protocol.Version, Network: protocol.LinkTo(protocol.DagCBOR, nil), Cycle: cycle, Digest: protocol.Hash{1}, Sig: protocol.Sig{1},
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m.Encode())
	}
	if err := errors.Join(w.Append(all), w.Close()); err != nil {
		t.Fatal(err)
	}
	for _, since := range []uint64{0, 2, 2, 9} {
		w, records, err := runner.OpenWAL(path, runner.Since(since))
		if err != nil || !same(records, all[min(since, 4):]) {
			t.Fatal(since, len(records), err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Error(left, err)
	}
	if _, _, err := runner.OpenWAL(filepath.Join(path, "below"), nil); err == nil {
		t.Error("opened a log below a file")
	}
}
