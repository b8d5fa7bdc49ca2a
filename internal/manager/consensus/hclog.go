package consensus

import (
	"context"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hcLog hands raft's log lines to slog. Raft's info is our debug: elections are announced by this package.
type hcLog struct {
	log  *slog.Logger
	name string
	args []any
}

var _ hclog.Logger = (*hcLog)(nil)

func newHCLog(l *slog.Logger) *hcLog { return &hcLog{log: l} }

func slogLevel(l hclog.Level) slog.Level {
	switch {
	case l >= hclog.Error:
		return slog.LevelError
	case l == hclog.Warn:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Log implements hclog.Logger.
func (h *hcLog) Log(level hclog.Level, msg string, args ...any) {
	h.log.Log(context.Background(), slogLevel(level), msg, append(h.args[:len(h.args):len(h.args)], args...)...)
}

func (h *hcLog) on(l hclog.Level) bool { return h.log.Enabled(context.Background(), slogLevel(l)) }

func (h *hcLog) Trace(msg string, args ...any) {}
func (h *hcLog) Debug(msg string, args ...any) { h.Log(hclog.Debug, msg, args...) }
func (h *hcLog) Info(msg string, args ...any)  { h.Log(hclog.Info, msg, args...) }
func (h *hcLog) Warn(msg string, args ...any)  { h.Log(hclog.Warn, msg, args...) }
func (h *hcLog) Error(msg string, args ...any) { h.Log(hclog.Error, msg, args...) }
func (h *hcLog) IsTrace() bool                 { return false }
func (h *hcLog) IsDebug() bool                 { return h.on(hclog.Debug) }
func (h *hcLog) IsInfo() bool                  { return h.on(hclog.Info) }
func (h *hcLog) IsWarn() bool                  { return h.on(hclog.Warn) }
func (h *hcLog) IsError() bool                 { return h.on(hclog.Error) }
func (h *hcLog) ImpliedArgs() []any            { return h.args }
func (h *hcLog) Name() string                  { return h.name }
func (h *hcLog) SetLevel(hclog.Level)          {}
func (h *hcLog) GetLevel() hclog.Level         { return hclog.Debug }

// With implements hclog.Logger.
func (h *hcLog) With(args ...any) hclog.Logger {
	return &hcLog{log: h.log, name: h.name, args: append(h.args[:len(h.args):len(h.args)], args...)}
}

// Named implements hclog.Logger.
func (h *hcLog) Named(name string) hclog.Logger { return h.ResetNamed(name) }

// ResetNamed implements hclog.Logger.
func (h *hcLog) ResetNamed(name string) hclog.Logger {
	return &hcLog{log: h.log, name: name, args: h.args}
}

// StandardLogger implements hclog.Logger.
func (h *hcLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(h.log.Handler(), slog.LevelDebug)
}

// StandardWriter implements hclog.Logger.
func (h *hcLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return h.StandardLogger(nil).Writer()
}
