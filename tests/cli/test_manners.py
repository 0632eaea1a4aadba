"""How the command line behaves before and beside its work: speed, exit codes, sentences, broken installations."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

COMMANDS = (
    "demo run models choose info classify convert-moat train export verify eval bench compare report doctor".split()
)


def test_help_names_every_command(cli) -> None:
    out = cli("--help").out
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(cli, command: str) -> None:
    out = cli(command, "--help").out
    assert f"Example: pocketvit {command}" in " ".join(out.replace("│", " ").split())
    assert "--json" in out


def test_version(cli) -> None:
    from pocketvit import __version__

    assert cli("--version").out == f"pocketvit {__version__}\n"


@pytest.mark.parametrize("command", ["--help", "--version", "doctor"])
def test_help_version_and_doctor_do_not_need_a_working_torch(shell, tmp_path: Path, command: str) -> None:
    for name in ("torch", "torchvision", "timm"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text("raise OSError('libtorch.so: file too short')")
    found = shell(command, env={"PYTHONPATH": str(tmp_path / "broken")}, code=1 if command == "doctor" else 0)
    if command == "doctor":
        words = " ".join(found.out.split())
        assert "cannot be imported: OSError: libtorch.so: file too short" in words
        assert "fix: pip install" in words


def test_a_command_that_needs_a_broken_torch_says_so(shell, tmp_path: Path) -> None:
    (tmp_path / "broken" / "timm").mkdir(parents=True)
    (tmp_path / "broken" / "timm" / "__init__.py").write_text("raise ImportError('no', name='timm')")
    found = shell("info", "test_vit", env={"PYTHONPATH": str(tmp_path / "broken")}, code=2)
    assert "timm cannot be imported" in found.err
    assert "pocketvit doctor" in found.err


def test_doctor_diagnoses_a_torchvision_built_for_another_torch(shell, tmp_path: Path) -> None:
    info = tmp_path / "fake" / "torchvision-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.0\nRequires-Dist: torch==1.0\n"
    )
    found = shell("doctor", "--json", env={"PYTHONPATH": str(tmp_path / "fake")}, code=1).json
    assert "torchvision 0.1.0 was built for torch 1.0, but torch is" in found["problems"][0]["problem"]
    assert "torchvision==0.1.0" in found["problems"][0]["fix"]


def test_doctor_lists_every_target_with_its_fix_when_something_is_missing() -> None:
    # a finder that hides one package from a fresh interpreter: the honest stand-in for not having installed it
    code = textwrap.dedent("""
        import importlib.metadata, importlib.util, sys
        find, version = importlib.util.find_spec, importlib.metadata.version
        def hidden(name, *a):
            return None if name == "openvino" else find(name, *a)
        def unversioned(name):
            if name == "openvino":
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)
        importlib.util.find_spec, importlib.metadata.version = hidden, unversioned
        from pocketvit.cli import main
        sys.argv = ["pocketvit", "doctor"]
        main()
    """)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    from pocketvit.targets import TARGETS

    assert all(name in out for name in TARGETS)
    assert "missing openvino" in out
    assert "pip install 'pocketvit[openvino]'" in " ".join(out.split())


def test_a_command_line_that_cannot_be_parsed_gives_json_too(shell) -> None:
    assert "Missing argument" in shell("info", "--json", code=2).json["error"]
    assert "No such option" in shell("info", "test_vit", "--jsn", "--json", code=2).json["error"]


def test_a_misspelt_command_is_corrected(cli) -> None:
    assert "Did you mean 'export'" in cli("exprt", code=2).err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("info deit_tny_patch16_224", "Did you mean deit_tiny_patch16_224"),
        ("models nothing_like_this", "No model matches"),
        ("export test_vit --to onx", "no target called 'onx'. Did you mean onnx"),
        ("export test_vit --to onnx:w8a9", "no precision 'w8a9'. Did you mean w8a8"),
        ("export test_vit --to coreml:w8a8-dynamic", "coreml does not make w8a8-dynamic; it makes"),
        ("export test_vit --to onnx -o model.xml", "should end in .onnx"),
        ("export test_vit --to onnx --to openvino -o a.onnx", "--output names one file"),
        ("export test_vit --to onnx --data folder:nowhere", "nowhere"),
        ("eval test_vit --data digits", "1000 classes but digits (test) has 10"),
        ("eval test_vit --data digts", "Did you mean digits"),
        ("eval nowhere.onnx --data digits", "nowhere.onnx"),
        ("verify nowhere.onnx --against test_vit", "nowhere.onnx"),
        ("classify nowhere.png --model test_vit", "nowhere.png"),
        ("run nowhere.yaml", "There is no recipe nowhere.yaml"),
        ("run digit", "Did you mean digits"),
        ("report nowhere", "no run directory nowhere"),
        ("train test_vit --data digits --out a --set epoch=3", "Did you mean epochs"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(cli, tmp_path: Path, arguments: str, words: str) -> None:
    found = cli(*arguments.split(), "--json", code=2)
    sentence = found.json["error"]
    assert words in sentence
    assert found.err.startswith(f"Error: {sentence}")
    assert "Traceback" not in found.err
    left = {p.name for p in tmp_path.iterdir()} - {"cache"}
    assert not left, f"left behind: {left}"


def test_help_is_quick(shell) -> None:
    """Not a benchmark: four times the promised half second means that something heavy is imported again.

    Time of the CPU, as other tests run beside this one.
    """
    before = os.times()
    shell("--help")
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 2, f"{seconds:.1f} s"
