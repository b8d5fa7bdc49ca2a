package store

import (
	"errors"
	"fmt"

	"baton/internal/model/cluster"
)

// The classes of errors. Callers compare with errors.Is.
var (
	// ErrConflict means that an object was not at the version that the transaction expected. Read again and retry.
	ErrConflict = errors.New("version conflict")
	// ErrExists means that another object has the same unique key.
	ErrExists = errors.New("already exists")
	// ErrMalformed means that bytes are not what this package writes.
	ErrMalformed = errors.New("malformed")
	// ErrClosed is returned by a cursor after Close.
	ErrClosed = errors.New("cursor closed")
)

// ConflictError says which object stopped a transaction. Version zero stands for "not stored".
type ConflictError struct {
	Kind cluster.Kind
	ID   cluster.ID
	Want cluster.Version // what the transaction expected
	Have cluster.Version // what is stored
}

func (e *ConflictError) Error() string {
	switch {
	case e.Want == 0:
		return fmt.Sprintf("%s %s: is already stored at version %d", e.Kind, e.ID.Short(), e.Have)
	case e.Have == 0:
		return fmt.Sprintf("%s %s: wanted version %d, but it is not stored", e.Kind, e.ID.Short(), e.Want)
	}
	return fmt.Sprintf("%s %s: wanted version %d, stored is %d", e.Kind, e.ID.Short(), e.Want, e.Have)
}

// Is makes errors.Is(err, ErrConflict) true.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// ExistsError names the unique key that a transaction would have used twice.
type ExistsError struct {
	Kind   cluster.Kind
	Parent cluster.ID // stack or service, zero when the key has none
	Name   string
	Number int
	ID     cluster.ID // who has it
}

func (e *ExistsError) Error() string {
	what := e.Kind.String()
	if e.Name != "" {
		what += fmt.Sprintf(" %q", e.Name)
	}
	if e.Number != 0 {
		what += fmt.Sprintf(" number %d", e.Number)
	}
	if !e.Parent.IsZero() {
		what += " in " + e.Parent.Short()
	}
	return what + " already exists as " + e.ID.Short()
}

// Is makes errors.Is(err, ErrExists) true.
func (e *ExistsError) Is(target error) bool { return target == ErrExists }
