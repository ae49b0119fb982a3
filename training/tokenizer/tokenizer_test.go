package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFilesAreTheRecordedOnes(t *testing.T) {
	files := Files()
	recorded, err := os.ReadDir(filepath.Join("testdata", "tokenizer"))
	if err != nil {
		t.Fatal(err)
	}
	if len(recorded) != len(files) {
		t.Errorf("%d files, %d recorded", len(files), len(recorded))
	}
	for name, got := range files {
		want, err := os.ReadFile(filepath.Join("testdata", "tokenizer", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from the file that transformers was tested with", name)
		}
		if !json.Valid(got) {
			t.Errorf("%s is not JSON", name)
		}
	}
}

func TestVectorsOfTransformers(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Tokens []string
		Texts  []struct {
			Text string
			IDs  []int32
		}
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	if len(v.Tokens) != VocabSize || len(v.Texts) < 10 {
		t.Fatalf("%d tokens, %d texts", len(v.Tokens), len(v.Texts))
	}
	for i, want := range v.Tokens {
		if got := string(runeOf(i)); got != want {
			t.Errorf("token %d is %q, want %q", i, got, want)
		}
	}
	for _, x := range v.Texts {
		ids := Encode([]byte(x.Text))
		if !slices.Equal(ids, x.IDs) {
			t.Errorf("%q encodes as %v, want %v", x.Text, ids, x.IDs)
		}
		if got, err := Decode(ids); err != nil || string(got) != x.Text {
			t.Errorf("%q decodes as %q, %v", x.Text, got, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, id := range []int32{-1, 256, 1 << 30, -1 << 31} {
		if _, err := Decode([]int32{65, id}); !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), "position 1") {
			t.Errorf("id %d: %v", id, err)
		}
	}
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	if got, err := Decode(Encode(all)); err != nil || !bytes.Equal(got, all) {
		t.Errorf("all bytes: %v, %v", got, err)
	}
}

func TestParse(t *testing.T) {
	good := string(Files()[JSONFile])
	change := func(old, new string) string {
		if strings.Count(good, old) < 1 {
			t.Fatalf("%q is not in the file", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, text := range map[string]string{
		"ours":               good,
		"compact":            strings.NewReplacer("\n", "").Replace(good),
		"without defaults":   change(`"fuse_unk": false,`, ""),
		"decoder's own flag": good[:strings.Index(good, `"decoder"`)] + strings.Replace(good[strings.Index(good, `"decoder"`):], `"use_regex": false`, `"use_regex": true`, 1),
	} {
		if k, err := Parse([]byte(text)); err != nil || k != Bytes {
			t.Errorf("%s: %q, %v", name, k, err)
		}
	}
	for _, c := range []struct{ name, text, says string }{
		{"nothing", "", "unexpected EOF"},
		{"cut off", good[:len(good)/2], JSONFile},
		{"two values", good + "{}", "more than one value"},
		{"garbage after", good + "x", "invalid character"},
		{"too long", good + strings.Repeat(" ", MaxJSON), "at most"},
		{"too deep", strings.Repeat("[", 100), "nested deeper"},
		{"a list", "[]", "the file is not an object"},
		{"repeated key", change(`"version"`, `"padding"`), `"padding" appears twice`},
		{"another model", change(`"BPE"`, `"Unigram"`), `"model.type" is "Unigram", want "BPE"`},
		{"merges", change(`"merges": []`, `"merges": [["a","b"]]`), `"model.merges" is not empty`},
		{"another id", change(`"A": 65`, `"A": 66`), `"model.vocab.A" is 66, want 65`},
		{"id as a float", change(`"A": 65`, `"A": 65.0`), `"model.vocab.A" is 65.0`},
		{"id as text", change(`"A": 65`, `"A": "65"`), `"model.vocab.A" is "65"`},
		{"a token more", change(`"A": 65`, `"A": 65, "AA": 256`), `unknown field "model.vocab.AA"`},
		{"a token less", change(`"A": 65,`, ``), `"model.vocab.A" is missing`},
		{"special token", change(`"added_tokens": []`, `"added_tokens": [{"id": 256}]`), `"added_tokens" is not empty`},
		{"normalizer", change(`"normalizer": null`, `"normalizer": {"type": "NFC"}`), `"normalizer" is an object of type "NFC"`},
		{"prefix space", change(`"add_prefix_space": false`, `"add_prefix_space": true`), `"pre_tokenizer.add_prefix_space" is true`},
		{"regex", change(`"use_regex": false`, `"use_regex": true`), `"pre_tokenizer.use_regex" is true`},
		{"regex by default", change(`,
    "use_regex": false`, ``), `"pre_tokenizer.use_regex" is missing`},
		{"template", change(`"post_processor": null`, `"post_processor": {"type": "TemplateProcessing"}`), "TemplateProcessing"},
		{"dropout", change(`"dropout": null`, `"dropout": 0.1`), `"model.dropout" is 0.1`},
		{"new field", change(`"version"`, `"Version"`), `unknown field "Version"`},
	} {
		_, err := Parse([]byte(c.text))
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Files()[JSONFile])
	f.Add([]byte(`{"model":{"vocab":{}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := Parse(b)
		if err == nil && k != Bytes || err != nil && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("%q, %v", k, err)
		}
	})
}
