"""What the benchmarks share: a description of the machine, files of results, and Markdown tables.

Nothing here measures; it only keeps what was measured together with where and how.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "command_line", "describe_machine", "machine_line", "markdown_table", "save_results"]

RESULTS = Path(__file__).parent / "results"


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, GPU if any, and versions: what somebody else needs to compare figures with ours.

    Example:
        >>> sorted(describe_machine())
        ['cores', 'gpu', 'kernel', 'lightning', 'memory_gib', 'processor', 'python', 'torch']
    """
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux, or a processor that gives no name: what Python knows has to do
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "gpu": _gpu(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        # From the metadata: who only starts processes that measure does not import torch.
        "torch": importlib.metadata.version("torch"),
        "lightning": importlib.metadata.version("lightning"),
    }


def _gpu() -> str | None:
    """What NVIDIA's own program calls the first GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return found.stdout.splitlines()[0].strip() if found.returncode == 0 and found.stdout.strip() else None


def machine_line() -> str:
    """The machine, what ran, and when, in half a line.

    Example:
        >>> "torch " in machine_line()
        True
    """
    machine = describe_machine()
    gpu = "" if machine["gpu"] is None else f"{machine['gpu']}, "
    return f"{gpu}{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}, {date.today()}"


def command_line() -> str:
    """What was typed, without the folder of results, which is somebody's own."""
    words = sys.argv[1:]
    if "--output" in words:
        place = words.index("--output")
        del words[place : place + 2]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def save_results(name: str, settings: dict[str, Any], results: Any, folder: Path = RESULTS) -> Path:
    """Write `name`.json with the machine, the command line, the settings and the results; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": describe_machine(), "command": command_line(), "settings": settings, "results": results}
    path = folder / f"{name}.json"
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=1, allow_nan=True) + "\n")
    unfinished.replace(path)  # whoever is ended here keeps the runs of before
    return path


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right.

    Raises:
        ValueError: a row has another number of cells than the heading.

    Example:
        >>> print(markdown_table(["form", "ms"], [["ring", "12.5"]]))
        | form |   ms |
        | :--- | ---: |
        | ring | 12.5 |
    """
    for row in rows:
        if len(row) != len(heading):
            raise ValueError(f"every row must have {len(heading)} cells, found {len(row)}: {list(row)}")
    widths = [max(4, *(len(row[column]) for row in [heading, *rows])) for column in range(len(heading))]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [heading, rule, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
