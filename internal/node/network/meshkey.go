package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"baton/internal/model/cluster"
)

// meshKeys is the content of StateDir/mesh/keys, in base64: the private keys of this node, which never leave it.
type meshKeys struct {
	Current string
	Next    string // announced, and taken into use once the peers know it; else empty
	// Epoch is the newest request to rotate that was followed.
	Epoch uint64 `json:",omitempty"`
}

func parseKey(s string) (wgtypes.Key, error) {
	k, err := wgtypes.ParseKey(s)
	if err != nil {
		return k, err
	}
	if k == (wgtypes.Key{}) {
		return k, errors.New("key is all zeros")
	}
	return k, nil
}

// loadKeys reads the node's keys, and makes them when there are none.
func (n *Network) loadKeys() error {
	path := n.meshPath("keys")
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("mesh keys: %w", err)
	}
	var k meshKeys
	if err == nil {
		if err = json.Unmarshal(b, &k); err == nil {
			_, err = parseKey(k.Current)
		}
		if err == nil && k.Next != "" {
			_, err = parseKey(k.Next)
		}
		if err == nil {
			n.setKeys(k)
			return nil
		}
		// The message must not quote the content.
		n.log.Warn("unusable mesh keys: new ones are made, and the other nodes must learn them first", "file", path)
	}
	fresh, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fmt.Errorf("mesh keys: %w", err)
	}
	return n.saveKeys(meshKeys{Current: fresh.String()})
}

func (n *Network) saveKeys(k meshKeys) error {
	if err := writeJSON(n.meshPath("keys"), k); err != nil {
		return fmt.Errorf("mesh keys: %w", err)
	}
	n.setKeys(k)
	return nil
}

// setKeys takes keys over and publishes the newest.
func (n *Network) setKeys(k meshKeys) {
	n.mesh.keys = k
	newest := k.Current
	if k.Next != "" {
		newest = k.Next
	}
	public := publicKey(newest)
	n.meshKey.Store(&public)
}

// publicKey is that of a private key which was checked before.
func publicKey(private string) string {
	k, err := parseKey(private)
	if err != nil {
		panic("network: a mesh key was not checked when it was loaded")
	}
	return k.PublicKey().String()
}

// MeshKey returns the public key that the other nodes must know this one by, in base64, for the node's description.
func (n *Network) MeshKey() string { return *n.meshKey.Load() }

// RotateMeshKey makes a new key. The node must report MeshKey to the managers then. It goes on with the old key until a
// state names the new one as its own: that is when the other nodes change too, and whoever is second begins a handshake
// at once, so packets wait hardly longer than the nodes are apart in applying that state. While one is under way, another
// rotation changes nothing.
func (n *Network) RotateMeshKey(_ context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rotateKey(n.mesh.keys.Epoch)
}

// followEpoch rotates the key when the managers ask for it anew.
func (n *Network) followEpoch(epoch uint64) error {
	if epoch <= n.mesh.keys.Epoch {
		return nil
	}
	return n.rotateKey(epoch)
}

func (n *Network) rotateKey(epoch uint64) error {
	if n.mesh.keys.Next != "" {
		return nil
	}
	fresh, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fmt.Errorf("rotate the mesh key: %w", err)
	}
	k := meshKeys{Current: n.mesh.keys.Current, Next: fresh.String(), Epoch: epoch}
	if n.node.Mesh != cluster.MeshWireGuard && n.mesh.record.Node.Mesh != cluster.MeshWireGuard {
		k = meshKeys{Current: fresh.String(), Epoch: epoch} // nobody uses the old one
	}
	return n.saveKeys(k)
}

// adoptKey takes the announced key into use once the others know this node by it, and reports whether it did.
func (n *Network) adoptKey(known string) (bool, error) {
	k := n.mesh.keys
	if k.Next == "" || known != publicKey(k.Next) {
		return false, nil
	}
	return true, n.saveKeys(meshKeys{Current: k.Next, Epoch: k.Epoch})
}
