package discovery

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/internal/protocol"
)

type stoppedClock struct {
	systemClock
	now time.Time
}

func (c *stoppedClock) Now() time.Time { return c.now }

type stream struct {
	network.Stream
	from peer.ID
	io.Reader
}

func (s stream) Conn() network.Conn         { return connection{peer: s.from} }
func (s stream) Read(p []byte) (int, error) { return s.Reader.Read(p) }

// TestJudge: what one participant may say is counted over all its peers, all others together may say as much, and a peer
// asks no faster than it should.
func TestJudge(t *testing.T) {
	clock := &stoppedClock{now: time.Unix(1e9, 0)}
	g := newGuard(nil, Config{Clock: clock, Participant: func(p peer.ID) (protocol.ID, bool) {
		return protocol.ID{p[0]}, p[0] != 0
	}})
	allowed := func(kind pb.Message_MessageType, who byte, peers, each int) (n int) {
		for i := range peers {
			for range each {
				m := &pb.Message{Type: kind}
				g.judge(t.Context(), stream{from: peer.ID(fmt.Sprintf("%c%d/%d", who, kind, i))}, m)
				if m.GetType() == kind {
					n++
				}
			}
		}
		return n
	}
	for who := range byte(3) {
		if n := allowed(pb.Message_ADD_PROVIDER, who, 40, 5); n != recordBurst {
			t.Errorf("%d records of participant %d", n, who)
		}
	}
	clock.now = clock.now.Add(recordEvery)
	if n := allowed(pb.Message_ADD_PROVIDER, 1, 40, 5); n != 1 {
		t.Errorf("%d records %v later", n, recordEvery)
	}
	if n := allowed(pb.Message_GET_PROVIDERS, 1, 1, 1000); n != peerBurst {
		t.Errorf("%d requests of one peer", n)
	}
	// Peers cost nothing: those who have asked once are forgotten when they might ask as often again.
	allowed(pb.Message_GET_PROVIDERS, 0, 3*maxAllowed, 1)
	if n := len(g.asked.of); n > maxAllowed {
		t.Errorf("%d peers are remembered", n)
	}
	clock.now = clock.now.Add(time.Minute)
	if n := allowed(pb.Message_FIND_NODE, 0, 1, 1); n != 1 {
		t.Error("a minute after a flood of peers nobody new is answered")
	}
}

// TestStreams: a peer holds as many streams as the DHT needs, and all together a fixed number.
func TestStreams(t *testing.T) {
	g := newGuard(nil, Config{})
	peers := 0
	for ; ; peers++ {
		p, n := peer.ID(fmt.Sprint(peers)), 0
		for g.enter(p) {
			n++
		}
		if n == 0 {
			break
		}
		if n > peerStreams {
			t.Fatalf("%d streams of one peer", n)
		}
	}
	if peers*peerStreams != maxStreams {
		t.Errorf("%d peers", peers)
	}
	g.leave("0")
	if !g.enter("new") || g.enter("another") {
		t.Error("a place that became free")
	}
}

// FuzzRequests: whatever comes, however it is cut, passes unchanged up to the first request that claims more than
// maxRequest.
func FuzzRequests(f *testing.F) {
	request := func(n int) []byte { return append(binary.AppendUvarint(nil, uint64(n)), make([]byte, n)...) }
	f.Add(append(append(request(3), request(0)...), request(200)...))
	f.Add(append(request(maxRequest), request(maxRequest+1)...))
	f.Add(binary.AppendUvarint(nil, network.MessageSizeMax))
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	f.Add([]byte{0x80, 0x80, 0x80, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, cut := range []func(io.Reader) io.Reader{
			func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader,
		} {
			out, err := io.ReadAll(&requests{Stream: stream{Reader: cut(bytes.NewReader(in))}})
			if !bytes.HasPrefix(in, out) || err == nil && len(out) != len(in) {
				t.Fatalf("%x became %x: %v", in, out, err)
			}
			rest := out
			for len(rest) > 0 {
				n, k := binary.Uvarint(rest)
				if k <= 0 { // the length is not complete
					break
				}
				if n > maxRequest {
					t.Fatalf("a request of %d bytes passed", n)
				}
				rest = rest[k:]
				rest = rest[min(int(n), len(rest)):]
			}
			if err != nil && !errors.Is(err, errLong) {
				t.Fatal(err)
			}
		}
	})
}
