package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
)

// formula fills a tensor with values that BF16 holds; testdata/make_vectors.py computes the same.
func formula(n, step int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(i*step%255-127) / 64
	}
	return v
}

func tensor(name string, dtype DType, data []float32, shape ...int64) Tensor {
	return Tensor{Name: name, DType: dtype, Shape: shape, Data: data}
}

// sample is a small checkpoint with hub, router and one expert group.
func sample() Contents {
	return Contents{
		Documents: map[string][]byte{
			"config.json": []byte(`{"model_type":"qwen3_moe"}`), "tokenizer.json": []byte("{}"), "protocol.cbor": {0xa0},
		},
		Files: append(
			Shards("hub", 40, []Tensor{
				tensor("model.norm.weight", BF16, formula(8, 7), 8),
				tensor("model.embed_tokens.weight", BF16, formula(24, 5), 6, 4),
			}),
			File{Name: "router.safetensors", Tensors: []Tensor{tensor("model.layers.0.mlp.gate.weight", F32, formula(12, 3), 3, 4)}},
			File{Name: "experts-code.safetensors", Tensors: []Tensor{
				tensor("model.layers.0.mlp.experts.1.up_proj.weight", F32, []float32{float32(math.Copysign(0, -1)), 1e-45, 0.1, -3e38}, 2, 2),
			}},
		),
	}
}

