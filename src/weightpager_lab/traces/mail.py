"""A real log: the mail of some people in 2002, in the order in which it arrived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from email.message import Message
from email.parser import BytesHeaderParser
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path

from weightpager.config import cache_dir
from weightpager.trace_file import Visit, merged
from weightpager_lab.samples.download import fetch, members
from weightpager_lab.samples.pins import SPAM_ASSASSIN
from weightpager_lab.traces.trace import Trace, check_size

SIZE = 16
PERSONAL, SPAM, OTHER = "personal", "spam", "other-lists"
_FROM, _TO = 1_025_481_600, 1_041_379_200  # July to December 2002; what lies outside is sparse


def mail(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:  # noqa: ARG001 - a log has no seed
    """One task per mailing list, one for personal mail, one for spam: what an assistant that handles each would run.

    Of the archive `SPAM_ASSASSIN` only the short names of lists and the times are used. There
    are about 1,800 switches.

    Raises:
        SampleUnavailable: the archive can't be had.
    """
    check_size(switches, dwell)
    return read_mail(fetch(SPAM_ASSASSIN, cache_dir()), switches, dwell)


def read_mail(archive: Path, switches: int, dwell: float) -> Trace:
    """The trace of an archive of mails; mail of one kind in a row is one visit.

    Times are those of arrival (the topmost ``Received``), scaled to the mean dwell time; nights and pauses stay as
    long, compared with the rest, as they were. Lists beyond the commonest share a task.
    """
    arrivals = sorted(_arrivals(archive))
    common = [name for name, _ in Counter(name for _, name in arrivals).most_common(SIZE - 1)]
    visits = merged(Visit(name if name in common else OTHER, moment) for moment, name in arrivals)
    return Trace("mail", (*common, OTHER), tuple(_scaled(visits[: switches + 1], dwell)), None)


def _scaled(visits: Sequence[Visit], dwell: float) -> Iterator[Visit]:
    """The visits from time 0 on, with this mean dwell time."""
    length = visits[-1].start - visits[0].start if visits else 0.0
    scale = dwell * (len(visits) - 1) / length if length else 0.0
    return (Visit(visit.task, (visit.start - visits[0].start) * scale) for visit in visits)


def _arrivals(archive: Path) -> Iterator[tuple[float, str]]:
    for name, content in members(archive, "package/data/*-ham-?/*.txt", "package/data/spam-?/*.txt"):
        headers = BytesHeaderParser().parsebytes(content)
        moment = _arrival(headers)
        if moment is not None and _FROM <= moment < _TO:
            yield moment, SPAM if "/spam-" in name else _list_of(headers)


def _arrival(headers: Message) -> float | None:
    received = str(headers.get("Received", "")).rpartition(";")[2]
    for text in (received, str(headers.get("Date", ""))):
        parsed = parsedate_tz(text)
        if parsed is not None:
            return float(mktime_tz(parsed))
    return None


def _list_of(headers: Message) -> str:
    """The list's short name, by the headers that lists add."""
    identity = str(headers.get("List-Id", "")).rpartition("<")[2].rstrip("> ")
    posted = str(headers.get("Mailing-List", "")).removeprefix("list ").removeprefix("contact ")
    sender = str(headers.get("Sender", "")).strip('<" ')
    name = identity or posted.partition(";")[0] or (sender if "bounce" in sender else "")
    return name.partition("@")[0].partition(".")[0].lower() or PERSONAL
