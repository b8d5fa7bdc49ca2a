package server

import (
	"context"
	"net/http"
	"time"

	"baton/client/api"
	"baton/internal/model/cluster"
)

// The inputs that several operations share. The HTTP layer fills them from the tags.
type (
	none    struct{}
	InStack struct {
		Stack string `query:"stack" doc:"only this stack; targets are looked for there"`
	}
	StackPath struct {
		Stack string `path:"stack" doc:"name of the stack"`
	}
	TargetPath struct {
		Target string `path:"target" doc:"service, stack/service, service/slot or id; escape the slash as %2F"`
		InStack
	}
	NamePath struct {
		Name string `path:"name"`
	}
)

// done answers operations that have nothing else to say.
type done struct {
	Done bool `json:"done"`
}

func (s *Server) routes() {
	handle(s, operation{method: http.MethodGet, path: "/v1/version", id: "version", summary: "What answers", tag: "cluster"},
		func(context.Context, *none) (api.Version, error) { return s.version(), nil })
	s.stackRoutes()
	s.serviceRoutes()
	s.releaseRoutes()
	s.nodeRoutes()
	s.balanceRoutes()
	s.clusterRoutes()
	s.materialRoutes("secrets", "Secret", cluster.KindSecret)
	s.materialRoutes("configs", "Config", cluster.KindConfig)
	s.configContentRoute()
	s.storageRoutes()
	s.registryRoutes()
	s.certificateRoutes()
	s.eventRoutes()
	s.taskStreamRoutes()
}

func (s *Server) stackRoutes() {
	handle(s, operation{method: http.MethodGet, path: "/v1/stacks", id: "listStacks", summary: "List stacks", tag: "stacks"},
		func(context.Context, *none) ([]api.Stack, error) {
			snap := s.cfg.Store.Snapshot()
			out := []api.Stack{}
			for _, st := range (resolver{snap: snap}).stacks() {
				out = append(out, reader{snap}.stack(st))
			}
			return out, nil
		})
	handle(s, operation{method: http.MethodGet, path: "/v1/stacks/{stack}", id: "getStack", summary: "One stack", tag: "stacks"},
		func(_ context.Context, in *StackPath) (api.Stack, error) {
			snap := s.cfg.Store.Snapshot()
			st, err := (resolver{snap: snap}).stack(in.Stack)
			if err != nil {
				return api.Stack{}, err
			}
			return reader{snap}.stack(st), nil
		})
	type upIn struct {
		StackPath
		Body api.UpRequest
	}
	handle(s, operation{method: http.MethodPut, path: "/v1/stacks/{stack}", id: "up", summary: "Make a stack what the body says", tag: "stacks"},
		func(ctx context.Context, in *upIn) (api.UpResult, error) {
			if err := sameName(in.Stack, &in.Body); err != nil {
				return api.UpResult{}, err
			}
			return s.up(ctx, in.Body)
		})
	handle(s, operation{method: http.MethodPost, path: "/v1/plan", id: "plan", summary: "What up would do with the same body", tag: "stacks"},
		func(ctx context.Context, in *struct{ Body api.UpRequest }) (api.Plan, error) {
			return s.plan(ctx, in.Body)
		})
	type downIn struct {
		StackPath
		Volumes bool `query:"volumes" doc:"delete the stack's volumes and what is in them, too"`
	}
	handle(s, operation{method: http.MethodDelete, path: "/v1/stacks/{stack}", id: "down", summary: "Remove a stack", tag: "stacks"},
		func(ctx context.Context, in *downIn) (api.DownResult, error) {
			return s.down(ctx, in.Stack, in.Volumes)
		})
	handle(s, operation{method: http.MethodGet, path: "/v1/stacks/{stack}/status", id: "stackStatus", summary: "How a whole stack is", tag: "stacks"},
		func(_ context.Context, in *StackPath) (api.Status, error) {
			snap := s.cfg.Store.Snapshot()
			st, err := (resolver{snap: snap}).stack(in.Stack)
			if err != nil {
				return api.Status{}, err
			}
			out := reader{snap}.status(st)
			s.addLoads(snap, &out)
			s.addTraffic(snap, out.Release.ID, &out.Release)
			return out, nil
		})
	stream(s, operation{method: http.MethodGet, path: "/v1/stacks/{stack}/watch", id: "watchStack", summary: "The status of a stack, now and at each change, until it is gone", tag: "stacks"},
		func(ctx context.Context, in *StackPath) (func(emit) error, error) { return s.watchStack(ctx, in.Stack) })
}

