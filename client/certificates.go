package client

import (
	"context"
	"net/http"

	"baton/client/api"
)

// Certificates lists the certificates of ingress rules.
func (c *Client) Certificates(ctx context.Context) ([]api.HostCertificate, error) {
	return get[[]api.HostCertificate](ctx, c, path("certificates"), nil)
}

// ServiceAuthority is the cluster's own authority for services.
func (c *Client) ServiceAuthority(ctx context.Context) (api.ServiceAuthority, error) {
	return get[api.ServiceAuthority](ctx, c, path("certificates", "authority"), nil)
}

// RenewCertificate asks for another certificate at once.
func (c *Client) RenewCertificate(ctx context.Context, host string) error {
	_, err := send[struct{}](ctx, c, http.MethodPost, path("certificates", host, "renew"), nil, nil)
	return err
}

// RevokeCertificate asks for the revocation of a certificate, and for another one.
func (c *Client) RevokeCertificate(ctx context.Context, host string) error {
	_, err := send[struct{}](ctx, c, http.MethodPost, path("certificates", host, "revoke"), nil, nil)
	return err
}

// ACME says where certificates of tls: auto come from.
func (c *Client) ACME(ctx context.Context) (api.ACME, error) {
	return get[api.ACME](ctx, c, path("acme"), nil)
}

// SetACME chooses where certificates of tls: auto come from.
func (c *Client) SetACME(ctx context.Context, a api.ACME) (api.ACME, error) {
	return send[api.ACME](ctx, c, http.MethodPut, path("acme"), nil, a)
}
