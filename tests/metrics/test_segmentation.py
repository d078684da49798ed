import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.multiprocessing.spawn import spawn
from torchmetrics.classification import MulticlassJaccardIndex

from fadeup.metrics import BoundaryIoU, MeanIoU
from fadeup.metrics.segmentation import boundary_map, boundary_statistics, boundary_width, iou_statistics, mean_iou

GOLDEN = Path(__file__).parent.parent / "golden" / "boundary"
CASES = json.loads((GOLDEN / "boundary.json").read_text())
METRICS = [MeanIoU, BoundaryIoU]


def golden_labels(case, name):
    with Image.open(GOLDEN / f"{case['case']}_{name}.png") as image:
        return torch.from_numpy(np.array(image))[None]


def random_labels(batch, height, width, classes, seed, ignored=0.0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(classes, (2, batch, 1, -(-height // 4), -(-width // 4)), generator=generator)
    pred, target = (F.interpolate(x.float(), (height, width)).long()[:, 0] for x in coarse)
    target = torch.where(torch.rand(target.shape, generator=generator) < 0.6, pred, target)
    return pred, target.masked_fill(torch.rand(target.shape, generator=generator) < ignored, 255)


def naive_boundaries(labels, width):
    """Each class's mask less its erosion, in `width` steps of 3 x 3, with zeros outside: the public code's steps."""
    boundary = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        mask = (labels == label).double()[:, None]
        eroded = mask
        for _ in range(width):
            eroded = (F.conv2d(F.pad(eroded, (1, 1, 1, 1)), torch.ones(1, 1, 3, 3).double()) == 9).double()
        boundary |= (mask - eroded)[:, 0] == 1
    return boundary


def naive_boundary_statistics(pred, target, classes, ratio):
    width = boundary_width(pred.shape[1], pred.shape[2], ratio)
    p_edge, t_edge = naive_boundaries(pred, width), naive_boundaries(target, width)
    valid = target != 255
    pairs = [((pred == c) & p_edge & valid, (target == c) & t_edge & valid) for c in range(classes)]
    counts = [(p & t).sum((1, 2)) for p, t in pairs] + [(p | t).sum((1, 2)) for p, t in pairs]
    return torch.stack(counts, dim=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['size'][0]}x{case['size'][1]}")
def test_golden_boundaries_exactly(case):
    pred, target = golden_labels(case, "pred"), golden_labels(case, "label")
    golden = case["per_class"]
    classes = len(golden)
    height, width = case["size"]
    width = boundary_width(height, width, case["dilation_ratio"])
    for labels, key in ((pred, "boundary_pred"), (target, "boundary_label")):
        sizes = torch.bincount(labels[boundary_map(labels, width)].long(), minlength=classes)
        assert sizes.tolist() == [golden[str(c)][key] for c in range(classes)]
    intersections, unions = boundary_statistics(pred, target, classes, dilation_ratio=case["dilation_ratio"])[0].chunk(
        2
    )
    assert intersections.tolist() == [golden[str(c)]["inter"] for c in range(classes)]
    assert unions.tolist() == [golden[str(c)]["union"] for c in range(classes)]


def test_golden_score_over_the_set():
    metric = BoundaryIoU(5)
    for case in CASES:
        metric.update(golden_labels(case, "pred"), golden_labels(case, "label"))
    sums = [[sum(case["per_class"][str(c)][key] for case in CASES) for c in range(5)] for key in ("inter", "union")]
    expected = [i / u for i, u in zip(*sums, strict=True)]
    assert metric.per_class().tolist() == pytest.approx(expected, rel=1e-6)
    assert metric.compute().item() == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "ratio", "expected"),
    [(512, 683, 0.02, 17), (1, 1, 0.02, 1), (3, 4, 0.5, 2), (1024, 2048, 0.005, 11)],
)
def test_boundary_width(height, width, ratio, expected):
    assert boundary_width(height, width, ratio) == expected


@settings(max_examples=60)
@given(
    st.integers(1, 2), st.integers(1, 14), st.integers(1, 14), st.integers(1, 4), st.integers(1, 6), st.integers(0, 99)
)
def test_boundaries_equal_each_class_s_erosion(batch, height, width, classes, d, seed):
    labels, _ = random_labels(batch, height, width, classes, seed)
    assert torch.equal(boundary_map(labels, d), naive_boundaries(labels, d))


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([0.02, 0.1, 0.3]), st.integers(0, 99))
def test_boundary_counts_equal_sets_of_pixels(height, width, ratio, seed):
    pred, target = random_labels(2, height, width, 4, seed, ignored=0.1)
    counts = boundary_statistics(pred, target, 4, dilation_ratio=ratio)
    assert torch.equal(counts, naive_boundary_statistics(pred, target, 4, ratio))


def test_boundary_of_a_square_by_hand():
    labels = torch.zeros(1, 9, 9, dtype=torch.uint8)
    labels[0, 2:7, 2:7] = 7
    inner = torch.zeros(9, 9, dtype=torch.bool)
    inner[3:6, 3:6] = True  # of the square; the ring around it is at most 2 wide, so it is boundary throughout
    assert torch.equal(boundary_map(labels, 1)[0], ~inner)


def test_statistics_by_hand():
    pred = torch.tensor([[[0, 0, 1], [0, 1, 1]]])
    target = torch.tensor([[[0, 1, 1], [0, 2, 255]]])
    assert iou_statistics(pred, target, 4).tolist() == [[2, 1, 0, 0, 3, 3, 1, 0]]
    assert mean_iou(iou_statistics(pred, target, 4).numpy())[0] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)


