"""What an installation gives: the whole package, from any folder."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_clone_called_nopr_beside_a_script_does_not_hide_the_package(tmp_path):
    (tmp_path / "nopr").symlink_to(ROOT)
    (tmp_path / "script.py").write_text("import nopr\nprint(nopr.__version__, nopr.trees.__name__)")
    words = [sys.executable, "script.py"]
    ran = subprocess.run(words, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert ran.stdout.endswith("nopr.trees\n"), ran.stderr
