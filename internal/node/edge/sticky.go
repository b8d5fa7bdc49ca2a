package edge

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"baton/internal/model/cluster"
)

// sticky is how the clients of a rule stay with their tasks. All nodes make the same value of a task, so a client may come back by any of
// them. The value shows nothing of the task. A client that knows the values of others can only choose among tasks that it is sent to anyway.
type sticky struct {
	cookie string // its name is the service's
	path   string
	tasks  map[string]*backend
	values map[*backend]string
}

func newSticky(service cluster.ID, path string) *sticky {
	return &sticky{
		cookie: "baton_" + token("service", service, cluster.ID{})[:12], path: path,
		tasks: make(map[string]*backend), values: make(map[*backend]string),
	}
}

func token(what string, service, task cluster.ID) string {
	sum := sha256.Sum256(append(append([]byte("baton sticky "+what+" "), service[:]...), task[:]...))
	return hex.EncodeToString(sum[:16])
}

func (s *sticky) add(service, task cluster.ID, b *backend) {
	if s == nil {
		return
	}
	v := token("task", service, task)
	s.tasks[v], s.values[b] = b, v
}

// value is what a client says in its cookie.
func (s *sticky) value(r *http.Request) string {
	if s != nil {
		if c, err := r.Cookie(s.cookie); err == nil {
			return c.Value
		}
	}
	return ""
}

// of is the task that the value of a cookie names; nil when there is none, or none any more.
func (s *sticky) of(value string) *backend {
	if s == nil {
		return nil
	}
	return s.tasks[value]
}

// answer gives the client a cookie for the task that it was answered by, unless it has that one.
func (s *sticky) answer(h http.Header, had string, b *backend, secure bool) {
	if s == nil || s.of(had) == b {
		return
	}
	v := s.values[b]
	if v == "" {
		return // it left meanwhile
	}
	c := http.Cookie{Name: s.cookie, Value: v, Path: s.path, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: secure}
	h.Add("Set-Cookie", c.String())
}
