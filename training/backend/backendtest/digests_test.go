package backendtest

import (
	"os"
	"regexp"
	"slices"
	"testing"
)

// TestSpecification keeps docs/spec/exact.md and the recorded digests equal, and every entry of the battery recorded.
func TestSpecification(t *testing.T) {
	page, err := os.ReadFile("../../../docs/spec/exact.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| (\\w+) \\| `([0-9a-f]{32})` \\|$").FindAllStringSubmatch(string(page), -1) {
		listed[m[1]] = m[2]
	}
	all := slices.Concat(battery, blockBattery)
	if len(listed) != len(all) || len(digests) != len(all) {
		t.Errorf("%d entries in the battery, %d digests recorded, %d in docs/spec/exact.md", len(all), len(digests), len(listed))
	}
	for _, e := range all {
		if digests[e.name] == "" || listed[e.name] != digests[e.name] {
			t.Errorf("%s: recorded %q, docs/spec/exact.md says %q", e.name, digests[e.name], listed[e.name])
		}
	}
}

// TestSource pins the generator that the battery draws from: the first outputs of splitmix64 from 0, as published.
func TestSource(t *testing.T) {
	s := newSource(0)
	for i, want := range []uint64{0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4, 0x06c45d188009454f} {
		if got := s.next(); got != want {
			t.Errorf("output %d is %#x, want %#x", i, got, want)
		}
	}
	for range 1000 {
		if v := s.value(); v < -1 || v >= 1 || v*(1<<23) != float32(int32(v*(1<<23))) {
			t.Fatalf("%v is no multiple of 2⁻²³ in [−1, 1)", v)
		}
	}
}
