package node

import (
	"context"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/delta"
)

// shelf is a store in memory.
type shelf map[cid.Cid][]byte

func (s shelf) PutMany(_ context.Context, blocks []blocks.Block) error {
	for _, b := range blocks {
		s[b.Cid()] = b.RawData()
	}
	return nil
}

// TestTensorAlone: of a sealed delta one tensor opens and decodes from its own bytes.
func TestTensorAlone(t *testing.T) {
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
	o := local.DefaultTrain("ledger", "x", 0)
	o.Tokens = 4 * 2 * 48
	d, _, err := local.Train(t.Context(), net, p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := net.Expect(p, "ledger")
	if err != nil {
		t.Fatal(err)
	}
	h, seed, store := d.Header(), content.Seed{1}, shelf{}
	sealed, err := content.Build(content.Payload{Slot: content.Slot{Version: protocol.Version, Network: w.link, Base: p.Link, Group: "ledger"},
		Codec: h.Codec, Tensors: h.Tensors, Bytes: d.Payload(), Round: 1}, seed, func(uint64, content.Seed) ([]byte, error) {
		return make([]byte, protocol.LockedSeedSize), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := sealed.Publish(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	for i, e := range sealed.Manifest.Tensors {
		raw, err := content.OpenTensor(sealed.Manifest, seed, payloadLimit(net, p), e.Name, func(c cid.Cid) ([]byte, error) { return store[c], nil })
		if err != nil {
			t.Fatal(err)
		}
		units, err := delta.DecodeTensor(sealed.Manifest.Header(), i, raw, want)
		if err != nil || !slices.Equal(units, d.Units(i)) {
			t.Errorf("%s by itself: %v", e.Name, err)
		}
	}
}

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
	if m, _ := n.recall(0, p, [32]byte{}); m.Moments != nil || m.Feedback != nil || len(troubles) > 0 {
		t.Errorf("a new miner remembers %+v, %q", m, troubles)
	}
	o := local.DefaultTrain("ledger", "x", 7)
	o.Tokens = 4 * 2 * 48
	_, memory, err := local.Train(t.Context(), net, p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.remember(memory, [32]byte{7}); err != nil {
		t.Fatal(err)
	}
	n = start("ledger")
	if m, _ := n.recall(7, p, [32]byte{}); !reflect.DeepEqual(*m, memory) || memory.Feedback == nil || len(troubles) > 0 {
		t.Errorf("it remembers something else after a restart, %q", troubles)
	}
	if err := n.mine(t.Context(), timeline{cycle: 7}, p); err == nil || !strings.Contains(err.Error(), "equivocation") {
		t.Errorf("a second delta for one cycle: %v", err)
	}
	n = start("math")
	if m, _ := n.recall(8, p, [32]byte{}); m.Feedback != nil || m.Moments != nil || len(troubles) != 1 || !strings.Contains(troubles[0], "another group") {
		t.Errorf("another group goes on with it, %q", troubles)
	}
	n = start("ledger")
	for _, path := range []string{n.feedbackFile(), n.momentsFile()} {
		if err := os.Truncate(path, 100); err != nil {
			t.Fatal(err)
		}
	}
	if m, _ := n.recall(8, p, [32]byte{}); m.Feedback != nil || m.Moments != nil || len(troubles) != 2 {
		t.Errorf("a damaged disk: %+v, %q", m, troubles)
	}
}
