package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of a file that [Read] reads; what is over them is refused before it
// is kept.
const (
	MaxFile   = 64 << 20 // bytes
	MaxTokens = 1 << 20  // ids are below it
	MaxMerges = 1 << 20
	MaxAdded  = 1 << 16
	MaxToken  = 4096    // bytes of one token
	maxNodes  = 1 << 20 // JSON values outside vocab and merges
)

// FileError says what in a file is wrong or not supported. It is an
// [ErrUnsupported].
type FileError struct {
	File   string
	Field  string // as in model.merges[3]; empty for the whole file
	Reason error
}

func (e *FileError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("tokenizer: %v: %s: %v", ErrUnsupported, e.File, e.Reason)
	}
	return fmt.Sprintf("tokenizer: %v: %s: %s: %v", ErrUnsupported, e.File, quote(e.Field), e.Reason)
}

// Unwrap gives [ErrUnsupported] and the reason.
func (e *FileError) Unwrap() []error { return []error{ErrUnsupported, e.Reason} }

// Read reads a tokenizer.json of the byte-level and byte-fallback BPE
// families; docs/spec/tokenizer.md lists what it knows. Everything else is
// refused with a [*FileError] that names the field: a tokenizer is either
// equal to the reference library's or not read. file is the name for errors.
func Read(file string, tokenizerJSON []byte) (*Tokenizer, error) {
	r := &reader{budget: maxNodes}
	t, err := r.read(tokenizerJSON)
	if err != nil {
		var fe *FileError
		if !errors.As(err, &fe) {
			fe = &FileError{Field: r.at, Reason: err}
		}
		fe.File = file
		return nil, fe
	}
	return t, nil
}

type reader struct {
	at     string // the field being read, for errors of JSON itself
	budget int
	dec    *json.Decoder
	top    map[string]any // without model
	model  map[string]any // without vocab and merges
	vocab  map[string]int32
	merges [][2]string
}

func wrong(field, format string, args ...any) error {
	return &FileError{Field: field, Reason: fmt.Errorf(format, args...)}
}

func (r *reader) read(data []byte) (*Tokenizer, error) {
	if len(data) > MaxFile {
		return nil, wrong("", "it has %d bytes, at most %d are read", len(data), MaxFile)
	}
	if !utf8.Valid(data) {
		return nil, wrong("", "it is not UTF-8")
	}
	r.dec = json.NewDecoder(bytes.NewReader(data))
	r.dec.UseNumber()
	r.top = map[string]any{}
	err := r.object("", func(key string) error {
		if key == "model" {
			return r.readModel()
		}
		v, err := value(r.dec, 1, &r.budget)
		r.top[key] = v
		return err
	})
	if err != nil {
		return nil, err
	}
	r.at = ""
	if _, err := r.dec.Token(); err == nil {
		return nil, wrong("", "more than one value")
	} else if err != io.EOF {
		return nil, err
	}
	return r.build()
}

// object walks a JSON object; f reads the value of each key.
func (r *reader) object(path string, f func(key string) error) error {
	if err := r.delim('{', path, "an object"); err != nil {
		return err
	}
	seen := map[string]bool{}
	for r.dec.More() {
		k, err := r.dec.Token()
		if err != nil {
			return err
		}
		key, _ := k.(string)
		if seen[key] {
			return wrong(join(path, key), "appears twice")
		}
		if len(seen) >= MaxTokens {
			return wrong(path, "more than %d entries", MaxTokens)
		}
		seen[key] = true
		r.at = join(path, key)
		if err := f(key); err != nil {
			return err
		}
	}
	_, err := r.dec.Token()
	return err
}

func (r *reader) delim(want json.Delim, path, what string) error {
	tok, err := r.dec.Token()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	if tok != want {
		return wrong(path, "is not %s", what)
	}
	return nil
}

func (r *reader) readModel() error {
	r.model = map[string]any{}
	return r.object("model", func(key string) (err error) {
		switch key {
		case "vocab":
			return r.readVocab()
		case "merges":
			return r.readMerges()
		}
		r.model[key], err = value(r.dec, 2, &r.budget)
		return err
	})
}

func (r *reader) readVocab() error {
	r.vocab = map[string]int32{}
	return r.object("model.vocab", func(token string) error {
		field := join("model.vocab", token)
		if len(token) > MaxToken {
			return wrong(field, "a token of %d bytes, at most %d are read", len(token), MaxToken)
		}
		v, err := r.dec.Token()
		if err != nil {
			return err
		}
		id, err := tokenID(field, v)
		r.vocab[token] = id
		return err
	})
}

