package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/blockzero-net/bzd/consensus/sim"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/devnet"
)

// What the agreement is to keep, in a network with a twentieth of the messages lost and three tenths of the validators silent.
const (
	targetDirect = 1000       // ms: the 99th percentile of decisions with direct messages
	targetGossip = 2500       // with gossip alone
	targetBytes  = 12_000_000 // a cycle, of one validator, each way
	targetRate   = 50_000     // messages a second on one processor, signatures apart
)

// agreementReport is what bench agreement measured.
type agreementReport struct {
	WAN     []sim.Figures  `json:"wan,omitempty"`
	Machine *machineRate   `json:"machine,omitempty"`
	Hosts   []hostsFigures `json:"hosts,omitempty"`
	// Missed are the targets that were missed.
	Missed []string `json:"missed"`
}

// machineRate is what one validator's machine takes of a processor for what it hears in the W of a network of that size.
type machineRate struct {
	Validators int     `json:"validators"`
	Messages   int     `json:"messages"`
	PerSecond  float64 `json:"per_second"` // signatures and decoding apart
	// CheckMicros is the decoding and the signature of one vote.
	CheckMicros float64 `json:"check_us"`
}

func benchAgreement(ctx context.Context, env environment, args []string) error {
	c := newFlags(env, "bench agreement", `Usage: bzd bench agreement [flags]

Measures the agreement: how long it takes and what it sends in a simulated network over ten regions, how fast the state
machine is, and the same among real hosts in this process over the loopback device, beside what the simulation says of
those. Every simulated figure is a function of --seed.`)
	sizes, hosts := numbers64{64, 128, 256}, numbers64{16, 64}
	c.set.Var(&sizes, "validators", "`N,N`: sizes of the simulated networks; 0 means none")
	c.set.Var(&hosts, "hosts", "`N,N`: how many real hosts; 0 means none")
	w := sim.WAN{}
	c.set.IntVar(&w.Miners, "miners", 0, "miners that are scored; 0 means as many as validators")
	c.set.IntVar(&w.Loss, "loss", 50, "of a thousand messages, how many are lost")
	c.set.IntVar(&w.Silent, "silent", 300, "of a thousand validators, how many are silent")
	c.set.IntVar(&w.Runs, "runs", 0, "simulated cycles of each size; 0 means 1024 divided by the validators")
	c.set.Uint64Var(&w.Seed, "seed", 1, "seed of everything that is simulated")
	c.set.BoolVar(&w.Packed, "packed", true, "messages are packed on their way, as package wire does")
	c.set.Int64Var(&w.Slow, "slow", 1, "how many times as long as supposed the simulated processors take")
	delta := c.set.Int64("delta", 0, "`MS` of δ among the real hosts; 0 means 1000 for eight hosts of a processor, and more for more: messages "+
		"would be repeated before the processors have taken them")
	asJSON := c.set.Bool("json", false, "print one JSON object")
	if err := c.parse(args, false); err != nil {
		return err
	}
	within := func(v, most int64) bool { return v >= 0 && v <= most }
	if !within(int64(w.Miners), 4096) || w.Runs < 0 || !within(int64(w.Loss), 900) || !within(int64(w.Silent), 333) || !within(w.Slow, 1000) ||
		*delta != 0 && *delta < 100 || *delta > 60_000 {
		return usageError("--miners 0 to 4096, --runs from 0, --loss 0 to 900, --silent 0 to 333, --slow 0 to 1000, --delta 100 to 60000, or 0")
	}
	var r agreementReport
	for _, n := range sizes {
		for _, direct := range []bool{true, false} {
			w := w
			w.Validators, w.Direct = n, direct
			if w.Miners == 0 {
				w.Miners = n
			}
			if w.Runs == 0 {
				w.Runs = max(1, 1024/n)
			}
			f, err := w.Measure(func(run int) error {
				fmt.Fprintf(env.err, "\rsimulating %d validators, %s: %d of %d ", n, way(direct), run+1, w.Runs)
				return ctx.Err()
			})
			fmt.Fprintln(env.err)
			if err != nil {
				return err
			}
			r.add(f)
		}
	}
	if len(sizes) > 0 {
		w.Validators = sizes[len(sizes)-1]
		m, err := measureMachine(w, env.now)
		if err != nil {
			return err
		}
		r.Machine = &m
		if m.PerSecond < targetRate {
			r.Missed = append(r.Missed, fmt.Sprintf("%.0f messages a second through the machine", m.PerSecond))
		}
	}
	for _, n := range hosts {
		fmt.Fprintf(env.err, "%d real hosts\n", n)
		f, err := measureHosts(ctx, n, *delta, env.now)
		if err != nil {
			return err
		}
		r.Hosts = append(r.Hosts, f)
	}
	if *asJSON {
		e := json.NewEncoder(env.out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	r.print(env)
	return nil
}

func way(direct bool) string {
	if direct {
		return "direct"
	}
	return "gossip"
}

// numbers64 is a flag of sizes.
type numbers64 []int

func (n *numbers64) String() string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint([]int(*n)), " ", ","), "[]")
}

