"""A program of several processes: a small network on the digits, with DistributedDataParallel.

``torchrun`` starts one process for each GPU, or as many on the CPU. Each trains on its share of
every batch. The first one measures and reports. It runs alone as well:
``torchrun --standalone --nproc_per_node 2 train.py --lr 0.1``.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from coarsefine import report

BATCH = 64  # of all processes together


def main() -> None:
    """Train from the checkpoint, if there is one, to the number of epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=".")
    parser.add_argument("--resume", default="")
    given = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, n_processes = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.3, stratify=labels, random_state=7)
    train_x, val_x = (torch.tensor(x, dtype=torch.float32, device=device) for x in parts[:2])
    train_y, val_y = (torch.tensor(y, device=device) for y in parts[2:])

    torch.manual_seed(given.seed)
    model = nn.Sequential(nn.Linear(64, given.hidden), nn.ReLU(), nn.Linear(given.hidden, 10))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=given.lr, momentum=0.9)
    done = 0
    if given.resume:
        saved = torch.load(given.resume, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["epoch"]
    parallel = DistributedDataParallel(model, device_ids=[device.index] if on_gpu else None)

    for epoch in range(done + 1, round(given.epochs) + 1):
        generator = torch.Generator().manual_seed(given.seed + epoch)
        order = torch.randperm(len(train_y), generator=generator).to(device)
        total = torch.zeros((), device=device)
        # Every process takes its share of a batch, and all have equally many batches.
        batches = order[: len(order) // BATCH * BATCH].split(BATCH)
        for batch in batches:
            rows = batch[rank::n_processes]
            loss = nn.functional.cross_entropy(parallel(train_x[rows]), train_y[rows])
            optimizer.zero_grad()
            loss.backward()  # averages the gradients of all processes
            optimizer.step()
            total += loss.detach()
        dist.all_reduce(total)
        if rank == 0:
            with torch.no_grad():
                outputs = model(val_x)
            mean = total.item() / len(batches) / n_processes
            accuracy = (outputs.argmax(1) == val_y).float().mean().item()
            print(f"epoch {epoch}: loss {mean:.4f}, accuracy {accuracy:.4f}, of {n_processes}")
            checkpoint = f"{given.out}/model.pt"
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "epoch": epoch}, checkpoint)
            report(epoch, train_loss=mean, val_acc=accuracy, checkpoint=checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
