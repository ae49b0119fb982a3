package archtest

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// rounded are the packages whose floating point must be the same on every machine, in the patterns of the go command.
var rounded = []string{"./training/...", "./validation/..."}

// tolerant are those among them that compare within a tolerance: references in float64.
var tolerant = []string{"/training/backend/backendtest"}

var fused = regexp.MustCompile(`^  (\S+\.go:\d+)\s.*\sFN?M(ADD|SUB)[SD] `)

// TestNothingFused disassembles what the compiler makes of the exact packages for ARM64. There it turns x*y + z into
// one instruction that rounds once, unless the product is converted explicitly; for AMD64 it rounds twice.
func TestNothingFused(t *testing.T) {
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("go", args...)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
		}
		return string(out)
	}
	packages := 0
	list := append([]string{"list", "-export", "-f", "{{.ImportPath}} {{.Export}}"}, rounded...)
next:
	for line := range strings.Lines(run(list...)) {
		name, archive, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, p := range tolerant {
			if strings.HasSuffix(name, p) {
				continue next
			}
		}
		if archive == "" { // nothing of it is built for ARM64
			continue
		}
		packages++
		for _, f := range fusedIn(run("tool", "objdump", archive)) {
			t.Errorf("%s, %s: a product is fused into a sum on ARM64, which gives other bits than elsewhere: "+
				"write float32(x*y) + z or float64(x*y) + z", name, f)
		}
	}
	if packages < 10 {
		t.Errorf("%d packages disassembled, there are more", packages)
	}
	if len(fusedIn("TEXT f(SB) gofile..x.go\n"+
		"  x.go:7\t0x3e9\t\t1f420820\t\tFMADDD F1, F2, F2, F0\t\n"+
		"  x.go:8\t0x3ed\t\t1e620820\t\tFMULD F2, F1, F0\t\n")) != 1 {
		t.Error("a fused instruction is not recognised")
	}
}

// fusedIn returns the places of fused instructions in a disassembly.
func fusedIn(disassembly string) []string {
	var places []string
	for line := range strings.Lines(disassembly) {
		if m := fused.FindStringSubmatch(line); m != nil {
			places = append(places, m[1])
		}
	}
	return places
}
