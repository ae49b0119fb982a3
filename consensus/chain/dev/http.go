package dev

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/chain"
	"github.com/blockzero-net/bzd/internal/protocol"
)

const (
	typeCBOR = "application/vnd.ipld.dag-cbor"
	typeJSON = "application/json"

	chainHeader = "Bzd-Chain" // on every answer: which chain gave it

	maxRegistration = 4 << 10
	maxSubmission   = 256 << 10
)

// round is a published round, with the field names of drand's own HTTP interface.
type round struct {
	Round      uint64 `json:"round"`
	Signature  string `json:"signature"`
	Randomness string `json:"randomness"`
}

// failure is the body of every answer that is not 200.
type failure struct {
	Code  string `json:"code"`
	Error string `json:"error"`
}

var errNotFound = errors.New("dev chain: no such thing")

// failures maps errors to answers and back. The first that matches counts.
var failures = []struct {
	err    error
	code   string
	status int
}{
	{chain.ErrConflict, "conflict", http.StatusConflict},
	{chain.ErrWindow, "window", http.StatusForbidden},
	{chain.ErrUnknownBlock, "unknown-block", http.StatusNotFound},
	{chain.ErrRefused, "refused", http.StatusBadRequest},
	{beacon.ErrTooEarly, "too-early", http.StatusTooEarly},
	{beacon.ErrRound, "no-round", http.StatusBadRequest},
	{errNotFound, "not-found", http.StatusNotFound},
	{errNotStarted, "not-running", http.StatusServiceUnavailable},
	{ErrFull, "storage", http.StatusInsufficientStorage},
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/chain", func(w http.ResponseWriter, _ *http.Request) { s.json(w, s.Info(), nil) })
	mux.HandleFunc("GET /v1/head", func(w http.ResponseWriter, _ *http.Request) {
		b, err := s.head()
		s.json(w, wireBlock{b.Height, b.Hash, b.Time.UnixMilli()}, err)
	})
	mux.HandleFunc("GET /v1/snapshots/{height}", func(w http.ResponseWriter, r *http.Request) {
		height, err := number(r, "height")
		if err != nil {
			s.fail(w, err)
			return
		}
		snapshot, err := s.snapshot(height)
		if err != nil {
			s.fail(w, err)
			return
		}
		b, err := protocol.Encode(snapshot)
		s.cbor(w, b, err)
	})
	mux.HandleFunc("POST /v1/registrations", func(w http.ResponseWriter, r *http.Request) {
		body, err := read(w, r, maxRegistration)
		if err != nil {
			s.fail(w, err)
			return
		}
		height, err := s.register(body)
		s.json(w, wireHeight{height}, err)
	})
	mux.HandleFunc("GET /v1/registrations/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, err := participant(r, "id")
		if err != nil {
			s.fail(w, err)
			return
		}
		b, ok := s.registration(id)
		s.found(w, b, ok)
	})
	mux.HandleFunc("POST /v1/weights", func(w http.ResponseWriter, r *http.Request) {
		body, err := read(w, r, maxSubmission)
		if err == nil {
			err = s.submit(body)
		}
		s.json(w, struct{}{}, err)
	})
	mux.HandleFunc("GET /v1/weights/{cycle}/{validator}", func(w http.ResponseWriter, r *http.Request) {
		cycle, err := number(r, "cycle")
		if err != nil {
			s.fail(w, err)
			return
		}
		id, err := participant(r, "validator")
		if err != nil {
			s.fail(w, err)
			return
		}
		b, ok := s.weights(cycle, id)
		s.found(w, b, ok)
	})
	mux.HandleFunc("GET /v1/beacon/{round}", func(w http.ResponseWriter, r *http.Request) {
		n, err := number(r, "round")
		if err != nil {
			s.fail(w, err)
			return
		}
		sig, err := s.signature(n)
		random := beacon.Randomness(sig)
		s.json(w, round{n, hex.EncodeToString(sig), hex.EncodeToString(random[:])}, err)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, fmt.Errorf("%w: %s %.80q", errNotFound, r.Method, r.URL.Path))
	})
	chain := s.Info().Chain.String()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(chainHeader, chain)
		mux.ServeHTTP(w, r)
	})
}

type wireBlock struct {
	Height uint64        `json:"height"`
	Hash   protocol.Hash `json:"hash"`
	Millis int64         `json:"time_ms"` // Unix
}

type wireHeight struct {
	Height uint64 `json:"height"`
}

func number(r *http.Request, name string) (uint64, error) {
	n, err := strconv.ParseUint(r.PathValue(name), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s %.40q is no number", chain.ErrRefused, name, r.PathValue(name))
	}
	return n, nil
}

func participant(r *http.Request, name string) (id protocol.ID, err error) {
	if err := id.UnmarshalText([]byte(r.PathValue(name))); err != nil {
		return id, fmt.Errorf("%w: %w", chain.ErrRefused, err)
	}
	return id, nil
}

func read(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, fmt.Errorf("%w: a body of at most %d bytes: %w", chain.ErrRefused, limit, err)
	}
	return b, nil
}

// Once the status is written, a failed write means that the client has gone: there is nobody to tell.

func (s *Server) json(w http.ResponseWriter, v any, err error) {
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", typeJSON)
	_ = json.NewEncoder(w).Encode(v)
}

func (s *Server) cbor(w http.ResponseWriter, b []byte, err error) {
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", typeCBOR)
	_, _ = w.Write(b)
}

func (s *Server) found(w http.ResponseWriter, b []byte, ok bool) {
	var err error
	if !ok {
		err = errNotFound
	}
	s.cbor(w, b, err)
}

func (s *Server) fail(w http.ResponseWriter, err error) {
	f, status := failure{"internal", err.Error()}, http.StatusInternalServerError
	for _, known := range failures {
		if errors.Is(err, known.err) {
			f.Code, status = known.code, known.status
			break
		}
	}
	if large := new(http.MaxBytesError); errors.As(err, &large) {
		status = http.StatusRequestEntityTooLarge
	}
	w.Header().Set("Content-Type", typeJSON)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(f)
}
