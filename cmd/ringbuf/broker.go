package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
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
	case strings.ContainsAny(b.stream, " \t\r\n.*>/\\"):
		return usageErrorf("--stream %q: the name of a stream has no spaces and none of . * > / \\",
			b.stream)
	case (b.tlsCert == "") != (b.tlsKey == ""):
		return usageErrorf("--tlscert and --tlskey belong together: give both, or none")
	}
	return nil
}

// authenticates reports whether a flag says how to be let in by a server.
func (b *broker) authenticates() bool {
	return b.creds != "" || b.tlsCA != "" || b.tlsCert != ""
}

// withoutSecrets returns URLs, with commas, as they may be shown: without users, passwords and
// tokens.
func withoutSecrets(to string) (string, error) {
	var shown []string
	for i, part := range strings.Split(to, ",") {
		if part = strings.TrimSpace(part); i > 0 && !strings.Contains(part, "://") {
			part = "nats://" + part
		}
		u, err := url.Parse(part)
		if err != nil || u.Host == "" ||
			!slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return "", usageErrorf("%q is no URL of a server, such as nats://host:4222 or tls://host:4222",
				part)
		}
		u.User = nil
		shown = append(shown, u.String())
	}
	return strings.Join(shown, ","), nil
}

// connect connects to a server that may come and go: it returns at once, also how to name the
// server. It says why there is no connection.
func (b *broker) connect(to string, say func(format string, args ...any),
	more ...nats.Option) (nc *nats.Conn, shown string, err error) {
	if shown, err = withoutSecrets(to); err != nil {
		return nil, "", err
	}
	options := append([]nats.Option{
		nats.Name("ringbuf"),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
	}, more...)
	told := map[string]bool{} // since there was a connection; these are called one at a time
	forget := func(*nats.Conn) { clear(told) }
	options = append(options, nats.ConnectHandler(forget), nats.ReconnectHandler(forget),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if why := reason(err); !told[why] {
				told[why] = true
				say("no connection to %s: %s", shown, why)
			}
		}))
	if b.creds != "" {
		options = append(options, nats.UserCredentials(b.creds))
	}
	if b.tlsCA != "" {
		options = append(options, nats.RootCAs(b.tlsCA))
	}
	if b.tlsCert != "" {
		options = append(options, nats.ClientCert(b.tlsCert, b.tlsKey))
	}
	if nc, err = nats.Connect(to, options...); err != nil {
		return nil, "", fmt.Errorf("connect to %s: %w", shown, err)
	}
	return nc, shown, nil
}

// reason leaves out of an error of the network at which port of this machine it was.
func reason(err error) string {
	for op := new(net.OpError); errors.As(err, &op); {
		err = op.Err
	}
	return oneLine(err)
}
