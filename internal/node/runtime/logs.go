package runtime

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"baton/internal/model/cluster"
	"baton/internal/node/agent"
	"baton/internal/node/logger"
	"baton/internal/wire/agentapi"
)

const (
	// followPause is how often a reader at the end of a log looks for more.
	followPause = 100 * time.Millisecond
	// sweptAge is how old the newest line of a log must be for Sweep to delete it. Who looks for what went wrong with a cluster that was
	// rebuilt, or restored from a backup, looks at the logs of tasks that its managers do not remember.
	sweptAge = 24 * time.Hour
)

// Logs is the kept output of a node's tasks.
type Logs struct{ dir string }

var _ agent.Logs = (*Logs)(nil)

// OpenLogs gives access to the logs of the node with this data directory. It needs no running runtime.
func OpenLogs(dataDir string) *Logs {
	c := Config{DataDir: dataDir}
	return &Logs{dir: c.LogsDir()}
}

// Remove implements agent.Logs.
func (l *Logs) Remove(id cluster.ID) error {
	if id.IsZero() {
		return errors.New("remove logs: no task named")
	}
	return os.RemoveAll(filepath.Join(l.dir, id.String()))
}

// Sweep implements agent.Logs: logs of tasks that are not in keep go when nothing was written to them for a day.
func (l *Logs) Sweep(keep []cluster.ID) error {
	ids, err := l.List()
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var errs []error
	for _, id := range ids {
		if slices.Contains(keep, id) {
			continue
		}
		at, err := newest(filepath.Join(l.dir, id.String()))
		if err == nil && time.Since(at) < sweptAge {
			continue
		}
		errs = append(errs, err, l.Remove(id))
	}
	return errors.Join(errs...)
}

// newest is when the directory or one of its files was last changed.
func newest(dir string) (at time.Time, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.ModTime().After(at) {
			at = info.ModTime()
		}
		return err
	})
	return at, err
}

// ReadLogs yields a task's output; see the function of that name.
func (r *Runtime) ReadLogs(ctx context.Context, id cluster.ID, o agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	return OpenLogs(r.cfg.DataDir).Read(ctx, id, o)
}

// List names the tasks that have a log.
func (l *Logs) List() ([]cluster.ID, error) {
	return (&records{dir: l.dir}).list()
}

// Read yields the lines of a task, oldest first; see ReadLogs. A task without any output yields nothing.
func (l *Logs) Read(ctx context.Context, id cluster.ID, o agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	return ReadLogs(ctx, filepath.Join(l.dir, id.String()), o)
}

// ReadLogs yields the lines in a task's log directory, oldest first, over rotated files. When following, it goes on until the task's
// logger has ended, or ctx; a following reader that is slower than several rotations misses what these have dropped. A damaged
// record is skipped. A line is also Partial when the stream ended without a newline.
func ReadLogs(ctx context.Context, dir string, o agentapi.LogOptions) iter.Seq2[agentapi.LogLine, error] {
	return func(yield func(agentapi.LogLine, error) bool) {
		skip := 0
		if o.Tail >= 0 {
			n, err := countRecords(ctx, dir, o)
			if err != nil {
				yield(agentapi.LogLine{}, err)
				return
			}
			skip = max(0, n-o.Tail)
		}
		r := &logReader{dir: dir}
		defer r.close()
		err := r.each(ctx, o.Follow, func(l agentapi.LogLine) bool {
			if !o.Until.IsZero() && l.Time.After(o.Until) {
				return false
			}
			if !within(o, l) {
				return true
			}
			if skip > 0 {
				skip--
				return true
			}
			return yield(l, nil)
		})
		if err != nil && ctx.Err() == nil {
			yield(agentapi.LogLine{}, err)
		}
	}
}

func within(o agentapi.LogOptions, l agentapi.LogLine) bool {
	return !l.Time.Before(o.Since) && (o.Until.IsZero() || !l.Time.After(o.Until))
}

// countRecords counts what o selects of the log as it is.
func countRecords(ctx context.Context, dir string, o agentapi.LogOptions) (n int, err error) {
	r := &logReader{dir: dir}
	defer r.close()
	err = r.each(ctx, false, func(l agentapi.LogLine) bool {
		if within(o, l) {
			n++
		}
		return true
	})
	return n, err
}

