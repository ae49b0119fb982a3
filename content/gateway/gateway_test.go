package gateway

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve runs a gateway on loopback.
func serve(t *testing.T, config Config) (*blockstore.Store, string) {
	t.Helper()
	store, err := blockstore.Open(t.TempDir(), blockstore.DefaultOptions())
	must(t, err)
	t.Cleanup(func() { must(t, store.Close()) })
	h, err := New(store, config)
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := Server(h)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		must(t, server.Shutdown(context.Background()))
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return store, "http://" + l.Addr().String()
}

// fetch asks without following redirects.
func fetch(t *testing.T, method, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	must(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := http.Client{Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	must(t, errors.Join(err, resp.Body.Close()))
	if !strings.Contains(resp.Header.Get("Content-Security-Policy"), "sandbox") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: headers %v give what is shown the rights of the origin", url, resp.Header)
	}
	return resp, string(body)
}

const config = `{"model_type":"qwen3_moe"}`

func publish(t *testing.T, store *blockstore.Store) (root cid.Cid, weights []byte) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "phi")
	data := make([]float32, 700_000) // three leaves
	for i := range data {
		data[i] = float32(i % 999)
	}
	_, err := checkpoint.Write(dir, checkpoint.Contents{
		Documents: map[string][]byte{"config.json": []byte(config), "README.md": []byte("<script>alert(1)</script>")},
		Files: []checkpoint.File{{Name: "hub-00001.safetensors",
			Tensors: []checkpoint.Tensor{{Name: "hub", DType: checkpoint.F32, Shape: []int64{700_000}, Data: data}}}},
	})
	must(t, err)
	root, _, err = checkpoint.Blocks(dir, nil, func(b blocks.Block) error {
		if b.Cid().Prefix().Codec == cid.Raw && len(b.RawData()) > 100_000 {
			weights = append(weights, b.RawData()...)
		}
		return store.Put(t.Context(), b)
	})
	must(t, err)
	return root, weights
}

func TestCheckpoint(t *testing.T) {
	store, url := serve(t, Config{})
	root, weights := publish(t, store)
	base := url + "/ipfs/" + root.String()

	resp, body := fetch(t, "GET", base+"/config.json")
	if resp.StatusCode != 200 || body != config || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("config.json: %s %q, %v", resp.Status, body, resp.Header)
	}
	if cache := resp.Header.Get("Cache-Control"); !strings.Contains(cache, "immutable") {
		t.Errorf("Cache-Control %q", cache)
	}
	etag := resp.Header.Get("Etag")
	if resp, _ := fetch(t, "GET", base+"/config.json", "If-None-Match", etag); resp.StatusCode != 304 {
		t.Errorf("with its Etag %s: %s", etag, resp.Status)
	}
	file := base + "/hub-00001.safetensors"
	if resp, body := fetch(t, "GET", file); resp.StatusCode != 200 || body != string(weights) {
		t.Errorf("weights: %s, %d bytes", resp.Status, len(body))
	}
	if resp, body := fetch(t, "HEAD", file); resp.StatusCode != 200 || body != "" || resp.ContentLength != int64(len(weights)) {
		t.Errorf("HEAD: %s, length %d", resp.Status, resp.ContentLength)
	}
	from, to := 1<<20-5, 1<<20+5 // across two leaves
	resp, body = fetch(t, "GET", file, "Range", fmt.Sprintf("bytes=%d-%d", from, to))
	if resp.StatusCode != 206 || body != string(weights[from:to+1]) {
		t.Errorf("range: %s, %d bytes", resp.Status, len(body))
	}
	if resp, body := fetch(t, "GET", file, "Range", "bytes=-3"); resp.StatusCode != 206 || body != string(weights[len(weights)-3:]) {
		t.Errorf("last bytes: %s, %q", resp.Status, body)
	}
	if resp, _ := fetch(t, "GET", file, "Range", fmt.Sprintf("bytes=%d-", len(weights)+1)); resp.StatusCode != 416 {
		t.Errorf("range past the end: %s", resp.Status)
	}
}

