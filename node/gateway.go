package node

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"

	"github.com/blockzero-net/bzd/content/gateway"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// serveGateway shows the network's genesis, certificates and checkpoints over HTTP, as /ipfs/<CID>/<path>.
func (n *Node) serveGateway(ctx context.Context) error {
	n.shown = gateway.NewCatalogue(n.store)
	h, err := gateway.New(n.store, gateway.Config{Only: n.shown})
	if err != nil {
		return err
	}
	n.show(ctx, n.cfg.Network.Cid())
	n.show(ctx, n.genesis.Checkpoint.Cid())
	for _, cycle := range n.history.merges() {
		if c, ok, _ := n.history.at(slot{cycle, protocol.InstanceM}); ok && !c.Null() {
			n.showDecision(ctx, c)
		}
	}
	l, err := net.Listen("tcp", n.cfg.Gateway)
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	s := gateway.Server(h)
	n.mu.Lock()
	n.gateway = "http://" + l.Addr().String()
	n.mu.Unlock()
	n.background.Go(func() { s.Serve(l) }) // ends with Close
	n.closers = append(n.closers, s.Close)
	return nil
}

// show lets the gateway, if there is one, serve what is below a root. What is not here is not shown.
func (n *Node) show(ctx context.Context, root cid.Cid) {
	if n.shown == nil {
		return
	}
	if err := n.shown.Add(ctx, root); err != nil && !format.IsNotFound(err) && !errors.Is(err, context.Canceled) {
		n.trouble(n.phiCycle, err)
	}
}

// showDecision is show for a certified merge and what it leads to.
func (n *Node) showDecision(ctx context.Context, c protocol.Certificate) {
	n.show(ctx, c.Digest().Link().Cid())
	n.show(ctx, c.Proposal.Value.Merge.Next.Cid())
}
