package dev

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// act registers and submits: three entries after the header. It returns what was acknowledged.
func act(t *testing.T, r *rig) (acknowledged int, err error) {
	t.Helper()
	for i, p := range []person{newPerson(30, 1, protocol.RoleMiner), newPerson(31, 2, protocol.RoleValidator)} {
		b := encode(t, registration(t, p, 1))
		if _, err := r.register(b); err != nil {
			return i, err
		}
	}
	if err := r.submit(encode(t, submission(t, people[0], 0))); err != nil {
		return 2, err
	}
	return 3, nil
}

func registration(t testing.TB, p person, sequence uint64) Registration {
	t.Helper()
	r := Registration{Version: protocol.Version, Network: network, Sequence: sequence, Participant: p.Participant}
	if err := r.Sign(p.chainKey); err != nil {
		t.Fatal(err)
	}
	return r
}

func encode(t testing.TB, r protocol.Record) []byte {
	t.Helper()
	b, err := protocol.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *Server) entries() int { return len(s.state.events) + len(s.state.weights) }

func TestRestart(t *testing.T) {
	r := newRig(t)
	if n, err := act(t, r); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	info := r.Info()
	r.add(time.Minute)
	r.cfg.Participants = nil // what it was
	r.restart(t)
	if got := r.Info(); got.Chain != info.Chain || !got.Genesis.Equal(info.Genesis) || r.entries() != 3 {
		t.Errorf("after a restart: %+v with %d entries, before %+v", got, r.entries(), info)
	}
	if n, err := act(t, r); n != 3 || err != nil || r.entries() != 3 {
		t.Errorf("the same again after a restart: %d acknowledged, %d entries, %v", n, r.entries(), err)
	}
	head, err := r.head()
	if err != nil || head.Height != 120 {
		t.Fatalf("head %+v, %v", head, err)
	}
	if height, err := r.register(encode(t, registration(t, newPerson(32, 1, protocol.RoleMiner), 1))); err != nil || height != 121 {
		t.Fatalf("registered from block %d, %v", height, err)
	}
	r.add(-time.Hour) // a clock set back undoes no block on which an entry depends
	r.restart(t)
	if b, err := r.head(); err != nil || b != head {
		t.Errorf("head %+v, %v, before %+v", b, err, head)
	}
}

