package local

import (
	"fmt"
	"strings"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/backend"
)

// Import turns a Hugging Face model in src into a checkpoint in dst: every expert belongs to the hub and there are no
// groups yet. Hub weights are stored in bf16; one that is not exact there is refused unless round is set.
func Import(b backend.Backend, src, dst string, round bool) (protocol.Link, error) {
	c, err := checkpoint.Open(src)
	if err != nil {
		return protocol.Link{}, err
	}
	defer c.Close()
	m, err := loadModel(c, src, whole(b))
	if err != nil {
		return protocol.Link{}, err
	}
	if round {
		changed := map[string][]float32{}
		for _, s := range m.Specs() {
			if strings.HasSuffix(s.Name, ".mlp.gate.weight") {
				continue // routers stay F32
			}
			v := m.Read(s.Name)
			for i := range v {
				v[i] = safetensors.RoundBF16(v[i])
			}
			changed[s.Name] = v
		}
		if m, err = m.Overlay(changed); err != nil {
			return protocol.Link{}, fmt.Errorf("rounded to bf16: %w", err)
		}
	}
	root, _, err := writeCheckpoint(dst, m, protocol.ProtocolState{Version: protocol.Version}, reuse{}, nil)
	return link(root, err)
}

// Export copies the checkpoint in src to dst and verifies the copy.
func Export(src, dst string) (protocol.Link, error) { return link(checkpoint.Copy(dst, src)) }
