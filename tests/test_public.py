"""What the package promises: published names, floors of import, README and documentation."""

import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

import mobilenets
from mobilenets import tasks
from mobilenets.cli.main import app, run
from mobilenets.training.task import Task

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language):
    """Code blocks of the README and the documentation, with the page they stand on."""
    return [
        pytest.param(code, id=f"{page.stem}-{code[:24]!r}")
        for page in PAGES
        for code in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]


@cache
def help_of(*verb):
    with redirect_stdout(StringIO()) as said:
        assert run([*verb, "--help"]) == 0
    return said.getvalue()


def test_published_names_exist_and_are_all():
    assert mobilenets.__all__ == sorted(mobilenets.__all__, key=str)
    assert dir(mobilenets) == mobilenets.__all__
    for name in mobilenets.__all__:
        assert getattr(mobilenets, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mobilenets.nothing  # noqa: B018


def test_importing_the_package_imports_no_torch():
    code = "import sys, mobilenets, mobilenets.tasks; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("code", blocks("python"))
def test_python_in_the_documentation_runs(code, digits_run, tmp_path, monkeypatch):
    from PIL import Image

    shutil.copytree(digits_run, tmp_path / "runs" / "demo")
    Image.new("L", (8, 8)).save(tmp_path / "runs" / "demo" / "digit.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "documentation", "exec"), {})


@pytest.mark.parametrize("code", blocks("console"))
def test_console_commands_in_the_documentation_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for line in code.splitlines():
        prompt, program, *arguments = shlex.split(line)
        assert (prompt, program) == ("$", "mobilenets")
        assert run(arguments) == 0, line
    assert capsys.readouterr().out


@pytest.mark.parametrize("code", blocks("bash"))
def test_other_commands_in_the_documentation_are_real(code):
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert words[1] in targets
        if words[:1] == ["mobilenets"]:
            assert words[1] in verbs | groups
            verb = words[1:3] if words[1] == "weights" else words[1:2]
            known = help_of(*verb)
            for word in words[2:]:
                if word.startswith("--"):
                    assert word in known, line


def test_every_verb_writes_json():
    groups = [group.typer_instance for group in app.registered_groups]
    for command in (c for verbs in (app, *groups) for c in verbs.registered_commands):
        assert "as_json" in command.callback.__annotations__, command.callback


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_keeps_the_contract(name):
    task = tasks.find(name)
    assert issubclass(task, Task)
    assert task.name == name
    assert not getattr(task, "__abstractmethods__", None)
    assert (ROOT / "docs" / "tasks" / f"{name}.md").is_file()
    page = (ROOT / "docs" / "tasks" / f"{name}.md").read_text()
    for recipe_name, recipe in task.recipes().items():
        assert recipe.name == recipe_name
        assert f"`{recipe_name}`" in page


def test_a_task_that_is_not_there_names_the_nearest():
    with pytest.raises(ValueError, match="nearest: classification"):
        tasks.find("classify")
