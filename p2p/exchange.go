package p2p

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Bounds of an answer in the peer exchange.
const (
	maxExchanged = 16   // peers
	maxRecord    = 1024 // bytes of one signed peer record
)

// peersProtocol asks a peer whom it is connected to. The answer is a list of signed peer records, each behind its length
// as a varint: addresses that the peers named themselves, so that nobody can send others to an address of his choice
// under a name that is not his.
var peersProtocol = Protocol{Name: "peers", MaxRequest: 0, MaxResponse: maxExchanged * (maxRecord + 2)}

var errPeers = errors.New("p2p: bad answer in peer exchange")

// encodePeers packs a random choice of the records.
func encodePeers(records [][]byte, rng *rand.Rand) []byte {
	rng.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	var out []byte
	for _, r := range records[:min(len(records), maxExchanged)] {
		out = binary.AppendUvarint(out, uint64(len(r)))
		out = append(out, r...)
	}
	return out
}

// parsePeers unpacks and checks an answer that came over a connection to the address via.
func parsePeers(b []byte, via ma.Multiaddr) ([]peer.AddrInfo, error) {
	var out []peer.AddrInfo
	for n := 0; len(b) > 0; n++ {
		size, k := binary.Uvarint(b)
		if n == maxExchanged || k <= 0 || size == 0 || size > maxRecord || uint64(len(b)-k) < size {
			return nil, fmt.Errorf("%w: no list of at most %d records of at most %d bytes", errPeers, maxExchanged, maxRecord)
		}
		info, err := openRecord(b[k : k+int(size)])
		if err != nil {
			return nil, err
		}
		b = b[k+int(size):]
		if info.Addrs = ma.FilterAddrs(info.Addrs, reachableLike(via)); len(info.Addrs) > 0 {
			out = append(out, info)
		}
	}
	return out, nil
}

func openRecord(b []byte) (peer.AddrInfo, error) {
	env, rec, err := record.ConsumeEnvelope(b, peer.PeerRecordEnvelopeDomain)
	if err != nil {
		return peer.AddrInfo{}, fmt.Errorf("%w: %w", errPeers, err)
	}
	r, ok := rec.(*peer.PeerRecord)
	if !ok || !r.PeerID.MatchesPublicKey(env.PublicKey) {
		return peer.AddrInfo{}, fmt.Errorf("%w: a record that its peer did not sign", errPeers)
	}
	return peer.AddrInfo{ID: r.PeerID, Addrs: r.Addrs}, nil
}

// reachableLike accepts addresses that make sense to whoever reached somebody at via: no loopback from another machine, no
// private network from the public one.
func reachableLike(via ma.Multiaddr) func(ma.Multiaddr) bool {
	switch {
	case manet.IsIPLoopback(via):
		return func(ma.Multiaddr) bool { return true }
	case manet.IsPublicAddr(via):
		return manet.IsPublicAddr
	default:
		return func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) }
	}
}

// servePeers answers with the connected peers. The choice only needs to differ between askers and times.
func (h *Host) servePeers(_ context.Context, from peer.ID, _ []byte) ([]byte, error) {
	return encodePeers(h.table.records(from), h.newRand(uint64(h.clock.Now().UnixNano()), string(from))), nil
}

// askPeers asks one peer for others.
func (h *Host) askPeers(ctx context.Context, p peer.ID) ([]peer.AddrInfo, error) {
	b, err := h.Request(ctx, p, peersProtocol, nil)
	if err != nil {
		return nil, err
	}
	conns := h.libp2p.Network().ConnsToPeer(p)
	if len(conns) == 0 {
		return nil, fmt.Errorf("p2p: peer %s has gone", p)
	}
	return parsePeers(b, conns[0].RemoteMultiaddr())
}
