package devnet_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/devnet"
	"github.com/blockzero-net/bzd/node/local/localtest"
)

// binary is the real program, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "bzd-devnet-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "bzd")
		if out, err := exec.Command("go", "build", "-o", binary, "../../cmd/bzd").CombinedOutput(); err != nil {
			panic(string(out))
		}
		return m.Run()
	}())
}

// script runs one script. They run one after the other: a network that has to share its processors misses deadlines.
func script(t *testing.T, name string) {
	if testing.Short() {
		t.Skip("a network takes some twenty seconds per cycle")
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Skip("no Go installation: there is no text to train on")
	}
	testscript.Run(t, testscript.Params{
		Files: []string{"testdata/" + name + ".txtar"},
		Setup: func(e *testscript.Env) error {
			e.Setenv("GOROOT", strings.TrimSpace(string(root)))
			e.Setenv("PATH", filepath.Dir(binary)+string(filepath.ListSeparator)+e.Getenv("PATH"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"submission": submission, "certified": certified, "learns": learns, "pays": pays, "same": same, "base": base,
			"unharmed": unharmed, "occupy": occupy, "family": family, "last": last, "submitted": submitted, "proven": proven, "healed": healed,
		},
		Condition: func(name string) (bool, error) {
			switch name {
			case "nightly":
				return os.Getenv("BZD_NIGHTLY") != "", nil
			case "ci":
				return os.Getenv("CI") != "", nil
			case "smalldisk":
			default:
				return false, fmt.Errorf("unknown condition %q", name)
			}
			return exec.Command("unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt").Run() == nil, nil
		},
	})
}

func TestNetwork(t *testing.T)   { script(t, "network") }
func TestAgreement(t *testing.T) { script(t, "agreement") }
func TestRefuses(t *testing.T)   { script(t, "refuses") }

func TestFamily(t *testing.T) {
	if os.Getenv("CI") == "" {
		t.Skip("half a minute; it runs where CI is set")
	}
	script(t, "family")
}

// submitted FILE N: in every cycle at least N validators had their weights on chain in time.
func submitted(ts *testscript.TestScript, _ bool, args []string) {
	least, err := strconv.Atoi(args[1])
	ts.Check(err)
	for _, c := range read(ts, args[0]).Cycles {
		if c.Submitted < least {
			ts.Fatalf("cycle %d: %d validators submitted, want %d", c.Cycle, c.Submitted, least)
		}
	}
}

// healed FILE N: the first cycle is certified, the N after it are not and keep the checkpoint, the last one is certified.
func healed(ts *testscript.TestScript, _ bool, args []string) {
	r := read(ts, args[0])
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	for i, c := range r.Cycles {
		cut := i >= 1 && i <= n
		if cut && (c.Certified || c.Next != r.Cycles[0].Next) || (i == 0 || i == len(r.Cycles)-1) && (!c.Certified || !c.Agreed || c.Rounds == 0) {
			ts.Fatalf("cycle %d: certified %v in %d rounds, agreed %v, checkpoint %s", c.Cycle, c.Certified, c.Rounds, c.Agreed, c.Next)
		}
	}
}

// proven DIR: each honest validator of the network has a proof of the last validator's equivocation, and the program says so.
func proven(ts *testscript.TestScript, _ bool, args []string) {
	for i := 1; i <= 3; i++ {
		files, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), fmt.Sprintf("validator-%d", i), "proofs", "0*.cbor"))
		ts.Check(err)
		if len(files) == 0 {
			ts.Fatalf("validator %d has no proof", i)
		}
		for _, f := range files {
			ts.Check(ts.Exec(binary, "verify", "proof", f))
		}
	}
}

// read decodes a --json result.
func read(ts *testscript.TestScript, file string) devnet.Result {
	var r devnet.Result
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(file)), &r))
	return r
}

// submission FILE MINER STATUS: the miner's status in every cycle; a reason stands beside every one but ok.
func submission(ts *testscript.TestScript, _ bool, args []string) {
	for _, c := range read(ts, args[0]).Cycles {
		found := false
		for _, s := range c.Submissions {
			if s.Miner != args[1] {
				continue
			}
			found = true
			if s.Status.String() != args[2] {
				ts.Fatalf("cycle %d: %s is %s (%s), want %s", c.Cycle, s.Miner, s.Status, s.Reason, args[2])
			}
			if args[2] != "ok" && args[2] != "not-improving" && s.Reason == "" {
				ts.Fatalf("cycle %d: no reason why %s is %s", c.Cycle, s.Miner, s.Status)
			}
			if args[2] != "ok" && c.Weights[s.Miner] != 0 {
				ts.Fatalf("cycle %d: %s is %s and is paid %v", c.Cycle, s.Miner, s.Status, c.Weights[s.Miner])
			}
		}
		if !found {
			ts.Fatalf("cycle %d: no submission of %s", c.Cycle, args[1])
		}
	}
}

