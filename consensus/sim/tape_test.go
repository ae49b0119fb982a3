package sim

import (
	"fmt"
	"testing"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// BenchmarkMachine is what one validator hears in one W, through its machine.
func BenchmarkMachine(b *testing.B) {
	for _, miners := range []int{64, 256} {
		b.Run(fmt.Sprintf("validators=256/miners=%d", miners), func(b *testing.B) {
			tape, err := WAN{Validators: 256, Miners: miners, Direct: true, Packed: true, Slow: 1, Silent: 300, Loss: 50, Seed: 1}.Record(protocol.InstanceW)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := tape.Play(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*tape.Len())/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
