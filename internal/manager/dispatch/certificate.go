package dispatch

import (
	"baton/internal/manager/store"
	"baton/internal/model/cluster"
	"baton/internal/wire/agentapi"
)

// certificates gives the edges what they serve hosts with, and what they answer authorities.
func (v *view) certificates(st *agentapi.NetworkState) {
	for c := range store.All[*cluster.Certificate](v.snap) {
		for token, answer := range c.Challenges {
			st.Challenges = append(st.Challenges, agentapi.Challenge{Host: c.Host, Token: token, Answer: answer})
		}
		if !c.ForHost() || len(c.Chain) == 0 {
			continue
		}
		key, err := v.opener.Open(c.Sealed, cluster.KindCertificate, c.ID)
		if err != nil {
			v.log.Error("the key of a certificate cannot be opened; its host is not served with TLS", "host", c.Host, "err", err)
			continue
		}
		st.Certificates = append(st.Certificates, agentapi.HostCertificate{Host: c.Host, Chain: c.Chain, Key: key})
	}
}