// logReader reads the files of one log in order.
type logReader struct {
	dir  string
	file *os.File
	buf  *bufio.Reader
	half []byte // a record whose end is not written yet
}

func (r *logReader) close() {
	if r.file != nil {
		_ = r.file.Close()
	}
}

// each calls f with every record until f returns false.
func (r *logReader) each(ctx context.Context, follow bool, f func(agentapi.LogLine) bool) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		// Asked before reading: what is written until the logger ends is then read below.
		alive := false
		if follow {
			alive, _ = logger.Alive(r.dir)
		}
		more, err := r.drain(ctx, f)
		if err != nil || !more {
			return err
		}
		next, err := r.next()
		if err != nil {
			return err
		}
		if next {
			continue
		}
		if !alive {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(followPause):
		}
	}
}

// drain reads the open file to its present end. It returns false when f has enough.
func (r *logReader) drain(ctx context.Context, f func(agentapi.LogLine) bool) (bool, error) {
	if r.file == nil {
		return true, nil
	}
	for ctx.Err() == nil {
		b, err := r.buf.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || errors.Is(err, io.EOF) {
			r.half = append(r.half, b...)
			if errors.Is(err, io.EOF) {
				return true, nil
			}
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read %s: %w", r.file.Name(), err)
		}
		if len(r.half) > 0 {
			b = append(r.half, b...)
			r.half = nil
		}
		if l, ok := parseRecord(b); ok && !f(l) {
			return false, nil
		}
	}
	return true, nil
}

// next opens the file that follows the one read so far, and reports whether there is one. The first is the oldest.
func (r *logReader) next() (bool, error) {
	for range 100 { // files are renamed while we look
		names, err := logNames(r.dir)
		if err != nil || len(names) == 0 {
			return false, err
		}
		at := 0 // when ours is gone, the oldest that is left
		if r.file != nil {
			if at, err = r.after(names); err != nil {
				return false, err
			}
			if at == len(names) {
				return false, nil
			}
		}
		f, err := os.Open(filepath.Join(r.dir, names[at]))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		r.close()
		r.file, r.half = f, nil
		r.buf = bufio.NewReaderSize(f, 2*logger.LineMax)
		return true, nil
	}
	return false, fmt.Errorf("read logs in %s: the files are rotated faster than they can be read", r.dir)
}

// after is the index of the file that follows ours.
func (r *logReader) after(names []string) (int, error) {
	mine, err := r.file.Stat()
	if err != nil {
		return 0, err
	}
	for i, n := range names {
		if st, err := os.Stat(filepath.Join(r.dir, n)); err == nil && os.SameFile(st, mine) {
			return i + 1, nil
		}
	}
	return 0, nil
}

// logNames lists the files of a log, oldest first.
func logNames(dir string) ([]string, error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("logs: %w", err)
	}
	nums := map[string]int{}
	var names []string
	for _, e := range es {
		n := e.Name()
		if n == logger.File {
			names = append(names, n)
			continue
		}
		if len(n) > len(logger.File)+1 && n[:len(logger.File)+1] == logger.File+"." {
			if i, err := strconv.Atoi(n[len(logger.File)+1:]); err == nil {
				nums[n] = i
				names = append(names, n)
			}
		}
	}
	slices.SortFunc(names, func(a, b string) int { return nums[b] - nums[a] })
	return names, nil
}

// parseRecord reads "TIME STREAM F|P TEXT\n".
func parseRecord(b []byte) (agentapi.LogLine, bool) {
	b = bytes.TrimSuffix(b, []byte{'\n'})
	f := bytes.SplitN(b, []byte{' '}, 4)
	if len(f) != 4 || len(f[2]) != 1 || f[2][0] != 'F' && f[2][0] != 'P' {
		return agentapi.LogLine{}, false
	}
	at, err := time.Parse(logger.TimeFormat, string(f[0]))
	s := string(f[1])
	if err != nil || s != Stdout && s != Stderr {
		return agentapi.LogLine{}, false
	}
	return agentapi.LogLine{Time: at, Stream: s, Partial: f[2][0] == 'P', Text: string(f[3])}, true
}
