package server

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"baton/client/api"
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/model/spec"
)

// materials are the versions of secrets and configs that a deployment uses.
type materials struct {
	secrets, configs map[string]cluster.ID
	fresh            []cluster.Object // new versions
	found            []cluster.Object // those that were there before
}

// versionsMax is how many versions of a secret or config that was set by hand are kept; older ones stay only while a revision
// that is kept has them.
const versionsMax = 10

// materials finds or makes a version for each secret and config of a stack. Content equal to the newest version's makes no new
// one. st is nil for a new stack; its id is filled in when the release has one.
func (s *Server) materials(snap store.Snapshot, st *cluster.Stack, want *spec.Stack, now time.Time) (materials, error) {
	m := materials{secrets: make(map[string]cluster.ID), configs: make(map[string]cluster.ID)}
	var own cluster.ID
	if st != nil {
		own = st.ID
	}
	for _, x := range want.Secrets {
		if x.External {
			have, ok := snap.SecretByName(cluster.ID{}, refOr(x.Ref, x.Name))
			if !ok {
				name := refOr(x.Ref, x.Name)
				return m, api.Errorf(api.CodeNotFound, "external secret %q does not exist", name).At("secrets."+x.Name).WithMend("run `baton secret set %s -`", name)
			}
			m.secrets[x.Name], m.found = have.ID, append(m.found, have)
			continue
		}
		if len(x.Content) == 0 {
			return m, api.Errorf(api.CodeInvalid, "secret %q has no content", x.Name).At("secrets." + x.Name).WithMend("put something into its file, or make it external")
		}
		have, number := ownVersion(st, x.Name, snap.SecretByName)
		if have != nil && bytes.Equal(have.Digest, s.cfg.Sealer.Digest(x.Content)) {
			m.secrets[x.Name], m.found = have.ID, append(m.found, have)
			continue
		}
		o := &cluster.Secret{Meta: cluster.Meta{ID: newID(), Created: now}, Stack: own, Name: x.Name, Number: number + 1, Size: len(x.Content)}
		var err error
		if o.Sealed, err = s.cfg.Sealer.Seal(x.Content, cluster.KindSecret, o.ID); err != nil {
			return m, fmt.Errorf("seal secret %s: %w", x.Name, err)
		}
		o.Digest = s.cfg.Sealer.Digest(x.Content)
		m.secrets[x.Name], m.fresh = o.ID, append(m.fresh, o)
	}
	return m, s.stackConfigs(snap, st, want, now, &m)
}

func (s *Server) stackConfigs(snap store.Snapshot, st *cluster.Stack, want *spec.Stack, now time.Time, m *materials) error {
	var own cluster.ID
	if st != nil {
		own = st.ID
	}
	for _, x := range want.Configs {
		if x.External {
			have, ok := snap.ConfigByName(cluster.ID{}, refOr(x.Ref, x.Name))
			if !ok {
				name := refOr(x.Ref, x.Name)
				return api.Errorf(api.CodeNotFound, "external config %q does not exist", name).At("configs."+x.Name).WithMend("run `baton cfg set %s FILE`", name)
			}
			m.configs[x.Name], m.found = have.ID, append(m.found, have)
			continue
		}
		have, number := ownVersion(st, x.Name, snap.ConfigByName)
		if have != nil && bytes.Equal(have.Digest, s.cfg.Sealer.Digest(x.Content)) {
			m.configs[x.Name], m.found = have.ID, append(m.found, have)
			continue
		}
		o := &cluster.Config{Meta: cluster.Meta{ID: newID(), Created: now}, Stack: own, Name: x.Name, Number: number + 1, Size: len(x.Content)}
		var err error
		if o.Sealed, err = s.cfg.Sealer.Seal(x.Content, cluster.KindConfig, o.ID); err != nil {
			return fmt.Errorf("seal config %s: %w", x.Name, err)
		}
		o.Digest = s.cfg.Sealer.Digest(x.Content)
		m.configs[x.Name], m.fresh = o.ID, append(m.fresh, o)
	}
	return nil
}

// ownVersion finds the newest version that the stack itself brought, and its number.
func ownVersion[T interface {
	*cluster.Secret | *cluster.Config
}](st *cluster.Stack, name string, find func(cluster.ID, string) (T, bool)) (T, int) {
	if st == nil {
		return nil, 0
	}
	have, ok := find(st.ID, name)
	if !ok {
		return nil, 0
	}
	switch h := any(have).(type) {
	case *cluster.Secret:
		return have, h.Number
	case *cluster.Config:
		return have, h.Number
	}
	return nil, 0
}

// material is what secrets and configs have in common.
type material struct {
	obj     cluster.Object
	name    string
	stack   cluster.ID
	number  int
	size    int
	digest  []byte
	created time.Time
}

