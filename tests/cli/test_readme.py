"""Every command and the Python example of the README, run as they stand there, on a trained checkpoint."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def workplace(checkpoint: Path, tmp_path: Path) -> Path:
    """A directory with what the README's examples name: my_checkpoint, my_images, cat.jpg."""
    from pocketvit.data import open_data

    shutil.copytree(checkpoint, tmp_path / "my_checkpoint")
    digits = open_data("digits", "all")
    for i in range(300):
        picture, target = digits[i]
        (tmp_path / "my_images" / digits.labels[target]).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "my_images" / digits.labels[target] / f"{i}.png")
    digits[0][0].save(tmp_path / "cat.jpg")
    return tmp_path


def test_the_commands_of_the_readme(cli, workplace: Path) -> None:
    sections = README.split("## Use it on your own model")[1]
    blocks = [block for block in sections.split("```")[1::2] if block.startswith("\npocketvit")]
    commands = [line.partition(" # ")[0] for block in blocks for line in block.strip().splitlines()]
    assert len(commands) >= 11
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "pocketvit"
        cli(*words[1:])


def test_the_commands_and_the_python_of_the_core_ml_walk_through(
    cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/coreml.md: what stands in fences is run as it stands, in order; its other lines show output."""
    import numpy as np

    text = (Path(__file__).parents[2] / "docs" / "coreml.md").read_text()
    fenced = text.split("```")[1::2]
    commands = [line for block in fenced if block.startswith("\n") for line in block.strip().splitlines()]
    assert [shlex.split(command)[1] for command in commands] == ["export", "verify", "eval", "audit", "audit", "audit"]
    for command in commands:
        cli(*shlex.split(command)[1:])
    assert (workplace / "audit.html").stat().st_size > 5000
    monkeypatch.chdir(workplace)
    (code,) = [block.removeprefix("python\n") for block in fenced if block.startswith("python")]
    scope: dict[str, object] = {"image": np.full((1, 3, 32, 32), 0.5, np.float32)}
    exec(code, scope)
    assert np.isfinite(scope["logits"]).all()


def test_the_python_example_of_the_readme(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    block = re.search(r"```python\n(.*?)```", README, re.S)
    assert block
    printed: list[object] = []
    exec(block.group(1), {"print": lambda *values: printed.extend(values)})
    assert str(printed[0]).startswith("ok")
    assert 0 < float(str(printed[-1])) <= 1


def test_the_readme_leads_with_the_two_commands_and_names_recipes_that_exist() -> None:
    first = README.index("```")
    assert README.index("make demo") > first
    assert README.index("make test") < README.index("## ")
    root = Path(__file__).parents[2]
    for path in set(re.findall(r"(?:recipes|docs)/[\w/]+\.(?:yaml|md)", README)):
        assert (root / path).is_file(), path
    assert not re.search(r"\b[A-Z]+_TABLE\b", README)
