"""Paths, leakage, permutation, fingerprints, and the checked data of a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import dataset_11k_split
from data.splits import (
    LEAKAGE,
    PROTOCOLS,
    SplitFiles,
    check_photos,
    describe_overlap,
    duplicate_digests,
    fingerprint,
    frame_numbers,
    leakage,
    locate,
    missing_photos,
    permute_labels,
    read_data,
)
from data.tables import read_samples
from dataset_11k import SKIN_COLORS, TASKS, Task
from utils import UserError


def make_samples(*people: tuple[str, str, float]) -> pd.DataFrame:
    """Return samples of (id, gender, age), one photo each."""
    samples = pd.DataFrame(people, columns=["id", "gender", "age"])
    return samples.assign(name=[f"{i}.jpg" for i in range(len(people))], image_path="x")


# ----------------------------------------------------------------------------- samples


def test_fingerprint_is_of_names_labels_and_order() -> None:
    samples = make_samples(("b", "male", 24), ("a", "female", 20))
    same = fingerprint(samples)
    # As the version before folders and unknown labels computed it.
    assert same == "8236ac9904aa5e207540d7dc2e1a0ff94e2dd1665b21fa9eceb87e2f35f628dd"
    assert fingerprint(samples.assign(image_path="elsewhere/x")) == same
    for other in (
        samples[::-1],
        samples[:1],
        samples.assign(age=24),
        samples.assign(age=[24, float("nan")]),
        samples.assign(gender="male"),
        samples.assign(id="b"),
        samples.assign(name=["0.jpg", "2.jpg"]),
    ):
        assert fingerprint(other) != same


def test_frame_numbers_are_the_last_in_the_file_name() -> None:
    names = ["Hand_0000123.jpg", "anna7/photo.jp2", "anna7/3_041b.jpg", f"{10**20 + 5}.png"]
    assert frame_numbers(pd.Series(names)).tolist()[::2] == [123, 41]
    assert frame_numbers(pd.Series(names)).isna().tolist() == [False, True, False, False]
    assert frame_numbers(pd.Series(names))[3] == 5


def test_leakage_of_photos_with_and_without_number() -> None:
    def photos(*names: str) -> pd.DataFrame:
        return pd.DataFrame({"id": [name[0] for name in names], "name": names})

    train = photos("a/10.jpg", "a/20.jpg", "b/12.jpg")
    test = photos("a/11.jpg", "a/18.jpg", "b/17.jpg", "b/x.jpg", "c/10.jpg")
    digests = {"a/18.jpg": "1", "b/12.jpg": "1", "b/x.jpg": "2", "c/10.jpg": "2"}
    assert leakage(test, train, digests) == {
        "person_in_train": 4 / 5,
        "within_1": 1 / 4,
        "within_2": 2 / 4,
        "within_5": 3 / 4,
        "identical_in_train": 1 / 5,
    }
    assert list(leakage(test, train, {})) == list(LEAKAGE)
    assert np.isnan(list(leakage(test[:0], train, digests).values())).all()


def test_photos_are_identical_byte_for_byte(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"22"), ("e", b"22")):
        (tmp_path / name).write_bytes(content)
    digests = duplicate_digests(["a", "b", "c", "d", "e", "absent", "a"], tmp_path)
    assert sorted(digests) == ["a", "c", "d", "e"]
    assert digests["a"] == digests["c"] != digests["d"] == digests["e"]


def test_permuted_labels_stay_together_and_belong_to_somebody() -> None:
    everyone = pd.DataFrame(
        {
            "id": [f"p{i}" for i in range(40) for _ in range(2)],
            "gender": [("female", "male")[i % 2] for i in range(40) for _ in range(2)],
            "age": [18 + i for i in range(40) for _ in range(2)],
        }
    )
    samples = everyone.iloc[::-3]
    found = permute_labels(samples, everyone, seed=4)
    assert found["id"].tolist() == samples["id"].tolist()
    assert (found["gender"] == np.where(found["age"] % 2, "male", "female")).all()
    assert found.groupby("id")["age"].nunique().max() == 1
    assert sorted(permute_labels(everyone, everyone, seed=4)["age"]) == sorted(everyone["age"])
    assert (found["age"] != samples["age"]).mean() > 0.8
    shuffled = everyone.sample(frac=1, random_state=1)
    assert found.equals(permute_labels(samples, shuffled, seed=4))
    assert not found.equals(permute_labels(samples, everyone, seed=5))
    # As the published baselines drew them.
    assert permute_labels(everyone, everyone, 4)["age"].tolist()[:12:2] == [55, 41, 52, 53, 28, 32]


def test_a_known_label_is_permuted_before_an_unknown_one() -> None:
    everyone = make_samples(("a", "", 20), ("a", "male", float("nan")), ("b", "", float("nan")))
    for seed in range(4):
        labels = permute_labels(everyone, everyone, seed).fillna({"age": 0})
        known = labels[["gender", "age"]].drop_duplicates().to_numpy().tolist()
        assert sorted(known) == [["", 0], ["male", 20]]


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        (["a"], "1 of 1 val people are in train: the scores say nothing about unseen"),
        (["x"], "0 of 1 val people are in train: identity is measured by comparing"),
        (["a", "x"], "1 of 2 val people are in train: every prediction of the identity"),
    ],
)
def test_overlap(people: list[str], expected: str) -> None:
    train = pd.DataFrame({"id": ["a", "b"]})
    assert describe_overlap(pd.DataFrame({"id": people}), train, "val").startswith(expected)


# ----------------------------------------------------------------------------- files


def test_paths_of_an_aspect(split_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = locate(split_root / "sub_dataset" / "palmar_pr.csv", "paper")
    assert files.attributes == split_root / "sub_dataset" / "palmar_pr.csv"
    assert files.split("val") == split_root / "trainval" / "palmar_pr" / "val.csv"
    assert files.leakage == split_root / "trainval" / "leakage.csv"
    assert locate(files.attributes, "burst", 2) == files._replace(protocol="burst", fold=2)
    assert files.photos == split_root / "Hands"
    for folder, spelling in [("", "sub_dataset/palmar_pr.csv"), ("sub_dataset", "palmar_pr.csv")]:
        monkeypatch.chdir(split_root / folder)
        relative = locate(Path(spelling), "paper")
        assert relative.photos.resolve() == files.photos.resolve()
        assert relative.aspect == "palmar_pr"


def test_other_protocols_have_folders_of_folds() -> None:
    files = SplitFiles(Path("r"), "dorsal_dr", "subject-disjoint", fold=3)
    folder = Path("r/trainval/subject-disjoint")
    assert files.split("train") == folder / "dorsal_dr" / "fold_3" / "train.csv"
    assert files.gallery == folder / "dorsal_dr" / "fold_3" / "gallery.csv"
    assert files.leakage == folder / "leakage.csv"


def test_a_file_outside_the_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not found: .*none.csv. Run: python dataset_11k_split.py"):
        locate(tmp_path / "none.csv", "paper")
    with pytest.raises(UserError, match="not a file: .* Give <root>/sub_dataset/<aspect>.csv"):
        locate(tmp_path, "paper")
    (tmp_path / "photos.csv").touch()
    with pytest.raises(UserError, match="not a file <root>/sub_dataset/<aspect>.csv: .* Move it"):
        locate(tmp_path / "photos.csv", "paper")


def test_missing_photos_are_counted_and_five_are_named(tmp_path: Path) -> None:
    samples = pd.DataFrame({"name": [*(f"{i}.jpg" for i in range(8)), "anna/0.jpg", "ben/0.jpg"]})
    (tmp_path / "1.jpg").touch()
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "0.jpg").touch()
    expected = (
        f"8 of 10 photos of info.csv are missing from {tmp_path}: 0.jpg, 2.jpg, 3.jpg, 4.jpg,"
        " 5.jpg, .... Restore them or rerun dataset_11k_split.py with --skip_missing"
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        check_photos(samples, tmp_path, Path("info.csv"))
    with pytest.raises(UserError, match=r": 0\.jpg\. Restore them"):
        check_photos(samples[:2], tmp_path, Path("info.csv"))
    with pytest.raises(UserError, match="10 of 10 photos"):
        check_photos(samples, tmp_path / "no folder", Path("info.csv"))
    check_photos(samples.iloc[[1, 8]], tmp_path, Path("info.csv"))


def test_a_link_to_nowhere_and_a_folder_are_missing_photos(tmp_path: Path) -> None:
    names = ["photo.jpg", "good.jpg", "broken.jpg", "loop.jpg", "folder.jpg"]
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "good.jpg").symlink_to("photo.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert missing_photos(pd.DataFrame({"name": names}), tmp_path) == names[2:]


# ----------------------------------------------------------------------------- data of a run


def attributes(root: Path) -> Path:
    return root / "sub_dataset" / "dorsal_dr.csv"


def edit_csv(path: Path, edit: Callable[[list[str]], Any]) -> None:
    """Change the lines of a CSV in place."""
    lines = path.read_text().splitlines()
    edit(lines)
    path.write_text("\n".join(lines) + "\n")


def test_data_of_the_published_split(split_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "igae")
    data = read_data([attributes(split_root)], "paper")
    folder = split_root / "trainval" / "dorsal_dr"
    assert data.folder == split_root / "Hands"
    assert list(data.samples) == ["train", "val"]
    for split, samples in data.samples.items():
        assert samples.equals(read_samples(folder / f"{split}.csv"))
        assert data.fingerprints[split] == fingerprint(samples)
    assert data.label_space.sizes == {"identity": 6, "gender": 2, "age": 6}
    assert data.listed["name"].tolist() == read_samples(attributes(split_root))["name"].tolist()
    assert "dorsal_dr, protocol paper: 12 train, 12 val photos, 6 people; 0 val" in caplog.text


def test_test_photos_need_not_exist(split_root: Path) -> None:
    flags = ["--input", str(split_root), "--protocol", "subject-disjoint", "--folds", "3"]
    assert dataset_11k_split.main(flags) == 0
    files = locate(attributes(split_root), "subject-disjoint", 1)
    test = read_samples(files.split("test"))
    (files.photos / test["name"][0]).unlink()
    data = read_data([files.attributes], "subject-disjoint", 1)
    assert set(data.fingerprints) == {"train", "val", "test"}
    assert set(data.samples) == {"train", "val"}
    people = set(data.samples["train"]["id"])
    assert set(data.label_space.names["identity"]) == people
    assert len(people) == 2
    everyone = set(read_samples(files.attributes)["name"])
    assert set(data.listed["name"]) == everyone - {test["name"][0]}
    permuted = read_data([files.attributes], "subject-disjoint", 1, permutation_seed=3)
    assert permuted.fingerprints["train"] != data.fingerprints["train"]


def without_columns(*columns: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        table = pd.read_csv(path, dtype=str).drop(columns=list(columns))
        table.to_csv(path, index=False)

    return edit


@pytest.mark.parametrize(
    ("edit", "tasks", "expected"),
    [
        (without_columns(), (), ("identity", "gender", "age")),
        (without_columns(), ("age", "identity"), ("identity", "age")),
        (without_columns("gender"), (), ("identity", "age")),
        (without_columns("gender", "age"), (), ("identity",)),
        (without_columns("age"), ("gender",), ("gender",)),
    ],
)
def test_tasks_are_those_asked_for_that_have_labels(
    split_root: Path,
    caplog: pytest.LogCaptureFixture,
    edit: Callable[[Path], None],
    tasks: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    for split in ("train", "val"):
        edit(split_root / "trainval" / "dorsal_dr" / f"{split}.csv")
    caplog.set_level(logging.INFO, "igae")
    assert read_data([attributes(split_root)], "paper", tasks=tasks).label_space.tasks == expected
    n_left_out = 0 if tasks else 3 - len(expected)
    assert caplog.text.count("the task is left out") == n_left_out


def test_a_task_without_labels_cannot_be_asked_for(split_root: Path) -> None:
    path = split_root / "trainval" / "dorsal_dr" / "train.csv"
    without_columns("gender")(path)
    message = f"no labels of --tasks gender: {path} has identity, age"
    with pytest.raises(UserError, match=re.escape(message)):
        read_data([attributes(split_root)], "paper", tasks=["gender"])


def test_a_fourth_task_needs_only_its_row(
    hands_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "skin_color", Task("skinColor", "skin colour", SKIN_COLORS))
    assert dataset_11k_split.main(["--input", str(hands_root)]) == 0
    header = attributes(hands_root).read_text().splitlines()[0]
    assert header == "image_path,id,gender,age,skinColor"
    data = read_data([attributes(hands_root)], "paper")
    assert data.label_space.tasks == ("identity", "gender", "age", "skin_color")
    labels = data.label_space.encode(data.samples["val"])
    colours = [SKIN_COLORS[label] for label in labels[:, 3]]
    assert colours == data.samples["val"]["skinColor"].tolist()
    assert len(set(colours)) == 4


def copy_line(source: str, target: str) -> Callable[[Path], None]:
    def spoil(drawn: Path) -> None:
        line = (drawn / source).read_text().splitlines()[1]
        edit_csv(drawn / target, lambda lines: lines.append(line))

    return spoil


def copy_person(split: str) -> Callable[[Path], None]:
    """Let photos of a split show somebody of train."""

    def spoil(drawn: Path) -> None:
        train, part = (read_samples(drawn / f"{s}.csv") for s in ("train", split))
        columns = ["id", "gender", "age"]
        part.loc[part["id"] == part["id"][0], columns] = train[columns].iloc[0].to_list()
        part.to_csv(drawn / f"{split}.csv", index=False, columns=["image_path", *columns])

    return spoil


def keep_header(drawn: Path) -> None:
    edit_csv(drawn / "val.csv", lambda lines: lines.__delitem__(slice(1, None)))


def replace_in(name: str, former: str, new: str) -> Callable[[Path], None]:
    def spoil(drawn: Path) -> None:
        path = drawn / name
        path.write_text(path.read_text().replace(former, new))

    return spoil


def rename_first(drawn: Path) -> None:
    """Give the first photo, of another person, to person 0000503."""
    train = read_samples(drawn / "train.csv").sort_values("id", ignore_index=True)
    assert train["id"][0] != "0000503"
    train.loc[0, "id"] = "0000503"
    train.to_csv(drawn / "train.csv", index=False, columns=["image_path", "id"])


def add_unseen(drawn: Path) -> None:
    edit_csv(drawn / "val.csv", lambda lines: lines.append("x.jpg,somebody,male,20"))


@pytest.mark.parametrize(
    ("protocol", "spoil", "message"),
    [
        ("burst", copy_line("train.csv", "test.csv"), r"jpg is in two splits: .*train.csv and .*t"),
        ("subject-disjoint", copy_person("val"), r" is in two splits: .*train.csv and .*val.csv."),
        ("half", copy_person("test"), r" is in two splits: .*train.csv and .*test.csv. Run again"),
        ("half", lambda drawn: None, ""),
        ("burst", keep_header, r"no photo of dorsal_dr: .*val.csv. Train on another aspect"),
        ("paper", add_unseen, r"somebody \(photo x.jpg\) is in .*val.csv but not in .*dorsal_dr.c"),
        (
            "paper",
            replace_in("train.csv", "0000503", "503"),
            "503 .* where '503' is spelt '0000503'. Run again",
        ),
        (
            "paper",
            replace_in("val.csv", "female", "male"),
            r"two values of gender for \d+: .*dorsal_dr.csv has female, .*val.csv has male. Run ag",
        ),
        (
            "burst",
            rename_first,
            r"two values of id for Hand_\d+.jpg: .*dorsal_dr.csv has \d+, .*train.csv has 0000503",
        ),
        ("burst", lambda drawn: None, ""),
    ],
)
def test_splits_against_the_rules_are_refused(
    make_hands_root: Callable[..., Path],
    protocol: str,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    root = make_hands_root(n_frames=12)
    assert dataset_11k_split.main(["--input", str(root), "--protocol", protocol]) == 0
    spoil(locate(attributes(root), protocol).split("train").parent)
    if not message:
        read_data([attributes(root)], protocol)
        return
    with pytest.raises(UserError, match=message):
        read_data([attributes(root)], protocol)


def test_people_without_a_train_photo_are_refused_in_burst(
    make_hands_root: Callable[..., Path],
) -> None:
    root = make_hands_root(n_frames=12)
    assert dataset_11k_split.main(["--input", str(root), "--protocol", "burst"]) == 0
    train = locate(attributes(root), "burst").split("train")
    edit_csv(
        train, lambda lines: lines.__setitem__(slice(None), [x for x in lines if "503" not in x])
    )
    with pytest.raises(UserError, match=rf"0000503 \(photo .* but not in {train}. Run again: "):
        read_data([attributes(root)], "burst")


def test_a_protocol_or_fold_that_was_not_drawn(split_root: Path) -> None:
    command = f"Run: python dataset_11k_split.py --input {split_root} --protocol subject-disjoint"
    with pytest.raises(UserError, match=f"no split of protocol subject-disjoint: .* {command}"):
        read_data([attributes(split_root)], "subject-disjoint")
    flags = ["--input", str(split_root), "--protocol", "subject-disjoint", "--folds", "3"]
    assert dataset_11k_split.main(flags) == 0
    with pytest.raises(UserError, match=r"no such fold: 3. .* has the folds 0, 1, 2"):
        read_data([attributes(split_root)], "subject-disjoint", 3)


def test_every_protocol_has_a_reason_in_two_lines() -> None:
    for protocol in PROTOCOLS.values():
        assert len(protocol.reason.splitlines()) == 2
