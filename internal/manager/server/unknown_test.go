package server

import (
	"strings"
	"testing"
)

func TestUnknownNamesItsList(t *testing.T) {
	for kind, want := range map[string]string{
		"volume": "`baton volume ls`", "secret": "`baton secret ls`", "config": "`baton cfg ls`", "image": "`baton image ls`",
		"node": "`baton node ls`", "stack": "`baton ls --stacks`", "service": "`baton ls`",
	} {
		if got := (resolver{}).unknown(kind, "nosuch", nil).Mend; !strings.Contains(got, want) {
			t.Errorf("%s: the mend is %q, want %s in it", kind, got, want)
		}
	}
}
