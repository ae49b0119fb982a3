package cpu_test

import (
	"fmt"
	"testing"

	"github.com/blockzero-net/bzd/training/backend/backendtest"
	"github.com/blockzero-net/bzd/training/cpu"
)

// TestConformance runs the suite of package backendtest on every instruction set, alone and with threads.
func TestConformance(t *testing.T) {
	for _, isa := range cpu.Available() {
		for _, threads := range []int{1, 3} {
			if testing.Short() && threads == 1 {
				continue
			}
			t.Run(fmt.Sprintf("%s×%d", isa, threads), func(t *testing.T) {
				b, err := cpu.New(cpu.Options{ISA: isa, Threads: threads})
				if err != nil {
					t.Fatal(err)
				}
				backendtest.RunAll(t, b, backendtest.Options{Exact: true})
			})
		}
	}
}
