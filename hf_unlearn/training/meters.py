"""What the machine reports about a run: processor time, memory, hardware, and an estimate of the energy."""

from __future__ import annotations

import inspect
import logging
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch


def cpu_seconds() -> float:
    """Processor time of this process, user and system, all threads, and of its children that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def peak_memory() -> int | None:
    """Largest resident memory of this process since it began, in bytes; `None` where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():  # not ru_maxrss, which begins at the peak of the process that started this one
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def hardware(device: torch.device, n_devices: int) -> dict[str, Any]:
    """The processor and the accelerators of a process, so that nobody compares times of different machines unawares."""
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        accelerator = None
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "accelerators": n_devices if accelerator else 0,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class EnergyMeter:
    """Energy of the whole machine as codecarbon estimates it: offline, without a file, without sending anything.

    Only the first process of a machine measures.

    Raises:
        ImportError: codecarbon is not installed.
    """

    def __init__(self):
        try:
            from codecarbon import OfflineEmissionsTracker
            from codecarbon.emissions_tracker import BaseEmissionsTracker
        except ImportError:
            raise ImportError(
                "You asked for the energy, but codecarbon, which estimates it, is not installed. Either install it: "
                'pip install "hf-unlearn[energy]", or leave the energy out.'
            ) from None
        # All are set, so that no configuration file of the user brings in an upload. Versions differ in their settings.
        settings = {
            "output_methods": [],
            "save_to_file": False,
            "save_to_api": False,
            "save_to_logger": False,
            "save_to_prometheus": False,
            "save_to_logfire": False,
            "emissions_endpoint": None,
            "electricitymaps_api_token": None,
            "force_carbon_intensity_g_co2e_kwh": 0.0,  # only the energy is of interest
            "allow_multiple_runs": True,  # or else it writes a lock file
            "log_level": "critical",
        }
        known = inspect.signature(BaseEmissionsTracker.__init__).parameters
        self._settings = {name: value for name, value in settings.items() if name in known}
        self._settings["country_iso_code"] = "USA"  # is required, and has no effect
        self._class, self._logger, self._tracker = OfflineEmissionsTracker, logging.getLogger("codecarbon"), None

    def start(self) -> None:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)
        self._tracker = self._class(**self._settings)
        self._tracker.start()

    def stop(self) -> float | None:
        """Kilowatt-hours since the start; 0 where another process measures, `None` where codecarbon has no estimate."""
        if self._tracker is None:
            return 0.0
        self._tracker.stop()
        self._logger.setLevel(self._level)
        data, self._tracker = getattr(self._tracker, "final_emissions_data", None), None
        return None if data is None else float(data.energy_consumed)
