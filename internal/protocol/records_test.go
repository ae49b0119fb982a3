package protocol

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write vectors that are missing; an existing vector never changes within a protocol version")

func sampleGroups() []Group {
	return []Group{
		{Name: "asm", Domain: "asm", Experts: []ExpertRef{{0, 2}, {0, 3}, {1, 2}}, Share: 400_000},
		{Name: "go", Domain: "go", Experts: []ExpertRef{{0, 0}, {0, 1}, {1, 0}}, Share: 600_000},
	}
}

func sampleGenesis() Genesis {
	p := ProductionParams()
	domain := func(name string, tolerance int64) Domain {
		return Domain{Name: name, Dataset: LinkTo(DagCBOR, []byte("dataset "+name)), HeldOutPermille: 100, ToleranceNano: tolerance}
	}
	return Genesis{
		Version:    Version,
		Name:       "sample-1",
		Checkpoint: LinkTo(DagPB, []byte("checkpoint 0")),
		Groups:     sampleGroups(),
		Domains:    []Domain{domain("asm", 1_000_000), domain("go", 500_000), domain("web", p.CanaryToleranceNano)},
		Canary:     "web",
		Params:     p,
	}
}

func sampleState() ProtocolState {
	previous := LinkTo(DagPB, []byte("checkpoint 0"))
	return ProtocolState{Version: Version, Previous: &previous, Groups: sampleGroups()}
}

func sampleDelta() DeltaHeader {
	return DeltaHeader{
		Version: Version, Base: LinkTo(DagPB, []byte("checkpoint 0")), Group: "go", Codec: "dense-bf16",
		Tensors: []TensorEntry{
			{Name: "model.layers.0.mlp.gate.weight#rows", Shape: []uint64{2, 8}, Offset: 0, Size: 32},
			{Name: "model.layers.0.mlp.experts.0.up_proj.weight", Shape: []uint64{16, 8}, Offset: 32, Size: 256},
		},
		Size: 288,
	}
}

func sampleRow() Row {
	return Row{Miner: ID{1, 2, 3, 31: 0xff}, Shard: 7, Gain: -1_234_567, StdErr: 89_000, N: 128, Status: StatusOK}
}

func sampleMergeRow() MergeRow {
	return MergeRow{Alpha: 1, Domain: "asm", Change: -2_000_000, StdErr: 300_000, N: 16}
}

func sampleMeasure() MergeMeasure {
	web := MergeRow{Alpha: 1, Domain: "web", Change: 17, StdErr: 400_000, N: 16}
	return MergeMeasure{Version: Version, Groups: []string{"asm", "go"}, Rows: []MergeRow{sampleMergeRow(), web}}
}

// records has one row per record with a Decode function: its sample is the vector, its decoder the fuzz target.
var records = []struct {
	name   string
	sample Record
	decode func([]byte) (Record, error)
}{
	{"genesis", sampleGenesis(), erase(DecodeGenesis)},
	{"state", sampleState(), erase(DecodeProtocolState)},
	{"delta", sampleDelta(), erase(DecodeDeltaHeader)},
	{"row", sampleRow(), erase(DecodeRow)},
	{"merge-row", sampleMergeRow(), erase(DecodeMergeRow)},
	{"merge-measure", sampleMeasure(), erase(DecodeMergeMeasure)},
	{"snapshot", sampleSnapshot(), erase(DecodeSnapshot)},
	{"binding", sampleBinding(), erase(DecodeBinding)},
	{"head", sampleHead(), erase(DecodeHead)},
	{"commitment", sampleCommitment(), erase(DecodeCommitment)},
	{"manifest", sampleManifest(), erase(DecodeManifest)},
	{"attestation", sampleAttestation(), erase(DecodeAttestation)},
	{"list", sampleList(), erase(DecodeList)},
	{"score-commit", sampleScoreCommit(), erase(DecodeScoreCommit)},
	{"score-vector", sampleScores(), erase(DecodeScoreVector)},
	{"merge-vector", sampleMergeVector(), erase(DecodeMergeVector)},
	{"proposal", sampleProposal(), erase(DecodeProposal)},
	{"merge-proposal", sampleMergeProposal(), erase(DecodeProposal)},
	{"vote", sampleVote(), erase(DecodeVote)},
	{"status-null", nullOf(InstanceW, "cat"), erase(DecodeStatusVote)},
	{"status-lock", sampleStatusLock(), erase(DecodeStatusVote)},
	{"lock", lockOn(sampleProposal(), 0, "ben", "cat", "dan"), erase(DecodeLock)},
	{"certificate", certify(sampleProposal(), "ben", "cat", "dan"), erase(DecodeCertificate)},
	{"null-certificate", certifyNull(InstanceW, "ben", "cat", "dan"), erase(DecodeCertificate)},
	{"equivocation", sampleEquivocation(), erase(DecodeEquivocationProof)},
	{"submission", sampleSubmission(), erase(DecodeSubmission)},
}

func erase[T Record](decode func([]byte) (T, error)) func([]byte) (Record, error) {
	return func(b []byte) (Record, error) { return decode(b) }
}

func TestVectors(t *testing.T) {
	for _, r := range records {
		t.Run(r.name, func(t *testing.T) {
			got, err := Encode(r.sample)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "vectors", r.name+".hex")
			text, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) && *update {
				text = []byte(hex.EncodeToString(got) + "\n")
				err = os.WriteFile(path, text, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			want, err := hex.DecodeString(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("the encoding of a %s changed; old nodes would refuse it\n got %x\nwant %x", r.name, got, want)
			}
			back, err := r.decode(want)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(back, r.sample) {
				t.Fatalf("decoded %+v, want %+v", back, r.sample)
			}
		})
	}
}