func (n *numbers64) Set(s string) error {
	*n = nil
	for word := range strings.SplitSeq(s, ",") {
		v, err := strconv.Atoi(word)
		switch {
		case err != nil || v < 0 || v > 1024 || v > 0 && v < 4:
			return errors.New("want sizes from 4 to 1024, or 0")
		case v > 0:
			*n = append(*n, v)
		}
	}
	return nil
}

// add takes figures and says what they miss.
func (r *agreementReport) add(f sim.Figures) {
	r.WAN = append(r.WAN, f)
	if f.Loss > 50 || f.Silent > 300 {
		return
	}
	most := int64(targetGossip)
	if f.Direct {
		most = targetDirect
	}
	for i, t := range f.Decision {
		if t.P99 > most {
			r.Missed = append(r.Missed, fmt.Sprintf("%d ms to decide %s among %d, %s", t.P99, protocol.Instance(i+1), f.Validators, way(f.Direct)))
		}
	}
	if max(f.Sent, f.Received) > targetBytes {
		r.Missed = append(r.Missed, fmt.Sprintf("%d bytes a cycle among %d, %s", max(f.Sent, f.Received), f.Validators, way(f.Direct)))
	}
}

// machineTime is how much processor time a figure of the machine is the mean of.
const machineTime = time.Second / 2

// measureMachine plays one validator's messages again and again.
func measureMachine(w sim.WAN, now func() time.Time) (machineRate, error) {
	if w.Miners == 0 {
		w.Miners = w.Validators
	}
	w.Direct = true
	tape, err := w.Record(protocol.InstanceW)
	if err != nil {
		return machineRate{}, err
	}
	m := machineRate{Validators: w.Validators, Messages: tape.Len()}
	spent := func(f func() error) (float64, error) {
		began, start := now(), processor()
		for times := 1.0; ; times++ {
			if err := f(); err != nil {
				return 0, err
			}
			took := processor() - start
			if start == 0 { // the system does not say
				took = now().Sub(began)
			}
			if took > machineTime {
				return took.Seconds() / times, nil
			}
		}
	}
	each, err := spent(tape.Play)
	if err != nil {
		return m, err
	}
	m.PerSecond = float64(m.Messages) / each
	checker, vote, err := tape.Vote()
	if err != nil {
		return m, err
	}
	each, err = spent(func() error {
		for range 100 {
			if _, err := checker.Check(vote); err != nil {
				return err
			}
		}
		return nil
	})
	m.CheckMicros = each * 1e4
	return m, err
}

func processor() time.Duration {
	used, _ := devnet.Usage()
	return used
}

// measureHosts runs real hosts, and then the simulation of what they are: no distance, nothing lost, two processors.
func measureHosts(ctx context.Context, validators int, delta int64, now func() time.Time) (hostsFigures, error) {
	h, done, err := newHostsBench(validators, validators, delta, now)
	if err != nil {
		return hostsFigures{}, err
	}
	defer done()
	f, err := h.run(ctx)
	if err != nil {
		return f, err
	}
	f.Simulated, err = h.simulate(sim.Loopback())
	return f, err
}

func (r *agreementReport) print(env environment) {
	if len(r.WAN) > 0 {
		w := table(env.out)
		fmt.Fprintln(w, "ten regions\tmessages\tW p50\tp99\tM p50\tp99\tslowest p99\twith silent leaders p99\tsent\treceived\tcertified\t")
		for _, f := range r.WAN {
			fmt.Fprintf(w, "%d validators, %d miners\t%s\t%d ms\t%d\t%d\t%d\t%d\t%d\t%.1f MiB\t%.1f\t%d of %d\t\n", f.Validators, f.Miners, way(f.Direct),
				f.Decision[0].P50, f.Decision[0].P99, f.Decision[1].P50, f.Decision[1].P99, max(f.Decision[0].Slowest, f.Decision[1].Slowest),
				max(f.Overall[0].P99, f.Overall[1].P99), mebibytes(f.Sent), mebibytes(f.Received), f.Certified, f.Instances)
		}
		w.Flush()
	}
	if m := r.Machine; m != nil {
		fmt.Fprintf(env.out, "\nthe machine: %.0f messages a second on one processor, signatures apart (%d messages of one W among %d);"+
			" %.0f µs to decode and verify a vote\n",
			m.PerSecond, m.Messages, m.Validators, m.CheckMicros)
	}
	if len(r.Hosts) > 0 {
		fmt.Fprintln(env.out)
		w := table(env.out)
		fmt.Fprintln(w, "real hosts\tδ\tW p50\tp99\tM p50\tp99\talone W p99\tM p99\tsimulated W p50\tp99\tM p50\tp99\tprocessor time of one\tcertified\t")
		for _, f := range r.Hosts {
			fmt.Fprintf(w, "%d\t%d ms\t%d ms\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.2f s\t%d of %d\t\n", f.Validators, f.Delta,
				f.Decision[0].P50, f.Decision[0].P99, f.Decision[1].P50, f.Decision[1].P99, f.Alone[0].P99, f.Alone[1].P99, f.Simulated[0].P50, f.Simulated[0].P99,
				f.Simulated[1].P50, f.Simulated[1].P99, f.CPU, f.Certified, f.Instances)
		}
		w.Flush()
	}
	for _, m := range r.Missed {
		fmt.Fprintf(env.out, "missed: %s\n", m)
	}
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
