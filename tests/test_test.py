"""Evaluation: one pass, scores over the whole set, files that another program can score again."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image, ImageOps
from scipy.special import logsumexp, softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

import test as test_script
import train
from data.splits import permute_labels
from data.tables import read_hand_info, read_samples
from dataset_11k import TASKS, PhotoReader
from engine.checkpoint import load_checkpoint
from engine.loop import build_predictor
from measures.metrics_json import pair_scores


def evaluate(checkpoint: Path, root: Path, *flags: str, aspect: str = "dorsal_dr") -> int:
    attributes = root / "sub_dataset" / f"{aspect}.csv"
    quick = ["--num_workers", "0", "--device", "cpu"]
    return test_script.main(
        ["--checkpoint", str(checkpoint), "--attributes_file", str(attributes), *quick, *flags]
    )


def results_of(checkpoint: Path, split: str = "val") -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-dorsal_dr-{split}")


def test_scores_equal_scikit_learns_from_predictions_csv(
    tiny_checkpoint: Path, split_root: Path
) -> None:
    assert evaluate(tiny_checkpoint, split_root, "--batch_size", "5") == 0
    folder = results_of(tiny_checkpoint)
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    tasks = json.loads((folder / "metrics.json").read_text())["tasks"]
    for task in TASKS:
        true, predicted = table[f"{task}_true"], table[f"{task}_pred"]
        known = true.isin(load_checkpoint(tiny_checkpoint)["label_space"][task])
        assert known.all()
        assert tasks[task]["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        with warnings.catch_warnings():  # classes predicted that are not in the truth
            warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
            expected = balanced_accuracy_score(true, predicted)
        assert tasks[task]["balanced_accuracy"] == pytest.approx(expected)
        assert tasks[task]["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))


def test_scores_equal_those_of_the_training(tiny_checkpoint: Path, split_root: Path) -> None:
    evaluate(tiny_checkpoint, split_root)
    tasks = json.loads((results_of(tiny_checkpoint) / "metrics.json").read_text())["tasks"]
    stored = load_checkpoint(tiny_checkpoint)["metrics"]
    for task in TASKS:
        assert tasks[task]["balanced_accuracy"] == stored[f"val_balanced_accuracy_{task}"]


def test_batch_size_changes_no_label_and_no_file_but_in_rounding(
    tiny_checkpoint: Path, split_root: Path
) -> None:
    tables, measures = [], []
    for batch_size in ("1", "7", "64"):
        evaluate(tiny_checkpoint, split_root, "--batch_size", batch_size)
        folder = results_of(tiny_checkpoint)
        tables.append(pd.read_csv(folder / "predictions.csv", dtype={"identity_true": str}))
        measures.append(json.loads((folder / "metrics.json").read_text())["tasks"])
    for other in tables[1:]:
        for task in TASKS:
            assert (other[f"{task}_pred"] == tables[0][f"{task}_pred"]).all()
            assert (other[f"{task}_prob"] - tables[0][f"{task}_prob"]).abs().max() < 1e-4
    flat = [pd.json_normalize(tasks).iloc[0].to_dict() for tasks in measures]
    for other_measures in flat[1:]:
        assert other_measures == pytest.approx(flat[0], abs=1e-4, nan_ok=True)


def test_files_hold_what_other_programs_rely_on(tiny_checkpoint: Path, split_root: Path) -> None:
    evaluate(tiny_checkpoint, split_root)
    folder = results_of(tiny_checkpoint)
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = read_samples(split_root / "trainval" / "dorsal_dr" / "val.csv")
    assert metrics["protocol"] == "paper"
    assert metrics["aspect"] == "dorsal_dr"
    assert metrics["split"] == "val"
    assert metrics["backbone"] == "test_resnet"
    assert metrics["n_images"] == len(rows)
    assert metrics["selected_on_reported_split"] is True
    assert metrics["calibrated_on_reported_split"] is True
    assert metrics["cross_hand"] is None
    assert metrics["split_as_at_training"] is True
    for values in metrics["tasks"].values():
        names = ("accuracy", "balanced_accuracy", "macro_f1", "batch_mean_balanced_accuracy")
        assert all(0 <= values[name] <= 1 for name in names)

    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    columns = [f"{task}_{part}" for task in TASKS for part in ("true", "pred", "prob")]
    assert list(table.columns) == ["image_path", *columns]
    assert table["image_path"].tolist() == rows["image_path"].tolist()
    assert table["identity_true"].tolist() == rows["id"].tolist()

    arrays = np.load(folder / "predictions.npz")
    assert arrays["embedding"].shape[0] == len(rows)
    for task in TASKS:
        classes = arrays[f"{task}_classes"]
        assert arrays[f"{task}_logits"].shape == (len(rows), len(classes))
        assert classes[arrays[f"{task}_true"]].tolist() == table[f"{task}_true"].tolist()
        predicted = classes[arrays[f"{task}_logits"].argmax(axis=1)]
        assert predicted.tolist() == table[f"{task}_pred"].tolist()
        fitted = load_checkpoint(tiny_checkpoint)["temperature"][task]
        assert float(arrays[f"{task}_temperature"]) == fitted
    for name in (*(f"confusion_{task}" for task in TASKS), "sample_grid"):
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.format == "PNG"


def test_it_prints_a_report_per_task(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(tiny_checkpoint, split_root)
    printed = capsys.readouterr().out
    assert all(f"\n{row.title}\n" in printed for row in TASKS.values())
    assert printed.count("weighted avg") == 3
    assert "as published" in printed
    assert "the epoch was selected on this split" in printed


def test_the_train_rows_can_be_evaluated(tiny_checkpoint: Path, split_root: Path) -> None:
    assert evaluate(tiny_checkpoint, split_root, "--split", "train") == 0
    metrics = json.loads((results_of(tiny_checkpoint, "train") / "metrics.json").read_text())
    assert metrics["selected_on_reported_split"] is False


def test_another_aspect_is_refused(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_checkpoint, split_root, aspect="palmar_pl") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "trained on dorsal_dr" in error
    assert "palmar_pl" in error


def test_other_people_are_refused(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    attributes.write_text(attributes.read_text().replace(",0000041,", ",0009999,"))
    assert evaluate(tiny_checkpoint, split_root) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "0009999" in error
    assert "0000041" in error
    assert not results_of(tiny_checkpoint).exists()


def test_a_task_of_one_class_in_the_evaluated_photos_is_no_result(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = split_root / "trainval" / "dorsal_dr" / "val.csv"
    table = pd.read_csv(path, dtype=str)
    table[table["gender"] == "female"].to_csv(path, index=False)
    assert evaluate(tiny_checkpoint, split_root) == 0
    printed = capsys.readouterr().out
    assert printed.count("gender: all photos are of one class") == 1
    assert "gender: balanced accuracy" not in printed
    folder = results_of(tiny_checkpoint)
    block = json.loads((folder / "metrics.json").read_text())["tasks"]["gender"]
    assert (block["n_images"], block["n_classes"]) == (0, 1)
    assert block["accuracy"] is block["balanced_accuracy"] is block["roc_auc"] is None
    page = (folder / "report.html").read_text()
    assert "No result for gender: all photos are of one class." in page
    assert "gender: balanced accuracy" not in page
    assert not (folder / "confusion_gender.png").exists()


def test_a_changed_split_is_said_and_recorded(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = split_root / "trainval" / "dorsal_dr" / "val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    assert evaluate(tiny_checkpoint, split_root) == 0
    assert "has changed since the training" in capsys.readouterr().err
    metrics = json.loads((results_of(tiny_checkpoint) / "metrics.json").read_text())
    assert metrics["split_as_at_training"] is False


def test_a_photo_that_cannot_be_decoded_leaves_no_results(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All such photos are named, with CSV and line, also those of other splits."""
    places = []
    for split, row in (("val", 2), ("val", 5), ("train", 0)):
        path = split_root / "trainval" / "dorsal_dr" / f"{split}.csv"
        name = read_samples(path)["name"][row]
        (split_root / "Hands" / name).write_bytes(b"no picture")
        places.append((name, f"({path} line {row + 2})"))
    assert evaluate(tiny_checkpoint, split_root) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(name in error and place in error for name, place in places)
    assert not results_of(tiny_checkpoint).exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "x.pth", "--batch_size", "0"], "--batch_size"),
        (["--checkpoint", "x.pth", "--num_workers", "-1"], "--num_workers"),
        (["--checkpoint", "x.pth", "--split", "all"], "--split"),
    ],
)
def test_bad_flags_exit_with_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        test_script.main(flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_or_foreign_checkpoint_gets_one_line(
    tmp_path: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path / "none.pth", split_root) == 1
    foreign = tmp_path / "foreign.pth"
    torch.save({"weight": torch.zeros(2)}, foreign)
    assert evaluate(foreign, split_root) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "not found" in errors[0]
    assert "not an IGAE-Net checkpoint" in errors[1]


# ----------------------------------------------------------------------------- all the measures


def metrics_of(checkpoint: Path, split: str = "val", aspect: str = "dorsal_dr") -> Any:
    folder = checkpoint.with_name(f"{checkpoint.stem}-{aspect}-{split}")
    return json.loads((folder / "metrics.json").read_text()), np.load(folder / "predictions.npz")


def probabilities(arrays: Any, task: str) -> np.ndarray:
    scaled = arrays[f"{task}_logits"].astype(float) / float(arrays[f"{task}_temperature"])
    return np.exp(scaled - logsumexp(scaled, axis=1, keepdims=True))


def test_measures_equal_scikit_learns_from_predictions_npz(
    tiny_checkpoint: Path, split_root: Path
) -> None:
    assert evaluate(tiny_checkpoint, split_root) == 0
    metrics, arrays = metrics_of(tiny_checkpoint)
    for task in TASKS:
        found, true = metrics["tasks"][task], arrays[f"{task}_true"]
        likely = probabilities(arrays, task)
        classes = np.arange(likely.shape[1])
        assert found["log_loss"] == pytest.approx(log_loss(true, likely, labels=classes))
        assert found["brier"] == pytest.approx(
            ((likely - np.eye(len(classes))[true]) ** 2).sum(1).mean() / 2
        )
        assert found["log_loss"] <= found["before_temperature"]["log_loss"] + 1e-9
        assert found["temperature"] == float(arrays[f"{task}_temperature"])
        sure = found["intervals"]["balanced_accuracy"]
        assert sure["low"] <= found["balanced_accuracy"] <= sure["high"]
        assert sure["n_people"] == len(set(arrays["people"]))

        most = np.full(len(true), arrays[f"{task}_train_counts"].argmax())
        baseline = found["baselines"]["constant"]
        assert baseline["accuracy"] == pytest.approx((most == true).mean())
    identity, gender, age = (metrics["tasks"][task] for task in TASKS)
    assert identity["baselines"]["constant"]["balanced_accuracy"] == 1 / len(set(arrays["people"]))
    assert identity["differences_to_baselines"]["constant"] == {}
    logits = arrays["identity_logits"]
    for k, name in ((1, "top_1"), (5, "top_5")):
        expected = top_k_accuracy_score(arrays["identity_true"], logits, k=k, labels=np.arange(6))
        assert identity[name] == pytest.approx(expected)
    male = probabilities(arrays, "gender")[:, 1]
    assert gender["roc_auc"] == pytest.approx(roc_auc_score(arrays["gender_true"], male))
    expected_age = probabilities(arrays, "age") @ arrays["mean_ages"]
    error = np.abs(expected_age - arrays["age_years"]).mean()
    assert age["mae_years_of_expectation"] == pytest.approx(error)
    kappa = cohen_kappa_score(
        arrays["age_true"], arrays["age_logits"].argmax(1), labels=np.arange(6), weights="quadratic"
    )
    assert age["quadratic_weighted_kappa"] == pytest.approx(kappa)

    rows = read_samples(split_root / "trainval" / "dorsal_dr" / "train.csv")
    gender_of = dict(zip(rows["id"], rows["gender"], strict=True))
    is_male = np.array([gender_of[x] == "male" for x in arrays["identity_classes"]])
    male = softmax(logits, axis=1) @ is_male
    right = (male > 0.5) == (arrays["gender_true"] == 1)
    assert gender["baselines"]["identity_lookup"]["accuracy"] == pytest.approx(right.mean())
    assert identity["verification"]["all_pairs"]["eer"] is not None


def test_unseen_people_are_matched(
    disjoint_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert evaluate(disjoint_checkpoint, split_root) == 0
    printed = capsys.readouterr().out
    assert "\nidentity\n" not in printed
    assert "unseen" in printed
    metrics, arrays = metrics_of(disjoint_checkpoint, "test")
    assert (metrics["fold"], metrics["split"]) == (1, "test")
    assert metrics["selected_on_reported_split"] is False
    assert metrics["split_as_at_training"] is True
    identity = metrics["tasks"]["identity"]
    assert identity["n_images"] == 0
    assert identity["balanced_accuracy"] is None

    units = arrays["embedding"].astype(float)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    similarity, people = units @ units.T, arrays["people"]
    hits = []
    for gallery in arrays["galleries"]:
        for query in set(range(len(people))) - set(gallery):
            own = similarity[query, gallery][people[gallery] == people[query]].max()
            others = similarity[query, gallery][people[gallery] != people[query]]
            hits.append(own > others.max())
    found = identity["matching"]
    assert found["n_galleries"] == len(arrays["galleries"]) == 10
    assert found["all_pairs"]["rank_1"] == pytest.approx(np.mean(hits))
    precision = []
    for query in range(len(people)):
        other = np.arange(len(people)) != query
        same = people[other] == people[query]
        precision.append(average_precision_score(same, similarity[query, other]))
    assert found["all_pairs"]["mAP"] == pytest.approx(np.mean(precision))
    assert {"rank_1", "mAP", "mAP_trapezoidal", "eer"} <= found["all_pairs"]["intervals"].keys()
    assert found["all_pairs"]["extended_gallery"] is None
    assert found["beyond_2_frames"]["n_genuine"] < found["all_pairs"]["n_genuine"]
    assert found["all_pairs"]["baselines"]["chance"]["rank_1"] == 0.5
    thumbnails = arrays["thumbnail"].reshape(len(people), -1).astype(float)
    thumbnails -= arrays["training_thumbnail"].reshape(-1, 192).mean(axis=0)
    expected = pair_scores({**arrays, "embedding": thumbnails}, 0)
    baseline = found["all_pairs"]["baselines"]["thumbnail"]
    assert baseline["eer"] == pytest.approx(expected.verification.equal_error_rate().value)
    assert baseline["rank_1_among_2"] == pytest.approx(expected.rank_rate(1).value)  # 2 people
    assert baseline["rank_1_fused_2"] == pytest.approx(expected.fused_rank_1(2).value)
    differences = found["all_pairs"]["differences_to_baselines"]["thumbnail"]
    assert set(differences) == {"eer", "rank_1", "mAP"}

    assert found["all_pairs"]["val_threshold"].keys() >= {"fnir_at_val_fpir_0.1", "intervals"}
    assert evaluate(disjoint_checkpoint, split_root, "--split", "val") == 0
    of_val, arrays_of_val = metrics_of(disjoint_checkpoint, "val")
    for name in ("embedding", "people", "frame_number"):
        assert np.array_equal(arrays[f"val_{name}"], arrays_of_val[name])
    matching_of_val = of_val["tasks"]["identity"]["matching"]["all_pairs"]
    assert matching_of_val["val_threshold"] is None  # its people set thresholds

    val = split_root / "trainval/subject-disjoint/dorsal_dr/fold_1/val.csv"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:-1]))
    assert evaluate(disjoint_checkpoint, split_root) == 0
    assert "val_embedding" not in metrics_of(disjoint_checkpoint, "test")[1]


