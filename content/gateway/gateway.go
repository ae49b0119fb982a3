package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/ipfs/boxo/blockservice"
	boxo "github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/gateway"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Config bounds a gateway. The zero value is usable.
type Config struct {
	// Stall is how long a request may go without a byte being written, 0 means 30 s.
	Stall time.Duration
	// Duration is how long a request may take in all, 0 means an hour.
	Duration time.Duration
	// Requests is how many are answered at a time, 0 means 64; others get 429. Each holds a few blocks of 1 MiB.
	Requests int
	// Metrics takes the gateway's metrics; nil drops them.
	Metrics prometheus.Registerer
}

// maxSegments is how deep a path is followed. A checkpoint has one level.
const maxSegments = 8

// handler answers what it must answer differently from boxo and leaves the rest to it.
type handler struct {
	store boxo.Blockstore
	inner http.Handler
}

// New returns the handler of a store. It answers paths below /ipfs/ and 404 for all others.
func New(store boxo.Blockstore, config Config) (http.Handler, error) {
	if config.Stall <= 0 {
		config.Stall = 30 * time.Second
	}
	if config.Duration <= 0 {
		config.Duration = time.Hour
	}
	if config.Requests <= 0 {
		config.Requests = 64
	}
	if config.Metrics == nil {
		config.Metrics = prometheus.NewRegistry()
	}
	backend, err := gateway.NewBlocksBackend(blockservice.New(store, nil)) // no exchange: nothing is fetched
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	return &handler{store: store, inner: gateway.NewHandler(gateway.Config{
		DeserializedResponses: true,
		NoDNSLink:             true,
		DisableHTMLErrors:     true,
		RetrievalTimeout:      config.Stall,
		MaxRequestDuration:    config.Duration,
		MaxConcurrentRequests: config.Requests,
		MetricsRegistry:       config.Metrics,
	}, backend)}, nil
}

// Server returns a server of h with limits on what a client may send and leave open. The caller gives it a listener.
func Server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Nothing here is this host's own page.
	w.Header().Set("Content-Security-Policy", "default-src 'none'; sandbox")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/ipfs/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	first, rest, _ := strings.Cut(rest, "/")
	root, err := cid.Decode(first)
	if err == nil {
		_, err = protocol.NewLink(root)
	}
	if err != nil {
		http.Error(w, fmt.Sprintf("%.100q is not a CID of this network: version 1, sha2-256; dag-pb, dag-cbor or raw", first),
			http.StatusBadRequest)
		return
	}
	if verifiable(r) {
		h.inner.ServeHTTP(w, r)
		return
	}
	list, err := h.directory(r.Context(), root, rest)
	switch {
	case format.IsNotFound(err), errors.Is(err, errNoPath):
		http.NotFound(w, r)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case list != nil:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if r.Method == http.MethodGet {
			_, _ = w.Write(list) // the client may be gone
		}
	default:
		h.inner.ServeHTTP(w, r)
	}
}

// verifiable reports whether blocks are asked for rather than what they mean.
func verifiable(r *http.Request) bool {
	switch r.URL.Query().Get("format") {
	case "raw", "car":
		return true
	case "":
	default:
		return false
	}
	accept := strings.Join(r.Header.Values("Accept"), ",")
	return strings.Contains(accept, "application/vnd.ipld.raw") || strings.Contains(accept, "application/vnd.ipld.car")
}

var errNoPath = errors.New("no such path")

// directory follows a path, and returns what it shows of a directory, nil for anything else.
func (h *handler) directory(ctx context.Context, c cid.Cid, path string) ([]byte, error) {
	segments := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	if len(segments) > maxSegments {
		return nil, errNoPath
	}
	for {
		if c.Prefix().Codec != protocol.DagPB {
			if len(segments) > 0 && c.Prefix().Codec == protocol.Raw {
				return nil, errNoPath
			}
			return nil, nil
		}
		b, err := h.store.Get(ctx, c)
		if err != nil {
			return nil, err
		}
		node, err := merkledag.DecodeProtobuf(b.RawData())
		if err != nil {
			return nil, errNoPath // the block is not what its CID calls it
		}
		info, err := unixfs.FSNodeFromBytes(node.Data())
		if err != nil {
			return nil, errNoPath
		}
		switch {
		case info.Type() == unixfs.TFile && len(segments) == 0:
			return nil, nil
		case info.Type() != unixfs.TDirectory: // shards and links are not of this network
			return nil, errNoPath
		case len(segments) == 0:
			list := []byte{}
			for _, l := range node.Links() {
				list = fmt.Appendf(list, "%s\t%d\t%q\n", l.Cid, l.Size, l.Name)
			}
			return list, nil
		}
		l, err := node.GetNodeLink(segments[0])
		if err != nil {
			return nil, errNoPath
		}
		c, segments = l.Cid, segments[1:]
	}
}
