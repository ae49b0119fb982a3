package p2p

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// ErrDamagedKey: an identity file exists but holds no usable key. It is never overwritten.
var ErrDamagedKey = errors.New("p2p: damaged identity file")

// maxKeyFile is more than a marshalled ed25519 key takes (68 bytes).
const maxKeyFile = 256

// LoadKey reads the ed25519 identity kept at path, libp2p's own encoding as in other libp2p programs. Where there is no
// file it makes a key and writes it, readable by the owner only, so that a crash leaves either no file or a whole one. Two
// processes that start at once end up with the same key.
func LoadKey(path string) (crypto.PrivKey, error) {
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key, _, err = crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("p2p: make an identity: %w", err)
	}
	if err := writeKey(path, key); errors.Is(err, fs.ErrExist) {
		return readKey(path) // somebody was faster
	} else if err != nil {
		return nil, fmt.Errorf("p2p: keep the new identity: %w", err)
	}
	return key, nil
}

func readKey(path string) (crypto.PrivKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("p2p: read identity: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("p2p: identity file %s may be read by others (mode %04o); run chmod 600 on it, or delete it for a new identity if somebody could have copied it",
			path, info.Mode().Perm())
	}
	if info.Size() > maxKeyFile {
		return nil, damaged(path, fmt.Sprintf("%d bytes are no ed25519 key", info.Size()))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("p2p: read identity: %w", err)
	}
	key, err := crypto.UnmarshalPrivateKey(b)
	if err != nil {
		return nil, damaged(path, err.Error())
	}
	raw, err := key.Raw()
	if err != nil || key.Type() != crypto.Ed25519 || len(raw) != ed25519.PrivateKeySize {
		return nil, damaged(path, "not an ed25519 key")
	}
	// The second half must be the public key of the first, or the host would sign as nobody.
	if !ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize]).Equal(ed25519.PrivateKey(raw)) {
		return nil, damaged(path, "its two halves do not belong together")
	}
	return key, nil
}

func damaged(path, why string) error {
	return fmt.Errorf("%w %s: %s; restore it from a backup, or delete it to start with a new identity (peers will have to learn the new binding)", ErrDamagedKey, path, why)
}

// writeKey fails with fs.ErrExist if path exists.
func writeKey(path string, key crypto.PrivKey) (err error) {
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".identity-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, never over another key
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
