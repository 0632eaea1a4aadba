"""`pocketvit audit --for fp16`: a file of ours that overflows, audited, repaired and used again; files of others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pocketvit.artifacts import export
from pocketvit.models import create, save
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.targets.coreml.seal import SEAL_KEY

SMALL = {"patch_size": 8, "embed_dim": 96, "depth": 1, "num_heads": 6}


@pytest.fixture(scope="session")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp16 package of ours whose residual stream is hundreds wide: its norms' squares do not fit."""
    torch.manual_seed(0)
    model = create("pocket_deit_patch4_32", num_classes=10, **SMALL)
    with torch.no_grad():
        model.module.patch_embed.proj.weight *= 200
        model.module.pos_embed *= 100
        for block in model.module.blocks:
            block.attn.proj.weight *= 100
            block.mlp.fc2.weight *= 100
    path = tmp_path_factory.mktemp("fp16") / "overflowing.mlpackage"
    save(model, path.parent / "loud")
    export(create(str(path.parent / "loud")), "coreml", path, "fp16")
    return path


def test_audit_repair_and_use(overflowing, cli, tmp_path):
    found = cli(
        *("audit", overflowing, "--for", "fp16", "--data", "photos", "--images", 4),
        *("--repair", "--out", "new.mlpackage", "--json"),
    ).json
    audit = found["audit"]
    assert (found["for"], audit["headroom"]["evidence"]) == ("fp16", "interpreted")
    states = [op["state"] for op in audit["headroom"]["ops"]]
    assert states.count("overflows") == 3, "each norm"
    assert audit["headroom"]["images"] == 4

    pessimistic = {row["arithmetic"]: row for row in audit["before"]}["fp16"]
    assert pessimistic["error"] > 0.1, "norms whose squares overflow give zeros"
    for row in audit["after"]:
        # some 30 roundings of 2^-11 one after another
        assert row["same_class"] == row["images"] == row["finite"] == 4
        assert row["error"] < 30 * 2.0**-11, row
    repaired = audit["repaired"]
    assert [change["rewrite"] for change in repaired["changes"]] == ["scaled norm"] * 3
    assert repaired["refusals"] == []
    assert repaired["error"] <= 1e-5
    assert "overflows" not in {op["state"] for op in repaired["after"]["ops"]}

    # what the file says about itself survives, and it is sealed anew
    old, new = read_artifact(overflowing), read_artifact(tmp_path / "new.mlpackage")
    assert new.to_json() == old.to_json()
    assert TARGETS.get("coreml").load(new, 1).spec == old.spec
    proven = cli("verify", "new.mlpackage", "--against", overflowing.parent / "loud", "--json").json
    assert "the converted file but for 3 rewrites" in proven["proof"]
    again = cli("audit", "new.mlpackage", "--for", "fp16", "--images", 4)
    assert "all within fp16" in again.out


def test_a_person_reads_the_findings(overflowing, cli):
    printed = cli("audit", overflowing, "--for", "fp16", "--images", 2).out
    assert "overflowing.mlpackage in fp16, on photos; interpreted" in printed
    assert "3 overflows" in printed
    assert "its sum of squares reaches" in " ".join(printed.split())
    assert "same class on" in printed


def test_a_package_of_others_is_fed_pictures(cli, tmp_path):
    import coremltools as ct
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 8, 8))], opset_version=ct.target.iOS16)
    def program(picture):
        return mb.reduce_sum(x=mb.mul(x=picture, y=np.float32(400)), axes=[2, 3], name="sums")

    ct.convert(
        program,
        convert_to="mlprogram",
        inputs=[ct.ImageType(name="picture", shape=(1, 3, 8, 8), color_layout=ct.colorlayout.BGR)],
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    ).save(str(tmp_path / "theirs.mlpackage"))
    found = cli(
        "audit",
        "theirs.mlpackage",
        "--for",
        "fp16",
        "--images",
        2,
        "--repair",
        "--out",
        "n.mlpackage",
        "--json",
        code=1,
    )
    ops = {op["kind"]: op for op in found.json["audit"]["headroom"]["ops"]}
    assert 0.5 < ops["mul"]["result"]["worst"] * 65504 / 400 / 255 <= 1, "pixels from 0 to 255"
    # a sum that is too large is the program's own result: named, and nothing written
    repaired = found.json["audit"]["repaired"]
    assert repaired["path"] is None
    assert any("no rewrite" in r["reason"] or "own scale" in r["reason"] for r in repaired["refusals"])
    assert not (tmp_path / "n.mlpackage").exists()


def test_an_array_of_others_needs_its_mean_and_std(cli, tmp_path):
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 8, 8))], opset_version=ct.target.iOS16)
    def program(picture):
        return mb.reduce_sum(x=mb.relu(x=picture), axes=[2, 3], name="sums")

    ct.convert(program, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(
        str(tmp_path / "theirs.mlpackage")
    )
    call = ["audit", "theirs.mlpackage", "--for", "fp16", "--images", 2]
    assert "give --mean and --std" in cli(*call, code=2).err
    found = cli(*call, "--mean", "0,0,0", "--std", "0.01,0.01,0.01", "--json").json
    (relu,) = [op for op in found["audit"]["headroom"]["ops"] if op["kind"] == "relu"]
    largest = relu["result"]["worst"] * 65504
    assert 50 < largest <= 100.1, f"RGB in [0, 1] over 0.01 reaches {largest}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["deit_tiny_patch16_224", "--for", "fp16"], "is a model; export it to coreml"),
        (["gone.mlpackage", "--for", "fp16"], "There is no gone.mlpackage"),
        (["x.mlpackage", "--for", "fp16", "--repair"], "--repair and --out NEW.mlpackage go together"),
        (["x.mlpackage", "--for", "fp16", "--out", "n.mlpackage"], "--repair and --out NEW.mlpackage go together"),
        (["x.mlpackage", "--for", "fp16", "--repair", "--out", "n.onnx"], "should end in .mlpackage"),
        (
            ["x.mlpackage", "--for", "fp16", "--sweep"],
            "--sweep is no option of an audit for fp16; it belongs to --for ane.",
        ),
        (["x.mlpackage", "--for", "fp16", "--html", "p.html"], "--html is no option of an audit for fp16"),
        (["x.mlpackage", "--data", "digits"], "--data is no option of an audit for ane; it belongs to --for fp16."),
        (["x.mlpackage", "--mean", "0,0,0"], "--mean is no option of an audit for ane; it belongs to --for fp16."),
        (["x.mlpackage", "--for", "fp16", "--mean", "0,0,0"], "--mean needs --std"),
        (["x.mlpackage", "--repair"], "--repair is no option of an audit for ane"),
    ],
)
def test_bad_requests_are_refused_before_work(arguments, sentence, cli):
    assert sentence in cli("audit", *arguments, code=2).err


def test_an_edited_file_of_ours_is_refused(overflowing, cli, tmp_path):
    from pocketvit.targets.coreml.package import read_package

    edited = shutil.copytree(overflowing, tmp_path / "edited.mlpackage")
    package = read_package(edited)
    assert SEAL_KEY in package.spec.description.metadata.userDefined
    package.spec.description.metadata.shortDescription = "better than it is"
    package.model.write_bytes(package.spec.SerializeToString())
    refused = cli("audit", edited, "--for", "fp16", "--images", 2, "--repair", "--out", "new.mlpackage", code=2)
    assert "was damaged or edited" in refused.err
    assert not (tmp_path / "new.mlpackage").exists()
