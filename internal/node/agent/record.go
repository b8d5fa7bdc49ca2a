package agent

import (
	"context"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// Record is the node's own memory of what it was told and of what came of it. It outlives the agent and the machine's boots,
// so that a node which finds no manager can still run its tasks:
//
//	have, _ := record.Load(ctx)       // once, before anything else
//	_ = record.Save(ctx, change)      // durable when it returns nil
//
// Contents of secrets must not reach a disk in clear.
type Record interface {
	// Load returns everything saved before. What cannot be read any more is left out, and told in the node's log.
	Load(ctx context.Context) (Memory, error)
	// Save adds and replaces what is in the change. Each of its parts is saved as a whole or not at all.
	Save(ctx context.Context, c Change) error
}

// Memory is what a record holds.
type Memory struct {
	Tasks   []Remembered
	Node    *agentapi.NodeConfig
	Network *agentapi.NetworkState
}

// Change is what a record has to learn. Node and Network are nil when unchanged.
type Change struct {
	Memory
	Gone []cluster.ID // tasks of which nothing is left
}

// Remembered is one task as its node last knew it.
type Remembered struct {
	Assignment agentapi.Assignment `json:"assignment"`
	Status     cluster.Status      `json:"status"`
	// Unwanted is true once no manager wants it on the node any more: only its clean-up is left.
	Unwanted bool      `json:"unwanted,omitempty"`
	Standing *Standing `json:"standing,omitempty"`
}

// Standing says for which task a stand-in has its place.
type Standing struct {
	Root    cluster.ID `json:"root"` // the last task in this place that managers know
	Created time.Time  `json:"created"`
}

// recordEvery is the least time between two saves that nothing waits for.
const recordEvery = 200 * time.Millisecond

// recording is the loop's view of the record.
type recording struct {
	busy    bool
	all     bool // the last save went wrong: what is on disk may be anything
	retryAt time.Time
	told    bool      // users know that it goes wrong
	network bool      // node configuration or network state changed
	next    time.Time // when what nothing waits for is saved at the earliest
	waits   bool      // something does
	gone    []cluster.ID

	// Under way, to be counted as saved once it is.
	saving map[cluster.ID]uint64
	net    bool
	left   int // of gone
}

// touch notes that a task is not as the record has it. With gate, what changes the machine waits until it is recorded: a
// start, so that no container ever was which the record does not know, and the clean-up after an end, because it takes away
// what the end could be read from.
func (t *task) touch(gate bool) {
	t.edition++
	if gate {
		t.gate = t.edition
	}
}

// mayAct reports whether the record knows enough for an action.
func (t *task) mayAct(kind ActionKind) bool {
	return kind != ActStart && kind != ActClean || t.saved >= t.gate
}

// Recall gives a new loop what an earlier agent of this node knew. The loop acts on it only once it is cut off; a full
// update that comes before takes its place, but what the earlier agent made by itself is kept until a manager decides on it.
func (l *Loop) Recall(m Memory) {
	l.memory = &m
	for i := range m.Tasks {
		r := &m.Tasks[i]
		t := l.remember(r.Assignment.Task.ID)
		t.last, t.recalled = &r.Assignment, true
		t.local.Status = r.Status
		t.local.Passed, t.local.Ready = r.Status.Ready, r.Status.Ready
		if !r.Unwanted {
			t.want = t.last
			t.standing = r.Standing
		}
	}
	for _, t := range l.sorted() {
		switch {
		case t.want == nil:
		case t.standing == nil:
			l.outbox.status(t.local.Status)
		default:
			if root := l.tasks[t.standing.Root]; root != nil {
				root.heir = t.id
				l.outbox.stand(root.local.Status, t.standIn())
			} else {
				t.want, t.standing = nil, nil // nobody could ever be told for what it stands
			}
		}
	}
}

// recallNetwork makes the network as the record has it.
func (l *Loop) recallNetwork() {
	if l.synced || l.recalled || l.memory == nil || l.memory.Node == nil {
		return
	}
	l.recalled = true
	l.log.Warn("no manager can be reached; the node runs what it was last told to", "tasks", len(l.memory.Tasks))
	l.net.config = l.memory.Node
	l.net.update(0, l.memory.Network)
}

// record saves what changed, when the last save is over. Each costs the disk a wait, so what nothing waits for is saved with what
// comes soon after it.
func (l *Loop) record(now time.Time) {
	r := &l.rec
	r.waits = false
	if r.busy {
		return
	}
	again := r.all && !now.Before(r.retryAt)
	c, gated := Change{Gone: r.gone}, again
	r.saving = make(map[cluster.ID]uint64)
	for _, t := range l.sorted() {
		if t.last == nil || t.edition <= t.saved && !again {
			continue
		}
		r.saving[t.id], gated = t.edition, gated || t.gate > t.saved
		c.Tasks = append(c.Tasks, t.remembered())
	}
	if r.net = r.network || again; r.net {
		c.Node, c.Network = l.net.known, l.net.want
	}
	if len(c.Tasks) == 0 && len(c.Gone) == 0 && !r.net {
		return
	}
	if r.waits = !gated && now.Before(r.next); r.waits {
		return
	}
	r.busy, r.left, r.network, r.next = true, len(r.gone), false, now.Add(recordEvery)
	if again {
		r.all = false
	}
	l.hands.Record(c)
}

// untilRecord is the time until what waits is saved.
func (l *Loop) untilRecord(now time.Time) time.Duration {
	if l.rec.waits {
		return l.rec.next.Sub(now)
	}
	return observeEvery
}

// Recorded takes the end of a save. A record that cannot be written holds nothing up: the managers know everything, too.
func (l *Loop) Recorded(err error, now time.Time) {
	r := &l.rec
	r.busy = false
	for id, edition := range r.saving {
		if t := l.tasks[id]; t != nil {
			t.saved = max(t.saved, edition)
		}
	}
	if err == nil {
		r.gone, r.told = r.gone[r.left:], r.told && r.all
		return
	}
	r.all, r.retryAt = true, now.Add(retryMax)
	l.log.Error("the node's record cannot be written; after a restart the node needs a manager to run its tasks", "err", err)
	if !r.told {
		r.told = true
		l.note(cluster.ID{}, "node.record-failed", "the node cannot remember its tasks ("+err.Error()+"): after a restart it needs a manager to run them; it is tried again", now)
	}
}

// remembered is the task as the record is to have it.
func (t *task) remembered() Remembered {
	as := *t.last
	as.Auth = nil // credentials stay in memory
	return Remembered{Assignment: as, Status: t.local.Status, Unwanted: t.want == nil, Standing: t.standing}
}