func TestTrustless(t *testing.T) {
	store, url := serve(t, Config{})
	root, _ := publish(t, store)
	want, err := store.Get(t.Context(), root)
	must(t, err)
	for _, how := range [][]string{{"?format=raw"}, {"", "Accept", "application/vnd.ipld.raw"}} {
		resp, body := fetch(t, "GET", url+"/ipfs/"+root.String()+how[0], how[1:]...)
		if resp.StatusCode != 200 || body != string(want.RawData()) || resp.Header.Get("Content-Type") != "application/vnd.ipld.raw" {
			t.Errorf("raw %q: %s, %d bytes, %v", how, resp.Status, len(body), resp.Header)
		}
	}
	resp, body := fetch(t, "GET", url+"/ipfs/"+root.String()+"?format=car")
	if resp.StatusCode != 200 || !strings.Contains(body, string(want.RawData())) || !strings.Contains(body, config) {
		t.Errorf("car: %s, %d bytes", resp.Status, len(body))
	}
	// A record.
	record := []byte{0xa0}
	link := protocol.LinkTo(protocol.DagCBOR, record)
	b, err := blocks.NewBlockWithCid(record, link.Cid())
	must(t, err)
	must(t, store.Put(t.Context(), b))
	for _, query := range []string{"", "?format=raw", "?format=dag-cbor"} {
		if resp, body := fetch(t, "GET", url+"/ipfs/"+link.String()+query); resp.StatusCode != 200 || body != string(record) {
			t.Errorf("record %q: %s, %q", query, resp.Status, body)
		}
	}
}