func mustWrite(t *testing.T, dir string, c Contents) string {
	t.Helper()
	root, err := Write(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	return root.String()
}

func mustOpen(t *testing.T, dir string) *Checkpoint {
	t.Helper()
	c, err := OpenStrict(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// contentsOf reads a checkpoint back into what Write takes.
func contentsOf(t *testing.T, c *Checkpoint) Contents {
	t.Helper()
	out := Contents{Documents: make(map[string][]byte)}
	for _, name := range c.Documents() {
		data, err := c.Document(name)
		if err != nil {
			t.Fatal(err)
		}
		out.Documents[name] = data
	}
	for _, f := range c.Files() {
		file := File{Name: f.Name}
		for _, info := range c.Tensors() {
			if info.File != f.Name {
				continue
			}
			x := Tensor{Name: info.Name, DType: info.DType, Shape: info.Shape, Data: make([]float32, info.Elements())}
			if err := c.ReadFiniteF32(info.Name, x.Data); err != nil {
				t.Fatal(err)
			}
			file.Tensors = append(file.Tensors, x)
		}
		if len(file.Tensors) != f.Tensors {
			t.Fatalf("%s holds %d tensors, want %d", f.Name, len(file.Tensors), f.Tensors)
		}
		out.Files = append(out.Files, file)
	}
	return out
}

// tree reads every file below dir: path to bytes, or to its kind.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			files[name] = d.Type().String()
			return nil
		}
		data, err := os.ReadFile(path)
		files[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestRoundTrip(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "phi")
	want := sample()
	root := mustWrite(t, dir, want)
	c := mustOpen(t, dir)

	var names []string
	for _, f := range c.Files() {
		names = append(names, f.Name)
	}
	if got := strings.Join(names, " "); got != "experts-code.safetensors hub-00001.safetensors hub-00002.safetensors router.safetensors" {
		t.Errorf("files %s", got)
	}
	for _, f := range want.Files {
		for _, x := range f.Tensors {
			info, err := c.Tensor(x.Name)
			if err != nil || info.File != f.Name || info.DType != x.DType || !slices.Equal(info.Shape, x.Shape) {
				t.Errorf("%s: %+v, %v", x.Name, info, err)
			}
			got := make([]float32, info.Elements())
			if err := c.ReadF32(x.Name, got); err != nil {
				t.Fatal(err)
			}
			for i := range got {
				if math.Float32bits(got[i]) != math.Float32bits(x.Data[i]) {
					t.Errorf("%s[%d] is %v, want %v", x.Name, i, got[i], x.Data[i])
				}
			}
		}
	}
	if got, err := c.CID(); err != nil || got.String() != root {
		t.Errorf("CID %s, %v, want %s", got, err, root)
	}
	if _, err := c.Tensor("x"); !errors.Is(err, ErrNoTensor) {
		t.Error(err)
	}
	if err := c.ReadF32("x", nil); !errors.Is(err, ErrNoTensor) {
		t.Error(err)
	}
	for _, name := range []string{"vocab.json", "../phi/config.json", IndexName} {
		if _, err := c.Document(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// What was read writes the same directory, whatever the order it is given in; a copy is the same too.
	again := contentsOf(t, c)
	slices.Reverse(again.Files)
	for _, f := range again.Files {
		slices.Reverse(f.Tensors)
	}
	second, third := filepath.Join(parent, "second"), filepath.Join(parent, "third")
	if got := mustWrite(t, second, again); got != root {
		t.Errorf("the second write has CID %s, want %s", got, root)
	}
	if got, err := Copy(third, dir); err != nil || got.String() != root {
		t.Errorf("the copy has CID %s, %v, want %s", got, err, root)
	}
	for _, other := range []string{second, third} {
		if !maps.Equal(tree(t, dir), tree(t, other)) {
			t.Errorf("%s differs", other)
		}
	}
	if entries, _ := os.ReadDir(parent); len(entries) != 3 {
		t.Errorf("%d entries beside the checkpoints: %v", len(entries), entries)
	}
}

// TestFrom: Φ(t+1) copies the files that did not change and writes the others.
func TestFrom(t *testing.T) {
	parent := t.TempDir()
	dir, next := filepath.Join(parent, "a"), filepath.Join(parent, "b")
	c := sample()
	mustWrite(t, dir, c)
	for i, f := range c.Files {
		if strings.HasPrefix(f.Name, "hub") {
			c.Files[i] = File{Name: f.Name, From: filepath.Join(dir, f.Name)}
			continue
		}
		f.Tensors[0].Data = slices.Clone(f.Tensors[0].Data)
		f.Tensors[0].Data[0] += 0.5
	}
	mustWrite(t, next, c)
	before, after := tree(t, dir), tree(t, next)
	for name := range before {
		trainable := strings.HasPrefix(name, "router") || strings.HasPrefix(name, "experts")
		if (before[name] != after[name]) != trainable {
			t.Errorf("%s: changed is %v", name, !trainable)
		}
	}
	mustOpen(t, next)

	c.Files[0].From = filepath.Join(dir, "config.json")
	if _, err := Write(filepath.Join(parent, "c"), c); !errors.Is(err, ErrFormat) {
		t.Errorf("copying what is no tensor file: %v", err)
	}
	c.Files[0].From = filepath.Join(dir, "nowhere")
	if _, err := Write(filepath.Join(parent, "c"), c); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("copying what is not there: %v", err)
	}
}

// TestVector rebuilds the checkpoint that testdata/make_vectors.py made from other code.
func TestVector(t *testing.T) {
	var vector struct {
		Root      string
		LargeRoot string `json:"large_root"`
	}
	data, err := os.ReadFile("testdata/vector.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &vector); err != nil {
		t.Fatal(err)
	}
	if got, err := RootCID("testdata/vector"); err != nil || got.String() != vector.Root {
		t.Errorf("CID %s, %v, want %s", got, err, vector.Root)
	}
	dir := filepath.Join(t.TempDir(), "vector")
	if got := mustWrite(t, dir, contentsOf(t, mustOpen(t, "testdata/vector"))); got != vector.Root {
		t.Errorf("rewritten, CID %s, want %s", got, vector.Root)
	}
	want, got := tree(t, "testdata/vector"), tree(t, dir)
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s:\n%q\nwant\n%q", name, got[name], want[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}

	large := Contents{
		Documents: map[string][]byte{"config.json": []byte("{}")},
		Files: []File{{Name: "hub-00001.safetensors", Tensors: []Tensor{
			tensor("w", BF16, formula(1_600_000, 7), 1_600_000), tensor("x", BF16, formula(1, 1), 1),
		}}},
	}
	if got := mustWrite(t, filepath.Join(t.TempDir(), "large"), large); got != vector.LargeRoot {
		t.Errorf("large: CID %s, want %s", got, vector.LargeRoot)
	}
}

func TestShards(t *testing.T) {
	var tensors []Tensor
	for i, n := range []int{10, 1, 30, 2, 3, 5} {
		tensors = append(tensors, tensor(string(rune('f'-i)), F32, make([]float32, n), int64(n)))
	}
	var got []string
	for _, f := range Shards("hub", 48, tensors) {
		line := f.Name + ":"
		for _, x := range f.Tensors {
			line += " " + x.Name
		}
		got = append(got, line)
	}
	// a: 20 bytes, b: 12, c: 8, d: 120, e: 4, f: 40
	want := []string{"hub-00001.safetensors: a b c", "hub-00002.safetensors: d", "hub-00003.safetensors: e f"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if tensors[0].Name != "f" {
		t.Error("the caller's slice was sorted")
	}
	if got := Shards("hub", 0, tensors); len(got) != 1 {
		t.Errorf("%d files at the default limit", len(got))
	}
}

func TestContentsRefused(t *testing.T) {
	change := func(f func(c *Contents)) Contents {
		c := sample()
		f(&c)
		return c
	}
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		contents Contents
		want     error
		text     string
	}{
		"no config":      {change(func(c *Contents) { delete(c.Documents, "config.json") }), ErrContents, "config.json is missing"},
		"bad config":     {change(func(c *Contents) { c.Documents["config.json"] = []byte("{") }), ErrContents, "config.json is not valid JSON"},
		"index given":    {change(func(c *Contents) { c.Documents[IndexName] = nil }), ErrContents, "generated"},
		"unknown":        {change(func(c *Contents) { c.Documents["pytorch_model.bin"] = nil }), ErrContents, `"pytorch_model.bin"`},
		"path":           {change(func(c *Contents) { c.Documents["../x"] = nil }), ErrContents, `"../x"`},
		"long document":  {change(func(c *Contents) { c.Documents["LICENSE"] = make([]byte, MaxDocument+1) }), ErrContents, "LICENSE has 67108865"},
		"no files":       {change(func(c *Contents) { c.Files = nil }), ErrContents, "no tensor file"},
		"empty file":     {change(func(c *Contents) { c.Files[0].Tensors = nil }), ErrContents, "holds no tensor"},
		"file path":      {change(func(c *Contents) { c.Files[0].Name = "../x.safetensors" }), ErrContents, `"../x.safetensors"`},
		"file suffix":    {change(func(c *Contents) { c.Files[0].Name = "config.json" }), ErrContents, `"config.json"`},
		"file twice":     {change(func(c *Contents) { c.Files[0].Name = c.Files[1].Name }), ErrContents, "given twice"},
		"tensor twice":   {change(func(c *Contents) { c.Files[0].Tensors = c.Files[1].Tensors }), ErrContents, "already in"},
		"tensor name":    {change(func(c *Contents) { c.Files[0].Tensors[0].Name = "a b" }), ErrContents, `"a b"`},
		"both sources":   {change(func(c *Contents) { c.Files[0].From = "x" }), ErrContents, "both"},
		"NaN":            {change(func(c *Contents) { c.Files[2].Tensors[0].Data[3] = nan }), ErrNotFinite, "weight 3"},
		"inexact in hub": {change(func(c *Contents) { c.Files[0].Tensors[0].Data[1] = 0.1 }), ErrNotExact, "index 1"},
	} {
		parent := t.TempDir()
		_, err := Write(filepath.Join(parent, "phi"), c.contents)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		if left := tree(t, parent); len(left) != 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
	_, err := Write(filepath.Join(t.TempDir(), "phi"), Contents{Files: []File{{Name: "x"}, {Name: "x"}}})
	for _, part := range []string{"config.json is missing", `file name "x"`, "x is given twice", "x holds no tensor"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("not every fault is reported: %q in %v", part, err)
		}
	}
}

func TestExistingTarget(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "phi")
	c := sample()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	root := mustWrite(t, dir, c) // an empty directory is taken
	stat, err := os.Stat(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if got := mustWrite(t, dir, c); got != root {
		t.Errorf("CID %s, want %s", got, root)
	}
	if again, err := os.Stat(filepath.Join(dir, "config.json")); err != nil || !os.SameFile(stat, again) {
		t.Errorf("the same checkpoint was written again, %v", err)
	}
	before := tree(t, parent)
	refuse := func(what, text string, target string, c Contents) {
		t.Helper()
		if _, err := Write(target, c); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", what, err)
		}
		if !maps.Equal(tree(t, parent), before) {
			t.Errorf("%s: something changed", what)
		}
	}
	other := sample()
	other.Files[2].Tensors[0].Data[0]++
	refuse("another value", "another router.safetensors", dir, other)
	other = sample()
	other.Documents["config.json"] = append(other.Documents["config.json"], ' ')
	refuse("one more byte", "another config.json", dir, other)
	other.Documents["config.json"] = []byte("{}")
	refuse("fewer bytes", "another config.json", dir, other)
	other = sample()
	other.Documents["protocol.cbor"] = nil
	refuse("a beginning of it", "another protocol.cbor", dir, other)
	other = sample()
	other.Documents["README.md"] = nil
	refuse("one more file", "does not hold README.md", dir, other)
	other = sample()
	delete(other.Documents, "protocol.cbor")
	refuse("one file fewer", `"protocol.cbor"`, dir, other)
	refuse("a file", "not a directory", filepath.Join(dir, "config.json"), c)
	refuse("a temporary name", "cannot be the name", filepath.Join(parent, "x.partial-1"), c)
	if _, err := Copy(dir, "testdata/vector"); !errors.Is(err, ErrExists) {
		t.Errorf("copy over another checkpoint: %v", err)
	}
	if got, err := Copy(dir, dir); err != nil || got.String() != root {
		t.Errorf("copy over itself: %s, %v", got, err)
	}
}

// single writes a plain Hugging Face model of one file.
func single(t *testing.T, dir string) {
	t.Helper()
	var out bytes.Buffer
	if err := safetensors.Write(&out, []Tensor{tensor("w", BF16, formula(4, 1), 4)}); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, dir, map[string]string{SingleName: out.String(), "config.json": "{}"})
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenPlainModel(t *testing.T) {
	dir := t.TempDir()
	single(t, dir)
	writeFiles(t, dir, map[string]string{".gitattributes": "x", "pytorch_model.bin": "x"})
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.Stray(); !slices.Equal(got, []string{".gitattributes", "pytorch_model.bin"}) {
		t.Errorf("stray files %q", got)
	}
	if got := c.Tensors(); len(got) != 1 || got[0].Name != "w" || got[0].File != SingleName || got[0].DType != BF16 {
		t.Errorf("tensors %+v", got)
	}
	if _, err := c.CID(); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), ".gitattributes") {
		t.Errorf("the CID of a directory with stray files: %v", err)
	}
}
