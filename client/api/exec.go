package api

import (
	"encoding/json"
	"errors"
	"fmt"
)

// The channels of exec: the first byte of each WebSocket message.
const (
	ExecStdin  byte = 0 // empty payload: end of input
	ExecStdout byte = 1
	ExecStderr byte = 2
	ExecResize byte = 3
	ExecExit   byte = 4
)

// ExecExitStatus ends an exec: the exit code of the command, or why there is none.
type ExecExitStatus struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
}

// ExecFrame is one message of exec. Payload is set for the three streams, Width and Height for a resize, Exit at the end.
type ExecFrame struct {
	Channel       byte
	Payload       []byte
	Width, Height uint16
	Exit          ExecExitStatus
}

// ErrFrame means that a message of exec is not one.
var ErrFrame = errors.New("malformed message of exec")

// ParseExecFrame reads a message. The payload shares memory with b.
func ParseExecFrame(b []byte) (ExecFrame, error) {
	if len(b) == 0 {
		return ExecFrame{}, fmt.Errorf("%w: it is empty", ErrFrame)
	}
	f := ExecFrame{Channel: b[0], Payload: b[1:]}
	switch f.Channel {
	case ExecStdin, ExecStdout, ExecStderr:
		return f, nil
	case ExecResize:
		var size struct {
			Width  uint16 `json:"width"`
			Height uint16 `json:"height"`
		}
		if err := json.Unmarshal(f.Payload, &size); err != nil {
			return ExecFrame{}, fmt.Errorf("%w: window size: %w", ErrFrame, err)
		}
		return ExecFrame{Channel: ExecResize, Width: size.Width, Height: size.Height}, nil
	case ExecExit:
		out := ExecFrame{Channel: ExecExit}
		if err := json.Unmarshal(f.Payload, &out.Exit); err != nil {
			return ExecFrame{}, fmt.Errorf("%w: exit: %w", ErrFrame, err)
		}
		return out, nil
	}
	return ExecFrame{}, fmt.Errorf("%w: channel %d", ErrFrame, f.Channel)
}
