package cudatest

import (
	"fmt"
	"slices"
	"testing"
)

// FailNth fails the n-th call, from 0, of the methods given (of all, if none is) with what.
func FailNth(n int, what error, methods ...string) func(int, string) error {
	seen := 0
	return func(_ int, method string) error {
		if len(methods) > 0 && !slices.Contains(methods, method) {
			return nil
		}
		seen++
		if seen-1 != n {
			return nil
		}
		return fmt.Errorf("%w: injected into %s, number %d", what, method, n)
	}
}

// Sweep runs a scenario again and again, in which call 0, 1, 2, … of the methods fails with what, until none is left to fail.
// The scenario makes its fake of the options, checks what its code makes of the failure and closes; violations fail the
// test. It returns how many failures there were.
func Sweep(t *testing.T, what error, methods []string, scenario func(t *testing.T, o Options)) int {
	t.Helper()
	const most = 100_000
	for n := range most {
		hit := false
		fail := FailNth(n, what, methods...)
		ok := t.Run(fmt.Sprintf("failure %d", n), func(t *testing.T) {
			scenario(t, Options{Fail: func(i int, method string) error {
				err := fail(i, method)
				hit = hit || err != nil
				return err
			}})
		})
		if !hit || !ok {
			return n
		}
	}
	t.Fatalf("the scenario still makes calls to fail after %d", most)
	return most
}