func TestOtherConfig(t *testing.T) {
	r := newRig(t)
	if err := r.Server.Close(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"the network":         func(c *Config) { c.Network = protocol.LinkTo(protocol.DagCBOR, nil) },
		"the beacon key":      func(c *Config) { c.BeaconSeed[0]++ },
		"genesis times":       func(c *Config) { c.Genesis = c.Now().Add(time.Hour) },
		"other participants":  func(c *Config) { c.Participants = c.Participants[1:] },
		"blocks per cycle":    func(c *Config) { c.CycleBlocks++ },
		"ms per block":        func(c *Config) { c.BlockPeriod *= 2 },
		"ms per round":        func(c *Config) { c.Beacon.Period *= 2 },
		"genesis times (Unix": func(c *Config) { c.Beacon = beacon.Clock{Genesis: c.Now().Add(time.Hour), Period: c.Beacon.Period} },
	} {
		cfg := r.cfg
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s, err := New(r.cfg); err != nil {
		t.Error(err)
	} else if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestTornTail cuts the journal at every byte, as a crash may, and starts from it: every complete entry is there, and the
// chain goes on. A cut header is damage: it is written whole or not at all.
func TestTornTail(t *testing.T) {
	r := newRig(t)
	if n, err := act(t, r); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if err := r.Server.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(r.cfg.Dir, journalName)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var ends []int // of the frames
	for at := 0; at < len(whole); {
		at += frameHead + int(whole[at+2])<<8 + int(whole[at+3]) + frameTail
		ends = append(ends, at)
	}
	if len(ends) != 4 || ends[3] != len(whole) {
		t.Fatalf("frames end at %v of %d", ends, len(whole))
	}
	for cut := 0; cut <= len(whole); cut += 1 + len(whole)/300 {
		for _, tail := range [][]byte{nil, make([]byte, 100)} {
			if cut < ends[0] && tail != nil {
				continue
			}
			if err := os.WriteFile(name, append(bytes.Clone(whole[:cut]), tail...), 0o644); err != nil {
				t.Fatal(err)
			}
			s, err := New(r.cfg)
			if cut < ends[0] {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("header cut at %d: %v", cut, err)
				}
				continue
			}
			b, want := append(bytes.Clone(whole[:cut]), tail...), 0
			for want < 3 && len(b) >= ends[want+1] && bytes.Equal(b[:ends[want+1]], whole[:ends[want+1]]) {
				want++
			}
			// Zeros where the rest of a frame was are damage if they make it look complete.
			if tail != nil && cut != ends[want] && errors.Is(err, ErrCorrupt) {
				continue
			}
			if err != nil || s.entries() != want {
				t.Fatalf("cut at %d, then %d zeros: %v, want %d entries", cut, len(tail), err, want)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestDamage flips a bit in every byte: the chain never starts with another history.
func TestDamage(t *testing.T) {
	r := newRig(t)
	if n, err := act(t, r); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if err := r.Server.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(r.cfg.Dir, journalName)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(whole); i += 1 + len(whole)/300 {
		bad := bytes.Clone(whole)
		bad[i] ^= 1 << (i % 8)
		if err := os.WriteFile(name, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := New(r.cfg)
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "remove it to start a new chain") {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if now, err := os.ReadFile(name); err != nil || !bytes.Equal(now, bad) {
			t.Fatalf("byte %d changed: the damaged file was touched, %v", i, err)
		}
	}
}

// faulty fails its n-th operation, and every one after it if dead.
type faulty struct {
	file
	n    *int
	dead bool
}

var errDisk = errors.New("disk error")

func (f faulty) fail() bool {
	*f.n--
	return *f.n == -1 || f.dead && *f.n < 0
}

func (f faulty) Write(b []byte) (int, error) {
	if f.fail() {
		n, err := f.file.Write(b[:len(b)/2]) // torn
		return n, errors.Join(errDisk, err)
	}
	return f.file.Write(b)
}

func (f faulty) Sync() error {
	if f.fail() {
		return errDisk
	}
	return f.file.Sync()
}

func (f faulty) Truncate(size int64) error {
	if f.fail() {
		return errDisk
	}
	return f.file.Truncate(size)
}

func (f faulty) Stat() (os.FileInfo, error) {
	if f.fail() {
		return nil, errDisk
	}
	return f.file.Stat()
}

// TestDiskFaults fails disk operation 0, 1, 2, … until the scenario passes, once and for good, and restarts from what is
// on the disk: whatever was acknowledged is there, and the same requests then succeed.
func TestDiskFaults(t *testing.T) {
	for _, dead := range []bool{false, true} {
		passed := false
		for n := 0; !passed && n < 50; n++ {
			t.Run(fmt.Sprintf("operation %d, dead %v", n, dead), func(t *testing.T) {
				r := newRig(t)
				left := n
				r.journal.f = faulty{r.journal.f, &left, dead}
				acknowledged, err := act(t, r)
				passed = err == nil
				if err != nil && (!errors.Is(err, ErrFull) || !errors.Is(err, errDisk)) {
					t.Errorf("error %v", err)
				}
				r.restart(t)
				if got := r.entries(); got < acknowledged || got > acknowledged+1 {
					t.Errorf("%d entries after the restart, %d were acknowledged", got, acknowledged)
				}
				if n, err := act(t, r); n != 3 || err != nil || r.entries() != 3 {
					t.Errorf("then: %d acknowledged, %d entries, %v", n, r.entries(), err)
				}
			})
		}
		if !passed {
			t.Error("never passed")
		}
	}
}

func TestJournalLimits(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxJournal = 1200 })
	n, err := act(t, r)
	if n == 3 || !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "raise the limit") {
		t.Errorf("%d entries, %v", n, err)
	}
	if _, err := r.head(); err != nil {
		t.Errorf("a full chain does not answer: %v", err)
	}

	two := newRig(t)
	second, err := New(two.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := second.register(encode(t, registration(t, newPerson(40, 1, protocol.RoleMiner), 1))); err != nil {
		t.Fatal(err)
	}
	if _, err := act(t, two); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("two servers in one directory: %v", err)
	}
}

// TestVectors fixes the bytes: testdata/vectors.txt never changes within a version.
func TestVectors(t *testing.T) {
	r := newRig(t)
	first := encode(t, r.state.header)
	reg := registration(t, people[2], 1)
	sub := encode(t, entry{kindRegistration, 7, encode(t, reg)})
	got := fmt.Sprintf("header %x\nchain %s\nblock-7 %s\nregistration %x\nentry %x\nframe %x\n", first, r.state.hash, r.state.block(7).Hash,
		encode(t, reg), sub, frame(sub))
	want, err := os.ReadFile(filepath.Join("testdata", "vectors.txt"))
	if err != nil || got != string(want) {
		t.Errorf("the bytes changed; an old chain would not start (%v)\n%s", err, got)
	}
}

func FuzzJournal(f *testing.F) {
	c := &clock{at: time.UnixMilli(1_700_000_000_123)}
	cfg := config(f.TempDir(), c)
	s, err := New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := s.register(encode(f, registration(f, newPerson(40, 1, protocol.RoleMiner), 1))); err != nil {
		f.Fatal(err)
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(cfg.Dir, journalName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		cfg := cfg
		cfg.Dir = t.TempDir()
		if err := os.WriteFile(filepath.Join(cfg.Dir, journalName), b, 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := New(cfg)
		switch {
		case err == nil:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		case !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrConfig):
			t.Fatalf("untyped error %v", err)
		}
	})
}

func FuzzRegistration(f *testing.F) {
	b := encode(f, registration(f, people[2], 1))
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode[Registration](b)
		if err != nil {
			return
		}
		if again := encode(t, r); !bytes.Equal(again, b) {
			t.Fatalf("accepted %x, which encodes to %x", b, again)
		}
		r.VerifySig()
	})
}
