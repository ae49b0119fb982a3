package p2p

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// TestSecurity: two hosts speak TLS, one with a host that knows only Noise that, and everything arrives, however long.
func TestSecurity(t *testing.T) {
	const protocol = "/echo"
	open := func(security libp2p.Option) host.Host {
		h, err := libp2p.New(libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport), security, libp2p.DisableMetrics(),
			libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Close() })
		h.SetStreamHandler(protocol, func(s network.Stream) {
			_, _ = io.Copy(s, s)
			_ = s.Close()
		})
		return h
	}
	here := open(Security())
	for _, test := range []struct {
		there host.Host
		want  string
	}{{open(Security()), tls.ID}, {open(libp2p.Security(tls.ID, tls.New)), tls.ID}, {open(libp2p.Security(noise.ID, noise.New)), noise.ID}} {
		if err := here.Connect(t.Context(), peer.AddrInfo{ID: test.there.ID(), Addrs: test.there.Addrs()}); err != nil {
			t.Fatal(err)
		}
		if got := here.Network().ConnsToPeer(test.there.ID())[0].ConnState().Security; string(got) != test.want {
			t.Errorf("secured with %s, want %s", got, test.want)
		}
		var work sync.WaitGroup
		for i, n := range []int{0, 1, 1000, tlsRecord, tlsRecord + 1, 65524, joined, 1 << 20} {
			work.Go(func() {
				s, err := here.NewStream(t.Context(), test.there.ID(), protocol)
				if err != nil {
					t.Error(err)
					return
				}
				sent := bytes.Repeat([]byte{byte(i), 1, 2}, n)
				work.Go(func() {
					_, err := s.Write(sent)
					if err = errors.Join(err, s.CloseWrite()); err != nil {
						t.Error(err)
					}
				})
				if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, sent) {
					t.Errorf("%d bytes: %d came, %v", len(sent), len(got), err)
				}
			})
		}
		work.Wait()
	}
}

// recorder is a connection that keeps what is written to it, and fails when it has had enough.
type recorder struct {
	net.Conn
	writes [][]byte
	enough int
}

var errEnough = errors.New("enough")

func (r *recorder) Write(p []byte) (int, error) {
	if len(r.writes) == r.enough {
		return 0, errEnough
	}
	r.writes = append(r.writes, slices.Clone(p))
	return len(p), nil
}

// TestJoiner: what is held becomes one write, in order, unless it is too long; and after a failure nothing follows.
func TestJoiner(t *testing.T) {
	long := make([]byte, joined-10)
	r := &recorder{enough: 5}
	j := &joiner{Conn: r, buffers: &sync.Pool{New: func() any { return new([joined]byte) }}}
	write := func(p []byte) {
		t.Helper()
		if n, err := j.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	write([]byte("a"))
	for range 2 {
		j.hold()
		write([]byte("bc"))
		write([]byte("d"))
		if err := j.release(); err != nil {
			t.Fatal(err)
		}
	}
	j.hold()
	write([]byte("e"))
	write(long)
	write([]byte("0123456789")) // too much: what is held goes first, then this
	if err := j.release(); err != nil {
		t.Fatal(err)
	}
	want := [][]byte{[]byte("a"), []byte("bcd"), []byte("bcd"), append([]byte("e"), long...), []byte("0123456789")}
	if !slices.EqualFunc(r.writes, want, bytes.Equal) {
		t.Errorf("%d writes", len(r.writes))
	}
	j.hold()
	write([]byte("lost"))
	if err := j.release(); !errors.Is(err, errEnough) {
		t.Error(err)
	}
	r.enough = 10
	if n, err := j.Write([]byte("after a gap")); n != 0 || !errors.Is(err, errEnough) || len(r.writes) != 5 {
		t.Errorf("%d, %v", n, err)
	}
}
