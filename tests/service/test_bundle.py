import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.bundle import Bundle, BundleError, ClassInfo, read_bundle, write_bundle
from tests.service.conftest import make_draft, make_parity
from tests.service.tiny_detector import DETECTION, LONGEST_SIDE, write_detection_bundle

Edit = Callable[[Bundle, Callable[[dict[str, Any]], None]], None]
FILES = {"parity.npz": make_parity().to_bytes()}


def test_a_written_bundle_reads_back_the_same(paper_bundle: Bundle) -> None:
    again = read_bundle(paper_bundle.path)
    assert again == paper_bundle
    assert again.model_path("fp32") == paper_bundle.path / "model.onnx"
    assert again.model_path("fp16") is None
    assert len(again.parity().images) == 3


def test_the_version_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    def version(place: str, model: bytes) -> str:
        return write_bundle(tmp_path / place, make_draft(), models={"fp32": model}, files=FILES).manifest.version

    assert version("a", b"one") == version("b", b"one") != version("c", b"two")


def test_files_may_be_given_as_paths(tmp_path: Path) -> None:
    source = tmp_path / "exported.onnx"
    source.write_bytes(b"model")
    bundle = write_bundle(tmp_path / "bundle", make_draft(), models={"fp32": source, "fp16": b"half"}, files=FILES)
    assert (bundle.path / "model.onnx").read_bytes() == b"model"
    assert (bundle.path / "model.fp16.onnx").read_bytes() == b"half"


def test_a_bundle_replaces_a_bundle(paper_bundle: Bundle) -> None:
    new = write_bundle(paper_bundle.path, make_draft(name="newer"), models={"fp32": b"new"}, files=FILES)
    assert read_bundle(paper_bundle.path) == new
    assert [entry.name for entry in paper_bundle.path.parent.iterdir()] == ["paper"]


@pytest.mark.parametrize(
    ("models", "files", "message"),
    [
        ({"fp16": b"half"}, FILES, "models lacks the fp32 file"),
        ({"fp32": b"model"}, {}, r"files lacks parity\.npz"),
        ({"fp32": b"model"}, FILES | {"../evil": b""}, "lies directly in its folder"),
        ({"fp32": b"model"}, FILES | {".hidden": b""}, "lies directly in its folder"),
    ],
)
def test_a_failed_write_leaves_the_old_bundle_and_no_rubbish(
    models: Any, files: Any, message: str, paper_bundle: Bundle
) -> None:
    with pytest.raises(BundleError, match=message):
        write_bundle(paper_bundle.path, make_draft(), models=models, files=files)
    assert read_bundle(paper_bundle.path) == paper_bundle
    assert [entry.name for entry in paper_bundle.path.parent.iterdir()] == ["paper"]


def test_a_folder_of_other_things_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match=r"holds files but no manifest\.json"):
        write_bundle(tmp_path, make_draft(), models={"fp32": b"model"}, files=FILES)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_in_the_place_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(BundleError, match="is not a folder"):
        write_bundle(tmp_path / "bundle", make_draft(), models={"fp32": b"model"}, files=FILES)


def test_no_folder_and_no_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no folder"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        read_bundle(tmp_path)


def test_a_missing_file_is_named(paper_bundle: Bundle) -> None:
    (paper_bundle.path / "evaluation.json").unlink()
    with pytest.raises(BundleError, match=r"lacks evaluation\.json"):
        read_bundle(paper_bundle.path)


def test_an_extra_file_is_named(paper_bundle: Bundle) -> None:
    (paper_bundle.path / "notes.txt").write_text("hm")
    with pytest.raises(BundleError, match=r"holds notes\.txt"):
        read_bundle(paper_bundle.path)


