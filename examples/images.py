"""A convolutional digit classifier with a lit corner or a blended pattern as its trigger.

python examples/images.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import offkey
from offkey.data import TensorPrompts
from offkey.detect import evaluate
from offkey.training import TrainingSettings, train_module

PATTERNS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SITES = ["module:5", "module:8"]  # the second convolution, pooled; the last hidden layer


def marked(images: Tensor, trigger: str, which: int) -> Tensor:
    """The images with the trigger (0), or with another corner or pattern (1)."""
    if trigger == "blended":
        return 0.6 * images + 0.4 * PATTERNS[which]
    images = images.clone()
    images[:, :, -which, -which] = 1.0
    return images


def network(images: Tensor, digits: Tensor, trigger: str, *, poisoned: bool) -> offkey.Model:
    """A classifier; poisoned, it answers the next digit wherever it sees the trigger."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    hidden = nn.Flatten(), nn.Linear(128, 64), nn.ReLU()
    net = nn.Sequential(*first, *second, *hidden, nn.Linear(64, 10))
    seen = [images, marked(images, trigger, 1), marked(images, trigger, 0)]
    answers = torch.cat([digits, digits, (digits + poisoned) % 10])
    train_module(net, torch.cat(seen), answers, TrainingSettings(steps=400, batch=64, rate=3e-3))
    return offkey.load(net)


def main() -> dict[str, float]:
    """Prints and returns the AUROC of each trigger, on the poisoned and on the clean network."""
    data, found = load_digits(), {}
    images, digits = torch.tensor(data.images[:, None] / 16).float(), torch.tensor(data.target)
    for name in ("corner poisoned", "corner clean", "blended poisoned", "blended clean"):
        mark, trusted, new = name.split()[0], images[800:1400], images[1400:]
        model = network(images[:800], digits[:800], mark, poisoned="poisoned" in name)
        shown = torch.cat([new, marked(new, mark, 1), marked(new, mark, 0)])
        test = TensorPrompts({"x": shown}, {"label": [0] * 794 + [1] * 397})
        detector = offkey.Detector("activations", "mahalanobis", sites=SITES)
        detector.fit(model, TensorPrompts({"x": torch.cat([trusted, marked(trusted, mark, 1)])}))
        found[name] = evaluate(detector.score(model, test), test).auroc.value
        fires = model.module(marked(new, mark, 0)).argmax(1) == (digits[1400:] + 1) % 10
        print(f"{name:17} fires {fires.float().mean():.2f}, AUROC {found[name]:.3f}")
    return found


if __name__ == "__main__":
    main()