// TestDirectories: a directory is a page that escapes its names, or the archive of what is below.
func TestDirectories(t *testing.T) {
	store, url := serve(t, Config{})
	root, weights := publish(t, store)
	if resp, _ := fetch(t, "GET", url+"/ipfs/"+root.String()); resp.StatusCode != 301 || resp.Header.Get("Location") != "/ipfs/"+root.String()+"/" {
		t.Errorf("without its slash: %s %v", resp.Status, resp.Header)
	}
	resp, body := fetch(t, "GET", url+"/ipfs/"+root.String()+"/", "Accept", "text/html")
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") ||
		!strings.Contains(body, "config.json") || !strings.HasPrefix(resp.Header.Get("Etag"), `"DirIndex-`) {
		t.Errorf("listing: %s %v %q", resp.Status, resp.Header, body)
	}
	if resp, _ := fetch(t, "GET", url+"/ipfs/"+root.String()+"/", "If-None-Match", resp.Header.Get("Etag")); resp.StatusCode != 304 {
		t.Errorf("listing with its Etag: %s", resp.Status)
	}
	if resp, body := fetch(t, "HEAD", url+"/ipfs/"+root.String()+"/"); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %s %q", resp.Status, body)
	}
	resp, body = fetch(t, "GET", url+"/ipfs/"+root.String()+"?format=tar")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-tar" {
		t.Errorf("tar: %s %v", resp.Status, resp.Header)
	}
	files := map[string]int{}
	for r := tar.NewReader(strings.NewReader(body)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		files[strings.TrimPrefix(h.Name, root.String()+"/")] = int(h.Size)
	}
	if files["config.json"] != len(config) || files["hub-00001.safetensors"] != len(weights) {
		t.Errorf("tar holds %v", files)
	}

	page := blockstoretest.Raw([]byte("<html><script>alert(1)</script></html>"))
	must(t, store.Put(t.Context(), page))
	hostile := directory(t, store, "index.html", page.Cid())
	outer := directory(t, store, "sub\n<script>", hostile)
	if resp, body := fetch(t, "GET", url+"/ipfs/"+hostile.String()+"/"); resp.StatusCode != 200 || body != string(page.RawData()) {
		t.Errorf("index.html: %s %q", resp.Status, body)
	}
	if resp, body := fetch(t, "GET", url+"/ipfs/"+outer.String()+"/"); resp.StatusCode != 200 || strings.Contains(body, "<script>") {
		t.Errorf("a name is not escaped: %s %q", resp.Status, body)
	}
	for _, path := range []string{"/missing", "/config.json/x"} {
		if resp, _ := fetch(t, "GET", url+"/ipfs/"+root.String()+path); resp.StatusCode != 404 {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// directory puts a directory of one entry.
func directory(t *testing.T, store *blockstore.Store, name string, to cid.Cid) cid.Cid {
	t.Helper()
	n := merkledag.NodeWithData(unixfs.FolderPBData())
	must(t, n.SetCidBuilder(cid.V1Builder{Codec: cid.DagProtobuf, MhType: mh.SHA2_256}))
	must(t, n.AddRawLink(name, &format.Link{Name: name, Cid: to}))
	must(t, store.Put(t.Context(), n))
	return n.Cid()
}

// TestCatalogue: what else is in the store is not there, in any format, until it is added.
func TestCatalogue(t *testing.T) {
	only := &Catalogue{}
	store, url := serve(t, Config{Only: only})
	*only = *NewCatalogue(store)
	root, weights := publish(t, store)
	secret := blockstoretest.Raw([]byte("somebody's update"))
	must(t, store.Put(t.Context(), secret))
	leaf := blockstoretest.Raw(weights[:1<<20]).Cid()
	ask := func(c cid.Cid, how string) int {
		t.Helper()
		resp, _ := fetch(t, "GET", url+"/ipfs/"+c.String()+how)
		return resp.StatusCode
	}
	all := []string{"", "?format=raw", "?format=car"}
	for _, how := range all {
		if a, b, c := ask(root, how), ask(leaf, how), ask(secret.Cid(), how); a != 404 || b != 404 || c != 404 {
			t.Errorf("empty catalogue, %q: %d %d %d", how, a, b, c)
		}
	}
	must(t, only.Add(t.Context(), root))
	must(t, only.Add(t.Context(), root))
	for _, how := range all {
		if a, b, c := ask(root, "/config.json"+how), ask(leaf, how), ask(secret.Cid(), how); a != 200 || b != 200 || c != 404 {
			t.Errorf("with a checkpoint, %q: %d %d %d", how, a, b, c)
		}
	}
	other := directory(t, store, "part", leaf)
	must(t, only.Add(t.Context(), other))
	only.Remove(root)
	if a, b := ask(root, "?format=raw"), ask(leaf, ""); a != 404 || b != 200 {
		t.Errorf("after one of two roots was removed: %d, its shared leaf %d", a, b)
	}
	only.Remove(other)
	only.Remove(other)
	if ask(leaf, "") != 404 || len(only.blocks) != 0 {
		t.Errorf("after both: %d blocks shown", len(only.blocks))
	}
	must(t, store.DeleteBlock(t.Context(), root))
	if err := only.Add(t.Context(), root); !format.IsNotFound(err) || only.Has(root) {
		t.Errorf("a root that is not here: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	only := &Catalogue{}
	store, url := serve(t, Config{Only: only, Size: 3 << 20})
	*only = *NewCatalogue(store)
	root, weights := publish(t, store)
	must(t, only.Add(t.Context(), root))
	if len(weights) >= 3<<20 || len(weights) < 2<<20 {
		t.Fatalf("%d bytes of weights", len(weights))
	}
	identity, err := mh.Sum([]byte("hello"), mh.IDENTITY, -1)
	must(t, err)
	for _, test := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/ipfs/" + blockstoretest.Block(1, 10).Cid().String(), 404},
		{"HEAD", "/ipfs/" + blockstoretest.Block(1, 10).Cid().String(), 404},
		{"GET", "/ipfs/" + blockstoretest.Block(1, 10).Cid().String() + "?format=raw", 404},
		{"GET", "/ipfs/" + blockstoretest.Block(1, 10).Cid().String() + "/config.json", 404},
		{"GET", "/ipfs/" + root.String() + "/nothing.json", 404},
		{"GET", "/", 404},
		{"GET", "/ipfs", 404},
		{"GET", "/ipfs/", 400},
		{"GET", "/ipfs/nonsense", 400},
		{"GET", "/ipfs/" + cid.NewCidV1(cid.Raw, identity).String(), 404},
		{"GET", "/ipns/example.com", 404},
		{"GET", "/ipns/" + root.String(), 404},
		{"POST", "/ipfs/" + root.String(), 405},
		{"PUT", "/ipfs/" + root.String(), 405},
		{"DELETE", "/ipfs/" + root.String(), 405},
		{"OPTIONS", "/ipfs/" + root.String(), 200},
	} {
		if resp, body := fetch(t, test.method, url+test.path, "Accept", "text/html"); resp.StatusCode != test.want || strings.Contains(body, "<html") {
			t.Errorf("%s %s: %s %q, want %d", test.method, test.path, resp.Status, body, test.want)
		}
	}
	missing := url + "/ipfs/" + blockstoretest.Block(1, 10).Cid().String()
	if resp, _ := fetch(t, "HEAD", missing, "Cache-Control", "only-if-cached"); resp.StatusCode != 412 {
		t.Errorf("only if cached: %s", resp.Status)
	}
	// The Host header means nothing.
	req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/config.json", nil)
	must(t, err)
	req.Host = root.String() + ".ipfs.localhost"
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	must(t, resp.Body.Close())
	if resp.StatusCode != 404 {
		t.Errorf("a host name leads to content: %s", resp.Status)
	}
	if _, err := New(store, Config{Only: only, Fetch: offline.Exchange(store)}); err == nil {
		t.Error("a gateway of its own content that fetches")
	}
}

// TestSize: what is larger than the bound is not answered for in any format.
func TestSize(t *testing.T) {
	store, url := serve(t, Config{Size: 1 << 20})
	root, _ := publish(t, store)
	for path, want := range map[string]int{"/config.json": 200, "/hub-00001.safetensors": 410, "?format=car": 410, "?format=tar": 410} {
		if resp, _ := fetch(t, "GET", url+"/ipfs/"+root.String()+path); resp.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, resp.Status, want)
		}
	}
}

// TestPublic: without a catalogue, blocks of every form are shown, and fetched.
func TestPublic(t *testing.T) {
	there, err := blockstore.Open(t.TempDir(), blockstore.DefaultOptions())
	must(t, err)
	t.Cleanup(func() { must(t, there.Close()) })
	_, url := serve(t, Config{Fetch: offline.Exchange(there)})
	root, _ := publish(t, there)
	if resp, body := fetch(t, "GET", url+"/ipfs/"+root.String()+"/config.json"); resp.StatusCode != 200 || body != config {
		t.Errorf("fetched: %s %q", resp.Status, body)
	}
	identity, err := mh.Sum([]byte("hello"), mh.IDENTITY, -1)
	must(t, err)
	if resp, body := fetch(t, "GET", url+"/ipfs/"+cid.NewCidV1(cid.Raw, identity).String()); resp.StatusCode != 200 || body != "hello" {
		t.Errorf("identity: %s %q", resp.Status, body)
	}
	if resp, _ := fetch(t, "GET", url+"/ipfs/"+cid.NewCidV0(root.Hash()).String()+"/config.json"); resp.StatusCode != 200 {
		t.Errorf("version 0: %s", resp.Status)
	}
}

// TestTwoInOneProcess: metrics of two gateways do not meet.
func TestTwoInOneProcess(t *testing.T) {
	r := prometheus.NewRegistry()
	store, url := serve(t, Config{Metrics: r})
	_, _ = serve(t, Config{})
	root, _ := publish(t, store)
	if resp, _ := fetch(t, "GET", url+"/ipfs/"+root.String()+"/config.json"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	metrics, err := r.Gather()
	must(t, err)
	found := false
	for _, m := range metrics {
		found = found || strings.Contains(m.GetName(), "gw_")
	}
	if !found {
		t.Error("no metrics")
	}
	def, err := prometheus.DefaultGatherer.Gather()
	must(t, err)
	for _, m := range def {
		if strings.Contains(m.GetName(), "gw_") {
			t.Errorf("%s is in the default registry", m.GetName())
		}
	}
}

// TestHalfAFile: a file of which a leaf is missing ends early; it is never padded.
func TestHalfAFile(t *testing.T) {
	store, url := serve(t, Config{Stall: 2 * time.Second})
	root, weights := publish(t, store)
	middle := blockstoretest.Raw(weights[1<<20 : 2<<20])
	must(t, store.DeleteBlock(t.Context(), middle.Cid()))
	req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/ipfs/"+root.String()+"/hub-00001.safetensors", nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	body, err := io.ReadAll(resp.Body)
	must(t, resp.Body.Close())
	if resp.StatusCode == 200 && err == nil || !bytes.HasPrefix(weights, body) && resp.StatusCode == 200 {
		t.Errorf("%s, %d bytes, %v", resp.Status, len(body), err)
	}
}
