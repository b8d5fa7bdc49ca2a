package server

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"baton/client/api"
	"baton/internal/manager/consensus"
	"baton/internal/manager/store"
	"baton/internal/model/spec"
)

// problem turns any error into one that users understand. What is not known is logged here and told as a fault of Baton: its
// text was not written for users.
func (s *Server) problem(err error) *api.Error {
	var known *api.Error
	if errors.As(err, &known) {
		return known
	}
	var invalid *spec.InvalidError
	switch {
	case errors.As(err, &invalid):
		return invalidStack(invalid)
	case errors.Is(err, consensus.ErrNotLeader):
		return api.Errorf(api.CodeNotLeader, "this manager does not lead the cluster").WithMend("ask another manager, or wait a moment")
	case errors.Is(err, consensus.ErrDiskFull):
		return api.Errorf(api.CodeStoreFull, "the manager's disk is full, so nothing can be changed").WithMend("free space in the data directory; nothing was lost")
	case errors.Is(err, consensus.ErrDiskStalled):
		return api.Errorf(api.CodeUnavailable, "the manager's disk does not answer").WithMend("look at the disk of the data directory")
	case errors.Is(err, consensus.ErrNoLeader):
		return api.Errorf(api.CodeUnavailable, "the managers have no leader now, so nothing was changed").
			WithMend("try again; if it stays so, look with `baton node ls` whether a majority of the managers runs")
	case errors.Is(err, consensus.ErrTooLarge):
		return api.Errorf(api.CodeTooLarge, "the change is too large for one transaction").WithMend("split the stack, or make its configs and secrets smaller")
	case errors.Is(err, consensus.ErrClosed):
		return api.Errorf(api.CodeUnavailable, "the server is shutting down").WithMend("try again when it is back")
	case errors.Is(err, consensus.ErrUnknown):
		return api.Errorf(api.CodeUnavailable, "it is not known whether the change was made").WithMend("look with `baton ls` before trying again")
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrExists):
		return api.Errorf(api.CodeStateMoved, "somebody else keeps changing the same objects").WithMend("try again")
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(api.CodeTimeout, "it took too long").WithMend("try again; look at the server's log if it stays so")
	case errors.Is(err, context.Canceled):
		return api.Errorf(api.CodeUnavailable, "the request was given up")
	}
	s.log.Error("request failed", "err", err)
	return api.Errorf(api.CodeInternal, "a fault inside Baton").WithMend("see the server's log")
}

func invalidStack(e *spec.InvalidError) *api.Error {
	if len(e.Fields) == 0 {
		return api.Errorf(api.CodeInvalid, "the stack is not valid")
	}
	first := e.Fields[0]
	out := api.Errorf(api.CodeInvalid, "%s", first.Message).At(first.Path)
	out.Mend = first.Mend
	for _, f := range e.Fields[1:] {
		out.More = append(out.More, api.Fault{Where: f.Path, Message: f.Message, Mend: f.Mend})
	}
	return out
}

// toProblem gives the errors that the HTTP layer itself makes (a body that is not JSON, an unknown field) the same shape as
// ours. The values that were sent are left out: they may be secret.
func toProblem(_ huma.Context, _ string, v any) (any, error) {
	e, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	code := api.CodeInvalid
	switch e.Status {
	case http.StatusRequestEntityTooLarge:
		code = api.CodeTooLarge
	case http.StatusUnsupportedMediaType, http.StatusNotAcceptable:
		code = api.CodeMediaType
	case http.StatusRequestTimeout:
		code = api.CodeTimeout
	case http.StatusInternalServerError:
		code = api.CodeInternal
	}
	out := api.Errorf(code, "%s", e.Detail)
	out.Status, out.Title = e.Status, http.StatusText(e.Status)
	for i, d := range e.Errors {
		if d == nil {
			continue
		}
		at := strings.TrimPrefix(d.Location, "body.")
		if i == 0 {
			out.Message, out.Where = d.Message, at
			continue
		}
		out.More = append(out.More, api.Fault{Where: at, Message: d.Message})
	}
	if out.Mend == "" && code == api.CodeInvalid {
		out.Mend = "see /v1/openapi.json for what the operation takes"
	}
	return out, nil
}