// certified FILE: every cycle has a certificate, and all validators the same checkpoint.
func certified(ts *testscript.TestScript, _ bool, args []string) {
	r := read(ts, args[0])
	for _, c := range r.Cycles {
		if !c.Certified || !c.Agreed {
			ts.Fatalf("cycle %d: certified %v, agreed %v", c.Cycle, c.Certified, c.Agreed)
		}
	}
	if len(r.Cycles) == 0 || r.Cycles[len(r.Cycles)-1].Next != r.Checkpoint {
		ts.Fatalf("the checkpoint %s is not that of the last cycle", r.Checkpoint)
	}
}

// learns FILE: the domains' mean loss on the probe falls, the canary's rises by less than 2.5%.
func learns(ts *testscript.TestScript, _ bool, args []string) {
	r := read(ts, args[0])
	before, after := 0.0, 0.0
	for i, g := range r.Cycles[0].Groups {
		before, after = before+g.Before, after+r.Cycles[len(r.Cycles)-1].Groups[i].After
	}
	canary := r.Cycles[len(r.Cycles)-1].CanaryAfter / r.Cycles[0].CanaryBefore
	if after >= before || canary > 1.025 {
		ts.Fatalf("mean loss %.4f → %.4f, canary ×%.4f", before/3, after/3, canary)
	}
}

// pays FILE: weights sum to one in every cycle.
func pays(ts *testscript.TestScript, _ bool, args []string) {
	for _, c := range read(ts, args[0]).Cycles {
		sum := 0.0
		for _, w := range c.Weights {
			sum += w
		}
		if sum < 0.999999 || sum > 1.000001 {
			ts.Fatalf("cycle %d: weights sum to %v", c.Cycle, sum)
		}
	}
}

// same A B: both runs came to the same checkpoint.
func same(ts *testscript.TestScript, neg bool, args []string) {
	if a, b := read(ts, args[0]).Checkpoint, read(ts, args[1]).Checkpoint; (a == b) == neg {
		ts.Fatalf("checkpoints %s and %s", a, b)
	}
}

// unharmed A B N: every miner that is well in both is paid in B, where others fail, no less than in A; that is N of them.
func unharmed(ts *testscript.TestScript, _ bool, args []string) {
	a, b := read(ts, args[0]).Cycles[0], read(ts, args[1]).Cycles[0]
	well := 0
	for i, s := range a.Submissions {
		if s.Status != b.Submissions[i].Status || s.Status != protocol.StatusOK && s.Status != protocol.StatusNotImproving {
			continue
		}
		well++
		if b.Weights[s.Miner] < a.Weights[s.Miner]-1e-9 {
			ts.Fatalf("%s is paid %v where others fail, %v where nobody does", s.Miner, b.Weights[s.Miner], a.Weights[s.Miner])
		}
	}
	if fmt.Sprint(well) != args[2] {
		ts.Fatalf("%d miners fare alike, want %s", well, args[2])
	}
}

// occupy VARIABLE: takes a port until the script ends.
func occupy(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

// family NAME DIR: writes a small Hugging Face model of that family.
func family(ts *testscript.TestScript, _ bool, args []string) {
	for _, f := range localtest.Families() {
		if f.String() == args[0] {
			ts.Check(localtest.Write(ts.MkAbs(args[1]), localtest.Config(f), false, 0))
			return
		}
	}
	ts.Fatalf("no family %s", args[0])
}

// last FILE VARIABLE: sets the variable to the checkpoint that the run ended with, which is not the one it began with.
func last(ts *testscript.TestScript, _ bool, args []string) {
	r := read(ts, args[0])
	if r.Cycles[0].Base == r.Checkpoint {
		ts.Fatalf("nothing was merged")
	}
	ts.Setenv(args[1], r.Checkpoint.String())
}

// base A B: the second run began where the first ended.
func base(ts *testscript.TestScript, _ bool, args []string) {
	if a, b := read(ts, args[0]).Checkpoint, read(ts, args[1]).Cycles[0].Base; a != b {
		ts.Fatalf("ended at %s, began at %s", a, b)
	}
}

// TestGatewayServes asks the gateway of a running network for the genesis checkpoint's configuration.
func TestGatewayServes(t *testing.T) {
	if testing.Short() {
		t.Skip("a network takes some twenty seconds per cycle")
	}
	cmd := exec.Command(binary, "devnet", "--cycles", "1", "--miners", "3", "--dir", t.TempDir())
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Signal(os.Interrupt)
	var text strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(text.String(), "/config.json") {
		n, err := stderr.Read(buf)
		text.Write(buf[:n])
		if err != nil {
			t.Fatalf("no gateway address in %q: %v", text.String(), err)
		}
	}
	go io.Copy(io.Discard, stderr)
	url := text.String()
	url = url[strings.Index(url, "http://"):]
	url = url[:strings.Index(url, "/config.json")+len("/config.json")]
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !json.Valid(body) || !strings.Contains(string(body), "qwen3_moe") {
		t.Errorf("GET %s: %s, %v, %.80q", url, resp.Status, err, body)
	}
}
