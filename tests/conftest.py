"""One thread per process: tests run side by side (pytest-xdist), and sums in a fixed order compare bit for bit."""

import torch

torch.set_num_threads(1)