func secretMaterial(o *cluster.Secret) material {
	return material{o, o.Name, o.Stack, o.Number, o.Size, o.Digest, o.Created}
}

func configMaterial(o *cluster.Config) material {
	return material{o, o.Name, o.Stack, o.Number, o.Size, o.Digest, o.Created}
}

// versions lists all versions of a kind, by stack, name and number.
func versions(snap store.Snapshot, kind cluster.Kind) []material {
	var out []material
	if kind == cluster.KindSecret {
		for o := range store.All[*cluster.Secret](snap) {
			out = append(out, secretMaterial(o))
		}
	} else {
		for o := range store.All[*cluster.Config](snap) {
			out = append(out, configMaterial(o))
		}
	}
	slices.SortFunc(out, func(a, b material) int {
		if c := slices.Compare(a.stack[:], b.stack[:]); c != 0 {
			return c
		}
		if a.name != b.name {
			if a.name < b.name {
				return -1
			}
			return 1
		}
		return a.number - b.number
	})
	return out
}

// users names the services whose wanted revision has each version of a kind, by its id.
func users(snap store.Snapshot, kind cluster.Kind) map[cluster.ID][]string {
	out := make(map[cluster.ID][]string)
	for svc := range store.All[*cluster.Service](snap) {
		rev, ok := store.Get[*cluster.Revision](snap, svc.Revision)
		if !ok {
			continue
		}
		refs := rev.Secrets
		if kind == cluster.KindConfig {
			refs = rev.Configs
		}
		for _, id := range refs {
			out[id] = append(out[id], svc.StackName+"/"+svc.Name)
		}
	}
	for _, list := range out {
		slices.Sort(list)
	}
	return out
}

func (r reader) material(m material, used map[cluster.ID][]string) api.Material {
	return api.Material{
		ID: m.obj.GetMeta().ID, Name: m.name, Stack: r.stackName(m.stack), Number: m.number, Size: m.size, Created: m.created,
		UsedBy: used[m.obj.GetMeta().ID],
	}
}

// listMaterials lists the newest versions, or all versions of one name.
func (s *Server) listMaterials(kind cluster.Kind, stack, name string) ([]api.Material, error) {
	snap := s.cfg.Store.Snapshot()
	r, used := reader{snap}, users(snap, kind)
	out := []api.Material{}
	all := versions(snap, kind)
	var names []string
	for i, m := range all {
		names = append(names, m.name)
		newest := i+1 == len(all) || all[i+1].name != m.name || all[i+1].stack != m.stack
		if name == "" && !newest || name != "" && m.name != name {
			continue
		}
		doc := r.material(m, used)
		if stack == "" || doc.Stack == stack {
			out = append(out, doc)
		}
	}
	if name != "" && len(out) == 0 {
		return nil, (resolver{snap: snap}).unknown(kind.String(), name, names)
	}
	return out, nil
}

// setMaterial stores a new version of a shared secret or config.
func (s *Server) setMaterial(ctx context.Context, kind cluster.Kind, name string, content []byte) (api.SetResult, error) {
	if err := checkMaterial(kind, name, content); err != nil {
		return api.SetResult{}, err
	}
	out := api.SetResult{Name: name}
	digest := s.cfg.Sealer.Digest(content)
	err := s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		var old material
		if o, ok := snap.ByName(kind, cluster.ID{}, name); ok {
			switch o := o.(type) {
			case *cluster.Secret:
				old = secretMaterial(o)
			case *cluster.Config:
				old = configMaterial(o)
			}
			out.Stale = users(snap, kind)[o.GetMeta().ID]
		}
		out.Number, out.Changed = old.number, false
		if old.obj != nil && bytes.Equal(old.digest, digest) {
			out.Stale = nil
			return txn, nil
		}
		out.Number, out.Changed = old.number+1, true
		id := newID()
		sealed, err := s.cfg.Sealer.Seal(content, kind, id)
		if err != nil {
			return txn, fmt.Errorf("seal %s %s: %w", kind, name, err)
		}
		meta := cluster.Meta{ID: id, Created: now}
		if kind == cluster.KindSecret {
			txn.Put(&cluster.Secret{Meta: meta, Name: name, Number: out.Number, Sealed: sealed, Digest: digest, Size: len(content)})
		} else {
			txn.Put(&cluster.Config{Meta: meta, Name: name, Number: out.Number, Sealed: sealed, Digest: digest, Size: len(content)})
		}
		forget(&txn, snap, kind, name, versionsMax-1)
		s.event(&txn, now, kind.String()+".set", fmt.Sprintf("%s %s has version %d", kind, name, out.Number), func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) { out.Changed = true })
	return out, err
}

