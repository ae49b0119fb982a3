// Package chain declares what the network needs from a chain: [Client], with three methods. The chain says which block is
// the last final one, which participants the registry held at a block, and it takes the weights of a cycle. It is neither
// the source of randomness (package beacon is) nor the place of agreement.
//
// Implementations live below: chain/dev is a development chain with its own server. Every one passes the conformance suite
// in chain/chaintest.
//
// The package imports internal/protocol alone of bzd.
package chain