func sameName(path string, req *api.UpRequest) error {
	if req.Stack.Name == "" {
		req.Stack.Name = path
	}
	if req.Stack.Name != path {
		return api.Errorf(api.CodeInvalid, "the body names stack %q, the path %q", req.Stack.Name, path).At("stack.name").WithMend("use the same name")
	}
	return nil
}

func (s *Server) serviceRoutes() {
	handle(s, operation{method: http.MethodGet, path: "/v1/services", id: "listServices", summary: "List services", tag: "services"},
		func(_ context.Context, in *InStack) ([]api.Service, error) { return s.listServices(in.Stack) })
	handle(s, operation{method: http.MethodGet, path: "/v1/services/{target}", id: "getService", summary: "One service with its spec", tag: "services"},
		func(_ context.Context, in *TargetPath) (api.Service, error) { return s.getService(in.Stack, in.Target) })
	type scaleIn struct {
		TargetPath
		Body api.ScaleRequest
	}
	handle(s, operation{method: http.MethodPost, path: "/v1/services/{target}/scale", id: "scale", summary: "Set the number of tasks", tag: "services"},
		func(ctx context.Context, in *scaleIn) (api.ServiceResult, error) {
			if in.Body.Auto {
				return s.scaleAuto(ctx, in.Stack, in.Target)
			}
			return s.scale(ctx, in.Stack, in.Target, in.Body.Replicas)
		})
	handle(s, operation{method: http.MethodPost, path: "/v1/services/{target}/restart", id: "restart", summary: "Replace all tasks, as an update would", tag: "services"},
		func(ctx context.Context, in *TargetPath) (api.ServiceResult, error) {
			return s.restart(ctx, in.Stack, in.Target)
		})
	type tasksIn struct {
		InStack
		Target string `query:"target" doc:"service, service/slot, node or stack"`
		All    bool   `query:"all" doc:"also tasks that ended"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/tasks", id: "listTasks", summary: "List tasks", tag: "tasks"},
		func(_ context.Context, in *tasksIn) ([]api.Task, error) {
			return s.listTasks(in.Stack, in.Target, in.All)
		})
	handle(s, operation{method: http.MethodGet, path: "/v1/tasks/{target}", id: "getTask", summary: "One task", tag: "tasks"},
		func(_ context.Context, in *TargetPath) (api.Task, error) {
			snap := s.cfg.Store.Snapshot()
			t, err := (resolver{snap: snap, hint: in.Stack}).task(in.Target)
			if err != nil {
				return api.Task{}, err
			}
			return reader{snap}.task(t), nil
		})
}

func (s *Server) releaseRoutes() {
	handle(s, operation{method: http.MethodGet, path: "/v1/stacks/{stack}/releases", id: "listReleases", summary: "List releases, newest first", tag: "releases"},
		func(_ context.Context, in *StackPath) ([]api.Release, error) { return s.listReleases(in.Stack) })
	type releaseIn struct {
		StackPath
		Number int `path:"number" minimum:"1"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/stacks/{stack}/releases/{number}", id: "getRelease", summary: "One release with its services", tag: "releases"},
		func(_ context.Context, in *releaseIn) (api.Release, error) { return s.getRelease(in.Stack, in.Number) })
	type rollbackIn struct {
		StackPath
		Body api.RollbackRequest
	}
	handle(s, operation{method: http.MethodPost, path: "/v1/stacks/{stack}/rollback", id: "rollback", summary: "Bring back an earlier release, with its configs and secrets", tag: "releases"},
		func(ctx context.Context, in *rollbackIn) (api.UpResult, error) {
			return s.rollback(ctx, in.Stack, in.Body)
		})
}

