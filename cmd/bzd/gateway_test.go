package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestGateway: a node's directory shows its checkpoints and nothing else, with --public all it has, and ends cleanly.
func TestGateway(t *testing.T) {
	m := sources(t)
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "phi.car")
	var list []held
	for _, args := range [][]string{
		{"checkpoint", "export", "--car", file, filepath.Join(m.network, genesisDir)},
		{"checkpoint", "import", "--car", file, "--dir", dir}, {"checkpoint", "ls", "--json", "--dir", dir},
	} {
		env := testEnvironment(nil)
		var out strings.Builder
		env.out, env.err = &out, &out
		if code := run(t.Context(), env, args); code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, out.String())
		}
		_ = json.Unmarshal([]byte(out.String()), &list) // of the last
	}
	if len(list) != 1 {
		t.Fatalf("%d checkpoints", len(list))
	}
	root := list[0].Checkpoint
	for _, flags := range [][]string{nil, {"--public"}} {
		ctx, cancel := context.WithCancel(t.Context())
		r, w := io.Pipe()
		env := testEnvironment(nil)
		env.out = w
		ended := make(chan int, 1)
		go func() {
			ended <- run(ctx, env, append([]string{"gateway", "--dir", dir, "--listen", "127.0.0.1:0"}, flags...))
			w.Close()
		}()
		line, err := bufio.NewReader(r).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		url, _, _ := strings.Cut(strings.TrimPrefix(line, "gateway: "), " ")
		const empty = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku" // of no bytes; not in the store
		for path, want := range map[string]int{root + "/config.json": 200, root + "?format=raw": 200, empty: 404} {
			resp, err := http.Get(url + path)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Body.Close(); resp.StatusCode != want {
				t.Errorf("%v: %s: %s, want %d", flags, path, resp.Status, want)
			}
		}
		cancel()
		select {
		case code := <-ended:
			if code != 0 {
				t.Errorf("%v: exit %d", flags, code)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%v: does not end", flags)
		}
	}
	var out strings.Builder
	env := testEnvironment(nil)
	env.err = &out
	if code := run(t.Context(), env, []string{"gateway", "--dir", dir, "--peer", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"}); code != 2 {
		t.Errorf("--peer without --public: exit %d, %s", code, out.String())
	}
}
