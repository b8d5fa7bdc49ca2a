package compose

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	"baton/internal/model/spec"
)

// atOnce stands for a time of zero that a file asks for where zero in a spec means the default.
const atOnce = time.Millisecond

// converter makes one service.
type converter struct {
	rep     *report
	project *types.Project
	in      *types.ServiceConfig
	out     spec.Service
	path    string
}

func (c *converter) at(key string) string { return c.path + "." + key }

func (c *converter) service() spec.Service {
	in := c.in
	c.out = spec.Service{Name: in.Name, Image: in.Image}
	checkUse(c.rep, levelService, c.path, in.Extensions)
	c.image()
	c.out.Container = c.container()
	c.networks()
	c.ports()
	c.ingress()
	c.mounts()
	c.out.Secrets = c.fileRefs("secrets", secretRefs(in.Secrets))
	c.out.Configs = c.fileRefs("configs", configRefs(in.Configs))
	c.deploy()
	c.resources()
	c.rollout()
	c.autoscale()
	c.placement()
	c.dependencies()
	c.logging()
	c.probes()
	return c.out
}

func (c *converter) image() {
	in := c.in
	switch {
	case in.Build != nil && in.Image == "":
		c.rep.err(c.at("build"), "images are not built here, and the service names none", "add image: NAME, build it, and load it with baton image load")
		c.out.Image = "unbuilt" // one message is enough
	case in.Build != nil:
		c.rep.warn(c.at("build"), "images are not built here", "load "+in.Image+" with baton image load")
	}
	switch p := in.PullPolicy; p {
	case "", types.PullPolicyMissing, types.PullPolicyIfNotPresent:
		c.out.Pull = spec.PullMissing
	case types.PullPolicyAlways:
		c.out.Pull = spec.PullAlways
	case types.PullPolicyNever:
		c.out.Pull = spec.PullNever
	case types.PullPolicyBuild:
		c.rep.warn(c.at("pull_policy"), "images are not built here", "load "+in.Image+" with baton image load")
		c.out.Pull = spec.PullMissing
	default:
		if _, _, err := in.GetPullPolicy(); err != nil {
			c.rep.err(c.at("pull_policy"), fmt.Sprintf("unknown policy %q", p), choose(p, "missing", "always", "never"))
			return
		}
		c.rep.warn(c.at("pull_policy"), fmt.Sprintf("policy %q counts as always", p), "use missing, always or never")
		c.out.Pull = spec.PullAlways
	}
}

func (c *converter) networks() {
	in := c.in
	switch {
	case in.NetworkMode == "" || in.NetworkMode == "host" || in.NetworkMode == "none":
		c.out.NetworkMode = in.NetworkMode
	case in.NetworkMode == "bridge" || in.NetworkMode == "default":
		c.rep.warn(c.at("network_mode"), fmt.Sprintf("mode %q counts as the stack's default network", in.NetworkMode), "leave it out")
	case strings.Contains(in.NetworkMode, ":"):
		c.rep.err(c.at("network_mode"), "tasks have a network of their own", "put both services on one network; they reach each other by name")
	default:
		c.rep.err(c.at("network_mode"), fmt.Sprintf("unknown network mode %q", in.NetworkMode), choose(in.NetworkMode, "host", "none"))
	}
	for _, name := range in.NetworksByPriority() {
		a := spec.Attachment{Network: name}
		if n := in.Networks[name]; n != nil {
			a.Aliases = n.Aliases
		}
		c.out.Networks = append(c.out.Networks, a)
	}
	for i, l := range in.Links {
		if name, alias, ok := strings.Cut(l, ":"); ok && alias != name {
			c.rep.warn(fmt.Sprintf("%s[%d]", c.at("links"), i), fmt.Sprintf("the name %q is not given to %s", alias, name),
				fmt.Sprintf("add it to the aliases of a network of %s", name))
		}
	}
}

func (c *converter) ports() {
	for i, p := range c.in.Ports {
		path := fmt.Sprintf("%s[%d]", c.at("ports"), i)
		if p.Target > 65535 {
			c.rep.errf(path+".target", "port %d is above 65535", p.Target)
			continue
		}
		out := spec.Port{
			Target: uint16(p.Target), Protocol: p.Protocol, Mode: spec.PortMode(p.Mode), HostIP: p.HostIP,
			Name: p.Name, AppProto: p.AppProtocol,
		}
		switch first, last, ranged := strings.Cut(p.Published, "-"); {
		case p.Published == "":
			out.Published = out.Target
			c.rep.warn(path, fmt.Sprintf("no published port is given; port %d is published", p.Target), fmt.Sprintf(`write "%d:%d", or use expose if other services alone need it`, p.Target, p.Target))
		case ranged:
			out.Published = c.port(path, first)
			c.port(path, last)
			c.rep.warn(path, fmt.Sprintf("of the ports %s only %s is published", p.Published, first), "one port serves all replicas; name one")
		default:
			out.Published = c.port(path, first)
		}
		c.out.Ports = append(c.out.Ports, out)
	}
}

func (c *converter) port(path, s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		c.rep.err(path, fmt.Sprintf("%q is no port", s), "use 1 to 65535")
		return 1
	}
	return uint16(n)
}

