package logger

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"
)

// buffers are shared by all streams: most of them are quiet most of the time.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, bufferSize); return &b }}

// stream is one of the two outputs of a task.
type stream struct {
	name string
	file *os.File
	conn syscall.RawConn

	mu     sync.Mutex // of the following, and held while what was read is kept
	ending bool
	rest   *[]byte // the start of a line; nil: there is none
}

// finish makes copy return once the stream is quiet.
func (s *stream) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	_ = s.file.SetReadDeadline(time.Now().Add(quietMax))
}

// wait sets how long the next read may take, and reports whether the stream is to end when nothing comes. The caller holds mu.
func (s *stream) wait() (ending bool) {
	switch {
	case s.ending:
		_ = s.file.SetReadDeadline(time.Now().Add(quietMax))
	case s.rest != nil:
		_ = s.file.SetReadDeadline(time.Now().Add(idleMax))
	default:
		_ = s.file.SetReadDeadline(time.Time{})
	}
	return s.ending
}

// copy keeps what comes from a stream until it ends. Errors of the disk are survived: a task must not stop because its log cannot be
// written.
func (w *Writer) copy(s *stream) {
	for {
		s.mu.Lock()
		ending := s.wait()
		s.mu.Unlock()
		err := s.conn.Read(func(fd uintptr) bool { return s.take(w, int(fd)) })
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			say(err)
			return
		}
		s.mu.Lock()
		s.keep(w, true)
		s.mu.Unlock()
		if ending {
			return
		}
	}
}

// take reads once and keeps whole lines; false means that nothing was there.
func (s *stream) take(w *Writer, fd int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rest == nil {
		s.rest = buffers.Get().(*[]byte)
	}
	b := *s.rest
	n, err := syscall.Read(fd, b[len(b):cap(b)])
	if n > 0 {
		*s.rest = b[:len(b)+n]
	}
	s.keep(w, false)
	return n > 0 || !errors.Is(err, syscall.EAGAIN)
}

// keep writes what is whole of what was read, with flush all of it. The caller holds mu.
func (s *stream) keep(w *Writer, flush bool) {
	if s.rest == nil {
		return
	}
	b := *s.rest
	used := w.Keep(s.name, b, flush)
	b = b[:copy(b, b[used:])]
	*s.rest = b
	if len(b) == 0 {
		buffers.Put(s.rest)
		s.rest = nil
	}
}

// leave writes what the streams have of unfinished lines; the caller holds their mu.
func (w *Writer) leave(streams []*stream) {
	for _, s := range streams {
		s.keep(w, true)
	}
}
