package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The places where our extension keys stand.
const (
	levelTop     = "top"
	levelService = "services"
	levelVolume  = "volumes"
	levelConfig  = "configs"
	levelSecret  = "secrets"
)

// levels lists the places in the order in which messages and documents name them.
var levels = []string{levelTop, levelService, levelVolume, levelConfig, levelSecret, "networks"}

// extension is one of our x- keys.
type extension struct {
	name    string
	levels  []string
	verdict verdict // of keys not listed in honours
	advice  string
	keys    []string // all keys its mapping may have; empty: not a mapping, or free
	honours []string // those that are honoured already
}

// extensions lists every x- key of ours. Names that come near one of these are errors; all others are left alone, as the
// Compose Specification says.
var extensions = []extension{
	{"x-baton", []string{levelTop}, warned, "there is one namespace, and nobody is notified yet",
		[]string{"cluster", "namespace", "on_failure", "notify"}, []string{"cluster", "on_failure"}},
	{"x-probes", []string{levelService}, honoured, "", []string{"ready", "live", "start"}, []string{"ready", "live", "start"}},
	// The converter warns of canary, blue-green and steps, and refuses manual.
	{"x-rollout", []string{levelService}, honoured, "", rolloutKeys, rolloutKeys},
	{"x-placement", []string{levelService}, warned, "use deploy.placement",
		[]string{"strategy", "near", "away_from"}, []string{"strategy"}},
	{"x-storage", []string{levelVolume}, warned, "the volume is a directory on one node",
		[]string{"size", "class", "access", "copies", "on_loss", "snapshots", "backup"}, []string{"access", "on_loss"}},
	// The converter reports auth itself: without it a rule would show what the file hides.
	{"x-ingress", []string{levelService}, warned, "the rule is served without them",
		[]string{"host", "path", "port", "tls", "redirect", "sticky", "headers", "auth", "rate_limit", "body_limit", "timeout", "allow", "weight", "protocol",
			"trusted", "access_log"},
		[]string{"host", "path", "port", "tls", "redirect", "sticky", "headers", "auth", "rate_limit", "body_limit", "timeout", "allow", "protocol",
			"trusted", "access_log"}},
	{"x-autoscale", []string{levelService}, honoured, "", autoscaleKeys, autoscaleKeys},
	{"x-cron", []string{levelService}, refused, "schedules are not run yet; remove the service, or give it a profile",
		[]string{"schedule", "tz", "overlap", "deadline", "catch_up", "keep"}, nil},
	{"x-job", []string{levelService}, refused, "jobs are not run yet; remove the service, or give it a profile", nil, nil},
	{"x-resize", []string{levelService}, warned, "deploy.resources holds as it is; `baton top --sizes` tells what would be better",
		[]string{"mode", "cpu", "memory"}, nil},
	{"x-stateful", []string{levelService}, refused, "replicas do not get volumes of their own yet; write one service per replica", nil, nil},
	{"x-priority", []string{levelService}, warned, "all services have the same priority", nil, nil},
	{"x-disruption", []string{levelService}, warned, "deploy.update_config bounds how many tasks move at once", nil, nil},
	{"x-allow-from", []string{levelService}, warned, "every service on the same network may connect; use networks to keep services apart", nil, nil},
	{"x-egress", []string{levelService}, warned, "connections to the outside are not filtered; use a network with internal: true", nil, nil},
	{"x-cluster-spec", []string{levelVolume}, refused, "CSI volumes are not supported", nil, nil},
	{"x-reload", []string{levelConfig, levelSecret}, warned, "a change of the content replaces the tasks", nil, nil},
	{"x-from", []string{levelConfig, levelSecret}, refused, "give a file, or store it with baton secret set or baton cfg set and mark it external", nil, nil},
}

// extensionNames lists the names of our keys.
func extensionNames() []string {
	names := make([]string, len(extensions))
	for i, e := range extensions {
		names[i] = e.name
	}
	return names
}

func findExtension(name string) *extension {
	i := slices.IndexFunc(extensions, func(e extension) bool { return e.name == name })
	if i < 0 {
		return nil
	}
	return &extensions[i]
}

// checkNames reports the x- keys of one file that are nearly ours or stand at the wrong place. It looks at each file before
// merging, so that these faults show together with those that keep compose-go from merging.
func checkNames(rep *report, tree map[string]any) {
	visit := func(level, path string, v any) {
		m, _ := v.(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if strings.HasPrefix(key, "x-") {
				checkName(rep, level, join(path, key), key)
			}
		}
	}
	visit(levelTop, "", tree)
	for _, level := range levels[1:] {
		parts, _ := tree[level].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(parts)) {
			visit(level, level+"."+name, parts[name])
		}
	}
}

// checkEmpty reports empty entries of lists about which compose-go does not say where they stand.
func checkEmpty(rep *report, tree map[string]any) {
	services, _ := tree["services"].(map[string]any)
	for name, v := range services {
		m, _ := v.(map[string]any)
		for _, key := range []string{"ports", "volumes"} {
			list, _ := m[key].([]any)
			for i, e := range list {
				if e == "" {
					rep.err(fmt.Sprintf("services.%s.%s[%d]", name, key, i), "is empty", "remove the entry")
				}
			}
		}
	}
}

func checkName(rep *report, level, path, key string) {
	e := findExtension(key)
	if e == nil {
		if mend := suggest(key, extensionNames()); mend != "" {
			rep.err(path, fmt.Sprintf("unknown key %q", key), mend)
		}
		return
	}
	// Top-level x- keys are where people keep anchors: a fragment may carry the name of the key it is for.
	if slices.Contains(e.levels, level) || level == levelTop {
		return
	}
	place := map[string]string{levelTop: "the top level", levelService: "a service", levelVolume: "a volume", levelConfig: "a config", levelSecret: "a secret"}
	rep.err(path, fmt.Sprintf("%s does not belong here", key), "move it to "+place[e.levels[0]])
}

// checkUse reports keys of ours that are not honoured, and unknown keys inside them. ext holds the x- keys found at path.
func checkUse(rep *report, level, path string, ext map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(ext)) {
		e := findExtension(name)
		if e == nil || !slices.Contains(e.levels, level) {
			continue
		}
		p := join(path, name)
		known := checkKeysOf(rep, p, ext[name], e)
		switch {
		case e.verdict == refused:
			rep.err(p, "this key cannot be honoured yet", e.advice)
		case e.verdict == warned && len(e.honours) == 0:
			rep.warn(p, "this key is not honoured yet", e.advice)
		case e.verdict == warned:
			known = slices.DeleteFunc(known, func(k string) bool { return slices.Contains(e.honours, k) })
			if len(known) > 0 {
				slices.Sort(known)
				rep.warn(p, "not honoured yet: "+strings.Join(slices.Compact(known), ", "), e.advice)
			}
		}
	}
}

// checkKeysOf reports the unknown keys of an extension's mapping, or of each mapping of its list, and returns the known ones.
func checkKeysOf(rep *report, path string, v any, e *extension) []string {
	if len(e.keys) == 0 {
		return nil
	}
	var known []string
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if slices.Contains(e.keys, k) {
				known = append(known, k)
				continue
			}
			mend := suggest(k, e.keys)
			if mend == "" {
				mend = "use " + strings.Join(e.keys, ", ")
			}
			rep.err(join(path, k), fmt.Sprintf("unknown key %q", k), mend)
		}
	case []any:
		for i, item := range v {
			known = append(known, checkKeysOf(rep, fmt.Sprintf("%s[%d]", path, i), item, e)...)
		}
	}
	return known
}
