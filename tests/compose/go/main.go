// Reads docker-compose.yml and Dockerfile with the libraries that Docker itself reads them with, and writes what they
// mean as JSON: defaults filled in, variables put in, anchors and short forms written out.
//
//	compose file [-profile NAME]... FILE...   variables come from the environment alone; no .env is read
//	compose dockerfile FILE
//	compose context FOLDER
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: compose file [-profile NAME]... FILE... | compose dockerfile FILE | compose context FOLDER"))
	}
	read := map[string]func([]string) ([]byte, error){
		"file": composeFile, "dockerfile": dockerfile, "context": buildContext,
	}[os.Args[1]]
	if read == nil {
		fail(fmt.Errorf("no such command: %s", os.Args[1]))
	}
	out, err := read(os.Args[2:])
	if err != nil {
		fail(err)
	}
	fmt.Println(string(out))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

type names []string

func (n *names) String() string         { return strings.Join(*n, ",") }
func (n *names) Set(value string) error { *n = append(*n, value); return nil }

func composeFile(arguments []string) ([]byte, error) {
	var profiles names
	flags := flag.NewFlagSet("file", flag.ExitOnError)
	flags.Var(&profiles, "profile", "also the services of this profile")
	if err := flags.Parse(arguments); err != nil {
		return nil, err
	}
	options, err := cli.NewProjectOptions(flags.Args(), cli.WithOsEnv, cli.WithProfiles(profiles), cli.WithResolvedPaths(true))
	if err != nil {
		return nil, err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return nil, err
	}
	return project.MarshalJSON()
}

type instruction struct {
	Stage string   `json:"stage"`
	Name  string   `json:"name"`
	Text  string   `json:"text"`
	Words []string `json:"words"`
	Flags []string `json:"flags"`
	Line  int      `json:"line"`
}

type warning struct {
	Rule    string `json:"rule"`
	Message string `json:"message"`
}

func dockerfile(arguments []string) ([]byte, error) {
	text, err := os.ReadFile(arguments[0])
	if err != nil {
		return nil, err
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	warnings := []warning{}
	checks := linter.New(&linter.Config{
		Warn: func(rule, _, _, message string, _ []parser.Range) {
			warnings = append(warnings, warning{rule, message})
		},
	})
	// Checks every instruction and flag as a build does, before it runs anything.
	stages, _, err := instructions.Parse(parsed.AST, checks)
	if err != nil {
		return nil, err
	}
	for _, each := range parsed.Warnings {
		warnings = append(warnings, warning{"Parser", each.Short})
	}
	return json.Marshal(map[string]any{"stages": stagesOf(stages), "instructions": instructionsOf(parsed.AST), "warnings": warnings})
}

func stagesOf(stages []instructions.Stage) []map[string]any {
	found := []map[string]any{}
	for _, stage := range stages {
		found = append(found, map[string]any{"name": stage.Name, "base": stage.BaseName})
	}
	return found
}

func instructionsOf(root *parser.Node) []instruction {
	found := []instruction{}
	stage := ""
	for _, node := range root.Children {
		words := []string{}
		for word := node.Next; word != nil; word = word.Next {
			words = append(words, word.Value)
		}
		if strings.EqualFold(node.Value, "from") {
			stage = words[len(words)-1]
		}
		found = append(found, instruction{stage, strings.ToUpper(node.Value), strings.Join(words, " "), words, node.Flags, node.StartLine})
	}
	return found
}
