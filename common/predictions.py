"""What a kept model says of the validation and test parts, beside its checkpoint: a ``.npz`` that needs no torch to read.

    coarse/val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.pt
    coarse/val_acc=0.9361-trial=coarse-0042-epoch=001-try=1.npz

Arrays: ``val`` (n, C) and ``test`` (m, C) probabilities, float32; ``val_targets`` (n,) and ``test_targets`` (m,) int64. Without a test
part the last two are empty. Tasks that are no classification have none.
"""
