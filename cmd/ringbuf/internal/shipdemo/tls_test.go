package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/libbpfgo/ringbuf/cmd/ringbuf/internal/kinds"
)

// TestShipOverTLS ships to servers that want a certificate, and a password or a JWT. subscribe
// receives the records from them.
func TestShipOverTLS(t *testing.T) {
	const n = 1000
	dir := t.TempDir()
	makeCertificates(t, dir)
	tls := []string{"--tlsca", filepath.Join(dir, "ca.pem"), "--tlscert",
		filepath.Join(dir, "client.pem"), "--tlskey", filepath.Join(dir, "client.key")}
	for name, auth := range map[string]func(*testing.T, string) (config, user string, flags []string){
		"password": withPassword, "creds": withCreds,
	} {
		t.Run(name, func(t *testing.T) {
			config, user, flags := auth(t, dir)
			addr := startServer(t, dir, config)
			url := "tls://" + user + addr
			flags = append(flags, tls...)
			s := kinds.New(t, 1<<20)
			id := s.MAP()
			shipper := launch(t, append(append([]string{"ship", "--to", url}, flags...), id...)...)
			s.Flood(0, n)
			subscriber := launch(t, append([]string{"subscribe", "--from", url, "-o", "json", "-c",
				fmt.Sprint(n)}, flags...)...)
			stdout, stderr, code := subscriber.End()
			if lines := strings.Count(stdout, "\n"); code != 0 || lines != n {
				t.Errorf("subscribe ended with %d and %d of %d records: %s", code, lines, n, stderr)
			}
			for i, line := range strings.Split(strings.TrimSpace(stdout), "\n") {
				if want := fmt.Sprintf("%x", kinds.Numbered(i)); !strings.Contains(line, want) {
					t.Fatalf("record %d is %s, want %s", i, line, want)
				}
			}
			shipper.Interrupt()
			_, told, code := shipper.End()
			if code != 0 || !strings.Contains(told, fmt.Sprintf(" %d records shipped, 0 sent again, ", n)) {
				t.Errorf("ship ended with %d: %s", code, told)
			}
			if told += stderr; strings.Contains(told, secret) || !strings.Contains(told, "tls://"+addr) {
				t.Errorf("it says %s", told)
			}
		})
	}
}

// TestAServerThatRefusesIsTold runs ship with one thing missing or wrong at a time.
func TestAServerThatRefusesIsTold(t *testing.T) {
	dir := t.TempDir()
	makeCertificates(t, dir)
	config, user, _ := withPassword(t, dir)
	addr := startServer(t, dir, config)
	ca := []string{"--tlsca", filepath.Join(dir, "ca.pem")}
	client := []string{"--tlscert", filepath.Join(dir, "client.pem"), "--tlskey",
		filepath.Join(dir, "client.key")}
	id := kinds.New(t, 1<<12).MAP()
	for _, tt := range []struct {
		name, url string
		flags     []string
		want      string
		ends      bool
	}{
		{"no CA", user + addr, client, "signed by unknown authority", false},
		// The alert of TLS 1.3 may come after the connection was closed.
		{"no client certificate", user + addr, ca, "no connection to tls://" + addr + ": ", false},
		{"wrong password", "u:wrong@" + addr, append(client, ca...), "Authorization Violation", true},
	} {
		args := append([]string{"ship", "--to", "tls://" + tt.url}, tt.flags...)
		shipper := launch(t, append(args, id...)...)
		shipper.MustAwait(tt.want)
		if !tt.ends {
			shipper.Interrupt()
		}
		if _, stderr, code := shipper.End(); (code == 1) != tt.ends {
			t.Errorf("%s: it ended with %d: %s", tt.name, code, stderr)
		}
	}
}

const secret = "not.for.logs"

// withPassword returns the configuration of a server with a password, and the user in the URL and
// the flags with which the server accepts a client.
func withPassword(*testing.T, string) (config, user string, flags []string) {
	return fmt.Sprintf("authorization { user: u, password: %q }\n", secret), "u:" + secret + "@", nil
}

// withCreds is like withPassword, but for a JWT: an operator signs an account, which signs a user.
func withCreds(t *testing.T, dir string) (config, user string, flags []string) {
	t.Helper()
	operator, operatorID := newKey(t, nkeys.CreateOperator)
	account, accountID := newKey(t, nkeys.CreateAccount)
	_, systemID := newKey(t, nkeys.CreateAccount)
	userKey, userID := newKey(t, nkeys.CreateUser)
	claims := jwt.NewAccountClaims(accountID)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1,
		Streams: -1, Consumer: -1}
	seed, err := userKey.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(encode(t, jwt.NewUserClaims(userID), account), seed)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "agent.creds")
	if err := os.WriteFile(path, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	config = fmt.Sprintf("operator: %q\nsystem_account: %s\nresolver: MEMORY\n"+
		"resolver_preload: { %s: %q, %s: %q }\n", encode(t, jwt.NewOperatorClaims(operatorID), operator),
		systemID, accountID, encode(t, claims, operator), systemID,
		encode(t, jwt.NewAccountClaims(systemID), operator))
	return config, "", []string{"--creds", path}
}

func newKey(t *testing.T, create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string) {
	t.Helper()
	key, err := create()
	if err != nil {
		t.Fatal(err)
	}
	id, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

func encode(t *testing.T, claims jwt.Claims, by nkeys.KeyPair) string {
	t.Helper()
	text, err := claims.Encode(by)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// startServer starts a nats-server in this process, with the certificates in dir, and returns its
// address. The server runs until the test ends.
func startServer(t *testing.T, dir, config string) string {
	t.Helper()
	path := filepath.Join(dir, "nats.conf")
	config += fmt.Sprintf("listen: \"127.0.0.1:-1\"\njetstream { store_dir: %q }\n"+
		"tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }\n", t.TempDir(),
		filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"), filepath.Join(dir, "ca.pem"))
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	options, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	options.NoSigs, options.NoLog = true, true
	s, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("the server is not ready after a minute")
	}
	return s.Addr().String()
}

// makeCertificates writes into dir ca.pem and, signed by it, the certificates and keys of server
// and client: .pem and .key.
func makeCertificates(t *testing.T, dir string) {
	t.Helper()
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, name := range []string{"ca", "server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth,
				x509.ExtKeyUsageClientAuth},
			BasicConstraintsValid: true, IsCA: i == 0,
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}
		if i == 0 {
			ca, caKey = cert, key
		}
		signed, err := x509.CreateCertificate(rand.Reader, cert, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		for ext, block := range map[string]*pem.Block{".pem": {Type: "CERTIFICATE", Bytes: signed},
			".key": {Type: "EC PRIVATE KEY", Bytes: private}} {
			var out bytes.Buffer
			if err := pem.Encode(&out, block); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name+ext), out.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}
