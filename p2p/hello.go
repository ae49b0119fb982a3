package p2p

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// SetBinding replaces the host's own binding and shows it to every connected peer.
func (h *Host) SetBinding(b protocol.Binding) error {
	if err := h.setBinding(b); err != nil {
		return err
	}
	for _, p := range h.table.list() {
		h.spawn(func() { h.hello(p.Peer) })
	}
	return nil
}

func (h *Host) setBinding(b protocol.Binding) error {
	if err := b.Validate(); err != nil {
		return fmt.Errorf("p2p: own binding: %w", err)
	}
	if err := checkBinding(b, h.cfg.Network, h.ID()); err != nil {
		return fmt.Errorf("p2p: own binding: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.binding = &b
	return nil
}

// ownHello encodes the host's own hello.
func (h *Host) ownHello() ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.binding == nil {
		return nil, nil
	}
	return protocol.Encode(*h.binding)
}

// hello says hello to a peer and takes in what it answers. One hello to a peer is under way at a time, so that they arrive
// in order; whoever comes meanwhile makes the one under way say it again.
func (h *Host) hello(p peer.ID) {
	for h.beginHello(p) {
		err := h.sayHello(p)
		for pause, tries := h.cfg.Limits.RedialMin, 1; err != nil && h.worthRepeating(p, err) && tries < maxHellos; tries++ {
			select {
			case <-h.clock.After(pause):
				err = h.sayHello(p)
				pause *= 2
			case <-h.ctx.Done():
			}
		}
		if err != nil {
			h.log.Debug("p2p: hello failed", "peer", p, "err", err)
			h.table.fail(p, err)
		}
		if !h.endHello(p) {
			return
		}
	}
}

// maxHellos bounds the attempts when a hello does not get through.
const maxHellos = 4

// worthRepeating reports whether a hello failed for a reason that may pass: a busy peer, a broken stream.
func (h *Host) worthRepeating(p peer.ID, err error) bool {
	final := errors.Is(err, ErrUnsupported) || errors.Is(err, ErrRefused) || errors.Is(err, ErrBinding)
	return !final && h.ctx.Err() == nil && h.connected(p)()
}

// sayHello is one attempt.
func (h *Host) sayHello(p peer.ID) error {
	own, err := h.ownHello()
	if err != nil {
		return err
	}
	b, err := h.Request(h.ctx, p, helloProtocol, own)
	if err != nil {
		return err
	}
	return h.takeHello(p, b, true)
}

// beginHello reports whether the caller is to say hello.
func (h *Host) beginHello(p peer.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, busy := h.hellos[p]
	h.hellos[p] = busy
	return !busy
}

// endHello reports whether there is reason to begin again.
func (h *Host) endHello(p peer.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	again := h.hellos[p]
	delete(h.hellos, p)
	return again
}

// serveHello takes in a peer's hello and answers with the host's own.
func (h *Host) serveHello(_ context.Context, from peer.ID, request []byte) ([]byte, error) {
	if err := h.takeHello(from, request, false); err != nil {
		h.log.Debug("p2p: hello refused", "peer", from, "err", err)
		return nil, ErrRefused
	}
	return h.ownHello()
}

// takeHello settles what a peer's hello makes it.
func (h *Host) takeHello(p peer.ID, b []byte, answer bool) error {
	binding, err := parseHello(b)
	if err == nil && binding != nil {
		err = checkBinding(*binding, h.cfg.Network, p)
	}
	if err != nil {
		binding = nil
	}
	h.table.claim(p, binding, err, answer, h.connected(p))
	return err
}
