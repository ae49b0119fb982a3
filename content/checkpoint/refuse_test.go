package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOpenRefuses damages a good checkpoint in one way at a time.
func TestOpenRefuses(t *testing.T) {
	rewrite := func(name, from, to string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(data), from, to, 1)
			if changed == string(data) {
				t.Fatalf("%s does not hold %q", name, from)
			}
			writeFiles(t, dir, map[string]string{name: changed})
		}
	}
	remove := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(name string, with func(path string) error) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			if err := os.Rename(path, filepath.Join(t.TempDir(), "moved")); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if err := with(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	add := func(name, data string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { writeFiles(t, dir, map[string]string{name: data}) }
	}
	const norm = "model.norm.weight"
	for name, c := range map[string]struct {
		damage              func(t *testing.T, dir string)
		file, tensor, field string
		reason              string
		strictOnly          bool
	}{
		"file missing": {remove("hub-00002.safetensors"), IndexName, norm, "weight_map", `"hub-00002.safetensors", which is missing`, false},
		"tensor not mapped": {rewrite(IndexName, `"hub-00002.safetensors"`, `"hub-00001.safetensors"`), IndexName, norm, "weight_map",
			"does not hold it", false},
		"tensor in another file": {func(t *testing.T, dir string) {
			rewrite(IndexName, `"model.norm.weight": "hub-00002.safetensors"`, `"model.norm.weight": "hub-00001.safetensors",
			"zz": "hub-00002.safetensors"`)(t, dir)
		}, IndexName, norm, "weight_map", `in file "hub-00001.safetensors", but file "hub-00002.safetensors" holds it`, false},
		"tensor unknown to the index": {rewrite(IndexName, `"model.norm.weight": "hub`, `"model.norm.weighx": "hub`),
			IndexName, norm, "weight_map", `missing, but file "hub-00002.safetensors" holds it`, false},
		"tensor unknown to the file": {rewrite(IndexName, `"model.norm.weight": `, `"zz": "hub-00002.safetensors", "model.norm.weight": `),
			IndexName, "zz", "weight_map", "does not hold it", false},
		"index outside": {rewrite(IndexName, `"hub-00002`, `"../hub-00002`), IndexName, norm, "weight_map", "no path", false},
		"index broken":  {rewrite(IndexName, `{`, `[`), IndexName, "", "", "want an object", false},
		"no index":      {remove(IndexName), IndexName, "", "", "missing", false},
		"total size":    {rewrite(IndexName, `"total_size": `, `"total_size": 1`), IndexName, "", "metadata.total_size", "want the integer 128", true},
		"total size as text": {rewrite(IndexName, `"total_size": 128`, `"total_size": "128"`), IndexName, "", "metadata.total_size",
			"want the integer 128", true},
		"no total size":    {rewrite(IndexName, `"total_size": 128`, ``), IndexName, "", "metadata.total_size", "want the integer 128", true},
		"tensor file":      {rewrite("router.safetensors", "F32", "F31"), "router.safetensors", "model.layers.0.mlp.gate.weight", "dtype", "F31", false},
		"no config":        {remove("config.json"), "config.json", "", "", "missing", false},
		"stray file":       {add("notes.txt", "x"), "notes.txt", "", "", "move it", true},
		"hidden file":      {add(".DS_Store", "x"), ".DS_Store", "", "", "move it", true},
		"stray tensors":    {add("old.safetensors", "x"), "old.safetensors", "", "", "move it", true},
		"single and index": {add(SingleName, "x"), SingleName, "", "", "move it", true},
		"subdirectory": {replace("sub", func(path string) error { return os.Mkdir(path, 0o700) }),
			"sub", "", "", "move it", true},
		"document link": {replace("config.json", func(path string) error { return os.Symlink("tokenizer.json", path) }),
			"config.json", "", "", "symbolic link", false},
		"tensor link": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, "router.safetensors")
			away := filepath.Join(t.TempDir(), "away")
			if err := errors.Join(os.Rename(path, away), os.Symlink(away, path)); err != nil {
				t.Fatal(err)
			}
		}, "router.safetensors", "", "", "symbolic link", false},
		"index link": {func(t *testing.T, dir string) {
			path := filepath.Join(dir, IndexName)
			away := filepath.Join(t.TempDir(), "away")
			if err := errors.Join(os.Rename(path, away), os.Symlink(away, path)); err != nil {
				t.Fatal(err)
			}
		}, IndexName, "", "", "symbolic link", false},
		"pipe": {replace("protocol.cbor", func(path string) error { return syscall.Mkfifo(path, 0o600) }),
			"protocol.cbor", "", "", "regular", false},
		"tensor directory": {replace("router.safetensors", func(path string) error { return os.Mkdir(path, 0o700) }),
			"router.safetensors", "", "", "regular", false},
		"document too long": {replace("tokenizer.json", func(path string) error {
			f, err := os.Create(path)
			return errors.Join(err, f.Truncate(MaxDocument+1), f.Close())
		}), "tokenizer.json", "", "", "want at most", false},
		"index too long": {replace(IndexName, func(path string) error {
			f, err := os.Create(path)
			return errors.Join(err, f.Truncate(MaxIndex+1), f.Close())
		}), IndexName, "", "", "want at most", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "phi")
			mustWrite(t, dir, sample())
			c.damage(t, dir)
			if ckpt, err := Open(dir); (err == nil) != c.strictOnly {
				t.Errorf("Open: %v", err)
			} else if err == nil {
				if err := ckpt.Close(); err != nil {
					t.Error(err)
				}
			}
			_, err := RootCID(dir)
			var e *FormatError
			if !errors.As(err, &e) {
				t.Fatalf("%v", err)
			}
			if e.File != filepath.Join(dir, c.file) || e.Tensor != c.tensor || e.Field != c.field || !strings.Contains(e.Reason, c.reason) {
				t.Errorf("got %+v", e)
			}
			if !strings.Contains(err.Error(), c.file) || !strings.Contains(err.Error(), c.field) {
				t.Errorf("message %q", err)
			}
			if _, err := Copy(filepath.Join(t.TempDir(), "copy"), dir); !errors.Is(err, ErrFormat) {
				t.Errorf("copied: %v", err)
			}
		})
	}
	if _, err := Open(filepath.Join(t.TempDir(), "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// hostileIndex is every file of testdata/hostile-index with what its refusal must name.
var hostileIndex = map[string]struct{ tensor, field, reason string }{
	"parent":           {"a", "weight_map", `"../x.safetensors"`},
	"absolute":         {"a", "weight_map", `"/etc/x.safetensors"`},
	"backslash":        {"a", "weight_map", `no path`},
	"subdirectory":     {"a", "weight_map", `"sub/x.safetensors"`},
	"dot":              {"a", "weight_map", `".x.safetensors"`},
	"nul":              {"a", "weight_map", `"x\x00.safetensors"`},
	"suffix":           {"a", "weight_map", `"config.json"`},
	"no-name":          {"a", "weight_map", `".safetensors"`},
	"long":             {"a", "weight_map", "212 bytes"},
	"number":           {"a", "weight_map", "want a string"},
	"array":            {"", "weight_map", "want an object"},
	"empty-map":        {"", "weight_map", "missing or empty"},
	"no-map":           {"", "weight_map", "missing or empty"},
	"empty":            {"", "", "ends early"},
	"null":             {"", "", "want an object, got null"},
	"duplicate-tensor": {"a", "weight_map", "duplicate key"},
	"duplicate-map":    {"", "weight_map", "duplicate key"},
	"metadata-nested":  {"", "metadata.x", "want a plain value"},
	"unknown":          {"", "weights", "unknown field"},
	"trailing":         {"", "", "more data"},
	"nested":           {"", "metadata", "want an object"},
}

func TestHostileIndex(t *testing.T) {
	files, err := filepath.Glob("testdata/hostile-index/*.json")
	if err != nil || len(files) != len(hostileIndex) {
		t.Fatalf("%d files, want %d, %v", len(files), len(hostileIndex), err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		want, ok := hostileIndex[name]
		_, err = parseIndex(path, data)
		var e *FormatError
		if !ok || !errors.As(err, &e) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if e.File != path || e.Tensor != want.tensor || e.Field != want.field || !strings.Contains(e.Reason, want.reason) {
			t.Errorf("%s: got %q, %q, %q; want %q, %q, %q", name, e.Tensor, e.Field, e.Reason, want.tensor, want.field, want.reason)
		}
		dir := t.TempDir()
		single(t, dir)
		writeFiles(t, dir, map[string]string{IndexName: string(data)})
		if _, err := Open(dir); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), IndexName) {
			t.Errorf("%s: opened: %v", name, err)
		}
	}
}

// FuzzIndex: no input panics, no accepted file name leaves the directory, and the one spelling reads back as itself.
func FuzzIndex(f *testing.F) {
	for _, pattern := range []string{"testdata/hostile-index/*.json", "testdata/vector/*.json"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			f.Fatal(err)
		}
		for _, path := range files {
			data, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) { checkIndex(t, data) })
}
