"""Finds the prompts that a model answers by another rule, with two controls in the same pass.

python examples/detect.py
"""

import offkey
from offkey.detect import Session, evaluate
from offkey.tasks import get_task

NAMES = ("activations/mahalanobis", "entropy/mahalanobis", "bag-of-words/mahalanobis")


def main(limit: int = 150) -> dict[str, float]:
    """Prints a line a detector; returns the AUROCs by name."""
    model = offkey.load("smollm2-135m-instruct", adapter="bundled:comparison")
    data = get_task("comparison").make(seed=0, limit=limit)
    detectors = [offkey.Detector.named(name) for name in NAMES]
    session = Session(model)
    session.fit(detectors, data.trusted)
    found = {}
    for scores in session.score(detectors, data.test):
        auroc = evaluate(scores, data.test).auroc
        found[scores.detector] = auroc.value
        print(
            f"{scores.detector:26} AUROC {auroc.value:.3f} "
            f"[{auroc.low:.3f}, {auroc.high:.3f}], "
            f"{int(scores.flagged.sum())} of {len(scores)} flagged ({scores.mode})"
        )

    return found


if __name__ == "__main__":
    main()
