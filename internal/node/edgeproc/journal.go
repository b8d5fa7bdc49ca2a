package edgeproc

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"sync/atomic"
	"time"
)

// linesMax bounds the lines that wait for baton; then the oldest go. With the edge's own bound on lines they reach over a minute.
const linesMax = 512

// line is a line of the log on its way to baton.
type line struct {
	Time    time.Time   `json:"time"`
	Level   slog.Level  `json:"level"`
	Message string      `json:"message"`
	Attrs   []attribute `json:"attrs,omitempty"`
	Lost    uint64      `json:"lost,omitempty"` // lines before it
}

// attribute is a key with a number, a truth value or a text.
type attribute struct {
	Key   string `json:"key"`
	Value any    `json:"value"`
}

// journal is a log handler that keeps lines until somebody takes them.
type journal struct {
	lines chan line
	lost  *atomic.Uint64
	attrs []attribute
	group string
}

var _ slog.Handler = (*journal)(nil)

func newJournal() *journal {
	return &journal{lines: make(chan line, linesMax), lost: new(atomic.Uint64)}
}

// Enabled implements slog.Handler.
func (j *journal) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

// Handle implements slog.Handler. It never waits.
func (j *journal) Handle(_ context.Context, r slog.Record) error {
	l := line{Time: r.Time, Level: r.Level, Message: r.Message, Attrs: append([]attribute(nil), j.attrs...)}
	r.Attrs(func(a slog.Attr) bool {
		l.Attrs = append(l.Attrs, j.attribute(a))
		return true
	})
	j.put(l)
	return nil
}

// put keeps a line; the oldest goes when there is no room.
func (j *journal) put(l line) {
	for {
		select {
		case j.lines <- l:
			return
		default:
		}
		select {
		case <-j.lines:
			j.lost.Add(1)
		default:
		}
	}
}

func (j *journal) attribute(a slog.Attr) attribute {
	out := attribute{Key: j.group + a.Key}
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindInt64, slog.KindUint64, slog.KindFloat64, slog.KindBool:
		out.Value = v.Any()
	default:
		out.Value = v.String()
	}
	return out
}

// WithAttrs implements slog.Handler.
func (j *journal) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *j
	next.attrs = append([]attribute(nil), j.attrs...)
	for _, a := range attrs {
		next.attrs = append(next.attrs, j.attribute(a))
	}
	return &next
}

// WithGroup implements slog.Handler.
func (j *journal) WithGroup(name string) slog.Handler {
	next := *j
	next.group += name + "."
	return &next
}

// replay writes a line that came from a process to baton's log.
func replay(log *slog.Logger, body []byte) {
	var l line
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber() // so that large ones are not written as powers
	if d.Decode(&l) != nil || !log.Enabled(context.Background(), l.Level) {
		return
	}
	r := slog.NewRecord(l.Time, l.Level, l.Message, 0)
	for _, a := range l.Attrs {
		if n, ok := a.Value.(json.Number); ok {
			if i, err := n.Int64(); err == nil {
				r.AddAttrs(slog.Int64(a.Key, i))
				continue
			}
		}
		r.AddAttrs(slog.Any(a.Key, a.Value))
	}
	if l.Lost > 0 {
		r.AddAttrs(slog.Uint64("lost", l.Lost))
	}
	_ = log.Handler().Handle(context.Background(), r) // a log that cannot be written has nowhere to say so
}
