package process

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"baton/internal/manager/identity"
	"baton/internal/wire/agentapi"
	"baton/internal/wire/rpc"
	"baton/internal/wire/transport"
)

const (
	joinMax    = time.Minute // for all tries together
	joinPause  = time.Second
	nonceBytes = 16
)

// enter makes sure that this node belongs to a cluster: it joins the one it was told to, or founds its own. A node that is a
// member stays what it is.
func (p *process) enter(ctx context.Context) error {
	f := p.self.get()
	switch {
	case f.Role != "" && p.cfg.Join != "":
		p.log.Info("this node is a member already; the token is not needed", "cluster", f.Cluster, "role", f.Role)
		return nil
	case f.Role != "":
		return nil
	case p.cfg.Join != "":
		return p.join(ctx)
	}
	// A directory of a version that knew one machine only has a manager's state: it goes on as that.
	return p.self.change(func(f *selfFile) { f.Role, f.Cluster = transport.RoleManager, clusterName })
}

// clusterName is what a new cluster is called.
const clusterName = "default"

// ParseJoin splits TOKEN@HOST[:PORT].
func ParseJoin(s string) (identity.Token, string, error) {
	text, address, ok := strings.Cut(strings.TrimSpace(s), "@")
	if !ok || address == "" {
		return identity.Token{}, "", errors.New("want TOKEN@HOST:PORT: copy the whole line that `baton token ls` prints on a manager")
	}
	token, err := identity.ParseToken(text)
	if err != nil {
		return identity.Token{}, "", err
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), strconv.Itoa(transport.PortDefault))
	}
	return token, address, nil
}

// join asks a manager to make this machine a member, again for a while when it cannot be reached: machines often start
// together.
func (p *process) join(ctx context.Context) error {
	token, address, err := ParseJoin(p.cfg.Join)
	if err != nil {
		return err
	}
	if len(p.self.get().Nonce) == 0 {
		nonce := make([]byte, nonceBytes)
		if _, err := rand.Read(nonce); err != nil {
			return err
		}
		if err := p.self.change(func(f *selfFile) { f.Nonce = nonce }); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, joinMax)
	defer cancel()
	for {
		err := p.tryJoin(ctx, token, address)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return err
		}
		p.log.Warn("cannot join yet", "manager", address, "err", rpc.Message(err))
		select {
		case <-ctx.Done():
			return fmt.Errorf("join %s: %s", address, rpc.Message(err))
		case <-time.After(joinPause):
		}
	}
}

// errOtherCluster refuses a machine that pretends to be the cluster.
var errOtherCluster = errors.New("the manager at this address is not of the cluster that the token is for, or somebody in between pretends to be it: check the address, and get the token anew with `baton token ls` on a manager")

// passing reports whether an error may be gone a moment later.
func passing(err error) bool {
	if errors.Is(err, errOtherCluster) {
		return false
	}
	st, ok := status.FromError(err)
	return !ok || st.Code() == codes.Unavailable || st.Code() == codes.Aborted
}

func (p *process) tryJoin(ctx context.Context, token identity.Token, address string) error {
	conn, err := transport.Handshake(ctx, transport.TCP{}, address, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{transport.ProtocolJoin}, ServerName: transport.NameManager,
		InsecureSkipVerify: true, // who it is, is checked against the token instead
		VerifyConnection:   func(st tls.ConnectionState) error { return verifyManager(token, st.PeerCertificates) },
	})
	if err != nil {
		return err
	}
	f := p.self.get()
	if p.cfg.Advertise == "" {
		f.Advertise = outwardAddress(address)
	}
	client := rpc.NewClientOn(conn)
	defer client.Close()
	r, err := transport.NewRequest(f.ID.String())
	if err != nil {
		return err
	}
	reply, err := rpc.Call[agentapi.JoinReply](ctx, client, agentapi.JoinService, agentapi.CallJoin, agentapi.JoinRequest{
		Secret: token.Secret, Nonce: f.Nonce, Node: f.ID, Name: f.Name, Listen: f.listen(), CSR: r.CSR, Hosts: hosts(f),
	})
	if err != nil {
		if st, ok := status.FromError(err); ok && st.Code() != codes.Unavailable {
			return status.Error(st.Code(), st.Message())
		}
		return err
	}
	if reply.Kit != nil {
		if err := identity.InstallKey(p.managerDir(), reply.Kit.SealKey); err != nil {
			return err
		}
	}
	if err := p.creds.Install(r, reply.Certificate.Certificate, reply.Roots); err != nil {
		return err
	}
	p.log.Info("joined", "cluster", reply.Cluster, "role", reply.Role, "manager", address)
	return p.self.change(func(s *selfFile) {
		s.Role, s.Cluster, s.Managers, s.Nonce, s.Advertise = reply.Role, reply.Cluster, reply.Managers, nil, f.Advertise
		s.Entering = reply.Role == transport.RoleManager
	})
}

// verifyManager checks that a manager's certificate is signed by the authority that the token is bound to.
func verifyManager(token identity.Token, chain []*x509.Certificate) error {
	roots := x509.NewCertPool()
	known := false
	for _, c := range chain {
		if token.Trusts(c.Raw) {
			roots.AddCert(c)
			known = true
		}
	}
	if !known || len(chain) == 0 {
		return errOtherCluster
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: transport.NameManager})
	if err != nil {
		return fmt.Errorf("%w (%w)", errOtherCluster, err)
	}
	return nil
}

// hosts are the names and addresses for which this node's certificate is good.
func hosts(f selfFile) []string {
	out := []string{f.Advertise, f.Name}
	if name, err := os.Hostname(); err == nil && name != f.Name {
		out = append(out, name)
	}
	return out
}

func (p *process) managerDir() string { return filepath.Join(p.dir, "manager") }
