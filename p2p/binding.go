package p2p

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// ErrBinding: a binding says nothing about the peer that shows it. The peer's fault.
var ErrBinding = errors.New("p2p: bad binding")

// maxHello bounds a hello on the wire: a binding, or nothing.
const maxHello = 512

// helloProtocol: both sides send a hello, each answers with its own.
var helloProtocol = Protocol{Name: "hello", MaxRequest: maxHello, MaxResponse: maxHello}

// NewBinding signs that the libp2p peer speaks for the id. key is the protocol key that the registry holds for the id.
func NewBinding(network protocol.Link, id protocol.ID, p peer.ID, key ed25519.PrivateKey) (protocol.Binding, error) {
	b := protocol.Binding{Version: protocol.Version, Network: network, ID: id, Key: protocol.KeyOf(key), PeerID: []byte(p)}
	return b, b.Sign(key)
}

// parseHello reads a hello; nil means that the peer claims no id.
func parseHello(b []byte) (*protocol.Binding, error) {
	if len(b) > maxHello {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrBinding, len(b), maxHello)
	}
	if len(b) == 0 {
		return nil, nil
	}
	binding, err := protocol.DecodeBinding(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBinding, err)
	}
	return &binding, nil
}

// checkBinding checks everything that needs no registry.
func checkBinding(b protocol.Binding, network protocol.Link, shownBy peer.ID) error {
	switch {
	case b.Network != network:
		return fmt.Errorf("%w: made for network %s, this is %s", ErrBinding, b.Network, network)
	case !bytes.Equal(b.PeerID, []byte(shownBy)):
		return fmt.Errorf("%w: made for another peer than %s, who shows it", ErrBinding, shownBy)
	case !b.VerifySig(b.Key):
		return fmt.Errorf("%w: the signature of id %s does not hold", ErrBinding, b.ID)
	}
	return nil
}
