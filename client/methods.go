package client

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"baton/client/api"
)

// Version tells what answers.
func (c *Client) Version(ctx context.Context) (api.Version, error) {
	return get[api.Version](ctx, c, path("version"), nil)
}

// Stacks lists all stacks by name.
func (c *Client) Stacks(ctx context.Context) ([]api.Stack, error) {
	return get[[]api.Stack](ctx, c, path("stacks"), nil)
}

// Stack reads one stack.
func (c *Client) Stack(ctx context.Context, name string) (api.Stack, error) {
	return get[api.Stack](ctx, c, path("stacks", name), nil)
}

// Up makes a stack what the request says. It returns once that is stored; WatchStack tells how far it has come.
func (c *Client) Up(ctx context.Context, req api.UpRequest) (api.UpResult, error) {
	return send[api.UpResult](ctx, c, http.MethodPut, path("stacks", req.Stack.Name), nil, req)
}

// Plan tells what Up would do with the same request.
func (c *Client) Plan(ctx context.Context, req api.UpRequest) (api.Plan, error) {
	return send[api.Plan](ctx, c, http.MethodPost, path("plan"), nil, req)
}

// Down begins to remove a stack; with volumes, what is stored in them is deleted too.
func (c *Client) Down(ctx context.Context, stack string, volumes bool) (api.DownResult, error) {
	return send[api.DownResult](ctx, c, http.MethodDelete, path("stacks", stack), query{}.set("volumes", volumes), nil)
}

// Status tells how a whole stack is.
func (c *Client) Status(ctx context.Context, stack string) (api.Status, error) {
	return get[api.Status](ctx, c, path("stacks", stack, "status"), nil)
}

// WatchStack yields the status of a stack now and at each change. The last one has Gone set once the stack was removed.
func (c *Client) WatchStack(ctx context.Context, stack string) iter.Seq2[api.Status, error] {
	return stream[api.Status](ctx, c, path("stacks", stack, "watch"), nil)
}

// Watch yields every object of the kinds (none: all that can be watched), then each one as it changes.
func (c *Client) Watch(ctx context.Context, kinds ...string) iter.Seq2[api.ObjectChange, error] {
	q := query{}
	q.set("kinds", strings.Join(kinds, ","))
	return stream[api.ObjectChange](ctx, c, path("watch"), q)
}

// Services lists the services of a stack, or all with an empty name.
func (c *Client) Services(ctx context.Context, stack string) ([]api.Service, error) {
	return get[[]api.Service](ctx, c, path("services"), query{}.set("stack", stack))
}

// Service reads one service with its spec. In this and all methods below a target is looked for in the stack first, when one
// is given.
func (c *Client) Service(ctx context.Context, stack, target string) (api.Service, error) {
	return get[api.Service](ctx, c, path("services", target), query{}.set("stack", stack))
}

// Scale sets the number of a service's tasks. One that follows the load does so no more, until ScaleAuto.
func (c *Client) Scale(ctx context.Context, stack, target string, replicas int) (api.ServiceResult, error) {
	return send[api.ServiceResult](ctx, c, http.MethodPost, path("services", target, "scale"), query{}.set("stack", stack), api.ScaleRequest{Replicas: replicas})
}

// ScaleAuto lets the number of a service's tasks follow its load again, after Scale.
func (c *Client) ScaleAuto(ctx context.Context, stack, target string) (api.ServiceResult, error) {
	return send[api.ServiceResult](ctx, c, http.MethodPost, path("services", target, "scale"), query{}.set("stack", stack), api.ScaleRequest{Auto: true})
}

// Restart replaces all tasks of a service, as an update would.
func (c *Client) Restart(ctx context.Context, stack, target string) (api.ServiceResult, error) {
	return send[api.ServiceResult](ctx, c, http.MethodPost, path("services", target, "restart"), query{}.set("stack", stack), nil)
}

// Tasks lists tasks: of a target, a stack, or all; with all, also those that ended.
func (c *Client) Tasks(ctx context.Context, stack, target string, all bool) ([]api.Task, error) {
	return get[[]api.Task](ctx, c, path("tasks"), query{}.set("stack", stack).set("target", target).set("all", all))
}