// TestEveryByteMatters flips each bit of each vector: the result is refused or is another record, never a second
// encoding of the same one.
func TestEveryByteMatters(t *testing.T) {
	for _, r := range records {
		b, err := Encode(r.sample)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			for bit := range 8 {
				other := bytes.Clone(b)
				other[i] ^= 1 << bit
				if v, err := r.decode(other); err == nil && reflect.DeepEqual(v, r.sample) {
					t.Fatalf("%s: byte %d bit %d can be flipped unseen", r.name, i, bit)
				}
			}
			if _, err := r.decode(b[:i]); !errors.Is(err, ErrNotCanonical) {
				t.Fatalf("%s cut at %d: %v", r.name, i, err)
			}
		}
	}
}

// TestRecordTypes keeps floats, maps, interfaces and platform-sized integers out of every record.
func TestRecordTypes(t *testing.T) {
	var walk func(t *testing.T, path string, typ reflect.Type)
	walk = func(t *testing.T, path string, typ reflect.Type) {
		if typ == reflect.TypeFor[Link]() {
			return
		}
		switch typ.Kind() {
		case reflect.Struct:
			for i := range typ.NumField() {
				f := typ.Field(i)
				if tag := f.Tag.Get("cbor"); tag == "" || strings.Contains(tag, ",") {
					t.Errorf("%s.%s: cbor tag %q; every field has a name and is always present", path, f.Name, tag)
				}
				walk(t, path+"."+f.Name, f.Type)
			}
		case reflect.Slice, reflect.Array, reflect.Pointer:
			walk(t, path, typ.Elem())
		case reflect.Bool, reflect.String, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Int64:
		default:
			t.Errorf("%s: %s has no canonical encoding here", path, typ)
		}
	}
	for _, r := range records {
		walk(t, r.name, reflect.TypeOf(r.sample))
	}
}

// fuzzRecord is the fuzz target of one decoder: whatever it accepts is canonical and valid.
// What it accepts can also be signed, verified and named without a panic. More names are more samples of the record.
func fuzzRecord(f *testing.F, name string, more ...string) {
	var decode func([]byte) (Record, error)
	for _, r := range records {
		if r.name != name && !slices.Contains(more, r.name) {
			continue
		}
		decode = r.decode
		b, err := Encode(r.sample)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
		f.Add(append(bytes.Clone(b), 0))
	}
	if decode == nil {
		f.Fatalf("no record %q", name)
	}
	snapshot := sampleSnapshot()
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrNotCanonical) && !errors.Is(err, ErrInvalid) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again, err := Encode(v)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %x, which encodes to %x (%v)", b, again, err)
		}
		var verdict error
		switch v := v.(type) {
		case Certificate:
			v.Decision()
			verdict = v.Verify(snapshot)
		case Lock:
			verdict = v.Verify(snapshot)
		case EquivocationProof:
			_, verdict = v.Verify(snapshot)
		case Proposal:
			verdict = v.Verify(snapshot)
		case Signed:
			verdict = snapshot.Check(v, RoleValidator)
		}
		if verdict != nil && !errors.Is(verdict, ErrSigner) && !errors.Is(verdict, ErrSignature) && !errors.Is(verdict, ErrQuorum) && !errors.Is(verdict, ErrSnapshot) {
			t.Fatalf("an accepted %T fails with %v", v, verdict)
		}
	})
}

func FuzzGenesis(f *testing.F)       { fuzzRecord(f, "genesis") }
func FuzzProtocolState(f *testing.F) { fuzzRecord(f, "state") }
func FuzzDeltaHeader(f *testing.F)   { fuzzRecord(f, "delta") }
func FuzzRow(f *testing.F)           { fuzzRecord(f, "row") }
func FuzzMergeRow(f *testing.F)      { fuzzRecord(f, "merge-row") }
func FuzzMergeMeasure(f *testing.F)  { fuzzRecord(f, "merge-measure") }
func FuzzSnapshot(f *testing.F)      { fuzzRecord(f, "snapshot") }
func FuzzBinding(f *testing.F)       { fuzzRecord(f, "binding") }
func FuzzHead(f *testing.F)          { fuzzRecord(f, "head") }
func FuzzCommitment(f *testing.F)    { fuzzRecord(f, "commitment") }
func FuzzManifest(f *testing.F)      { fuzzRecord(f, "manifest") }
func FuzzAttestation(f *testing.F)   { fuzzRecord(f, "attestation") }
func FuzzList(f *testing.F)          { fuzzRecord(f, "list") }
func FuzzScoreCommit(f *testing.F)   { fuzzRecord(f, "score-commit") }
func FuzzScoreVector(f *testing.F)   { fuzzRecord(f, "score-vector") }
func FuzzMergeVector(f *testing.F)   { fuzzRecord(f, "merge-vector") }
func FuzzProposal(f *testing.F)      { fuzzRecord(f, "proposal", "merge-proposal") }
func FuzzVote(f *testing.F)          { fuzzRecord(f, "vote") }
func FuzzStatusVote(f *testing.F)    { fuzzRecord(f, "status-null", "status-lock") }
func FuzzLock(f *testing.F)          { fuzzRecord(f, "lock") }
func FuzzCertificate(f *testing.F)   { fuzzRecord(f, "certificate", "null-certificate") }
func FuzzEquivocation(f *testing.F)  { fuzzRecord(f, "equivocation") }
func FuzzSubmission(f *testing.F)    { fuzzRecord(f, "submission") }
