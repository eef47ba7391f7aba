package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// repository has a library, a nested library and a nested program, all in order. It needs
// nothing from elsewhere.
var repository = map[string]string{
	"CHANGELOG.md": "# Changelog\n\n## v0.1.0 - 2026-11-28\n",
	".gitignore":   "*.o\n",
	"go.mod":       "module example.com/lib\n\ngo 1.24\n",
	"lib.go":       "package lib\n",
	"internal/tested/tested.go": "package tested\n\nimport _ \"embed\"\n\n//go:embed a.o\n" +
		"var object []byte\n",
	"sub/go.mod": "module example.com/lib/sub\n\ngo 1.24\n\nrequire example.com/lib v0.0.0\n\n" +
		"replace example.com/lib => ../\n",
	"sub/sub.go": "package sub\n\nimport _ \"example.com/lib\"\n",
	"cmd/go.mod": "module example.com/lib/cmd\n\ngo 1.24\n\nrequire (\n\texample.com/lib v0.0.0\n" +
		"\texample.com/lib/sub v0.0.0\n)\n\nreplace example.com/lib => ../\n\n" +
		"replace example.com/lib/sub => ../sub\n",
	"cmd/main.go": "package main\n\nimport _ \"example.com/lib/sub\"\n\nfunc main() {}\n",
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := output(dir, nil, "git", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// newTestRelease commits the repository with changes, and returns its release.
func newTestRelease(t *testing.T, changes map[string]string) (*release, error) {
	t.Helper()
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		t.Setenv("GIT_"+who+"_NAME", "a")
		t.Setenv("GIT_"+who+"_EMAIL", "a@example.com")
	}
	t.Setenv("GOPROXY", "off")
	top := t.TempDir()
	files := maps.Clone(repository)
	maps.Copy(files, changes)
	for name, text := range files {
		if text == "" {
			continue
		}
		name = filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git(t, top, "init", "--quiet")
	git(t, top, "add", ".")
	git(t, top, "commit", "--quiet", "-m", "all")
	r, err := newRelease(top, "v0.1.0", t.TempDir())
	if r != nil {
		r.modules = []string{".", "sub", "cmd"}
	}
	return r, err
}

func TestWhatIsInOrderIsTagged(t *testing.T) {
	r, err := newTestRelease(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.check(); err != nil {
		t.Fatal(err)
	}
	if tags := git(t, r.top, "tag"); tags != "" {
		t.Errorf("check made the tags %q", tags)
	}
	if err := r.tag(); err != nil {
		t.Fatal(err)
	}
	tags := strings.Fields(git(t, r.top, "tag"))
	if want := []string{"cmd/v0.1.0", "sub/v0.1.0", "v0.1.0"}; !slices.Equal(tags, want) {
		t.Errorf("the tags are %q, want %q", tags, want)
	}
	head := git(t, r.top, "rev-parse", "HEAD")
	if got := git(t, r.top, "rev-parse", "v0.1.0^{}"); got != head {
		t.Errorf("v0.1.0 is %s, HEAD is %s", got, head)
	}
	const want = "module example.com/lib/cmd\n\ngo 1.24\n\nrequire (\n\texample.com/lib v0.1.0\n" +
		"\texample.com/lib/sub v0.1.0\n)"
	if got := git(t, r.top, "show", "cmd/v0.1.0:cmd/go.mod"); got != want {
		t.Errorf("the go.mod of a tag is\n%s\nwant\n%s", got, want)
	}
}

func TestWhatUsersCannotBuildIsNotReleased(t *testing.T) {
	const embed = "import _ \"embed\"\n\n//go:embed a.o\nvar object []byte\n"
	for name, test := range map[string]struct {
		changes map[string]string
		want    string
	}{
		"no changes are told": {
			map[string]string{"CHANGELOG.md": "# Changelog\n\n## v0.1.0-rc.1 - 2026-11-28\n"},
			"CHANGELOG.md has no section v0.1.0",
		},
		"a replace line": {
			map[string]string{"cmd/go.mod": repository["cmd/go.mod"] +
				"\nreplace example.com/other => example.com/fork v1.0.0\n"},
			"cmd/go.mod has a replace or exclude line",
		},
		"a sibling that is not released": {
			map[string]string{
				"sub/go.mod": repository["sub/go.mod"] +
					"\nrequire example.com/lib/x v0.0.0\n\nreplace example.com/lib/x => ../x\n",
				"x/go.mod": "module example.com/lib/x\n\ngo 1.24\n",
			},
			"sub/go.mod has a replace or exclude line",
		},
		"a version of a sibling that does not exist": {
			map[string]string{
				"sub/go.mod": strings.Replace(repository["sub/go.mod"], "v0.0.0", "v0.0.9", 1),
			},
			"downloading example.com/lib v0.0.9",
		},
		"a version of another that does not exist": {
			map[string]string{"go.mod": repository["go.mod"] + "\nrequire example.com/other v1.0.0\n",
				"lib.go": "package lib\n\nimport _ \"example.com/other\"\n"},
			"downloading example.com/other v1.0.0",
		},
		"a package without its module": {
			map[string]string{"lib.go": "package lib\n\nimport _ \"example.com/other\"\n"},
			"example.com/other",
		},
		"a library that embeds what is not committed": {
			map[string]string{"sub/sub.go": "package sub\n\n" + embed, "sub/a.o": "compiled"},
			"pattern a.o: no matching files found",
		},
		"a program that imports what embeds": {
			map[string]string{
				"cmd/main.go": "package main\n\nimport _ \"example.com/lib/cmd/internal/x\"\n\n" +
					"func main() {}\n",
				"cmd/internal/x/x.go": "package x\n\n" + embed, "cmd/internal/x/a.o": "compiled",
			},
			"pattern a.o: no matching files found",
		},
		"a file that is not committed": {
			map[string]string{"lib.go": "package lib\n\nvar _ = other\n",
				".gitignore": "/other.go\n", "other.go": "package lib\n\nvar other int\n"},
			"undefined: other",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := newTestRelease(t, test.changes)
			if err == nil {
				err = r.check()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, want %q", err, test.want)
			}
		})
	}
}
