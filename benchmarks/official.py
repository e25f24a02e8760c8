"""The official MNIST example's work with plain PyTorch: `python -m benchmarks.official ROOT [EPOCHS] [--device cuda]`.

Source of the settings: github.com/pytorch/examples, mnist/main.py. The same network, order of layers, batches of 64
and 1000, Adadelta with lr 1.0, StepLR with gamma 0.7, torchvision's MNIST with ToTensor and Normalize for each sample
in torch's DataLoader, a line every 10 batches. The text is ours.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import datasets, transforms


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.drop_pixels, self.drop_features = nn.Dropout(0.25), nn.Dropout(0.5)
        self.hidden, self.scores = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = self.second(self.first(images).relu()).relu()
        features = self.drop_pixels(F.max_pool2d(images, 2)).flatten(1)
        return F.log_softmax(self.scores(self.drop_features(self.hidden(features).relu())), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("epochs", type=int, nargs="?", default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(1)
    workers = {"num_workers": 1, "persistent_workers": True, "pin_memory": True} if device.type == "cuda" else {}
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    training, test = (datasets.MNIST(arguments.root, train=train, transform=transform) for train in (True, False))
    train_loader = torch.utils.data.DataLoader(training, batch_size=64, shuffle=True, **workers)
    test_loader = torch.utils.data.DataLoader(test, batch_size=1000, shuffle=device.type == "cuda", **workers)
    model = Network().to(device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(1, arguments.epochs + 1):
        began = time.perf_counter()
        model.train()
        for number, (images, targets) in enumerate(train_loader):
            images, targets = images.to(device), targets.to(device)
            optimizer.zero_grad()
            loss = F.nll_loss(model(images), targets)
            loss.backward()
            optimizer.step()
            if number % 10 == 0:
                print(f"epoch {epoch}, batch {number}: loss {loss.item():.6f}", flush=True)
        seconds = time.perf_counter() - began
        model.eval()
        lost, right = 0.0, 0
        with torch.no_grad():
            for images, targets in test_loader:
                images, targets = images.to(device), targets.to(device)
                scores = model(images)
                lost += F.nll_loss(scores, targets, reduction="sum").item()
                right += int((scores.argmax(1) == targets).sum())
        print(
            f"test: loss {lost / len(test):.4f}, accuracy {right / len(test):.4f}, training {seconds:.2f} s", flush=True
        )
        scheduler.step()


if __name__ == "__main__":
    main()
