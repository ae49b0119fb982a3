// Package protocol declares every record of the network: what is signed, stored or sent, each with its one canonical
// encoding, its bounds and its rules. docs/spec/records.md is the same thing as byte tables.
//
// Start from [Genesis], the document that names a network, and [Row], the unit of every score. [Encode] turns a record
// into canonical dag-cbor; a Decode function per record ([DecodeGenesis], [DecodeRow], …) is the only way back and
// refuses everything that [Encode] would not have written: the bytes are bounded before anything is allocated, unknown
// and duplicate keys are refused, the value is encoded again and compared, and at last its rules are checked. A record
// that came out of a Decode function therefore needs no further check of its form.
//
// A [Signed] record's signature is checked beside its form, against the [Snapshot] of its cycle: [Snapshot.Check] for one
// record, Verify for what carries several signatures ([Proposal], [Lock], [Certificate], [EquivocationProof]). Votes are
// over [Proposal.Decision], and what follows a [Certificate] names [Certificate.Decision] as its parent.
//
// To add a record: declare the struct with cbor tags, write its faults method and Validate, add a one-line Decode
// function with a size limit, and a row in the table of records_test.go, which gives it a vector and a fuzz target.
//
// [Feasible] says whether a cycle under given [Params] can end in time, for a [Load] that is expected.
//
// The package also holds the exact arithmetic that more than one decision uses, so that there is one largest remainder
// ([Apportion]), one weighted median ([LowerMedian]) and one confidence bound ([AboveZero]) in the network.
//
// It is a leaf: the standard library, go-cid, go-multihash and cbor. No I/O, no clock, no randomness, no policy.
package protocol
