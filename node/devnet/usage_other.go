//go:build !linux && !darwin

package devnet

import "time"

// usage is not known here.
func usage() (time.Duration, int64) { return 0, 0 }