// Task reads one task.
func (c *Client) Task(ctx context.Context, stack, target string) (api.Task, error) {
	return get[api.Task](ctx, c, path("tasks", target), query{}.set("stack", stack))
}

// Releases lists the releases of a stack, newest first.
func (c *Client) Releases(ctx context.Context, stack string) ([]api.Release, error) {
	return get[[]api.Release](ctx, c, path("stacks", stack, "releases"), nil)
}

// Release reads one release with its services.
func (c *Client) Release(ctx context.Context, stack string, number int) (api.Release, error) {
	return get[api.Release](ctx, c, path("stacks", stack, "releases", strconv.Itoa(number)), nil)
}

// Rollback brings back an earlier release with its configs and secrets, as a new release.
func (c *Client) Rollback(ctx context.Context, stack string, req api.RollbackRequest) (api.UpResult, error) {
	return send[api.UpResult](ctx, c, http.MethodPost, path("stacks", stack, "rollback"), nil, req)
}

// Nodes lists the nodes.
func (c *Client) Nodes(ctx context.Context) ([]api.Node, error) {
	return get[[]api.Node](ctx, c, path("nodes"), nil)
}

// NodesUsed lists the nodes with what each uses now.
func (c *Client) NodesUsed(ctx context.Context) ([]api.Node, error) {
	return get[[]api.Node](ctx, c, path("nodes"), query{}.set("used", true))
}

// Node reads one node.
func (c *Client) Node(ctx context.Context, name string) (api.Node, error) {
	return get[api.Node](ctx, c, path("nodes", name), nil)
}

// RemoveNode takes a node out of the cluster. One that is connected, or has tasks, needs force.
func (c *Client) RemoveNode(ctx context.Context, name string, force bool) error {
	_, err := send[struct{}](ctx, c, http.MethodDelete, path("nodes", name), query{}.set("force", force), nil)
	return err
}

// Cluster reads how the cluster as a whole is.
func (c *Client) Cluster(ctx context.Context) (api.Cluster, error) {
	return get[api.Cluster](ctx, c, path("cluster"), nil)
}

// RotateAuthority begins to replace the cluster's certificate authority. Cluster tells how far it has come.
func (c *Client) RotateAuthority(ctx context.Context) (api.Cluster, error) {
	return send[api.Cluster](ctx, c, http.MethodPost, path("cluster", "authority", "rotate"), nil, struct{}{})
}

// Doctor looks at the cluster and at every node that is connected.
func (c *Client) Doctor(ctx context.Context) ([]api.Check, error) {
	return get[[]api.Check](ctx, c, path("cluster", "doctor"), nil)
}

// Lock locks the sealing key on every manager's disk, or takes the lock off.
func (c *Client) Lock(ctx context.Context, off bool) (api.LockResult, error) {
	return send[api.LockResult](ctx, c, http.MethodPost, path("cluster", "lock"), nil, api.LockRequest{Off: off})
}

// Unlock lets the locked manager behind the local socket open its state.
func (c *Client) Unlock(ctx context.Context, key string) error {
	_, err := send[struct{}](ctx, c, http.MethodPost, path("cluster", "unlock"), nil, api.UnlockRequest{Key: key})
	return err
}

// Backup writes a backup of the cluster to w. After an error, what was written is worth nothing.
func (c *Client) Backup(ctx context.Context, req api.BackupRequest, w io.Writer) error {
	b, err := json.Marshal(req)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "the request cannot be written: %s", err)
	}
	r, err := c.request(ctx, http.MethodPost, path("cluster", "backup"), nil, bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(w, resp.Body); err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		return api.Errorf(api.CodeUnreachable, "the backup broke off: %s", err).WithMend("delete what was written and try again; see the server's log")
	}
	return nil
}

// RotateMesh lets all nodes change their mesh keys.
func (c *Client) RotateMesh(ctx context.Context) error {
	_, err := send[struct{}](ctx, c, http.MethodPost, path("cluster", "mesh", "rotate"), nil, struct{}{})
	return err
}