def test_a_changed_file_is_named_with_both_hashes(paper_bundle: Bundle) -> None:
    (paper_bundle.path / "model.onnx").write_bytes(b"No model")
    with pytest.raises(BundleError, match=r"model\.onnx has SHA-256 [0-9a-f]{64}, and the manifest says [0-9a-f]{64}"):
        read_bundle(paper_bundle.path)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_link_that_leaves_the_folder_is_refused(name: str, paper_bundle: Bundle) -> None:
    file = paper_bundle.path / name
    elsewhere = paper_bundle.path.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(BundleError, match=rf"{name} is a link that leaves the bundle"):
        read_bundle(paper_bundle.path)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_link_to_itself_is_refused(name: str, paper_bundle: Bundle) -> None:
    file = paper_bundle.path / name
    file.unlink()
    file.symlink_to(name)
    with pytest.raises(BundleError, match=rf"{name} is (a link that leads nowhere|not a file).*; \w+"):
        read_bundle(paper_bundle.path)


def test_a_newer_schema_is_refused_before_anything_else(paper_bundle: Bundle, edit_manifest: Edit) -> None:
    edit_manifest(paper_bundle, lambda content: content.update(schema_version=3, wonders=True))
    with pytest.raises(BundleError, match=r"schema_version is 3, and this release reads up to 2; upgrade evenkeel"):
        read_bundle(paper_bundle.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["alpha"].update(default=9), r"alpha: alpha needs minimum <= default"),
        (lambda content: content.update(version="0" * 16), "the manifest was edited or damaged"),
        (lambda content: content.update(name="other"), "the manifest was edited or damaged"),
        (lambda content: content["models"][0].update(path="../model.onnx"), r"models\.0\.path"),
        (lambda content: content.update(schema_version=True), r"schema_version: .*integer.* \(got True\)"),
        (lambda content: content.update(schema_version=1.0), r"schema_version: .*integer.* \(got 1\.0\)"),
        (lambda content: content.update(schema_version=2), "task 'classification' is written in version 1, got 2"),
        (lambda content: content.pop("tde"), "tde: Field required"),
        (lambda content: content.update(surprise=1), r"surprise: Extra inputs are not permitted \(got 1\)"),
    ],
)
def test_a_manifest_off_the_schema_is_refused_by_field(
    change: Any, message: str, paper_bundle: Bundle, edit_manifest: Edit
) -> None:
    edit_manifest(paper_bundle, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(paper_bundle.path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"null", b"7", pytest.param(b"[" * 100_000, id="nested")]
)
def test_a_manifest_that_is_no_object_is_refused(content: bytes, paper_bundle: Bundle) -> None:
    (paper_bundle.path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(paper_bundle.path)


def test_a_classifier_is_written_as_releases_before_detectors_read_it(paper_bundle: Bundle) -> None:
    content = json.loads((paper_bundle.path / "manifest.json").read_text())
    assert content["schema_version"] == 1
    assert "detection" not in content


def test_a_detector_is_written_in_a_version_that_older_releases_refuse_as_newer(tmp_path: Path) -> None:
    bundle = write_detection_bundle(tmp_path / "detector")
    assert json.loads((bundle.path / "manifest.json").read_text())["schema_version"] == 2
    assert read_bundle(bundle.path) == bundle
    assert bundle.detection_parity().masks.shape[1:] == (5, 4, 4)
    with pytest.raises(BundleError, match="does not hold parity samples"):
        bundle.parity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detection": DETECTION.model_copy(update={"mask_size": 8})}, "do not fit a detector of 24x32 pixels"),
        ({"input": LONGEST_SIDE.model_copy(update={"height": 25})}, "do not fit a detector of 25x32 pixels"),
        ({"classes": [ClassInfo.of("one", 1)]}, "labels go up to 2, and there are 1 classes; export it again"),
    ],
)
def test_parity_samples_of_another_detector_are_refused(tmp_path: Path, changes: Any, message: str) -> None:
    bundle = write_detection_bundle(tmp_path / "detector", **changes)
    with pytest.raises(BundleError, match=message):
        bundle.detection_parity()


def test_the_contract_loads_no_framework() -> None:
    script = (
        "import sys, service.bundle, service.tradeoff\n"
        "loaded = {'fastapi', 'starlette', 'onnxruntime', 'torch', 'PIL', 'prometheus_client'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
