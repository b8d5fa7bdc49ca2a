package cluster

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"io"
	"strings"
	"time"
)

// ID names an object. It is 128 random bits; its text form is 26 lower-case base32 letters, and any unambiguous prefix of
// it is accepted by the API.
type ID [16]byte

var idText = base32.NewEncoding("abcdefghijkmnpqrstuvwxyz23456789").WithPadding(base32.NoPadding)

// NewID draws an id from r. Simulations pass a seeded reader; everything else passes nil for the system's randomness.
func NewID(r io.Reader) ID {
	if r == nil {
		r = rand.Reader
	}
	var id ID
	if _, err := io.ReadFull(r, id[:]); err != nil {
		panic(fmt.Sprintf("cluster: no randomness: %v", err))
	}
	return id
}

// ParseID reads the text form of an id.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 26 {
		return id, fmt.Errorf("id %q: want 26 characters, got %d", s, len(s))
	}
	b, err := idText.DecodeString(s)
	if err != nil {
		return id, fmt.Errorf("id %q: not an id", s)
	}
	copy(id[:], b)
	return id, nil
}

// String is the text form; the zero id is the empty string.
func (id ID) String() string {
	if id.IsZero() {
		return ""
	}
	return idText.EncodeToString(id[:])
}

// Short is the first 10 characters of the text form, for tables.
func (id ID) Short() string {
	s := id.String()
	return s[:min(len(s), 10)]
}

// IsZero reports whether the id is unset.
func (id ID) IsZero() bool { return id == ID{} }

// HasPrefix reports whether the text form starts with prefix.
func (id ID) HasPrefix(prefix string) bool { return strings.HasPrefix(id.String(), prefix) }

// MarshalText implements encoding.TextMarshaler; it is what JSON shows.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	v, err := ParseID(string(b))
	*id = v
	return err
}

// Version is the log index of the last write of an object, or of a whole snapshot.
type Version uint64

// Kind is the table an object lives in.
type Kind uint8

// The kinds. The numbers are stored: never reuse one.
const (
	KindNode Kind = iota + 1
	KindStack
	KindRelease
	KindService
	KindRevision
	KindTask
	KindNetwork
	KindVolume
	KindSecret
	KindConfig
	KindEvent
	KindSettings
	KindAuthority
	KindJoinToken
	KindRegistry
	KindLoadedImage
	KindCertificate // since LevelTraffic
	KindMax         = KindCertificate
)

var kindNames = [...]string{"", "node", "stack", "release", "service", "revision", "task", "network", "volume", "secret", "config", "event", "settings", "authority", "token", "registry", "image", "certificate"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Meta is what every object has.
type Meta struct {
	ID      ID        `json:"id" cbor:"1,keyasint"`
	Version Version   `json:"version" cbor:"2,keyasint,omitempty"`
	Created time.Time `json:"created,omitzero" cbor:"3,keyasint,omitzero"`
}

// GetMeta gives access to the common part.
func (m *Meta) GetMeta() *Meta { return m }

// Object is anything that the store keeps.
type Object interface {
	Kind() Kind
	GetMeta() *Meta
	// Clone returns a deep copy that may be changed.
	Clone() Object
}

// New returns an empty object of the kind, for decoding, or nil for an unknown kind.
func New(k Kind) Object {
	switch k {
	case KindNode:
		return new(Node)
	case KindStack:
		return new(Stack)
	case KindRelease:
		return new(Release)
	case KindService:
		return new(Service)
	case KindRevision:
		return new(Revision)
	case KindTask:
		return new(Task)
	case KindNetwork:
		return new(Network)
	case KindVolume:
		return new(Volume)
	case KindSecret:
		return new(Secret)
	case KindConfig:
		return new(Config)
	case KindEvent:
		return new(Event)
	case KindSettings:
		return new(Settings)
	case KindAuthority:
		return new(Authority)
	case KindJoinToken:
		return new(JoinToken)
	case KindRegistry:
		return new(Registry)
	case KindLoadedImage:
		return new(LoadedImage)
	case KindCertificate:
		return new(Certificate)
	}
	return nil
}

// Copy clones an object and keeps its type: Copy(task) is a *Task.
func Copy[T Object](o T) T { return o.Clone().(T) }
