package archtest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// TestArchitecture applies the rules to this repository.
func TestArchitecture(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	tree, err := Load(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(tree.packages(), "internal/archtest") || tree.module != "github.com/blockzero-net/bzd" {
		t.Fatalf("loaded module %s with packages %v", tree.module, tree.packages())
	}
	for _, v := range Check(tree) {
		t.Error(v)
	}
}

// clean is a small tree that breaks no rule.
var clean = map[string]string{
	"go.mod":                   "module example.net/m\n\ngo 1.26\n",
	"cmd/bzd/doc.go":           "// Command bzd runs a node.\npackage main\n",
	"cmd/bzd/main.go":          "package main\n\nimport (\n\t\"time\"\n\t\"example.net/m/node\"\n)\n\nfunc main() { node.Run(time.Now()) }\n",
	"node/doc.go":              "// Package node puts the parts together.\npackage node\n",
	"node/node.go":             "package node\n\nimport (\n\t\"time\"\n\t_ \"example.net/m/content\"\n\t_ \"example.net/m/training/cpu\"\n)\n\nfunc Run(time.Time) {}\n",
	"content/doc.go":           "// Package content stores blocks.\npackage content\n",
	"content/content.go":       "package content\n\nimport _ \"example.net/m/internal/protocol\"\n",
	"training/cpu/doc.go":      "// Package cpu has kernels.\npackage cpu\n",
	"training/model/doc.go":    "// Package model has a model.\npackage model\n",
	"training/model/model.go":  "package model\n\nimport _ \"example.net/m/training/cpu\"\n",
	"validation/merge/doc.go":  "// Package merge merges.\npackage merge\n",
	"validation/merge/step.go": "package merge\n\nvar half = float32(0.5)\n",
	"consensus/doc.go":         "// Package consensus agrees.\npackage consensus\n",
	"internal/protocol/doc.go": "// Package protocol has records.\npackage protocol\n",
	"testdata/utils/x.go":      "not Go at all",
	"other/go.mod":             "module example.net/other\n",
	"other/x.go":               "package other\n",
}

// violations returns the names of the rules that a tree breaks, sorted.
func violations(t *testing.T, changes map[string]string) []string {
	t.Helper()
	fsys := make(fstest.MapFS)
	for _, files := range []map[string]string{clean, changes} {
		for name, text := range files {
			fsys[name] = &fstest.MapFile{Data: []byte(text)}
			if text == "" {
				delete(fsys, name)
			}
		}
	}
	tree, err := Load(fsys)
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, v := range Check(tree) {
		names[v.Rule.Name] = true
		if s := v.String(); v.Where == "" || !strings.Contains(s, v.Rule.Reason) || !strings.Contains(s, v.Rule.Remedy) {
			t.Errorf("a violation that explains nothing: %q", s)
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// importing is a file of a package that imports something, and perhaps has a body.
func importing(pkg, path string, body ...string) string {
	return "package " + pkg + "\n\nimport " + path + "\n\n" + strings.Join(body, "\n") + "\n"
}

const prometheus = "github.com/prometheus/client_golang/prometheus"

// TestRules shows for each rule trees that break it, and near misses that do not.
func TestRules(t *testing.T) {
	type tree = map[string]string
	fires := map[string]map[string]tree{
		"place": {
			"new top level": {"tools/doc.go": "// Package tools is new.\npackage tools\n"},
			"second binary": {"cmd/try/doc.go": "// Command try is new.\npackage main\n"},
			"module root":   {"doc.go": "// Package m is new.\npackage m\n"},
			"internal":      {"internal/x/doc.go": "// Package x is new.\npackage x\n"},
		},
		"imports": {
			"across domains":     {"content/x.go": importing("content", `"example.net/m/training/cpu"`)},
			"sub-package across": {"training/cpu/x.go": importing("cpu", `_ "example.net/m/validation/merge"`)},
			"node":               {"content/x.go": importing("content", `"example.net/m/node"`)},
			"api imports node":   {"node/api/doc.go": "// Package api serves.\npackage api\n", "node/api/x.go": importing("api", `"example.net/m/node"`)},
			"api imports domain": {"node/api/doc.go": "// Package api serves.\npackage api\n", "node/api/x.go": importing("api", `"example.net/m/content"`)},
			"arena":              {"content/x.go": importing("content", `"example.net/m/internal/arena"`)},
			"behind a build tag": {"content/x.go": "//go:build cuda\n\n" + importing("content", `"example.net/m/training/cpu"`)},
		},
		"leaf": {
			"third party": {"internal/protocol/x.go": importing("protocol", `"github.com/other/thing"`)},
			"own module":  {"internal/protocol/x.go": importing("protocol", `"example.net/m/content"`)},
		},
		"pure": {
			"disk":        {"consensus/x.go": importing("consensus", `"os"`)},
			"network":     {"consensus/x.go": importing("consensus", `"net/http"`)},
			"process":     {"validation/merge/x.go": importing("merge", `"os/exec"`)},
			"duration":    {"internal/protocol/x.go": importing("protocol", `"time"`)},
			"randomness":  {"consensus/x.go": importing("consensus", `"math/rand/v2"`)},
			"locks":       {"consensus/x.go": importing("consensus", `"sync/atomic"`)},
			"sibling":     {"validation/doc.go": "// Package validation scores.\npackage validation\n", "validation/merge/x.go": importing("merge", `"example.net/m/validation"`)},
			"third party": {"validation/merge/x.go": importing("merge", `"github.com/ipfs/go-cid"`)},
			"goroutine":   {"consensus/x.go": "package consensus\n\nfunc f() { go f() }\n"},
			"channel":     {"consensus/x.go": "package consensus\n\nfunc f(c chan int) {}\n"},
		},
		"integers": {
			"type":          {"consensus/x.go": "package consensus\n\nvar x = float64(1)\n"},
			"constant":      {"consensus/x.go": "package consensus\n\nvar x = 2 * 0.5\n"},
			"function":      {"validation/merge/x.go": importing("merge", `"math"`, "var x = math.Sqrt(2)")},
			"not this file": {"consensus/step.go": "package consensus\n\nvar x = float32(1)\n"},
		},
		"clock": {
			"now":     {"content/x.go": importing("content", `"time"`, "var t = time.Now()")},
			"sleep":   {"content/x.go": importing("content", `"time"`, "func f() { time.Sleep(1) }")},
			"after":   {"content/x.go": importing("content", `"time"`, "func f() { <-time.After(1) }")},
			"renamed": {"content/x.go": importing("content", `clock "time"`, "var now = clock.Now")},
			"dotted":  {"content/x.go": importing("content", `. "time"`, "var t = Now()")},
		},
		"test-sleep": {
			"domain":   {"content/x_test.go": importing("content", `"time"`, "func f() { time.Sleep(1) }")},
			"root":     {"node/x_test.go": importing("node_test", `"time"`, "func f() { time.Sleep(1) }")},
			"dotted":   {"content/x_test.go": importing("content", `. "time"`, "func f() { Sleep(1) }")},
			"as value": {"content/x_test.go": importing("content", `"time"`, "var nap = time.Sleep")},
		},
		"random": {
			"v1": {"content/x.go": importing("content", `"math/rand"`, "var n = rand.Intn(3)")},
			"v2": {"content/x.go": importing("content", `"math/rand/v2"`, "var n = rand.IntN(3)")},
		},
		"metrics": {
			"register": {"node/x.go": importing("node", `"`+prometheus+`"`, "func f() { prometheus.MustRegister(nil) }")},
			"promauto": {"content/x.go": importing("content", `"`+prometheus+`/promauto"`, "var c = promauto.NewCounter(nil)")},
			"handler":  {"node/x.go": importing("node", `"`+prometheus+`/promhttp"`, "var h = promhttp.Handler()")},
		},
		"doc": {
			"missing":      {"content/doc.go": ""},
			"empty":        {"content/doc.go": "package content\n"},
			"other words":  {"content/doc.go": "// This package stores blocks.\npackage content\n"},
			"other name":   {"content/doc.go": "// Package contents stores blocks.\npackage content\n"},
			"two comments": {"content/x.go": "// Package content again.\npackage content\n"},
			"command":      {"cmd/bzd/doc.go": "// Command main runs a node.\npackage main\n"},
			"only tests":   {"content/blockstore/x_test.go": "package blockstore\n"},
		},
		"state": {
			"no value":        {"content/x.go": "package content\n\nvar last string\n"},
			"made":            {"content/x.go": "package content\n\nvar seen = make(map[string]bool)\n"},
			"pointer":         {"content/x.go": "package content\n\nvar shared = &struct{ n int }{}\n"},
			"lock":            {"content/x.go": importing("content", `"sync"`, "var table = struct{ sync.Mutex }{}")},
			"pool":            {"content/x.go": importing("content", `"sync"`, "var pool = sync.Pool{}")},
			"channel":         {"node/x.go": "package node\n\nvar in chan int = nil\n"},
			"assigned":        {"content/x.go": "package content\n\nvar level = 1\n", "content/y.go": "package content\n\nfunc set() { level = 2 }\n"},
			"counted":         {"content/x.go": "package content\n\nvar level = 1\n\nfunc next() int { level++; return level }\n"},
			"element":         {"content/x.go": "package content\n\nvar names = map[int]string{}\n\nfunc set(i int) { names[i] = \"x\" }\n"},
			"field":           {"node/x.go": "package node\n\nvar c = struct{ n int }{}\n\nfunc set() { c.n = 2 }\n"},
			"deleted":         {"content/x.go": "package content\n\nvar names = map[int]string{1: \"\"}\n\nfunc set() { delete(names, 1) }\n"},
			"copied over":     {"content/x.go": "package content\n\nvar b = []byte{1}\n\nfunc set() { copy(b[1:], \"x\") }\n"},
			"address":         {"content/x.go": "package content\n\nvar n = 1\n\nfunc f() *int { return &n }\n"},
			"in a literal":    {"content/x.go": "package content\n\nvar n = 1\n\nvar f = func() { n = 2 }\n"},
			"other package":   {"content/x.go": "package content\n\nvar Level = 1\n", "node/x.go": importing("node", `"example.net/m/content"`, "func f() { content.Level = 2 }")},
			"renamed package": {"content/x.go": "package content\n\nvar Level = 1\n", "node/x.go": importing("node", `c "example.net/m/content"`, "func f() { c.Level++ }")},
		},
		"handed": {
			"pointer":   {"node/x.go": "package node\n\ntype Config struct{ Store *int }\n"},
			"interface": {"node/x.go": "package node\n\ntype Config struct{ Dir string; Store any }\n"},
			"channel":   {"node/x.go": "package node\n\ntype Config struct{ In chan int }\n"},
			"map":       {"node/x.go": "package node\n\ntype Behaviour struct{ Bad map[string]bool }\n"},
			"embedded":  {"node/x.go": "package node\n\ntype Config struct{ Parts }\n\ntype Parts struct{}\n"},
			"function":  {"node/x.go": "package node\n\ntype Config struct{ Ask func(string) []byte }\n"},
		},
		"init": {
			"init": {"content/x.go": "package content\n\nfunc init() {}\n"},
			"root": {"node/x.go": "package node\n\nfunc init() {}\n"},
		},
		"length": {
			"701 lines": {"content/x.go": "package content\n" + strings.Repeat("\n", 700)},
		},
		"names": {
			"package": {"content/utils/doc.go": "// Package utils has things.\npackage utils\n"},
			"file":    {"content/string_helpers.go": "package content\n"},
		},
		"cgo": {
			"no tag":    {"training/cpu/x.go": importing("cpu", `"C"`)},
			"other tag": {"training/cpu/x.go": "//go:build linux && !cuda\n\n" + importing("cpu", `"C"`)},
			"either":    {"training/cpu/x.go": "//go:build cuda || linux\n\n" + importing("cpu", `"C"`)},
		},
	}
	for _, r := range Rules() {
		if len(fires[r.Name]) == 0 {
			t.Errorf("nothing shows that rule %q fires", r.Name)
		}
	}
	for rule, cases := range fires {
		for name, changes := range cases {
			t.Run(rule+"/"+name, func(t *testing.T) {
				got := violations(t, changes)
				// A package in the wrong place or with the wrong imports may break a second rule; the one meant must be there.
				if !slices.Contains(got, rule) {
					t.Errorf("broke %v, not %s", got, rule)
				}
				if also := slices.DeleteFunc(got, func(n string) bool { return n == rule }); len(also) > 0 && !allowedBeside(rule, also) {
					t.Errorf("also broke %v", also)
				}
			})
		}
	}

	passes := map[string]tree{
		"clean":                    {},
		"within a domain":          {"training/cpu/x.go": importing("cpu", `_ "example.net/m/training/model"`)},
		"leaf's libraries":         {"internal/protocol/x.go": importing("protocol", `_ "github.com/ipfs/go-cid"`)},
		"test across domains":      {"content/x_test.go": importing("content_test", `_ "example.net/m/training/cpu"`)},
		"tables":                   {"content/x.go": importing("content", `"sync"`, "var names = map[int]string{1: \"a\"}\n\nvar table = sync.OnceValue(func() []int { t := make([]int, 3); t[0] = 1; return t })\n\nvar _ = names[1]")},
		"own variable of the name": {"content/x.go": "package content\n\nvar n = 1\n\nfunc f(n int) int { n = 2; return n }\n\nfunc g() int { n := 3; n++; return n }\n"},
		"embedded file":            {"content/x.go": importing("content", `_ "embed"`, "//go:embed x.txt\nvar text string")},
		"state of a test":          {"content/x_test.go": "package content\n\nvar n int\n"},
		"state of the command":     {"cmd/bzd/x.go": "package main\n\nvar n int\n"},
		"handed values":            {"node/x.go": importing("node", `"time"`, "type Config struct {\n\tDir string\n\tListen []string\n\tNow func() time.Time\n\tEvents func(Event)\n}\n\ntype Event struct{}")},
		"duration":                 {"content/x.go": importing("content", `"time"`, "const d = time.Second")},
		"another Now":              {"content/x.go": "package content\n\nvar time = struct{ Now func() }{}\n\nfunc f() { time.Now() }\n"},
		"clock in a test":          {"content/x_test.go": importing("content", `"time"`, "var t = time.Now()")},
		"clock in devnet":          {"node/devnet/doc.go": "// Package devnet is a network.\npackage devnet\n", "node/devnet/x.go": importing("devnet", `"time"`, "var t = time.Now()")},
		"seeded":                   {"content/x.go": importing("content", `"math/rand/v2"`, "var r *rand.Rand = rand.New(rand.NewPCG(1, 2))")},
		"method init":              {"content/x.go": "package content\n\ntype t struct{}\n\nfunc (t) init() {}\n"},
		"init of CPU features":     {"training/cpu/cpufeatures_amd64.go": "package cpu\n\nfunc init() {}\n"},
		"generated": {"content/x.go": "// Code generated by y. DO NOT EDIT.\n\npackage content\n\nfunc init() {}\n" +
			strings.Repeat("\n", 800)},
		"long test":            {"content/x_test.go": "package content\n" + strings.Repeat("\n", 800)},
		"700 lines":            {"content/x.go": "package content\n" + strings.Repeat("\n", 699)},
		"cuda":                 {"training/cpu/x.go": "//go:build linux && cuda\n\n" + importing("cpu", `"C"`)},
		"own registry":         {"content/x.go": importing("content", `"`+prometheus+`"`, "func f(r *prometheus.Registry) { r.MustRegister(nil) }")},
		"integer limits":       {"consensus/x.go": importing("consensus", `"math"`, "const m = math.MaxInt64")},
		"impure sub-package":   {"consensus/runner/doc.go": "// Package runner runs.\npackage runner\n", "consensus/runner/x.go": importing("runner", `_ "os"`)},
		"generator to ignore":  {"training/cpu/gen.go": "//go:build ignore\n\n" + importing("main", `_ "example.net/m/node"`)},
		"utility is not util":  {"content/utility.go": "package content\n"},
		"hidden and test data": {"content/testdata/x.go": "package utils\n", "content/.hidden/x.go": "package utils\n", "_x/x.go": "package x\n"},
	}
	for name, changes := range passes {
		t.Run("passes/"+name, func(t *testing.T) {
			if got := violations(t, changes); len(got) > 0 {
				t.Errorf("broke %v", got)
			}
		})
	}
}

// allowedBeside lists where one fault breaks two rules.
func allowedBeside(rule string, also []string) bool {
	both := map[string][]string{
		"imports": {"pure"}, // validation/merge importing abroad
		"leaf":    {"pure"},
	}
	return !slices.ContainsFunc(also, func(n string) bool { return !slices.Contains(both[rule], n) })
}

func TestLoadRefuses(t *testing.T) {
	for name, fsys := range map[string]fstest.MapFS{
		"no go.mod":   {},
		"no module":   {"go.mod": {Data: []byte("go 1.26\n")}},
		"bad syntax":  {"go.mod": {Data: []byte("module m\n")}, "x.go": {Data: []byte("nothing")}},
		"broken tags": {"go.mod": {Data: []byte("module m\n")}, "x.go": {Data: []byte("//go:build &&\n\npackage x\n")}},
	} {
		if _, err := Load(fsys); err == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}
