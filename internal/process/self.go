package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"baton/internal/durable"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/transport"
)

// selfFile is what a node knows of itself before it has reached anybody: DIR/node.json.
type selfFile struct {
	ID   cluster.ID `json:"id"`
	Name string     `json:"name"`
	// Role is what the node is in its cluster; empty until it has founded or joined one.
	Role    string `json:"role,omitempty"`
	Cluster string `json:"cluster,omitempty"`
	// Bind is where the port listens, Advertise the address by which others reach it.
	Bind      string `json:"bind,omitempty"`
	Advertise string `json:"advertise,omitempty"`
	// Managers are where sessions could be opened when this was written.
	Managers []agentapi.Manager `json:"managers,omitempty"`
	// Nonce belongs to a request to join whose answer did not come back yet.
	Nonce []byte `json:"nonce,omitempty"`
	// Entering is set from the start of a manager until it has the log: a crash in between begins it again.
	Entering bool `json:"entering,omitempty"`
}

// self is the file with its place. It may be used from any goroutine.
type self struct {
	path string

	mu   sync.Mutex
	file selfFile
}

// get is a copy of the present state.
func (s *self) get() selfFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file
}

// change changes the state and writes it down.
func (s *self) change(f func(*selfFile)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.file
	f(&next)
	data, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.Write(s.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	s.file = next
	return nil
}

// listen is where others reach this node's port.
func (f selfFile) listen() string { return net.JoinHostPort(f.Advertise, strconv.Itoa(int(f.port()))) }

// port is the number of this node's port; the cluster that it founds has its mesh on the same one.
func (f selfFile) port() uint16 {
	if _, port, err := net.SplitHostPort(f.Bind); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			return uint16(n)
		}
	}
	return transport.PortDefault
}

// nameForm is what a node may be called.
var nameForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$`)

// identify reads who this node is, or decides it on the first start. A name that is given wins over the stored one.
func identify(dir, name string) (*self, error) {
	s := &self{path: filepath.Join(dir, "node.json")}
	data, err := os.ReadFile(s.path)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &s.file); err != nil || s.file.ID.IsZero() {
			return nil, fmt.Errorf("%s is damaged; restore it, or start with an empty data directory", s.path)
		}
		if name == "" || name == s.file.Name {
			return s, nil
		}
	case errors.Is(err, fs.ErrNotExist):
		s.file.ID = cluster.NewID(nil)
	default:
		return nil, err
	}
	if name == "" {
		if name, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("this machine has no hostname (%w); give --name", err)
		}
	}
	if !nameForm.MatchString(name) {
		return nil, fmt.Errorf("node name %q: want letters, digits, dots and dashes, at most 63; give another --name", name)
	}
	return s, s.change(func(f *selfFile) { f.Name = name })
}

// portTries is how many ports are tried from the usual one on when several nodes share a machine.
const portTries = 100

// place decides where the port listens and how others reach it. What is given wins over what was decided earlier.
func (s *self) place(bind, advertise string) error {
	f := s.get()
	switch {
	case bind != "":
		// Others must be told the number: it can be neither a name nor the system's choice.
		_, port, err := net.SplitHostPort(bind)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
			return fmt.Errorf("listen address %q: want HOST:PORT or :PORT, with a port from 1 to 65535", bind)
		}
	case f.Bind != "":
		bind = f.Bind
	default:
		port, err := freePort()
		if err != nil {
			return err
		}
		bind = ":" + strconv.Itoa(port)
	}
	switch {
	case advertise != "":
		if ip, err := netip.ParseAddr(advertise); err != nil || ip.IsUnspecified() {
			return fmt.Errorf("advertised address %q: want the IP address by which the other nodes reach this one", advertise)
		}
	case f.Advertise != "":
		advertise = f.Advertise
	default:
		advertise = outwardAddress("")
	}
	if bind == f.Bind && advertise == f.Advertise {
		return nil
	}
	return s.change(func(f *selfFile) { f.Bind, f.Advertise = bind, advertise })
}

// freePort is the usual port, or the next one that no other node of this machine uses.
func freePort() (int, error) {
	for port := transport.PortDefault; port < transport.PortDefault+portTries; port++ {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port from %d to %d: give one with --listen", transport.PortDefault, transport.PortDefault+portTries-1)
}

// outwardAddress is the address from which this machine reaches another one, or the world when to is empty.
func outwardAddress(to string) string {
	if to == "" {
		to = "192.0.2.1:9" // documentation address: a route is asked for, nothing is sent
	}
	if c, err := net.Dial("udp", to); err == nil {
		defer c.Close()
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			return a.AddrPort().Addr().Unmap().String()
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
				return n.IP.String()
			}
		}
	}
	return "127.0.0.1"
}
