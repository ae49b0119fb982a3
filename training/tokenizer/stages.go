package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxStages is how many steps a sequence of any kind may have, and how deep
// sequences may lie in sequences.
const maxStages = 16

// Bounds against a file that makes a text, or the search for its tokens, grow
// without measure: the length of what a step puts in, of which one of a kind
// is enough, and the length of all added tokens together.
const (
	maxInserted   = 64
	maxAddedBytes = 1 << 20
)

// once refuses a second step of a kind.
func once(seen map[any]bool, path string, kind any) error {
	if seen[kind] {
		return wrong(path+".type", "a second %s is not supported", kind)
	}
	seen[kind] = true
	return nil
}

// each stage of a sequence, or the value itself if it is not one.
func sequence(path, key string, v any) (paths []string, stages []any, err error) {
	o, err := asObject(path, v)
	if err != nil {
		return nil, nil, err
	}
	if o.m["type"] != "Sequence" {
		return []string{path}, []any{v}, nil
	}
	o.take("type")
	stages, err = o.list(key)
	if err != nil {
		return nil, nil, err
	}
	if len(stages) > maxStages {
		return nil, nil, wrong(join(path, key), "%d steps, at most %d are read", len(stages), maxStages)
	}
	for i, s := range stages {
		at := fmt.Sprintf("%s.%s[%d]", path, key, i)
		if m, ok := s.(map[string]any); ok && m["type"] == "Sequence" {
			return nil, nil, wrong(at, "a sequence in a sequence is not supported")
		}
		paths = append(paths, at)
	}
	return paths, stages, o.done()
}

func unknown(path, what string, o *object) error {
	return wrong(path+".type", "%s %s is not supported", what, show(o.m["type"]))
}

func readNormalizer(t *Tokenizer, path string, v any) error {
	if v == nil {
		return nil
	}
	paths, stages, err := sequence(path, "normalizers", v)
	if err != nil {
		return err
	}
	seen := map[any]bool{}
	for i, s := range stages {
		o, err := asObject(paths[i], s)
		if err != nil {
			return err
		}
		var f func(*tables, []byte) []byte
		kind := o.take("type")
		if err := once(seen, paths[i], kind); err != nil {
			return err
		}
		switch kind {
		case "NFC":
			f = (*tables).nfc
		case "Prepend":
			p, err := o.string("prepend")
			if err != nil {
				return err
			}
			if len(p) > maxInserted {
				return wrong(join(paths[i], "prepend"), "has %d bytes, at most %d are read", len(p), maxInserted)
			}
			f = func(_ *tables, text []byte) []byte {
				if len(text) == 0 {
					return text
				}
				return slices.Concat([]byte(p), text)
			}
		case "Replace":
			from, to, err := readReplace(o)
			if err != nil {
				return err
			}
			f = func(_ *tables, text []byte) []byte { return bytes.ReplaceAll(text, []byte(from), []byte(to)) }
		default:
			return unknown(paths[i], "normalizer", o)
		}
		if err := o.done(); err != nil {
			return err
		}
		t.normalise = append(t.normalise, f)
	}
	return nil
}

// readReplace reads the pattern, a plain string, and the content of a Replace.
func readReplace(o *object) (from, to string, err error) {
	at := join(o.path, "pattern")
	p, err := asObject(at, o.take("pattern"))
	if err != nil {
		return "", "", err
	}
	if rx, ok := p.m["Regex"]; ok {
		return "", "", wrong(at+".Regex", "the regular expression %s is not supported", show(rx))
	}
	if from, err = p.string("String"); err != nil {
		return "", "", err
	}
	if from == "" {
		return "", "", wrong(at+".String", "is empty")
	}
	if to, err = o.string("content"); err != nil {
		return "", "", err
	}
	if len(to) > maxInserted {
		return "", "", wrong(join(o.path, "content"), "has %d bytes, at most %d are read", len(to), maxInserted)
	}
	return from, to, p.done()
}

type preKind struct{ byteLevel bool }

