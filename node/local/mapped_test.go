package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/cpu"
)

// TestLoadMapped: a model whose matrices stay in their files trains to the same delta and is measured to the same rows,
// though next to nothing of it may stay in memory.
func TestLoadMapped(t *testing.T) {
	w := tinyWorld(t)
	b := newBackend(t, cpu.Options{Threads: 2, Mapped: 1})
	p, err := local.LoadMapped(b, w.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Link != w.p.Link || !reflect.DeepEqual(weights(p.Model), weights(w.p.Model)) {
		t.Fatal("another model")
	}
	o := brief(ledger, "mapped")
	want := w.train(t, o)
	got, _, err := local.Train(t.Context(), w.n, p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !sameDelta(t, got, want) {
		t.Error("another delta than from memory")
	}
	beacons := local.Beacons("mapped", 0)
	rows := func(p *local.Phi) any {
		r, err := w.n.Score(t.Context(), p, ledger, 0, beacons, []local.Submission{submission(1, want)}, 2)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if !reflect.DeepEqual(rows(p), rows(w.p)) {
		t.Error("other rows than from memory")
	}
}

// TestMappedFiles: files that are replaced or removed do no harm, those that are written to or cut short end in an error.
func TestMappedFiles(t *testing.T) {
	w := tinyWorld(t)
	o := brief(ledger, "mapped")
	train := func(harm func(file string)) error {
		dir := filepath.Join(t.TempDir(), "checkpoint")
		if err := os.CopyFS(dir, os.DirFS(w.dir)); err != nil {
			t.Fatal(err)
		}
		b := newBackend(t, cpu.Options{Threads: 2, Mapped: 1})
		p, err := local.LoadMapped(b, dir)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		files, err := filepath.Glob(filepath.Join(dir, "hub-*.safetensors"))
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		d, _, err := local.Train(t.Context(), w.n, p, o, func(x training.Progress) {
			if x.Step == 1 {
				harm(files[0])
			}
		})
		if (d == nil) != (err != nil) {
			t.Errorf("delta %v and error %v", d, err)
		}
		return err
	}
	check := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	for name, c := range map[string]struct {
		harm func(file string)
		want error
	}{
		"removed":  {func(f string) { check(os.Remove(f)) }, nil},
		"replaced": {func(f string) { check(errors.Join(os.WriteFile(f+".new", nil, 0o600), os.Rename(f+".new", f))) }, nil},
		"cut":      {func(f string) { check(os.Truncate(f, 1000)) }, cpu.ErrMapped},
		"written": {func(f string) {
			x, err := os.OpenFile(f, os.O_WRONLY, 0)
			check(err)
			info, err := x.Stat()
			check(err)
			_, err = x.WriteAt([]byte{1}, info.Size()-1)
			check(errors.Join(err, x.Close()))
		}, local.ErrChanged},
	} {
		if err := train(c.harm); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
