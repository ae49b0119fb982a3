//go:build !linux && !darwin

package devnet

import "time"

// Usage is not known here.
func Usage() (time.Duration, int64) { return 0, 0 }
