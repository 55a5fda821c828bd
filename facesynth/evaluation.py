"""What `evaluate` finds, as typed results. report.json holds an `Evaluation`; `Evaluation.model_json_schema()` describes it.

Shares, scores and probabilities are in [0, 1]. A figure that could not be measured is null, and its note says why.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = "1.1"
"""Of report.json: the major number changes when a field goes or changes its meaning, the minor one when a field comes."""

METRICS = ("fid", "kid", "inception_score", "precision", "recall", "density", "coverage", "diversity")
"""Of `Fidelity`: distance to the real images (lower is better) for the first two, higher is better for the others."""

TestSet = Literal["all", "no copies", "no near-copies"]
"""Every test image; those that no training or validation image equals pixel by pixel; those that none is even near to."""

Verdict = Literal["helped", "hurt", "cannot be told"]


class Result(BaseModel):
    """Frozen; unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(Result):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


# --- good? ------------------------------------------------------------------------------------------------------------


class Metric(Result):
    """A figure of the synthetic images against real ones, and its floor: the same figure of real images against real ones.

    For the floor the real images are split in two, in the proportion of synthetic to real ones, at most half and half.
    """

    value: float | None
    floor: float | None
    images: int
    real_images: int
    note: str = ""


class ClassScores(Result):
    """How a classifier does on one class of a test set."""

    precision: float
    recall: float
    f1: float
    images: int


class Recognition(Result):
    """How a classifier does on a test set; `confusion[i][j]` counts images of class i that are read as class j."""

    accuracy: float
    macro_f1: float
    per_class: dict[str, ClassScores]
    confusion: list[list[int]]


class Histogram(Result):
    """Counts between consecutive edges (one more edge than counts), and the median of the values."""

    edges: list[float]
    counts: list[int]
    median: float


class Identity(Result):
    """Cosines between a synthetic image and its source, and between different persons of the real set (impostors).

    `same_person` is the share of pairs above `threshold`, the cosine that one in a thousand impostors reaches.
    """

    model: str
    genuine: Histogram
    impostors: Histogram
    threshold: float
    same_person: float
    per_class: dict[str, float]
    pairs: int


class IntensityBin(Result):
    """Images that were asked for an intensity in [low, high): the mean probability of their class."""

    low: float
    high: float
    images: int
    probability: float


class Intensity(Result):
    """Does more intensity show? `rank_correlation` is Spearman's between intensity and the probability of the class."""

    bins: list[IntensityBin]
    rank_correlation: float | None
    note: str = ""


class Fidelity(Result):
    """Are the images good?

    `gan_test`: a classifier trained on real images reads the synthetic ones; `gan_train`: one trained on synthetic images
    reads real ones (Shmelkov et al. 2018); `real_baseline`: trained and tested on real images. None of them gated anything.
    """

    features: str
    overall: dict[str, Metric]
    per_class: dict[str, dict[str, Metric]]
    gan_test: Recognition | None = None
    gan_train: Recognition | None = None
    real_baseline: Recognition | None = None
    identity: Identity | None = None
    intensity: dict[str, Intensity] = {}
    notes: list[str] = []


# --- safe? ------------------------------------------------------------------------------------------------------------


class Neighbour(Result):
    """A synthetic image and the real one most like it; `similarity` in [-1, 1], `source` tells that it was made from it."""

    synthetic: str
    real: str
    split: str
    similarity: float
    is_source: bool


class Copies(Result):
    """Near-copies of real images among the synthetic ones. `threshold`: the least similarity of a copy.

    `real_share` is the share of real training images that have a near-copy among the other real ones.
    """

    images: int
    copies: int
    share: float
    real_share: float
    threshold: float
    synthetic_similarity: Histogram
    real_similarity: Histogram
    nearest: list[Neighbour]


LeakKind = Literal["synthetic image", "source of a synthetic image", "real training image", "real validation image"]


class Leak(Result):
    """An image of `split` that is a near-copy of an image of another split; `identical` tells that the pixels are equal."""

    kind: LeakKind
    image: str
    of: str
    split: Literal["val", "test"]
    similarity: float
    identical: bool


class Leakage(Result):
    """Near-copies of validation and test images. `counts` is by kind and split, "synthetic image in test" for example.

    `test_copies` names each test image that a real training or validation image copies, `identical_test_copies` those that
    one equals pixel by pixel: scores are given without the one and without the other. `label_conflicts` counts test
    images whose copy has another label.
    """

    counts: dict[str, int]
    leaks: list[Leak]
    test_copies: list[str]
    identical_test_copies: list[str]
    label_conflicts: int

    @property
    def of_synthetic(self) -> int:
        """Leaks that synthetic images carry over; copies between the real splits are the dataset's own doing."""
        return sum(count for kind, count in self.counts.items() if "synthetic" in kind)