func readPre(t *Tokenizer, path string, v any) (preKind, error) {
	if v == nil {
		return preKind{}, nil
	}
	paths, stages, err := sequence(path, "pretokenizers", v)
	if err != nil {
		return preKind{}, err
	}
	if len(stages) == 0 {
		return preKind{}, nil
	}
	last := len(stages) - 1
	for i, s := range stages {
		o, err := asObject(paths[i], s)
		if err != nil {
			return preKind{}, err
		}
		switch kind := o.take("type"); {
		case kind == "Split" && i == 0 && last == 1:
			err = readSplit(t, o)
		case kind == "Split":
			err = wrong(paths[i], "Split is only supported as the first of two, before ByteLevel")
		case kind == "ByteLevel" && i == last:
			err = readByteLevel(t, o)
		case kind == "Metaspace" && last == 0:
			return preKind{}, readMetaspace(t, o)
		case kind == "ByteLevel" || kind == "Metaspace":
			err = wrong(paths[i], "%s is not supported at this place of a sequence", kind)
		default:
			err = unknown(paths[i], "pre-tokenizer", o)
		}
		if err != nil {
			return preKind{}, err
		}
	}
	return preKind{byteLevel: true}, nil
}

func readSplit(t *Tokenizer, o *object) error {
	at := join(o.path, "pattern")
	p, err := asObject(at, o.take("pattern"))
	if err != nil {
		return err
	}
	if s, ok := p.m["String"]; ok {
		return wrong(at+".String", "splitting at %s is not supported", show(s))
	}
	pattern, err := p.string("Regex")
	if err != nil {
		return err
	}
	if t.pre.scan = scannerOf(pattern); t.pre.scan == nil {
		return wrong(at+".Regex", "the pattern %s is not one of those supported", strings.ToValidUTF8(show(pattern), ""))
	}
	if err := p.done(); err != nil {
		return err
	}
	if b := o.take("behavior"); b != "Isolated" {
		return wrong(join(o.path, "behavior"), "is %s, only \"Isolated\" is supported", show(b))
	}
	if inv, err := o.bool("invert", false); err != nil || inv {
		if err == nil {
			err = wrong(join(o.path, "invert"), "is true, only false is supported")
		}
		return err
	}
	return o.done()
}

func readByteLevel(t *Tokenizer, o *object) error {
	prefix, err := o.bool("add_prefix_space", true)
	if err != nil {
		return err
	}
	if _, err := o.bool("trim_offsets", true); err != nil { // offsets are not used
		return err
	}
	regex, err := o.bool("use_regex", true)
	if err != nil {
		return err
	}
	if t.pre.scan != nil {
		if prefix {
			return wrong(join(o.path, "add_prefix_space"), "is true after Split, which is not supported")
		}
		if regex {
			return wrong(join(o.path, "use_regex"), "is true after Split, which is not supported")
		}
	}
	t.pre.prefixSpace = prefix
	if regex {
		t.pre.scan = scanGPT2
	}
	return o.done()
}

func readMetaspace(t *Tokenizer, o *object) error {
	m := &metaspaceOptions{scheme: "always"}
	c, err := o.string("replacement")
	if err != nil {
		return err
	}
	if utf8.RuneCountInString(c) != 1 {
		return wrong(join(o.path, "replacement"), "is %s, want one character", quote(c))
	}
	m.replacement = []byte(c)
	if o.m["prepend_scheme"] != nil {
		if m.scheme, err = o.string("prepend_scheme"); err != nil {
			return err
		}
	}
	o.take("prepend_scheme")
	if !slices.Contains([]string{"always", "first", "never"}, m.scheme) {
		return wrong(join(o.path, "prepend_scheme"), "is %s, want always, first or never", quote(m.scheme))
	}
	if v := o.take("add_prefix_space"); v == false {
		if m.scheme != "never" {
			return wrong(join(o.path, "add_prefix_space"), "is false, which contradicts prepend_scheme %s", quote(m.scheme))
		}
	} else if v != nil && v != true {
		return wrong(join(o.path, "add_prefix_space"), "is %s, want true or false", show(v))
	}
	o.take("str_rep") // of old files; the library ignores it too
	if m.split = true; o.m["split"] != nil {
		if m.split, err = o.bool("split", true); err != nil {
			return err
		}
	}
	o.take("split")
	t.pre.meta = m
	return o.done()
}

