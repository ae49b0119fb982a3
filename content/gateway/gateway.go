package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange"
	"github.com/ipfs/boxo/gateway"
	"github.com/ipfs/go-cid"
	"github.com/prometheus/client_golang/prometheus"
)

// Config bounds a gateway. The zero value is usable: it shows the whole store and fetches nothing.
type Config struct {
	// Only is what is shown; nil shows everything in the store.
	Only *Catalogue
	// Fetch brings blocks that the store does not have; nil fetches nothing. It must not be set beside Only.
	Fetch exchange.Interface
	// Stall is how long a request may go without a byte being written, 0 means 30 s.
	Stall time.Duration
	// Duration is how long a request may take in all, 0 means an hour.
	Duration time.Duration
	// Requests is how many are answered at a time, 0 means 64; others get 429. Each holds a few blocks of 1 MiB.
	Requests int
	// Size is the largest file or directory that is answered for, in bytes, whatever the format; above it is 410. 0 means
	// no bound.
	Size int64
	// Metrics takes the gateway's metrics; nil drops them.
	Metrics prometheus.Registerer
}

// What a browser may do with what others published: show it, without the rights of this origin. Own content has no
// scripts at all; the style is that of directory listings.
const (
	policyOwn    = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; sandbox"
	policyPublic = "sandbox allow-scripts allow-forms allow-popups allow-downloads"
)

type handler struct {
	policy string
	here   blockstore.Blockstore // nil if blocks may come from elsewhere
	inner  http.Handler
}

// New returns the handler of a store. It answers paths below /ipfs/ and 404 for all others.
func New(store blockstore.Blockstore, config Config) (http.Handler, error) {
	if config.Only != nil && config.Fetch != nil {
		return nil, fmt.Errorf("gateway: one that shows its own content has nothing to fetch")
	}
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
	policy := policyOwn
	if config.Only != nil {
		store = shown{store, config.Only}
	} else {
		policy = policyPublic
		store = blockstore.NewIdStore(store) // a CID may carry its few bytes itself
	}
	backend, err := gateway.NewBlocksBackend(blockservice.New(store, config.Fetch))
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	inner := gateway.NewHandler(gateway.Config{
		DeserializedResponses:    true,
		NoDNSLink:                true,
		DisableHTMLErrors:        true,
		DeprecatedXIpfsPath:      true, // the specifications still ask for it
		RetrievalTimeout:         config.Stall,
		MaxRequestDuration:       config.Duration,
		MaxConcurrentRequests:    config.Requests,
		MaxUnixFSDAGResponseSize: config.Size,
		MetricsRegistry:          config.Metrics,
	}, backend)
	h := &handler{policy: policy, inner: gateway.NewHeaders(nil).WithDeprecatedXIpfsPath().ApplyCors().Wrap(inner)}
	if config.Fetch == nil {
		h.here = store
	}
	return h, nil
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
	w.Header().Set("Content-Security-Policy", h.policy)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	rest, ok := strings.CutPrefix(r.URL.Path, "/ipfs/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	if h.here != nil && r.Method != http.MethodOptions && r.Header.Get("Cache-Control") != "only-if-cached" {
		// Boxo would begin a CAR of what it then does not find.
		first, _, _ := strings.Cut(rest, "/")
		if root, err := cid.Decode(first); err == nil {
			if there, err := h.here.Has(r.Context(), root); err == nil && !there {
				http.NotFound(w, r)
				return
			}
		}
	}
	h.inner.ServeHTTP(w, r)
}