class Doubt(Result):
    """A real image whose label two judges doubt: both read it as `read_as`, with this mean probability."""

    image: str
    split: str
    label: str
    read_as: str
    probability: float
    own_probability: float


class Doubts(Result):
    """Real images whose label two judges doubt, the surest first; `counts` is per class."""

    checked: int
    counts: dict[str, int]
    images: list[Doubt]


class Group(Result):
    """One group of faces before (real) and after balancing, with 95 % intervals where a share is estimated."""

    column: str
    group: str
    share_before: Interval
    share_after: Interval
    acceptance: Interval | None
    source_reuse: float | None
    accuracy_before: Interval | None
    accuracy_after: Interval | None
    confusion_before: list[list[int]]
    confusion_after: list[list[int]]


class Bias(Result):
    """Groups by sex, age or a column of the user's; a sentence for each difference that stands out."""

    origin: str
    groups: list[Group]
    sentences: list[str]
    note: str = ""


class Safety(Result):
    """Are the images safe to use?"""

    copies: Copies
    leakage: Leakage
    labels: Doubts | None
    bias: Bias | None
    notes: list[str] = []


# --- helps? -----------------------------------------------------------------------------------------------------------


class ArmScores(Result):
    """Scores of an arm on a test set: means over its seeds, with intervals over test images and seeds."""

    accuracy: Interval
    macro_f1: Interval
    precision: dict[str, Interval]
    recall: dict[str, Interval]
    f1: dict[str, Interval]
    confusion: list[list[float]]
    """Mean over the seeds."""


class ArmResult(Result):
    """One way of training. `validation` is its macro-F1 on the validation split, mean over seeds: all selection used this.

    `prior_strength`: how much of the log class prior was added to its log-odds, as the validation split chose.
    """

    name: str
    title: str
    uses_synthetic: bool
    settings: dict[str, object]
    validation: float
    prior_strength: float
    scores: dict[TestSet, ArmScores]
    per_seed: dict[TestSet, list[Recognition]]
    note: str = ""


class Comparison(Result):
    """A score of `arm` minus that of `against`, paired over test images and seeds.

    `metric` is accuracy, macro_f1, or f1, precision or recall of a class as "f1.disgust". `mcnemar` is the p-value of the exact
    McNemar test on majority votes over the seeds, for accuracy alone.
    """

    arm: str
    against: str
    test_set: TestSet
    metric: str
    difference: Interval
    mcnemar: float | None = None


class Claim(Result):
    """One sentence that can be true or false, and what the data say of it. `needed` tells how much data would tell."""

    sentence: str
    verdict: Verdict
    comparison: Comparison
    needed: str = ""


class Point(Result):
    """One point of a sweep: the share of the real data, or of the synthetic images, and the two best arms there."""

    kind: Literal["fraction", "ratio"]
    value: float
    real_images: int
    synthetic_images: int
    arm: str
    against: str
    arm_macro_f1: Interval
    against_macro_f1: Interval
    difference: Interval


class Uplift(Result):
    """Do the images help? `claims[0]` is the headline: the best arm with synthetic images against the best one without.

    Arms are chosen by their validation score alone; the test split is read once, when all choices are made.
    """

    classifier: str
    steps: int
    batch_size: int
    seeds: list[int]
    test: str
    test_images: dict[TestSet, int]
    real_images: int
    validation_images: int
    synthetic_images: int
    best_with: str
    best_without: str
    synthetic_weight: float
    arms: list[ArmResult]
    comparisons: list[Comparison]
    claims: list[Claim]
    points: list[Point] = []
    notes: list[str] = []


# --- all of it --------------------------------------------------------------------------------------------------------


class Evaluation(Result):
    """Everything that `evaluate` found; `verdict` is one sentence on each of the three questions."""

    schema_version: str = SCHEMA_VERSION
    facesynth: str
    real: str
    synthetic: str
    classes: list[str]
    counts: dict[str, dict[str, int]]
    """"train", "val", "test" and "synthetic" → images per class."""
    fidelity: Fidelity
    safety: Safety
    uplift: Uplift | None = None
    verdict: list[str] = []
    settings: dict[str, object] = {}
    warnings: list[str] = []
