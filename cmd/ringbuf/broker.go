package main

import (
	"fmt"
	"net/url"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

// The defaults of ship and subscribe, which find each other.
const (
	defaultStream = "RINGBUF"
	defaultListen = "127.0.0.1:4222"
)

// A broker is what the flags say of a nats-server.
type broker struct {
	stream                        string
	creds, tlsCA, tlsCert, tlsKey string
}

func (b *broker) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&b.stream, "stream", defaultStream, "`name` of the stream")
	flags.StringVar(&b.creds, "creds", "", "credentials: a `file` of JWT and key, as nsc makes them")
	flags.StringVar(&b.tlsCA, "tlsca", "", "`file` of certificates of authorities to trust (PEM)")
	flags.StringVar(&b.tlsCert, "tlscert", "", "`file` of the certificate to show to the server (PEM)")
	flags.StringVar(&b.tlsKey, "tlskey", "", "`file` of its key (PEM)")
}

// check refuses what makes no sense.
func (b *broker) check() error {
	switch {
	case b.stream == "":
		return usageErrorf("--stream: a stream has a name")
	case (b.tlsCert == "") != (b.tlsKey == ""):
		return usageErrorf("--tlscert and --tlskey belong together: give both, or none")
	}
	return nil
}

// connect connects to a server that may come and go: it returns at once.
func (b *broker) connect(to string, more ...nats.Option) (*nats.Conn, error) {
	if u, err := url.Parse(to); err != nil || u.Host == "" {
		return nil, usageErrorf("%q is no URL of a server, such as nats://host:4222 or tls://host:4222", to)
	}
	options := append([]nats.Option{
		nats.Name("ringbuf"),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
	}, more...)
	if b.creds != "" {
		options = append(options, nats.UserCredentials(b.creds))
	}
	if b.tlsCA != "" {
		options = append(options, nats.RootCAs(b.tlsCA))
	}
	if b.tlsCert != "" {
		options = append(options, nats.ClientCert(b.tlsCert, b.tlsKey))
	}
	nc, err := nats.Connect(to, options...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return nc, nil
}
