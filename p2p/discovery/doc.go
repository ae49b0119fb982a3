// Package discovery finds peers that have something but are not connected: provider records in a Kademlia DHT of the
// network's own peers (libp2p's go-libp2p-kad-dht, under the network's name).
//
// [New] starts a [Discovery] on a libp2p host. [Discovery.Announce] says what this host serves and says it again in
// intervals; [Discovery.FindProvidersAsync] is what an exchange asks that has too few sources. What is announced are
// roots, of checkpoints and datasets: who has one is asked for what is below it. Whom the host is connected to otherwise,
// and how it gets into the network, is decided in p2p: the DHT begins with the peers that are there.
//
// A peer answers others if it is told to serve, or once libp2p has found it publicly reachable. What others can make it do
// is bounded (guard.go): the length of a request, requests and streams at a time, and records by participant, not by peer:
// peers cost nothing, and all that speak for nobody share what one participant may say. There are no values in this DHT.
//
// A record says that a peer claims to have something. Every block is hashed where it arrives, so a lie costs a connection.
//
// The package imports p2p, for its clock, and internal/protocol, and no other package of this module.
package discovery
