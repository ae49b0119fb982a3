package sim

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// WAN is a measurement: so many runs of both instances of one cycle among validators in ten regions, with production's
// schedule.
type WAN struct {
	Validators int    `json:"validators"`
	Miners     int    `json:"miners"`
	Direct     bool   `json:"direct"` // messages go to everybody, gossip beside; else gossip only
	Packed     bool   `json:"packed"` // as package wire does
	Slow       int64  `json:"slow"`   // how many times as long processors take for a message
	Silent     int    `json:"silent_permille"`
	Loss       int    `json:"loss_permille"`
	Runs       int    `json:"runs"`
	Seed       uint64 `json:"seed"`
}

// What all measurements have in common. Heartbeat and mesh are those of a node; the processor's time is what real hosts take,
// libp2p included, a signature being verified twice.
const (
	wanDelta     = 1000
	wanRounds    = 4
	wanHeartbeat = 1000
	wanMesh      = 6
	wanBandwidth = 25_000 // bytes per millisecond: 200 Mbit/s
	wanCopy      = 50
	wanVerify    = 200
	wanJitter    = 5
)

// Times are percentiles over all honest validators of all runs, in milliseconds, of when a validator has its certificate.
type Times struct {
	P50     int64 `json:"p50"`
	P99     int64 `json:"p99"`
	Slowest int64 `json:"p99_of_slowest"` // the slowest validator of each run
	Most    int64 `json:"most"`
}

// Figures are what one WAN gives.
type Figures struct {
	WAN
	// Decision counts from the turn of the first proposer that is not silent, Overall from that of the first.
	Decision [2]Times `json:"decision_ms"` // of W, of M
	Overall  [2]Times `json:"overall_ms"`
	// Certified of so many Instances ended with a certificate at every honest validator by the deadline.
	Instances int `json:"instances"`
	Certified int `json:"certified"`
	// Bytes that a validator sends and receives in a cycle: the mean of all, and the most of one.
	Sent         int64            `json:"sent_bytes"`
	Received     int64            `json:"received_bytes"`
	MostSent     int64            `json:"most_sent_bytes"`
	MostReceived int64            `json:"most_received_bytes"`
	ByKind       map[string]int64 `json:"received_bytes_by_kind"` // mean
	Steps        int64            `json:"messages"`               // that a validator's machines took in a cycle, on average
}

// Loopback is the network of processes on one machine of two processors.
func Loopback() Net {
	return Net{Direct: true, Mesh: wanMesh, Heartbeat: wanHeartbeat, Packed: true, Copy: wanCopy, Verify: wanVerify, Processors: 2}
}

// Measure plays the runs. each hears of every one that is over, and ends them with an error.
func (w WAN) Measure(each func(run int) error) (Figures, error) {
	f := Figures{WAN: w, ByKind: make(map[string]int64)}
	var decision, overall [2][]int64
	var slowest [2][2][]int64
	nodes := int64(0)
	for run := range w.Runs {
		traffic := make([]Traffic, w.Validators)
		for i, instance := range []protocol.Instance{protocol.InstanceW, protocol.InstanceM} {
			cfg := w.config(run, instance)
			r, err := Run(cfg)
			if err != nil {
				return f, err
			}
			setup := r.Nodes[0].Setup
			turn := func(rank int) int64 { return setup.Turn(uint32(rank)) * milli }
			first := slices.IndexFunc(cfg.Proposers, func(p int) bool { return !slices.Contains(cfg.Offline, p) })
			most := [2]int64{}
			certified := true
			for _, n := range r.Nodes {
				if n.offline {
					continue
				}
				out := n.Outputs[0]
				if out.Output.Outcome != consensus.Certified {
					certified = false
				}
				d, o := out.Micros-turn(max(first, 0)), out.Micros-turn(0)
				decision[i], overall[i] = append(decision[i], d), append(overall[i], o)
				most[0], most[1] = max(most[0], d), max(most[1], o)
				f.Steps += n.Steps
				t := &traffic[n.Index]
				for k := range t.Sent {
					t.Sent[k] += n.Traffic.Sent[k]
					t.Received[k] += n.Traffic.Received[k]
				}
			}
			f.Instances++
			if certified {
				f.Certified++
			}
			slowest[i][0], slowest[i][1] = append(slowest[i][0], most[0]), append(slowest[i][1], most[1])
		}
		for i, t := range traffic {
			if slices.Contains(w.config(run, protocol.InstanceW).Offline, i) {
				continue
			}
			nodes++
			sent, received := t.Bytes()
			f.Sent, f.Received = f.Sent+sent, f.Received+received
			f.MostSent, f.MostReceived = max(f.MostSent, sent), max(f.MostReceived, received)
			for k, b := range t.Received {
				f.ByKind[kindName(k)] += b
			}
		}
		if err := each(run); err != nil {
			return f, err
		}
	}
	f.Sent, f.Received, f.Steps = f.Sent/nodes, f.Received/nodes, f.Steps/nodes
	for k, b := range f.ByKind {
		if f.ByKind[k] = b / nodes; b == 0 {
			delete(f.ByKind, k)
		}
	}
	for i := range f.Decision {
		f.Decision[i], f.Overall[i] = times(decision[i], slowest[i][0]), times(overall[i], slowest[i][1])
	}
	return f, nil
}

func kindName(k int) string {
	if k == 0 {
		return "gossip"
	}
	return consensus.Kind(k).String()
}

// Percentiles are those of microseconds, of one run.
func Percentiles(micros []int64) Times {
	return times(micros, []int64{slices.Max(micros)})
}

// times are the percentiles of microseconds in milliseconds, rounded up.
func times(all, slowest []int64) Times {
	at := func(list []int64, percent int) int64 {
		slices.Sort(list)
		return (list[min(len(list)-1, len(list)*percent/100)] + milli - 1) / milli
	}
	return Times{P50: at(all, 50), P99: at(all, 99), Slowest: at(slowest, 99), Most: at(all, 100)}
}

// config draws one run.
func (w WAN) config(run int, instance protocol.Instance) Config {
	rng := rand.New(rand.NewPCG(w.Seed, uint64(run)))
	cfg := Config{
		Seed: rng.Uint64(), Stakes: make([]uint64, w.Validators), Instance: instance, Miners: w.Miners, Brief: true,
		Start: 60_000, Delta: wanDelta, Rounds: wanRounds,
		Net: Net{
			Regions: TenRegions(), Jitter: wanJitter, Loss: w.Loss, Direct: w.Direct, Mesh: wanMesh, Heartbeat: wanHeartbeat,
			Bandwidth: wanBandwidth, Packed: w.Packed, Copy: wanCopy * w.Slow, Verify: wanVerify * w.Slow,
		},
	}
	var snapshot protocol.Snapshot
	for i := range cfg.Stakes {
		cfg.Stakes[i] = 1000
		snapshot.Participants = append(snapshot.Participants, protocol.Participant{ID: id(i), Stake: 1000, Roles: protocol.RoleValidator})
	}
	cfg.Offline = rng.Perm(w.Validators)[:w.Validators*w.Silent/1000]
	seed := protocol.Hash(sha256.Sum256(binary.BigEndian.AppendUint64([]byte("proposers"), cfg.Seed)))
	for _, p := range consensus.Proposers(seed, instance, snapshot, 3*wanRounds) {
		cfg.Proposers = append(cfg.Proposers, int(p[0])<<8|int(p[1]))
	}
	return cfg
}
