package protocol

import (
	"cmp"
	"errors"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestSpecTables compares the tables of docs/spec/records.md with the structs: the same fields, in encoded order.
func TestSpecTables(t *testing.T) {
	text, err := os.ReadFile("../../docs/spec/records.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{
		Rational{}, ExpertRef{}, Group{}, Domain{}, Genesis{}, Params{}, ProtocolState{}, DeltaHeader{}, TensorEntry{}, Row{}, MergeRow{}, MergeMeasure{},
		Schedule{}, Snapshot{}, Participant{}, Binding{}, Head{}, Commitment{}, Manifest{}, Segment{}, Attestation{}, List{}, ListEntry{},
		ScoreCommit{}, ScoreVector{}, GroupRows{}, MergeVector{}, Proposal{}, Value{}, WeightsValue{}, MinerWeight{}, MergeValue{},
		Vote{}, StatusVote{}, Lock{}, VoteSig{}, Certificate{}, EquivocationProof{}, Submission{}, MinerWeight16{},
	} {
		typ := reflect.TypeOf(v)
		var want []string
		for i := range typ.NumField() {
			want = append(want, typ.Field(i).Tag.Get("cbor"))
		}
		slices.SortFunc(want, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
		// The table headed by the type, or by "field" right under the type's heading.
		head := regexp.MustCompile(`(?m)^(## ` + typ.Name() + `\b[^|]*\| field|\| ` + typ.Name() + `) \| type .*\n\|---.*\n((\|.*\n)+)`)
		table := head.FindStringSubmatch(string(text))
		if table == nil {
			t.Errorf("no table for %s", typ.Name())
			continue
		}
		var got []string
		for row := range strings.Lines(table[2]) {
			for _, name := range regexp.MustCompile("`[a-z]+`").FindAllString(strings.Split(row, "|")[1], -1) {
				got = append(got, strings.Trim(name, "`"))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: the table has %v, the record %v", typ.Name(), got, want)
		}
	}
}

// TestSpecLimits compares the limits in the headings of docs/spec/records.md with the decoders.
func TestSpecLimits(t *testing.T) {
	text, err := os.ReadFile("../../docs/spec/records.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]int)
	for heading := range strings.Lines(string(text)) {
		if !strings.HasPrefix(heading, "## ") {
			continue
		}
		for _, m := range regexp.MustCompile(`([A-Z][A-Za-z]+), ≤ ([0-9]+) (bytes|KiB|MiB)`).FindAllStringSubmatch(heading, -1) {
			n, err := strconv.Atoi(m[2])
			if err != nil {
				t.Fatal(err)
			}
			documented[m[1]] = n * map[string]int{"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20}[m[3]]
		}
	}
	for _, r := range records {
		name := reflect.TypeOf(r.sample).Name()
		limit, ok := documented[name]
		if !ok {
			t.Errorf("no limit of a %s", name)
			continue
		}
		if _, err := r.decode(make([]byte, limit)); errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %d bytes are too long: %v", name, limit, err)
		}
		if _, err := r.decode(make([]byte, limit+1)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %d bytes are not too long: %v", name, limit+1, err)
		}
	}
}
