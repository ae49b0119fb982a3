package protocol

import "crypto/ed25519"

// maxPeerID is above every libp2p peer id in use.
const maxPeerID = 64

// maxSmall bounds the records that have no list: binding, head, commitment, score commit, vote, status vote.
const maxSmall = 1 << 10

// Binding ties a libp2p peer to a participant. It proves that the holder of Key claims the peer id; that Key is the
// participant's is for a [Snapshot] to say, and that the peer holds its peer id for libp2p.
type Binding struct {
	Version uint32 `cbor:"version"`
	Network Link   `cbor:"network"` // dag-cbor: the genesis document
	ID      ID     `cbor:"id"`
	Key     Key    `cbor:"key"`
	PeerID  []byte `cbor:"peer"` // libp2p's binary form, 1 to 64 bytes
	Sig     Sig    `cbor:"sig"`  // by Key
}

// DecodeBinding decodes and checks a binding; the signature is not verified.
func DecodeBinding(b []byte) (Binding, error) { return decode[Binding]("binding", maxSmall, b) }

// SigningBytes implements [Signed].
func (b Binding) SigningBytes() []byte {
	b.Sig = Sig{}
	return signingBytes("binding", b)
}

// Sign signs the binding. The error is not nil if the key has a wrong length or the record has no encoding.
func (b *Binding) Sign(key ed25519.PrivateKey) error { return sign(key, b.SigningBytes(), &b.Sig) }

// VerifySig implements [Signed]; key must be the one that the binding names.
func (b Binding) VerifySig(key Key) bool { return key == b.Key && verify(key, b.SigningBytes(), b.Sig) }

// Signer implements [Signed].
func (b Binding) Signer() ID { return b.ID }

// Validate implements [Record].
func (b Binding) Validate() error { return validate("binding", b) }

func (b Binding) faults(f faults) {
	f.version(b.Version)
	f.link("network", b.Network, DagCBOR)
	if n := len(b.PeerID); n == 0 || n > maxPeerID {
		f.add("peer", "%d bytes, want 1 to %d", n, maxPeerID)
	}
	f.signed(b.Sig)
}

// Head says which checkpoint a participant has at the start of a cycle, and by which certificate.
type Head struct {
	Version     uint32 `cbor:"version"`
	Network     Link   `cbor:"network"` // dag-cbor: the genesis document
	Cycle       uint64 `cbor:"cycle"`
	Checkpoint  Link   `cbor:"checkpoint"`  // dag-pb: Φ(cycle)
	Certificate *Link  `cbor:"certificate"` // dag-cbor: of the last merge; nil (CBOR null) while Φ is genesis's
	ID          ID     `cbor:"id"`
	Sig         Sig    `cbor:"sig"`
}

// DecodeHead decodes and checks a head; the signature is not verified.
func DecodeHead(b []byte) (Head, error) { return decode[Head]("head", maxSmall, b) }

// SigningBytes implements [Signed].
func (h Head) SigningBytes() []byte {
	h.Sig = Sig{}
	return signingBytes("head", h)
}

// Sign signs the head. The error is not nil if the key has a wrong length or the record has no encoding.
func (h *Head) Sign(key ed25519.PrivateKey) error { return sign(key, h.SigningBytes(), &h.Sig) }

// VerifySig implements [Signed].
func (h Head) VerifySig(key Key) bool { return verify(key, h.SigningBytes(), h.Sig) }

// Signer implements [Signed].
func (h Head) Signer() ID { return h.ID }

// Validate implements [Record].
func (h Head) Validate() error { return validate("head", h) }

func (h Head) faults(f faults) {
	f.version(h.Version)
	f.link("network", h.Network, DagCBOR)
	f.link("checkpoint", h.Checkpoint, DagPB)
	if h.Certificate != nil {
		f.link("certificate", *h.Certificate, DagCBOR)
	}
	f.signed(h.Sig)
}