def test_an_ignored_pixel_makes_a_boundary_of_the_target_only():
    pred = torch.zeros(1, 9, 9, dtype=torch.int64)
    target = pred.clone()
    target[0, 4, 4] = 255
    intersections, unions = boundary_statistics(pred, target, 1)[0].tolist()
    assert intersections == 32  # the image's edge
    assert unions == 32 + 8  # and the target's pixels around the ignored one, which itself is in neither


@pytest.mark.parametrize(
    ("ignore_index", "dtype"), [(255, torch.uint8), (5, torch.uint8), (-1, torch.int32), (255, torch.int64)], ids=str
)
def test_equals_torchmetrics(ignore_index, dtype):
    pred, target = random_labels(6, 30, 41, 4, seed=3, ignored=0.1)
    target[target == 255] = ignore_index
    ours = MeanIoU(5, ignore_index)  # class 4 is absent
    twin = MulticlassJaccardIndex(5, ignore_index=ignore_index)
    classwise = MulticlassJaccardIndex(5, ignore_index=ignore_index, average=None)
    for p, t in zip(pred.split(2), target.split(2), strict=True):
        ours.update(p.to(dtype), t.to(dtype))
        twin.update(p, t)
        classwise.update(p, t)
    assert ours.compute().item() == pytest.approx(twin.compute().item(), rel=1e-6)
    assert ours.compute().shape == ()
    assert torch.allclose(ours.per_class()[:4], classwise.compute()[:4], rtol=1e-6)
    assert ours.per_class()[4].isnan()


@pytest.mark.parametrize("metric", METRICS)
def test_one_score_of_the_set_and_not_a_mean_over_images(metric):
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    target[1, :, 2:] = 1
    pred = torch.zeros_like(target)
    score = metric(2)
    score.update(pred, target)
    assert score.per_class().tolist() == pytest.approx([24 / 32, 0] if metric is MeanIoU else [18 / 26, 0])


@pytest.mark.parametrize("metric", METRICS)
def test_a_class_predicted_but_absent_counts_as_zero(metric):
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    pred = target.clone()
    pred[0, 0, 0] = 2
    score = metric(4)
    score.update(pred, target)
    values = score.per_class()
    assert values[2] == 0
    assert values[[1, 3]].isnan().all()
    assert score.compute().item() == pytest.approx(values[0].item() / 2)


@pytest.mark.parametrize("metric", METRICS)
def test_one_pixel(metric):
    score = metric(3)
    score.update(torch.tensor([[[2]]]), torch.tensor([[[2]]]))
    assert score.compute() == 1
    score.update(torch.tensor([[[2]]]), torch.tensor([[[1]]]))
    assert score.compute() == 0.25


@pytest.mark.parametrize("metric", METRICS)
def test_all_pixels_ignored_is_nan(metric):
    score = metric(3)
    score.update(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), 255, dtype=torch.uint8))
    assert score.compute().isnan()
    assert math.isnan(mean_iou(score.statistics.numpy()))


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=20)
@given(data=st.data())
def test_laws(metric, data):
    seed, cut = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 4))
    permutation = torch.tensor([*data.draw(st.permutations(range(4))), *range(4, 256)])
    pred, target = random_labels(5, 12, 9, 4, seed, ignored=0.1)
    whole, parts, permuted = metric(4), metric(4), metric(4)
    whole.update(pred, target)
    parts.update(pred[cut:], target[cut:])
    parts.update(pred[:cut], target[:cut])
    permuted.update(permutation[pred], permutation[target])
    assert torch.equal(whole.statistics, parts.statistics)
    assert torch.equal(whole.compute(), parts.compute())
    assert torch.equal(permuted.per_class()[permutation[:4]].nan_to_num(-1), whole.per_class().nan_to_num(-1))
    assert mean_iou(whole.statistics.numpy()) == pytest.approx(whole.compute().item(), rel=1e-6)


@pytest.mark.parametrize("statistics", [iou_statistics, boundary_statistics])
def test_statistics_of_an_image_do_not_depend_on_the_batch(statistics):
    pred, target = random_labels(4, 21, 17, 3, seed=0, ignored=0.05)
    together = statistics(pred, target, 3)
    assert together.dtype == torch.int64
    for i in range(4):
        assert torch.equal(statistics(pred[i : i + 1], target[i : i + 1], 3)[0], together[i])


