// Release checks the modules of a release as users get them, and tags them.
//
//	release check v0.1.0
//	release tag v0.1.0
//
// It uses what is committed at HEAD. In the repository, a module requires its siblings as
// v0.0.0 and replaces them with their directories. That does not work for users: a replace line
// has no effect in a module that is required, and go install refuses it. So a release has a
// commit whose go.mod files require the siblings as released. Only the tags of nested modules
// point to that commit. The tag of the root module is HEAD itself, where everything can be
// built and tested.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	"golang.org/x/mod/zip"
)

// modules are the directories of the modules that are released. Others, such as bench, need BPF
// programs that are compiled only by make.
var modules = []string{".", "capture", "metrics", "ship", "ship/kafka", "cmd/ringbuf"}

// inCheckoutOnly are directories of packages that embed BPF programs, which are not committed.
// In a module's zip these packages do not work. They are built in a checkout. Internal packages
// are built as far as other packages import them.
var inCheckoutOnly = []string{"examples", "selftest", "internal"}

func main() {
	if len(os.Args) != 3 || os.Args[1] != "check" && os.Args[1] != "tag" {
		fmt.Fprintln(os.Stderr, "usage: release check|tag VERSION")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(command, version string) (err error) {
	if semver.Canonical(version) != version || semver.Major(version) > "v1" {
		return fmt.Errorf("%q is no version such as v0.1.0", version)
	}
	top, err := output(".", nil, "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if command == "check" { // its commit is temporary
		for _, who := range []string{"AUTHOR", "COMMITTER"} {
			os.Setenv("GIT_"+who+"_NAME", "release check")
			os.Setenv("GIT_"+who+"_EMAIL", "release-check@localhost")
		}
	}
	r, err := newRelease(top, version, dir)
	if err != nil {
		return err
	}
	if err := r.check(); err != nil || command == "check" {
		return err
	}
	return r.tag()
}

// A release is the release of all modules with one version.
type release struct {
	top     string // of the repository
	version string
	dir     string // for temporary files
	modules []string
	root    string // path of the root module
	commit  string // a commit with the go.mod files that users get
	env     []string
}

func newRelease(top, version, dir string) (*release, error) {
	r := &release{top: top, version: version, dir: dir, modules: modules}
	changes, err := r.show("CHANGELOG.md")
	if err != nil {
		return nil, err
	}
	if !strings.Contains("\n"+changes, "\n## "+version+" ") {
		return nil, fmt.Errorf("CHANGELOG.md has no section %s", version)
	}
	status, err := output(top, nil, "git", "status", "--porcelain", "--untracked-files=no")
	if err != nil {
		return nil, err
	}
	if status != "" {
		fmt.Fprintf(os.Stderr, "warning: this is not committed, and so not released:\n%s\n", status)
	}
	text, err := r.show("go.mod")
	if err != nil {
		return nil, err
	}
	r.root = modfile.ModulePath([]byte(text))
	proxies, err := output(top, nil, "go", "env", "GOPROXY")
	if err != nil {
		return nil, err
	}
	cache, err := output(top, nil, "go", "env", "GOMODCACHE")
	if err != nil {
		return nil, err
	}
	// Modules that were downloaded before are taken from the cache. Nothing is kept, because
	// another release of this version may differ.
	r.env = []string{
		"GOPROXY=file://" + r.proxy() + ",file://" + cache + "/cache/download," + proxies,
		"GOMODCACHE=" + filepath.Join(dir, "modules"),
		"GONOSUMDB=" + r.root,
		"GOPRIVATE=", "GONOPROXY=",
		"GOVCS=" + r.root + ":off", // keep go from fetching a version from elsewhere
		"GOFLAGS=-modcacherw -trimpath",
		"GOWORK=off",
		"GOBIN=" + filepath.Join(dir, "bin"),
	}
	return r, nil
}

func (r *release) proxy() string { return filepath.Join(r.dir, "proxy") }

// path returns the module path of a directory of the repository.
func (r *release) path(module string) string { return path.Join(r.root, module) }

// show returns a file as committed at HEAD.
func (r *release) show(name string) (string, error) {
	return output(r.top, nil, "git", "show", "HEAD:"+name)
}

// released reports whether modulePath is a module of this release.
func (r *release) released(modulePath string) bool {
	return slices.ContainsFunc(r.modules, func(m string) bool { return r.path(m) == modulePath })
}

// goMod returns the go.mod file that users get. It drops the lines that replace siblings. Other
// replace lines are an error, because a checkout needs none.
func (r *release) goMod(module string) ([]byte, error) {
	name := path.Join(module, "go.mod")
	text, err := r.show(name)
	if err != nil {
		return nil, err
	}
	file, err := modfile.Parse(name, []byte(text+"\n"), nil)
	if err != nil {
		return nil, err
	}
	for _, replace := range slices.Clone(file.Replace) {
		if r.released(replace.Old.Path) && replace.New.Version == "" {
			if err := file.DropReplace(replace.Old.Path, replace.Old.Version); err != nil {
				return nil, err
			}
		}
	}
	for _, require := range file.Require {
		if r.released(require.Mod.Path) && require.Mod.Version == "v0.0.0" {
			if err := file.AddRequire(require.Mod.Path, r.version); err != nil {
				return nil, err
			}
		}
	}
	file.Cleanup()
	if got := file.Module.Mod.Path; got != r.path(module) {
		return nil, fmt.Errorf("%s: the module is %s, want %s", name, got, r.path(module))
	}
	if len(file.Replace)+len(file.Exclude) > 0 {
		return nil, fmt.Errorf("%s has a replace or exclude line that users would not have", name)
	}
	return file.Format()
}

// makeCommit creates the commit, on no branch, with an index of its own.
func (r *release) makeCommit() error {
	env := []string{"GIT_INDEX_FILE=" + filepath.Join(r.dir, "index")}
	if _, err := output(r.top, env, "git", "read-tree", "HEAD"); err != nil {
		return err
	}
	for _, module := range r.modules {
		text, err := r.goMod(module)
		if err != nil {
			return err
		}
		file := filepath.Join(r.dir, "go.mod")
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
		blob, err := output(r.top, nil, "git", "hash-object", "-w", file)
		if err != nil {
			return err
		}
		_, err = output(r.top, env, "git", "update-index", "--cacheinfo",
			"100644,"+blob+","+path.Join(module, "go.mod"))
		if err != nil {
			return err
		}
	}
	tree, err := output(r.top, env, "git", "write-tree")
	if err != nil {
		return err
	}
	r.commit, err = output(r.top, nil, "git", "commit-tree", tree, "-p", "HEAD", "-m",
		"Require "+r.version+" in nested modules\n\nThis is what users of "+r.version+" get.")
	return err
}

// publish writes the module's files in the layout of a module proxy.
func (r *release) publish(dir string) error {
	version := module.Version{Path: r.path(dir), Version: r.version}
	escaped, err := module.EscapePath(version.Path)
	if err != nil {
		return err
	}
	base := filepath.Join(r.proxy(), escaped, "@v")
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	subdir := strings.TrimPrefix(dir, ".")
	var archive bytes.Buffer
	if err := zip.CreateFromVCS(&archive, version, r.top, r.commit, subdir); err != nil {
		return err
	}
	mod, err := output(r.top, nil, "git", "show", r.commit+":"+path.Join(dir, "go.mod"))
	if err != nil {
		return err
	}
	seconds, err := output(r.top, nil, "git", "log", "-1", "--format=%cI", r.commit)
	if err != nil {
		return err
	}
	date, err := time.Parse(time.RFC3339, seconds)
	if err != nil {
		return err
	}
	info, err := json.Marshal(struct {
		Version string
		Time    time.Time
	}{r.version, date.UTC()})
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"list": []byte(r.version + "\n"), r.version + ".info": info,
		r.version + ".mod": []byte(mod + "\n"), r.version + ".zip": archive.Bytes(),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(base, name), content, 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("%s@%s: %d KiB\n", version.Path, r.version, archive.Len()>>10)
	return nil
}

// check builds every module as a user does who requires only that module.
func (r *release) check() error {
	if err := r.makeCommit(); err != nil {
		return err
	}
	for _, module := range r.modules {
		if err := r.publish(module); err != nil {
			return err
		}
	}
	for _, module := range r.modules {
		if err := r.use(module); err != nil {
			return fmt.Errorf("a user of %s@%s: %w", r.path(module), r.version, err)
		}
	}
	return nil
}

func isInCheckoutOnly(pkg string) bool {
	return slices.ContainsFunc(strings.Split(pkg, "/"), func(element string) bool {
		return slices.Contains(inCheckoutOnly, element)
	})
}

// use creates a user's module with one program that imports all importable packages of the
// module. It also installs the programs of the module.
func (r *release) use(module string) error {
	modulePath := r.path(module)
	user := filepath.Join(r.dir, "users", module, "user")
	if err := os.MkdirAll(user, 0o755); err != nil {
		return err
	}
	goMod := "module example.com/user\n\ngo 1.24\n\nrequire " + modulePath + " " + r.version + "\n"
	if err := os.WriteFile(filepath.Join(user, "go.mod"), []byte(goMod), 0o644); err != nil {
		return err
	}
	// With -e, because some packages are only in checkouts. Errors of the others are reported
	// by go build.
	env := append(slices.Clone(r.env), "GOFLAGS=-mod=mod -modcacherw -trimpath")
	list, err := output(user, env, "go", "list", "-e", "-f", "{{.Name}} {{.ImportPath}}",
		modulePath+"/...")
	if err != nil {
		return err
	}
	program := "package main\n\n"
	var programs []string
	count := 0
	for _, line := range strings.Split(list, "\n") {
		name, pkg, ok := strings.Cut(line, " ")
		if !ok || isInCheckoutOnly(strings.TrimPrefix(pkg, modulePath)) {
			continue
		}
		count++
		if name == "main" {
			programs = append(programs, pkg)
		} else {
			program += fmt.Sprintf("import _ %q\n", pkg)
		}
	}
	if count == 0 {
		return errors.New("there are no packages")
	}
	program += "\nfunc main() {}\n"
	if err := os.WriteFile(filepath.Join(user, "main.go"), []byte(program), 0o644); err != nil {
		return err
	}
	steps := [][]string{{"mod", "tidy"}, {"build", "-o", os.DevNull, "."}}
	if len(programs) == count {
		steps = nil // there is nothing to import
	}
	for _, program := range programs {
		steps = append(steps, []string{"install", program + "@" + r.version})
	}
	for _, step := range steps {
		if _, err := output(user, r.env, "go", step...); err != nil {
			return err
		}
		fmt.Printf("%s: go %s\n", modulePath, strings.Join(step, " "))
	}
	return nil
}

// tag creates the tags, and prints how to publish them.
func (r *release) tag() error {
	if status, err := output(r.top, nil, "git", "status", "--porcelain"); err != nil {
		return err
	} else if status != "" {
		return fmt.Errorf("commit or remove this first:\n%s", status)
	}
	var tags []string
	for _, module := range r.modules {
		tag, commit := path.Join(module, r.version), r.commit
		if module == "." {
			commit = "HEAD"
		}
		if _, err := output(r.top, nil, "git", "tag", "-a", "-m", tag, tag, commit); err != nil {
			return err
		}
		tags = append(tags, tag)
	}
	fmt.Printf("tagged; to publish: git push --atomic origin %s\n", strings.Join(tags, " "))
	return nil
}

// output runs a command and returns its output, without the last newline.
func output(dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}