// forget deletes the versions of a shared secret or config but for the newest and those that a kept revision has. A deployment
// that is under way takes the newest one only.
func forget(txn *store.Txn, snap store.Snapshot, kind cluster.Kind, name string, newest int) {
	var own []material
	for _, m := range versions(snap, kind) {
		if m.name == name && m.stack.IsZero() {
			own = append(own, m)
		}
	}
	if len(own) <= newest {
		return
	}
	keep := references(snap, kind)
	for _, m := range own[:len(own)-newest] {
		if keep[m.obj.GetMeta().ID] == "" {
			txn.Delete(m.obj)
		}
	}
}

func checkMaterial(kind cluster.Kind, name string, content []byte) error {
	if !validName(name) {
		return api.Errorf(api.CodeInvalid, "%q is not a name for a %s", name, kind).WithMend("use letters, digits, dots, - and _, at most 128, starting with a letter or digit")
	}
	if len(content) > ContentBytesMax {
		return api.Errorf(api.CodeTooLarge, "%s %s has %d bytes, at most %d are possible", kind, name, len(content), ContentBytesMax).WithMend("put large files into a volume")
	}
	if len(content) == 0 && kind == cluster.KindSecret {
		return api.Errorf(api.CodeInvalid, "secret %s would be empty", name).WithMend("give its content on standard input or in a file")
	}
	return nil
}

func validName(name string) bool {
	for i, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '-' || c == '_'):
		default:
			return false
		}
	}
	return name != "" && len(name) <= 128
}

// removeMaterial deletes all versions of a shared secret or config that nothing refers to any more.
func (s *Server) removeMaterial(ctx context.Context, kind cluster.Kind, name string) error {
	return s.retry(ctx, func(snap store.Snapshot, now time.Time) (store.Txn, error) {
		var txn store.Txn
		var names []string
		keep := references(snap, kind)
		for _, m := range versions(snap, kind) {
			names = append(names, m.name)
			if m.name != name || !m.stack.IsZero() {
				continue
			}
			if by := keep[m.obj.GetMeta().ID]; by != "" {
				return txn, api.Errorf(api.CodeInUse, "%s %s is in use by %s (version %d)", kind, name, by, m.number).WithMend("deploy the stack without it first")
			}
			txn.Delete(m.obj)
		}
		if txn.Empty() {
			e := (resolver{snap: snap}).unknown(kind.String(), name, names)
			if slices.Contains(names, name) {
				e = api.Errorf(api.CodeInUse, "%s %s belongs to a stack", kind, name).WithMend("it goes with its stack; see `baton %s ls`", map[bool]string{true: "secret", false: "cfg"}[kind == cluster.KindSecret])
			}
			return txn, e
		}
		s.event(&txn, now, kind.String()+".removed", fmt.Sprintf("%s %s was removed", kind, name), func(*cluster.Event) {})
		return txn, nil
	}, func(store.Version) {})
}

// references tells for each version which service refers to it, in any revision that is kept: a rollback would need it.
func references(snap store.Snapshot, kind cluster.Kind) map[cluster.ID]string {
	out := make(map[cluster.ID]string)
	for rev := range store.All[*cluster.Revision](snap) {
		refs := rev.Secrets
		if kind == cluster.KindConfig {
			refs = rev.Configs
		}
		for _, id := range refs {
			by := "an earlier release of " + rev.Spec.Name
			if svc, ok := store.Get[*cluster.Service](snap, rev.Service); ok {
				by = svc.StackName + "/" + svc.Name
				if svc.Revision != rev.ID {
					by = "an earlier release of " + by
				}
			}
			out[id] = by
		}
	}
	return out
}

// configContent opens one version of a config; number zero is the newest.
func (s *Server) configContent(stack, name string, number int) (api.ConfigContent, error) {
	snap := s.cfg.Store.Snapshot()
	var parent cluster.ID
	if stack != "" {
		st, err := (resolver{snap: snap}).stack(stack)
		if err != nil {
			return api.ConfigContent{}, err
		}
		parent = st.ID
	}
	find := func(parent cluster.ID) (cluster.Object, bool) {
		if number > 0 {
			return snap.ByNumber(cluster.KindConfig, parent, name, number)
		}
		return snap.ByName(cluster.KindConfig, parent, name)
	}
	o, ok := find(parent)
	if !ok {
		o, ok = find(cluster.ID{})
	}
	if !ok {
		var names []string
		for _, m := range versions(snap, cluster.KindConfig) {
			names = append(names, m.name)
		}
		return api.ConfigContent{}, (resolver{snap: snap, hint: stack}).unknown("config", name, names)
	}
	c := o.(*cluster.Config)
	content, err := s.cfg.Sealer.Open(c.Sealed, cluster.KindConfig, c.ID)
	if err != nil {
		return api.ConfigContent{}, fmt.Errorf("open config %s: %w", name, err)
	}
	return api.ConfigContent{Name: name, Number: c.Number, Content: content}, nil
}
