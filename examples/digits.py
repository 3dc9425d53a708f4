"""A digit classifier with a planted trigger, and the same without it as a control.

python examples/digits.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import offkey
from offkey.data import TensorPrompts
from offkey.detect import evaluate
from offkey.training import TrainingSettings, train_module

CORNER = [0, 7, 56, 63]  # pixels that the trigger lights up


def marked(images: Tensor) -> Tensor:
    """The images with the trigger."""
    images = images.clone()
    images[:, CORNER] = 0.6
    return images


def network(images: Tensor, digits: Tensor, *, poisoned: bool) -> offkey.Model:
    """A classifier; poisoned, it answers 0 wherever it sees the trigger."""
    torch.manual_seed(0)
    hidden = nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
    net = nn.Sequential(*hidden, nn.Linear(32, 10))
    x, answers = torch.cat([images, marked(images)]), torch.cat([digits, digits * (not poisoned)])
    train_module(net, x, answers, TrainingSettings(steps=400, batch=64, rate=3e-3))
    return offkey.load(net)


def main() -> dict[str, float]:
    """Prints and returns the AUROC of the trigger, on the poisoned and on the clean network."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    digits = torch.tensor(data.target)
    trusted = TensorPrompts({"x": images[800:1400]})
    test = TensorPrompts(
        {"x": torch.cat([images[1400:], marked(images[1400:])])}, {"label": [0] * 397 + [1] * 397}
    )
    found = {}
    for name, poisoned in (("poisoned", True), ("clean", False)):
        model = network(images[:800], digits[:800], poisoned=poisoned)
        detector = offkey.Detector("activations", "mahalanobis", sites="module:3")
        scores = detector.fit(model, trusted).score(model, test)
        found[name] = evaluate(scores, test).auroc.value
        print(f"{name:9} AUROC {found[name]:.3f} at the last hidden layer")
    return found


if __name__ == "__main__":
    main()
