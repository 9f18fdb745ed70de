"""The drive trace in terms of the seven questions about roads: what a car asks on which kind of road."""

from __future__ import annotations

from collections.abc import Mapping

from weightpager.trace_file import Visit
from weightpager_lab.trace import renamed
from weightpager_lab.traces import TRACES

TASK_OF: Mapping[str, str] = {
    "motorway": "vehicle-ahead",
    "exit": "lane-offset",
    "tunnel": "lane-offset",
    "bridge": "lane-offset",
    "roadworks": "drivable-area",
    "toll": "vehicle-ahead",
    "main_road": "vehicle-ahead",
    "junction": "traffic-light",
    "roundabout": "drivable-area",
    "crossing": "person",
    "level_crossing": "traffic-light",
    "residential": "bicycle",
    "school_zone": "person",
    "parking": "drivable-area",
    "manoeuvre": "obstacle-distance",
    "fuel_station": "obstacle-distance",
}
"""Kind of road, as the drive trace has it → what a car asks there first."""

SWITCHES = 2000


def visits(switches: int = SWITCHES, dwell: float = 1.0, seed: int = 0) -> tuple[Visit, ...]:
    """The drive trace's visits; roads in a row on which a car asks the same are one. Arguments as of `TraceMaker`."""
    return renamed(TRACES["drive"](switches, dwell, seed).visits, TASK_OF)
