"""Small files in the formats of the image data sets."""

import gzip
import io
import struct
import tarfile

import numpy as np

from worker.tasks.cifar import FOLDER, TEST, TRAIN


def idx(array: np.ndarray, magic: int = 0x0800) -> bytes:
    """Bytes of an IDX file."""
    return (
        struct.pack(f">I{array.ndim}I", magic | array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write_mnist(folder, n_train=60, n_test=20, seed=0, **replaced):
    """Write the four files of MNIST.

    ``replaced`` gives other bytes for "train_images" and so on. They are gzipped as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.RandomState(seed)
    arrays = {}
    for part, n in (("train", n_train), ("t10k", n_test)):
        arrays[f"{part}_images"] = idx(draw.randint(0, 256, (n, 28, 28)))
        arrays[f"{part}_labels"] = idx(np.arange(n) % 10)
    for name, content in {**arrays, **replaced}.items():
        part, kind = name.split("_")
        dimensions = 3 if kind == "images" else 1
        (folder / f"{part}-{kind}-idx{dimensions}-ubyte.gz").write_bytes(gzip.compress(content, 1))


def cifar_batch(n, seed):
    """Bytes of one file of CIFAR-10: rows of a label and 3,072 pixels."""
    draw = np.random.RandomState(seed)
    return (
        np.concatenate([(np.arange(n) % 10)[:, None], draw.randint(0, 256, (n, 3072))], 1)
        .astype(np.uint8)
        .tobytes()
    )


def cifar_batches(n=20):
    return {name: cifar_batch(n, seed) for seed, name in enumerate((*TRAIN, TEST))}


def write_cifar(path, batches):
    """The archive of CIFAR-10's binary version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in {"batches.meta.txt": b"airplane\n", **batches}.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