def test_mean_iou_over_leading_axes():
    counts = np.array([[[1, 0, 2, 4], [0, 0, 0, 0]], [[3, 0, 4, 0], [2, 4, 2, 4]]])
    scores = mean_iou(counts)
    assert scores.shape == (2, 2)
    assert scores[[0, 1, 1], [0, 0, 1]].tolist() == [0.25, 0.75, 1]
    assert math.isnan(scores[0, 1])
    assert mean_iou(counts / 7)[1].tolist() == pytest.approx([0.75, 1])


def share(rank, file, folder):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    pred, target = random_labels(5, 30, 41, 4, seed=7, ignored=0.1)
    mine = slice(rank, None, 2)
    values = []
    for metric in (MeanIoU(5), BoundaryIoU(5)):
        for p, t in zip(pred[mine], target[mine], strict=True):
            metric.update(p[None], t[None])
        values += [metric.per_class(), metric.compute()[None]]
        assert metric.images == len(pred[mine])  # each has its own share back
    torch.save(torch.cat(values), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed")
def test_two_processes_equal_one(tmp_path):
    spawn(share, args=(tmp_path / "rendezvous", tmp_path), nprocs=2)
    pred, target = random_labels(5, 30, 41, 4, seed=7, ignored=0.1)
    values = []
    for metric in (MeanIoU(5), BoundaryIoU(5)):
        metric.update(pred, target)
        values += [metric.per_class(), metric.compute()[None]]
    for rank in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt").nan_to_num(-1), torch.cat(values).nan_to_num(-1))


@pytest.mark.parametrize("metric", METRICS)
def test_reset_forward_and_pickle(metric):
    pred, target = random_labels(2, 12, 9, 4, seed=1)
    score = metric(4)
    first = score(pred, target)
    assert torch.equal(first, score.compute())
    assert torch.equal(pickle.loads(pickle.dumps(score)).compute(), first)
    score.reset()
    score.update(target, target)
    assert score.compute() == 1


@pytest.mark.parametrize("metric", METRICS)
def test_compute_needs_an_update(metric):
    message = f"{metric.__name__} must be updated before it is computed, got no images"
    with pytest.raises(ValueError, match=message):
        metric(3).per_class()
    with pytest.warns(UserWarning, match="before the ``update``"), pytest.raises(ValueError, match=message):
        metric(3).compute()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (
            torch.zeros(1, 2, 3).long(),
            torch.zeros(1, 2, 4).long(),
            r"pred must be \(1, 2, 4\) like target, got \(1, 2, 3\)",
        ),
        (
            torch.zeros(1, 2, 3),
            torch.zeros(1, 2, 3).long(),
            "pred must be integers, got torch.float32; take the argmax",
        ),
        (torch.zeros(1, 2, 3).long(), torch.zeros(1, 2, 3), "target must be integers, got torch.float32"),
        (
            torch.zeros(1, 3, 2, 3),
            torch.zeros(1, 2, 3).long(),
            r"pred must be label maps \(B, H, W\) .* got \(1, 3, 2, 3\)",
        ),
        (torch.zeros(1, 0, 3).long(), torch.zeros(1, 0, 3).long(), r"without empty sides, got \(1, 0, 3\)"),
        (np.zeros((1, 2, 3), int), torch.zeros(1, 2, 3).long(), "pred must be a torch.Tensor, got ndarray"),
        (torch.full((1, 2, 3), 3), torch.zeros(1, 2, 3).long(), "pred must be labels 0 to 2, got 3"),
        (torch.full((1, 2, 3), 255), torch.full((1, 2, 3), 255), "pred must be labels 0 to 2, got 255"),
        (
            torch.zeros(1, 2, 3).long(),
            torch.full((1, 2, 3), 7),
            r"target must be labels 0 to 2 or 255 \(ignored\), got 7",
        ),
        (torch.zeros(1, 2, 3).long(), torch.full((1, 2, 3), -1), r"target must be labels 0 to 2 or 255 .* got -1"),
    ],
)
def test_bad_labels(metric, pred, target, message):
    score = metric(3)
    with pytest.raises(ValueError, match=message):
        score.update(pred, target)
    assert not score.images


@pytest.mark.parametrize("metric", METRICS)
def test_bad_classes(metric):
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        metric(0)
    with pytest.raises(ValueError, match="ignore_index must be outside the classes 0 to 299, got 255"):
        metric(300)


def test_bad_widths():
    with pytest.raises(ValueError, match="dilation_ratio must be greater than 0, got 0"):
        BoundaryIoU(3, dilation_ratio=0)
    with pytest.raises(ValueError, match="dilation_ratio must be greater than 0, got nan"):
        boundary_width(3, 3, math.nan)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        boundary_map(torch.zeros(1, 2, 2).long(), 0)


def test_scores_of_images_do_not_import_torchmetrics():
    code = "import sys; import fadeup.recipes; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    import fadeup.metrics

    with pytest.raises(AttributeError, match="no attribute 'mIoU'"):
        _ = fadeup.metrics.mIoU
