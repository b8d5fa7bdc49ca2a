package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"baton/internal/model/spec"
)

// verdict is what happens to a key.
type verdict int

const (
	honoured verdict = iota
	warned           // the stack is deployed without it, and the user is told
	refused          // without it the stack would not do what the file says
)

func (v verdict) String() string { return [...]string{"honoured", "warned", "refused"}[v] }

// keyRule says what happens to a key that Compose allows. Keys of Compose that have no rule are refused, so that a new
// version of compose-go cannot make us drop one in silence.
type keyRule struct {
	pattern string // services.*.build; * stands for any name or index
	verdict verdict
	advice  string
}

// honouredKeys lists, for each place, the keys that come to mean what the Compose Specification says.
var honouredKeys = map[string][]string{
	"": {"name", "services", "networks", "volumes", "secrets", "configs", "include", "version"},
	"services.*": {
		"cap_add", "cap_drop", "command", "configs", "cpu_period", "cpu_quota", "cpus", "depends_on", "deploy", "devices", "dns",
		"dns_opt", "dns_search", "entrypoint", "env_file", "environment", "expose", "extends", "extra_hosts", "group_add",
		"healthcheck", "hostname", "image", "init", "label_file", "labels", "links", "logging", "mem_limit", "mem_reservation",
		"memswap_limit", "network_mode", "networks", "oom_score_adj", "pids_limit", "platform", "ports", "privileged", "profiles",
		"pull_policy", "read_only", "restart", "scale", "secrets", "security_opt", "shm_size", "stdin_open", "stop_grace_period",
		"stop_signal", "sysctls", "tmpfs", "tty", "ulimits", "user", "volumes", "working_dir", "build",
	},
	"services.*.deploy": {
		"mode", "endpoint_mode", "replicas", "labels", "rollback_config", "update_config", "resources", "restart_policy", "placement",
	},
	"services.*.deploy.resources":              {"limits", "reservations"},
	"services.*.deploy.resources.limits":       {"cpus", "memory", "pids"},
	"services.*.deploy.resources.reservations": {"cpus", "memory"},
	"services.*.deploy.placement":              {"constraints", "preferences", "max_replicas_per_node"},
	"services.*.networks.*":                    {"aliases", "priority"},
	"services.*.ports.*":                       {"name", "mode", "host_ip", "target", "published", "protocol", "app_protocol"},
	"services.*.volumes.*":                     {"type", "source", "target", "read_only", "bind", "volume", "tmpfs"},
	"services.*.volumes.*.bind":                {"propagation", "create_host_path"},
	"services.*.volumes.*.volume":              {"nocopy", "subpath"},
	"services.*.volumes.*.tmpfs":               {"size", "mode"},
	"networks.*":                               {"name", "driver", "external", "internal", "labels"},
	"volumes.*":                                {"name", "driver", "external", "labels"},
	"secrets.*":                                {"name", "environment", "file", "external"},
	"configs.*":                                {"name", "content", "environment", "file", "external"},
}

