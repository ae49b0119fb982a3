package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// canceller is a standard error that interrupts the command when it has printed a line that matches.
type canceller struct {
	bytes.Buffer
	pattern *regexp.Regexp
	cancel  func()
}

func (c *canceller) Write(p []byte) (int, error) {
	n, err := c.Buffer.Write(p)
	if c.pattern.Match(c.Bytes()) {
		c.cancel()
	}
	return n, err
}

// perform runs a command on the shared network and interrupts it when standard error matches; it returns the exit code
// and what was printed.
func perform(t *testing.T, interruptAt string, then func(), args ...string) (code int, out, errs string) {
	t.Helper()
	m := sources(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	env := testEnvironment(map[string]string{"BZD_DIR": m.network})
	var stdout bytes.Buffer
	stderr := &canceller{pattern: regexp.MustCompile(interruptAt), cancel: func() {
		if then != nil {
			then()
		}
		cancel()
	}}
	env.out, env.err = &stdout, stderr
	code = run(ctx, env, args)
	return code, stdout.String(), stderr.String()
}

// never matches nothing.
const never = `a\z.`

func firstStep(what string) string { return what + `  step 1/` }

// TestTrainResumes: an interrupted training is saved, and the same command ends with the delta of one that never stopped.
func TestTrainResumes(t *testing.T) {
	t.Parallel()
	sources(t)
	dir := t.TempDir()
	whole, parts := filepath.Join(dir, "whole.delta"), filepath.Join(dir, "parts.delta")
	train := func(out, interruptAt string) (int, string, string) {
		return perform(t, interruptAt, nil, "train", "--group", "go", "--tokens", "1024", "--out", out)
	}
	if code, _, errs := train(whole, never); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	code, out, errs := train(parts, firstStep("go"))
	if code != 130 || out != "" {
		t.Fatalf("interrupted: exit code %d, want 130; printed %q, %q", code, out, errs)
	}
	if want := "bzd: interrupted\nbzd: saved in " + parts + ".state; the same command goes on from here\n"; !strings.HasSuffix(errs, want) {
		t.Fatalf("interrupted: said %q, want %q at the end", errs, want)
	}
	mustExist(t, parts+".state", true)
	mustExist(t, parts, false)
	// Another command with the same output must not take the state for its own.
	if code, _, errs := perform(t, never, nil, "train", "--group", "asm", "--tokens", "1024", "--out", parts); code != 1 ||
		!strings.Contains(errs, "belongs to another run") || !strings.Contains(errs, "delete the file to start over") {
		t.Fatalf("another group on this state: exit code %d, %s", code, errs)
	}
	code, _, errs = train(parts, never)
	if code != 0 {
		t.Fatalf("resumed: exit code %d: %s", code, errs)
	}
	if strings.Contains(errs, "step 1/") || !strings.Contains(errs, "step 4/4") {
		t.Errorf("resumed: it did not go on at step 2: %s", errs)
	}
	mustExist(t, parts+".state", false)
	sameFiles(t, whole, parts)
}

// TestInterruptWithoutSaving: where the state cannot be written nobody is told that it was.
func TestInterruptWithoutSaving(t *testing.T) {
	t.Parallel()
	sources(t)
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	code, _, errs := perform(t, firstStep("go"), func() { os.RemoveAll(dir) },
		"train", "--group", "go", "--tokens", "1024", "--out", filepath.Join(dir, "x.delta"))
	if code != 130 || !strings.Contains(errs, "bzd: nothing is saved: ") || strings.Contains(errs, "goes on from here") {
		t.Fatalf("exit code %d, said %s", code, errs)
	}
}

// TestGenesisTrainResumes is TestTrainResumes for the base model.
func TestGenesisTrainResumes(t *testing.T) {
	t.Parallel()
	sources(t)
	dir := t.TempDir()
	whole, parts := filepath.Join(dir, "whole"), filepath.Join(dir, "parts")
	train := func(out, interruptAt string) (int, string, string) {
		return perform(t, interruptAt, nil, "genesis", "train", "--steps", "41", "--out", out)
	}
	if code, _, errs := train(whole, never); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	code, _, errs := train(parts, firstStep("genesis"))
	state := filepath.Join(parts, "train.state")
	if code != 130 || !strings.HasSuffix(errs, "bzd: saved in "+state+"; the same command goes on from here\n") {
		t.Fatalf("interrupted: exit code %d, want 130; said %q", code, errs)
	}
	mustExist(t, state, true)
	mustExist(t, filepath.Join(parts, "base.safetensors"), false)
	if code, _, errs := train(parts, never); code != 0 || strings.Contains(errs, "step 1/") {
		t.Fatalf("resumed: exit code %d: %s", code, errs)
	}
	mustExist(t, state, false)
	for _, name := range []string{"base.safetensors", "recipe.json"} {
		sameFiles(t, filepath.Join(whole, name), filepath.Join(parts, name))
	}
}

func mustExist(t *testing.T, path string, want bool) {
	t.Helper()
	if _, err := os.Stat(path); (err == nil) != want {
		t.Fatalf("%s exists: %v, want %v", path, err == nil, want)
	}
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if len(x) == 0 || !bytes.Equal(x, y) {
		t.Fatalf("%s and %s differ (%d and %d bytes)", a, b, len(x), len(y))
	}
}
