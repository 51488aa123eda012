"""What --recipe frozen recognises unseen people by: photos with the hand or the background hidden.

    python docs/results/hidden.py --attributes_file CSV --backbone NAME [--backbone_weights FILE]

fits the recipe's linear parts to whole photos, to photos whose hand (found by its colour, with a
margin) has the mean colour of the background, and to photos whose background is white, under
subject-disjoint, and writes hidden.csv beside this file: means over the folds of test.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import binary_dilation, binary_fill_holes
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from data.splits import locate  # noqa: E402
from data.tables import read_samples  # noqa: E402
from dataset_11k import Photo, PhotoReader, resize_size  # noqa: E402
from engine.features import MASK_SIZE, BackgroundReader, backbone_features  # noqa: E402
from engine.loop import Preprocessing  # noqa: E402
from engine.precision import resolve_amp  # noqa: E402
from measures.linear import fit_logistic, fit_whitening  # noqa: E402
from measures.pairs import cosine_similarity, gallery_ranks  # noqa: E402
from model import IGAENet  # noqa: E402
from train import RECIPES, STRENGTHS  # noqa: E402

FOUND = BackgroundReader(MASK_SIZE)  # its limits of the colour of the background


@dataclass(frozen=True)
class HidingReader(PhotoReader):
    """Reads photos with a part hidden.

    hidden: "hand" or "background"; empty: neither.
    """

    hidden: str = ""

    def read(self, photo: Photo) -> Image.Image:
        """Return the photo, (image_size, image_size) RGB."""
        whole = super().read(photo)
        if not self.hidden:
            return whole
        small = np.asarray(whole.resize((MASK_SIZE, MASK_SIZE), Image.Resampling.BOX))
        low, high = small.min(axis=2), small.max(axis=2)
        hand = (low < FOUND.darkest) | (high - low > FOUND.colour_range)
        if self.hidden == "hand":
            hand = binary_dilation(hand, np.ones((2 * FOUND.margin + 1,) * 2))
        mask = Image.fromarray(binary_fill_holes(hand)).resize(whole.size, Image.Resampling.NEAREST)
        pixels, is_hand = np.array(whole), np.asarray(mask)
        if self.hidden == "background":
            pixels[~is_hand] = 255
        else:
            pixels[is_hand] = 0 if is_hand.all() else pixels[~is_hand].mean(axis=0).round()
        return Image.fromarray(pixels)


def fold_scores(features: pd.DataFrame, attributes: Path, fold: int, widths: Sequence[int]) -> dict:
    """Return rank-1, and balanced accuracy and AUC of gender, on a fold's test people."""
    files = locate(attributes, "subject-disjoint", fold)
    train, test = (read_samples(files.split(split)) for split in ("train", "test"))
    training, evaluated = (features.loc[x["name"]].to_numpy(float) for x in (train, test))
    neck = fit_whitening(training, train["id"].to_numpy(), RECIPES["frozen"]["neck"], widths)
    embeddings, is_male = neck(evaluated), (test["gender"] == "male").to_numpy()
    labels = (train["gender"] == "male").to_numpy(int)
    head = fit_logistic(neck(training), labels, train["id"].to_numpy(), 2, STRENGTHS[0])
    logits = head(embeddings)
    positions = {path: i for i, path in enumerate(test["image_path"])}
    draws = pd.read_csv(files.gallery).groupby("draw")["image_path"]
    galleries = np.stack([[positions[path] for path in draw] for _, draw in draws])
    similarity = cosine_similarity(embeddings, embeddings)
    ranks = gallery_ranks(similarity, test["id"].to_numpy(), galleries)
    return {
        "rank_1": (ranks[~np.isnan(ranks)] == 1).mean(),
        "gender_balanced_accuracy": balanced_accuracy_score(is_male, logits.argmax(axis=1)),
        "gender_roc_auc": roc_auc_score(is_male, logits[:, 1] - logits[:, 0]),
    }


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attributes_file", type=Path, required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--backbone_weights", type=Path)
    given = parser.parse_args()
    device, size = torch.device("cpu"), 224
    model = IGAENet(given.backbone, {}, backbone_weights=given.backbone_weights, multi_level=True)
    model = model.to(memory_format=torch.channels_last)
    samples, files = read_samples(given.attributes_file), locate(given.attributes_file, "paper")
    rows = []
    for hidden in ("", "hand", "background"):
        features = backbone_features(
            model,
            samples,
            files.photos,
            reader=HidingReader(size, 2 * resize_size(size), hidden=hidden),
            preprocessing=Preprocessing(device, model.mean, model.std),
            amp=resolve_amp("auto", device),
            batch_size=20,
            num_workers=2,
            cache_dir=None,
        )
        table = pd.DataFrame(features, index=samples["name"])
        folds = locate(given.attributes_file, "subject-disjoint").folds
        found = [fold_scores(table, given.attributes_file, k, model.feature_widths) for k in folds]
        means = pd.DataFrame(found).mean().round(3).to_dict()
        rows.append({"backbone": given.backbone, "hidden": hidden or "nothing", **means})
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(FOLDER / "hidden.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
