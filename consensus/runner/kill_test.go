package runner_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/runner"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// inputs are the vectors of the other validators and two valid proposals of validator 0 for each round.
func inputs(t *testing.T, cfg consensus.Config) (vectors []consensus.Message, proposals [2][]consensus.Message) {
	t.Helper()
	encode := func(r protocol.Record) consensus.Message {
		m, err := consensus.NewMessage(r)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	var hashes []protocol.Hash
	for i := range 3 {
		for alpha := range uint32(2) {
			v := protocol.MergeVector{Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Parent: cfg.Parent, Validator: protocol.ID{byte(i)},
				Measure: protocol.MergeMeasure{Version: protocol.Version, Groups: []string{"go"}}, Alpha: alpha}
			if err := v.Sign(key(i)); err != nil {
				t.Fatal(err)
			}
			vectors = append(vectors, encode(v))
			hashes = append(hashes, v.Digest())
		}
	}
	for life := range proposals {
		p := protocol.Proposal{Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Parent: cfg.Parent,
			Vectors: []protocol.Hash{hashes[life], hashes[2], hashes[4]}, Lists: []protocol.Hash{}, Proofs: []protocol.Hash{}}
		slices.SortFunc(p.Vectors, protocol.Hash.Compare)
		p.Value, _ = cfg.Derive(consensus.Set{Merges: make([]protocol.MergeVector, 3)})
		for round, rank := range []int{0, 1} { // validator 0 is first in round 0 and second in round 1
			p.Round = uint32(round)
			if who, ok := cfg.Proposer(p.Round, rank); !ok || who != (protocol.ID{0}) {
				t.Fatal("not its turn")
			}
			p.Proposer = protocol.ID{0}
			if err := p.Sign(key(0)); err != nil {
				t.Fatal(err)
			}
			proposals[life] = append(proposals[life], encode(p))
			for i := range 2 {
				for _, step := range []protocol.VoteType{protocol.VotePrepare, protocol.VoteCommit} {
					v := protocol.Vote{Version: protocol.Version, Network: cfg.Network, Cycle: cfg.Cycle, Instance: cfg.Instance, Round: p.Round, Type: step,
						Parent: cfg.Parent, Digest: p.Decision(), Validator: protocol.ID{byte(i)}}
					if err := v.Sign(key(i)); err != nil {
						t.Fatal(err)
					}
					if step == protocol.VotePrepare {
						proposals[life] = append(proposals[life], encode(v))
					}
				}
			}
		}
	}
	return vectors, proposals
}

// contradictions checks what one validator said over all its lives: no two statements conflict, and after a COMMIT-V it
// prepared nothing else (nobody has shown it a lock).
func contradictions(t *testing.T, said []consensus.Message) {
	t.Helper()
	var signed []protocol.Signed
	for _, m := range said {
		if r, err := m.Record(); err == nil {
			if s, ok := r.(protocol.Signed); ok && s.Signer() == (protocol.ID{3}) {
				signed = append(signed, s)
			}
		}
	}
	for i, a := range signed {
		for _, b := range signed[:i] {
			if p, err := protocol.NewEquivocationProof(a, b); err == nil {
				t.Fatalf("signed %s", p.Kind)
			}
			x, ok := b.(protocol.Vote)
			y, also := a.(protocol.Vote)
			if ok && also && x.Type == protocol.VoteCommit && y.Round > x.Round && y.Digest != x.Digest {
				t.Fatalf("committed to %s in round %d, then voted for %s in round %d", x.Digest, x.Round, y.Digest, y.Round)
			}
		}
	}
}

// live steps a machine through an instance in which one of two decisions is proposed, and returns what it sent, only what
// was durable before.
func live(t *testing.T, w *runner.WAL, records [][]byte, life int) (sent []consensus.Message) {
	t.Helper()
	cfg := machine(3)
	cfg.Restore = records
	m, err := consensus.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	vectors, proposals := inputs(t, cfg)
	pump := func() {
		for r := m.Ready(); !r.Empty(); r = m.Ready() {
			if err := w.Append(r.Persist); err != nil {
				t.Fatal(err)
			}
			sent = append(sent, r.Send...)
			m.Advance()
		}
	}
	m.Tick(start)
	for _, v := range vectors {
		_ = m.Step(v)
	}
	for _, at := range []int64{cfg.Turn(0), cfg.Turn(4), deadline} {
		m.Tick(at)
		pump()
		for _, p := range proposals[life] {
			_ = m.Step(p)
			pump()
		}
	}
	return sent
}

// TestLogCutAnywhere: whatever of its log a validator that was killed finds, byte by byte, it contradicts nothing that it
// may have sent, though it is now shown another decision.
func TestLogCutAnywhere(t *testing.T) {
	disk := &memory{fail: -1}
	w, _ := open(t, disk)
	live(t, w, nil, 0)
	whole := disk.data
	if len(whole) < 1000 {
		t.Fatalf("only %d bytes", len(whole))
	}
	step := 1
	if testing.Short() {
		step = 13
	}
	var said []consensus.Message
	known := 0
	for n := 0; n <= len(whole); n += step {
		w, records := open(t, &memory{data: slices.Clone(whole[:n]), fail: -1})
		// What is in a whole batch may have been sent.
		if len(records) != known || n == 0 {
			known, said = len(records), nil
			for _, b := range records {
				m, err := consensus.DecodeMessage(b)
				if err != nil {
					t.Fatal(err)
				}
				said = append(said, m)
			}
			contradictions(t, append(slices.Clone(said), live(t, w, records, 1)...))
			continue
		}
		// Between two batches the log opens to the same records, and a life from them was played already.
	}
	if known < 6 {
		t.Errorf("the log has %d records", known)
	}
}

// teller prints what a validator sends.
type teller struct{}

func (teller) Send(_ context.Context, m []byte) error {
	_, err := fmt.Printf("sent %s\n", hex.EncodeToString(m))
	return err
}
func (teller) Tell(protocol.ID, []byte) {}
func (teller) Fetch(context.Context, consensus.Name) ([]byte, error) {
	return nil, errors.New("nobody has it")
}

// TestKilled kills a process that signs votes, with SIGKILL, at many moments, and shows each life another decision: what
// was sent over all lives contains no contradiction.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("BZD_RUNNER_KILLED"); dir != "" {
		signer(t, dir)
		return
	}
	lives := 12
	if testing.Short() {
		lives = 4
	}
	dir := t.TempDir()
	var said []consensus.Message
	for life := range lives {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$", "-test.v")
		cmd.Env = append(os.Environ(), "BZD_RUNNER_KILLED="+dir, fmt.Sprint("BZD_RUNNER_LIFE=", life%2))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 8<<20)
		for n := 0; lines.Scan(); {
			line, ok := strings.CutPrefix(lines.Text(), "sent ")
			if !ok {
				continue
			}
			b, err := hex.DecodeString(line)
			if err != nil {
				break // cut off by the kill
			}
			m, err := consensus.DecodeMessage(b)
			if err != nil {
				t.Fatal(err)
			}
			said = append(said, m)
			if n++; n > life/2 { // a vote later in each second life
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	if len(said) < lives/2 {
		t.Fatalf("sent only %d messages in %d lives", len(said), lives)
	}
	contradictions(t, said)
}

// signer is one life of validator 3.
func signer(t *testing.T, dir string) {
	w, records, err := runner.OpenWAL(filepath.Join(dir, "journal"), nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := machine(3)
	cfg.Restore, cfg.Delta = records, 20
	vectors, proposals := inputs(t, cfg)
	r, err := runner.New(runner.Config{Machine: cfg, Network: teller{}, Clock: clock{time.Now().Add(-start * time.Millisecond)}, Log: w})
	if err != nil {
		t.Fatal(err)
	}
	life := 0
	if os.Getenv("BZD_RUNNER_LIFE") == "1" {
		life = 1
	}
	for _, m := range append(vectors, proposals[life]...) {
		_ = r.Receive(m.Encode())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for {
		if _, err := r.Run(ctx); err != nil {
			return
		}
	}
}
