package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/blockzero-net/bzd/training/cpu"
)

// TestMain gives the scripts the real program, under a second name too: bzd-nogo is the program on a machine without Go.
func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){
		"bzd":      main,
		"bzd-nogo": func() { serve(noGo) },
	})
}

// noGo finds no Go installation: it looks at $GOROOT as findGOROOT does, but not at the places where this machine may
// have one.
func noGo() (string, []string) { return "", []string{os.Getenv("GOROOT"), "/usr/local/go"} }

// suite makes the directory that all tests share and removes it at the end.
type suite struct{ *testing.M }

func (s suite) Run() int {
	dir, err := os.MkdirTemp("", "bzd-test-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	shared = dir
	return s.M.Run()
}

var shared string

// machine is what the tests found on this machine: sources of Go, and the network of the embedded genesis founded on
// them. Tests only read it.
type machine struct {
	goroot  string
	looked  []string
	network string // directory
	output  string // of founding it
}

var prepared = sync.OnceValue(func() machine {
	var m machine
	if m.goroot, m.looked = findGOROOT(); m.goroot == "" {
		return m
	}
	m.network = filepath.Join(shared, "network")
	var out, errs bytes.Buffer
	env := testEnvironment(map[string]string{"BZD_DIR": m.network})
	env.out, env.err = &out, &errs
	if code := run(context.Background(), env, []string{"genesis", "plan"}); code != 0 {
		log.Fatalf("bzd genesis plan: exit code %d\n%s", code, errs.String())
	}
	m.output = out.String()
	return m
})

// sources skips a test where there is no text for the built-in domains.
func sources(t *testing.T) machine {
	t.Helper()
	m := prepared()
	if m.goroot == "" {
		t.Skipf("no Go installation with sources (GOROOT/src), the text of the built-in domains; looked in %s", strings.Join(m.looked, ", "))
	}
	return m
}

// testEnvironment is an environment with a clock that stands still.
func testEnvironment(vars map[string]string) environment {
	return environment{
		out: io.Discard, err: io.Discard,
		getenv: func(k string) string { return vars[k] },
		now:    func() time.Time { return time.Unix(1_700_000_000, 0) },
		goroot: findGOROOT,
	}
}

// TestScripts runs testdata/*.txtar against the real program. BZD_DIR is the shared network, GENESIS its checkpoint; a
// script that writes to a network makes a copy or its own.
func TestScripts(t *testing.T) {
	m := prepared()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                scriptCommands,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "gosrc":
				return m.goroot != "", nil
			case "avx2", "avx512":
				return slices.Contains(cpu.Available(), cpu.ISA(cond)), nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Setup: func(e *testscript.Env) error {
			if m.goroot != "" {
				e.Setenv("GOROOT", m.goroot)
				e.Setenv("BZD_DIR", m.network)
				e.Setenv("GENESIS", filepath.Join(m.network, genesisDir))
			}
			return nil
		},
	})
}