// otherKeys lists the keys that are warned about or refused.
var otherKeys = []keyRule{
	{"models", refused, "models are not run; deploy the model server as a service"},
	{"jobs", refused, "jobs are not run yet; remove them, or run them as services with a profile"},

	{"services.*.annotations", warned, "OCI annotations are not set; use labels"},
	{"services.*.attach", warned, "logs are never attached; use baton logs"},
	{"services.*.blkio_config", warned, "disk bandwidth is not limited yet"},
	{"services.*.cgroup", warned, "tasks always have their own cgroup namespace"},
	{"services.*.cgroup_parent", warned, "tasks live in the node's own cgroup; use deploy.resources"},
	{"services.*.container_name", warned, "containers are named after their task; other services reach this one by its service name"},
	{"services.*.cpu_count", warned, "use deploy.resources.limits.cpus"},
	{"services.*.cpu_percent", warned, "use deploy.resources.limits.cpus"},
	{"services.*.cpu_rt_period", warned, "real-time scheduling is not set"},
	{"services.*.cpu_rt_runtime", warned, "real-time scheduling is not set"},
	{"services.*.cpu_shares", warned, "the weight of the processor follows from deploy.resources.reservations.cpus"},
	{"services.*.cpuset", warned, "tasks are not pinned to processors; use deploy.resources.limits.cpus"},
	{"services.*.credential_spec", refused, "Windows containers are not run"},
	{"services.*.develop", warned, "only docker compose watch uses it"},
	{"services.*.device_cgroup_rules", refused, "list the devices under devices"},
	{"services.*.domainname", warned, "services are found as NAME and NAME.STACK"},
	{"services.*.external_links", warned, "join the other stack's network as an external network"},
	{"services.*.gpus", warned, "GPUs are not given to tasks yet; label the node and use placement constraints"},
	{"services.*.ipc", refused, "tasks have their own IPC namespace; put the programs into one service"},
	{"services.*.isolation", warned, "only Windows containers know it"},
	{"services.*.mac_address", warned, "addresses are chosen by the cluster"},
	{"services.*.mem_swappiness", warned, "use memswap_limit"},
	{"services.*.models", refused, "models are not run; deploy the model server as a service"},
	{"services.*.oom_kill_disable", warned, "a task that uses up its memory is always ended; raise the limit"},
	{"services.*.pid", refused, "tasks have their own process namespace; put the programs into one service"},
	{"services.*.post_start", warned, "the hook is not run yet; start it from the entrypoint"},
	{"services.*.pre_start", warned, "the hook is not run yet; run it from the entrypoint, or by hand with baton exec"},
	{"services.*.pre_stop", warned, "the hook is not run yet; handle the stop signal in the program"},
	{"services.*.provider", refused, "providers are not run; deploy a service"},
	{"services.*.pull_refresh_after", warned, "use pull_policy: always"},
	{"services.*.runtime", refused, "containers are run by the built-in runtime; remove the key"},
	{"services.*.storage_opt", warned, "the size of a container's own files is not limited yet"},
	{"services.*.umask", warned, "set it in the entrypoint"},
	{"services.*.use_api_socket", refused, "there is no docker socket to give; use the API of baton with a token"},
	{"services.*.userns_mode", warned, "user namespaces are not used yet"},
	{"services.*.uts", warned, "tasks have their own host name; use hostname"},
	{"services.*.volumes_from", refused, "mount the same named volume in both services"},
	{"services.*.deploy.resources.limits.devices", refused, "devices can only be reserved"},
	{"services.*.deploy.resources.limits.generic_resources", refused, "use placement constraints on node labels"},
	{"services.*.deploy.resources.reservations.pids", warned, "numbers of processes are not reserved; use limits.pids"},
	{"services.*.deploy.resources.reservations.devices", warned, "devices are not reserved yet; label the node and use placement constraints"},
	{"services.*.deploy.resources.reservations.generic_resources", warned, "they are not counted yet; label the node and use placement constraints"},
	{"services.*.networks.*.driver_opts", warned, "networks have no drivers"},
	{"services.*.networks.*.gw_priority", warned, "the first network by priority is the way out"},
	{"services.*.networks.*.interface_name", warned, "interfaces are named by the cluster"},
	{"services.*.networks.*.ipv4_address", warned, "addresses are chosen by the cluster; use the service's name"},
	{"services.*.networks.*.ipv6_address", warned, "addresses are chosen by the cluster; use the service's name"},
	{"services.*.networks.*.link_local_ips", warned, "addresses are chosen by the cluster"},
	{"services.*.networks.*.mac_address", warned, "addresses are chosen by the cluster"},
	{"services.*.networks.*.use_service_name_alias", warned, "a service always answers to its own name"},
	{"services.*.volumes.*.consistency", warned, "only Docker Desktop uses it"},
	{"services.*.volumes.*.image", refused, "images are not mounted; copy the files into the service's image or a volume"},
	{"services.*.volumes.*.bind.selinux", warned, "files are not relabelled"},
	{"services.*.volumes.*.bind.recursive", warned, "binds are recursive"},
	{"services.*.volumes.*.volume.labels", warned, "set labels on the volume at the top level"},
	{"networks.*.driver_opts", warned, "networks have no drivers"},
	{"networks.*.ipam", warned, "addresses are chosen by the cluster; services find each other by name"},
	{"networks.*.attachable", warned, "only services join networks"},
	{"networks.*.enable_ipv4", warned, "networks carry IPv4"},
	{"networks.*.enable_ipv6", warned, "networks carry IPv4 only"},
	{"volumes.*.driver_opts", refused, "volumes are directories of a node; use a bind mount for another path"},
	{"secrets.*.labels", warned, "secrets have no labels"},
	{"secrets.*.driver", refused, "store the secret with baton secret set and mark it external"},
	{"secrets.*.driver_opts", refused, "store the secret with baton secret set and mark it external"},
	{"secrets.*.template_driver", refused, "give the finished content"},
	{"configs.*.labels", warned, "configs have no labels"},
	{"configs.*.template_driver", refused, "give the finished content"},
}