func (s *Server) nodeRoutes() {
	type usedIn struct {
		Used bool `query:"used" doc:"ask each what it uses now"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/nodes", id: "listNodes", summary: "List nodes", tag: "nodes"},
		func(ctx context.Context, in *usedIn) ([]api.Node, error) { return s.listNodes(ctx, in.Used), nil })
	handle(s, operation{method: http.MethodGet, path: "/v1/nodes/{name}", id: "getNode", summary: "One node", tag: "nodes"},
		func(_ context.Context, in *NamePath) (api.Node, error) { return s.getNode(in.Name) })
	type patchIn struct {
		NamePath
		Body api.NodePatch
	}
	handle(s, operation{method: http.MethodPatch, path: "/v1/nodes/{name}", id: "patchNode", summary: "Change a node's availability or labels", tag: "nodes"},
		func(ctx context.Context, in *patchIn) (api.Node, error) { return s.patchNode(ctx, in.Name, in.Body) })
}

func (s *Server) materialRoutes(plural, title string, kind cluster.Kind) {
	base := "/v1/" + plural
	handle(s, operation{method: http.MethodGet, path: base, id: "list" + title + "s", summary: "List " + plural + ", the newest version of each", tag: plural},
		func(_ context.Context, in *InStack) ([]api.Material, error) {
			return s.listMaterials(kind, in.Stack, "")
		})
	type nameIn struct {
		NamePath
		InStack
	}
	handle(s, operation{method: http.MethodGet, path: base + "/{name}", id: "history" + title, summary: "All versions, oldest first, without content", tag: plural},
		func(_ context.Context, in *nameIn) ([]api.Material, error) {
			return s.listMaterials(kind, in.Stack, in.Name)
		})
	type setIn struct {
		NamePath
		Body api.SetRequest
	}
	handle(s, operation{method: http.MethodPut, path: base + "/{name}", id: "set" + title, summary: "Store a new version", tag: plural},
		func(ctx context.Context, in *setIn) (api.SetResult, error) {
			return s.setMaterial(ctx, kind, in.Name, in.Body.Content)
		})
	handle(s, operation{method: http.MethodDelete, path: base + "/{name}", id: "remove" + title, summary: "Remove all versions", tag: plural},
		func(ctx context.Context, in *NamePath) (done, error) {
			return done{true}, s.removeMaterial(ctx, kind, in.Name)
		})
}

func (s *Server) configContentRoute() {
	type contentIn struct {
		NamePath
		InStack
		Number int `query:"number" minimum:"0" doc:"version; the newest without it"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/configs/{name}/content", id: "configContent", summary: "The content of one version", tag: "configs"},
		func(_ context.Context, in *contentIn) (api.ConfigContent, error) {
			return s.configContent(in.Stack, in.Name, in.Number)
		})
}

