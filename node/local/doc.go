// Package local does on one machine what a network does in a cycle: it trains an update, scores it by Proof-of-Loss on
// held-out text, searches the merge's scale and writes the next checkpoint. It also makes the genesis that all of this
// starts from.
//
// It is a composition root below node: adapters and jobs that the command line, the daemon and the devnet share. A
// [Network] is a genesis with its datasets at hand; a [Phi] is a checkpoint loaded for computing; [Train], [Network.Score]
// and [Network.Merge] are the three jobs; [Rehearse] strings them into cycles. [TrainBase] and [Compose] make a genesis:
// a base model from general text, then experts of its own for every domain; [Adopt] makes one of a Hugging Face model.
//
// Nothing here opens a socket. Randomness comes from seeds and time is not read, so each job gives the same bytes on
// every machine. No package but the composition roots may import this one.
package local
