"""Exchange: artefacts out as models of other programs, other programs' checkpoints in as artefacts.

What reads or writes a format that is not ours lives here: ONNX, `torch.export`, timm's folders, the
checkpoints of VPT, CoOp, MaPLe, PRO-VPT and DPL. No training, no network, and nothing is written
before it was compared with what it was made from.
"""
