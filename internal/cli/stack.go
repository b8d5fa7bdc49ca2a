package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"baton/client/api"
	"baton/internal/model/compose"
)

// files are the flags that choose Compose files.
type files struct {
	file     []string
	envFile  []string
	profiles []string
}

// maxStdin bounds a Compose file or a secret that is read from standard input.
const maxStdin = 16 << 20

// load reads the Compose files and prints what their author should know.
func (a *app) load(ctx context.Context, f files) (*compose.Result, error) {
	o := compose.Options{Files: f.file, ProjectName: a.stack, EnvFiles: f.envFile, Profiles: f.profiles, Env: environ()}
	for _, name := range f.file {
		if name != "-" {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(a.in, maxStdin))
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "standard input: %s", err)
		}
		o.Content = b
	}
	res, err := compose.Load(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, w := range res.Warnings {
		a.warn("%s", w)
	}
	return res, nil
}

func environ() map[string]string {
	env := make(map[string]string)
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	return env
}

// localStack is the name of the stack that the Compose file of the current directory describes; empty without one, or when
// it cannot be read: verbs that only look need no valid file.
func (a *app) localStack(ctx context.Context) string {
	res, err := compose.Load(ctx, compose.Options{Env: environ()})
	if err != nil {
		return ""
	}
	return res.Stack.Name
}

// hint is the stack in which targets are looked for: -s, else the one of the Compose file here when it is deployed, else none.
func (a *app) hint(ctx context.Context) (string, error) {
	if a.stack != "" {
		return a.stack, nil
	}
	local := a.localStack(ctx)
	if local == "" {
		return "", nil
	}
	c, err := a.dial()
	if err != nil {
		return "", err
	}
	_, err = c.Stack(ctx, local)
	var known *api.Error
	if errors.As(err, &known) && known.Code == api.CodeNotFound {
		return "", nil
	}
	return local, err
}

// one is the stack that a verb is about: -s, the one of the Compose file here when it is deployed, else the only one.
func (a *app) one(ctx context.Context) (string, error) {
	name, err := a.hint(ctx)
	if err != nil || name != "" {
		return name, err
	}
	c, err := a.dial()
	if err != nil {
		return "", err
	}
	list, err := c.Stacks(ctx)
	if err != nil {
		return "", err
	}
	switch len(list) {
	case 0:
		return "", api.Errorf(api.CodeNotFound, "no stack is deployed").WithMend("deploy one with `baton up`")
	case 1:
		return list[0].Name, nil
	}
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return "", api.Errorf(api.CodeAmbiguous, "there are several stacks: %s", strings.Join(names, ", ")).WithMend("choose one with -s")
}

// optional returns the first argument, or nothing.
func optional(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
