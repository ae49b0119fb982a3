// Package devnet runs a whole network in one process, on real sockets: a development chain, a bootstrap node that serves
// the genesis and the gateway, miners and validators, each with its own host, keys and directory.
//
// [Run] is everything. Nodes share nothing but sockets: what they fetch comes by CID from peers, what they agree on goes
// over gossip. The package watches them through their events and measures the fixed probe itself.
package devnet
