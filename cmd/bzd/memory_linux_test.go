package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/node/local/localtest"
	"github.com/blockzero-net/bzd/training/model"
)

// TestTrainMemory trains a group of a model of 300 MiB in processes of their own, and scores the delta, and reads from the
// system what they held at most: about what was planned. With less of the model in memory the delta and the score are the
// same. What cannot be done is refused.
func TestTrainMemory(t *testing.T) {
	if os.Getenv("CI") == "" {
		t.Skip("trains models of 300 MiB; it runs where CI is set")
	}
	if testing.Short() {
		t.Skip("writes a model of 300 MiB")
	}
	m := sources(t)
	dir := t.TempDir()
	c := model.Config{Family: model.OLMoE, Vocab: 300, Dim: 512, Layers: 8, Heads: 8, KVHeads: 8, HeadDim: 64, Experts: 32, TopK: 4, Width: 384,
		Positions: 128, RopeTheta: 10000, NormEps: 1e-5}
	if err := localtest.Write(filepath.Join(dir, "model"), c, false, 64<<20); err != nil {
		t.Fatal(err)
	}
	group := "go="
	for l := range c.Layers {
		group += fmt.Sprintf("%d:%d;", l, l%c.Experts)
	}
	env := testEnvironment(map[string]string{"BZD_DIR": filepath.Join(dir, "network")})
	errs := new(bytes.Buffer)
	env.err = errs
	if code := run(t.Context(), env, []string{"genesis", "import", "--sample", "256", "--groups", group[:len(group)-1], filepath.Join(dir, "model")}); code != 0 {
		t.Fatal(errs)
	}
	if err := os.RemoveAll(filepath.Join(dir, "model")); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	planned := regexp.MustCompile(`at most (\d+) MiB`)
	bzd := func(args ...string) (peak, plan int64, out, text string, err error) {
		var stdout, errs bytes.Buffer
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Args[0], cmd.Stdout, cmd.Stderr = "bzd", &stdout, &errs
		cmd.Env = append(os.Environ(), "BZD_DIR="+filepath.Join(dir, "network"), "GOROOT="+m.goroot)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		look := time.NewTicker(5 * time.Millisecond)
		defer look.Stop()
		for {
			select {
			case err := <-ended:
				if p := planned.FindStringSubmatch(errs.String()); p != nil {
					plan, _ = strconv.ParseInt(p[1], 10, 64)
				}
				t.Logf("%v: planned %d MiB, held %d MiB at most\n%s", args, plan, peak>>20, errs.String())
				return peak, plan << 20, stdout.String(), errs.String(), err
			case <-look.C:
				peak = max(peak, residentPeak(cmd.Process.Pid))
			}
		}
	}
	train := func(memory string) (peak, plan int64, text string, err error) {
		peak, plan, _, text, err = bzd("train", "--group", "go", "--tokens", "256", "--memory", memory, "--out", filepath.Join(dir, memory))
		return peak, plan, text, err
	}
	whole, plan, text, err := train("2GiB")
	if err != nil {
		t.Fatal(text)
	}
	if whole > plan+plan/10 || whole < plan-plan/10 {
		t.Errorf("%d MiB planned, %d held", plan>>20, whole>>20)
	}
	part, plan, text, err := train("330MiB")
	if err != nil {
		t.Fatal(text)
	}
	if part > plan+plan/10 || plan > 330<<20 {
		t.Errorf("%d MiB planned, %d held", plan>>20, part>>20)
	}
	sameFiles(t, filepath.Join(dir, "2GiB"), filepath.Join(dir, "330MiB"))
	_, _, want, text, err := bzd("eval", "--mapped", "1GiB", filepath.Join(dir, "2GiB"))
	if err != nil {
		t.Fatal(text)
	}
	peak, _, got, text, err := bzd("eval", "--mapped", "16MiB", filepath.Join(dir, "2GiB"))
	if err != nil || got != want {
		t.Errorf("with 16 MiB of weights in memory: %s%s, want %s", text, got, want)
	}
	if peak > 200<<20 {
		t.Errorf("%d MiB held to evaluate with 16 MiB of weights in memory", peak>>20)
	}
	if _, _, text, err := train("100MiB"); err == nil || !regexp.MustCompile(`training needs at least \d+ MiB .*what would fit: `).MatchString(text) {
		t.Errorf("trains in 100 MiB: %v, %s", err, text)
	}
}

// residentPeak is VmHWM of a process, in bytes; 0 if it is gone.
func residentPeak(pid int) int64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	p := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(raw)
	if p == nil {
		return 0
	}
	kib, _ := strconv.ParseInt(string(p[1]), 10, 50)
	return kib << 10
}
