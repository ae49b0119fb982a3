package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/blockzero-net/bzd/training"
)

// meter shows a training run: a bar that rewrites its line on a terminal, a log line now and then elsewhere.
type meter struct {
	env   environment
	what  string
	start time.Time
	first int64 // tokens that were done before this process
	last  time.Time
	loss  float64
}

func newMeter(env environment, what string) *meter {
	return &meter{env: env, what: what, start: env.now(), first: -1}
}

// interval between two lines.
func (m *meter) interval() time.Duration {
	if m.env.terminal {
		return 100 * time.Millisecond
	}
	return 5 * time.Second
}

func (m *meter) report(p training.Progress) {
	per := p.Tokens / int64(p.Step)
	if m.first < 0 {
		m.first, m.loss = p.Tokens-per, p.Loss
	}
	m.loss += (p.Loss - m.loss) / 20
	now := m.env.now()
	done := p.Step == p.Steps
	if !done && now.Sub(m.last) < m.interval() {
		return
	}
	m.last = now
	rate := float64(p.Tokens-m.first) / max(now.Sub(m.start).Seconds(), 1e-3)
	eta := time.Duration(float64(int64(p.Steps)*per-p.Tokens) / rate * float64(time.Second)).Round(time.Second)
	line := fmt.Sprintf("%s  step %d/%d  loss %.4f  %.0f tokens/s  %v left", m.what, p.Step, p.Steps, m.loss, rate, eta)
	if !m.env.terminal {
		fmt.Fprintln(m.env.err, line)
		return
	}
	const width = 24
	full := width * p.Step / p.Steps
	fmt.Fprintf(m.env.err, "\r\x1b[K%s%s %s", strings.Repeat("█", full), strings.Repeat("░", width-full), line)
	if done {
		fmt.Fprintln(m.env.err)
	}
}

// table aligns columns.
func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 2, 0, 2, ' ', 0) }

func ints(v []int) string { return strings.Trim(fmt.Sprint(v), "[]") }
