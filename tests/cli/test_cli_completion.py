"""Completion in a shell: it is installed where the shell looks, and offers what there is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from softtrunc.cli.options import offer_recipes, offering
from softtrunc.recipes import recipe_names

FOLDERS = ["folder-256", "folder-32", "folder-64"]


def test_names_are_offered_by_what_was_typed():
    assert offering("heun", "ode")("") == ["heun", "ode"]
    assert offering("heun", "ode")("o") == ["ode"]
    assert offer_recipes("folder-") == FOLDERS
    assert offer_recipes("") == recipe_names()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_once_it_is_installed(tmp_path):
    """The command installs its script, and bash runs that as the tab key would."""
    command = tmp_path / "softtrunc"
    lines = [f"#!{sys.executable}", "import sys", "from softtrunc.cli import main"]
    command.write_text("\n".join([*lines, "sys.exit(main())", ""]))
    command.chmod(0o755)
    typed = (
        "./softtrunc --install-completion >&2 && source ~/.bashrc\n"
        "COMP_WORDS=(softtrunc train folder-); COMP_CWORD=2; _softtrunc_completion ./softtrunc\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", typed],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert sorted(done.stdout.split()) == FOLDERS, done.stderr
