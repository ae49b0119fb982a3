// Package p2p is the node's place in the peer-to-peer network: one libp2p host with an identity that survives restarts,
// small fixed limits, and a table that says which participant of the chain a peer is.
//
// [New] starts a [Host] from a [Config]. The host dials its bootstrap peers, asks connected peers for others until it has
// enough, and dials again, with backoff, whoever it loses. On every connection both sides say hello: each shows its
// [protocol.Binding], the statement by a protocol key that a libp2p peer speaks for a chain id. A binding counts when its
// signature holds, it was made for this network and for the very peer that shows it, and the registry (Config.Registry,
// the snapshot) knows the pair of id and key; see [Standing]. Peers without one stay connected but may only fetch: they
// may send requests to a [Protocol] that is not Bound, and package gossip passes nothing on from them.
//
// [Host.Handle] and [Host.Request] ask one peer one question within size bounds and a deadline. p2p/gossip spreads
// records among all peers. Blocks move over [Host.Libp2p], with the exchange that the content package brings.
//
// A host has goroutines, sockets and one file; it has no clock of its own (see [Clock]) and no package-level state, so that
// many hosts run in one process. The package imports internal/protocol and no other package of this module.
package p2p