func tokenID(field string, v any) (int32, error) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, wrong(field, "is %s, want an id", show(v))
	}
	id, err := n.Int64()
	if err != nil || id < 0 || id >= MaxTokens {
		return 0, wrong(field, "is %s, want an id from 0 to %d", quoteNumber(n), MaxTokens-1)
	}
	return int32(id), nil
}

// readMerges reads "a b" and ["a", "b"], whichever the first one is.
func (r *reader) readMerges() error {
	const path = "model.merges"
	if err := r.delim('[', path, "a list"); err != nil {
		return err
	}
	for i, pairs := 0, false; r.dec.More(); i++ {
		r.at = fmt.Sprintf("%s[%d]", path, i)
		if i >= MaxMerges {
			return wrong(path, "more than %d merges", MaxMerges)
		}
		tok, err := r.dec.Token()
		if err != nil {
			return err
		}
		if i == 0 {
			pairs = tok == json.Delim('[')
		}
		var m []string
		switch x := tok.(type) {
		case string:
			if pairs {
				return wrong(r.at, "is a string, the first one is a pair")
			}
			if strings.HasPrefix(x, "#version") {
				continue
			}
			m = strings.Split(x, " ")
		case json.Delim:
			if x != '[' || !pairs {
				return wrong(r.at, "is not a string like the first one")
			}
			for r.dec.More() {
				part, err := r.dec.Token()
				if err != nil {
					return err
				}
				s, ok := part.(string)
				if !ok || len(m) == 2 {
					return wrong(r.at, "is not a pair of tokens")
				}
				m = append(m, s)
			}
			if _, err := r.dec.Token(); err != nil {
				return err
			}
		}
		if len(m) != 2 {
			return wrong(r.at, "is not a pair of tokens")
		}
		r.merges = append(r.merges, [2]string(m))
	}
	_, err := r.dec.Token()
	if r.merges == nil {
		r.merges = [][2]string{}
	}
	return err
}

// build checks the parts in the order in which a text goes through them.
func (r *reader) build() (*Tokenizer, error) {
	if r.model == nil {
		return nil, wrong("model", "is missing")
	}
	t := &Tokenizer{tables: loadTables()}
	o := object{path: "", m: r.top}
	if v := o.take("version"); v != nil && v != "1.0" {
		return nil, wrong("version", "is %s, want \"1.0\"", show(v))
	}
	for _, k := range []string{"truncation", "padding"} {
		if v := o.take(k); v != nil {
			return nil, wrong(k, "is set: it would change the tokens of a text; write null")
		}
	}
	pt, err := readPre(t, "pre_tokenizer", o.take("pre_tokenizer"))
	if err != nil {
		return nil, err
	}
	byteLevel := pt.byteLevel
	if err := readNormalizer(t, "normalizer", o.take("normalizer")); err != nil {
		return nil, err
	}
	if m := t.pre.meta; m != nil && m.scheme == "first" && len(t.normalise) > 0 {
		return nil, wrong("pre_tokenizer.prepend_scheme", "is \"first\" beside a normalizer; only one of the two is supported")
	}
	if err := r.buildModel(t, byteLevel); err != nil {
		return nil, err
	}
	if err := readAdded(t, o.take("added_tokens"), len(r.vocab)); err != nil {
		return nil, err
	}
	if err := readPost(t, "post_processor", o.take("post_processor")); err != nil {
		return nil, err
	}
	if err := readDecoder(t, o.take("decoder"), byteLevel); err != nil {
		return nil, err
	}
	return t, o.done()
}

// setToken gives an id its token.
func (t *Tokenizer) setToken(token string, id int32) error {
	if int(id) >= len(t.tokens) {
		n := int(id) + 1 - len(t.tokens)
		t.tokens = append(t.tokens, make([]string, n)...)
		t.known = append(t.known, make([]bool, n)...)
		t.special = append(t.special, make([]bool, n)...)
		t.bytes = append(t.bytes, make([][]byte, n)...)
	}
	if t.known[id] && t.tokens[id] != token {
		a, b := min(token, t.tokens[id]), max(token, t.tokens[id])
		return fmt.Errorf("id %d is that of %s and of %s", id, quote(a), quote(b))
	}
	raw, ok := rawBytes(token)
	if !ok {
		raw = []byte(token)
	}
	t.tokens[id], t.known[id], t.bytes[id], t.ids[token] = token, true, raw, id
	return nil
}

