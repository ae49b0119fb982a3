package gossip

import (
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Scores. A peer's score is the sum, over topics, of small merits (at most meritCap in all) and of the penalties below.
// Below zero it is pruned from every mesh and cannot be grafted; what the thresholds add is what it loses further down.
//
//	what a peer did                          score, without merits
//	nothing                                      0
//	shows no binding that counts               -20    out of the mesh, still told which records there are: it may fetch
//	one invalid message                        -10    out of the mesh until it decays below the merits
//	two                                        -40
//	three                                      -90    no gossip
//	four                                      -160    nothing published by us goes to it
//	five                                      -250    graylisted: all it sends is dropped unread
//
// An honest peer judges before it passes on, so its count of invalid messages is zero; the square makes one bug of one
// version cheap and an attack dear.
const (
	gossipThreshold   = -50  // below: no gossip to it or from it
	publishThreshold  = -100 // below: own messages are not sent to it
	graylistThreshold = -200 // below: everything from it is dropped before decoding

	unboundScore  = -20 // below zero even with every merit, above gossipThreshold
	invalidWeight = -10 // times the square of the count of invalid messages
	meritCap      = 10  // so that years of good service do not pay for an attack

	halfLife      = 90 * time.Second // of invalid messages
	decayInterval = time.Second
	decayToZero   = 0.01
	retain        = 10 * time.Minute // of the score of a peer that left: leaving is no way to be forgiven
)

// scoreParams are GossipSub's, P1 to P7 in its specification's numbering.
func scoreParams(topics []string, app func(peer.ID) float64, remember time.Duration) (*pubsub.PeerScoreParams, *pubsub.PeerScoreThresholds) {
	// A counter times this once per decayInterval is halved after halfLife.
	decay := func(half time.Duration) float64 {
		// ScoreParameterDecayWithBase gives the factor that brings 1 to decayToZero in a time; 0.01 is 6.64 half-lives.
		return pubsub.ScoreParameterDecayWithBase(time.Duration(6.64*float64(half)), decayInterval, decayToZero)
	}
	params := &pubsub.PeerScoreParams{
		Topics:            make(map[string]*pubsub.TopicScoreParams),
		TopicScoreCap:     meritCap,
		AppSpecificScore:  app, // P5: the peer's standing
		AppSpecificWeight: 1,
		// P6, many peers on one address, is off: several nodes in one process, one house or one data centre are normal
		// here, and what keeps sybils out is the binding to a registered id.
		IPColocationFactorWeight: 0,
		// P7: grafting in spite of a backoff, promising messages and not sending them.
		BehaviourPenaltyWeight:    -1,
		BehaviourPenaltyThreshold: 6,
		BehaviourPenaltyDecay:     decay(halfLife),
		DecayInterval:             decayInterval,
		DecayToZero:               decayToZero,
		RetainScore:               retain,
		SeenMsgTTL:                remember,
	}
	for _, t := range topics {
		params.Topics[t] = &pubsub.TopicScoreParams{
			TopicWeight: 1,
			// P1: up to 3 for five minutes in the mesh.
			TimeInMeshWeight:  0.01,
			TimeInMeshQuantum: time.Second,
			TimeInMeshCap:     300,
			// P2: up to 5 for being first with a message.
			FirstMessageDeliveriesWeight: 0.1,
			FirstMessageDeliveriesDecay:  decay(10 * time.Minute),
			FirstMessageDeliveriesCap:    50,
			// P3, too few messages from a mesh peer, is off: traffic comes in bursts at the deadlines of a cycle, and with
			// three peers one of them is always last.
			MeshMessageDeliveriesWeight:     0,
			MeshMessageDeliveriesDecay:      0.5,
			MeshMessageDeliveriesCap:        1,
			MeshMessageDeliveriesThreshold:  1,
			MeshMessageDeliveriesActivation: time.Second,
			MeshFailurePenaltyDecay:         0.5,
			// P4: invalid messages.
			InvalidMessageDeliveriesWeight: invalidWeight,
			InvalidMessageDeliveriesDecay:  decay(halfLife),
		}
	}
	return params, &pubsub.PeerScoreThresholds{
		GossipThreshold:             gossipThreshold,
		PublishThreshold:            publishThreshold,
		GraylistThreshold:           graylistThreshold,
		AcceptPXThreshold:           meritCap, // peers are exchanged by the host, never in prunes
		OpportunisticGraftThreshold: 1,
	}
}

// meshParams fit 3 to some hundred peers: a mesh of six, so that with up to 7 peers everybody is in everybody's, and the
// upper bound far enough away that up to 13 peers never prune each other.
func meshParams(heartbeat time.Duration) pubsub.GossipSubParams {
	p := pubsub.DefaultGossipSubParams()
	p.D, p.Dlo, p.Dhi, p.Dscore, p.Dout, p.Dlazy = 6, 4, 12, 4, 2, 6
	p.HeartbeatInterval = heartbeat
	p.HeartbeatInitialDelay = min(p.HeartbeatInitialDelay, heartbeat)
	p.HistoryLength, p.HistoryGossip = 10, 6 // heartbeats: a record can be asked for, and is offered, that long
	// A peer that was pruned because its binding came a moment late must not wait a minute. GossipSub punishes a graft
	// during the backoff, so this is the same on all nodes.
	p.PruneBackoff = 10 * time.Second
	p.UnsubscribeBackoff = 5 * time.Second
	p.GraftFloodThreshold = 5 * time.Second
	return p
}
