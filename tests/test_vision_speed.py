"""The benchmark of images: what it counts without data, what it puts together of parts, what it writes."""

import json

import images
import pytest
import torch
from torch import nn

from mano_op.cost import count_flops
from mano_op.memory import peak_bytes_of


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("n", "patch"), [(32, 4), (64, 4), (64, 16)])
def test_what_is_counted_without_data_is_what_a_run_takes(n, patch, attention):
    model = images.vit(n, True, patch, attention)
    x = torch.randn(1, 3, n, n)
    expected = peak_bytes_of(images.training_step(model, x)), count_flops(model, x)
    assert images.without_data(n, True, patch, attention) == expected


def test_the_parts_of_vit_add_up_to_it():
    """In operations, and in what they make of an image."""
    n = 32
    torch.manual_seed(0)
    whole = images.vit(n, True, 4).eval()
    blocks = list(whole.backbone.layers)
    x = torch.randn(1, 3, n, n)
    expected, logits = count_flops(whole, x), whole(x)
    embedded = whole.backbone.embeddings(x)
    first = images.without_blocks(whole)
    assert first is blocks[0]
    z = torch.zeros_like(embedded)
    assert count_flops(whole, x) + len(blocks) * count_flops(first, z) == expected
    for block in blocks:
        embedded = block(embedded)
    torch.testing.assert_close(whole.head(whole.backbone.layernorm(embedded)[:, 0]), logits)


def test_a_block_is_timed_with_its_backward_pass():
    runs, depth = images.parts_of_vit(32, True)
    assert depth == 3
    block, seen = nn.Linear(4, 4), []
    block.register_full_backward_hook(lambda *_: seen.append("backward"))
    z = torch.randn(2, 4, requires_grad=True)
    images.block_step(block, z)()
    images.block_step(block, z)()
    assert seen == ["backward"] * 2
    # Not summed over calls: that of out, which is its own gradient.
    torch.testing.assert_close(z.grad, block(z) @ block.weight)
    for run in runs.values():
        run()


def test_a_ratio_is_that_of_medians_and_its_noise_reaches_to_the_least():
    ours, theirs = images.times_of([2.0, 3.0, 4.0], "measured"), images.times_of([6.0, 6.0], "measured")
    entry = images.ratio_of("case", ours, theirs, ("MANO", "Swin"), 1.1)
    assert entry["ratio"] == pytest.approx(1 / 2)
    assert entry["ratio of the least"] == pytest.approx(1 / 3)
    assert entry["noise"] == pytest.approx(1 / 3)
    assert entry["of"]["MANO"] == {"median": 3000.0, "least": 2000.0}
    assert (entry["wanted"], entry["turns"]) == (1.1, 2)


def test_a_process_grows_by_what_is_counted_at_least():
    n = 256
    model = images.swin(n, True)
    counted = peak_bytes_of(images.training_step(model, torch.randn(1, 3, n, n)))
    grown = images.process_bytes("Swin", n, True)
    assert counted < grown < counted + 100 * images.MIB


def test_a_quick_run_says_what_is_measured_and_what_is_put_together(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(images, "process_bytes", lambda name, n, quick: 2**20 * (1 + len(name)))
    out = tmp_path / "images.json"
    images.main(["32", "--quick", "--out", str(out)])
    images.main(["96", "--quick", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["quick"]
    assert report["wanted"] == {"over Swin": 1.1, "over ViT-4 on the largest images": 0.1}
    assert set(report["rows"]) == {"32 x 32", "96 x 96"}
    smallest, largest = report["rows"].values()
    for row in (smallest, largest):
        assert set(row["contestants"]) == {"MANO", "Swin", "ViT-16", "ViT-4"}
        vit = row["contestants"].pop("ViT-4")
        parts, depth = vit["parts"], vit["parts"].pop("blocks")
        together = vit["seconds, put together"]
        assert together["how"] == images.TOGETHER
        assert together["least"] >= 0.999 * (parts["ends"]["least"] + depth * parts["block"]["least"])
        assert vit["memory"]["how"] == images.COUNTED
        assert vit["memory"]["bytes"] < vit["memory, scores written out"]["bytes"]
        assert all(entry["seconds"]["how"] == images.MEASURED for entry in row["contestants"].values())
        assert all(entry["memory"]["how"] == images.RUN for entry in row["contestants"].values())
        row["seconds"] = vit["seconds"]["how"]
    assert (smallest["seconds"], largest["seconds"]) == (images.MEASURED, images.TOGETHER)
    wanted = {entry["case"]: entry["wanted"] for entry in largest["entries"] if entry["wanted"]}
    assert wanted == {
        "over Swin, time": 1.1,
        "over Swin, memory": 1.1,
        "over ViT-4, time": 0.1,
        "over ViT-4, memory": 0.1,
        "over ViT-4, memory, scores written out": 0.1,
    }
    assert {entry["wanted"] for entry in smallest["entries"]} == {1.1, None}
    assert "ViT-4, put together over measured" in {entry["case"] for entry in smallest["entries"]}
    assert capsys.readouterr().out.count("put together") > 1


@pytest.mark.parametrize("arguments", [["100"], ["224"], ["32", "--threads", "0"]])
def test_what_there_is_not_is_refused(arguments):
    with pytest.raises(SystemExit) as stopped:
        images.main([*arguments, "--quick"])
    assert stopped.value.code == 2
