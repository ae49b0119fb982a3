package node

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/consensus/chain/dev"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// processVariable makes this test binary a node: its value is a [nodeProcess].
const processVariable = "BZD_TEST_NODE"

// nodeProcess is everything that a node in a process of its own is told; after it has started, standard input gives it the
// chain's address. It prints a line when it has started and one for every cycle.
type nodeProcess struct {
	Dir       string
	Network   protocol.Link
	Roles     protocol.Role
	ID        protocol.ID
	Key       []byte
	Group     string
	Bootstrap []string
	Seed      string
	Period    time.Duration
	Cycles    uint64
}

func TestMain(m *testing.M) {
	if v := os.Getenv(processVariable); v != "" {
		if err := runProcess(v, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runProcess(text string, in io.Reader, out io.Writer) error {
	var p nodeProcess
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	n, err := New(Config{Dir: p.Dir, Network: p.Network, Roles: p.Roles, ID: p.ID, Key: ed25519.PrivateKey(p.Key), Group: p.Group,
		Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Bootstrap: p.Bootstrap, Threads: 1, Seed: p.Seed, Now: time.Now, Events: func(e Event) {
			switch e.Kind {
			case Advanced:
				fmt.Fprintf(out, "cycle %d %t %s\n", e.Cycle, e.Certified, e.Next)
			case Scored:
				if missed(e) {
					fmt.Fprintf(out, "missed cycle %d\n", e.Cycle)
				}
			case Trouble:
				fmt.Fprintf(out, "trouble in cycle %d: %s\n", e.Cycle, e.Text)
			}
		}})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := n.Start(context.Background()); err != nil {
		return err
	}
	fmt.Fprintln(out, "started")
	address, err := bufio.NewReader(in).ReadString('\n')
	if err != nil {
		return err
	}
	client, err := dev.NewClient(dev.ClientConfig{Endpoints: []string{strings.TrimSpace(address)}})
	if err != nil {
		return err
	}
	defer client.Close()
	info, err := client.Info(context.Background())
	if err != nil {
		return err
	}
	return n.Run(context.Background(), Chain{Client: client, BlockPeriod: p.Period, Beacon: client, Public: info.Beacon.Public, Clock: info.Clock()}, p.Cycles)
}

// TestProcesses: nodes in processes of their own, which share no memory, come to the checkpoint that nodes in one process
// come to. So whatever the nodes of one process might share, they do not need it, and it changes nothing.
func TestProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some cycles")
	}
	t.Parallel() // mostly it waits
	const cycles, attempts = 2, 4
	// A machine with other work to do may miss a deadline, which carries the model; then there is nothing to compare.
	try := func(t *testing.T, run func(*rig) []said) []said {
		for i := range attempts {
			r := newRig(t, 3)
			r.period *= time.Duration(2 + 2*i) // more time each time
			out := run(r)
			for _, p := range r.people {
				r.leave(p)
			}
			if len(out) == cycles && out[0].Certified && out[1].Certified {
				return out
			}
			t.Logf("not certified in time: %v", out)
		}
		t.Fatalf("no certified run in %d", attempts)
		return nil
	}
	first, err := worlds()
	if err != nil {
		t.Fatal(err)
	}
	var together, apart []said
	t.Run("both", func(t *testing.T) {
		t.Run("one", func(t *testing.T) { t.Parallel(); together = try(t, inOneProcess) })
		t.Run("many", func(t *testing.T) { t.Parallel(); apart = try(t, inProcesses) })
	})
	if t.Failed() {
		return
	}
	if together[0].Next == together[1].Next && together[0].Next == first.genesis.Checkpoint {
		t.Error("nothing was merged; there is nothing to compare")
	}
	for i, e := range together {
		if apart[i].Next != e.Next {
			t.Errorf("cycle %d: %s in one process, %s in many", i, e.Next, apart[i].Next)
		}
	}
}

var everybody = []string{"validator-1", "validator-2", "validator-3", "miner-ledger", "miner-math"}

func inOneProcess(r *rig) (out []said) {
	r.start(everybody...)
	r.begin()
	r.run(append(everybody, "seed")...)
	out = append(out, r.advanced("validator-1", 0), r.advanced("validator-1", 1))
	if len(r.all(func(e said) bool { return missed(e.Event) })) > 0 {
		return nil
	}
	return out
}

// missed reports whether a validator could not measure everybody's work in time.
func missed(e Event) bool {
	for _, g := range e.Rows {
		for _, row := range g.Rows {
			switch row.Status {
			case protocol.StatusNotScored, protocol.StatusOffline, protocol.StatusLate, protocol.StatusNoCustody:
				return true
			}
		}
	}
	return false
}

// inProcesses runs everybody but the bootstrap node in a process each.
func inProcesses(r *rig) (out []said) {
	r.t.Helper()
	binary, err := os.Executable()
	r.check(err)
	var inputs []io.WriteCloser
	lines := make([]chan string, len(everybody))
	for i, name := range everybody {
		c := r.config(r.people[name])
		text, err := json.Marshal(nodeProcess{Dir: c.Dir, Network: c.Network, Roles: c.Roles, ID: c.ID, Key: c.Key, Group: c.Group,
			Bootstrap: c.Bootstrap, Seed: c.Seed, Period: r.period, Cycles: 3})
		r.check(err)
		cmd := exec.Command(binary)
		cmd.Env = append(os.Environ(), processVariable+"="+string(text))
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		r.check(err)
		stdout, err := cmd.StdoutPipe()
		r.check(err)
		r.check(cmd.Start())
		inputs = append(inputs, in)
		lines[i] = make(chan string, 1000)
		go func() {
			for s := bufio.NewScanner(stdout); s.Scan(); {
				lines[i] <- s.Text()
			}
			close(lines[i])
		}()
		defer cmd.Wait()
		defer cmd.Process.Kill()
	}
	for i, name := range everybody {
		if got := <-lines[i]; got != "started" {
			r.t.Fatalf("%s: %q", name, got)
		}
	}
	r.begin()
	r.run("seed")
	for _, in := range inputs {
		_, err := fmt.Fprintln(in, r.address)
		r.check(err)
	}
	late := false
	for i, name := range everybody[:3] { // the validators; miners only fetch what these decide
		for seen := 0; seen < 2; {
			line, ok := <-lines[i]
			if !ok {
				r.t.Fatalf("%s ended", name)
			}
			var e said
			var next string
			e.name = name
			if n, _ := fmt.Sscanf(line, "cycle %d %t %s", &e.Cycle, &e.Certified, &next); n != 3 {
				r.t.Logf("%s: %s", name, line)
				late = late || strings.HasPrefix(line, "missed cycle")
				continue
			}
			seen++
			e.Next, err = protocol.ParseLink(next)
			r.check(err)
			if i == 0 {
				out = append(out, e)
			} else if e.Certified && e.Next != out[e.Cycle].Next {
				r.t.Errorf("%s: %s in cycle %d, not %s", name, next, e.Cycle, out[e.Cycle].Next)
			}
		}
	}
	if late {
		return nil
	}
	return out
}
