package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/p2p"
)

// benchProtocol is a stream of as many bytes as its first line says: what a connection can do at best.
const benchProtocol = "/bzd/bench/1"

// peerReport is what a process of the content benchmark prints, one line of JSON at a time.
type peerReport struct {
	Address string  `json:"address,omitempty"` // of one that serves
	Root    string  `json:"root,omitempty"`
	Bytes   uint64  `json:"bytes,omitempty"`
	Moved   uint64  `json:"moved,omitempty"`
	Wasted  uint64  `json:"wasted,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Peak    uint64  `json:"peak,omitempty"` // most memory of the process
	Partial bool    `json:"partial,omitempty"`
}

// benchPeer is one process of bench content: it does one thing and says how long it took.
//
//	import DIR STORE
//	serve STORE [silent]
//	fetch STORE ROOT ADDRESS...
//	stream ADDRESS BYTES
//	idle STORE
func benchPeer(ctx context.Context, env environment, args []string) error {
	say := func(r peerReport) error {
		r.Peak = peakMemory()
		return json.NewEncoder(env.out).Encode(r)
	}
	if len(args) < 2 {
		return usageError("it is for bench content")
	}
	switch args[0] {
	case "import":
		s, err := openBenchStore(args[2])
		if err != nil {
			return err
		}
		start := env.now()
		release := s.Hold()
		root, n, err := exchange.Publish(ctx, s, args[1])
		if err == nil {
			err = s.Pin(ctx, userPin(root))
		}
		release()
		if err == nil {
			err = say(peerReport{Root: root.String(), Bytes: n, Seconds: env.now().Sub(start).Seconds()})
		}
		return errors.Join(err, s.Close())
	case "idle", "serve":
		s, err := openBenchStore(args[1])
		if err != nil {
			return err
		}
		h, err := plainHost(true)
		if err != nil {
			return err
		}
		x := exchange.New(h, s, exchange.Config{})
		h.SetStreamHandler(benchProtocol, sendBytes)
		if len(args) > 2 {
			h.SetStreamHandler(exchange.BulkProtocol, func(st network.Stream) {
				_, _ = io.Copy(io.Discard, st)
				<-ctx.Done()
			})
		}
		err = say(peerReport{Address: h.Addrs()[0].String() + "/p2p/" + h.ID().String()})
		if args[0] == "serve" && err == nil {
			<-ctx.Done()
		}
		return errors.Join(err, x.Close(), h.Close(), s.Close())
	case "fetch":
		return benchFetch(ctx, env, args[1:], say)
	case "stream":
		return benchStream(ctx, env, args[1], args[2], say)
	}
	return usageError("no task %q", args[0])
}

func openBenchStore(dir string) (*blockstore.Store, error) {
	o := blockstore.DefaultOptions()
	o.Links = exchange.Links
	return blockstore.Open(dir, o)
}

// plainHost is a host on TCP, secured as nodes are, without what makes a node of it.
func plainHost(listen bool) (host.Host, error) {
	where := libp2p.NoListenAddrs
	if listen {
		where = libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0")
	}
	return libp2p.New(libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport),
		p2p.Security(), where, libp2p.DisableMetrics(), libp2p.DisableRelay(),
		libp2p.UserAgent("bzd"))
}

func benchFetch(ctx context.Context, env environment, args []string, say func(peerReport) error) error {
	root, err := cid.Decode(args[1])
	if err != nil {
		return err
	}
	s, err := openBenchStore(args[0])
	if err != nil {
		return err
	}
	h, err := plainHost(false)
	if err != nil {
		return err
	}
	x := exchange.New(h, s, exchange.Config{})
	for _, a := range args[2:] {
		info, err := peer.AddrInfoFromString(a)
		if err == nil {
			err = h.Connect(ctx, *info)
		}
		if err != nil {
			return err
		}
	}
	if err := s.Pin(ctx, userPin(root)); err != nil {
		return err
	}
	start, last := env.now(), env.now()
	p, err := x.FetchDAG(ctx, root, maxHeld, func(p exchange.Progress) {
		if now := env.now(); now.Sub(last) > 20*time.Millisecond {
			last = now
			_ = say(peerReport{Partial: true, Moved: p.MovedBytes})
		}
	})
	if err == nil {
		err = say(peerReport{Bytes: p.Bytes, Moved: p.MovedBytes, Wasted: p.Wasted, Seconds: env.now().Sub(start).Seconds()})
	}
	return errors.Join(err, x.Close(), h.Close(), s.Close())
}

// sendBytes sends as many bytes as the first line asks for.
func sendBytes(s network.Stream) {
	defer s.Close()
	line, err := bufio.NewReader(s).ReadString('\n')
	if err != nil {
		return
	}
	var n int64
	if _, err := fmt.Sscan(line, &n); err != nil {
		return
	}
	buf := make([]byte, 1<<20)
	for n > 0 {
		k, err := s.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return
		}
		n -= int64(k)
	}
}

func benchStream(ctx context.Context, env environment, address, bytes string, say func(peerReport) error) error {
	h, err := plainHost(false)
	if err != nil {
		return err
	}
	defer h.Close()
	info, err := peer.AddrInfoFromString(address)
	if err != nil {
		return err
	}
	if err := h.Connect(ctx, *info); err != nil {
		return err
	}
	s, err := h.NewStream(ctx, info.ID, benchProtocol)
	if err != nil {
		return err
	}
	start := env.now()
	if _, err := fmt.Fprintln(s, bytes); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, make([]byte, 1<<20))
	if err != nil {
		return err
	}
	return say(peerReport{Bytes: uint64(n), Seconds: env.now().Sub(start).Seconds()})
}

// peakMemory is the most memory that this process had, 0 where the system does not tell.
func peakMemory() uint64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	return peakOf(status)
}

// peakOf reads it from a process's status, as Linux has it.
func peakOf(status []byte) uint64 {
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kib uint64
			_, _ = fmt.Sscan(rest, &kib)
			return kib << 10
		}
	}
	return 0
}
