package api

import (
	"fmt"
	"net/http"
)

// Code names a kind of error; it is stable, for programs to act on.
type Code string

// The codes.
const (
	CodeInvalid     Code = "invalid"      // the request says something wrong
	CodeNotFound    Code = "not_found"    // no such object
	CodeAmbiguous   Code = "ambiguous"    // the target names several objects
	CodeConflict    Code = "conflict"     // the cluster holds something that is in the way
	CodeStateMoved  Code = "state_moved"  // what the request was based on has changed
	CodeRefused     Code = "refused"      // a policy or guard forbids it
	CodeInUse       Code = "in_use"       // something still uses it
	CodeUnavailable Code = "unavailable"  // a node or the log cannot serve it now
	CodeNotLeader   Code = "not_leader"   // ask another manager
	CodeTooLarge    Code = "too_large"    // the body is over the limit
	CodeUnsupported Code = "unsupported"  // this release cannot do it
	CodeInternal    Code = "internal"     // a fault of Baton
	CodeUnreachable Code = "unreachable"  // made by the client: nobody answers at the address
	CodeMediaType   Code = "media_type"   // the body is not what the operation takes
	CodeMethod      Code = "not_allowed"  // the path exists, the method does not
	CodeTimeout     Code = "timeout"      // it took too long
	CodeStoreFull   Code = "storage_full" // the manager's disk is full: writes are refused
	// CodeUnauthorized means that the caller did not show who it is.
	CodeUnauthorized Code = "unauthorized"
)

// Error is how the API says that something went wrong: a problem document (RFC 9457) with a stable code and the mend.
type Error struct {
	Status int    `json:"status" doc:"HTTP status"`
	Code   Code   `json:"code" doc:"stable kind of the error"`
	Title  string `json:"title,omitempty" doc:"the HTTP status in words"`
	// Message says what is wrong, in one sentence.
	Message string `json:"detail" doc:"what is wrong"`
	// Where names the place: a field path or file:line.
	Where string `json:"where,omitempty" doc:"the field or place that is wrong"`
	// Mend says what to do.
	Mend string `json:"mend,omitempty" doc:"what to do about it"`
	// More lists further faults of the same request.
	More []Fault `json:"more,omitempty" doc:"further faults of the same request"`
}

// Fault is one of several things that are wrong with a request.
type Fault struct {
	Where   string `json:"where,omitempty"`
	Message string `json:"detail"`
	Mend    string `json:"mend,omitempty"`
}

// Error implements error with the message only; the CLI prints the other parts.
func (e *Error) Error() string {
	if e.Where != "" {
		return e.Where + ": " + e.Message
	}
	return e.Message
}

// GetStatus gives the HTTP status to the HTTP layer.
func (e *Error) GetStatus() int { return e.Status }

// ContentType makes an error a problem document.
func (e *Error) ContentType(string) string { return "application/problem+json" }

// Errorf makes an error of the code with the code's HTTP status.
func Errorf(code Code, format string, args ...any) *Error {
	s := code.Status()
	return &Error{Status: s, Code: code, Title: http.StatusText(s), Message: fmt.Sprintf(format, args...)}
}

// WithMend sets what to do and returns the error.
func (e *Error) WithMend(format string, args ...any) *Error {
	e.Mend = fmt.Sprintf(format, args...)
	return e
}

// At sets the place and returns the error.
func (e *Error) At(where string) *Error {
	e.Where = where
	return e
}

// Status is the HTTP status that goes with a code.
func (c Code) Status() int {
	switch c {
	case CodeUnauthorized:
		return http.StatusUnauthorized
	case CodeInvalid:
		return http.StatusUnprocessableEntity
	case CodeNotFound:
		return http.StatusNotFound
	case CodeAmbiguous:
		return http.StatusBadRequest
	case CodeConflict, CodeStateMoved, CodeInUse:
		return http.StatusConflict
	case CodeRefused:
		return http.StatusForbidden
	case CodeUnavailable, CodeNotLeader, CodeUnreachable:
		return http.StatusServiceUnavailable
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeUnsupported:
		return http.StatusNotImplemented
	case CodeMediaType:
		return http.StatusUnsupportedMediaType
	case CodeMethod:
		return http.StatusMethodNotAllowed
	case CodeTimeout:
		return http.StatusGatewayTimeout
	case CodeStoreFull:
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

// The exit codes of every verb.
const (
	ExitDone        = 0   // done and healthy
	ExitError       = 1   // an error
	ExitChanges     = 2   // the plan has changes
	ExitRolledBack  = 3   // the release failed and was rolled back
	ExitTimeout     = 4   // timed out; the deployment goes on
	ExitRefused     = 5   // policy, conflict or state moved
	ExitInterrupted = 130 // Ctrl-C; the deployment goes on
)

// Exit is the exit code that goes with an error code.
func (c Code) Exit() int {
	switch c {
	case CodeStateMoved, CodeRefused, CodeConflict, CodeInUse:
		return ExitRefused
	}
	return ExitError
}
