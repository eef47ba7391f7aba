// Package platforms tests how the package builds, or fails to: on other platforms, without cgo,
// without the files that it needs, and from a vendor directory.
package platforms

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	bpf "github.com/aquasecurity/libbpfgo"

	"github.com/libbpfgo/ringbuf/internal/bpftest"
)

const path = "github.com/libbpfgo/ringbuf"

// root is the directory of the package.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newModule returns the directory of a user's module with one program.
func newModule(t *testing.T, program string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, dir+"/main.go", program)
	write(t, dir+"/go.mod", fmt.Sprintf("module example.com/agent\n\ngo 1.24\n\nrequire %s v0.0.0\n\n"+
		"replace %[1]s => %s\n", path, root(t)))
	return dir
}

// command runs a command in dir and returns its output.
func command(dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustRun(t *testing.T, dir string, env []string, name string, args ...string) string {
	t.Helper()
	out, err := command(dir, env, name, args...)
	if err != nil {
		t.Fatalf("%v %s %v: %v\n%s", env, name, args, err, out)
	}
	return out
}

// exported returns an expression or a type for each name that the package exports on Linux with
// cgo, including methods and fields.
func exported(t *testing.T) []string {
	t.Helper()
	ctx := build.Default
	ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = "linux", "amd64", true
	pkg, err := ctx.ImportDir(root(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	// uint64 satisfies each constraint.
	name := func(id *ast.Ident, params *ast.FieldList) string {
		if params.NumFields() == 0 {
			return "ringbuf." + id.Name
		}
		return "ringbuf." + id.Name + "[" + strings.Repeat("uint64, ", params.NumFields()) + "]"
	}
	for _, file := range slices.Concat(pkg.GoFiles, pkg.CgoFiles) {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(pkg.Dir, file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					if d.Name.IsExported() {
						names["_ = "+name(d.Name, d.Type.TypeParams)] = true
					}
					continue
				}
				receiver := d.Recv.List[0].Type
				if star, ok := receiver.(*ast.StarExpr); ok {
					receiver = star.X
				}
				if id, ok := receiver.(*ast.Ident); ok && id.IsExported() && d.Name.IsExported() {
					names["_ = (*ringbuf."+id.Name+")."+d.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.ValueSpec:
						for _, id := range s.Names {
							if id.IsExported() {
								names["_ = ringbuf."+id.Name] = true
							}
						}
					case *ast.TypeSpec:
						if !s.Name.IsExported() {
							continue
						}
						typeName := name(s.Name, s.TypeParams)
						names["_ "+typeName] = true
						if st, ok := s.Type.(*ast.StructType); ok {
							for _, field := range st.Fields.List {
								for _, id := range field.Names {
									if id.IsExported() {
										names["_ = (*"+typeName+")(nil)."+id.Name] = true
									}
								}
							}
						}
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

func TestProgramsCompileEverywhere(t *testing.T) {
	names := exported(t)
	for _, want := range []string{"_ ringbuf.Map", "_ = ringbuf.ErrClosed", "_ = ringbuf.NewReader",
		"_ = (*ringbuf.Reader).Read", "_ = (*ringbuf.Record)(nil).Lost", "_ = ringbuf.As[uint64, ]"} {
		if !slices.Contains(names, want) {
			t.Fatalf("%s is not among what the package exports: %q", want, names)
		}
	}
	// The program is not run: it would use fields of nil.
	dir := newModule(t, fmt.Sprintf("package main\n\nimport %q\n\nfunc main() {}\n\n"+
		"func uses() {\n\tvar (\n\t\t%s\n\t)\n}\n\nvar _ = uses\n", path, strings.Join(names, "\n\t\t")))
	for _, platform := range []string{"darwin/arm64", "freebsd/amd64", "windows/amd64", "linux/386",
		"linux/arm64"} {
		t.Run(platform, func(t *testing.T) {
			goos, goarch, _ := strings.Cut(platform, "/")
			mustRun(t, dir, []string{"GOOS=" + goos, "GOARCH=" + goarch, "CGO_ENABLED=0"}, "go", "vet", ".")
		})
	}
}

// With cgo on a platform other than Linux, no file may need cgo: go refuses a package that has
// C files and no Go file that imports "C".
func TestWithCgoNoFileWantsCElsewhere(t *testing.T) {
	for _, goos := range []string{"darwin", "freebsd", "windows"} {
		ctx := build.Default
		ctx.GOOS, ctx.GOARCH, ctx.CgoEnabled = goos, "amd64", true
		pkg, err := ctx.ImportDir(root(t), 0)
		if err != nil {
			t.Fatal(err)
		}
		if files := slices.Concat(pkg.CgoFiles, pkg.CFiles); len(files) > 0 {
			t.Errorf("on %s the package has %v", goos, files)
		}
	}
}

const withoutCgo = `package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/libbpfgo/ringbuf"
)

func main() {
	_, err := ringbuf.NewReader(ringbuf.FD(0))
	fmt.Println(err, errors.Is(err, errors.ErrUnsupported))
	_, err = ringbuf.NewMultiReader(nil)
	fmt.Println(err, errors.Is(err, errors.ErrUnsupported))

	id, err := strconv.ParseUint(os.Args[2], 10, 32)
	if err != nil {
		panic(err)
	}
	pinned, err := ringbuf.OpenMap(os.Args[1])
	if err != nil {
		panic(err)
	}
	known, err := ringbuf.OpenMapID(uint32(id))
	if err != nil {
		panic(err)
	}
	for _, h := range []*ringbuf.MapHandle{pinned, known} {
		target, err := os.Readlink(fmt.Sprint("/proc/self/fd/", h.FileDescriptor()))
		fmt.Println(target, err, h.Close())
	}

	v, err := ringbuf.As[uint64](ringbuf.Record{RawSample: make([]byte, 8)})
	fmt.Println(*v, err)
	_, err = ringbuf.OpenMap(filepath.Join(filepath.Dir(os.Args[1]), "other"))
	fmt.Println(err)
}
`

func TestMapsOpenWithoutCgo(t *testing.T) {
	ring := bpftest.New(t, os.Getpagesize())
	mount := t.TempDir()
	if err := syscall.Mount("bpf", mount, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(mount, syscall.MNT_DETACH)
	pinned := filepath.Join(mount, "events")
	if err := ring.BPFMap().Pin(pinned); err != nil {
		t.Fatal(err)
	}
	other, err := ring.Module().GetMap("content")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Pin(filepath.Join(mount, "other")); err != nil {
		t.Fatal(err)
	}
	info, err := bpf.GetMapInfoByFD(ring.FileDescriptor())
	if err != nil {
		t.Fatal(err)
	}
	dir := newModule(t, withoutCgo)
	got := mustRun(t, dir, []string{"CGO_ENABLED=0"}, "go", "run", ".", pinned, fmt.Sprint(info.ID))
	const missing = "ringbuf: a Reader needs cgo, and this program was built without: set " +
		"CGO_ENABLED=1, " +
		"install a C compiler, and let CGO_CFLAGS and CGO_LDFLAGS name libbpf, as the README says: " +
		"unsupported operation true\n"
	want := missing + missing +
		"anon_inode:bpf-map <nil> <nil>\nanon_inode:bpf-map <nil> <nil>\n0 <nil>\n" +
		fmt.Sprintf("ringbuf: open %q: map \"content\" has type array, not ringbuf or user_ringbuf\n",
			filepath.Join(mount, "other"))
	if got != want {
		t.Errorf("the program printed\n%swant\n%s", got, want)
	}
}

// cgoErrors returns the C errors that cgo prints for the package.
func cgoErrors(t *testing.T, env []string, flags ...string) []string {
	t.Helper()
	args := append([]string{"tool", "cgo", "-objdir", t.TempDir(), "--"}, flags...)
	out, err := command(root(t), env, "go", append(args, "ringbuf_cgo.go")...)
	if err == nil {
		t.Fatal("cgo succeeded")
	}
	t.Logf("%s", out)
	return regexp.MustCompile(`(?m)error: .*`).FindAllString(out, -1)
}

func wantOneError(t *testing.T, got []string, want string) {
	t.Helper()
	if len(got) != 1 || got[0] != "error: #error "+want {
		t.Errorf("the errors are %q, want %q", got, want)
	}
}

func TestWhatIsMissingForCIsSaidInOneLine(t *testing.T) {
	cflags := strings.Fields(os.Getenv("CGO_CFLAGS"))
	t.Run("64 bits", func(t *testing.T) {
		if runtime.GOARCH != "amd64" {
			t.Skipf("a compiler for %s has no 32-bit mode", runtime.GOARCH)
		}
		wantOneError(t, cgoErrors(t, []string{"GOARCH=386", "CGO_ENABLED=1"}, cflags...),
			`"ringbuf needs a 64-bit processor: positions in a ring have 64 bits (see README.md)"`)
	})
	t.Run("libbpf", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir+"/stddef.h", "") // the header that cgo includes first
		wantOneError(t, cgoErrors(t, nil, "-nostdinc", "-I"+dir),
			`"libbpf's headers are missing: set CGO_CFLAGS and CGO_LDFLAGS, see README.md of ringbuf"`)
	})
	const major, minor = "#define LIBBPF_MAJOR_VERSION ", "\n#define LIBBPF_MINOR_VERSION "
	for version, header := range map[string]string{
		"without a version": "",
		"0.8":               major + "0" + minor + "8\n",
		"1.2":               major + "1" + minor + "2\n",
	} {
		t.Run("libbpf "+version, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/bpf/libbpf.h", header)
			wantOneError(t, cgoErrors(t, nil, append([]string{"-I" + dir}, cflags...)...),
				`"libbpf is too old: ringbuf needs 1.3 or newer"`)
		})
	}
}

// TestOldKernelHeadersDo compiles the C files, without a warning, with a linux/bpf.h from which
// the additions of Linux 5.7 and 5.8 are removed.
func TestOldKernelHeadersDo(t *testing.T) {
	compile := func(flags ...string) (string, error) {
		flags = append(flags, strings.Fields(os.Getenv("CGO_CFLAGS"))...)
		return command(root(t), nil, cmp.Or(os.Getenv("CC"), "cc"), append(flags, "-Wall", "-Werror",
			"-fsyntax-only", "ringbuf_cgo.c", "ringbuf_cgo_open.c", "ringbuf_cgo_wait.c")...)
	}
	dir := t.TempDir()
	write(t, dir+"/include.c", "#include <linux/bpf.h>\n")
	lines := mustRun(t, dir, nil, cmp.Or(os.Getenv("CC"), "cc"),
		append(strings.Fields(os.Getenv("CGO_CFLAGS")),
			"-E", "include.c")...)
	header := regexp.MustCompile(`"(.*/linux/bpf\.h)"`).FindStringSubmatch(lines)
	if header == nil {
		t.Fatalf("no linux/bpf.h in\n%s", lines)
	}
	text, err := os.ReadFile(header[1])
	if err != nil {
		t.Fatal(err)
	}
	newer := regexp.MustCompile(`\b(BPF_RINGBUF_\w+|BPF_RB_\w+|BPF_MAP_TYPE_RINGBUF|bpf_link_type)\b`)
	old := newer.ReplaceAllString(string(text), "newer_$1")
	if old == string(text) {
		t.Fatalf("nothing was taken away from %s", header[1])
	}
	write(t, dir+"/linux/bpf.h", old)
	if out, err := compile("-I" + dir); err != nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
}

// The program is built with the flags that pkg-config has for libbpf, and no others.
func TestVendorDirectoryHasTheHeaderAndBuilds(t *testing.T) {
	dir := newModule(t, `package main

import "github.com/libbpfgo/ringbuf"

func main() { ringbuf.NewReader(nil) }
`)
	want, err := os.ReadFile("../../bpf/ringbuf.bpf.h")
	if err != nil {
		t.Fatal(err)
	}
	where := func(want string) {
		t.Helper()
		got := mustRun(t, dir, nil, "go", "list", "-f", "{{.Dir}}", path+"/bpf")
		if got = strings.TrimSpace(got); got != want {
			t.Errorf("package bpf is in %s, want %s", got, want)
		}
	}
	where(filepath.Join(root(t), "bpf"))
	mustRun(t, dir, nil, "go", "mod", "vendor")
	vendored := filepath.Join(dir, "vendor", path, "bpf")
	where(vendored)
	got, err := os.ReadFile(filepath.Join(vendored, "ringbuf.bpf.h"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the vendored header is another")
	}

	pc := t.TempDir()
	write(t, pc+"/libbpf.pc", "Name: libbpf\nDescription: that of these tests\nVersion: 1.5\n"+
		"Cflags: "+os.Getenv("CGO_CFLAGS")+"\nLibs: "+os.Getenv("CGO_LDFLAGS")+"\n")
	mustRun(t, dir, []string{"CGO_CFLAGS=", "CGO_LDFLAGS=", "PKG_CONFIG_PATH=" + pc},
		"go", "build", "-tags", "libbpf_pkgconfig", "-o", os.DevNull, ".")
}
