package store

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"strings"

	"baton/internal/model/cluster"
)

// PrefixMatchMax is how many ids FindByPrefix returns at most: enough to show that a prefix is ambiguous.
const PrefixMatchMax = 16

// Snapshot is the whole state at one version: consistent over all tables, immutable, free to make and to keep. The zero
// value is not usable. Objects read from it are shared and read-only.
type Snapshot struct{ t *tables }

// Version is the index of the last entry applied.
func (s Snapshot) Version() Version { return s.t.version }

// Hash identifies the state. Stores that applied the same entries have equal hashes at equal versions.
func (s Snapshot) Hash() uint64 {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(s.t.version))
	binary.BigEndian.PutUint64(b[8:], s.t.sum)
	h := sha256.Sum256(b[:])
	return binary.BigEndian.Uint64(h[:8])
}

// Lookup returns the object of a kind and id.
func (s Snapshot) Lookup(k cluster.Kind, id cluster.ID) (cluster.Object, bool) {
	if int(k) >= len(s.t.rows) {
		return nil, false
	}
	r, ok := s.t.get(k, id)
	return r.obj, ok
}

// Get returns the object of type T with the id: Get[*cluster.Task](snap, id).
func Get[T cluster.Object](s Snapshot, id cluster.ID) (T, bool) {
	var zero T
	r, ok := s.t.get(kindOf[T](), id)
	if !ok {
		return zero, false
	}
	return r.obj.(T), true
}

// All yields every object of type T, ordered by id.
func All[T cluster.Object](s Snapshot) iter.Seq[T] {
	return func(yield func(T) bool) {
		s.t.rows[kindOf[T]()].Scan(func(r row) bool { return yield(r.obj.(T)) })
	}
}

// kindOf needs no value: Kind has a pointer receiver that ignores it.
func kindOf[T cluster.Object]() cluster.Kind {
	var zero T
	return zero.Kind()
}

// Count is the number of objects of a kind.
func (s Snapshot) Count(k cluster.Kind) int { return s.t.rows[k].Len() }

// Settings returns the one settings object.
func (s Snapshot) Settings() (*cluster.Settings, bool) {
	return Get[*cluster.Settings](s, cluster.SettingsID)
}

// TaskCount is the number of tasks in an observed state. Tasks are counted by state, not listed: an index by state would
// be written at every step of every task. Tasks that wait for a node are TasksByNode of the zero id.
func (s Snapshot) TaskCount(o cluster.Observed) int {
	if int(o) >= len(s.t.states) {
		return 0
	}
	return s.t.states[o]
}

// TasksByState yields the tasks in an observed state, ordered by id. It reads the whole table unless there are none;
// loops use TaskCount, TasksByNode and TasksByService.
func (s Snapshot) TasksByState(o cluster.Observed) iter.Seq[*cluster.Task] {
	return func(yield func(*cluster.Task) bool) {
		left := s.TaskCount(o)
		if left == 0 {
			return
		}
		for t := range All[*cluster.Task](s) {
			if t.Observed != o {
				continue
			}
			left--
			if !yield(t) || left == 0 {
				return
			}
		}
	}
}

// TasksByService yields the tasks of a service, ordered by slot, then id.
func (s Snapshot) TasksByService(id cluster.ID) iter.Seq[*cluster.Task] {
	return owned[*cluster.Task](s, taskService, id)
}

// TasksByNode yields the tasks of a node, ordered by id; of the zero id, the tasks that have no node yet.
func (s Snapshot) TasksByNode(id cluster.ID) iter.Seq[*cluster.Task] {
	return owned[*cluster.Task](s, taskNode, id)
}

// ServicesByStack yields the services of a stack, ordered by name.
func (s Snapshot) ServicesByStack(id cluster.ID) iter.Seq[*cluster.Service] {
	return children[*cluster.Service](s, id)
}

// NetworksByStack yields the networks of a stack, ordered by name; of the zero id, those of no stack.
func (s Snapshot) NetworksByStack(id cluster.ID) iter.Seq[*cluster.Network] {
	return children[*cluster.Network](s, id)
}

