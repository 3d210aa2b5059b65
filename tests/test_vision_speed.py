"""Benchmark of images: a quick run measures every contestant and writes its report."""

import json

import images
import pytest


def test_quick_run_reports_every_contestant(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "process_bytes", lambda name, n, quick: 2**20)
    out = tmp_path / "images.json"
    images.main(["32", "--quick", "--out", str(out)])
    row = json.loads(out.read_text())["rows"]["32 x 32"]
    assert set(row["contestants"]) == {"MANO", "Swin", "ViT-16", "ViT-4"}
    assert {entry["case"] for entry in row["entries"]} >= {"over Swin, time", "over ViT-4, memory"}
    # Memory counted without data is that of a step that is run.
    step = images.training_step(images.vit(32, True, 4), images.torch.randn(1, 3, 32, 32))
    assert row["contestants"]["ViT-4"]["memory"]["bytes"] == images.peak_bytes_of(step)
    with pytest.raises(SystemExit):
        images.main(["100", "--quick"])
