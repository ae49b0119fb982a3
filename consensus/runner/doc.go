// Package runner gives an agreement machine what it must not have itself: a clock, a log on disk and peers.
//
// A [Runner] pumps one consensus.Machine: what must be durable goes to the log before anything is sent, what is missing
// is fetched, and [Runner.Run] returns the output by the machine's deadline whatever the disk or the peers do. A [WAL] is
// the log of one validator, shared by its runners of all instances and cycles. The composition root supplies [Network]
// and [Clock].
//
// A log that fails or hangs silences the machine: it signs nothing more, and still has its output in time.
//
// The package imports its own domain, internal/protocol and the standard library; it reads no clock but the one it is
// given.
package runner
