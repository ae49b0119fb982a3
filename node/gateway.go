package node

import (
	"fmt"
	"net"

	"github.com/blockzero-net/bzd/content/gateway"
)

// serveGateway serves the node's own blocks over HTTP, as /ipfs/<CID>/<path>.
func (n *Node) serveGateway() error {
	h, err := gateway.New(n.store, gateway.Config{})
	if err != nil {
		return err
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
