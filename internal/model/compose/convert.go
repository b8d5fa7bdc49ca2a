package compose

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"baton/internal/model/spec"
)

// convert makes the stack that a project describes and reports what it cannot express.
func convert(rep *report, p *types.Project) *spec.Stack {
	s := &spec.Stack{Name: p.Name}
	convertTop(rep, p, s)
	for _, name := range slices.Sorted(maps.Keys(p.Networks)) {
		s.Networks = append(s.Networks, convertNetwork(rep, name, p.Networks[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Volumes)) {
		s.Volumes = append(s.Volumes, convertVolume(rep, name, p.Volumes[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Secrets)) {
		o := types.FileObjectConfig(p.Secrets[name])
		path := "secrets." + name
		checkUse(rep, levelSecret, path, o.Extensions)
		s.Secrets = append(s.Secrets, spec.Secret{
			Name: name, Ref: o.Name, External: bool(o.External), Content: content(rep, path, "secret", p, o),
		})
	}
	for _, name := range slices.Sorted(maps.Keys(p.Configs)) {
		o := types.FileObjectConfig(p.Configs[name])
		path := "configs." + name
		checkUse(rep, levelConfig, path, o.Extensions)
		s.Configs = append(s.Configs, spec.Config{
			Name: name, Ref: o.Name, External: bool(o.External), Content: content(rep, path, "config", p, o),
		})
	}
	for _, name := range p.ServiceNames() {
		v := p.Services[name]
		c := &converter{rep: rep, project: p, in: &v, path: "services." + name}
		s.Services = append(s.Services, c.service())
	}
	return s
}

func convertTop(rep *report, p *types.Project, s *spec.Stack) {
	checkUse(rep, levelTop, "", p.Extensions)
	// An x- key of another level at the top holds an anchor's fragment; only x-baton means something here.
	v, ok := p.Extensions["x-baton"]
	if !ok {
		return
	}
	m := mapping(rep, "x-baton", v)
	s.ClusterGuard = text(rep, "x-baton.cluster", m["cluster"])
	action := text(rep, "x-baton.on_failure", m["on_failure"])
	s.OnFailure = spec.FailureAction(action)
}

func convertNetwork(rep *report, name string, n types.NetworkConfig) spec.Network {
	path := "networks." + name
	switch n.Driver {
	case "", "bridge", "overlay", "default":
	case "host", "none":
		rep.err(path+".driver", fmt.Sprintf("there is no network driver %q", n.Driver), "use network_mode: "+n.Driver+" on the service")
	default:
		rep.warn(path+".driver", fmt.Sprintf("there is no network driver %q", n.Driver), "all networks are overlays of the cluster")
	}
	return spec.Network{
		Name: name, Ref: n.Name, Internal: n.Internal, External: bool(n.External), Labels: emptyNil(n.Labels),
	}
}

func convertVolume(rep *report, name string, v types.VolumeConfig) spec.Volume {
	path := "volumes." + name
	if v.Driver != "" && v.Driver != "local" {
		rep.err(path+".driver", fmt.Sprintf("there is no volume driver %q", v.Driver), "leave it out: volumes are directories of a node")
	}
	checkUse(rep, levelVolume, path, v.Extensions)
	out := spec.Volume{Name: name, Ref: v.Name, External: bool(v.External), Labels: emptyNil(v.Labels)}
	if x, ok := v.Extensions["x-storage"]; ok {
		p := path + ".x-storage"
		m := mapping(rep, p, x)
		switch access := text(rep, p+".access", m["access"]); access {
		case "":
		case "single-writer":
			out.SingleWriter = true
		case "shared":
			out.Shared = true
		default:
			rep.err(p+".access", fmt.Sprintf("unknown access %q", access), choose(access, "single-writer", "shared"))
		}
		switch loss := text(rep, p+".on_loss", m["on_loss"]); loss {
		case "", string(spec.LossWait), string(spec.LossRecreate):
			out.OnLoss = spec.OnLoss(loss)
		default:
			rep.err(p+".on_loss", fmt.Sprintf("unknown value %q", loss), choose(loss, string(spec.LossWait), string(spec.LossRecreate)))
		}
	}
	return out
}

// content finds what a secret or config holds.
func content(rep *report, path, kind string, p *types.Project, o types.FileObjectConfig) []byte {
	switch {
	case bool(o.External):
		return nil
	case o.Environment != "":
		v, ok := p.Environment[o.Environment]
		if !ok {
			rep.err(path+".environment", fmt.Sprintf("variable %s is not set", o.Environment), "set it in the environment or in .env")
		}
		return limited(rep, path+".environment", kind, []byte(v))
	case o.File != "":
		b, err := readLimited(o.File, spec.MaxContentBytes)
		if err != nil {
			rep.err(path+".file", fmt.Sprintf("file %s %v", displayName(rep.src.dir, o.File), err), "the path is relative to the Compose file")
		}
		return b
	}
	return limited(rep, path+".content", kind, []byte(o.Content))
}

func limited(rep *report, path, kind string, b []byte) []byte {
	if len(b) > spec.MaxContentBytes {
		rep.err(path, fmt.Sprintf("the %s is larger than %d KiB", kind, spec.MaxContentBytes>>10), "use a volume for large files")
		return nil
	}
	return b
}

// mapping and text read values of our own keys, which no schema has checked.
func mapping(rep *report, path string, v any) map[string]any {
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		rep.err(path, "must be a mapping", "")
	}
	return m
}

func text(rep *report, path string, v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case int, int64, uint64, float64, bool:
		return fmt.Sprint(v)
	}
	rep.err(path, "must be a word", "")
	return ""
}

// choose is the mend for an unknown word of a few.
func choose(word string, words ...string) string {
	if mend := suggest(word, words); mend != "" {
		return mend
	}
	return "use " + strings.Join(words, " or ")
}

func quote(s string) string { return fmt.Sprintf("%q", s) }

// emptyNil makes an empty map nil, so that equal stacks have equal encodings.
func emptyNil[M ~map[string]string](m M) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}

// composePath gives the path of a spec field as the Compose file calls it.
func composePath(path string) string {
	for _, r := range pathRewrites {
		if r.re.MatchString(path) {
			return r.re.ReplaceAllString(path, r.with)
		}
	}
	return path
}

// rewrite makes one pathRewrites entry of a field below a service.
func rewrite(field, with string) pathRewrite {
	return pathRewrite{regexp.MustCompile(`^(services\.[^.]+\.)` + field), "${1}" + with}
}

type pathRewrite struct {
	re   *regexp.Regexp
	with string
}

// pathRewrites is ordered: the first that matches wins.
var pathRewrites = []pathRewrite{
	rewrite(`update\.failureAction$`, "deploy.update_config.failure_action"),
	rewrite(`update\.maxFailureRatio$`, "deploy.update_config.max_failure_ratio"),
	rewrite(`update\.deadline$`, "x-rollout.deadline"),
	rewrite(`update\.bake$`, "x-rollout.bake"),
	rewrite(`update\.gates\.errorRate$`, "x-rollout.gates.error_rate"),
	rewrite(`update\.gates`, "x-rollout.gates"),
	rewrite(`update\.`, "deploy.update_config."),
	rewrite(`rollback\.failureAction$`, "deploy.rollback_config.failure_action"),
	rewrite(`rollback\.maxFailureRatio$`, "deploy.rollback_config.max_failure_ratio"),
	rewrite(`rollback\.`, "deploy.rollback_config."),
	rewrite(`restart\.maxAttempts$`, "deploy.restart_policy.max_attempts"),
	rewrite(`restart\.resetAfter$`, "deploy.restart_policy.window"),
	rewrite(`restart\.`, "deploy.restart_policy."),
	rewrite(`resources\.(limits|reservations)\.cpu$`, "deploy.resources.${2}.cpus"),
	rewrite(`resources\.limits\.memorySwap$`, "memswap_limit"),
	rewrite(`resources\.`, "deploy.resources."),
	rewrite(`placement\.maxReplicasPerNode$`, "deploy.placement.max_replicas_per_node"),
	rewrite(`placement\.spread\[(\d+)\]`, "deploy.placement.preferences[${2}].spread"),
	rewrite(`placement\.platforms$`, "platform"),
	rewrite(`placement\.strategy$`, "x-placement"),
	rewrite(`placement\.`, "deploy.placement."),
	rewrite(`replicas$`, "deploy.replicas"),
	rewrite(`mode$`, "deploy.mode"),
	rewrite(`endpointMode$`, "deploy.endpoint_mode"),
	rewrite(`networkMode$`, "network_mode"),
	rewrite(`pull$`, "pull_policy"),
	rewrite(`dependsOn`, "depends_on"),
	rewrite(`ports(\[\d+\])\.hostIP`, "ports${2}.host_ip"),
	rewrite(`mounts`, "volumes"),
	rewrite(`ingress(\[\d+\])\.requestHeaders`, "x-ingress${2}.headers.request"),
	rewrite(`ingress(\[\d+\])\.responseHeaders`, "x-ingress${2}.headers.response"),
	rewrite(`ingress(\[\d+\])\.bodyLimit`, "x-ingress${2}.body_limit"),
	rewrite(`ingress(\[\d+\])\.rateLimit`, "x-ingress${2}.rate_limit"),
	rewrite(`ingress(\[\d+\])\.accessLog`, "x-ingress${2}.access_log"),
	rewrite(`ingress(\[\d+\])`, "x-ingress${2}"),
	rewrite(`ingress$`, "x-ingress"),
	rewrite(`autoscale\.up\.step$`, "x-autoscale.scale_up.max_step"),
	rewrite(`autoscale\.up\.`, "x-autoscale.scale_up."),
	rewrite(`autoscale\.down\.step$`, "x-autoscale.scale_down.max_step"),
	rewrite(`autoscale\.down\.`, "x-autoscale.scale_down."),
	rewrite(`autoscale\.target\.prometheus\.perReplica$`, "x-autoscale.target.prometheus.per_replica"),
	rewrite(`autoscale`, "x-autoscale"),
	rewrite(`probes\.`, "x-probes."),
	rewrite(`container\.env\[\d+\]`, "environment"),
	rewrite(`container\.dir$`, "working_dir"),
	rewrite(`container\.stopSignal$`, "stop_signal"),
	rewrite(`container\.stopGracePeriod$`, "stop_grace_period"),
	rewrite(`container\.drainDeadline$`, "x-rollout.drain"),
	rewrite(`container\.capAdd`, "cap_add"),
	rewrite(`container\.capDrop`, "cap_drop"),
	rewrite(`container\.shmSize`, "shm_size"),
	rewrite(`container\.oomScoreAdj`, "oom_score_adj"),
	rewrite(`container\.extraHosts\[\d+\]`, "extra_hosts"),
	rewrite(`container\.`, ""),
	{regexp.MustCompile(`^onFailure$`), "x-baton.on_failure"},
	{regexp.MustCompile(`^(secrets|configs|networks|volumes)\.([^.]+)\.ref$`), "$1.$2.name"},
	{regexp.MustCompile(`^volumes\.([^.]+)\.shared$`), "volumes.$1.x-storage.access"},
	{regexp.MustCompile(`^volumes\.([^.]+)\.onLoss$`), "volumes.$1.x-storage.on_loss"},
}