func (c *converter) mounts() {
	for i, v := range c.in.Volumes {
		path := fmt.Sprintf("%s[%d]", c.at("volumes"), i)
		m := spec.Mount{Kind: spec.MountKind(v.Type), Source: v.Source, Target: v.Target, ReadOnly: v.ReadOnly}
		switch v.Type {
		case types.VolumeTypeVolume:
			if v.Volume != nil {
				m.NoCopy, m.SubPath = v.Volume.NoCopy, v.Volume.Subpath
			}
		case types.VolumeTypeBind:
			m.CreateHostPath = true
			if v.Bind != nil {
				m.CreateHostPath, m.Propagation = bool(v.Bind.CreateHostPath), v.Bind.Propagation
			}
		case types.VolumeTypeTmpfs:
			if v.Tmpfs != nil {
				m.Size, m.FileMode = spec.Bytes(v.Tmpfs.Size), v.Tmpfs.Mode
			}
		default:
			c.rep.err(path+".type", fmt.Sprintf("volumes of type %q are not mounted", v.Type), choose(v.Type, "volume", "bind", "tmpfs"))
			continue
		}
		c.out.Mounts = append(c.out.Mounts, m)
	}
	for i, t := range c.in.Tmpfs {
		c.out.Mounts = append(c.out.Mounts, c.tmpfs(fmt.Sprintf("%s[%d]", c.at("tmpfs"), i), t))
	}
}

// tmpfs reads the short form /run:size=64m,mode=1777.
func (c *converter) tmpfs(path, s string) spec.Mount {
	target, options, _ := strings.Cut(s, ":")
	m := spec.Mount{Kind: spec.MountTmpfs, Target: target}
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "size":
			n, err := units.RAMInBytes(value)
			if err != nil {
				c.rep.errf(path, "%q is not a size such as 64M", value)
				n = 0
			}
			m.Size = spec.Bytes(n)
		case "mode":
			n, err := strconv.ParseUint(value, 8, 12)
			if err != nil {
				c.rep.errf(path, "%q is not an octal mode such as 1777", value)
			}
			m.FileMode = uint32(n)
		case "ro":
			m.ReadOnly = true
		case "rw", "noexec", "nosuid", "nodev":
			// nosuid and nodev hold for every tmpfs; noexec is asked for where it makes no difference to the program
		default:
			c.rep.warn(path, fmt.Sprintf("tmpfs option %q is not honoured", key), "use size, mode and ro")
		}
	}
	return m
}

func secretRefs(in []types.ServiceSecretConfig) []types.FileReferenceConfig {
	out := make([]types.FileReferenceConfig, len(in))
	for i, s := range in {
		out[i] = types.FileReferenceConfig(s)
	}
	return out
}

func configRefs(in []types.ServiceConfigObjConfig) []types.FileReferenceConfig {
	out := make([]types.FileReferenceConfig, len(in))
	for i, s := range in {
		out[i] = types.FileReferenceConfig(s)
	}
	return out
}

func (c *converter) fileRefs(key string, in []types.FileReferenceConfig) []spec.FileRef {
	var out []spec.FileRef
	for i, f := range in {
		path := fmt.Sprintf("%s[%d]", c.at(key), i)
		r := spec.FileRef{Source: f.Source, Target: f.Target, UID: c.id(path+".uid", f.UID), GID: c.id(path+".gid", f.GID)}
		if key == "secrets" && f.Target != "" && !strings.HasPrefix(f.Target, "/") {
			r.Target = "/run/secrets/" + f.Target
		}
		if f.Mode != nil {
			if *f.Mode < 0 || *f.Mode > 0o7777 {
				c.rep.err(path+".mode", "invalid file mode", "use an octal number such as 0440")
			} else {
				r.Mode = uint32(*f.Mode)
			}
		}
		out = append(out, r)
	}
	return out
}

func (c *converter) id(path, s string) uint32 {
	if s == "" {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		c.rep.err(path, fmt.Sprintf("%q is no numeric id", s), "names of users are not known outside the image; give the number")
	}
	return uint32(n)
}

func (c *converter) dependencies() {
	for _, name := range slices.Sorted(maps.Keys(c.in.DependsOn)) {
		d := c.in.DependsOn[name]
		if _, off := c.project.DisabledServices[name]; off && d.Required {
			c.rep.err(c.at("depends_on")+"."+name, fmt.Sprintf("service %q belongs to a profile that is not active", name),
				"activate one of its profiles, or say required: false")
			continue
		}
		out := spec.Dependency{Service: name, Condition: spec.DependencyCondition(d.Condition), Restart: d.Restart, Required: d.Required}
		if out.Condition == "" {
			out.Condition = spec.DependStarted
		}
		c.out.DependsOn = append(c.out.DependsOn, out)
	}
}

func (c *converter) logging() {
	l := c.in.Logging
	if l == nil {
		return
	}
	switch l.Driver {
	case "", "json-file", "local":
	default:
		c.rep.warn(c.at("logging.driver"), fmt.Sprintf("there is no log driver %q; logs are kept on the node", l.Driver), "read them with baton logs")
		return
	}
	for _, k := range slices.Sorted(maps.Keys(l.Options)) {
		v, path := l.Options[k], c.at("logging.options."+k)
		switch k {
		case "max-size":
			n, err := units.RAMInBytes(v)
			if err != nil || n <= 0 {
				c.rep.errf(path, "%q is not a size such as 10m", v)
				n = 0
			}
			c.out.Logging.MaxSize = spec.Bytes(n)
		case "max-file":
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > 1000 {
				c.rep.errf(path, "%q is not a number of files from 1 to 1000", v)
			}
			c.out.Logging.MaxFiles = n
		case "mode", "max-buffer-size", "compress":
			// they tune docker's writer; ours needs no tuning
		default:
			c.rep.warn(path, "this option is not honoured", "use max-size and max-file")
		}
	}
}
