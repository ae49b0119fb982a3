package protocol

import (
	"cmp"
	"os"
	"reflect"
	"regexp"
	"slices"
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
