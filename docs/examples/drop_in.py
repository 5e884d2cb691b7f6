"""A torch.nn model converted to fastnorm and back: same outputs, gradients and checkpoints."""

import copy

import torch
from torch import Tensor, nn

import fastnorm


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    loss = model(images).logsumexp(1).mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return {name: g for (name, _), g in zip(model.named_parameters(), grads, strict=True)}


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_dtype(torch.float64)  # so that differences are faults, not rounding
    images = torch.randn(8, 3, 32, 32)
    model = cnn()
    ours = copy.deepcopy(model)
    print(fastnorm.convert(ours))  # every norm is fastnorm's, the same object with another class
    print(fastnorm.fuse(ours))  # the norms compute the activations after them

    torch.testing.assert_close(ours(images), model(images))
    torch.testing.assert_close(gradients(ours, images), gradients(model, images))
    torch.testing.assert_close(ours.state_dict(), model.state_dict())  # the running statistics too
    print("training: outputs, gradients and running statistics are torch's")

    theirs = cnn()
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(model.state_dict())
    torch.testing.assert_close(theirs.eval()(images), ours.eval()(images))
    print("checkpoints load both ways")

    fastnorm.revert(ours)
    assert [type(m) for m in ours] == [type(m) for m in model]
    print("reverted: torch.nn's modules again")


if __name__ == "__main__":
    main()
