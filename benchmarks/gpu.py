"""What matters on a GPU, measured by one command in under 8 minutes on one H100 or H200.

    python -m benchmarks.gpu [--sections correctness compiled ...] [--minutes 7.5]

Needs torch 2.11 or newer and nothing that does not come with it. The sections:

- `correctness`: predictions and gradients of a small model with each attention kernel, compared with fp32 on the CPU,
  for samples of one shape and of mixed shapes, eager and compiled;
- `compiled`, `eager`: MFU of training steps in bf16 with images, about 16,000 tokens and 75,600 tokens a step. The
  latter have a quarter of the blocks, which changes the time and hardly the MFU;
- `attention`: TFLOP/s of attention kernels, forward and backward, by the width of heads;
- `memory`: highest memory of a step, and what `training.memory` computes for it, with the checkpointing it chooses;
- `autoencoder`: frames per second of encoding and decoding with the convolutions of `causal`;
- `sampling`: seconds of a solver's step with guidance, with both predictions in one forward pass and in turn.

Each section runs in a process of its own and has a share of the time. A case that fails, or that there is no time for,
is reported and stops no other. Without a GPU tiny cases run in this process, which shows that they work and nothing
about speed. Prints one line per case, and one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_cases import SECTIONS, Figures, Machine
from training.device import gpu_environment
from training.tracking.gpu_peaks import peak_tflops

CASES_SHARE = 0.8
"""Share of a section's time after which no case starts: the last one needs time to end."""


def run_here(section: str, seconds: float) -> list[Figures]:
    """Run a section in this process, print each case when it is done, and return all."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = Machine(device, peak_tflops(device, "bf16") or 0.0)
    deadline_s = time.monotonic() + CASES_SHARE * seconds
    cases = []
    for names, measure in SECTIONS[section][1](machine):
        case = {"section": section} | names
        cases.append(case | (run_case(measure) if time.monotonic() < deadline_s else {"error": "no time left"}))
        print(json.dumps(cases[-1]), flush=True)
    return cases


def run_case(measure: Callable[[], Figures]) -> Figures:
    """Return the figures of a case, or the reason why it has none."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return measure()
    except Exception as error:  # other cases may work
        return {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"}


def run_apart(section: str, seconds: float) -> list[Figures]:
    """Run a section in a process of its own, which ends at the latest after `seconds`, and return its cases."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", section, "--minutes", str(seconds / 60)]
    environment = os.environ | gpu_environment()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        out, err = process.communicate(timeout=seconds)
        error = None if process.returncode == 0 else (err.strip().splitlines() or ["killed"])[-1][:300]
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        error = f"stopped after {seconds:.0f} s"
    print(out, end="", flush=True)
    cases = [json.loads(line) for line in out.splitlines() if line.startswith('{"section"') and line.endswith("}")]
    return [*cases, {"section": section, "error": error}] if error else cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=7.5, help="longest time of the whole command")
    parser.add_argument("--one", choices=SECTIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run_here(arguments.one, 60 * arguments.minutes)
        return
    gpu = torch.cuda.is_available()
    start_s, shares = time.monotonic(), sum(SECTIONS[name][0] for name in arguments.sections)
    found = {}
    for name in arguments.sections:
        # Time that a section leaves goes to those after it.
        left_s = 60 * arguments.minutes - (time.monotonic() - start_s)
        found[name] = (run_apart if gpu else run_here)(name, left_s * SECTIONS[name][0] / shares)
        shares -= SECTIONS[name][0]
    result = {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start_s, 1),
        "errors": sum("error" in case for cases in found.values() for case in cases),
        "sections": found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