// rules are the key tables as the walk over a file needs them.
type rules struct {
	byPattern map[string]keyRule
	parents   map[string]bool // the places whose keys are checked
}

func newRules() rules {
	r := rules{map[string]keyRule{}, map[string]bool{}}
	add := func(k keyRule) {
		r.byPattern[k.pattern] = k
		r.parents[parentPath(k.pattern)] = true
	}
	for place, keys := range honouredKeys {
		for _, k := range keys {
			add(keyRule{pattern: join(place, k), verdict: honoured})
		}
	}
	for _, k := range otherKeys {
		add(k)
	}
	return r
}

func join(parent, key string) string {
	if parent == "" {
		return key
	}
	return parent + "." + key
}

// under returns the keys that may stand at a place.
func (r rules) under(place string) []string {
	var keys []string
	for p := range r.byPattern {
		if parentPath(p) == place {
			keys = append(keys, p[strings.LastIndexByte(p, '.')+1:])
		}
	}
	slices.Sort(keys)
	return keys
}

// check walks a merged file and reports each key that is not honoured. skip names services that are not deployed.
func (r rules) check(rep *report, v any, path, pattern string, skip map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		checked := r.parents[pattern]
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if strings.HasPrefix(key, "x-") && pattern != "services" || strings.HasPrefix(key, "#") || pattern == "services" && skip[key] {
				continue
			}
			p := join(path, key)
			next := r.next(pattern, key)
			if next == "" {
				continue
			}
			if rule, ok := r.byPattern[next]; checked && ok && rule.verdict != honoured {
				r.tell(rep, rule, p)
				continue
			} else if checked && !ok && !strings.HasSuffix(next, "*") {
				rep.err(p, "this key is not supported", "remove it")
				continue
			}
			r.check(rep, v[key], p, next, skip)
		}
	case []any:
		for i, e := range v {
			if next := r.next(pattern, "*"); next != "" {
				r.check(rep, e, fmt.Sprintf("%s[%d]", path, i), next, skip)
			}
		}
	}
}

// next is the pattern of a key below pattern, or "" where no rule can apply any more.
func (r rules) next(pattern, key string) string {
	if r.parents[pattern] {
		return join(pattern, key)
	}
	star := join(pattern, "*")
	if r.parents[star] {
		return star
	}
	return ""
}

func (r rules) tell(rep *report, rule keyRule, path string) {
	if rule.verdict == refused {
		rep.err(path, "this key cannot be honoured", rule.advice)
	} else {
		rep.warn(path, "this key is not honoured", rule.advice)
	}
}

// suggest completes a message about an unknown word.
func suggest(word string, candidates []string) string {
	if near := spec.Nearest(word, candidates); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return ""
}
