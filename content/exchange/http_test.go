package exchange

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/gateway"
)

// TestFetchHTTP fetches a checkpoint from a gateway, then the next one, of which only the changed blocks move, and from
// gateways that lie, lack blocks or send without end.
func TestFetchHTTP(t *testing.T) {
	a, b := newStore(t, blockstore.DefaultOptions()), newStore(t, blockstore.DefaultOptions())
	dir, root := writeCheckpoint(t, 2)
	_, size, err := Publish(t.Context(), a, dir)
	must(t, err)
	h, err := gateway.New(a, gateway.Config{})
	must(t, err)
	server := httptest.NewServer(h)
	defer server.Close()
	fetch := func(base string, bounds Bounds) (Progress, error) {
		return FetchHTTP(t.Context(), server.Client(), base, b, root, bounds, nil)
	}
	var lies atomic.Int64
	hostile := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch lies.Add(1) {
		case 1:
			http.NotFound(w, r)
		case 2:
			_, _ = w.Write([]byte("other bytes"))
		default:
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}
	}))
	defer hostile.Close()
	for i, want := range []error{ErrMissing, ErrLied, ErrLied} {
		if p, err := fetch(hostile.URL, roomy); !errors.Is(err, want) || p.Blocks != 0 {
			t.Errorf("lie %d: %+v, %v", i, p, err)
		}
	}
	if _, err := fetch(server.URL, Bounds{MaxBytes: size - 1}); !errors.Is(err, ErrBounds) {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := fetch("ftp://127.0.0.1", roomy); err == nil || !strings.Contains(err.Error(), "http://127.0.0.1:8080") {
		t.Errorf("no address: %v", err)
	}
	if p, err := fetch(server.URL, roomy); err != nil || p.Bytes != size {
		t.Fatalf("%+v of %d, %v", p, size, err)
	}
	nextDir, next := writeCheckpoint(t, 3)
	_, _, err = Publish(t.Context(), a, nextDir)
	must(t, err)
	p, err := FetchHTTP(t.Context(), server.Client(), server.URL+"/", b, next, roomy, nil)
	if err != nil || p.MovedBlocks != 2 {
		t.Errorf("the next checkpoint: %+v, %v", p, err)
	}
}
