package node

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
)

// TestMinersMemory: a miner that is killed and started again has its moments and its error feedback, makes no second delta
// for a cycle, and starts afresh in another group or where its disk is damaged, saying so.
func TestMinersMemory(t *testing.T) {
	w, err := worlds()
	if err != nil {
		t.Fatal(err)
	}
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	p, err := local.LoadPhi(b, w.dir)
	if err != nil {
		t.Fatal(err)
	}
	net, err := local.NewNetwork(w.genesis, w.sets)
	if err != nil {
		t.Fatal(err)
	}
	var troubles []string
	dir := t.TempDir()
	start := func(group string) *Node {
		troubles = nil
		return &Node{local: net, cfg: Config{Dir: dir, Group: group, Network: w.link, Roles: protocol.RoleMiner, Events: func(e Event) {
			if e.Kind == Trouble {
				troubles = append(troubles, e.Text)
			}
		}}}
	}
	n := start("ledger")
	if m := n.recall(0, p); m.Moments != nil || m.Feedback != nil || len(troubles) > 0 {
		t.Errorf("a new miner remembers %+v, %q", m, troubles)
	}
	o := local.DefaultTrain("ledger", "x", 7)
	o.Tokens = 4 * 2 * 48
	_, memory, err := local.Train(t.Context(), net, p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.remember(memory); err != nil {
		t.Fatal(err)
	}
	n = start("ledger")
	if m := n.recall(7, p); !reflect.DeepEqual(*m, memory) || memory.Feedback == nil || len(troubles) > 0 {
		t.Errorf("it remembers something else after a restart, %q", troubles)
	}
	if err := n.mine(t.Context(), timeline{cycle: 7}, p); err == nil || !strings.Contains(err.Error(), "equivocation") {
		t.Errorf("a second delta for one cycle: %v", err)
	}
	n = start("math")
	if m := n.recall(8, p); m.Feedback != nil || m.Moments != nil || len(troubles) != 1 || !strings.Contains(troubles[0], "another group") {
		t.Errorf("another group goes on with it, %q", troubles)
	}
	for _, path := range []string{n.feedbackFile(), n.momentsFile()} {
		if err := os.Truncate(path, 100); err != nil {
			t.Fatal(err)
		}
	}
	n = start("ledger")
	if m := n.recall(8, p); m.Feedback != nil || m.Moments != nil || len(troubles) != 2 {
		t.Errorf("a damaged disk: %+v, %q", m, troubles)
	}
}
