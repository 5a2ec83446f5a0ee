"""Go's text/template as Ollama runs it: system texts joined, messages of one role merged."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_PROGRAM = """package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var tasks []struct {
		Template string
		Messages []message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&tasks); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, task := range tasks {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(task.Template))
		var system []string
		var merged []*message
		for _, m := range task.Messages {
			if m.Role == "system" {
				system = append(system, m.Content)
			}
			if n := len(merged); n > 0 && merged[n-1].Role == m.Role {
				merged[n-1].Content += "\\n\\n" + m.Content
			} else {
				merged = append(merged, &message{m.Role, m.Content})
			}
		}
		var text strings.Builder
		values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": merged}
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""

Messages = list[dict[str, str]]


def has_go() -> bool:
    return shutil.which("go") is not None


def write_by_go(tasks: Sequence[tuple[str, Messages]], folder: Path) -> list[str]:
    """What each template writes for its messages."""
    program = folder / "main.go"
    program.write_text(_PROGRAM)
    given = json.dumps([{"Template": source, "Messages": said} for source, said in tasks])
    ended = subprocess.run(
        ["go", "run", str(program)], input=given, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