// Tokens lists the join tokens.
func (c *Client) Tokens(ctx context.Context) ([]api.JoinToken, error) {
	return get[[]api.JoinToken](ctx, c, path("tokens"), nil)
}

// MakeToken makes a join token.
func (c *Client) MakeToken(ctx context.Context, req api.TokenRequest) (api.JoinToken, error) {
	return send[api.JoinToken](ctx, c, http.MethodPost, path("tokens"), nil, req)
}

// SignCertificate gets a certificate for a user's key, with all rights.
func (c *Client) SignCertificate(ctx context.Context, req api.CertificateRequest) (api.Certificate, error) {
	return send[api.Certificate](ctx, c, http.MethodPost, path("certificates"), nil, req)
}

// PatchNode changes a node's availability or labels.
func (c *Client) PatchNode(ctx context.Context, name string, p api.NodePatch) (api.Node, error) {
	return send[api.Node](ctx, c, http.MethodPatch, path("nodes", name), nil, p)
}

// PlanBalance tells which tasks would be moved to even out the load of the nodes; with left, which of those are left that
// Rebalance asked for.
func (c *Client) PlanBalance(ctx context.Context, left bool) (api.Balance, error) {
	return get[api.Balance](ctx, c, path("balance"), query{}.set("left", left))
}

// Rebalance asks for tasks to be moved now to even out the load of the nodes, and does not wait for it.
func (c *Client) Rebalance(ctx context.Context) (api.Balance, error) {
	return send[api.Balance](ctx, c, http.MethodPost, path("balance"), nil, nil)
}

// Material is a kind of versioned content.
type Material string

// The kinds of versioned content.
const (
	Secrets Material = "secrets"
	Configs Material = "configs"
)

// Materials lists the newest version of each secret or config.
func (c *Client) Materials(ctx context.Context, kind Material, stack string) ([]api.Material, error) {
	return get[[]api.Material](ctx, c, path(string(kind)), query{}.set("stack", stack))
}

// MaterialHistory lists all versions, oldest first.
func (c *Client) MaterialHistory(ctx context.Context, kind Material, stack, name string) ([]api.Material, error) {
	return get[[]api.Material](ctx, c, path(string(kind), name), query{}.set("stack", stack))
}

// SetMaterial stores a new version; content equal to the newest version's changes nothing.
func (c *Client) SetMaterial(ctx context.Context, kind Material, name string, content []byte) (api.SetResult, error) {
	return send[api.SetResult](ctx, c, http.MethodPut, path(string(kind), name), nil, api.SetRequest{Content: content})
}

// RemoveMaterial deletes all versions.
func (c *Client) RemoveMaterial(ctx context.Context, kind Material, name string) error {
	_, err := send[struct{}](ctx, c, http.MethodDelete, path(string(kind), name), nil, nil)
	return err
}

// ConfigContent reads one version of a config; number zero is the newest.
func (c *Client) ConfigContent(ctx context.Context, stack, name string, number int) (api.ConfigContent, error) {
	return get[api.ConfigContent](ctx, c, path("configs", name, "content"), query{}.set("stack", stack).set("number", number))
}

// Registries lists the image registries with stored credentials.
func (c *Client) Registries(ctx context.Context) ([]api.Registry, error) {
	return get[[]api.Registry](ctx, c, path("registries"), nil)
}

// SetRegistry checks and stores the credentials for an image registry.
func (c *Client) SetRegistry(ctx context.Context, host string, r api.RegistryRequest) (api.Registry, error) {
	return send[api.Registry](ctx, c, http.MethodPut, path("registries", host), nil, r)
}

// RemoveRegistry forgets the credentials for an image registry.
func (c *Client) RemoveRegistry(ctx context.Context, host string) error {
	_, err := send[struct{}](ctx, c, http.MethodDelete, path("registries", host), nil, nil)
	return err
}

// Volumes lists volumes: of a stack, or all.
func (c *Client) Volumes(ctx context.Context, stack string) ([]api.Volume, error) {
	return get[[]api.Volume](ctx, c, path("volumes"), query{}.set("stack", stack))
}

