"""Every form of one small model, made and run for real; what cannot be made here is a row that says why."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from pocketvit.comparison import Comparison, compare, comparing, current, legacy
from pocketvit.comparison.subject import Form, Made, Step, Subject, TorchRunner
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.models import Model, create
from pocketvit.types import Precision

QUICK = tuple(form for form in current.FORMS if form.target == "torchao") + legacy.FORMS


def _settings() -> tuple[object, ...]:
    from torch._inductor import config

    return (
        torch.backends.quantized.engine,
        torch.get_num_threads(),
        config.freezing,
        config.compile_threads,
        config.coordinate_descent_tuning,
        os.environ.get("TORCHINDUCTOR_CACHE_DIR"),
        torch.is_inference_mode_enabled(),
    )


def _small() -> Model:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return create("vit_tiny_patch16_224", num_classes=10, **sizes)


@pytest.fixture(scope="module")
def model() -> Model:
    return _small()


@pytest.fixture(scope="module")
def compared(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    before = _settings()
    out = tmp_path_factory.mktemp("compared") / "out"
    found = compare(model, out, data="digits", images=20, rounds=3, threads=1, forms=QUICK)
    assert _settings() == before, "a setting of the whole process was not given back"
    return found


def _row(found: Comparison, target: str):
    return next(row for row in found.rows if row.target == target)


def test_every_form_has_a_row_and_the_eager_model_is_the_first(compared: Comparison) -> None:
    assert [row.target for row in compared.rows] == ["eager", *(form.target for form in QUICK)]
    assert compared.rows[0].check.startswith("reference")
    for row in compared.rows:
        assert row.check.startswith(("reference", "ok", "not run, unavailable here: ")), row
        assert (row.latency is None) == row.check.startswith("not run"), row


def test_what_runs_is_proven_scored_and_timed(compared: Comparison) -> None:
    ran = [row for row in compared.rows[1:] if row.latency]
    assert {"torchao", "torchscript"} <= {row.target for row in ran}
    for row in ran:
        assert row.agreement is not None
        assert row.agreement.images == 32
        assert row.agreement.sqnr_db >= Precision(row.precision).floor_db, f"{row.target}: {row.agreement}"
        assert row.accuracy is not None
        assert row.accuracy.images == 20
        assert row.latency is not None
        assert (row.latency.runs, row.latency.threads) == (3, 1)
        assert 0 < row.latency.p10_ms <= row.latency.median_ms <= row.latency.p90_ms


def test_eight_bits_differ_from_the_float_model_and_count_their_layers(compared: Comparison) -> None:
    for row in compared.rows:
        if row.precision != "fp32" and row.latency:
            assert row.agreement is not None
            assert row.agreement.sqnr_db < 60, f"{row.target} at {row.agreement.sqnr_db:.1f} dB cannot be 8-bit"
            # qkv, proj, fc1, fc2, head are linear; the patch embedding is a convolution
            assert row.quantized is not None
            assert (row.quantized.layers, row.quantized.of) == (5, 6), row


def test_files_lie_where_the_rows_say_and_8_bits_are_smaller(compared: Comparison) -> None:
    sizes = {}
    for row in compared.rows:
        assert (row.file is None) == (row.size_bytes is None)
        if row.file is not None:
            assert Path(row.file).stat().st_size == row.size_bytes
            sizes[row.target] = row.size_bytes
    script = sizes.pop("torchscript")
    assert sizes, "no int8 form of TorchScript ran"
    assert all(size < script for size in sizes.values()), (script, sizes)


def test_a_saved_form_gives_the_same_answers_when_another_process_would_load_it(
    compared: Comparison, model: Model
) -> None:
    from pocketvit.artifacts import proof_images
    from pocketvit.models import EagerRunner

    images = proof_images(model.spec, "digits", calibration=1, verification=8).verification
    module = torch.jit.load(_row(compared, "torchscript").file)
    again = TorchRunner(model, "again", 1, module)(images)
    expected = EagerRunner(model, 1)(images)
    assert abs(again - expected).max() < 1e-5, f"off by {abs(again - expected).max():.1e}"


def test_the_profile_is_of_the_form_it_stands_beside(compared: Comparison) -> None:
    profiles = dict(zip((row.target for row in compared.rows), compared.profiles, strict=True))
    for row in compared.rows:
        ops = profiles[row.target]
        assert (ops is None) == (row.latency is None), row.target
        if ops is not None:
            assert float(row.settings["self_cpu_ms"]) == pytest.approx(sum(op.ms for op in ops), abs=0.01)
            assert ("integer_products" in row.settings) == Precision(row.precision).is_quantized
    names = {op.op for op in profiles["torchao"] or ()}
    assert any("choose_qparams" in name for name in names), names
    assert not any("choose_qparams" in op.op or "quantized::" in op.op for op in profiles["eager"] or ())
    for target in ("torchscript-x86", "torchscript-qnnpack"):
        if profiles[target] is not None:
            assert "quantized::linear_dynamic" in {op.op for op in profiles[target] or ()}, target


def test_the_tutorials_qnnpack_model_runs_on_qnnpack_where_the_build_has_it(compared: Comparison) -> None:
    row = _row(compared, "torchscript-qnnpack")
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        assert "no engine qnnpack" in row.check
        return
    assert "quantize_dynamic on qnnpack, scripted" in row.settings["how"]
    other = _row(compared, "torchscript-x86")
    assert row.agreement is not None
    if other.agreement is not None:  # the two engines round differently
        assert row.agreement.sqnr_db != other.agreement.sqnr_db


def test_the_chart_is_an_image(compared: Comparison) -> None:
    with Image.open(compared.chart) as image:
        assert image.format == "PNG"
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert image.width > 1000
        assert (0x3B, 0x82, 0xF6) in {colour for _, colour in colours}, "no bar in the first colour"


def _form(make, target: str = "own") -> Form:
    return Form(target=target, precision=Precision.W8A8_DYNAMIC, step=Step.QUANTIZED, make=make)


def _compare_with(model: Model, tmp_path: Path, *forms: Form, **changes) -> Comparison:
    options = {"data": "digits", "images": 10, "rounds": 1, "threads": 1} | changes
    return compare(model, tmp_path / "out", forms=forms, **options)


def test_a_form_that_is_wrong_fails_with_the_number_and_is_not_timed(model: Model, tmp_path: Path) -> None:
    def backwards(subject: Subject) -> Made:
        module = subject.module()
        return Made(runner=subject.runner("own", lambda image: module(image).flip(1)), how="classes in reverse")

    row = _compare_with(model, tmp_path, _form(backwards)).rows[1]
    assert row.agreement is not None
    assert row.agreement.sqnr_db < 10
    assert row.check.startswith(f"failed: {row.agreement.sqnr_db:.1f} dB"), row.check
    assert row.latency is None
    assert row.accuracy is None


def test_a_form_that_is_close_but_has_other_answers_fails_when_the_model_is_trained(
    model: Model, tmp_path: Path
) -> None:
    def nudged(subject: Subject) -> Made:
        module = subject.module()

        def forward(image: torch.Tensor) -> torch.Tensor:
            logits = module(image)
            second = logits.topk(2).indices[:, 1:]
            return logits.scatter(1, second, logits.amax(1, keepdim=True) + 1e-3)

        return Made(runner=subject.runner("own", forward), how="second class first")

    trained = dataclasses.replace(model, trained=True)
    row = _compare_with(trained, tmp_path, _form(nudged)).rows[1]
    assert row.agreement is not None
    assert row.agreement.sqnr_db > 10, row.agreement
    assert row.check.startswith("failed: the eager model's top class on 0%"), row.check


def test_nothing_quantized_is_a_failure(tmp_path: Path) -> None:
    from pocketvit.types import InputSpec

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 8, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net[0].reset_parameters()
    spec = InputSpec(size=(3, 32, 32))
    convolutions = Model(name="conv", module=net, spec=spec, trained=False, classes=10)
    forms = [form for form in QUICK if form.target in ("torchao", "torchscript-x86")]
    for row in _compare_with(convolutions, tmp_path, *forms).rows[1:]:
        assert "0 of 1 layers quantized" in row.check, row.check


def test_without_a_compiler_the_row_says_so(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    (form,) = [form for form in current.FORMS if form.target == "compile"]
    row = _compare_with(model, tmp_path, form).rows[1]
    assert row.check.startswith("not run, unavailable here: "), row.check
    assert "compiler" in row.check.lower(), row.check
    assert row.latency is None


def test_without_an_engine_the_row_names_those_there_are(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "PHONE_ENGINES", ("phone-engine",))
    (form,) = [form for form in legacy.FORMS if form.target == "mobile-lite"]
    row = _compare_with(model, tmp_path, form).rows[1]
    assert "this build of PyTorch has no engine phone-engine; it has" in row.check


def test_a_model_that_cannot_be_scripted_is_traced_and_that_is_said(tmp_path: Path) -> None:
    class Unscriptable(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(12, 10)

        def forward(self, image, *rest, **more):  # TorchScript knows no variable keywords
            return self.head(torch.nn.functional.adaptive_avg_pool2d(image, 2).flatten(1))

    from pocketvit.types import InputSpec

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Unscriptable()
    odd = Model(name="odd", module=net, spec=InputSpec(size=(3, 32, 32)), trained=False, classes=10)
    row = _compare_with(odd, tmp_path, legacy.FORMS[0]).rows[1]
    assert row.check == "ok (floor 80 dB)"
    assert row.settings["how"].startswith("traced, as it cannot be scripted ("), row.settings


def test_settings_are_given_back_when_a_form_blows_up(model: Model, tmp_path: Path) -> None:
    def explode(subject: Subject) -> Made:
        torch.backends.quantized.engine = "onednn"
        raise MemoryError

    before = _settings()
    with pytest.raises(MemoryError):
        _compare_with(model, tmp_path, _form(explode))
    assert _settings() == before
    assert not list(tmp_path.iterdir()), "an unfinished comparison was left behind"


def test_a_cache_of_the_users_own_is_kept(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    seen = []

    def look(subject: Subject) -> Made:
        seen.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        raise BadInput("no need")

    _compare_with(model, tmp_path, _form(look))
    assert seen == [str(tmp_path / "mine")]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")


def test_accuracy_is_left_out_in_words_where_the_classes_are_not_the_datas(model: Model, tmp_path: Path) -> None:
    found = _compare_with(model, tmp_path, data="photos")
    assert "No accuracy: photos has 2 classes and vit_tiny_patch16_224 10" in found.note
    assert found.rows[0].accuracy is None
    assert found.rows[0].latency is not None


def test_a_directory_that_holds_something_is_refused_before_work(model: Model, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(BadInput, match="choose another directory"):
        _compare_with(model, tmp_path)
    assert (tmp_path / "out" / "mine").read_text() == "precious"


def test_a_model_with_the_same_answer_for_everything_proves_nothing(model: Model, tmp_path: Path) -> None:
    silent = _small()
    torch.nn.init.zeros_(silent.module.head.weight)
    torch.nn.init.zeros_(silent.module.head.bias)
    with pytest.raises(CheckFailed, match="all zero"):
        _compare_with(silent, tmp_path)


@pytest.mark.slow
def test_everything_of_today_runs_here(model: Model, tmp_path: Path) -> None:
    """torch.compile of three models, PT2E and ExecuTorch, for real."""
    from torch._dynamo.utils import counters

    before = _settings()
    found = compare(model, tmp_path / "out", data="digits", images=10, rounds=3, threads=1)
    assert _settings() == before
    for row in found.rows[1:]:
        if row.target != "mobile":
            assert row.check.startswith("ok"), f"{row.target}:{row.precision}: {row.check}"
    compiled = [row for row in found.rows if row.target.startswith("compile")]
    assert len(compiled) == 3
    for row in compiled:
        assert float(row.settings["first_call_s"]) > 0.1
        assert row.agreement is not None
        assert math.isfinite(row.agreement.sqnr_db), "compiled code that rounds as eager does was not compiled"
    assert not counters["recompiles"], dict(counters["recompiles"])
    assert comparing.CHART in {path.name for path in (tmp_path / "out").iterdir()}
