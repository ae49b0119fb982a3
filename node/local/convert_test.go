package local_test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/model"
	"github.com/blockzero-net/bzd/training/tokenizer"
)

// foreign writes a model the way others do: everything in one F32 file, changed by spoil.
func foreign(t *testing.T, m *model.Model, spoil func(name string, v []float32)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "foreign")
	var tensors []checkpoint.Tensor
	for _, s := range m.Specs() {
		v := m.Read(s.Name)
		if spoil != nil {
			spoil(s.Name, v)
		}
		var shape []int64
		for _, d := range s.Shape {
			shape = append(shape, int64(d))
		}
		tensors = append(tensors, checkpoint.Tensor{Name: s.Name, DType: checkpoint.F32, Shape: shape, Data: v})
	}
	documents := tokenizer.Files()
	documents[checkpoint.ConfigName] = m.JSON()
	if _, err := checkpoint.Write(dir, checkpoint.Contents{Documents: documents, Files: []checkpoint.File{{Name: "model-00001-of-00001.safetensors", Tensors: tensors}}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte("# a model card"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func tinyBase(t *testing.T) (*cpu.Backend, *model.Model) {
	b := newBackend(t, cpu.Options{Threads: 1})
	m, _ := tiny(t, b, text(t, prose, 60, sentence))
	return b, m
}

// fine moves a weight to where only F32 can hold it.
func fine(v []float32) { v[3] = 0.1 }

func isRouter(name string) bool { return strings.HasSuffix(name, ".mlp.gate.weight") }

func TestImport(t *testing.T) {
	b, m := tinyBase(t)
	src := foreign(t, m, func(name string, v []float32) {
		if isRouter(name) {
			fine(v)
		}
	})
	before := files(t, src)
	dir := filepath.Join(t.TempDir(), "imported")
	link, err := local.Import(src, dir, false)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(before, files(t, src)) {
		t.Error("the import has changed its source")
	}
	p, err := local.LoadPhi(b, dir)
	if err != nil {
		t.Fatal(err)
	}
	if p.Link != link || len(p.State.Groups) != 0 || p.State.Previous != nil {
		t.Errorf("imported %s, loaded %s with %+v", link, p.Link, p.State)
	}
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, s := range m.Specs() {
		want, dtype := m.Read(s.Name), checkpoint.BF16
		if isRouter(s.Name) {
			fine(want)
			dtype = checkpoint.F32
		}
		info, err := c.Tensor(s.Name)
		if err != nil {
			t.Fatal(err)
		}
		if info.DType != dtype || !slices.Equal(p.Model.Read(s.Name), want) {
			t.Errorf("%s: %v, its values kept: %v", s.Name, info.DType, slices.Equal(p.Model.Read(s.Name), want))
		}
	}
	// What was imported imports again to the same.
	again, err := local.Import(dir, filepath.Join(t.TempDir(), "again"), false)
	if err != nil || again != link {
		t.Errorf("imported again: %s, %v, want %s", again, err, link)
	}
	if _, _, err := local.Train(t.Context(), tinyWorld(t).n, p, brief(ledger, "x"), nil); err == nil || !strings.Contains(err.Error(), `no group "ledger"`) {
		t.Errorf("training a model without groups: %v", err)
	}
}

func TestImportRounds(t *testing.T) {
	b, m := tinyBase(t)
	const name = "model.layers.1.mlp.experts.2.up_proj.weight"
	src := foreign(t, m, func(n string, v []float32) {
		if n == name || isRouter(n) {
			fine(v)
		}
	})
	dir := filepath.Join(t.TempDir(), "imported")
	_, err := local.Import(src, dir, false)
	if !errors.Is(err, safetensors.ErrNotExact) || !strings.Contains(err.Error(), name) {
		t.Errorf("error %v, want one that names %s", err, name)
	}
	if left := names(t, filepath.Dir(dir)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := local.Import(src, dir, true); err != nil {
		t.Fatal(err)
	}
	p, err := local.LoadPhi(b, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range m.Specs() {
		want := m.Read(s.Name)
		switch {
		case s.Name == name:
			want[3] = safetensors.RoundBF16(0.1)
		case isRouter(s.Name):
			want[3] = 0.1
		}
		if !slices.Equal(p.Model.Read(s.Name), want) {
			t.Errorf("%s has changed otherwise than by rounding", s.Name)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	b, m := tinyBase(t)
	dir := filepath.Join(t.TempDir(), "imported")
	for name, spoil := range map[string]func(dir string) error{
		"no config":    func(dir string) error { return os.Remove(filepath.Join(dir, "config.json")) },
		"no tokenizer": func(dir string) error { return os.Remove(filepath.Join(dir, tokenizer.JSONFile)) },
		"another tokenizer": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, tokenizer.JSONFile), []byte(`{"model":{}}`), 0o600)
		},
		"another shape": func(dir string) error {
			c := m.Config
			c.Experts++
			return os.WriteFile(filepath.Join(dir, "config.json"), c.JSON(), 0o600)
		},
		"a smaller vocabulary": func(dir string) error {
			c := m.Config
			c.Vocab = 255
			return os.WriteFile(filepath.Join(dir, "config.json"), c.JSON(), 0o600)
		},
	} {
		src := foreign(t, m, nil)
		if err := spoil(src); err != nil {
			t.Fatal(err)
		}
		if _, err := local.Import(src, dir, true); err == nil || !strings.Contains(err.Error(), src) {
			t.Errorf("%s: error %v, want one that names %s", name, err, src)
		}
		if left := names(t, filepath.Dir(dir)); len(left) != 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
	// A model that was never imported is told from a checkpoint.
	if _, err := local.LoadPhi(b, foreign(t, m, nil)); err == nil {
		t.Error("a foreign model was loaded as a checkpoint")
	}
}

func TestExport(t *testing.T) {
	w := shared(t)
	dir := filepath.Join(t.TempDir(), "exported")
	for range 2 { // the second time there is nothing to do
		link, err := local.Export(w.dir, dir)
		if err != nil {
			t.Fatal(err)
		}
		if link != w.p.Link || !maps.Equal(files(t, dir), files(t, w.dir)) {
			t.Errorf("the export is %s, the checkpoint %s", link, w.p.Link)
		}
	}
	p, err := local.LoadPhi(w.b, dir)
	if err != nil || p.Link != w.p.Link {
		t.Fatalf("exported %s, %v", p.Link, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Export(dir, filepath.Join(t.TempDir(), "stray")); err == nil {
		t.Error("a directory with a stray file was exported")
	}
}