func (r *reader) buildModel(t *Tokenizer, byteLevel bool) error {
	o := object{path: "model", m: r.model}
	if v, ok := r.model["type"]; ok && v != "BPE" {
		return wrong("model.type", "is %s, only \"BPE\" is supported", show(v))
	}
	o.take("type")
	if v := o.take("dropout"); v != nil && v != json.Number("0") && v != json.Number("0.0") {
		return wrong("model.dropout", "is %s: tokens would be random", show(v))
	}
	for _, k := range []string{"continuing_subword_prefix", "end_of_word_suffix"} {
		if v := o.take(k); v != nil && v != "" {
			return wrong("model."+k, "is %s, it is not supported", show(v))
		}
	}
	m := &t.model
	m.byteLevel = byteLevel
	var err error
	for _, f := range []struct {
		key string
		to  *bool
	}{{"fuse_unk", &m.fuseUnk}, {"byte_fallback", &m.byteFallback}, {"ignore_merges", &m.ignoreMerges}} {
		if *f.to, err = o.bool(f.key, false); err != nil {
			return err
		}
	}
	if r.vocab == nil {
		return wrong("model.vocab", "is missing")
	}
	if r.merges == nil {
		return wrong("model.merges", "is missing")
	}
	m.vocab = r.vocab
	t.ids = make(map[string]int32, len(r.vocab))
	for _, token := range sortedKeys(r.vocab) {
		if err := t.setToken(token, r.vocab[token]); err != nil {
			return &FileError{Field: "model.vocab", Reason: err}
		}
	}
	m.unk = -1
	if v := o.take("unk_token"); v != nil {
		s, ok := v.(string)
		if id, there := r.vocab[s]; ok && there {
			m.unk = id
		} else {
			return wrong("model.unk_token", "is %s, not a token of the vocabulary", show(v))
		}
	}
	m.merges = make(map[uint64]merge, len(r.merges))
	merged := make([]string, len(r.merges))
	for i, x := range r.merges {
		both := x[0] + x[1]
		for _, token := range []string{x[0], x[1], both} {
			if _, ok := r.vocab[token]; !ok {
				return wrong(fmt.Sprintf("model.merges[%d]", i), "%s is not in the vocabulary", quote(token))
			}
		}
		merged[i] = both
		m.merges[pair(r.vocab[x[0]], r.vocab[x[1]])] = merge{int32(i), r.vocab[both]}
	}
	if field, err := m.finish(merged); err != nil {
		return &FileError{Field: field, Reason: err}
	}
	return o.done()
}

// object reads the fields of a JSON object and knows which ones are left.
type object struct {
	path  string
	m     map[string]any
	taken []string
}

func asObject(path string, v any) (*object, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return nil, wrong(path, "is %s, want an object", show(v))
	}
	return &object{path: path, m: m}, nil
}

// take returns a field, nil if it is null or not there.
func (o *object) take(key string) any {
	o.taken = append(o.taken, key)
	return o.m[key]
}

func (o *object) bool(key string, missing bool) (bool, error) {
	v, there := o.m[key]
	o.taken = append(o.taken, key)
	if !there {
		return missing, nil
	}
	b, ok := v.(bool)
	if !ok {
		return false, wrong(join(o.path, key), "is %s, want true or false", show(v))
	}
	return b, nil
}

func (o *object) string(key string) (string, error) {
	v := o.take(key)
	s, ok := v.(string)
	if !ok {
		return "", wrong(join(o.path, key), "is %s, want a string", show(v))
	}
	if len(s) > MaxToken {
		return "", wrong(join(o.path, key), "has %d bytes, at most %d are read", len(s), MaxToken)
	}
	return s, nil
}

func (o *object) list(key string) ([]any, error) {
	v := o.take(key)
	l, ok := v.([]any)
	if !ok {
		return nil, wrong(join(o.path, key), "is %s, want a list", show(v))
	}
	return l, nil
}

// done refuses the first field that nothing took: what is not understood may
// change the tokens.
func (o *object) done() error {
	for _, k := range sortedKeys(o.m) {
		if !slices.Contains(o.taken, k) {
			return wrong(join(o.path, k), "unknown field")
		}
	}
	return nil
}
