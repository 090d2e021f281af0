"""Ways to hold and run a step that several tests walk through: each word of a policy appears in one of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainer.policy import Policy

HALF = Policy(weights="24bit", moments="8bit", compute=torch.float16, recompute_kernels=True, channels_last=True)
POLICIES = {
    "all kept": HALF,
    "autocast": Policy(compute=torch.bfloat16),
    "recomputed": replace(HALF, checkpointing="blocks", clipping="previous"),
    "selective": replace(HALF, checkpointing="selective", gradients="ram"),
    "state streamed": replace(HALF, stream="state", gradients="ram"),
    "streamed": replace(HALF, checkpointing="blocks", stream="all", boundaries="ram", gradients="ram"),
    "early updates": replace(HALF, stream="state", gradients="ram", early_updates=True),
}

LOW = Policy(weights="24bit", moments="8bit", compute=torch.bfloat16, checkpointing="blocks")
STREAMED = {
    "gradients in RAM": Policy(gradients="ram"),
    "state": Policy(stream="state"),
    "state, updates in backward": Policy(stream="state", max_grad_norm=0.0),
    "state, three units stay": Policy(stream="state", resident_units=3, gradients="ram"),
    "state, early updates": Policy(stream="state", gradients="ram", early_updates=True),
    "boundaries": Policy(checkpointing="blocks", boundaries="ram"),
    "all": Policy(checkpointing="blocks", stream="all", boundaries="ram", gradients="ram"),
    "all, updates in backward": Policy(checkpointing="blocks", stream="all", boundaries="ram", max_grad_norm=0.0),
    "all, previous norm": replace(LOW, stream="all", boundaries="ram", clipping="previous"),
    "all, low bits, two units stay": replace(LOW, stream="all", gradients="ram", resident_units=2),
    "all, early updates": replace(LOW, stream="all", gradients="ram", resident_units=2, early_updates=True, reach_mb=1),
}