def test_the_background_shows_no_hand_and_needs_a_white_one(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_checkpoint, split_root) == 0
    metrics, arrays = metrics_of(tiny_checkpoint)
    for name in ("background", "training_background"):
        assert arrays[name].shape[1:] == (8, 8, 3)
        assert np.abs(arrays[name].astype(int) - (245, 245, 240)).max() <= 5  # as conftest draws it
    thumbnails = arrays["thumbnail"]
    assert thumbnails.min() < 100
    assert np.array_equal(arrays["corners"].reshape(-1, 2, 2, 3), thumbnails[:, ::7, ::7])
    names = {"corners_nearest", "corners_logistic", "background_nearest", "background_logistic"}
    for task in TASKS:
        assert names <= metrics["tasks"][task]["baselines"].keys()
    pairs = metrics["tasks"]["identity"]["verification"]["all_pairs"]
    assert {"corners", "background"} <= pairs["differences_to_baselines"].keys()

    for path in (split_root / "Hands").iterdir():
        Image.open(path).point(lambda value: value // 2).save(path)
    capsys.readouterr()
    assert evaluate(tiny_checkpoint, split_root) == 0
    assert "the background baseline is left out: 0 of 24 photos" in capsys.readouterr().err
    metrics, arrays = metrics_of(tiny_checkpoint)
    assert "background" not in arrays
    assert "corners_nearest" in metrics["tasks"]["gender"]["baselines"]
    assert "background_nearest" not in metrics["tasks"]["gender"]["baselines"]


def test_imagenet_features_are_a_baseline_where_the_weights_are(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    fixed = "--backbone test_resnet --image_size 32 --amp off --num_workers 0 --batch_size 8"
    fixed += f" --N_epochs 1 --backbone_weights {weights} --run_dir {tmp_path / 'run'}"
    attributes = split_root / "sub_dataset" / "dorsal_dr.csv"
    assert train.main(["--attributes_file", str(attributes), *fixed.split()]) == 0
    checkpoint = next((tmp_path / "run").glob("*-best.pth"))
    assert evaluate(checkpoint, split_root) == 0
    metrics, arrays = metrics_of(checkpoint)
    (cached,) = (split_root / "cache").glob("features-*.npy")
    names = read_samples(attributes)["name"].tolist()
    val = read_samples(split_root / "trainval" / "dorsal_dr" / "val.csv")["name"]
    assert np.array_equal(arrays["imagenet"], np.load(cached)[[names.index(x) for x in val]])
    model = timm.create_model("test_resnet", num_classes=0).eval()
    model.load_state_dict(torch.load(weights), strict=False)
    pixels = PhotoReader(32).read(split_root / "Hands" / val[0])
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None] / 255
    resolved = load_checkpoint(checkpoint)["resolved"]
    mean, std = (torch.tensor(resolved[key])[:, None, None] for key in ("mean", "std"))
    image = (image - mean) / std
    with torch.inference_mode():
        assert arrays["imagenet"][0] == pytest.approx(model(image)[0].numpy(), abs=1e-4)
    gender = metrics["tasks"]["gender"]
    assert {"imagenet_nearest", "imagenet_logistic"} <= gender["baselines"].keys()
    pairs = metrics["tasks"]["identity"]["verification"]["all_pairs"]
    assert {"imagenet", "imagenet_whitened"} <= pairs["differences_to_baselines"].keys()
    cached.write_bytes(b"")  # as a full disk may leave it
    assert evaluate(checkpoint, split_root) == 0
    assert np.array_equal(metrics_of(checkpoint)[1]["imagenet"], arrays["imagenet"])
    weights.unlink()
    capsys.readouterr()
    assert evaluate(checkpoint, split_root) == 0
    assert "the ImageNet baseline is left out: --backbone_weights not" in capsys.readouterr().err
    assert "imagenet_nearest" not in metrics_of(checkpoint)[0]["tasks"]["gender"]["baselines"]


def test_half_of_the_people_is_matched_in_galleries_with_distractors(
    half_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_checkpoint(half_checkpoint)
    scores = [state["metrics"][f"val_balanced_accuracy_{task}"] for task in TASKS]
    assert state["best"]["score"] == pytest.approx(np.mean(scores))  # people of val are known
    assert state["metrics"]["val_rank_1"] is None

    aspects = ("dorsal_dr", "dorsal_dl", "palmar_pr", "palmar_pl")
    for name in pd.concat(read_half(split_root, aspect) for aspect in aspects[1:])["name"]:
        with Image.open(split_root / "Hands" / name) as photo:  # no two are the same picture
            ImageOps.mirror(photo).save(split_root / "Hands" / name)
    assert evaluate(half_checkpoint, split_root) == 0
    metrics, arrays = metrics_of(half_checkpoint, "test")
    assert metrics["fold"] is None
    assert metrics["n_people"] == 3
    assert metrics["leakage"]["person_in_train"] == 0
    matching = metrics["tasks"]["identity"]["matching"]
    assert matching["all_pairs"]["likelihood_ratio"] is None  # val shows people of train
    assert matching["all_pairs"]["val_threshold"] is None

    vector_of: dict[str, np.ndarray] = {}
    for aspect in aspects:  # the embeddings of the distractors, evaluated as another aspect
        other = ["--test_attributes_file", str(split_root / "sub_dataset" / f"{aspect}.csv")]
        if aspect != "dorsal_dr":
            assert evaluate(half_checkpoint, split_root, *other) == 0
        units = metrics_of(half_checkpoint, "test", aspect)[1]["embedding"].astype(float)
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        vector_of |= zip(read_half(split_root, aspect)["image_path"], units, strict=True)
    drawn = split_root / "trainval" / "half" / "dorsal_dr" / "fold_0"
    gallery, distractors = (
        pd.read_csv(drawn / f"{name}.csv").groupby("draw")["image_path"].apply(list)
        for name in ("gallery", "distractors")
    )
    test = read_half(split_root, "dorsal_dr").set_index("image_path")["id"]
    hits = []
    for draw in range(10):
        for query in set(test.index) - set(gallery[draw]):
            own = [x for x in gallery[draw] if test[x] == test[query]]
            others = {*gallery[draw], *distractors[draw]} - set(own)
            similarity = {x: vector_of[query] @ vector_of[x] for x in (*own, *others)}
            hits.append(similarity[own[0]] > max(similarity[x] for x in others))
    extended = matching["all_pairs"]["extended_gallery"]
    assert extended["n_distractors"] == 9
    assert extended["rank_1_extended"] == pytest.approx(np.mean(hits))
    report = (results_of(half_checkpoint, "test") / "report.html").read_text()
    assert "rank-1, extended galleries" in report

    capsys.readouterr()
    (split_root / "Hands" / Path(distractors[0][0]).name).unlink()
    assert evaluate(half_checkpoint, split_root) == 0
    assert re.search(r"1 of \d+ distractors of .* are missing", capsys.readouterr().err)
    metrics, _ = metrics_of(half_checkpoint, "test")
    pairs = metrics["tasks"]["identity"]["matching"]["all_pairs"]
    assert pairs["extended_gallery"] is None
    assert pairs["rank_1"] == matching["all_pairs"]["rank_1"]


def read_half(root: Path, aspect: str) -> pd.DataFrame:
    """Return the test samples of protocol half."""
    return read_samples(root / "trainval" / "half" / aspect / "fold_0" / "test.csv")


def test_headline_measures_are_printed_with_interval_and_baselines(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(tiny_checkpoint, split_root)
    printed = capsys.readouterr().out
    gender = metrics_of(tiny_checkpoint)[0]["tasks"]["gender"]
    interval = gender["intervals"]["balanced_accuracy"]
    (line,) = (x for x in printed.splitlines() if x.startswith("gender: balanced accuracy"))
    numbers = [gender["balanced_accuracy"], interval["low"], interval["high"]]
    numbers += [max(x["balanced_accuracy"] for x in gender["baselines"].values())]
    found = [float(x) for x in re.findall(r"\d+\.\d+", line)]
    assert found == pytest.approx([100 * x for x in numbers], abs=0.051)


def test_val_of_unseen_people_is_matched_as_in_training(
    disjoint_checkpoint: Path, split_root: Path
) -> None:
    assert evaluate(disjoint_checkpoint, split_root, "--split", "val") == 0
    metrics, _ = metrics_of(disjoint_checkpoint, "val")
    stored = load_checkpoint(disjoint_checkpoint)["metrics"]
    matching = metrics["tasks"]["identity"]["matching"]["all_pairs"]
    assert matching["rank_1"] == pytest.approx(stored["val_rank_1"])
    assert metrics["selected_on_reported_split"] is True


def test_another_aspect_is_asked_for_gender_and_age(
    disjoint_checkpoint: Path, split_root: Path
) -> None:
    other = ["--test_attributes_file", str(split_root / "sub_dataset" / "palmar_pl.csv")]
    assert evaluate(disjoint_checkpoint, split_root, *other) == 0
    metrics, arrays = metrics_of(disjoint_checkpoint, "test", "palmar_pl")
    assert metrics["cross_hand"] == {
        "trained_on": "dorsal_dr",
        "people_left_out_as_trained_on": 0,
    }
    assert metrics["aspect"] == "palmar_pl"
    assert metrics["tasks"]["identity"] is None
    assert metrics["tasks"]["gender"]["n_images"] == len(arrays["people"]) == 8
    trained = load_checkpoint(disjoint_checkpoint)["label_space"]["identity"]
    assert not set(arrays["people"]) & set(trained)


def test_another_aspect_without_unseen_people_is_refused(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for aspect, expected in (
        ("palmar_pl", "no photos of unseen people"),
        ("dorsal_dr", "is an aspect of the training"),
    ):
        other = ["--test_attributes_file", str(split_root / "sub_dataset" / f"{aspect}.csv")]
        assert evaluate(tiny_checkpoint, split_root, *other) == 1
        assert expected in capsys.readouterr().err


def test_a_split_that_the_protocol_has_not(
    tiny_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tiny_checkpoint, split_root, "--split", "test") == 1
    assert "--split test: protocol paper has train, val" in capsys.readouterr().err


def test_trained_people_among_the_unseen_people_and_damaged_galleries(
    disjoint_checkpoint: Path, split_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = split_root / "trainval" / "subject-disjoint" / "dorsal_dr" / "fold_1"
    gallery = (drawn / "gallery.csv").read_text(encoding="utf-8")
    (drawn / "gallery.csv").write_text(gallery.replace("Hand_", "Other_"), encoding="utf-8")
    assert evaluate(disjoint_checkpoint, split_root) == 1
    assert "is not one photo per person" in capsys.readouterr().err
    shutil.copyfile(drawn / "train.csv", drawn / "test.csv")
    assert evaluate(disjoint_checkpoint, split_root) == 1
    assert "2 people were in training" in capsys.readouterr().err


def test_groups_know_skin_colour_and_accessories_where_hand_info_lies(
    tiny_checkpoint: Path, split_root: Path
) -> None:
    info = read_hand_info(split_root / "HandInfo.csv").set_index("imageName")
    evaluate(tiny_checkpoint, split_root)
    metrics, arrays = metrics_of(tiny_checkpoint)
    names = read_samples(split_root / "trainval" / "dorsal_dr" / "val.csv")["name"]
    assert arrays["group_skin_color"].tolist() == info.loc[names, "skinColor"].tolist()
    assert set(arrays["group_accessories"]) == {"none"}
    groups = metrics["tasks"]["identity"]["groups"]
    assert list(groups) == ["gender", "age", "skin_color", "accessories"]
    (split_root / "HandInfo.csv").unlink()
    evaluate(tiny_checkpoint, split_root)
    metrics, arrays = metrics_of(tiny_checkpoint)
    assert list(metrics["tasks"]["identity"]["groups"]) == ["gender", "age"]


def test_what_training_gives_away_and_how_to_repeat_it_is_recorded(
    tiny_checkpoint: Path, split_root: Path
) -> None:
    evaluate(tiny_checkpoint, split_root)
    metrics, _ = metrics_of(tiny_checkpoint)
    drawn = split_root / "trainval" / "dorsal_dr"
    val, trained = (read_samples(drawn / f"{split}.csv") for split in ("val", "train"))
    for gap in (1, 2, 5):
        near = [
            any(
                who == other and abs(int(name[5:12]) - int(photo[5:12])) <= gap
                for other, photo in zip(trained["id"], trained["name"], strict=True)
            )
            for who, name in zip(val["id"], val["name"], strict=True)
        ]
        assert metrics["leakage"][f"within_{gap}"] == pytest.approx(np.mean(near))
    assert metrics["leakage"]["person_in_train"] == val["id"].isin(trained["id"]).mean()
    assert metrics["command"].startswith("python test.py --checkpoint ")
    state = load_checkpoint(tiny_checkpoint)
    assert metrics["training"]["config"] == state["config"]
    assert metrics["training"]["fingerprints"] == state["fingerprints"]
    assert metrics["photos"] == str(split_root / "Hands")
    assert metrics["permuted_labels"] is False

    (drawn / "train.csv").unlink()
    evaluate(tiny_checkpoint, split_root)
    assert metrics_of(tiny_checkpoint)[0]["leakage"] is None


def test_likelihood_ratios_need_four_people_in_test_and_none_in_val(
    disjoint_checkpoint: Path, split_root: Path
) -> None:
    def likelihood_ratios() -> Any:
        assert evaluate(disjoint_checkpoint, split_root) == 0
        metrics, _ = metrics_of(disjoint_checkpoint, "test")
        return metrics["tasks"]["identity"]["matching"]["all_pairs"]["likelihood_ratio"]

    assert likelihood_ratios() is None
    drawn = split_root / "trainval" / "subject-disjoint" / "dorsal_dr" / "fold_1"
    val = pd.read_csv(drawn / "val.csv", dtype=str)
    pd.concat([pd.read_csv(drawn / "test.csv", dtype=str), val]).to_csv(
        drawn / "test.csv", index=False
    )
    gallery = pd.read_csv(drawn / "gallery.csv", dtype=str)
    more = val.drop_duplicates("id")[["image_path"]].merge(
        gallery[["draw"]].drop_duplicates(), "cross"
    )
    pd.concat([gallery, more]).to_csv(drawn / "gallery.csv", index=False)
    (drawn / "val.csv").unlink()
    found = likelihood_ratios()
    assert found["calibration_people"] == 2
    assert -np.log10(4) < found["log10_lr_min"] <= 0 <= found["log10_lr_max"] < np.log10(4)


def test_permuted_labels_are_a_baseline_of_training_and_test_alike(
    split_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes, run = split_root / "sub_dataset" / "dorsal_dr.csv", tmp_path / "permuted"
    flags = "--backbone test_resnet --no-pretrained --image_size 32 --amp off --device cpu"
    flags += " --num_workers 0 --batch_size 8 --N_epochs 1 --permute_labels --seed 3"
    given = ["--attributes_file", str(attributes), "--run_dir", str(run)]
    assert train.main([*given, *flags.split()]) == 0
    (checkpoint,) = run.glob("*-best.pth")
    assert evaluate(checkpoint, split_root) == 0
    metrics, arrays = metrics_of(checkpoint)
    assert metrics["permuted_labels"] is True
    assert "permuted between people: a baseline, not a result" in capsys.readouterr().out
    assert metrics["split_as_at_training"] is True
    assert metrics["leakage"] is not None
    everyone = read_samples(attributes)
    rows = read_samples(split_root / "trainval" / "dorsal_dr" / "val.csv")
    expected = permute_labels(rows, everyone, 3)
    assert arrays["age_years"].tolist() == expected["age"].tolist() != rows["age"].tolist()
    other = ["--test_attributes_file", str(split_root / "sub_dataset" / "palmar_pl.csv")]
    assert evaluate(checkpoint, split_root, *other) == 1
    assert "--permute_labels" in capsys.readouterr().err


def test_a_cpu_takes_few_photos_at_once_unless_asked(tiny_checkpoint: Path) -> None:
    state = load_checkpoint(tiny_checkpoint)
    for asked, expected in ((None, 16), (5, 5)):
        assert (
            build_predictor(state, device="cpu", amp=None, batch_size=asked).batch_size == expected
        )
