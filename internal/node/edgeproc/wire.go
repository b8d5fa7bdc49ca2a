package edgeproc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"baton/internal/model/spec"
	"baton/internal/wire/agentapi"
)

const (
	// protocol is the version of what the two sides say to each other. It grows only when an older side would misunderstand.
	protocol = 1
	// messageMax bounds a message: a table of 100,000 endpoints has 20 MB.
	messageMax = 64 << 20
	// reportMax bounds what baton takes from a process, which may be in the hands of somebody else.
	reportMax = 16 << 20
	// filesMax bounds the descriptors that come with a message.
	filesMax = 8
	// writeTimeout bounds the wait for the other side to read.
	writeTimeout = 10 * time.Second
)

// kind says what a call asks for, or a report tells.
type kind string

const (
	callHello       kind = "hello"       // → hello, with the listeners
	callTable       kind = "table"       // table →, answered once new requests follow it
	callListen      kind = "listen"      // name of a port, with a listener →, answered once it accepts; no name: portHTTP
	callUnlisten    kind = "unlisten"    // name of a port →, gives its listener up; no name: all; what is under way may end
	callLeave       kind = "leave"       // the same, and ends with its last request
	callConnections kind = "connections" // address → how many requests are with its tasks
	callMeasures    kind = "measures"    // → what it has counted
	reportLog       kind = "log"         // line
	reportWake      kind = "wake"        // the id of a service that rests and is wanted
)

// message is a call, an answer or a report.
type message struct {
	ID    uint64          `json:"id,omitempty"`   // of a call and of its answer
	Kind  kind            `json:"kind,omitempty"` // empty in answers
	Error string          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// hello is what a process says of itself.
type hello struct {
	Protocol int    `json:"protocol"`
	PID      int    `json:"pid"`
	Program  string `json:"program"` // hash of its executable
	Leaving  bool   `json:"leaving,omitempty"`
	// Listening says whether it accepts connections: its listener comes with the message.
	Listening bool `json:"listening,omitempty"`
	// Ports are the names of the listeners that come with the message, in their order; none from a process that knows portHTTP only.
	Ports []string `json:"ports,omitempty"`
}

// The names of the ports.
const (
	portHTTP = "http"
	portTLS  = "https"
)

// ports are those names.
func (h hello) ports() []string {
	if len(h.Ports) == 0 && h.Listening {
		return []string{portHTTP}
	}
	return h.Ports
}

// table is what a process serves: the part of a network state that an edge looks at. Its types are those of agentapi, which
// processes of several versions exchange anyway.
type table struct {
	Services []agentapi.Service `json:"services"`
	// Certificates come with their keys: a process keeps them in its memory only.
	Certificates []agentapi.HostCertificate `json:"certificates,omitempty"`
	Challenges   []agentapi.Challenge       `json:"challenges,omitempty"`
}

// ports are the names of the ports that a table needs.
func (t table) ports() (names []string) {
	if len(t.Services) > 0 {
		names = append(names, portHTTP)
	}
	for _, v := range t.Services {
		if slices.ContainsFunc(v.Ingress, func(g spec.Ingress) bool { return g.TLS.Enabled() }) {
			return append(names, portTLS)
		}
	}
	return names
}

// newTable reduces a network state to the services with rules.
func newTable(s agentapi.NetworkState) table {
	t := table{Services: []agentapi.Service{}, Certificates: s.Certificates, Challenges: s.Challenges}
	for _, v := range s.Services {
		if len(v.Ingress) == 0 {
			continue
		}
		v.Networks, v.Ports = nil, nil
		t.Services = append(t.Services, v)
	}
	return t
}

// wire sends and receives messages on a connection.
type wire struct {
	c    *net.UnixConn
	max  int           // of a message that comes
	turn chan struct{} // who sends holds it
}

func newWire(c *net.UnixConn, most int) *wire {
	return &wire{c: c, max: most, turn: make(chan struct{}, 1)}
}

// send sends a message; files stay the caller's.
func (w *wire) send(m message, files ...*os.File) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(text) > messageMax {
		return fmt.Errorf("the message has %d bytes, at most %d are sent", len(text), messageMax)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	w.turn <- struct{}{}
	defer func() { <-w.turn }()
	if err := w.c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(text)))
	if n, _, err := w.c.WriteMsgUnix(head, rights, nil); err != nil || n < len(head) {
		return errors.Join(io.ErrShortWrite, err)
	}
	_, err = w.c.Write(text)
	return err
}

// receive waits for the next message. The files are the caller's.
func (w *wire) receive() (_ message, files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	head, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4*filesMax))
	for n := 0; n < len(head); {
		got, rights, flags, _, err := w.c.ReadMsgUnix(head[n:], oob)
		if err != nil {
			return message{}, files, err
		}
		more, err := filesOf(oob[:rights])
		files = append(files, more...)
		switch {
		case err != nil:
			return message{}, files, err
		case flags&unix.MSG_CTRUNC != 0 || len(files) > filesMax:
			return message{}, files, errors.New("more descriptors came than are taken")
		case got == 0:
			return message{}, files, io.EOF
		}
		n += got
	}
	size := binary.BigEndian.Uint32(head)
	if uint64(size) > uint64(w.max) {
		return message{}, files, fmt.Errorf("a message of %d bytes, at most %d are taken", size, w.max)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(w.c, text); err != nil {
		return message{}, files, err
	}
	var m message
	err = json.Unmarshal(text, &m)
	return m, files, err
}

// filesOf opens the descriptors of a control message.
func filesOf(oob []byte) ([]*os.File, error) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, c := range list {
		fds, err := unix.ParseUnixRights(&c)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

// share opens a listener's socket once more. (*net.TCPListener).File will not do: its descriptor is made blocking when it is passed on,
// and with it that of everybody who has the socket, one of whom would hang in accept.
func share(l *net.TCPListener) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	if err := raw.Control(func(own uintptr) { fd, derr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	return os.NewFile(uintptr(fd), l.Addr().String()), nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
