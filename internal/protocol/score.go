package protocol

import "fmt"

// Status says what became of a miner's work. On the wire it is its number; numbers are never reused.
type Status uint8

// The statuses. Zero is none of them, so that a forgotten field is not a pass.
const (
	StatusOK           Status = 1 // checked and measured
	StatusLate         Status = 2 // the commitment came after its deadline
	StatusNoCustody    Status = 3 // too little stake held every block in time
	StatusInvalid      Status = 4 // a hash, signature, schema, decryption or value check failed
	StatusDuplicate    Status = 5 // an earlier delta already holds this work
	StatusNotImproving Status = 6 // the gain's lower confidence bound is not above zero
	StatusOffline      Status = 7 // no commitment at all
	StatusNotScored    Status = 8 // not finished in time; says nothing about the miner
)

var statusNames = [...]string{
	StatusOK: "ok", StatusLate: "late", StatusNoCustody: "no-custody", StatusInvalid: "invalid",
	StatusDuplicate: "duplicate", StatusNotImproving: "not-improving", StatusOffline: "offline",
	StatusNotScored: "notscored",
}

// Known reports whether s is one of the statuses.
func (s Status) Known() bool { return s > 0 && int(s) < len(statusNames) }

// String returns the name that tables, logs and JSON show.
func (s Status) String() string {
	if !s.Known() {
		return fmt.Sprintf("status(%d)", uint8(s))
	}
	return statusNames[s]
}

// MarshalText implements encoding.TextMarshaler, for JSON.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Status) UnmarshalText(b []byte) error {
	for i, name := range statusNames {
		if name != "" && name == string(b) {
			*s = Status(i)
			return nil
		}
	}
	return fmt.Errorf("%w: no status is called %.40q", ErrInvalid, b)
}

// Row is one validator's measurement of one miner on one shard of the held-out draw. Gains are nano-nats per token:
// L(Φ) − L(Φ + Δ), the mean of per-sequence values that were each rounded to nano-nats first; positive is better.
//
// The uncertainty is kept as the standard error, not as its square: the square of 4.3 nats in nano-nats² is past 2⁶⁴,
// and an unstable delta reaches that.
type Row struct {
	Miner  ID     `cbor:"miner"`
	Shard  uint32 `cbor:"shard"`
	Gain   int64  `cbor:"gain"`   // mean, nano-nats
	StdErr uint64 `cbor:"err"`    // of the mean, clustered by document, nano-nats, rounded up
	N      uint32 `cbor:"n"`      // sequences measured; 0 if none were
	Screen int64  `cbor:"screen"` // −g·Δ in nano-nats; 0 where there is no screening
	Status Status `cbor:"status"`
}

// maxRow is above the longest encoding of a Row.
const maxRow = 256

// DecodeRow decodes and checks a row.
func DecodeRow(b []byte) (Row, error) { return decode[Row]("row", maxRow, b) }

// Validate implements [Record].
func (r Row) Validate() error { return validate("row", r) }

func (r Row) faults(f faults) {
	if !r.Status.Known() {
		f.add("status", "%d is not a status", uint8(r.Status))
	}
	if r.Status == StatusOK && r.N < 2 {
		f.add("n", "%d sequences; below two there is no standard error, and the row is notscored", r.N)
	}
	if r.N == 0 && (r.Gain != 0 || r.StdErr != 0) {
		f.add("n", "0 sequences, but a gain of %d ± %d", r.Gain, r.StdErr)
	}
}

// MergeRow is the effect of the joint step at one scale on one domain, measured on split B: the mean over sequences of
// L(Φ + αM) − L(Φ) in nano-nats per token. Negative is better.
type MergeRow struct {
	Alpha  uint32 `cbor:"alpha"`  // index into Params.AlphaGrid; never 0, which changes nothing
	Domain string `cbor:"domain"` // the canary included
	Change int64  `cbor:"change"` // mean, nano-nats
	StdErr uint64 `cbor:"err"`    // of the mean, clustered by document, nano-nats, rounded up
	N      uint32 `cbor:"n"`      // sequences measured, at least 2
}

// DecodeMergeRow decodes and checks a merge row.
func DecodeMergeRow(b []byte) (MergeRow, error) { return decode[MergeRow]("merge row", maxRow, b) }

// Validate implements [Record].
func (r MergeRow) Validate() error { return validate("row", r) }

func (r MergeRow) faults(f faults) {
	f.name("domain", r.Domain)
	if r.Alpha == 0 || r.Alpha >= maxAlphas {
		f.add("alpha", "%d is not a grid index from 1 to %d", r.Alpha, maxAlphas-1)
	}
	if r.N < 2 {
		f.add("n", "%d sequences; below two there is no standard error", r.N)
	}
}

// MergeMeasure is one validator's line search: the joint step of the named groups at each scale it finished.
type MergeMeasure struct {
	Version uint32     `cbor:"version"`
	Groups  []string   `cbor:"groups"` // whose steps are joined: sorted, no duplicates
	Rows    []MergeRow `cbor:"rows"`   // sorted by (alpha, domain), no duplicates; none if nothing was finished in time
}

// DecodeMergeMeasure decodes and checks a merge measure.
func DecodeMergeMeasure(b []byte) (MergeMeasure, error) {
	return decode[MergeMeasure]("merge measure", maxDocument, b)
}

// Validate implements [Record].
func (m MergeMeasure) Validate() error { return validate("measure", m) }

func (m MergeMeasure) faults(f faults) {
	f.version(m.Version)
	if len(m.Groups) == 0 || len(m.Groups) > maxGroups {
		f.add("groups", "%d groups, want 1 to %d", len(m.Groups), maxGroups)
	}
	for i, g := range m.Groups {
		if f.full() {
			return
		}
		f.name(index("groups", i), g)
		if i > 0 && m.Groups[i-1] >= g {
			f.add(index("groups", i), "%.40q is not above %.40q before it; sort them, each once", g, m.Groups[i-1])
		}
	}
	for i, r := range m.Rows {
		if f.full() {
			return
		}
		f.under(index("rows", i), r)
		if i > 0 {
			before := m.Rows[i-1]
			if before.Alpha > r.Alpha || before.Alpha == r.Alpha && before.Domain >= r.Domain {
				f.add(index("rows", i), "not above the row before it; sort them by alpha and domain, each once")
			}
		}
	}
}
