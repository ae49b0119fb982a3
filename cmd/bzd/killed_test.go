package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTrainKilled kills the real program, at every step of the training and when it puts its results in place, until it
// comes to an end: delta, moments and feedback are those of a run that nobody killed.
func TestTrainKilled(t *testing.T) {
	t.Parallel()
	m := sources(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func(dir string) (*exec.Cmd, *bytes.Buffer) {
		errs := new(bytes.Buffer)
		cmd := exec.CommandContext(t.Context(), program, "train", "--group", "go", "--tokens", "1024", "--cycle", "3", "--save-every", "0",
			"--out", "delta", "--moments", "moments", "--feedback", "feedback", "--state", "bf16", "--schedule", "cosine")
		cmd.Args[0], cmd.Dir, cmd.Stderr = "bzd", dir, errs
		cmd.Env = append(os.Environ(), "BZD_DIR="+m.network, "GOROOT="+m.goroot)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, errs
	}
	begin, whole, parts := t.TempDir(), t.TempDir(), t.TempDir()
	for _, dir := range []string{begin, whole} { // a cycle before gives moments and feedback
		if dir == whole {
			for _, copied := range []string{whole, parts} {
				if err := os.CopyFS(copied, os.DirFS(begin)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if cmd, errs := start(dir); cmd.Wait() != nil {
			t.Fatal(errs)
		}
	}
	left := func(name string) string {
		raw, err := os.ReadFile(filepath.Join(parts, name))
		if err != nil {
			return ""
		}
		return string(raw)
	}
	// Each run goes on for as long as the file is as it found it.
	kills := 0
	for _, file := range []string{"delta.state", "delta.state", "delta.state", "delta.next", "moments.next", "delta.done", "moments", "feedback"} {
		before := left(file)
		cmd, errs := start(parts)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		look := time.NewTicker(50 * time.Microsecond)
		for over := false; !over; {
			select {
			case err := <-ended:
				if err != nil {
					t.Fatalf("%v: %s", err, errs)
				}
				over = true
			case <-look.C:
				if left(file) != before {
					if err := cmd.Process.Kill(); err == nil {
						kills++
					}
					<-ended
					over = true
				}
			}
		}
		look.Stop()
		if left("delta.done") == "" && left("delta.state") == "" && left("delta") != "" && kills > 3 {
			break // it is done; the same command would train again
		}
	}
	if kills < 4 {
		t.Fatalf("killed %d times", kills)
	}
	if left("delta.done") != "" || left("delta.state") != "" {
		if cmd, errs := start(parts); cmd.Wait() != nil {
			t.Fatal(errs)
		}
	}
	for _, name := range []string{"delta", "moments", "feedback"} {
		sameFiles(t, filepath.Join(whole, name), filepath.Join(parts, name))
	}
	entries, err := os.ReadDir(parts)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !strings.Contains("delta moments feedback", e.Name()) {
			t.Errorf("%s is left", e.Name())
		}
	}
}
