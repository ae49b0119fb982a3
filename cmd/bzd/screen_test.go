package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node"
	"github.com/blockzero-net/bzd/node/devnet"
)

// terminal is as much of a terminal as the screen uses. Lines scroll out of its window into rows for good.
type terminal struct {
	t             *testing.T
	mu            sync.Mutex
	width, height int
	rows          [][]rune
	x, y          int // y counts from the first row ever
	escape        []byte
}

func (m *terminal) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range string(b) {
		m.put(r)
	}
	return len(b), nil
}

func (m *terminal) put(r rune) {
	if m.escape != nil {
		if m.escape = append(m.escape, byte(r)); r >= '@' && r != '[' {
			m.control(string(m.escape))
			m.escape = nil
		}
		return
	}
	switch {
	case r == '\x1b':
		m.escape = []byte{}
	case r == '\r':
		m.x = 0
	case r == '\n':
		m.x, m.y = 0, m.y+1 // with the carriage return that the tty adds
	case r < ' ':
		m.t.Errorf("control character %q", r)
	default:
		if m.x == m.width {
			m.x, m.y = 0, m.y+1
		}
		for len(m.rows) <= m.y {
			m.rows = append(m.rows, nil)
		}
		for len(m.rows[m.y]) <= m.x {
			m.rows[m.y] = append(m.rows[m.y], ' ')
		}
		m.rows[m.y][m.x] = r
		m.x++
	}
	for len(m.rows) <= m.y {
		m.rows = append(m.rows, nil)
	}
}

func (m *terminal) control(s string) {
	var n int
	switch {
	case s == "[J":
		m.rows = m.rows[:m.y+1]
		m.rows[m.y] = m.rows[m.y][:min(m.x, len(m.rows[m.y]))]
	case strings.HasSuffix(s, "A"):
		fmt.Sscanf(s, "[%dA", &n)
		if top := max(0, len(m.rows)-m.height); m.y-n < top {
			m.t.Errorf("goes %d lines up from line %d, the window begins at %d", n, m.y, top)
		}
		m.y -= n
	default:
		m.t.Errorf("sequence %q: it would have to be undone", s)
	}
}

func (m *terminal) size() (int, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.width, m.height
}

func (m *terminal) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var s strings.Builder
	for _, r := range m.rows {
		s.WriteString(strings.TrimRight(string(r), " ") + "\n")
	}
	return strings.TrimRight(s.String(), "\n")
}

func TestScreen(t *testing.T) {
	m := &terminal{t: t, width: 20, height: 6}
	s := &screen{out: m, size: m.size}
	print := func(text string) { s.Clear(); fmt.Fprint(m, text) }
	want := func(text string) {
		t.Helper()
		if got := m.String(); got != text {
			t.Errorf("the terminal shows\n%s\nwant\n%s", got, text)
		}
	}
	s.Draw([]string{"one", "two"})
	want("one\ntwo")
	print("log 1\n")
	want("log 1")
	s.Draw([]string{"a", strings.Repeat("x", 50), "bad \x1b[2J\ntext", "d", "e", "beyond the height"})
	want("log 1\na\n" + strings.Repeat("x", 19) + "\nbad [2Jtext\nd\ne")
	s.Draw([]string{"short"})
	want("log 1\nshort")
	s.Draw([]string{strings.Repeat("y", 19), "z"})
	m.width = 10 // the terminal becomes narrow and wraps what it holds
	m.rows = [][]rune{[]rune("log 1"), []rune(strings.Repeat("y", 10)), []rune(strings.Repeat("y", 9)), []rune("z"), nil}
	m.y = 4
	print("log 2\n")
	want("log 1\nlog 2")
	s.Clear()
	want("log 1\nlog 2")
}

func TestBar(t *testing.T) {
	for want, got := range map[string]string{
		"░░░░": bar(0, 9, 4, 7), "██░░": bar(5, 9, 4, 0), "████": bar(12, 9, 4, 0), "░█░░": bar(3, 0, 4, 5),
	} {
		if got != want {
			t.Errorf("bar %s, want %s", got, want)
		}
	}
}

