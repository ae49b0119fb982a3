package cpu

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestConstantsNEON compares the constants of ARM64 with those of AMD64, which TestConstants compares with Go's.
func TestConstantsNEON(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	amd64 := read("zz_kernels_amd64.s")
	load := regexp.MustCompile(`VMOVQ \$0x(\w{8})(\w{8}), \$0x(\w{8})(\w{8}), V\d+ // (\w+)\n`)
	uses := load.FindAllStringSubmatch(read("zz_kernels_arm64.s"), -1)
	if len(uses) < 40 {
		t.Errorf("%d constants are loaded, there are more", len(uses))
	}
	for _, m := range uses {
		data := "DATA ·" + m[5] + "<>+0(SB)/4, $0x" + m[1] + "\n"
		if m[2] != m[1] || m[3] != m[1] || m[4] != m[1] || !strings.Contains(amd64, data) {
			t.Errorf("%s is not four times what AMD64 has", strings.TrimSpace(m[0]))
		}
	}
}
