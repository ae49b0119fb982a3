package devnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"runtime/pprof"
	"sync"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/node/local"
)

// TestWorkTime burns the processor under both labels and under none, in goroutines that are started there, and finds each
// in the profile.
func TestWorkTime(t *testing.T) {
	var raw bytes.Buffer
	if err := pprof.StartCPUProfile(&raw); err != nil {
		t.Skip(err)
	}
	burn := func() {
		var wg sync.WaitGroup
		wg.Go(func() {
			for begin, _ := Usage(); ; {
				var block [1 << 16]byte
				for range 100 {
					sha256.Sum256(block[:])
				}
				if now, _ := Usage(); now-begin > 300*time.Millisecond {
					return
				}
			}
		})
		wg.Wait()
	}
	if total, peak := Usage(); total == 0 || peak < 1<<20 {
		pprof.StopCPUProfile()
		t.Skipf("the system does not tell: %v, %d", total, peak)
	}
	burn()
	for _, work := range []string{local.Training, local.Evaluation} {
		pprof.Do(context.Background(), pprof.Labels(local.Label, work), func(context.Context) { burn() })
	}
	pprof.StopCPUProfile()
	got, err := workTime(bytes.NewReader(raw.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	for _, work := range []string{"", local.Training, local.Evaluation} {
		if got[work] < 100*time.Millisecond || got[work] > 2*time.Second {
			t.Errorf("%q has %v, want about 300 ms: %v", work, got[work], got)
		}
	}
	if _, err := workTime(bytes.NewReader(raw.Bytes()[:raw.Len()/2])); err == nil {
		t.Error("half a profile is taken")
	}
}