// sampleCycle is a cycle of two miners of one group.
func sampleCycle(t uint64) devnet.Cycle {
	return devnet.Cycle{
		Cycle: t, Certified: true, DecisionMs: 110, Alpha: 0.5, CanaryBefore: 1.5, CanaryAfter: 1.6,
		Groups:      []devnet.Group{{Group: "go", Before: 3, After: 2}},
		Submissions: []devnet.Submission{{Miner: "go-1", Group: "go", Status: protocol.StatusOK, Bytes: 7}, {Miner: "go-2", Group: "go", Status: protocol.StatusLate, Bytes: 8, Reason: "why"}},
		Weights:     map[string]float64{"go-1": 1},
	}
}

// TestDevnetView drives the view as a network would, from many goroutines, and ends it in the middle of everything.
func TestDevnetView(t *testing.T) {
	m := &terminal{t: t, width: 150, height: 12}
	var out bytes.Buffer
	now := time.Unix(1000, 0)
	env := environment{out: &out, err: m, terminal: true, now: func() time.Time { return now }}
	v := newDevnetView(env, false, 9, m.size)
	v.chain(now.Add(-31*time.Second), time.Second)
	var wg sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprintf("validator-%d", i+1)
		wg.Go(func() {
			v.event(name, node.Event{Kind: node.Phase, Text: "evaluate", Cycle: 1})
			v.event(name, node.Event{Kind: node.Evaluating, Cycle: 1, Done: 5 * i, Total: 20})
		})
	}
	wg.Go(func() {
		v.event("go-1", node.Event{Kind: node.Fetching, Text: "checkpoint", Done: 5, Bytes: 2_500_000})
	})
	wg.Go(func() { v.event("go-2", node.Event{Kind: node.Trouble, Cycle: 1, Text: "disk\nfull"}) })
	wg.Wait()
	for i := range 20 {
		v.cycle(sampleCycle(uint64(i)), false)
	}
	v.frame()
	shown := m.String()
	for _, want := range []string{
		"cycle 2  go-2: disk; full\n", "block 31  cycle 2, 20 of 9 done  evaluate", "validator-1  ░░░░░░", "validator-3  ████████████░░░░░░░░░░░░  evaluate 10/20",
		"fetch checkpoint 2.5 MB", "base → next", "\n20     ",
	} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
	if strings.Contains(shown, "\n3     ") {
		t.Errorf("the table leaves no room:\n%s", shown)
	}
	v.event("validator-1", node.Event{Kind: node.Evaluating, Cycle: 1, Done: 20, Total: 20})
	v.frame()
	if shown := m.String(); strings.Contains(shown, "validator-1") {
		t.Errorf("who is done still has a bar:\n%s", shown)
	}
	v.close()
	v.close()
	if got := m.String(); got != "   0.0s  cycle 2  go-2: disk; full" {
		t.Errorf("left on the terminal:\n%s", got)
	}
	if out.Len() > 0 {
		t.Errorf("on standard output: %s", out.String())
	}
}

// TestDevnetLog is the same without a terminal: lines, no control characters, and each cycle as it ends.
func TestDevnetLog(t *testing.T) {
	var out, log bytes.Buffer
	env := environment{out: &out, err: &log, now: func() time.Time { return time.Unix(1000, 0) }}
	v := newDevnetView(env, false, 2, nil)
	for _, name := range []string{"validator-1", "validator-2"} {
		v.event(name, node.Event{Kind: node.Phase, Text: "evaluate"})
		v.event(name, node.Event{Kind: node.Evaluating, Done: 1, Total: 2})
	}
	v.cycle(sampleCycle(0), false)
	if got := log.String(); got != "   0.0s  cycle 1  validator-1  evaluate\n" {
		t.Errorf("log %q", got)
	}
	if got := out.String(); !strings.Contains(got, "cycle 1  ") || !strings.Contains(got, "go-2") || !strings.Contains(got, "why") {
		t.Errorf("out %q", got)
	}
	out.Reset()
	if err := v.result(devnet.Result{Cycles: []devnet.Cycle{sampleCycle(0), sampleCycle(1)}, Gateway: "http://g"}, false, true, "d"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"base → next", "2      ", "110 ms", "1.000 ok", "curl -O http://g/ipfs/", "bzd sample --checkpoint d "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
	if strings.ContainsRune(out.String()+log.String(), '\x1b') {
		t.Error("control characters in a log")
	}
}
