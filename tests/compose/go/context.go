package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// buildContext lists the files below a folder that a build would be sent, as its .dockerignore says.
func buildContext(arguments []string) ([]byte, error) {
	root := arguments[0]
	file, err := os.Open(filepath.Join(root, ".dockerignore"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	patterns, err := ignorefile.ReadAll(file)
	if err != nil {
		return nil, err
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	sent := []string{}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || entry.IsDir() {
			if strings.HasPrefix(entry.Name(), ".") && name != "." {
				return filepath.SkipDir // nothing hidden is let through by the file, and such folders are large
			}
			return err
		}
		ignored, err := matcher.MatchesOrParentMatches(name)
		if err == nil && !ignored {
			sent = append(sent, name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(sent)
}
