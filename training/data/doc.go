// Package data turns text into domains: content-addressed datasets with a
// train pool and a held-out pool.
//
// A [Dataset] is a list of pieces (documents of at most 16 KiB, each named by
// the SHA-256 of its bytes) or a seeded generator of such pieces. Its [Record]
// is a small dag-cbor block whose CID names the dataset, so two nodes that
// agree on the CID agree on every sample. Build one with [Builtin] (from the Go
// installation), [FromDir] (from the user's own files) or [Math] (endless
// arithmetic); rebuild one fetched from peers with [Assemble].
//
// A [Sample] is a fixed window of bytes in one piece. Validators take held-out
// samples with [Dataset.Draw], miners walk the train pool with
// [Dataset.TrainOrder]; both are pure functions of a seed and give random
// access. Which pool a piece belongs to is decided by its hash alone.
//
// The exact rules, with vectors, are in docs/spec/data.md.
//
// Bytes from elsewhere enter through [ParseRecord] and [Assemble] only; both
// bound them, verify them and return typed errors. The package holds no global
// state, reads no clock and draws no randomness of its own. It must not import
// other packages of this module except internal/protocol.
package data
