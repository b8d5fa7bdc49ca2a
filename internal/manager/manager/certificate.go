package manager

import "baton/internal/manager/certificate"

// certificates makes what keeps the certificates of ingress rules through a term.
func (m *Manager) certificates() *certificate.Keeper {
	return certificate.New(certificate.Config{
		Store: m.store, Log: m.raft, Sealer: m.sealer, Acked: m.roster.Acked, Logger: m.cfg.Logger.With("part", "certificates"),
		UserAgent: "baton/" + m.cfg.Version,
	})
}
