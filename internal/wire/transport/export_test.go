package transport

import "io/fs"

// HandshakesOfHost and HandshakeMax are the limits of the port.
const (
	HandshakesOfHost = handshakesOfHost
	HandshakeMax     = handshakeMax
)

// Saving makes Install write with save.
func (f *Files) Saving(save func(path string, data []byte, mode fs.FileMode) error) { f.save = save }
