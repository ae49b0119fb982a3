package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// TestEncodings gives the mnemonic beside every encoded instruction to the GNU assembler, which must encode it alike.
func TestEncodings(t *testing.T) {
	const binutils = "aarch64-linux-gnu-"
	if _, err := exec.LookPath(binutils + "as"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: install binutils-aarch64-linux-gnu", err)
		}
		t.Skipf("%v: binutils-aarch64-linux-gnu has it", err)
	}
	var source bytes.Buffer
	var want []uint32
	word := regexp.MustCompile(`\tWORD \$0x([0-9a-f]{8}) // (.*)\n`)
	for _, m := range word.FindAllSubmatch(Files()["zz_kernels_arm64.s"], -1) {
		code, err := strconv.ParseUint(string(m[1]), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, uint32(code))
		source.Write(append(m[2], '\n'))
	}
	if len(want) < 100 {
		t.Fatalf("%d encoded instructions, there are more", len(want))
	}
	dir := t.TempDir()
	run := func(stdin *bytes.Buffer, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(binutils+name, args...)
		if stdin != nil {
			cmd.Stdin = stdin
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	object, raw := filepath.Join(dir, "o"), filepath.Join(dir, "raw")
	run(bytes.NewBuffer(bytes.Clone(source.Bytes())), "as", "-o", object, "-")
	run(nil, "objcopy", "-O", "binary", "-j", ".text", object, raw)
	code, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if len(code) != 4*len(want) {
		t.Fatalf("the assembler gives %d bytes for %d instructions", len(code), len(want))
	}
	lines := bytes.Split(source.Bytes(), []byte("\n"))
	for i, w := range want {
		if got := binary.LittleEndian.Uint32(code[4*i:]); got != w {
			t.Errorf("%s is %#08x, encoded as %#08x", lines[i], got, w)
		}
	}
}