func readAdded(t *Tokenizer, v any, vocab int) error {
	if v == nil {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		return wrong("added_tokens", "is %s, want a list", show(v))
	}
	if len(list) > MaxAdded {
		return wrong("added_tokens", "%d tokens, at most %d are read", len(list), MaxAdded)
	}
	seen := map[string]bool{}
	next, total := int32(vocab), 0
	for i, x := range list {
		at := fmt.Sprintf("added_tokens[%d]", i)
		o, err := asObject(at, x)
		if err != nil {
			return err
		}
		var a addedToken
		if a.content, err = o.string("content"); err != nil {
			return err
		}
		if a.id, err = tokenID(at+".id", o.take("id")); err != nil {
			return err
		}
		for _, f := range []struct {
			key string
			to  *bool
		}{{"single_word", &a.singleWord}, {"lstrip", &a.lstrip}, {"rstrip", &a.rstrip}, {"normalized", &a.normalized}, {"special", &a.special}} {
			if _, there := o.m[f.key]; !there {
				return wrong(join(at, f.key), "is missing")
			}
			if *f.to, err = o.bool(f.key, false); err != nil {
				return err
			}
		}
		if err := o.done(); err != nil {
			return err
		}
		if a.content == "" {
			return wrong(at+".content", "is empty")
		}
		if seen[a.content] {
			return wrong(at+".content", "%s is there twice", quote(a.content))
		}
		seen[a.content] = true
		// The library gives a token its id of the vocabulary, else the next
		// after it, whatever the file says.
		want, there := t.ids[a.content]
		if !there {
			want = next
			next++
		}
		if a.id != want {
			return wrong(at+".id", "is %d, the library would take %d for %s", a.id, want, quote(a.content))
		}
		if err := t.setToken(a.content, a.id); err != nil {
			return &FileError{Field: at + ".id", Reason: err}
		}
		t.special[a.id] = a.special
		pattern, m := []byte(a.content), &t.raw
		if a.normalized {
			for _, f := range t.normalise {
				pattern = f(t.tables, pattern)
			}
			m = &t.normalised
		}
		if len(pattern) == 0 {
			return wrong(at+".content", "%s is normalised to nothing", quote(a.content))
		}
		if total += len(pattern); total > maxAddedBytes {
			return wrong(at+".content", "the added tokens have more than %d bytes", maxAddedBytes)
		}
		if !m.add(pattern, a) {
			return wrong(at+".content", "%s is normalised to what another one is", quote(a.content))
		}
	}
	return nil
}

func readPost(t *Tokenizer, path string, v any) error {
	if v == nil {
		return nil
	}
	paths, stages, err := sequence(path, "processors", v)
	if err != nil {
		return err
	}
	for i, s := range stages {
		o, err := asObject(paths[i], s)
		if err != nil {
			return err
		}
		switch o.take("type") {
		case "ByteLevel": // it changes offsets only, which are not used
			for _, k := range []string{"add_prefix_space", "trim_offsets", "use_regex"} {
				if _, err := o.bool(k, true); err != nil {
					return err
				}
			}
		case "TemplateProcessing":
			if err := readTemplate(t, o); err != nil {
				return err
			}
		default:
			return unknown(paths[i], "post-processor", o)
		}
		if err := o.done(); err != nil {
			return err
		}
	}
	return nil
}

func readTemplate(t *Tokenizer, o *object) error {
	o.take("pair") // for two texts at once, which nothing here has
	special, err := asObject(join(o.path, "special_tokens"), o.take("special_tokens"))
	if err != nil {
		return err
	}
	single, err := o.list("single")
	if err != nil {
		return err
	}
	if len(single) > maxStages {
		return wrong(join(o.path, "single"), "%d parts, at most %d are read", len(single), maxStages)
	}
	var ends [2][]int32
	side := 0
	for i, x := range single {
		at := fmt.Sprintf("%s.single[%d]", o.path, i)
		part, err := asObject(at, x)
		if err != nil {
			return err
		}
		if q, ok := part.m["Sequence"].(map[string]any); ok && len(part.m) == 1 {
			if q["id"] != "A" || side == 1 {
				return wrong(at, "the text is not there exactly once")
			}
			side = 1
			continue
		}
		s, ok := part.m["SpecialToken"].(map[string]any)
		name, isString := s["id"].(string)
		if !ok || !isString || len(part.m) != 1 {
			return wrong(at, "is neither a Sequence nor a SpecialToken")
		}
		ids, err := templateIDs(t, special, name)
		if err != nil {
			return err
		}
		ends[side] = append(ends[side], ids...)
	}
	if side == 0 {
		return wrong(join(o.path, "single"), "the text is not in it")
	}
	t.prefix = append(ends[0], t.prefix...)
	t.suffix = append(t.suffix, ends[1]...)
	return nil
}

