package store

import (
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"baton/internal/model/cluster"
)

type opCode uint8

const (
	opPut opCode = iota + 1
	opDelete
	opCheck
)

// cborNull is how an operation without an object is stored.
const cborNull = 0xf6

// opOverhead is an upper bound of what an operation takes beside its object.
const opOverhead = 32

// op is one operation; the layout is drawn in the package doc.
type op struct {
	_    struct{} `cbor:",toarray"`
	Code opCode
	Kind cluster.Kind
	ID   cluster.ID
	Want cluster.Version
	Data cbor.RawMessage
}

func (o *op) normalise() error {
	if len(o.Data) == 1 && o.Data[0] == cborNull {
		o.Data = nil
	}
	switch {
	case o.Code < opPut || o.Code > opCheck:
		return fmt.Errorf("%w: unknown code %d", ErrMalformed, o.Code)
	case o.Kind == 0 || o.Kind > cluster.KindMax:
		return fmt.Errorf("%w: unknown kind %d", ErrMalformed, uint8(o.Kind))
	case o.ID.IsZero():
		return fmt.Errorf("%w: %s without an id", ErrMalformed, o.Kind)
	case (o.Code == opPut) != (len(o.Data) > 0):
		return fmt.Errorf("%w: %s %s with %d bytes of object", ErrMalformed, o.Kind, o.ID.Short(), len(o.Data))
	case o.Code == opDelete && o.Want == 0:
		return fmt.Errorf("%w: %s %s deleted at version 0", ErrMalformed, o.Kind, o.ID.Short())
	}
	return nil
}

type key struct {
	kind cluster.Kind
	id   cluster.ID
}

// Txn is a set of changes that are applied together or not at all, each under the condition that the object is still at
// the version it was read with. The zero value is empty and ready to use:
//
//	var t store.Txn
//	task := cluster.Copy(stored)
//	task.Want(cluster.DesiredStop, "scaled down", now)
//	t.Put(task)
//	version, err := log.Propose(ctx, t)
//
// A Txn holds one operation per object: a later Put or Delete of the same object replaces the earlier one. Put takes what
// the object is now; changing it afterwards changes nothing. A Txn is built by one goroutine; once proposed it is read-only
// and may be proposed again.
type Txn struct {
	ops   []op
	index map[key]int // from the second operation on
	size  int
}

// Put writes o under the condition that the stored version is o's: zero means that it must not be stored yet. It panics
// when o has no id or cannot be encoded, which only a mistake in the program can cause.
func (t *Txn) Put(o cluster.Object) {
	data, err := encodeBare(o)
	if err != nil {
		panic("store: " + err.Error())
	}
	t.add(opPut, o, data)
}

// Delete removes o under the condition that the stored version is o's. It panics when o was never stored.
func (t *Txn) Delete(o cluster.Object) {
	if o.GetMeta().Version == 0 {
		panic(fmt.Sprintf("store: delete of %s %s, which was never stored", o.Kind(), o.GetMeta().ID))
	}
	t.add(opDelete, o, nil)
}

// Check changes nothing but refuses the transaction unless the stored version is o's; zero means that it must not be
// stored. It guards what a decision was based on (write skew). A Put or Delete of the same object checks as well, so that a
// Check beside it adds nothing.
func (t *Txn) Check(o cluster.Object) { t.add(opCheck, o, nil) }

// Empty reports whether there is nothing to propose.
func (t *Txn) Empty() bool { return len(t.ops) == 0 }

// Len is the number of operations.
func (t *Txn) Len() int { return len(t.ops) }

// Size is an upper bound of the encoded size, in bytes.
func (t *Txn) Size() int { return t.size + 5 }

func (t *Txn) add(code opCode, o cluster.Object, data []byte) {
	m := o.GetMeta()
	if m.ID.IsZero() {
		panic(fmt.Sprintf("store: %s without an id", o.Kind()))
	}
	k := key{o.Kind(), m.ID}
	if t.index == nil {
		t.index = make(map[key]int, 1)
	}
	next := op{Code: code, Kind: k.kind, ID: k.id, Want: m.Version, Data: data}
	if i, ok := t.index[k]; ok {
		if code != opCheck {
			t.size += len(data) - len(t.ops[i].Data)
			t.ops[i] = next
		}
		return
	}
	t.index[k] = len(t.ops)
	t.ops = append(t.ops, next)
	t.size += len(data) + opOverhead
}
