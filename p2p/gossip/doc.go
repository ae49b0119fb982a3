// Package gossip spreads records among all peers of a network: GossipSub on a [p2p.Host], set up for records that carry
// their own signatures and for networks from 3 peers up.
//
// [New] makes a [Gossip] for a fixed set of topics, [Gossip.Join] enters one with a [Validator]. Every message is judged by
// the validator before it is passed on or delivered, and once only:
//
//   - [Accept]: it is delivered and passed on.
//   - [Reject]: everybody must see that it is wrong. It is dropped and the peer that sent it loses score: the first such
//     message takes it out of the mesh, five in short order make it unheard, until the count has decayed (score.go).
//   - [Ignore]: it is dropped, and nobody is blamed. For whatever depends on local state: the clock, the registry's age.
//
// A message is forgotten only after Options.Remember: neither an ignored nor an accepted one is judged again before, and
// publishing the same bytes again within that time does nothing. Who missed a record asks for it with [p2p.Host.Request].
//
// Delivery is best effort: a record that arrives before the mesh has formed, a heartbeat or two after peers connect, may go
// no further than to those its maker is connected to.
//
// A validator must also bound what one signer may say, and ignore the rest: whatever it accepts, the host passes on, and
// that counts against the host's own rate at its peers.
//
// Messages beyond a peer's rate, or from an unbound peer, are dropped before they are counted as seen. That order matters:
// otherwise a peer could make everyone deaf to a record by sending it first and too fast.
//
// The package imports p2p and no other package of this module.
package gossip