func templateIDs(t *Tokenizer, special *object, name string) ([]int32, error) {
	at := join(special.path, name)
	o, err := asObject(at, special.m[name])
	if err != nil {
		return nil, err
	}
	list, err := o.list("ids")
	if err != nil {
		return nil, err
	}
	if len(list) > maxStages {
		return nil, wrong(join(at, "ids"), "%d ids, at most %d are read", len(list), maxStages)
	}
	var ids []int32
	for _, x := range list {
		id, err := tokenID(join(at, "ids"), x)
		if err != nil {
			return nil, err
		}
		if t.check([]int32{id}) != nil {
			return nil, wrong(join(at, "ids"), "%d is not a token", id)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func readDecoder(t *Tokenizer, v any, byteLevel bool) error {
	if v == nil {
		return wrong("decoder", "is missing")
	}
	paths, stages, err := sequence("decoder", "decoders", v)
	if err != nil {
		return err
	}
	if len(stages) == 0 {
		return wrong("decoder", "is empty")
	}
	seen := map[any]bool{}
	for i, s := range stages {
		o, err := asObject(paths[i], s)
		if err != nil {
			return err
		}
		kind := o.take("type")
		if (kind == "ByteLevel") != byteLevel || byteLevel && len(stages) > 1 {
			return wrong(paths[i]+".type", "the decoder %s is not supported with this pre-tokenizer", show(kind))
		}
		if err := once(seen, paths[i], kind); err != nil {
			return err
		}
		var d decoder
		switch kind {
		case "ByteLevel":
			for _, k := range []string{"add_prefix_space", "trim_offsets", "use_regex"} {
				if _, err := o.bool(k, true); err != nil {
					return err
				}
			}
		case "Replace":
			from, to, err := readReplace(o)
			if err != nil {
				return err
			}
			d = each(func(_ int, x string) string { return strings.ReplaceAll(x, from, to) })
		case "ByteFallback":
			d = byteFallback
		case "Fuse":
			d = fuse
		case "Strip":
			d, err = readStrip(o)
		case "Metaspace":
			var as Tokenizer
			if err = readMetaspace(&as, o); err == nil {
				d = metaspaceDecoder(as.pre.meta)
			}
		default:
			return unknown(paths[i], "decoder", o)
		}
		if err != nil {
			return err
		}
		if err := o.done(); err != nil {
			return err
		}
		if d != nil {
			t.decoders = append(t.decoders, d)
		}
	}
	return nil
}

func metaspaceDecoder(m *metaspaceOptions) decoder {
	c := string(m.replacement)
	return each(func(i int, x string) string {
		if i == 0 && m.scheme != "never" {
			return strings.ReplaceAll(x, c, "")
		}
		return strings.ReplaceAll(x, c, " ")
	})
}

func readStrip(o *object) (decoder, error) {
	c, err := o.string("content")
	if err != nil {
		return nil, err
	}
	if utf8.RuneCountInString(c) != 1 {
		return nil, wrong(join(o.path, "content"), "is %s, want one character", quote(c))
	}
	var n [2]int64
	for i, k := range []string{"start", "stop"} {
		v, ok := o.take(k).(json.Number)
		if ok {
			n[i], err = v.Int64()
		}
		if !ok || err != nil || n[i] < 0 {
			return nil, wrong(join(o.path, k), "is %s, want a number", show(o.m[k]))
		}
	}
	if n[1] != 0 {
		return nil, wrong(join(o.path, "stop"), "is %d, only 0 is supported", n[1])
	}
	return each(func(_ int, x string) string {
		for range n[0] {
			if !strings.HasPrefix(x, c) {
				break
			}
			x = x[len(c):]
		}
		return x
	}), nil
}
