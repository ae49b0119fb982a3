// Package consensus agrees: one [Machine] is one instance of agreement, on weights (W) or on the merge (M), of one cycle.
// It ends at a deadline of its own clock whatever the others do, and never certifies two different decisions.
//
// A machine is a value to be stepped. [Machine.Step] takes what peers sent, [Machine.Tick] the milliseconds since the
// cycle's anchor, [Machine.Input] what this validator measured; [Machine.Ready] says what must be durable, what to send
// after that, which records to fetch, and the [Output], and [Machine.Advance] that all of it was done. What a value is
// and how it follows from the evidence the machine does not know: [Config].Derive does, a pure function of a [Set].
// docs/spec/agreement.md has the states, messages and deadlines as tables.
//
// Inside there is, for now, one vote: each validator signs at most one COMMIT-V per instance, for the first valid
// proposal whose turn it is, and a null STATUS at the deadline only if it signed none. Two certificates, or a
// certificate and a null certificate, would need an honest validator that signed twice. The price is liveness, not
// safety: votes that an equivocating or late proposer split cannot be moved to the next round, and the cycle falls back.
//
// The package is pure: no clock, goroutine, lock, socket, disk, randomness or floating point. Package runner gives a
// machine those that it needs; package sim runs many machines in virtual time against adversaries.
package consensus