// VolumesByStack yields the volumes of a stack, ordered by id; of the zero id, those of no stack.
func (s Snapshot) VolumesByStack(id cluster.ID) iter.Seq[*cluster.Volume] {
	return owned[*cluster.Volume](s, volumeStack, id)
}

// ReleasesByStack yields the releases of a stack, oldest first.
func (s Snapshot) ReleasesByStack(id cluster.ID) iter.Seq[*cluster.Release] {
	return children[*cluster.Release](s, id)
}

// RevisionsByService yields the revisions of a service, oldest first.
func (s Snapshot) RevisionsByService(id cluster.ID) iter.Seq[*cluster.Revision] {
	return children[*cluster.Revision](s, id)
}

// SecretsByStack yields all versions of the secrets of a stack (zero: shared ones), ordered by name and number.
func (s Snapshot) SecretsByStack(id cluster.ID) iter.Seq[*cluster.Secret] {
	return children[*cluster.Secret](s, id)
}

// ConfigsByStack yields all versions of the configs of a stack (zero: shared ones), ordered by name and number.
func (s Snapshot) ConfigsByStack(id cluster.ID) iter.Seq[*cluster.Config] {
	return children[*cluster.Config](s, id)
}

// EventsBy yields the events linked with a stack, release, service, task or node, oldest first; of the zero id, all.
func (s Snapshot) EventsBy(id cluster.ID) iter.Seq[*cluster.Event] {
	return owned[*cluster.Event](s, eventSubject, id)
}

// EventsByNewest is EventsBy, newest first.
func (s Snapshot) EventsByNewest(id cluster.ID) iter.Seq[*cluster.Event] {
	return func(yield func(*cluster.Event) bool) {
		s.t.ownedNewest(eventSubject, id, func(id cluster.ID) bool {
			return yield(must[*cluster.Event](s, id))
		})
	}
}

// ByName returns the object with the unique name under its parent (the stack of a service, network, secret or config;
// the zero id elsewhere). Of secrets and configs it returns the newest version.
func (s Snapshot) ByName(k cluster.Kind, parent cluster.ID, name string) (cluster.Object, bool) {
	return s.newest(label{kind: k, parent: parent, name: name, number: math.MaxInt})
}

// ByNumber returns a numbered object: a secret or config by stack, name and number; a release by stack, or a revision by
// service, with an empty name and its number.
func (s Snapshot) ByNumber(k cluster.Kind, parent cluster.ID, name string, number int) (cluster.Object, bool) {
	l, ok := s.t.labels.Get(label{kind: k, parent: parent, name: name, number: number})
	if !ok {
		return nil, false
	}
	return s.Lookup(k, l.id)
}

// NodeByName returns the node with the name.
func (s Snapshot) NodeByName(name string) (*cluster.Node, bool) {
	return named[*cluster.Node](s, cluster.ID{}, name)
}

// StackByName returns the stack with the name.
func (s Snapshot) StackByName(name string) (*cluster.Stack, bool) {
	return named[*cluster.Stack](s, cluster.ID{}, name)
}

// ServiceByName returns the service with the name in a stack.
func (s Snapshot) ServiceByName(stack cluster.ID, name string) (*cluster.Service, bool) {
	return named[*cluster.Service](s, stack, name)
}

// VolumeByName returns the volume with the cluster-wide name.
func (s Snapshot) VolumeByName(name string) (*cluster.Volume, bool) {
	return named[*cluster.Volume](s, cluster.ID{}, name)
}

// RegistryByHost finds the credentials for a registry.
func (s Snapshot) RegistryByHost(host string) (*cluster.Registry, bool) {
	return named[*cluster.Registry](s, cluster.ID{}, host)
}

// NetworkByName returns the network with the name in a stack.
func (s Snapshot) NetworkByName(stack cluster.ID, name string) (*cluster.Network, bool) {
	return named[*cluster.Network](s, stack, name)
}

