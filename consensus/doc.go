// Package consensus agrees: one [Machine] is one instance of agreement, on weights (W) or on the merge (M), of one cycle.
// It ends at a deadline of its own clock whatever the others do, and never certifies two different decisions.
//
// A machine is a value to be stepped. [Machine.Step] takes what peers sent, [Machine.Tick] the milliseconds since the
// cycle's anchor, [Machine.Input] what this validator measured; [Machine.Ready] says what must be durable, what to send
// after that, which records to fetch, and the [Output], and [Machine.Advance] that all of it was done. What a value is
// and how it follows from the evidence the machine does not know: [Config].Derive does, a pure function of a [Set].
// docs/spec/agreement.md has the states, messages and deadlines as tables.
//
// Inside, a round has proposals, a PREPARE and a COMMIT-V of each validator; a quorum of PREPAREs is a lock, which whoever
// signed a COMMIT-V keeps until a quorum of a later round moves it. In the rounds after the deadline there are no proposals:
// validators say by STATUS what they hold, and prepare what is locked, or nothing.
//
// The package is pure: no clock, goroutine, lock, socket, disk, randomness or floating point. Package runner gives a
// machine those that it needs; package sim runs many machines in virtual time against adversaries.
package consensus