// RemoveVolume deletes a volume and what is stored in it.
func (c *Client) RemoveVolume(ctx context.Context, name string) error {
	_, err := send[struct{}](ctx, c, http.MethodDelete, path("volumes", name), nil, nil)
	return err
}

// Images lists the images on a node, or on all.
func (c *Client) Images(ctx context.Context, node string) ([]api.Image, error) {
	return get[[]api.Image](ctx, c, path("images"), query{}.set("node", node))
}

// LoadImage imports an OCI or docker archive on a node, by default the manager's own. It serves all nodes from there.
func (c *Client) LoadImage(ctx context.Context, node string, archive io.Reader) (api.LoadResult, error) {
	var out api.LoadResult
	r, err := c.request(ctx, http.MethodPost, path("images", "load"), query{}.set("node", node), io.NopCloser(archive))
	if err != nil {
		return out, err
	}
	r.Header.Set("Content-Type", "application/octet-stream")
	resp, err := c.do(r)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	err = readJSON(resp.Body, &out)
	return out, err
}

// RemoveImage removes an image from a node, or from all.
func (c *Client) RemoveImage(ctx context.Context, node, ref string) error {
	_, err := send[struct{}](ctx, c, http.MethodDelete, path("images"), query{}.set("node", node).set("ref", ref), nil)
	return err
}

// EventOptions choose events.
type EventOptions struct {
	Stack, Target string
	Since         time.Time
	Limit         int // only the newest; zero: 200
}

func (o EventOptions) query() query {
	return query{}.set("stack", o.Stack).set("target", o.Target).set("since", o.Since).set("limit", o.Limit)
}

// Events lists events, oldest first.
func (c *Client) Events(ctx context.Context, o EventOptions) ([]api.Event, error) {
	return get[[]api.Event](ctx, c, path("events"), o.query())
}

// FollowEvents yields the newest events, then each one as it happens.
func (c *Client) FollowEvents(ctx context.Context, o EventOptions) iter.Seq2[api.Event, error] {
	return stream[api.Event](ctx, c, path("events", "stream"), o.query())
}

// Why explains a target's state.
func (c *Client) Why(ctx context.Context, stack, target string) (api.Why, error) {
	return get[api.Why](ctx, c, path("why"), query{}.set("stack", stack).set("target", target))
}

// LogOptions choose lines of output.
type LogOptions struct {
	Stack, Target string
	Follow        bool
	// Tail is how many of the last lines of each task; negative: all. Zero is none, which makes sense with Follow.
	Tail         int
	Since, Until time.Time
}

// Logs yields lines of output, merged by time. Following, it goes on with lines as they come, also of later tasks.
func (c *Client) Logs(ctx context.Context, o LogOptions) iter.Seq2[api.LogLine, error] {
	q := query{}.set("stack", o.Stack).set("target", o.Target).set("follow", o.Follow).set("since", o.Since).set("until", o.Until)
	q.set("tail", strconv.Itoa(max(o.Tail, -1)))
	return stream[api.LogLine](ctx, c, path("logs"), q)
}

// Stats tells what tasks use now.
func (c *Client) Stats(ctx context.Context, stack, target string) ([]api.TaskStats, error) {
	return get[[]api.TaskStats](ctx, c, path("stats"), query{}.set("stack", stack).set("target", target))
}

// Sizes tells what the tasks of services reserve, what they used, and what they should reserve; of a service, a stack, or all.
func (c *Client) Sizes(ctx context.Context, stack, target string) ([]api.ServiceSize, error) {
	return get[[]api.ServiceSize](ctx, c, path("sizes"), query{}.set("stack", stack).set("target", target))
}

// Top tells what nodes and their tasks use now: all of them, the tasks of a stack, or nodes and tasks of a target.
func (c *Client) Top(ctx context.Context, stack, target string) (api.Top, error) {
	return get[api.Top](ctx, c, path("top"), query{}.set("stack", stack).set("target", target))
}