// SecretByName returns the newest version of a secret.
func (s Snapshot) SecretByName(stack cluster.ID, name string) (*cluster.Secret, bool) {
	return named[*cluster.Secret](s, stack, name)
}

// ConfigByName returns the newest version of a config.
func (s Snapshot) ConfigByName(stack cluster.ID, name string) (*cluster.Config, bool) {
	return named[*cluster.Config](s, stack, name)
}

// ReleaseByNumber returns a release of a stack.
func (s Snapshot) ReleaseByNumber(stack cluster.ID, number int) (*cluster.Release, bool) {
	o, ok := s.ByNumber(cluster.KindRelease, stack, "", number)
	r, _ := o.(*cluster.Release)
	return r, ok
}

// FindByPrefix returns the ids of a kind whose text form starts with prefix, in order, at most PrefixMatchMax.
func (s Snapshot) FindByPrefix(k cluster.Kind, prefix string) []cluster.ID {
	from, ok := prefixFloor(prefix)
	if !ok || int(k) >= len(s.t.rows) {
		return nil
	}
	var found []cluster.ID
	s.t.rows[k].Ascend(row{id: from}, func(r row) bool {
		if !r.id.HasPrefix(prefix) {
			return false
		}
		found = append(found, r.id)
		return len(found) < PrefixMatchMax
	})
	return found
}

// prefixFloor is the smallest id whose text starts with prefix. Text and bytes of ids sort alike, which this rests on.
func prefixFloor(prefix string) (cluster.ID, bool) {
	const textLen = 26
	if len(prefix) > textLen {
		return cluster.ID{}, false
	}
	id, err := cluster.ParseID(prefix + strings.Repeat("a", textLen-len(prefix)))
	return id, err == nil
}

// Verify encodes every object again and returns an error that names the first one which differs from what was applied:
// somebody wrote to an object that is shared. It reads everything; tests and simulations call it.
func (s Snapshot) Verify() error {
	var scratch []byte
	for k, rows := range s.t.rows {
		var err error
		rows.Scan(func(r row) bool {
			var data []byte
			if data, err = encodeBare(r.obj); err != nil {
				return false
			}
			m := r.obj.GetMeta()
			if m.ID != r.id || sumOf(&scratch, cluster.Kind(k), r.id, m.Version, data) != r.sum {
				err = fmt.Errorf("%s %s was changed while it was shared: clone objects before changing them", cluster.Kind(k), r.id)
			}
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s Snapshot) newest(last label) (cluster.Object, bool) {
	var found cluster.Object
	s.t.labels.Descend(last, func(l label) bool {
		if l.kind == last.kind && l.parent == last.parent && l.name == last.name {
			found, _ = s.Lookup(l.kind, l.id)
		}
		return false
	})
	return found, found != nil
}

func named[T cluster.Object](s Snapshot, parent cluster.ID, name string) (T, bool) {
	o, ok := s.ByName(kindOf[T](), parent, name)
	t, _ := o.(T)
	return t, ok
}

func owned[T cluster.Object](s Snapshot, rel relation, owner cluster.ID) iter.Seq[T] {
	return func(yield func(T) bool) {
		s.t.owned(rel, owner, func(id cluster.ID) bool { return yield(must[T](s, id)) })
	}
}

func children[T cluster.Object](s Snapshot, parent cluster.ID) iter.Seq[T] {
	return func(yield func(T) bool) {
		first := label{kind: kindOf[T](), parent: parent, number: math.MinInt}
		s.t.labels.Ascend(first, func(l label) bool {
			return l.kind == first.kind && l.parent == parent && yield(must[T](s, l.id))
		})
	}
}

// must reads what an index points at. An index that points at nothing is a broken invariant.
func must[T cluster.Object](s Snapshot, id cluster.ID) T {
	o, ok := Get[T](s, id)
	if !ok {
		panic(fmt.Sprintf("store: index points at %s %s, which is not stored", kindOf[T](), id))
	}
	return o
}