func (s *Server) storageRoutes() {
	handle(s, operation{method: http.MethodGet, path: "/v1/volumes", id: "listVolumes", summary: "List volumes", tag: "volumes"},
		func(_ context.Context, in *InStack) ([]api.Volume, error) { return s.listVolumes(in.Stack) })
	handle(s, operation{method: http.MethodDelete, path: "/v1/volumes/{name}", id: "removeVolume", summary: "Remove a volume and what is in it", tag: "volumes"},
		func(ctx context.Context, in *NamePath) (done, error) { return done{true}, s.removeVolume(ctx, in.Name) })
	type OnNode struct {
		Node string `query:"node" doc:"name of the node; all nodes without it"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/images", id: "listImages", summary: "List images on nodes", tag: "images"},
		func(ctx context.Context, in *OnNode) ([]api.Image, error) { return s.listImages(ctx, in.Node) })
	type imageIn struct {
		OnNode
		Ref string `query:"ref" required:"true"`
	}
	handle(s, operation{method: http.MethodDelete, path: "/v1/images", id: "removeImage", summary: "Remove an image from nodes", tag: "images"},
		func(ctx context.Context, in *imageIn) (done, error) {
			return done{true}, s.removeImage(ctx, in.Node, in.Ref)
		})
	s.loadImageRoute()
}

func (s *Server) eventRoutes() {
	type eventsIn struct {
		InStack
		Target string    `query:"target" doc:"service, service/slot, task, node or stack"`
		Since  time.Time `query:"since" doc:"only later ones"`
		Limit  int       `query:"limit" default:"200" minimum:"1" maximum:"10000" doc:"only the newest"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/events", id: "listEvents", summary: "List events, oldest first", tag: "events"},
		func(_ context.Context, in *eventsIn) ([]api.Event, error) {
			return s.listEvents(eventQuery{in.Stack, in.Target, in.Since, in.Limit})
		})
	stream(s, operation{method: http.MethodGet, path: "/v1/events/stream", id: "followEvents", summary: "The newest events, then each one as it happens", tag: "events"},
		func(ctx context.Context, in *eventsIn) (func(emit) error, error) {
			return s.followEvents(ctx, eventQuery{in.Stack, in.Target, in.Since, in.Limit})
		})
	type whyIn struct {
		InStack
		Target string `query:"target" doc:"service, service/slot, task, node or stack; the stack without it"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/why", id: "why", summary: "Why a target is as it is", tag: "events"},
		func(_ context.Context, in *whyIn) (api.Why, error) { return s.why(in.Stack, in.Target) })
	type watchIn struct {
		Kinds []string `query:"kinds" doc:"kinds of objects: stack, release, service, task, node, network, volume, event; all of these without it"`
	}
	stream(s, operation{method: http.MethodGet, path: "/v1/watch", id: "watch", summary: "Every object as it is, then each one as it changes", tag: "events"},
		func(ctx context.Context, in *watchIn) (func(emit) error, error) { return s.watchObjects(ctx, in.Kinds) })
}

func (s *Server) taskStreamRoutes() {
	type logsIn struct {
		InStack
		Target string    `query:"target" doc:"service, service/slot, task or stack; the stack without it"`
		Follow bool      `query:"follow"`
		Tail   int       `query:"tail" default:"-1" minimum:"-1" maximum:"100000" doc:"only the last lines of each task; -1: all"`
		Since  time.Time `query:"since"`
		Until  time.Time `query:"until"`
	}
	stream(s, operation{method: http.MethodGet, path: "/v1/logs", id: "logs", summary: "Output of tasks, merged by time", tag: "tasks"},
		func(ctx context.Context, in *logsIn) (func(emit) error, error) {
			return s.logs(ctx, logQuery{in.Stack, in.Target, in.Follow, in.Tail, in.Since, in.Until})
		})
	type statsIn struct {
		InStack
		Target string `query:"target" doc:"service, service/slot, task, node or stack"`
	}
	handle(s, operation{method: http.MethodGet, path: "/v1/stats", id: "stats", summary: "What tasks use now", tag: "tasks"},
		func(ctx context.Context, in *statsIn) ([]api.TaskStats, error) {
			top, err := s.top(ctx, in.Stack, in.Target)
			return top.Tasks, err
		})
	handle(s, operation{method: http.MethodGet, path: "/v1/top", id: "top", summary: "What nodes and their tasks use now", tag: "tasks"},
		func(ctx context.Context, in *statsIn) (api.Top, error) { return s.top(ctx, in.Stack, in.Target) })
	s.sizesRoute()
	s.execRoute()
	s.forwardRoute()
	s.filesRoute()
}
